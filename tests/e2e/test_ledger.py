"""The end of a run compares identities: a right number of wrong documents is no complete copy, and can be repaired."""

import json
from typing import Any

import psycopg
import pytest
from bson import ObjectId

from ops.checks.seam.check import SeamOptions, check_seam
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from schemas.collections import ACTIVITY_LOGS, JOBS, PROGRESS
from tests.e2e.conftest import Crm, mapping_of

pytestmark = pytest.mark.services

MAPPING = mapping_of(SAMPLE_YAML)


@pytest.fixture
def account(sample_crm: Crm, account: str) -> str:
    """Give the sample's account, replayed."""
    sample_crm.run(account, "--mapping", MAPPING)
    return account


def conclude(crm: Crm, account: str) -> dict[str, Any]:
    """Have a runner take up the job as if the one before had died before its conclusion; return the job document."""
    jobs = crm.database[JOBS]
    taken_back = {"status": "in_progress", "finished_at": None}
    jobs.update_one({"company_sso_id": account}, {"$set": taken_back, "$unset": {"owner": 1, "lease_until": 1}})
    done = crm.call("run", "--account", account, "--mapping", MAPPING)
    job: dict[str, Any] = jobs.find_one({"company_sso_id": account})
    assert (done.returncode == 0) is (job["status"] == "completed"), done.stderr
    return job


def test_a_document_planted_for_one_that_is_gone_fails_the_run_until_a_repair(sample_crm: Crm, account: str) -> None:
    crm, logs = sample_crm, sample_crm.database[ACTIVITY_LOGS]
    sound = crm.logs(account)
    gone, other, moved = list(logs.find({"company_sso_id": account}).sort("_id"))[3:6]
    assert conclude(crm, account)["status"] == "completed"

    logs.delete_one({"_id": gone["_id"]})
    logs.insert_one({**other, "_id": ObjectId(), "external_id": "crm_audit:77"})
    job = conclude(crm, account)
    assert (job["status"], job["accuracy_pct"]) == ("failed", 99.99)
    assert f"rows without their document: {row(gone)}; documents without a row: crm_audit:77;" in job["error"]

    # Under its own `_id`, which names another row than its external id does by now.
    logs.delete_one({"external_id": "crm_audit:77"})
    logs.insert_one(gone)
    logs.update_one({"_id": moved["_id"]}, {"$set": {"external_id": "crm_audit:78"}})
    job = conclude(crm, account)
    assert job["status"] == "failed"
    assert f"rows without their document: {row(moved)}; documents without a row: crm_audit:78;" in job["error"]

    # What a repair would do is shown, then confirmed, then done; and the job is complete by what was proved.
    shown = crm.call("verify", "--account", account, "--json", "--repair", "--dry-run")
    report = json.loads(shown.stdout)
    assert shown.returncode == 1
    assert report["repair"] == {"dry_run": True, "documents_to_delete": 1, "rows_to_replay": 1}
    assert {finding["kind"] for finding in report["findings"]} == {"missing", "extra"}
    refused = crm.call("verify", "--account", account, "--json", "--repair")
    assert refused.returncode == 2
    assert "would delete 1 documents" in refused.stderr
    assert refused.stderr.strip().splitlines()[-1].endswith("give --yes")
    assert len(crm.logs(account)) == len(sound)
    assert logs.count_documents({"external_id": "crm_audit:78"}) == 1

    repaired = crm.call("verify", "--account", account, "--json", "--repair", "--yes")
    report = json.loads(repaired.stdout)
    assert (repaired.returncode, report["equal"], report["job_completed"]) == (0, True, True), repaired.stderr
    assert crm.logs(account) == sound
    status = crm.status(account)
    counts = [status[f"records_{name}"] for name in ("total", "migrated", "skipped", "failed")]
    assert (status["status"], status["accuracy_pct"], status.get("error")) == ("completed", 100.0, None)
    assert counts == [326, len(sound), 326 - len(sound), 0]
    assert crm.call("check", "--account", account).returncode == 0
    again = json.loads(crm.call("verify", "--account", account, "--json").stdout)
    assert (again["equal"], again["counts"]) == (True, [])

    # More than a small share is likelier to be the check's mistake than the copy's: nothing is changed.
    wrong = [document["_id"] for document in logs.find({"company_sso_id": account}).limit(11)]
    logs.update_many({"_id": {"$in": wrong}}, {"$set": {"actor.name": "Another Name"}})
    before = crm.logs(account)
    done = crm.call("verify", "--account", account, "--json", "--repair", "--yes")
    assert done.returncode == 2
    assert f"a repair would delete 11 of the {len(before)} documents" in done.stderr
    assert "--delete-max-pct" in done.stderr
    assert crm.logs(account) == before
    done = crm.call("verify", "--account", account, "--json", "--repair", "--yes", "--delete-max-pct", "5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["repair"] == {"documents_deleted": 11, "rows_replayed": 11}
    assert crm.logs(account) == sound


class Told(PlainView):
    """Keeps what it is told of the progress."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        self.told.append((done, total))


def row(document: dict[str, Any]) -> int:
    return int(document["external_id"].partition(":")[2])


def test_a_run_that_an_older_release_has_begun_is_counted_and_says_so(sample_crm: Crm, account: str) -> None:
    crm = sample_crm
    crm.database[PROGRESS].update_many({}, {"$unset": {"with_document": 1}})
    crm.database[JOBS].update_one(
        {"company_sso_id": account},
        {"$set": {"status": "in_progress", "finished_at": None}, "$unset": {"owner": 1, "lease_until": 1}},
    )
    done = crm.call("run", "--account", account, "--mapping", MAPPING)
    assert done.returncode == 0, done.stderr
    assert "their ids are not compared" in done.stderr
    # Chosen rows, and rows since a date, are compared with their own documents only.
    rows = [row(document) for document in crm.logs(account)[:3]]
    for words in (("--audit-ids", ",".join(map(str, rows))), ("--from", "2022-06-01")):
        done = crm.call("rerun", "--account", account, "--mapping", MAPPING, *words)
        assert done.returncode == 0, done.stderr
        assert "not compared" not in done.stderr

    # How far the handover's check is, is told in rows, of those that it reads.
    view = Told()
    report = check_seam(account, SeamOptions(mapping_path=MAPPING), crm.connections, view)
    assert view.told, report
    assert [total for _, total in view.told] == [report.rows] * len(view.told)
    assert view.told[-1] == (report.rows, report.rows)


def test_rows_that_the_crm_deletes_after_they_were_read_are_said_to_be_deleted(sample_crm: Crm, account: str) -> None:
    crm = sample_crm
    with psycopg.connect(crm.dsn) as db:
        kept = db.execute("SELECT * FROM audits WHERE action = 'update' ORDER BY id LIMIT 2").fetchall()
        db.execute("DELETE FROM audits WHERE id = ANY(%s)", ([row[0] for row in kept],))
    try:
        job = conclude(crm, account)
    finally:
        with psycopg.connect(crm.dsn) as db:
            values = ", ".join(["%s"] * len(kept[0]))
            db.cursor().executemany(f"INSERT INTO audits VALUES ({values})", kept)
    assert job["status"] == "failed"
    assert "; 2 more rows were read than the source has now: some were deleted meanwhile" in job["error"]
    assert conclude(crm, account)["status"] == "completed"
