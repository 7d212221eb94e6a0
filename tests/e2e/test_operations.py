"""Halting, resuming and rolling back, from the command line."""

import json
from datetime import UTC, datetime
from typing import Any

import psycopg

from ops.jobs import operations
from ops.jobs.jobs import progress_pct
from ops.jobs.store import JobStore
from ops.local.generator import GENERATED_MAPPING
from ops.local.sample_crm import SAMPLE_JSONB, SAMPLE_YAML
from tests.e2e.conftest import Crm, generated, mapping_of
from tests.support.waiting import wait_until


def test_a_halted_job_stops_its_workers_and_resumes_to_the_same_end(crm: Crm) -> None:
    account = generated(crm, 24_000)
    with crm.start("run", "--account", account, "--mapping", GENERATED_MAPPING) as runner:
        crm.wait_written(100)
        operations.halt(JobStore(crm.database), account, "the CRM is slow today")
        _, err = runner.communicate(timeout=60)
    assert runner.returncode == 1
    assert "the CRM is slow today" in err
    written = crm.database["activity_logs"].count_documents({})
    status = crm.status(account)
    assert (status["status"], status["error"]) == ("halted", "the CRM is slow today")
    assert status["records_migrated"] <= written

    refused = crm.call("run", "--account", account, "--mapping", GENERATED_MAPPING)
    assert refused.returncode == 2
    assert "crm-replay resume" in refused.stderr
    job = crm.json("resume", "--account", account, "--mapping", GENERATED_MAPPING)
    assert (job["status"], job["documents"]) == ("completed", job["records_migrated"])
    assert job["records_migrated"] == len(crm.logs(account)) > written


def status_of(crm: Crm, account: str) -> dict[str, Any]:
    """Return the account's status, after a look whether its counts add up."""
    job: dict[str, Any] = crm.status(account)
    assert job["records_attempted"] == job["records_migrated"] + job["records_skipped"] + job["records_failed"]
    assert job["records_skipped"] == sum(job["skips_by_reason"].values())
    assert job["records_failed"] == sum(job["failures_by_cause"].values())
    assert job["progress_pct"] == progress_pct(job["records_attempted"], job["records_total"])
    return job


def test_a_job_that_halts_itself_adds_up_and_its_rows_are_retried_and_it_resumes_to_a_whole_copy(crm: Crm) -> None:
    account = generated(crm, 6_000)
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        db.execute("CREATE TABLE kept AS SELECT id, audited_changes FROM crm.audits WHERE id % 2 = 0")
        db.execute("UPDATE crm.audits SET audited_changes = '--- [never closed' WHERE id % 2 = 0")
    words = ("--account", account, "--mapping", GENERATED_MAPPING)
    halted = crm.call("run", *words, "--sinks", "2")
    assert halted.returncode == 1
    assert "crm-replay dlq retry" in halted.stderr
    status = status_of(crm, account)
    failed, seen = status["records_failed"], status["records_attempted"]
    assert (status["status"], status["error"]) == ("halted", f"{failed} of {seen} records failed, more than 10%")
    assert status["error"] in halted.stderr
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        db.execute("UPDATE crm.audits AS a SET audited_changes = kept.audited_changes FROM kept WHERE a.id = kept.id")

    assert crm.call("resume", *words).returncode == 1  # nothing is forgiven
    assert status_of(crm, account)["status"] == "halted"
    retried = crm.call("dlq", "retry", *words, "--reason", "rows were mended", "--yes")
    assert retried.returncode == 0, retried.stderr
    status = status_of(crm, account)
    assert (status["status"], status["records_failed"], status["records_repaired"]) == ("halted", 0, failed)
    assert status["records_attempted"] == seen
    assert status["error"].startswith(f"0 of {seen} records are failed")
    resumed = crm.json("resume", *words)
    status = status_of(crm, account)
    assert (status["status"], status["error"], status["accuracy_pct"]) == ("completed", None, 100.0)
    assert status["records_attempted"] == status["records_total"] == resumed["records_total"]
    # The retry has moved the groups, so the history was read from the beginning: what was there is a duplicate.
    assert status["documents"] == status["records_migrated"] + status["records_duplicate"] == len(crm.logs(account))
    assert status["records_failed"] == 0
    ours = {"company_sso_id": account, "actor.type": "deleted_user"}
    written = [log["_id"].binary[:4] for log in crm.database["activity_logs"].find(ours, {"_id": 1})]
    assert status["actors_fell_back"] == written.count(status["run"].to_bytes(4, "big")) > 0


