"""Whatever interrupts a read of the source, the read is repeated: no reader of it ends where it need not."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ops.checks.preflight.source import check_replica
from producer.audits import AuditReader, AuditSource, Connection, Limits, QueryTooSlowError, answering, connect
from producer.references import _Texts, _user_records
from producer.survey import count_in_scope, first_behind, survey
from schemas.codec import Codec
from schemas.errors import ReplayError
from tests.integration.producer import crm
from tests.integration.producer.crm import dsn_on_standby, mapping_with, source_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services

ROWS = 200
EARLY = datetime(2000, 1, 1, tzinfo=UTC)
SLOW = "slow_audits"


def make_slow_audits(dsn: str) -> None:
    """Make a table, and a view of it of which a query takes half a second."""
    crm.make_audits(dsn)
    crm.add_audits(dsn, range(1, ROWS + 1))
    with psycopg.connect(dsn) as db:
        db.execute(
            f"CREATE VIEW {SLOW} AS SELECT * FROM audits"
            " WHERE CASE WHEN id % 10 = 0 THEN pg_sleep(0.03) IS NOT NULL ELSE true END"
        )


def read_page(dsn: str, source: AuditSource) -> int:
    with closing(AuditReader(dsn, source, EARLY, Limits(page_rows=1_000))) as reader:
        return len(reader.page_after(0, ROWS, 0, (), look_for_gaps=True).events)


def read_late_page(dsn: str, source: AuditSource) -> int:
    with closing(AuditReader(dsn, source, EARLY, Limits(page_rows=1_000))) as reader:
        return len(reader.late_page_after(0, [(1, ROWS)], 0).events)


def fingerprint(dsn: str, source: AuditSource) -> int:
    with closing(AuditReader(dsn, source, EARLY, Limits())) as reader:
        return ROWS if reader.fingerprint(0, ROWS) else 0


def counted(dsn: str, source: AuditSource) -> int:
    mapping = mapping_with(table=source.relation)
    return count_in_scope(dsn, mapping, "a", top_audit_id=ROWS, cutoff=EARLY).rows


def surveyed(dsn: str, source: AuditSource) -> int:
    return survey(dsn, mapping_with(table=source.relation), "a").rows


def next_id(dsn: str, source: AuditSource) -> int:
    with connect(dsn) as db:
        return first_behind(db, source, ROWS - 10, ROWS)


READS = (read_page, read_late_page, fingerprint, counted, surveyed, next_id)


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
def test_a_query_that_is_cancelled_or_cut_off_is_asked_again(
    database_dsn: str, read: Callable[[str, AuditSource], int], how: str
) -> None:
    make_slow_audits(database_dsn)
    source = source_of(database_dsn, table=SLOW)
    busy = (
        f"SELECT {how}(pid) FROM pg_stat_activity WHERE application_name = 'crm-replay' AND state = 'active'"
        f" AND datname = current_database() AND query LIKE '%{SLOW}%' AND now() - query_start > interval '0.1 s'"
    )
    # `next_id` is quick by nature: the row that it looks for is made slow, and it alone is busy.
    expected = read(database_dsn, source)
    with ThreadPoolExecutor(1) as thread, psycopg.connect(database_dsn, autocommit=True) as db:
        if read is next_id:
            db.execute(f"CREATE OR REPLACE VIEW {SLOW} AS SELECT * FROM audits WHERE pg_sleep(0.2) IS NOT NULL")
        found = thread.submit(read, database_dsn, source)
        interrupted = 0
        while not found.done() and interrupted < 2:
            interrupted += len(db.execute(busy).fetchall())
            time.sleep(0.02)
        assert (found.result(60), interrupted) == (expected, 2)


# What a standby's recovery says, by its SQLSTATE, to a session that has just been opened.
BY_RECOVERY = "DO $$ BEGIN RAISE 'terminating connection due to conflict with recovery' USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize(
    "interruption",
    [
        "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(10)",
        "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)",
        BY_RECOVERY.format("40001"),
        BY_RECOVERY.format("40P01"),
    ],
)
def test_a_session_that_is_ended_before_its_first_answer_is_opened_again(
    database_dsn: str, interruption: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, ended = Connection._check_session, list[Any]()

    def interrupted(self: Connection, db: psycopg.Connection[Any], settings: Any) -> None:
        if len(ended) < 2:
            ended.append(db.info.backend_pid)
            db.execute(interruption)
        settle(self, db, settings)

    monkeypatch.setattr(Connection, "_check_session", interrupted)
    with connect(database_dsn) as db:
        assert db.execute("SELECT 1").fetchone() == (1,)
        assert len({*ended, db.info.backend_pid}) == 3


def test_a_session_that_was_idle_for_too_long_is_opened_again(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 6))
    source = source_of(database_dsn)
    dsn = make_conninfo(database_dsn, options="-c idle_session_timeout=50")
    with (
        connect(dsn) as db,
        closing(AuditReader(dsn, source, EARLY, Limits())) as reader,
        psycopg.connect(database_dsn, autocommit=True) as watching,
    ):
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'crm-replay' AND datname = current_database()"
        )
        for _ in range(2):
            wait_until(lambda: watching.execute(query).fetchall() == [(0,)], "the server ends the sessions")
            assert first_behind(db, source, 2, 5) == 3
            assert len(reader.page_after(0, 5, 0, (), look_for_gaps=True).events) == 5


@pytest.mark.parametrize("id_type", ["int", "text"])
def test_the_users_are_read_on_behind_the_last_one_after_a_cut(database_dsn: str, id_type: str) -> None:
    crm.make_audits(database_dsn)
    count = 12_000
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute(f"ALTER TABLE users ALTER id TYPE {id_type}")
        db.execute("INSERT INTO users SELECT i, i || '@x.example', 'n', NULL FROM generate_series(-5, %s) i", [count])
        with connect(database_dsn) as source:
            users = _user_records(source, mapping_with(), Codec(), _Texts(source))
            first = [next(users)[0] for _ in range(100)]
            db.execute("SELECT pg_terminate_backend(%s)", [source.info.backend_pid])
            rest = [key for key, _ in users]
    assert [*first, *rest] == [str(id_) for id_ in range(-5, count + 1)]


def test_a_time_limit_is_told_from_a_cancellation_in_any_language(database_dsn: str) -> None:
    """Both have the code 57014, and the server's words may be of any language: what counts is how long it took."""
    with connect(database_dsn, statement_timeout_s=0.3) as db, psycopg.connect(database_dsn, autocommit=True) as other:
        with pytest.raises(QueryTooSlowError), answering("sleeping"):
            db.execute("SELECT pg_sleep(60)")
        pid, stop = db.info.backend_pid, threading.Event()

        def cancel() -> None:
            busy = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%'"
            while not stop.is_set() and not other.execute(f"{busy} AND state = 'active'", [pid]).fetchall():
                time.sleep(0.005)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            assert db.execute("SELECT 1 FROM pg_sleep(0.15)").fetchall() == [(1,)]
        finally:
            stop.set()
            thread.join()


