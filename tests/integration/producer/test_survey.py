"""What the runner learns of the source before there is a job."""

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from producer.survey import count_in_scope, survey
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.mapping import SourceMapping, load
from tests.integration.producer import crm

pytestmark = pytest.mark.services


def mapping_with(**source: Any) -> SourceMapping:
    mapping = load(None).model_dump(by_alias=True)
    mapping["source"] |= source
    mapping["referents"] = {}
    return SourceMapping.model_validate(mapping)


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
    from producer.audits import connect

    crm.make_audits(database_dsn)
    with connect(database_dsn) as db, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        db.execute("DELETE FROM audits")
    with connect(database_dsn, statement_timeout_s=0.05) as db, pytest.raises(psycopg.errors.QueryCanceled):
        db.execute("SELECT pg_sleep(5)")
