"""The sample CRM in a real PostgreSQL and its contacts in a real MongoDB."""

import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import psycopg
import pytest

from ops.local.sample.contacts import seed_contacts
from ops.local.sample.rows import json_lines
from ops.local.sample_crm import SAMPLE_JSONB, SAMPLE_YAML, load_sample, mapping_path
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.source.mapping import load

pytestmark = pytest.mark.services


def columns_as_loaded(dsn: str, table: str) -> dict[int, dict[str, Any]]:
    with psycopg.connect(dsn) as db:
        return {row[0]: row[1] for row in db.execute(f"SELECT id, row_to_json(t) FROM {table} t").fetchall()}


def test_every_sample_row_is_loaded_byte_for_byte(database_dsn: str) -> None:
    counts = load_sample(database_dsn)
    assert (counts.audits_yaml, counts.audits_jsonb, counts.loaded) == (326, 202, True)
    for name, table in (("audits_yaml", "public.audits"), ("audits_jsonb", "jsonb_variant.audits")):
        there = columns_as_loaded(database_dsn, table)
        given = {row["id"]: row for row in json_lines(name)}
        assert there.keys() == given.keys()
        for audit_id, row in given.items():
            want = dict(row, created_at=row["created_at"].removesuffix("Z"))
            have = dict(there[audit_id])
            if table.startswith("jsonb"):
                changes = want["audited_changes"]
                want["audited_changes"] = json.loads(changes) if changes is not None else None
            # row_to_json leaves trailing zeros of the fraction out; the instant is what counts.
            want["created_at"], have["created_at"] = (t["created_at"].rstrip("0").rstrip(".") for t in (want, have))
            assert have == want


def test_the_jsonb_rows_print_as_they_were_given(database_dsn: str) -> None:
    load_sample(database_dsn)
    with psycopg.connect(database_dsn) as db:
        query = "SELECT id, audited_changes::text FROM jsonb_variant.audits"
        there: dict[int, str] = dict(db.execute(query).fetchall())
    assert there == {row["id"]: row["audited_changes"] for row in json_lines("audits_jsonb")}


def test_loading_again_changes_nothing(database_dsn: str) -> None:
    first = load_sample(database_dsn)
    with psycopg.connect(database_dsn) as db:
        before = db.execute("SELECT xmin::text, ctid::text, id FROM public.audits ORDER BY id").fetchall()
    again = load_sample(database_dsn)
    assert again.rows == first.rows
    assert not again.loaded
    with psycopg.connect(database_dsn) as db:
        assert db.execute("SELECT xmin::text, ctid::text, id FROM public.audits ORDER BY id").fetchall() == before


def test_all_the_samples_files_are_loaded(database_dsn: str) -> None:
    counts = load_sample(database_dsn)
    for name in ("users", "api_clients"):
        assert counts.rows[f"public.{name}"] == len(list(json_lines(name)))
    for name in ("people", "companies", "deals", "tasks", "tickets", "notes"):
        assert counts.rows[f"public.crm_{name}"] == len(list(json_lines(name)))
    links = sum(n for table, n in counts.rows.items() if table.count("_") == 2)  # public.crm_deal_people, ...
    assert links == len(list(json_lines("links")))


def test_sequences_stand_behind_the_loaded_rows(database_dsn: str) -> None:
    load_sample(database_dsn)
    with psycopg.connect(database_dsn) as db:
        added = db.execute("INSERT INTO public.audits (action) VALUES ('create') RETURNING id").fetchone()
    assert added == (max(row["id"] for row in json_lines("audits_yaml")) + 1,)


def test_two_loads_at_once_load_it_once(database_dsn: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load_sample, [database_dsn, database_dsn])
    assert sorted([first.loaded, second.loaded]) == [False, True]
    assert first.rows == second.rows


def test_a_foreign_audits_table_is_refused_and_left_alone(database_dsn: str) -> None:
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE TABLE public.audits (id bigint)")
    with pytest.raises(BadInputError, match=r"public\.audits that is not the sample CRM's"):
        load_sample(database_dsn)
    with psycopg.connect(database_dsn) as db:
        assert db.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)


def test_a_load_that_fails_half_way_leaves_nothing(database_dsn: str) -> None:
    with psycopg.connect(database_dsn) as db:
        db.execute("CREATE TABLE public.crm_tickets (id bigint)")
    with pytest.raises(BadInputError, match=r'PostgreSQL refused .relation "crm_tickets" already exists'):
        load_sample(database_dsn)
    with psycopg.connect(database_dsn) as db:
        tables = db.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname IN ('public', 'jsonb_variant')"
        ).fetchall()
        assert tables == [("crm_tickets",)]


def test_a_server_that_does_not_answer_is_one_clear_line() -> None:
    with pytest.raises(ServiceUnreachableError, match="PostgreSQL does not answer") as raised:
        load_sample("postgresql://nobody@127.0.0.1:1/none")
    assert "\n" not in str(raised.value)


