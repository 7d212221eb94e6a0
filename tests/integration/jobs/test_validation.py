"""The ledger of a run, and the ids that a mismatch names, on a real MongoDB."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ops.jobs import migrations
from ops.jobs.validation import compare_ids, identities_since, identities_with, validate
from sink.identity import with_ids
from sink.progress import RunTotals
from sink.rollback import documents_of, rollback

pytestmark = pytest.mark.services


@pytest.fixture
def database(mongo_database: Any) -> Any:
    migrations.up(mongo_database)
    return mongo_database


def document(audit_id: int, account: str = "a", **more: Any) -> dict[str, Any]:
    return {"company_sso_id": account, "external_id": f"crm_audit:{audit_id}", "source_tag": "crm_migration", **more}


def live(audit_id: int, account: str = "a") -> dict[str, Any]:
    return {"company_sso_id": account, "external_id": f"crm_audit:{audit_id}"}


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


@pytest.mark.parametrize("segment", [3, 10_000])
def test_a_mismatch_names_the_ids_on_one_side_only(database: Any, segment: int) -> None:
    source = set(range(1, 21))
    stored = [document(i) for i in range(1, 16) if i not in (4, 7)] + [live(18)]
    doubled = {"company_sso_id": "a", "source_tag": "crm_migration", "external_id": "crm_audit:007"}
    database["activity_logs"].insert_many([*stored, document(99), doubled, document(4, "b")])

    def rows_with(ids: Sequence[int]) -> set[int]:
        return source & set(ids)

    found = compare_ids(database, "a", iter(sorted(source, reverse=True)), rows_with, segment_ids=segment)
    assert found.without_document == (4, 7, 16, 17, 19, 20)
    assert found.without_document_total == 6
    assert set(found.without_row) == {"crm_audit:99", "crm_audit:007"}
    # 14 rows should have a document and have one; four were skipped: so two of the six are lost.
    totals = RunTotals(migrated=15, skipped={"contact_not_found": 4, "duplicate_external_id": 1})
    assert found.missing(validate(database, "a", totals, 20)) == 2


def test_only_the_lowest_ids_are_named(database: Any) -> None:
    found = compare_ids(database, "a", range(1, 1001), lambda ids: ids, segment_ids=64)
    assert found.without_document == tuple(range(1, 101))
    assert found.without_document_total == 1000


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


def test_the_ids_of_documents_are_read_as_the_sink_adds_them_up(database: Any) -> None:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    ours = [document(i, timestamp=begin + timedelta(days=i)) for i in range(1, 300)]
    odd = [
        {**document(1), "external_id": text}
        for text in ("crm_audit:007", "crm_audit:5\x00", "xcrm_audit:5", "crm_audit:5x", "external_id\x00crm_audit:5")
    ]
    foreign = [document(1000, "b"), live(1001), {"company_sso_id": "a", "source_tag": "crm_migration"}]
    database["activity_logs"].insert_many([*ours, document(2**62, timestamp=begin), *odd, *foreign])
    wanted = [*range(1, 300), 2**62]
    assert identities_since(database, "a", None, 4) == with_ids({}, wanted, 4)
    assert identities_since(database, "a", begin + timedelta(days=100), 4) == with_ids({}, range(100, 300), 4)
    assert identities_with(database, "a", [7, 8, 1000, 1001, 9999], 4) == with_ids({}, [7, 8], 4)
