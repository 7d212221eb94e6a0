"""Whole runs through every real part: PostgreSQL, Kafka, Faust workers, sinks, MongoDB."""

import datetime as dt
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from psycopg.conninfo import make_conninfo

from ops.jobs import operations
from ops.jobs.store import JobStore, NewJob
from ops.kafka import admin as kafka_admin
from ops.local import sandbox
from ops.local.generator import GENERATED_MAPPING, Plan, generate_crm
from ops.local.sample_crm import SAMPLE_JSONB, SAMPLE_YAML
from ops.progress import PlainView
from ops.runner.options import RunOptions
from ops.runner.replay import run_claimed
from producer.survey import UnreplayableIdsError
from schemas.collections import JOBS
from schemas.source.mapping import load
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, generated, mapping_of
from tests.support.waiting import wait_until


@pytest.mark.parametrize(("account", "rows"), [(SAMPLE_YAML, 326), (SAMPLE_JSONB, 202)])
def test_every_row_of_the_sample_ends_in_exactly_one_bin_and_a_second_run_inserts_nothing(
    sample_crm: Crm, account: Any, rows: int
) -> None:
    first = sample_crm.run(account, "--mapping", mapping_of(account))
    assert first["status"] == "completed"
    assert first["records_total"] == rows
    assert first["records_migrated"] + sum(first["skips_by_reason"].values()) + first["records_failed"] == rows
    assert first["accuracy_pct"] == 100.0
    logs = sample_crm.logs(account)
    assert len(logs) == first["records_migrated"] > 150
    assert len({log["external_id"] for log in logs}) == len(logs)
    assert {log["source_tag"] for log in logs} == {"crm_migration"}

    second = sample_crm.run(account, "--mapping", mapping_of(account))
    assert second["records_migrated"] == 0
    assert second["skips_by_reason"] == {
        **first["skips_by_reason"],
        "duplicate_external_id": first["records_migrated"],
    }
    assert sample_crm.logs(account) == logs


