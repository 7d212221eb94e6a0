"""The lineage of a row on real servers, whatever became of it, and with parts that are not there."""

import json
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient

from ops.checks.explain.collect import explain_row
from ops.kafka.rows import partition_of
from ops.local.generator import GENERATED_MAPPING, Plan, generate_crm
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, connections_of, mapping_of

MAPPING = mapping_of(SAMPLE_YAML)
MIGRATED, UNREADABLE, TOO_LARGE = 1200008, 1200021, 1200036  # rows of person 50001
NO_CONTACT, LIVE = 1200006, 1200282
OLDER, NEWER = 5, 1_200_001_000_000  # than every row of the sample
NOWHERE = {
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
    "MONGODB_URL": "mongodb://127.0.0.1:9",
    "CRM_AUDIT_DATABASE_URL": "postgresql://postgres@127.0.0.1:9/crm",
}


def explained(crm: Crm, account: str, audit_id: int, mapping: str = "", **environment: str) -> dict[str, Any]:
    """Return the lineage as `--json` prints it."""
    connections = connections_of({**crm.environment, **environment})
    lineage = explain_row(account, audit_id, connections, mapping, PlainView()).as_dict()
    return dict(json.loads(json.dumps(lineage)))


def add_row(crm: Crm, audit_id: int, created_at: str) -> None:
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        db.execute(
            "INSERT INTO audits (id, auditable_type, auditable_id, action, audited_changes, version, created_at)"
            " VALUES (%s, 'Crm::Person', 50001, 'update', E'---\\nname:\\n- a\\n- b\\n', 9, %s)",
            (audit_id, created_at),
        )


def test_each_end_of_a_row_is_told_with_the_rule_that_made_it(sample_crm: Crm, account: str) -> None:
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute("UPDATE audits SET audited_changes = '--- [never closed' WHERE id = %s", (UNREADABLE,))
        db.execute("UPDATE audits SET audited_changes = repeat('x', 21000000) WHERE id = %s", (TOO_LARGE,))
    job = sample_crm.run(account, "--mapping", MAPPING)
    add_row(sample_crm, OLDER, "2001-01-01 00:00:00")
    add_row(sample_crm, NEWER, "2023-01-15 10:00:00")
    topics = AccountTopics.of(account)

    lineage = explained(sample_crm, account, MIGRATED)
    assert (lineage["verdict"], lineage["not_looked_at"]) == ("migrated", {})
    assert lineage["job"]["job_id"] == job["job_id"]
    assert lineage["key"] == {"record_key": "50001", "persons": [{"person_id": "50001", "from": "comment"}]}
    (published,) = lineage["published"]["records"]
    assert published["partition"] == lineage["published"]["expected_partition"] == partition_of(b"50001", 4)
    assert [step["rule"] for step in lineage["decision"]["steps"]] == ["scope", "contact", "watermark", "changes"]
    assert (lineage["decision"]["result"], lineage["decision"]["rule"]) == ("a document, contact/create", None)
    (outcome,) = lineage["outcome"]["records"]
    assert (outcome["what"], outcome["source_offset"]) == ("activity log", published["offset"])
    document = sample_crm.database["activity_logs"].find_one({"external_id": f"crm_audit:{MIGRATED}"})
    assert document is not None
    assert lineage["document"]["_id"] == str(document["_id"])
    assert (lineage["document"]["run"], lineage["document"]["differs"]) == (job["run"], [])

    printed = sample_crm.call("explain", "--account", account, str(MIGRATED), "--json")
    assert (printed.returncode, json.loads(printed.stdout)) == (0, lineage)
    text = sample_crm.call("explain", "--account", account, str(MIGRATED)).stdout
    assert text.startswith(f"row {MIGRATED} of {account}: migrated\n")
    assert f"partition {published['partition']}, offset {published['offset']} of {topics.replay}" in text
    assert "equal to what the row becomes now" in text

    sample_crm.database["activity_logs"].update_one({"_id": document["_id"]}, {"$set": {"action": "update"}})
    assert explained(sample_crm, account, MIGRATED)["document"]["differs"] == ["action"]

    for audit_id, verdict, rule in (
        (UNREADABLE, "failed: undecodable_changes", "changes"),
        (TOO_LARGE, "failed: row_too_large", "source"),
        (NO_CONTACT, "skipped: contact_not_found", "contact"),
        (LIVE, "skipped: post_sync_live_feed", "watermark"),
    ):
        lineage = explained(sample_crm, account, audit_id)
        assert lineage["verdict"].startswith(verdict)
        assert lineage["decision"]["rule"] == rule
        assert len(lineage["published"]["records"]) == len(lineage["outcome"]["records"]) == 1
        assert lineage["document"]["found"] is False
        assert len(lineage["dead_letters"]["letters"]) == verdict.startswith("failed")
    for audit_id, why in (
        (OLDER, "it would be a document"),  # without a date range, no row is too old
        (NEWER, "above the job's top"),
        (77, "no row with this id"),
    ):
        lineage = explained(sample_crm, account, audit_id)
        assert why in lineage["verdict"]
        assert lineage["published"]["records"] == lineage["outcome"]["records"] == []

    admin = AdminClient(sample_crm.connections.kafka())
    for future in admin.delete_topics([topics.outcomes]).values():
        future.result()
    lineage = explained(sample_crm, account, UNREADABLE)
    assert lineage["outcome"]["records"] == []
    assert lineage["verdict"].startswith("failed: undecodable_changes")


