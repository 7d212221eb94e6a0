"""Ids are not committed in the order in which they are drawn: a job waits for what may still commit when it starts.

Two sessions, in every order of their steps. A job may start between any two of them; it must not take its horizon for
passed while a row may still appear at an id up to its newest, and has to once none can.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ops.checks.preflight.source import check_late_commits
from producer.audits import AuditReader, AuditSource, Limits, connect
from producer.survey import survey, writers_of
from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob
from tests.integration.producer.crm import mapping_with, source_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services

Bound = tuple[int, int, tuple[str, ...]]  # newest id, transaction id, writers

# The steps of a transaction that writes one audit; touching something else gives it a transaction id.
AUDITED = ("touch", "draw", "insert", "commit")  # as Rails does it: the record first, then its audit
DRAWN_FIRST = ("draw", "insert", "commit")  # its transaction id comes with the insert
ROLLED_BACK = ("touch", "draw", "insert", "rollback")


def bound_now(db: Any, source: AuditSource) -> Bound:
    _, top, xmax = db.execute(source.query("horizon")).fetchall()[0]
    return top, xmax, writers_of(db, source)


class Session:
    """A transaction of the CRM, step by step."""

    def __init__(self, dsn: str, table: str = "audits") -> None:
        self.db = psycopg.connect(dsn)
        self.id = 0
        self.over = False
        self._table = table

    def do(self, step: str) -> None:
        if step == "touch":
            self.db.execute("INSERT INTO users (id) SELECT COALESCE(max(id), 0) + random() * 1000000 FROM users")
        elif step == "draw":
            self.id = self.db.execute("SELECT nextval('audits_id_seq')").fetchall()[0][0]
        elif step == "insert":
            query = "INSERT INTO {} (id, auditable_type, created_at) VALUES (%s, 'Crm::Person', now())"
            self.db.execute(sql.SQL(query).format(sql.Identifier(self._table)), [self.id])
        else:
            self.db.commit() if step == "commit" else self.db.rollback()
            self.over = True


@contextmanager
def sessions(dsn: str, count: int, table: str = "audits") -> Iterator[list[Session]]:
    made = [Session(dsn, table) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.db.close()


def interleavings(first: Sequence[str], second: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield every order of two sessions' steps."""
    if not first or not second:
        yield [(0, step) for step in first] + [(1, step) for step in second]
        return
    yield from ([(0, first[0]), *rest] for rest in interleavings(first[1:], second))
    yield from ([(1, second[0]), *rest] for rest in interleavings(first, second[1:]))


def leaves_a_hole(order: Sequence[tuple[int, str]]) -> bool:
    """Tell whether the second session draws first and is open when the first one has committed."""
    return order.index((1, "draw")) < order.index((0, "draw")) and order[-1][0] == 1


@pytest.mark.parametrize("second", [AUDITED, DRAWN_FIRST], ids=["audited", "drawn-first"])
def test_the_horizon_waits_for_exactly_the_rows_that_may_come_in_every_order(
    database_dsn: str, second: Sequence[str]
) -> None:
    crm.make_audits(database_dsn)
    source = source_of(database_dsn)
    waited = orders = 0
    with (
        connect(database_dsn) as db,
        closing(AuditReader(database_dsn, source, crm.CUTOFF, Limits())) as reader,
        sessions(database_dsn, 2) as pair,
    ):
        for order in interleavings(AUDITED, second):
            orders += 1
            for each in pair:
                each.id, each.over = 0, False
            started: list[Bound] = []
            for number, step in order:
                pair[number].do(step)
                if any(each.id and not each.over for each in pair):
                    started.append(bound_now(db, source))
                for top, xmax, writers in started:
                    reader._writers = list(writers)
                    may_come = [each for each in pair if 0 < each.id <= top and not each.over]
                    passed = reader.horizon_passed(xmax)
                    assert not (passed and may_come), (order, step)
                    waited += bool(may_come)
                    if all(each.over for each in pair):
                        assert passed, (order, "it waits for nothing")
    assert orders == {4: 70, 3: 35}[len(second)]
    assert waited > orders // 3, "there was something to wait for"


def test_a_row_whose_transaction_began_last_and_drew_its_id_first_is_replayed(make_job: MakeJob) -> None:
    """X has the lower transaction id and the higher audit id, and is over; Y runs when the job starts."""
    here = make_job()
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 11))
    with psycopg.connect(here.dsn) as db:
        db.execute("SELECT setval('audits_id_seq', 10)")
    with sessions(here.dsn, 2) as (x, y):
        for session, step in ((x, "touch"), (y, "touch"), (y, "draw"), (y, "insert"), (x, "draw"), (x, "insert")):
            session.do(step)
        x.do("commit")
        found = survey(here.dsn, mapping_with(), "a")
        here = here.with_job(
            top_audit_id=found.top_audit_id,
            snapshot_xmax=found.snapshot_xmax,
            writers=found.writers,
        )
        code, said = here.run(CRM_REPLAY_HORIZON_WAIT_S="0.3")
        assert (code, "still open" in said) == (1, True), said
        y.do("commit")
    assert here.run()[0] == 0
    assert sorted(event.audit_id for event in here.events()) == list(range(1, 13))