def test_a_server_that_stays_away_is_one_line_in_the_end(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.session.RECONNECT_FOR_S", 0.2)
    role = f"reader_{database_dsn.partition('test_')[2][:10]}"
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        try:
            with connect(make_conninfo(database_dsn, user=role)) as source:
                db.execute(f"ALTER ROLE {role} NOLOGIN")
                db.execute("SELECT pg_terminate_backend(%s)", [source.info.backend_pid])
                with pytest.raises(ReplayError, match=r"has been unavailable for a minute \([^\n]+\): start again"):
                    source.execute("SELECT 1")
        finally:
            db.execute(f"DROP ROLE {role}")


def test_the_final_count_waits_for_a_server_that_is_away_for_a_moment(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 6))
    role = f"reader_{database_dsn.partition('test_')[2][:10]}"
    source = source_of(database_dsn)
    dsn = make_conninfo(database_dsn, user=role)
    with ThreadPoolExecutor(2) as threads, psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} NOLOGIN")
        db.execute(f"GRANT SELECT ON audits TO {role}")
        try:
            found = [threads.submit(counted, dsn, source), threads.submit(read_page, dsn, source)]
            time.sleep(0.3)
            db.execute(f"ALTER ROLE {role} LOGIN")
            assert [each.result(60) for each in found] == [5, 5]
        finally:
            db.execute(f"DROP OWNED BY {role}")
            db.execute(f"DROP ROLE {role}")


# ---- a hot standby


@pytest.fixture
def on_standby(database_dsn: str, standby_dsn: str) -> str:
    """Return the DSN of the test's database, with slow audits, on the standby."""
    make_slow_audits(database_dsn)
    return dsn_on_standby(database_dsn, standby_dsn, SLOW)


@pytest.mark.parametrize("read", [read_page, counted, surveyed, fingerprint], ids=lambda read: read.__name__)
def test_a_query_that_recovery_cancels_is_asked_again(
    database_dsn: str, on_standby: str, read: Callable[[str, AuditSource], int]
) -> None:
    source = source_of(on_standby, table=SLOW)
    conflicts = "SELECT confl_snapshot + confl_lock FROM pg_stat_database_conflicts WHERE datname = current_database()"
    with (
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(database_dsn, autocommit=True) as primary,
        connect(on_standby) as standby,  # which recovery may interrupt, too
    ):
        before = standby.execute(conflicts).fetchall()[0][0]
        found = thread.submit(read, on_standby, source)
        cancelled = 0
        while not found.done() and not cancelled:
            primary.execute("UPDATE audits SET version = version + 1")
            primary.execute("VACUUM audits")
            cancelled = standby.execute(conflicts).fetchall()[0][0] - before
        assert found.result(60) == ROWS
        assert cancelled, "recovery met the query"


def test_how_far_a_real_standby_is_behind(on_standby: str) -> None:
    with closing(AuditReader(on_standby, source_of(on_standby), EARLY, Limits())) as reader:
        lag = reader.replica_lag()
    assert lag is not None
    assert 0 <= lag < 60


# ---- a server that refuses what others answer


@pytest.fixture
def like_aurora(database_dsn: str) -> str:
    """Return the DSN of a database whose functions for replicas are those of an Aurora reader."""
    crm.make_audits(database_dsn)
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute("CREATE SCHEMA aurora")
        db.execute("CREATE FUNCTION aurora.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
        db.execute(
            "CREATE FUNCTION aurora.pg_last_wal_receive_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN RAISE"
            " 'Function pg_last_wal_receive_lsn() is currently not supported for Aurora' USING ERRCODE = '0A000';"
            " END $$"
        )
    return make_conninfo(database_dsn, options="-c search_path=aurora,pg_catalog,public")


def test_a_lag_that_the_server_does_not_tell_is_unknown_and_said_once(
    like_aurora: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        closing(AuditReader(like_aurora, source_of(like_aurora), EARLY, Limits())) as reader,
    ):
        assert [reader.replica_lag() for _ in range(3)] == [None] * 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "the replica's lag is unknown (Function pg_last_wal_receive_lsn() is currently not supported for"
        " Aurora), reading without it"
    )


def test_preflight_says_that_the_lag_is_unknown_and_does_not_fail(like_aurora: str) -> None:
    found = check_replica(like_aurora)
    assert (found.verdict, "does not report its lag" in found.found) == ("ok", True)
