"""A pooler between the reader and PostgreSQL: what a session sets may be another client's, or nobody's."""

import re
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import psycopg
import pytest

from producer.audits import AuditReader, AuditSource, Limits, QueryTooSlowError, answering, connect
from schemas.errors import BadInputError
from tests.fixtures.postgres import MakePooler
from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob

pytestmark = pytest.mark.services

ACCOUNT = {"column": "account_id", "query": "SELECT id FROM accounts WHERE sso = %(company_sso_id)s"}


def source_of(dsn: str, company_sso_id: str, **mapped: Any) -> AuditSource:
    return crm.source_of(dsn, company_sso_id, **{"account": ACCOUNT, **mapped})


def make_accounts(dsn: str, rows: int = 200) -> None:
    """Two accounts, whose rows take turns."""
    crm.make_audits(dsn, extra=", account_id bigint")
    crm.add_audits(dsn, range(1, rows, 2), account_id=1)
    crm.add_audits(dsn, range(2, rows, 2), account_id=2)
    with psycopg.connect(dsn) as db:
        db.execute("CREATE TABLE accounts (id int, sso text)")
        db.execute("INSERT INTO accounts VALUES (1, 'a'), (2, 'b')")


def test_a_transaction_whose_settings_fail_leaves_a_session_that_can_be_used(database_dsn: str) -> None:
    with connect(database_dsn) as db:
        db.pooled, begin = True, db._begin
        db._begin = begin + b"; SELECT 1 / 0"
        with pytest.raises(psycopg.errors.DivisionByZero):
            db.execute("SELECT 1")
        db._begin = begin
        assert db.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.parametrize("refusing", [False, True], ids=["ignores-options", "refuses-options"])
@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_behind_a_pooler_every_statement_is_read_only_and_limited(
    database_dsn: str, make_pooler: MakePooler, pool_mode: str, refusing: bool
) -> None:
    crm.make_audits(database_dsn)
    # Five connections, so that a session is not in another's way.
    settings = {"ignore_startup_parameters": ""} if refusing else {}
    pooled = make_pooler(pool_mode, default_pool_size="5", **settings)
    with connect(pooled, statement_timeout_s=0.3) as db:
        assert db.pooled
        for _ in range(8):  # whichever server connection it gets
            found = db.execute("SELECT name, setting FROM pg_settings WHERE name ~* '^(statement_timeout|timezone)$'")
            assert dict(found.fetchall()) == {"statement_timeout": "300", "TimeZone": "UTC"}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            db.execute("INSERT INTO users (id) VALUES (1)")
        with pytest.raises(QueryTooSlowError), answering("sleeping"):
            db.execute("SELECT pg_sleep(30)")
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other:
        said = other.execute(
            "SELECT current_setting('default_transaction_read_only'), current_setting('statement_timeout')"
        )
        assert said.fetchall() == [("off", "0")], "what the reader set is no other client's"


def test_a_session_of_its_own_is_asked_without_transactions(database_dsn: str) -> None:
    with connect(database_dsn, statement_timeout_s=0.3) as db:
        assert not db.pooled
        found = db.execute("SELECT current_setting('transaction_isolation'), current_setting('statement_timeout')")
        assert found.fetchall() == [("read committed", "300ms")]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            db.execute("CREATE TABLE t ()")


def test_settings_in_the_address_hold_behind_a_pooler_too(database_dsn: str, make_pooler: MakePooler) -> None:
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE SCHEMA crm")
        db.execute("CREATE TABLE crm.accounts AS SELECT 'a' AS sso")
    pooled = make_pooler("transaction") + r" options='-c search_path=crm,public --work-mem=5MB'"
    for dsn in (pooled, database_dsn + r" options='-c search_path=crm,public --work-mem=5MB'"):
        with connect(dsn) as db:
            assert db.execute("SELECT sso, current_setting('work_mem') FROM accounts").fetchall() == [("a", "5MB")]


