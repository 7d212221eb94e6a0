"""What the runner learns of the source before there is a job."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import psycopg
import pytest

from producer.audits import AuditReader, Limits, connect, resolve
from producer.cursor import EARLIEST
from producer.survey import OTHER_TYPES_MAX, UnreplayableIdsError, count_in_scope, survey
from producer.visibility import row_security_stated
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.source.mapping import SourceMapping, load
from tests.integration.producer import crm
from tests.integration.producer.crm import mapping_with

pytestmark = pytest.mark.services


def test_the_sample_is_counted_and_its_end_is_known(database_dsn: str) -> None:
    crm.load_sample(database_dsn)
    seen: list[tuple[int, int]] = []
    found = survey(database_dsn, load(None), "acme", progress=lambda done, top: seen.append((done, top)))
    rows = crm.sample_rows("audits_yaml")
    ids = [row["id"] for row in rows]
    assert (found.rows, found.min_id, found.max_id, found.top_audit_id) == (crm.YAML_ROWS, ids[0], ids[-1], ids[-1])
    assert found.cutoff == min(datetime.fromisoformat(row["created_at"]) for row in rows)
    assert not found.changes_are_json
    assert found.snapshot_xmax > 0
    assert seen[-1] == (ids[-1], ids[-1])
    jsonb = survey(database_dsn, mapping_with(schema="jsonb_variant"), "acme")
    assert (jsonb.rows, jsonb.changes_are_json) == (crm.JSONB_ROWS, True)


def test_a_date_range_and_missing_dates_are_counted_apart(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 5), created_at="2020-01-01 00:00:00")
    crm.add_audits(database_dsn, range(5, 8), created_at="2024-01-01 00:00:00")
    crm.add_audits(database_dsn, [8, 9], created_at=None)
    crm.add_audits(database_dsn, [10], created_at="-infinity")
    crm.add_audits(database_dsn, [11], auditable_type="Other")
    mapping = mapping_with()
    since = datetime(2024, 1, 1, tzinfo=UTC)
    found = survey(database_dsn, mapping, "acme", date_range_start=since)
    assert (found.rows, found.rows_without_created_at, found.cutoff, found.top_audit_id) == (3, 2, since, 11)
    assert survey(database_dsn, mapping, "acme").rows == 10
    assert survey(database_dsn, mapping, "acme").cutoff == datetime(2020, 1, 1, tzinfo=UTC)
    counted = count_in_scope(database_dsn, mapping, "acme", top_audit_id=6, cutoff=since)
    assert (counted.rows, counted.min_id, counted.max_id) == (2, 1, 6)


def test_an_empty_table_has_nothing_in_scope(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    found = survey(database_dsn, mapping_with(), "acme")
    assert (found.rows, found.min_id, found.top_audit_id) == (0, 0, 0)


@pytest.mark.parametrize("time_type", ["timestamp", "timestamptz"])
def test_a_cutoff_means_the_same_in_both_time_types(database_dsn: str, time_type: str) -> None:
    crm.make_audits(database_dsn, time_type=time_type)
    stored = "2024-01-01 07:00:00+07" if time_type == "timestamptz" else "2024-01-01 00:00:00"
    crm.add_audits(database_dsn, [1, 2], created_at=stored)
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    assert survey(database_dsn, mapping_with(), "acme").cutoff == moment
    assert survey(database_dsn, mapping_with(), "acme", date_range_start=moment).rows == 2
    later = datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    assert survey(database_dsn, mapping_with(), "acme", date_range_start=later).rows == 0


def test_the_account_is_found_by_the_mappings_query(database_dsn: str) -> None:
    crm.make_audits(database_dsn, extra=", account_id int")
    crm.add_audits(database_dsn, range(1, 8), account_id=1)
    crm.add_audits(database_dsn, range(8, 10), account_id=2)
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE TABLE accounts (id int, sso text)")
        db.execute("INSERT INTO accounts VALUES (1, 'acme'), (2, 'other'), (3, 'twin'), (4, 'twin')")
    account = {"column": "account_id", "query": "SELECT id FROM accounts WHERE sso = %(company_sso_id)s"}
    found = survey(database_dsn, mapping_with(account=account), "acme")
    assert (found.rows, found.account, found.top_audit_id) == (7, 1, 9)
    with pytest.raises(BadInputError, match="no account nobody"):
        survey(database_dsn, mapping_with(account=account), "nobody")
    with pytest.raises(BadInputError, match="several accounts twin"):
        survey(database_dsn, mapping_with(account=account), "twin")
    with pytest.raises(BadInputError, match="query for the account"):
        survey(database_dsn, mapping_with(account=account | {"query": "SELECT %(company_sso_id)s FROM nowhere"}), "x")
    with pytest.raises(BadInputError, match="has no column tenant"):
        survey(database_dsn, mapping_with(account=account | {"column": "tenant"}), "acme")


def test_what_is_not_as_the_mapping_says_is_one_line(database_dsn: str) -> None:
    with pytest.raises(BadInputError, match=r"no table public\.audits .*source mapping"):
        survey(database_dsn, mapping_with(), "acme")
    crm.make_audits(database_dsn)
    with pytest.raises(BadInputError, match=r"no table public\.crm_people"):
        survey(database_dsn, load(None), "acme")
    wrong = load(None).model_dump(by_alias=True)
    wrong["referents"] = {"Crm::User": {"table": "users", "name": "first_name || last_name"}}
    with pytest.raises(BadInputError, match=r"referents\.Crm::User .*first_name"):
        survey(database_dsn, SourceMapping.model_validate(wrong), "acme")
    with psycopg.connect(database_dsn) as db:
        db.execute("ALTER TABLE audits DROP COLUMN comment, DROP COLUMN version")
    with pytest.raises(BadInputError, match=r"public\.audits has no column version, comment"):
        survey(database_dsn, mapping_with(), "acme")
    with psycopg.connect(database_dsn) as db:
        db.execute("ALTER TABLE audits ADD comment text, ADD version int, ALTER auditable_id TYPE text")
    with pytest.raises(BadInputError, match="auditable_id is of type text"):
        survey(database_dsn, mapping_with(), "acme")


def test_a_role_that_may_not_read_is_told_what_to_do(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    role = f"role_{database_dsn.rsplit('test_', 1)[1][:10]}"
    with psycopg.connect(database_dsn, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        try:
            with pytest.raises(BadInputError, match=r"permission denied.*grant SELECT"):
                survey(psycopg.conninfo.make_conninfo(database_dsn, user=role), mapping_with(), "acme")
            db.execute(
                "CREATE SCHEMA hidden; CREATE TABLE hidden.audits (LIKE audits);"
                f" GRANT SELECT ON hidden.audits, users TO {role}"
            )
            hidden = mapping_with(schema="hidden")
            with pytest.raises(BadInputError, match=r"denied for schema hidden: grant USAGE on the schema"):
                survey(psycopg.conninfo.make_conninfo(database_dsn, user=role), hidden, "acme")
            db.execute("DROP SCHEMA hidden CASCADE; REVOKE ALL ON users FROM " + role)
        finally:
            db.execute(f"DROP ROLE {role}")


def test_a_server_that_does_not_answer_is_one_line_without_the_password() -> None:
    with pytest.raises(ServiceUnreachableError) as caught:
        survey("postgresql://reader:s3cret@127.0.0.1:1/crm", load(None), "acme")
    assert "database crm at 127.0.0.1:1" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="not a PostgreSQL address"):
        survey("postgres//nonsense", load(None), "acme")


def test_the_session_cannot_write(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    with connect(database_dsn) as db, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        db.execute("DELETE FROM audits")
    with connect(database_dsn, statement_timeout_s=0.05) as db, pytest.raises(psycopg.errors.QueryCanceled):
        db.execute("SELECT pg_sleep(5)")


ODD_TIMES = [None, "-infinity", "0044-03-15 12:00:00 BC", "infinity", "12026-01-01 00:00:00"]


@pytest.mark.parametrize("time_type", ["timestamp", "timestamptz"])
def test_without_a_date_range_every_row_is_counted_and_read_whatever_its_created_at(
    database_dsn: str, time_type: str
) -> None:
    crm.make_audits(database_dsn, time_type=time_type)
    crm.add_audits(database_dsn, [1, 2])
    for audit_id, created_at in enumerate(ODD_TIMES, 3):
        crm.add_audits(database_dsn, [audit_id], created_at=created_at)
    mapping, since = mapping_with(), datetime(2023, 1, 1, tzinfo=UTC)

    def read(job_cutoff: datetime) -> tuple[list[int], list[int], list[int]]:
        with connect(database_dsn) as db:
            source = resolve(db, mapping, "acme")
        with closing(AuditReader(database_dsn, source, job_cutoff, Limits(page_rows=3))) as reader:
            ids, defects, cursor = [], [], 0
            while cursor < 7:
                page = reader.page_after(cursor, 7, 0, (), look_for_gaps=True)
                ids += [event.audit_id for event in page.events]
                defects += [id_ for id_, defect in page.defects.items() if defect.cause == "undecodable_record"]
                cursor = page.end
            late = reader.late_page_after(0, [(1, 7)], 1).events
        return ids, defects, [event.audit_id for event in late]

    found = survey(database_dsn, mapping, "acme")
    assert (found.rows, found.rows_without_created_at, found.rows_outside_calendar) == (7, 1, 5)
    assert read(EARLIEST) == ([1, 2, 3, 4, 5, 6, 7], [3, 4, 5, 6, 7], [1, 2, 3])
    counted = count_in_scope(database_dsn, mapping, "acme", top_audit_id=7, cutoff=EARLIEST)
    assert (counted.rows, counted.min_id, counted.max_id) == (7, 1, 7)
    # A date range leaves out what lies before it, and what has no date.
    found = survey(database_dsn, mapping, "acme", date_range_start=since)
    assert (found.rows, found.rows_without_created_at, found.rows_outside_calendar) == (4, 1, 2)
    assert read(since) == ([1, 2, 6, 7], [6, 7], [1, 2, 6])
    assert count_in_scope(database_dsn, mapping, "acme", top_audit_id=7, cutoff=since).rows == 4


def test_ids_below_one_are_refused_with_their_number_and_the_first_of_them(database_dsn: str) -> None:
    crm.make_audits(database_dsn, extra=", account_id int")
    crm.add_audits(database_dsn, range(1, 4), account_id=1)
    crm.add_audits(database_dsn, range(-(2**31), -(2**31) + 9), account_id=1)
    crm.add_audits(database_dsn, [0], account_id=1, created_at="2020-01-01 00:00:00")
    crm.add_audits(database_dsn, [-1], account_id=1, auditable_type="Other")
    crm.add_audits(database_dsn, range(4, 6), account_id=2)
    crm.add_audits(database_dsn, range(-50, -40), account_id=3)
    account = {"column": "account_id", "query": "SELECT %(company_sso_id)s::int"}
    mapping = mapping_with(account=account)
    with pytest.raises(BadInputError) as caught:
        survey(database_dsn, mapping, "1")
    assert "10 audit rows in scope have ids below 1 (-2147483648, -2147483647, -2147483646, " in str(caught.value)
    assert "\n" not in str(caught.value)
    # Those that come during a run are counted at its end, which then does not add up.
    assert count_in_scope(database_dsn, mapping, "1", top_audit_id=5, cutoff=EARLIEST).rows == 13
    # A date range that begins behind the only such row has none.
    with psycopg.connect(database_dsn) as db:
        db.execute("DELETE FROM audits WHERE account_id = 1 AND id < -1")
    with pytest.raises(BadInputError, match=r"1 audit row in scope has an id below 1 \(0\)"):
        survey(database_dsn, mapping, "1")
    assert survey(database_dsn, mapping, "1", date_range_start=datetime(2021, 1, 1, tzinfo=UTC)).rows == 3
    # Those of another account or type are no obstacle, nor is a table without any other id.
    assert survey(database_dsn, mapping, "2").rows == 2
    with psycopg.connect(database_dsn) as db:
        db.execute("DELETE FROM audits WHERE id > 0")
    found = survey(database_dsn, mapping, "2")
    assert (found.rows, found.min_id, found.top_audit_id) == (0, 0, 0)


def test_types_out_of_scope_are_counted_by_type_beside_the_rows_in_scope(database_dsn: str) -> None:
    crm.make_audits(database_dsn, extra=", account_id int")
    crm.add_audits(database_dsn, range(1, 4), account_id=1)
    crm.add_audits(database_dsn, range(4, 6), account_id=1, auditable_type="Crm::Widget")
    crm.add_audits(database_dsn, [6], account_id=1, auditable_type="crm::person")
    crm.add_audits(database_dsn, [7], account_id=1, auditable_type=None)
    crm.add_audits(database_dsn, [8], account_id=1, auditable_type="Crm::Widget", created_at="2020-01-01 00:00:00")
    crm.add_audits(database_dsn, [9], account_id=1, auditable_type="$a.b", created_at=None)
    crm.add_audits(database_dsn, [2_000_000], account_id=1, auditable_type="Crm::Widget")
    crm.add_audits(database_dsn, [10], account_id=2, auditable_type="Crm::Widget")
    mapping = mapping_with(account={"column": "account_id", "query": "SELECT %(company_sso_id)s::int"})
    found = survey(database_dsn, mapping, "1")
    assert (found.rows, found.min_id, found.max_id) == (3, 1, 3)
    assert found.out_of_scope_by_type == {"Crm::Widget": 4, "crm::person": 1, "": 1, "$a.b": 1}
    since = datetime(2021, 1, 1, tzinfo=UTC)
    found = survey(database_dsn, mapping, "1", date_range_start=since)
    assert found.out_of_scope_by_type == {"Crm::Widget": 3, "crm::person": 1, "": 1}
    counted = count_in_scope(database_dsn, mapping, "1", top_audit_id=100, cutoff=EARLIEST)
    assert (counted.rows, counted.out_of_scope_by_type["Crm::Widget"]) == (3, 3)


def test_a_type_out_of_scope_is_counted_under_its_name_now_which_a_scope_takes(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 4), auditable_type="Widget")
    crm.add_audits(database_dsn, range(4, 6), auditable_type="Crm::Widget")
    mapping = mapping_with().model_copy(update={"aliases": {"Widget": "Crm::Widget"}})
    assert survey(database_dsn, mapping, "acme").out_of_scope_by_type == {"Crm::Widget": 5}


@pytest.mark.parametrize(
    ("options", "stated"),
    [
        ("-c row_security=on", True),
        ("-crow_security=on", True),
        ("--row-security=on", True),
        ("-c work_mem=4MB -c row_security=on", True),
        ("-c row_security=off", False),
        ("-c other.row_security=on", False),
        ("", False),
    ],
)
def test_what_the_dsn_states_is_read_as_the_session_reads_it(options: str, stated: bool) -> None:
    assert row_security_stated(psycopg.conninfo.make_conninfo("host=h", options=options)) is stated


def test_of_very_many_types_out_of_scope_the_most_frequent_are_named(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    with psycopg.connect(database_dsn) as db:
        db.execute(
            "INSERT INTO audits (auditable_type, action, created_at) SELECT 'T' || (i / 2), 'update', now()"
            " FROM generate_series(1, 3001) AS i"
        )
    found = survey(database_dsn, mapping_with(), "acme")
    assert len(found.out_of_scope_by_type) == OTHER_TYPES_MAX + 1
    assert sum(found.out_of_scope_by_type.values()) == 3001


# ---- a source that shows a role less than there is -------------------------------------------------------------------


@contextmanager
def reader_role(dsn: str, *statements: str) -> Iterator[str]:
    """Give the DSN of a new role that may read everything; in the statements, {} stands for its name."""
    name = f"role_{uuid.uuid4().hex[:10]}"
    with psycopg.connect(dsn, autocommit=True) as db:
        for statement in ("CREATE ROLE {} LOGIN", *statements):
            db.execute(statement.replace("{}", name))
        try:
            yield psycopg.conninfo.make_conninfo(dsn, user=name)
        finally:
            db.execute(f"DROP OWNED BY {name}")
            db.execute(f"DROP ROLE {name}")


POLICY = (
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}",
    "ALTER TABLE audits ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY two_of_five ON audits USING (id % 5 < 2)",
)


def test_active_row_security_is_refused_unless_the_dsn_says_that_the_policies_show_every_row(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 51))
    with reader_role(database_dsn, *POLICY) as dsn:
        with pytest.raises(BadInputError, match=r"row-level security .*public\.audits.*BYPASSRLS.*row_security=on"):
            survey(dsn, mapping_with(), "acme")
        stated = psycopg.conninfo.make_conninfo(dsn, options="-c row_security=on")
        found = survey(stated, mapping_with(), "acme")
        assert (found.rows, "row-level security is in force on public.audits" in found.notes[0]) == (20, True)
    with reader_role(database_dsn, POLICY[0], "ALTER ROLE {} BYPASSRLS") as dsn:
        found = survey(dsn, mapping_with(), "acme")
        assert (found.rows, found.notes) == (50, ())
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE VIEW shown AS SELECT * FROM audits WHERE id % 5 < 2")
    found = survey(database_dsn, mapping_with(table="shown"), "acme")
    assert (found.rows, found.notes) == (20, ("public.shown is a view: what it leaves out ends in no bin",))


def test_a_policy_that_comes_after_the_survey_ends_the_reading_instead_of_hiding_rows(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 51))
    with reader_role(database_dsn, POLICY[0]) as dsn:
        with connect(dsn) as db:
            source = resolve(db, mapping_with(), "acme")
        with closing(AuditReader(dsn, source, EARLIEST, Limits(page_rows=10))) as reader:
            assert len(reader.page_after(0, 50, 0, (), look_for_gaps=False).events) == 10
            with psycopg.connect(database_dsn, autocommit=True) as db:
                for statement in POLICY[1:]:
                    db.execute(statement)
            with pytest.raises(BadInputError, match=r"row-level security policy .*BYPASSRLS"):
                reader.page_after(10, 50, 0, (), look_for_gaps=False)


def test_the_account_column_of_a_table_of_names_has_to_be_readable(database_dsn: str) -> None:
    crm.make_audits(database_dsn, extra=", account_id int")
    crm.add_audits(database_dsn, [1], account_id=1)
    data = mapping_with(account={"column": "account_id", "query": "SELECT %(company_sso_id)s::int"}).model_dump(
        by_alias=True
    )
    data["referents"] = {"Crm::Person": {"table": "people", "name": "first_name"}}
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE TABLE people (id int, first_name text, account_id int)")
    rights = ("GRANT SELECT ON audits, users TO {}", "GRANT SELECT (id, first_name) ON people TO {}")
    with (
        reader_role(database_dsn, *rights) as dsn,
        pytest.raises(BadInputError, match=r"may not read account_id of public\.people"),
    ):
        survey(dsn, SourceMapping.model_validate(data), "1")


@pytest.mark.parametrize("table", ["users", "people"])
def test_the_tables_of_names_are_asked_about_too(database_dsn: str, table: str) -> None:
    crm.make_audits(database_dsn)
    data = mapping_with().model_dump(by_alias=True)
    data["referents"] = {"Crm::Person": {"table": "people", "name": "first_name"}}
    mapping = SourceMapping.model_validate(data)
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE TABLE people (id int, first_name text)")
    hidden = (f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",)
    with (
        reader_role(database_dsn, POLICY[0], *hidden) as dsn,
        pytest.raises(BadInputError, match=rf"row-level security .*public\.{table}"),
    ):
        survey(dsn, mapping, "acme")


def test_a_view_over_a_table_with_policies_is_refused_by_the_server(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 51))
    view = "CREATE VIEW shown WITH (security_invoker) AS SELECT * FROM audits"
    with (
        reader_role(database_dsn, *POLICY, view, "GRANT SELECT ON shown TO {}") as dsn,
        pytest.raises(BadInputError, match=r"row-level security policy .*BYPASSRLS"),
    ):
        survey(dsn, mapping_with(table="shown"), "acme")


COLUMNS = (
    "id, auditable_id, auditable_type, associated_id, associated_type, user_id, user_type, username, action,"
    " audited_changes, version, comment, request_uuid, created_at"
)


def test_a_role_that_may_read_only_what_is_read_is_enough_and_a_column_less_is_named(database_dsn: str) -> None:
    crm.make_audits(database_dsn, extra=", account_id int, secret text")
    crm.add_audits(database_dsn, range(1, 6), account_id=1)
    mapping = mapping_with(account={"column": "account_id", "query": "SELECT %(company_sso_id)s::int"})
    users = "GRANT SELECT (id, email, full_name, deleted_at) ON users TO {}"
    with reader_role(database_dsn, f"GRANT SELECT ({COLUMNS}, account_id) ON audits TO {{}}", users) as dsn:
        assert survey(dsn, mapping, "1").rows == 5
        with connect(dsn) as db:
            source = resolve(db, mapping, "1")
        with closing(AuditReader(dsn, source, EARLIEST, Limits())) as reader:
            assert len(reader.page_after(0, 5, 0, (), look_for_gaps=True).events) == 5
            assert len(reader.late_page_after(0, [(1, 5)], 1).events) == 5
    fewer = COLUMNS.replace(" comment,", "").replace(" version,", "")
    with (
        reader_role(database_dsn, f"GRANT SELECT ({fewer}, account_id) ON audits TO {{}}", users) as dsn,
        pytest.raises(BadInputError, match=r"may not read version, comment of public\.audits: grant SELECT"),
    ):
        survey(dsn, mapping, "1")
    with (
        reader_role(database_dsn, "GRANT SELECT ON audits TO {}", "GRANT SELECT (id, email) ON users TO {}") as dsn,
        pytest.raises(BadInputError, match=r"may not read full_name, deleted_at of public\.users"),
    ):
        survey(dsn, mapping, "1")


TWICE = {
    "view": "CREATE TABLE old (LIKE audits INCLUDING ALL);"
    " INSERT INTO old SELECT * FROM audits WHERE id IN (3, 5) OR id > 6;"
    " CREATE VIEW shown AS SELECT * FROM audits UNION ALL SELECT * FROM old",
    "heirs": "CREATE TABLE shown (LIKE audits INCLUDING ALL); ALTER TABLE audits INHERIT shown;"
    " CREATE TABLE old () INHERITS (shown); INSERT INTO old SELECT * FROM ONLY audits WHERE id IN (3, 5) OR id > 6",
    "partitions": "CREATE TABLE shown (LIKE audits) PARTITION BY RANGE (created_at);"
    " CREATE TABLE old PARTITION OF shown DEFAULT; CREATE TABLE new PARTITION OF shown FOR VALUES FROM ('2024-01-01')"
    " TO ('2030-01-01'); INSERT INTO shown SELECT * FROM audits; UPDATE audits SET created_at = '2031-01-01';"
    " INSERT INTO shown SELECT * FROM audits WHERE id IN (3, 5) OR id > 6",
}


@pytest.mark.parametrize("kind", TWICE)
def test_an_id_that_several_rows_have_is_refused(database_dsn: str, kind: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, [*range(1, 11), 2_000_000], created_at="2024-01-01 00:00:00")
    with psycopg.connect(database_dsn) as db:
        db.execute(TWICE[kind])
    mapping = mapping_with(table="shown")
    with pytest.raises(UnreplayableIdsError) as caught:
        survey(database_dsn, mapping, "acme")
    said = "in public.shown 7 ids belong to more than one audit row in scope (3, 5, 7, 8, 9, and more), so"
    assert said in str(caught.value)
    # What a date range leaves out, what is not in scope, and a table whose index forbids it, are no obstacle.
    with psycopg.connect(database_dsn) as db:
        db.execute("UPDATE old SET auditable_type = 'Other'")
    assert survey(database_dsn, mapping, "acme").rows == 11
    assert survey(database_dsn, mapping_with(), "acme").rows == 11
