"""The nightly check over real copies: clean at first, then with every defect it is there to find."""

import json
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.checks.nightly import CheckOptions, Results, check_accounts
from ops.checks.preflight import Check, Verdict
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from schemas.errors import BadInputError
from tests.e2e.conftest import Crm, mapping_of


def night(crm: Crm, **options: Any) -> Results:
    return check_accounts(CheckOptions(**options), crm.connections, PlainView())


def of(results: Results, name: str) -> Check:
    """Return a check of the last account, or of the platform."""
    found = [check for result in (results.results[0], results.results[-1]) for check in result.checks]
    return {check.name: check for check in found}[name]


def test_a_clean_copy_passes_and_every_defect_is_found_by_its_own_check(sample_crm: Crm, tmp_path: Path) -> None:
    account = f"{SAMPLE_YAML}-{uuid.uuid4().hex[:8]}"
    database = sample_crm.database
    for collection in ("contacts", "crm_contact_id_map"):
        database[collection].update_many({"company_sso_id": SAMPLE_YAML}, {"$set": {"company_sso_id": account}})
    with pytest.raises(BadInputError, match=f"no finished job of {account}"):
        night(sample_crm, accounts=(account,))
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute("UPDATE audits SET audited_changes = '--- [' WHERE id = 1200021")
    job = sample_crm.run(account, "--mapping", mapping_of(SAMPLE_YAML))

    gated = night(sample_crm)
    waiting = [check for result in gated.results for check in result.checks if check.verdict is not Verdict.OK]
    assert [(check.name, check.verdict, check.facts["waiting"]) for check in waiting] == [
        ("dead_letters", Verdict.FAIL, 1)
    ]
    clean = night(sample_crm, dead_letters_max=1)
    assert clean.ok
    every = [check for result in clean.results for check in result.checks]
    assert {check.name: check.found for check in every if check.verdict is not Verdict.OK} == {
        "dead_letters": "1 wait, 0 name no row of the account"
    }
    assert [result.name for result in clean.results] == ["platform", account]
    sample = of(clean, "sample").facts
    assert (sample["rows"], sample["documents_equal"]) == (326, job["records_migrated"])
    ranges = database["crm_replay_checkpoints"].find({"run": job["run"], "late": False})
    gaps = [gap for range_ in ranges for gap in range_["gaps"]]
    assert of(clean, "late_rows").facts["gaps"] == len(gaps) > 0
    late_id = gaps[0][0]
    assert of(clean, "orphan_documents").facts["documents"] > 100

    part = night(sample_crm, places=3, rows_a_place=20, seed=5, dead_letters_max=1)
    assert part.ok
    assert 0 < of(part, "sample").facts["rows"] < 326

    logs = database["activity_logs"]
    lost = logs.find_one_and_delete({"company_sso_id": account, "category": "deal"})
    changed = logs.find_one({"company_sso_id": account, "category": "note"})
    assert lost is not None
    logs.update_one({"_id": changed["_id"]}, {"$set": {"action": "delete"}})
    logs.insert_one({"company_sso_id": "nobody", "source_tag": "crm_migration", "external_id": "crm_audit:1"})
    customer = logs.find_one({"company_sso_id": account, "category": "task"})
    assert customer is not None
    erased = database["contacts"].find_one_and_delete(
        {"company_sso_id": account, "$or": [{"customer_id": customer["customer_id"]}, {"_id": customer["customer_id"]}]}
    )
    assert erased is not None
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        db.execute(
            "INSERT INTO audits (id, auditable_type, auditable_id, action, audited_changes, comment, created_at)"
            " SELECT %s, auditable_type, auditable_id, action, audited_changes, comment, created_at"
            " FROM audits WHERE id = %s",
            (late_id, int(str(changed["external_id"]).removeprefix("crm_audit:"))),
        )

    file = tmp_path / "check.xml"
    called = sample_crm.call("check", "--dead-letters-max", "1", "--json", "--junit", str(file))
    assert called.returncode == 1, called.stderr
    answer = json.loads(called.stdout)
    failed = {
        check["name"]: check["facts"]
        for result in answer["results"]
        for check in result["checks"]
        if check["verdict"] == "fail"
    }
    assert set(failed) == {"orphan_accounts", "job", "sample", "late_rows"}
    assert failed["orphan_accounts"]["orphans"] == ["nobody"]
    assert (failed["sample"]["missing"], failed["sample"]["different"]) == (2, 1)  # one of the missing is the late row
    assert failed["late_rows"]["without_document"] == 1
    late = next(check for check in answer["results"][1]["checks"] if check["name"] == "late_rows")
    assert f"--audit-ids {late_id}" in late["to_do"]
    suites = ET.parse(file).getroot()
    assert suites.get("failures") == "4"

    warned = of(night(sample_crm), "orphan_documents")
    assert (warned.verdict, warned.facts["without_contact"] > 0) == (Verdict.WARN, True)

    logs.drop_index("idx_company_source_tag")
    bare = night(sample_crm)
    assert [result.name for result in bare.results] == ["platform"]
    assert of(bare, "mongodb_indexes").verdict is Verdict.FAIL
