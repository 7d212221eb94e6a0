"""Documents that came by HTTP before a run: right ones are its duplicates, the others are named and cost it nothing."""

import json
import uuid
from typing import Any

import pytest

from ops.checks.nightly import CheckOptions, check_accounts
from ops.checks.preflight import Verdict
from ops.control import activity_logs
from ops.control.activity_logs import ActivityLogRecord
from ops.jobs import http_documents
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from tests.e2e.conftest import Crm, mapping_of

pytestmark = pytest.mark.services
MAPPING = mapping_of(SAMPLE_YAML)


def send(crm: Crm, account: str, *logs: dict[str, Any]) -> None:
    """Write logs as they come by HTTP."""
    records = [
        ActivityLogRecord.model_validate(
            {
                **{key: value for key, value in log.items() if key != "_id"},
                "company_sso_id": account,
                "timestamp": log["timestamp"].isoformat(),
            }
        )
        for log in logs
    ]
    assert activity_logs.write(crm.database, records, by="a test").inserted == len(logs)


def checks(crm: Crm) -> dict[str, Any]:
    found = check_accounts(CheckOptions(), crm.connections, PlainView())
    return {check.name: check for result in found.results for check in result.checks}


def test_documents_that_came_by_http_belong_to_the_replay_and_are_no_fault_of_its_run(sample_crm: Crm) -> None:
    crm, account = sample_crm, f"{SAMPLE_YAML}-{uuid.uuid4().hex[:8]}"
    for collection in ("contacts", "crm_contact_id_map"):
        crm.database[collection].update_many({"company_sso_id": SAMPLE_YAML}, {"$set": {"company_sso_id": account}})
    first = crm.run(account, "--mapping", MAPPING)
    assert first["http_documents"] is None
    right = crm.database["activity_logs"].find_one({"company_sso_id": account, "category": "contact"})
    with_document = {log["external_id"] for log in crm.logs(account)}
    skipped = next(n for n in range(1200001, 1200300) if f"crm_audit:{n}" not in with_document)
    assert crm.call("rollback", "--account", account, "--yes").returncode == 0

    other = {**right, "external_id": f"crm_audit:{skipped}"}
    nowhere = {**right, "external_id": "crm_audit:77"}
    newer = {**right, "external_id": "crm_audit:999999999999"}
    send(crm, account, right, other, nowhere, newer)
    send(crm, "account-without-a-job", nowhere)
    platform = checks(crm)["orphan_accounts"]
    assert (platform.verdict, platform.facts["orphans"]) == (Verdict.WARN, [])
    assert platform.facts["by_http"] == sorted(["account-without-a-job", account])

    second = crm.run(account, "--mapping", MAPPING)
    assert (second["status"], second["accuracy_pct"], second["error"]) == ("completed", 100.0, None)
    assert second["records_migrated"] == first["records_migrated"] - 1
    assert second["skips_by_reason"]["duplicate_external_id"] == 1
    told = {each["external_id"]: each["why"] for each in second["http_documents"]["named"]}
    assert second["http_documents"]["without_row"] == 3
    assert told.keys() == {other["external_id"], "crm_audit:77", "crm_audit:999999999999"}
    assert "its row is skipped" in told[other["external_id"]]
    assert "no source row of the account in scope has this id" in told["crm_audit:77"]
    assert "is newer than the job" in told["crm_audit:999999999999"]

    found = checks(crm)
    assert found["job"].verdict is Verdict.OK
    assert (found["http_documents"].verdict, found["http_documents"].facts["without_row"]) == (Verdict.WARN, 3)
    named = crm.call("verify", "--account", account, "--mapping", MAPPING, "--json")
    assert named.returncode == 1
    report = json.loads(named.stdout)
    assert report["extra"] == 3
    assert all("it came by HTTP" in finding["why"] for finding in report["findings"])

    # A replay of chosen rows counts the documents again, and sets the same ones apart.
    assert (
        crm.call("rerun", "--account", account, "--mapping", MAPPING, "--audit-ids", "1200001-1200003").returncode == 0
    )
    after = crm.status(account)
    assert (after["documents"], after["accuracy_pct"]) == (second["documents"], 100.0)

    # A document of no known origin still fails the run: what came by HTTP hides nothing.
    planted = {key: value for key, value in right.items() if key != "_id"}
    crm.database["activity_logs"].insert_one({**planted, "company_sso_id": account, "external_id": "crm_audit:88"})
    third = crm.call("run", "--account", account, "--mapping", MAPPING, "--json")
    assert third.returncode == 1
    assert json.loads(third.stdout)["status"] == "failed"

    assert crm.call("rollback", "--account", account, "--yes").returncode == 0
    assert crm.logs(account) == []
    taken_back = crm.status(account)
    assert (taken_back["enrichment"], taken_back["http_documents"]) == (None, None)
    shown = crm.call("status", "--account", account).stdout
    assert "None" not in shown
    assert "{}" not in shown
    gone = crm.call("rollback", "--account", "account-without-a-job", "--yes", "--json")
    assert json.loads(gone.stdout) == {"records_removed": 1}
    assert http_documents.count(crm.database, "account-without-a-job") == 0
