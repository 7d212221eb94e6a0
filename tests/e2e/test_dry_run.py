"""The dry run against the real run of the same rows: equal counts, and nothing written."""

import hashlib
import json
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient

from ops.checks.dry_run import DryRunOptions, dry_run_account
from ops.local.sample.rows import json_lines
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from tests.e2e.conftest import Crm, mapping_of


def state(crm: Crm) -> dict[str, Any]:
    """Return everything that a dry run could have written to."""
    with psycopg.connect(crm.dsn) as db:
        writes = db.execute("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables").fetchone()
        rows = db.execute("SELECT md5(string_agg(a::text, '|' ORDER BY id)) FROM audits a").fetchone()
    documents = {
        name: hashlib.sha256(repr(list(crm.database[name].find().sort("_id", 1))).encode()).hexdigest()
        for name in sorted(crm.database.list_collection_names())
    }
    topics = AdminClient(crm.connections.kafka()).list_topics(timeout=30).topics
    return {
        "writes": writes,
        "rows": rows,
        "documents": documents,
        "topics": sorted(n for n in topics if "sample" in n),
    }


def test_a_dry_run_counts_what_the_run_then_does_and_writes_nothing(sample_crm: Crm) -> None:
    options = DryRunOptions(mapping_of(SAMPLE_YAML))
    before = state(sample_crm)
    dry = dry_run_account(SAMPLE_YAML, options, sample_crm.connections, PlainView())
    called = sample_crm.call("dry-run", "--account", SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML), "--json")
    assert state(sample_crm) == before
    assert called.returncode == 0, called.stderr
    answer = json.loads(called.stdout)
    assert {**answer, "dry_rows_per_s": 0} == {
        **json.loads(json.dumps(dry.as_dict(), default=str)),
        "dry_rows_per_s": 0,
    }

    values = [
        row[name] for row in json_lines("people") for name in ("first_name", "email", "telephone") if row.get(name)
    ]
    values += [user["full_name"] for user in json_lines("users")]
    assert len(values) > 20
    assert not [value for value in values if len(value) > 4 and value in called.stdout]

    job = sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    assert dry.rows_in_scope == dry.tally.rows == job["records_total"]
    assert dry.tally.logs_total == job["records_migrated"]
    assert dict(dry.tally.skipped) == job["skips_by_reason"]
    assert dry.tally.failed_total == job["records_failed"]
    written = sample_crm.logs(SAMPLE_YAML)
    by_kind: dict[str, int] = {}
    for log in written:
        name = f"{log['category']}/{log['action']}"
        by_kind[name] = by_kind.get(name, 0) + 1
    assert dict(dry.tally.logs) == by_kind
    there = {log["external_id"]: log for log in written}
    examples = [row for rows in dry.examples.logs.values() for row in rows]
    assert len(examples) == len(by_kind)
    for row in examples:
        log = there[row["document"]["external_id"]]
        assert [change["field"] for change in row["document"]["changes"]] == [c["field"] for c in log["changes"]]

    again = dry_run_account(SAMPLE_YAML, options, sample_crm.connections, PlainView())
    assert again.tally.logs_total == 0
    assert again.tally.skipped["duplicate_external_id"] == job["records_migrated"]

    shown = dry_run_account(
        SAMPLE_YAML, DryRunOptions(mapping_of(SAMPLE_YAML), limit=60), sample_crm.connections, PlainView()
    )
    assert (shown.tally.rows, shown.sampled) == (60, True)
    assert shown.estimate.rows == 326
