"""The generated CRM in a real PostgreSQL, and its contacts in a real MongoDB."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer import Typer
from typer.testing import CliRunner

from ops.cli.generate import generate
from ops.local.generator import Plan, accounts, generate_crm
from ops.local.generator.tables import mapping_path, mapping_text
from ops.local.sample.contacts import seed_contacts
from ops.local.sample_crm import load_sample
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.source.mapping import load, parse

pytestmark = pytest.mark.services
PLAN = Plan(3_000)
TABLES = ("audits", "accounts", "users", "crm_people", "crm_companies", "crm_deals", "crm_tasks", "crm_tickets")


def fingerprints(dsn: str, schema: str = "crm") -> dict[str, Any]:
    """Return a digest of every table's rows in id order."""
    with psycopg.connect(dsn) as db:
        return {
            table: db.execute(
                f"SELECT count(*), md5(string_agg(row_to_json(t)::text, '|' ORDER BY id)) FROM {schema}.{table} t"
            ).fetchone()
            for table in (*TABLES, "crm_deleted_people")
        }


def test_the_same_plan_makes_the_same_rows_in_any_schema(database_dsn: str) -> None:
    first = generate_crm(database_dsn, PLAN)
    second = generate_crm(database_dsn, PLAN, schema="Other CRM")
    assert first.made
    assert second.made
    assert fingerprints(database_dsn) == fingerprints(database_dsn, '"Other CRM"')
    assert fingerprints(database_dsn)["audits"][0] == PLAN.audits


def test_what_is_there_already_is_left_alone(database_dsn: str) -> None:
    made = generate_crm(database_dsn, PLAN)
    with psycopg.connect(database_dsn) as db:
        before = db.execute("SELECT 'crm.audits'::regclass::oid").fetchone()
    again = generate_crm(database_dsn, PLAN)
    with psycopg.connect(database_dsn) as db:
        assert db.execute("SELECT 'crm.audits'::regclass::oid").fetchone() == before
    assert not again.made
    assert again.accounts == made.accounts


def test_another_plan_or_recreate_replaces_it(database_dsn: str) -> None:
    generate_crm(database_dsn, PLAN)
    before = fingerprints(database_dsn)
    assert generate_crm(database_dsn, PLAN, recreate=True).made
    assert fingerprints(database_dsn) == before
    assert generate_crm(database_dsn, Plan(500)).audits == 500
    assert fingerprints(database_dsn)["audits"][0] == 500


def test_a_failure_half_way_leaves_what_was_there(database_dsn: str) -> None:
    generate_crm(database_dsn, PLAN)
    before = fingerprints(database_dsn)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_crm(database_dsn, Plan(5_000), progress=stop)
    assert fingerprints(database_dsn) == before
    assert not generate_crm(database_dsn, PLAN).made


@pytest.mark.parametrize("table", ["audits", "users", "crm_people", "accounts"])
def test_a_foreign_table_is_refused_and_left_alone(database_dsn: str, table: str) -> None:
    with psycopg.connect(database_dsn) as db:
        db.execute(f"CREATE SCHEMA crm; CREATE TABLE crm.{table} (id bigint); INSERT INTO crm.{table} VALUES (7)")
    for recreate in (False, True):
        with pytest.raises(BadInputError, match=rf"crm\.{table} was not generated"):
            generate_crm(database_dsn, PLAN, recreate=recreate)
    with psycopg.connect(database_dsn) as db:
        assert db.execute(f"SELECT id FROM crm.{table}").fetchall() == [(7,)]


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (Plan(0), "0 audits"),
        (Plan(3, accounts=5), "3 audits"),
        (Plan(10, accounts=0), "0 accounts"),
        (Plan(100_000, accounts=1_001), "1001 accounts"),
        (Plan(10, shape="round"), "round is no shape"),
    ],
)
def test_a_plan_without_sense_is_refused(database_dsn: str, plan: Plan, what: str) -> None:
    with pytest.raises(BadInputError, match=what):
        generate_crm(database_dsn, plan)


def test_a_server_that_does_not_answer_is_one_clear_line() -> None:
    with pytest.raises(ServiceUnreachableError, match="PostgreSQL does not answer") as raised:
        generate_crm("postgresql://nobody@127.0.0.1:1/none", PLAN)
    assert "\n" not in str(raised.value)