def test_every_row_has_a_bin_whatever_its_created_at_and_types_out_of_scope_are_counted(sample_crm: Crm) -> None:
    odd = (None, "-infinity", "0044-03-15 12:00:00 BC", "infinity", "12026-01-01 00:00:00")
    with psycopg.connect(sample_crm.dsn) as db:
        top = db.execute("SELECT max(id) FROM audits").fetchone()[0]
        for audit_id, created_at in enumerate(odd, top + 1):
            db.execute(
                "INSERT INTO audits (id, auditable_id, auditable_type, action, audited_changes, created_at)"
                " VALUES (%s, 1, 'Crm::Person', 'update', %s, %s)",
                (audit_id, "---\nname:\n- a\n- b\n", created_at),
            )
        other = "INSERT INTO audits (id, auditable_type, created_at) VALUES (%s, 'Odd.$Type', now())"
        for audit_id in (top + 6, -7):  # whatever is not read may have any id
            db.execute(other, (audit_id,))
    job = sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    assert (job["status"], job["records_total"]) == ("completed", 326 + 5)
    assert job["failures_by_cause"]["undecodable_record"] == 5
    assert job["records_migrated"] + sum(job["skips_by_reason"].values()) + job["records_failed"] == 326 + 5
    stored = sample_crm.database[JOBS].find_one({"company_sso_id": SAMPLE_YAML})
    assert stored["out_of_scope_by_type"]["Odd.$Type"] == 2
    verified = sample_crm.call("verify", "--account", SAMPLE_YAML, "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["source_rows"] == 326 + 5
    checked = sample_crm.call("check", "--account", SAMPLE_YAML, "--json")
    verdicts = {each["name"]: each["verdict"] for each in json.loads(checked.stdout)["results"][1]["checks"]}
    assert (verdicts["job"], verdicts["sample"], verdicts["late_rows"]) == ("ok", "ok", "ok"), checked.stdout
    explained = sample_crm.call("explain", str(top + 1), "--account", SAMPLE_YAML)
    assert "created_at is NULL" in explained.stdout, explained.stdout + explained.stderr


def test_accounts_that_share_person_ids_do_not_meet(sample_crm: Crm) -> None:
    sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    before = sample_crm.logs(SAMPLE_YAML)
    sample_crm.run(SAMPLE_JSONB, "--mapping", mapping_of(SAMPLE_JSONB))
    assert sample_crm.logs(SAMPLE_YAML) == before
    of_account = {
        account: set(sample_crm.database["contacts"].distinct("customer_id", {"company_sso_id": account}))
        for account in (SAMPLE_YAML, SAMPLE_JSONB)
    }
    for account, customers in of_account.items():
        assert {log["customer_id"] for log in sample_crm.logs(account)} <= customers


def test_a_run_whose_runner_and_workers_are_killed_is_taken_up_and_equals_an_uninterrupted_one(crm: Crm) -> None:
    account = generated(crm, 24_000)
    uninterrupted = crm.run(account, "--mapping", GENERATED_MAPPING)
    expected = crm.logs(account)
    crm.database["activity_logs"].delete_many({})
    crm.database["crm_activity_log_migration_jobs"].delete_many({})

    with crm.start("run", "--account", account, "--mapping", GENERATED_MAPPING) as runner:
        crm.wait_written(500)
        assert runner.poll() is None
        workers = [int(pid) for pid in Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()]
        assert len(workers) >= 2
        for pid in (runner.pid, *workers):
            with suppress(ProcessLookupError):  # the fork server ends with the runner, at once
                os.kill(pid, signal.SIGKILL)
        runner.communicate()
    assert 0 < crm.database["activity_logs"].estimated_document_count() < len(expected)

    too_early = crm.call("run", "--account", account, "--mapping", GENERATED_MAPPING)
    assert too_early.returncode == 1
    assert "is in progress" in too_early.stderr
    until = crm.database[JOBS].find_one({})["lease_until"].replace(tzinfo=dt.UTC)
    wait_until(lambda: dt.datetime.now(dt.UTC) >= until, "a silent runner is taken for dead")
    resumed = crm.run(account, "--mapping", GENERATED_MAPPING)
    same = ("records_total", "records_migrated", "records_skipped", "records_failed", "skips_by_reason", "accuracy_pct")
    assert {key: resumed[key] for key in same} == {key: uninterrupted[key] for key in same}
    assert crm.logs(account) == expected


def test_an_interrupted_run_stops_its_workers_and_goes_on_at_once(crm: Crm) -> None:
    account = generated(crm, 24_000)
    with crm.start("run", "--account", account, "--mapping", GENERATED_MAPPING) as runner:
        crm.wait_written(100)
        runner.send_signal(signal.SIGINT)
        _, err = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "interrupted" in err
    resumed = crm.run(account, "--mapping", GENERATED_MAPPING, "--processors", "2", "--sinks", "2")
    assert (resumed["status"], resumed["documents"]) == ("completed", resumed["records_migrated"])
    assert resumed["records_migrated"] == len(crm.logs(account))


def test_status_tells_how_the_job_ended(sample_crm: Crm) -> None:
    account = SAMPLE_JSONB
    unknown = sample_crm.status(account)
    assert unknown == {"company_sso_id": account, "status": "not_started"}
    job = sample_crm.run(account, "--mapping", mapping_of(account))
    shown = sample_crm.status(account)
    assert shown == {key: value for key, value in job.items() if key != "seconds"}


# ---- bad input: one line that says what and what to do, exit code 2, nothing half-created ----------------------------


def refused(crm: Crm, *words: str, says: str, **environment: str) -> None:
    done = crm.call(*words, **environment)
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("crm-replay: ")
    assert says in lines[0]
    assert crm.database["crm_activity_log_migration_jobs"].count_documents({}) == 0
    assert crm.database["activity_logs"].count_documents({}) == 0


def test_a_server_that_is_not_there_is_named(sample_crm: Crm) -> None:
    run = ("run", "--account", SAMPLE_YAML)
    refused(sample_crm, *run, says="Kafka at 127.0.0.1:9", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    refused(sample_crm, *run, says="MongoDB does not answer", MONGODB_URL="mongodb://127.0.0.1:9")
    nowhere = "postgresql://postgres@127.0.0.1:9/crm"
    refused(sample_crm, *run, says="PostgreSQL database crm at 127.0.0.1:9", CRM_AUDIT_DATABASE_URL=nowhere)


def test_a_missing_table_or_column_is_named(sample_crm: Crm, tmp_path: Path) -> None:
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute("ALTER TABLE jsonb_variant.audits DROP COLUMN comment")
    jsonb = ("run", "--account", SAMPLE_JSONB, "--mapping", mapping_of(SAMPLE_JSONB))
    refused(sample_crm, *jsonb, says="has no column comment")
    other = tmp_path / "other.yaml"
    other.write_text(Path(mapping_of(SAMPLE_YAML)).read_text().replace("table: audits", "table: audit_log"))
    refused(sample_crm, "run", "--account", "a", "--mapping", str(other), says="no table public.audit_log")


def test_a_wrong_mapping_file_is_named_with_key_and_line(sample_crm: Crm, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("scope: [Crm::Deal]\ncategories:\n  Crm::Deal: {categorie: deal}\n")
    run = ("run", "--account", "a", "--mapping")
    refused(sample_crm, *run, str(broken), says="broken.yaml, line 3, key categories.Crm::Deal.")
    refused(sample_crm, *run, str(tmp_path / "none.yaml"), says="none.yaml")


def test_an_unknown_account_is_named(crm: Crm) -> None:
    generate_crm(crm.dsn, Plan(500, 2, 7))
    refused(crm, "run", "--account", "nobody", "--mapping", GENERATED_MAPPING, says="the CRM has no account nobody")
    refused(crm, "run", "--account", "", "--mapping", GENERATED_MAPPING, says="is not a company_sso_id")


def test_ids_below_one_are_refused_however_a_replay_is_begun(sample_crm: Crm) -> None:
    run = ("run", "--account", SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute("UPDATE audits SET id = id - 2147483648 WHERE id = 1200006")
        says = "1 audit row in scope has an id below 1 (-2146283642)"
        for words in (run, ("rerun", *run[1:], "--from", "2000-01-01"), ("rerun", *run[1:], "--audit-ids", "1200007")):
            refused(sample_crm, *words, says=says)
        # A job that was asked for by request exists before anything looks at the source: it fails, and says why.
        store = JobStore(sample_crm.database)
        now, mapping = dt.datetime.now(dt.UTC), operations.digest(load(None))
        waiting = store.create(NewJob(SAMPLE_YAML, 2, 0, 0, now, mapping_sha256=mapping, prepared=False))
        claimed = store.claim(waiting.job_id, "a runner")
        assert claimed is not None
        with pytest.raises(UnreplayableIdsError):
            run_claimed(claimed, RunOptions(home=sample_crm.home), sample_crm.connections, PlainView())
        job = store.get(waiting.job_id)
        assert (job.status, job.owner, says in str(job.error)) == ("failed", None, True)
        sample_crm.database[JOBS].delete_many({})
        db.execute("UPDATE audits SET id = id + 2147483648 WHERE id < 1")
        sample_crm.run(*run[2:])
        db.execute("UPDATE audits SET id = id - 2147483648 WHERE id = 1200006")
    for words in (("rerun", *run[1:]), ("verify", *run[1:])):
        done = sample_crm.call(*words)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_rows_that_the_role_cannot_see_are_refused(sample_crm: Crm) -> None:
    role = f"role_{sample_crm.database.name[-10:]}"
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        db.execute("ALTER TABLE audits ENABLE ROW LEVEL SECURITY")
        db.execute("CREATE POLICY two_of_five ON audits USING (id % 5 < 2)")
        dsn = make_conninfo(sample_crm.dsn, user=role)
        try:
            run = ("run", "--account", SAMPLE_YAML)
            refused(sample_crm, *run, says="row-level security hides rows of public.audits", CRM_AUDIT_DATABASE_URL=dsn)
        finally:
            db.execute(f"DROP OWNED BY {role}")
            db.execute(f"DROP ROLE {role}")


def test_a_database_without_its_indexes_is_refused(sample_crm: Crm) -> None:
    assert sample_crm.call("migrate", "down").returncode == 0
    done = sample_crm.call("run", "--account", SAMPLE_YAML)
    assert done.returncode == 2
    assert "crm-replay migrate up" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_row_too_large_for_its_topic_is_one_failure_and_the_rest_goes_on(sample_crm: Crm) -> None:
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute("UPDATE audits SET audited_changes = repeat('x', 21000000) WHERE id = 1200006")
    job = sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    assert (job["records_failed"], job["failures_by_cause"]) == (1, {"row_too_large": 1})
    assert job["records_total"] == 326
    documents = job["documents"]
    assert documents == job["records_migrated"]
    assert job["accuracy_pct"] == documents * 10_000 // (documents + 1) / 100  # the row should have become one


def test_a_topic_that_would_lose_the_backlog_is_refused(sample_crm: Crm) -> None:
    topics = AccountTopics.of(SAMPLE_YAML)
    admin = kafka_admin.client(sample_crm.connections.kafka())
    kafka_admin.ensure_topics(admin, topics, 2)
    resource = ConfigResource(ResourceType.TOPIC, topics.outcomes)
    change = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    try:
        resource.add_incremental_config(change)
        admin.incremental_alter_configs([resource])[resource].result(10)
        # The broker's answer is the controller's: it is told of the change itself a moment later.
        wait_until(
            lambda: kafka_admin.topic_config(admin, topics.outcomes)["retention.ms"] == "60000", "it is in force"
        )
        refused(sample_crm, "run", "--account", SAMPLE_YAML, says=f"{topics.outcomes} has retention.ms=60000")
    finally:
        sandbox.forget(sample_crm.connections, SAMPLE_YAML)