@pytest.mark.parametrize(
    ("written", "mapped"),
    [("part", "part"), ("part", "audits"), ("audits", "seen"), ("part", "seen")],
    ids=["partition", "parent", "view", "view-of-partition"],
)
def test_an_id_drawn_without_a_transaction_id_is_waited_for_wherever_it_will_stand(
    database_dsn: str, written: str, mapped: str
) -> None:
    """The sequence is the parent's; the table that is read may be a partition, or a view of it."""
    crm.make_audits(database_dsn)
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute("CREATE TABLE part () INHERITS (audits)")
        db.execute("CREATE VIEW inner_view AS SELECT * FROM audits")
        db.execute("CREATE VIEW seen AS SELECT * FROM inner_view")
        for _ in range(40):  # so that no draw has to be logged, which would give the transaction an id
            db.execute("SELECT nextval('audits_id_seq')")
    source = source_of(database_dsn, table=mapped)
    with connect(database_dsn) as db, sessions(database_dsn, 2, written) as (x, y):
        y.do("draw")
        for step in ("draw", "insert", "commit"):
            x.do(step)
        top, xmax, writers = bound_now(db, source)
        assert (top, len(writers)) == (x.id, 1)
        with closing(AuditReader(database_dsn, source, crm.CUTOFF, Limits(), writers)) as reader:
            assert not reader.horizon_passed(xmax)
            y.do("insert")
            assert not reader.horizon_passed(xmax)
            assert f"pid {y.db.info.backend_pid} of" in reader.oldest_transactions()
            y.do("commit")
            assert reader.horizon_passed(xmax)


def test_nothing_is_waited_for_that_cannot_write_the_audits(database_dsn: str) -> None:
    """A dump, a report, an idle transaction: they have read, and drawn no id."""
    crm.make_audits(database_dsn)
    source = source_of(database_dsn)
    with psycopg.connect(database_dsn) as reading, connect(database_dsn) as db:
        reading.execute("SELECT * FROM audits, users")
        assert bound_now(db, source)[2] == ()


def test_preflight_says_what_it_cannot_see(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    mapping = mapping_with()
    assert check_late_commits(database_dsn, mapping, "a").verdict == "ok"
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute("ALTER SEQUENCE audits_id_seq CACHE 20")
    found = check_late_commits(database_dsn, mapping, "a")
    assert (found.verdict, "audits_id_seq hands out 20 ids at once" in found.found) == ("warn", True)
    role = f"reader_{database_dsn.partition('test_')[2][:10]}"
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute("ALTER SEQUENCE audits_id_seq CACHE 1")
        db.execute(f"CREATE ROLE {role} LOGIN")
        try:
            db.execute(f"GRANT SELECT ON audits, users TO {role}")
            as_reader = make_conninfo(database_dsn, user=role)
            assert check_late_commits(as_reader, mapping, "a").verdict == "ok", "no right of its own is needed"
            db.execute("REVOKE SELECT ON pg_locks FROM PUBLIC")
            found = check_late_commits(as_reader, mapping, "a")
            assert (found.verdict, found.to_do) == ("warn", f"GRANT SELECT ON pg_catalog.pg_locks TO {role}")
            assert survey(as_reader, mapping, "a").writers == (), "a run does without"
        finally:
            db.execute("GRANT SELECT ON pg_locks TO PUBLIC")
            db.execute(f"DROP OWNED BY {role}")
            db.execute(f"DROP ROLE {role}")


# ---- a hot standby


def replayed(primary: psycopg.Connection[Any], standby: Any) -> None:
    """Wait until the standby has replayed all that the primary has written, a transaction's end among it."""
    lsn = primary.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()[0][0]
    # A page's header (24 bytes) may be counted already; the end of a transaction is longer.
    query = "SELECT pg_wal_lsn_diff(%(lsn)s, pg_last_wal_replay_lsn()) <= 24"
    wait_until(lambda: standby.execute(query, {"lsn": lsn}).fetchall()[0][0], "the standby follows")


@pytest.fixture
def on_standby(database_dsn: str, standby_dsn: str) -> str:
    """Return the DSN of the test's database on the standby."""
    crm.make_audits(database_dsn)
    return crm.dsn_on_standby(database_dsn, standby_dsn, "users")


def test_a_standby_waits_for_what_the_log_has_named_in_every_order(database_dsn: str, on_standby: str) -> None:
    source = source_of(on_standby)
    waited = 0
    with (
        psycopg.connect(database_dsn, autocommit=True) as primary,
        connect(on_standby) as db,
        closing(AuditReader(on_standby, source, crm.CUTOFF, Limits())) as reader,
        sessions(database_dsn, 2) as pair,
    ):
        for order in filter(
            leaves_a_hole, [*interleavings(AUDITED, AUDITED), *list(interleavings(AUDITED, ROLLED_BACK))[::4]]
        ):
            for each in pair:
                each.id, each.over = 0, False
            started: list[Bound] = []
            for number, step in order:
                pair[number].do(step)
                if pair[number].over:
                    replayed(primary, db)
                started.append(bound_now(db, source))
                for top, xmax, _ in started:
                    may_come = [each for each in pair if 0 < each.id <= top and not each.over]
                    passed = reader.horizon_passed(xmax)
                    assert not (passed and may_come), (order, step)
                    waited += bool(may_come)
                    if all(each.over for each in pair):
                        assert passed, (order, "it waits for nothing, and the primary is idle")
    assert waited > 20