def test_a_row_that_is_committed_late_is_counted_and_said(sample_crm: Crm) -> None:
    late, like = 1200038, 1200008  # an id that no row has
    with psycopg.connect(sample_crm.dsn) as writing:
        assert writing.execute("SELECT 1 FROM audits WHERE id = %s", (late,)).fetchone() is None
        writing.execute("CREATE TEMP TABLE one AS SELECT * FROM audits WHERE id = %s", (like,))
        writing.execute("UPDATE one SET id = %s", (late,))
        writing.execute("INSERT INTO audits SELECT * FROM one")
        words = ("--account", SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
        with sample_crm.start("run", *words, "--json") as runner:
            read = sample_crm.database["crm_replay_checkpoints"]
            wait_until(lambda: read.count_documents({"done": True, "late": False}), "the range is read", 120)
            writing.commit()
            out, err = runner.communicate(timeout=120)
    assert runner.returncode == 0, err
    job, status = json.loads(out), status_of(sample_crm, SAMPLE_YAML)
    assert (job["records_total"], job["records_late"], job["progress_pct"]) == (327, 1, 100.0)
    assert {name: job[name] for name in status} == status
    shown = sample_crm.call("status", "--account", SAMPLE_YAML).stdout
    assert "records_late" in shown


def test_rolling_back_removes_the_replays_documents_alone_and_a_new_run_brings_them_back(sample_crm: Crm) -> None:
    live = {"company_sso_id": SAMPLE_YAML, "customer_id": "someone", "category": "note", "external_id": "crm_audit:1"}
    sample_crm.database["activity_logs"].insert_one(dict(live))
    sample_crm.run(SAMPLE_JSONB, "--mapping", mapping_of(SAMPLE_JSONB))
    sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    others, ours = sample_crm.logs(SAMPLE_JSONB), sample_crm.logs(SAMPLE_YAML)

    unsure = sample_crm.call("rollback", "--account", SAMPLE_YAML)
    assert unsure.returncode != 0
    assert sample_crm.logs(SAMPLE_YAML) == ours
    assert sample_crm.json("rollback", "--account", SAMPLE_YAML, "--yes") == {"records_removed": len(ours) - 1}
    for account in (SAMPLE_YAML, "never-replayed"):
        resumed = sample_crm.call("resume", "--account", account, "--mapping", mapping_of(SAMPLE_YAML))
        assert resumed.returncode == 2
        assert "there is nothing to resume: crm-replay run" in resumed.stderr
    assert sample_crm.logs(SAMPLE_YAML) == [live]
    assert sample_crm.logs(SAMPLE_JSONB) == others
    status = status_of(sample_crm, SAMPLE_YAML)
    assert (status["status"], status["records_migrated"], status["documents"]) == ("rolled_back", 0, 0)
    assert (status["progress_pct"], status["accuracy_pct"]) == (0.0, None)
    assert status["rollback"] == {"removed": len(ours) - 1, "remaining": 0}
    assert sample_crm.json("rollback", "--account", SAMPLE_YAML, "--yes") == {"records_removed": 0}

    back = sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    assert back["records_migrated"] == len(ours) - 1
    assert sample_crm.logs(SAMPLE_YAML) == ours


def test_what_has_no_job_cannot_be_halted_or_rolled_back(crm: Crm) -> None:
    for words in (("halt",), ("rollback", "--yes")):
        done = crm.call(*words, "--account", "nobody")
        assert done.returncode == 2
        assert "nobody has no job" in done.stderr


def test_a_rerun_reads_the_topics_again_and_inserts_nothing_a_lost_document_comes_back(sample_crm: Crm) -> None:
    account, mapping = SAMPLE_YAML, mapping_of(SAMPLE_YAML)
    first = sample_crm.run(account, "--mapping", mapping)
    logs = sample_crm.logs(account)

    def rerun(*words: str) -> Any:
        return sample_crm.json("rerun", "--account", account, "--mapping", mapping, *words)

    again = rerun()
    assert again["job_id"] == first["job_id"]
    assert again["run"] > first["run"]
    assert (again["records_migrated"], again["records_total"]) == (0, 326)
    assert again["skips_by_reason"]["duplicate_external_id"] == first["records_migrated"]
    assert again["records_duplicate"] == again["documents"] == first["documents"] == len(logs)
    assert sample_crm.logs(account) == logs

    lost = logs[7]["external_id"]
    sample_crm.database["activity_logs"].delete_one({"company_sso_id": account, "external_id": lost})
    audit_id = str(lost).removeprefix("crm_audit:")
    chosen = rerun("--audit-ids", f"{audit_id},1-3")
    assert (chosen["records_total"], chosen["records_migrated"], chosen["accuracy_pct"]) == (1, 1, 100.0)
    assert sample_crm.logs(account) == logs

    recent = rerun("--from", "2022-01-01")
    expected = sum(log["timestamp"] >= datetime(2022, 1, 1, tzinfo=UTC) for log in logs)
    assert recent["skips_by_reason"]["duplicate_external_id"] == expected > 0
    assert recent["records_total"] < 326
    assert recent["accuracy_pct"] == 100.0

    # Replays of a part leave the account's own job as it was, and a rerun passes over what they published.
    status = sample_crm.status(account)
    assert (status["job_id"], status["run"], status["status"]) == (again["job_id"], again["run"], "completed")
    last = rerun()
    assert (last["records_migrated"], last["records_total"], last["accuracy_pct"]) == (0, 326, 100.0)


def test_a_rerun_without_a_run_and_wrong_ids_are_refused(sample_crm: Crm) -> None:
    for words, says in (
        ((), "has never been replayed"),
        (("--audit-ids", "7,x"), "x is no audit id"),
        (("--audit-ids", "9-3"), "9-3 is too much, or backwards"),
        (("--audit-ids", "@/nowhere"), "/nowhere cannot be read"),
        (("--audit-ids", "1", "--from", "2024-01-01"), "exclude each other"),
    ):
        done = sample_crm.call("rerun", "--account", SAMPLE_YAML, *words)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
    assert sample_crm.database["crm_activity_log_migration_jobs"].count_documents({}) == 0