def test_a_pooler_without_transactions_is_refused_in_one_line(database_dsn: str, make_pooler: MakePooler) -> None:
    with pytest.raises(BadInputError) as refused:
        connect(make_pooler("statement"))
    assert re.fullmatch(
        r"PostgreSQL database \w+ at 127\.0\.0\.1:\d+ is reached through a connection pooler that does not support"
        r" transactions \([^\n]+\): set its pool_mode to transaction or session, or connect to PostgreSQL itself",
        str(refused.value),
    )


def test_two_readers_of_one_pooler_each_get_their_own_rows(database_dsn: str, make_pooler: MakePooler) -> None:
    make_accounts(database_dsn)
    pooled = make_pooler("transaction")
    with ExitStack() as stack:
        readers = {
            account: stack.enter_context(
                closing(AuditReader(pooled, source_of(pooled, account), crm.CUTOFF, Limits(page_rows=3)))
            )
            for account in ("a", "b")
        }
        cursors = dict.fromkeys(readers, 0)
        seen: dict[str, list[int]] = {account: [] for account in readers}
        # Out of step: where statements are named by their number, the same number is another statement for each.
        for turn in range(400):
            account = "a" if turn % 3 else "b"
            if cursors[account] >= 199:
                continue
            look = account == "b" and turn % 2 == 0
            page = readers[account].page_after(cursors[account], 199, 0, (), look_for_gaps=look)
            cursors[account] = page.end
            seen[account] += [event.audit_id for event in page.events]
    assert seen == {"a": list(range(1, 200, 2)), "b": list(range(2, 200, 2))}
    with psycopg.connect(pooled, prepare_threshold=None) as db:
        assert db.execute("SELECT name FROM pg_prepared_statements").fetchall() == []


def test_a_replay_through_a_pooler_has_every_row_once(
    make_job: MakeJob, make_pooler: MakePooler, database_dsn: str
) -> None:
    here = make_job(top_audit_id=3_000)
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 3_001))
    pooled = crm.Surroundings(make_pooler("transaction"), here.kafka, here.mongodb_url, here.mongodb_database, here.job)
    code, said = pooled.run(CRM_REPLAY_PAGE_ROWS="100", CRM_REPLAY_ID_RANGES="2")
    assert code == 0, said
    assert sorted(event.audit_id for event in here.events()) == list(range(1, 3_001))


@pytest.mark.parametrize("late", [False, True], ids=["page", "gap-page"])
def test_a_row_of_another_account_stops_the_reading(database_dsn: str, late: bool) -> None:
    make_accounts(database_dsn, 20)
    with closing(AuditReader(database_dsn, source_of(database_dsn, "a"), crm.CUTOFF, Limits())) as reader:
        for query in (reader._page, reader._gap_page):
            without = query.texts.replace(b"AND account_id = %(account)s", b"").replace(
                b'AND "account_id" = %(account)s', b""
            )
            assert without != query.texts
            query.texts = without  # as if the server had run something else
        read = partial(reader.late_page_after, 0, [(1, 20)], 0) if late else partial(reader.page_after, 0, 20, 0, ())
        named = {} if late else {"look_for_gaps": False}
        with pytest.raises(BadInputError, match="answered a query for account a with row 2, which is not that account"):
            read(**named)


def test_another_sources_statement_is_noticed_by_what_it_says_of_itself(database_dsn: str) -> None:
    """A whole table is one account's here, so no column tells whose a row is; the statement does."""
    make_accounts(database_dsn, 20)
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE SCHEMA other")
        db.execute("CREATE TABLE other.audits (LIKE audits INCLUDING ALL)")
        db.execute("INSERT INTO other.audits SELECT * FROM audits WHERE id < 5")
    mine = source_of(database_dsn, "a", account=None)
    other = source_of(database_dsn, "b", account=None, schema="other")
    with (
        closing(AuditReader(database_dsn, mine, crm.CUTOFF, Limits())) as reader,
        closing(AuditReader(database_dsn, other, crm.CUTOFF, Limits())) as foreign,
    ):
        assert len(foreign.page_after(0, 20, 0, (), look_for_gaps=False).events) == 4
        reader._page = foreign._page
        with pytest.raises(BadInputError, match="mixed up two clients"):
            reader.page_after(0, 20, 0, (), look_for_gaps=False)