def test_a_server_that_is_down_costs_its_own_parts_alone(sample_crm: Crm, account: str) -> None:
    job = sample_crm.run(account, "--mapping", MAPPING)

    def without(*names: str) -> dict[str, Any]:
        return explained(sample_crm, account, MIGRATED, **{name: NOWHERE[name] for name in names})

    lineage = without("KAFKA_BOOTSTRAP_SERVERS")
    assert lineage["not_looked_at"].keys() == {"published", "decision", "outcome", "dead letters"}
    assert (lineage["verdict"], lineage["document"]["run"]) == ("migrated", job["run"])
    lineage = without("MONGODB_URL")
    assert lineage["not_looked_at"].keys() == {"job", "document"}
    assert (lineage["outcome"]["records"][0]["what"], lineage["decision"]["rule"]) == ("activity log", None)
    lineage = without("CRM_AUDIT_DATABASE_URL")
    assert lineage["not_looked_at"].keys() == {"source", "key", "decision"}
    assert (lineage["verdict"], len(lineage["published"]["records"])) == ("migrated", 1)
    nothing = sample_crm.call("explain", "--account", account, str(MIGRATED), **NOWHERE)
    assert nothing.returncode == 2
    assert len(nothing.stderr.strip().splitlines()) == 1


def test_of_another_accounts_row_nothing_is_told(crm: Crm) -> None:
    accounts = generate_crm(crm.dsn, Plan(500, 2, 7)).accounts
    ours, others = list(accounts)[:2]
    query = (
        "SELECT min(audits.id) FROM crm.audits JOIN crm.accounts ON accounts.id = account_id WHERE company_sso_id = %s"
    )
    with psycopg.connect(crm.dsn) as db:
        own, theirs = (db.execute(query, (name,)).fetchone()[0] for name in (ours, others))
    lineage = explained(crm, ours, theirs, GENERATED_MAPPING)
    assert lineage["source"] == {"exists": True, "of_account": False, "out_of_scope": ["it is another account's"]}
    assert (lineage["key"], lineage["decision"]) == (None, None)
    lineage = explained(crm, ours, own, GENERATED_MAPPING)  # it has never been replayed
    assert lineage["source"]["of_account"]
    assert (lineage["job"], lineage["verdict"]) == (None, "not replayed: the account has no job")
    assert "there is no topic" in lineage["not_looked_at"]["decision"]


def test_wrong_calls_are_refused(crm: Crm) -> None:
    generate_crm(crm.dsn, Plan(500, 2, 7))
    for account, words, says in (
        ("nobody", ("7", "--mapping", GENERATED_MAPPING), "the CRM has no account nobody"),
        ("", ("7",), "is not a company_sso_id"),
        ("a", ("0",), "0 is no audit id"),
        ("a", ("x",), "x is no audit id"),
        ("a", (str(2**63),), "is no audit id"),
        ("a", ("7", "--mapping", "/nowhere.yaml"), "/nowhere.yaml"),
    ):
        done = crm.call("explain", "--account", account, *words)
        assert done.returncode == 2, done.stdout
        assert says in done.stderr