def test_accounts_are_listed_with_their_rows(database_dsn: str) -> None:
    with pytest.raises(BadInputError, match="no generated CRM in the schema crm"):
        accounts(database_dsn)
    generate_crm(database_dsn, PLAN)
    listed = accounts(database_dsn)
    with psycopg.connect(database_dsn) as db:
        counted = db.execute(
            "SELECT company_sso_id, count(*) FROM crm.audits a JOIN crm.accounts c ON c.id = a.account_id"
            " GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
    assert listed == counted
    assert [name for name, _ in listed] == ["crm-1", "crm-2", "crm-3", "crm-4", "crm-5"]


def test_the_account_page_is_read_from_the_index(database_dsn: str) -> None:
    generate_crm(database_dsn, Plan(20_000, accounts=40))
    with psycopg.connect(database_dsn) as db:
        plan = db.execute(
            "EXPLAIN SELECT * FROM crm.audits WHERE account_id = 39 AND id > 100 AND id <= 9000 ORDER BY id LIMIT 50"
        ).fetchall()
    assert any("index_audits_on_account_id_and_id" in line for (line,) in plan)


def test_it_lives_beside_the_sample_crm(database_dsn: str) -> None:
    sample = load_sample(database_dsn)
    generate_crm(database_dsn, PLAN)
    again = load_sample(database_dsn)
    assert again.rows == sample.rows
    assert not again.loaded
    assert not generate_crm(database_dsn, PLAN).made


def test_the_flat_shape_can_take_its_place(database_dsn: str) -> None:
    generate_crm(database_dsn, PLAN)
    assert generate_crm(database_dsn, Plan(3_000, shape="peer")).made
    with psycopg.connect(database_dsn) as db:
        actions = {row[0] for row in db.execute("SELECT DISTINCT action FROM crm.audits").fetchall()}
    assert actions == {"create", "update"}


def test_every_living_record_of_the_last_rows_has_a_name(database_dsn: str) -> None:
    generate_crm(database_dsn, PLAN)
    mapping = load(str(mapping_path()))
    with psycopg.connect(database_dsn) as db:
        for type_name, referent in mapping.referents.items():
            table = f"{referent.schema_name}.{referent.table}"
            (missing,) = db.execute(
                f"SELECT count(*) FROM crm.audits a WHERE auditable_type = %s AND action <> 'destroy'"
                f" AND NOT EXISTS (SELECT FROM crm.audits d WHERE (d.auditable_type, d.auditable_id, d.action)"
                f" = (a.auditable_type, a.auditable_id, 'destroy'))"
                f" AND NOT EXISTS (SELECT FROM {table} r WHERE r.{referent.id} = a.auditable_id"
                f" AND {referent.name} <> '' AND r.account_id = a.account_id)",
                (type_name,),
            ).fetchone() or (None,)
            assert missing == 0, type_name
            (revived,) = db.execute(
                f"SELECT count(*) FROM crm.audits a JOIN {table} r ON r.{referent.id} = a.auditable_id"
                " WHERE a.auditable_type = %s AND a.action = 'destroy'",
                (type_name,),
            ).fetchone() or (None,)
            assert revived == 0, type_name


def test_the_mapping_finds_the_account_in_any_schema(database_dsn: str) -> None:
    generate_crm(database_dsn, PLAN, schema="crm_two")
    mapping = parse(mapping_text("crm_two"), "made")
    assert mapping.source.account is not None
    assert mapping.source.schema_name == mapping.users.schema_name == "crm_two"
    assert {referent.schema_name for referent in mapping.referents.values()} == {"crm_two"}
    with psycopg.connect(database_dsn) as db:
        found = db.execute(mapping.source.account.query.encode(), {"company_sso_id": "crm-2"}).fetchall()
    assert found == [(2,)]
    assert parse(mapping_text("crm"), "made") == load(str(mapping_path()))


def test_the_command_makes_it_and_says_what_it_made(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Typer()
    app.command()(generate)
    monkeypatch.setenv("CRM_AUDIT_DATABASE_URL", database_dsn)
    done = CliRunner().invoke(app, ["--audits", "600", "--accounts", "2", "--seed", "5"], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"600 audits in crm\.audits: made in \d+\.\d s\n  crm-1  \d+\n  crm-2  \d+\n", done.stdout)
    again = CliRunner().invoke(app, ["--audits", "600", "--accounts", "2", "--seed", "5"], catch_exceptions=False)
    assert "exists already, nothing to do" in again.stdout


def test_the_command_makes_the_contacts_as_well(
    database_dsn: str, mongo_database: Any, mongodb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Typer()
    app.command()(generate)
    monkeypatch.setenv("MONGODB_URL", mongodb_url)
    monkeypatch.setenv("MONGODB_DATABASE", mongo_database.name)
    call = ["--audits", "600", "--accounts", "1", "--dsn", database_dsn, "--contacts"]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    there = mongo_database["contacts"].count_documents({"company_sso_id": "crm-1"})
    assert there > 0
    assert done.stdout.endswith(f"  crm-1  600, {there} contacts\n")


def test_the_command_without_a_database_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CRM_AUDIT_DATABASE_URL", raising=False)
    monkeypatch.setenv("CRM_REPLAY_HOME", str(tmp_path))  # where no embedded server runs
    with pytest.raises(BadInputError, match="CRM_AUDIT_DATABASE_URL is not set"):
        generate(audits=10)


def test_contacts_cover_an_account_but_for_less_than_a_hundredth(database_dsn: str, mongo_database: Any) -> None:
    generate_crm(database_dsn, Plan(20_000))
    counts = {c.company_sso_id: c for c in seed_contacts(mongo_database, database_dsn)}
    assert counts.keys() == {"sample-yaml", "sample-jsonb", "crm-1", "crm-2", "crm-3", "crm-4", "crm-5"}
    with psycopg.connect(database_dsn) as db:
        people = db.execute("SELECT account_id, array_agg(id) FROM crm.crm_people GROUP BY 1").fetchall()
        gone = "SELECT id, merged_into_id FROM crm.crm_deleted_people"
        destroyed: dict[int, int | None] = dict(db.execute(gone).fetchall())
    for account, ids in people:
        name = f"crm-{account}"
        contacts = list(mongo_database["contacts"].find({"company_sso_id": name}))
        mapped = list(mongo_database["crm_contact_id_map"].find({"company_sso_id": name}))
        direct = {c["crm_data"]["id"] for c in contacts if "crm_data" in c}
        by_map = {entry["crm_person_id"] for entry in mapped}
        assert len(contacts) == counts[name].contacts
        assert len(mapped) == counts[name].mapped_ids
        assert not direct & by_map
        assert 0.99 < len(set(ids) & (direct | by_map)) / len(ids) <= 1
        assert by_map - set(ids) <= destroyed.keys()
        customers = {c["customer_id"] for c in contacts}
        assert len(customers) == len(contacts)
        assert sum(entry["customer_id"] in customers for entry in mapped) >= 0.9 * len(mapped)
    shared = mongo_database["contacts"].count_documents({"crm_data.id": 50001})
    assert shared == 3  # both sample accounts and crm-1: one id, three customers


def test_watermarks_lie_behind_most_of_the_history(database_dsn: str, mongo_database: Any) -> None:
    generate_crm(database_dsn, Plan(20_000))
    seed_contacts(mongo_database, database_dsn, accounts=["crm-1"])
    with psycopg.connect(database_dsn) as db:
        last = db.execute("SELECT last_audit_at AT TIME ZONE 'UTC' FROM crm.accounts WHERE id = 1").fetchone()
    early = Counter(c["created_at"] < last[0] for c in mongo_database["contacts"].find({"company_sso_id": "crm-1"}))
    assert 0.02 < early[True] / early.total() < 0.06
    assert mongo_database["contacts"].distinct("company_sso_id") == ["crm-1"]


def test_contacts_follow_when_the_crm_is_made_anew(database_dsn: str, mongo_database: Any) -> None:
    generate_crm(database_dsn, PLAN)
    first = seed_contacts(mongo_database, database_dsn, accounts=["crm-1"])
    assert [c.seeded for c in seed_contacts(mongo_database, database_dsn, accounts=["crm-1"])] == [False]
    generate_crm(database_dsn, Plan(9_000))
    second = seed_contacts(mongo_database, database_dsn, accounts=["crm-1"])
    assert second[0].contacts > first[0].contacts
    assert mongo_database["contacts"].count_documents({}) == second[0].contacts


def test_seeding_without_a_generated_crm_is_refused(database_dsn: str, mongo_database: Any) -> None:
    with pytest.raises(BadInputError, match="no generated CRM in the schema crm"):
        seed_contacts(mongo_database, database_dsn, accounts=["crm-1"])
