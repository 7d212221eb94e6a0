"""The ledger of a run, and the roll back of its documents, on a real MongoDB."""

from typing import Any

import pytest

from ops.jobs.validation import validate
from sink.progress import RunTotals
from sink.rollback import documents_of, rollback
from tests.integration.jobs.conftest import document, live

pytestmark = pytest.mark.services


def explain_stages(plan: dict[str, Any]) -> list[str]:
    stages = []
    while plan:
        stages.append(plan["stage"])
        plan = plan.get("inputStage", {})
    return stages


def test_a_ledger_counts_the_accounts_own_documents_only(database: Any) -> None:
    database["activity_logs"].insert_many(
        [document(1), document(2), document(1, "b"), live(3), {"company_sso_id": "a"}]
    )
    totals = RunTotals(migrated=1, skipped={"duplicate_external_id": 1, "contact_not_found": 2}, failed={"x": 1})
    ledger = validate(database, "a", totals, lambda: 5)
    assert (ledger.source_rows, ledger.balanced, ledger.documents, ledger.accuracy_pct) == (5, True, 2, 66.66)
    assert not validate(database, "a", totals, 6).balanced


def test_a_missing_and_a_surplus_document_show_in_the_ledger(database: Any) -> None:
    totals = RunTotals(migrated=3)
    database["activity_logs"].insert_many([document(1), document(2)])
    assert validate(database, "a", totals, 3).accuracy_pct == 66.66
    database["activity_logs"].insert_many([document(3), document(4)])
    ledger = validate(database, "a", totals, 3)
    assert ledger.accuracy_pct == 133.33
    assert not ledger.documents_agree


def test_documents_are_counted_and_found_by_index(database: Any) -> None:
    database["activity_logs"].insert_many([document(i) for i in range(50)] + [document(i, "b") for i in range(50)])
    assert documents_of(database, "a") == 50
    query = {"company_sso_id": "a", "source_tag": "crm_migration"}
    plan = database["activity_logs"].find(query).explain()["queryPlanner"]["winningPlan"]
    assert explain_stages(plan) == ["FETCH", "IXSCAN"]


def test_rollback_removes_the_accounts_tagged_documents_and_nothing_else(database: Any) -> None:
    keep = [live(1), {"company_sso_id": "a", "n": 1}, document(1, "b"), document(2, source_tag="other")]
    database["activity_logs"].insert_many([document(i) for i in range(100, 1100)] + keep)
    steps: list[int] = []
    assert rollback(database, "a", batch_documents=300, on_batch=steps.append) == 1000
    assert steps == [300, 600, 900, 1000]
    left = list(database["activity_logs"].find({}, {"_id": 0}))
    assert sorted(map(repr, left)) == sorted(repr({k: v for k, v in d.items() if k != "_id"}) for d in keep)
    assert rollback(database, "a") == 0


def test_a_rollback_that_was_interrupted_goes_on(database: Any) -> None:
    database["activity_logs"].insert_many([document(i) for i in range(10)])

    def die(removed: int) -> None:
        if removed == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollback(database, "a", batch_documents=3, on_batch=die)
    assert documents_of(database, "a") == 4
    assert rollback(database, "a", batch_documents=3) == 4
    assert documents_of(database, "a") == 0