def test_a_database_that_may_not_be_written_is_one_clear_line(database_dsn: str) -> None:
    read_only = f"{database_dsn} options='-c default_transaction_read_only=on'"
    with pytest.raises(BadInputError, match=r"PostgreSQL refused .*read-only transaction") as raised:
        load_sample(read_only)
    assert "\n" not in str(raised.value)


def test_contacts_are_seeded_once_and_leave_others_alone(mongo_database: Any) -> None:
    mongo_database["contacts"].insert_one({"_id": "mine", "company_sso_id": SAMPLE_YAML, "crm_data": {"id": 1}})
    first = seed_contacts(mongo_database)
    documents = list(mongo_database["contacts"].find(sort=[("_id", 1)]))
    again = seed_contacts(mongo_database)
    assert list(mongo_database["contacts"].find(sort=[("_id", 1)])) == documents
    assert [c.seeded for c in first] == [True, True]
    assert [c.seeded for c in again] == [False, False]
    assert mongo_database["contacts"].count_documents({"_id": "mine"}) == 1
    assert len(documents) == 1 + sum(c.contacts for c in first)


def test_a_seeding_that_died_is_done_again(mongo_database: Any) -> None:
    (whole, _) = seed_contacts(mongo_database)
    mongo_database["crm_replay_seeds"].delete_one({"_id": SAMPLE_YAML})
    mongo_database["contacts"].delete_one({"company_sso_id": SAMPLE_YAML, "crm_data.id": 50001})
    (again, _) = seed_contacts(mongo_database)
    assert again == whole
    assert mongo_database["contacts"].count_documents({"company_sso_id": SAMPLE_YAML}) == whole.contacts


def test_every_living_sample_person_has_a_contact_in_both_accounts(mongo_database: Any) -> None:
    seed_contacts(mongo_database)
    customers = {}
    for account in (SAMPLE_YAML, SAMPLE_JSONB):
        found = mongo_database["contacts"].find({"company_sso_id": account})
        customers[account] = {c["crm_data"]["id"]: c["customer_id"] for c in found}
        assert {row["id"] for row in json_lines("people")} <= customers[account].keys()
    shared = customers[SAMPLE_YAML].keys() & customers[SAMPLE_JSONB].keys()
    assert all(customers[SAMPLE_YAML][person] != customers[SAMPLE_JSONB][person] for person in shared)
    assert 50010 not in customers[SAMPLE_YAML]
    assert 50010 in customers[SAMPLE_JSONB]


def test_the_id_map_leads_to_a_contact_of_the_same_account(mongo_database: Any) -> None:
    seed_contacts(mongo_database)
    entries = list(mongo_database["crm_contact_id_map"].find())
    assert {(e["company_sso_id"], e["crm_person_id"]) for e in entries} == {(SAMPLE_YAML, 50012), (SAMPLE_JSONB, 50021)}
    for entry in entries:
        contact = mongo_database["contacts"].find_one({"_id": entry["contact_id"]})
        assert contact["company_sso_id"] == entry["company_sso_id"]
        assert contact["customer_id"] == entry["customer_id"]
        assert contact["crm_data"]["id"] != entry["crm_person_id"]


def test_one_contact_was_synced_at_the_very_instant_of_its_row(mongo_database: Any) -> None:
    seed_contacts(mongo_database)
    (row,) = [r for r in json_lines("audits_yaml") if r["id"] == 1200282]
    contact = mongo_database["contacts"].find_one({"company_sso_id": SAMPLE_YAML, "crm_data.id": row["auditable_id"]})
    assert contact["created_at"].isoformat() == row["created_at"].replace("Z", "+00:00")


@pytest.mark.parametrize("account", [SAMPLE_YAML, SAMPLE_JSONB])
def test_the_mapping_files_name_tables_that_are_there(database_dsn: str, account: str) -> None:
    load_sample(database_dsn)
    mapping = load(str(mapping_path(account)))
    tables = [(mapping.source.schema_name, mapping.source.table), (mapping.users.schema_name, mapping.users.table)]
    with psycopg.connect(database_dsn) as db:
        for schema, table in tables:
            assert db.execute(f"SELECT count(*) FROM {schema}.{table}").fetchone() != (0,)
        for referent in mapping.referents.values():
            query = (
                f"SELECT {referent.name} FROM {referent.schema_name}.{referent.table} ORDER BY {referent.id} LIMIT 1"
            )
            assert db.execute(query).fetchone() is not None


def test_the_sample_is_the_contracts_fixture() -> None:
    names = {entry.name for entry in files("ops.local.sample").iterdir()}
    assert {"README.md", "schema.sql", "id_sets.json", "expected_changes.jsonl"} <= names
