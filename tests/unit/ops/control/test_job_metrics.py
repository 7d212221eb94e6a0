"""What Prometheus is told of jobs."""

import datetime as dt
from typing import Any

import pytest

from ops.control.job_metrics import enrichment_values, job_values
from schemas.process.metrics import ENRICHMENTS, JOBS, METRICS
from schemas.vocabulary import JobStatus
from sink.match_key import Outcome
from tests.support.jobs import NOW, found, job

BUSY: dict[str, Any] = {
    "records_total": 200,
    "records_migrated": 90,
    "records_skipped": 9,
    "records_failed": 1,
    "records_foreign": 2,
    "skips_by_reason": {"contact_not_found": 9},
    "failures_by_cause": {"write_refused": 1},
    "progress_pct": 50.0,
    "accuracy_pct": 99.99,
    "documents": 88,
}


def test_a_job_has_a_value_for_each_metric_with_its_labels() -> None:
    values = job_values([job("acme", **BUSY)], {"acme": {"processors": 7, "sink": 3}}, {"acme": 1})
    assert {value.metric for value in values} == {metric.name for metric in JOBS}
    for value in values:
        assert set(value.labels or {}) == set(METRICS[value.metric].labels)
    assert found(values, "job_state", status="in_progress") == [1]
    assert found(values, "job_state", status="halted") == [0]
    assert found(values, "job_progress_ratio") == [0.5]
    assert found(values, "job_accuracy_ratio") == [pytest.approx(0.9999)]
    assert found(values, "job_documents_missing") == [2]
    assert found(values, "job_rows", bin="migrated") == [90]
    assert found(values, "job_skipped_rows", reason="contact_not_found") == [9]
    assert found(values, "lag_records", stage="processors") == [7]
    assert found(values, "dead_letters_waiting") == [1]


def test_what_is_not_known_is_left_out_and_not_zero() -> None:
    values = job_values([job("acme", **{**BUSY, "accuracy_pct": None})], {"acme": {"sink": 3}}, {})
    assert found(values, "job_accuracy_ratio") == []
    assert found(values, "lag_records") == [3]
    assert found(values, "dead_letters_waiting") == []


def test_an_accounts_last_whole_job_counts_and_lag_only_while_it_runs() -> None:
    jobs = [
        job("acme", status=JobStatus.COMPLETED, minutes=2),
        job("acme", status=JobStatus.FAILED, minutes=1),
        job("acme", status=JobStatus.HALTED, minutes=3, partial=True),
    ]
    values = job_values(jobs, {"acme": {"processors": 7, "sink": 3}}, {})
    assert found(values, "job_state", status="completed") == [1]
    assert found(values, "lag_records") == []


def test_accounts_are_bounded_and_those_that_run_are_the_last_to_go() -> None:
    jobs = [job(f"a{n}", status=JobStatus.COMPLETED, minutes=n) for n in range(1, 20)] + [job("runs", minutes=0)]
    values = job_values(jobs, {}, {}, accounts_max=3)
    assert {dict(value.labels or {})["account"] for value in values} == {"runs", "a19", "a18"}


def enrichment(account: str, *, minutes: int = 0, finished: bool = False, **known: Any) -> dict[str, Any]:
    """Return an enrichment's document, as `crm-replay enrich` writes it."""
    at = NOW + dt.timedelta(minutes=minutes)
    empty = {"rows": 0, "rows_total": 0, "outcomes": {}, "deleted_references": 0}
    return {"_id": account, **empty, "updated_at": at, "finished_at": at if finished else None, **known}


def test_an_enrichment_has_a_value_for_each_metric_and_outcome() -> None:
    outcomes = {"patched": 30, "enrich_ambiguous": 2}
    values = enrichment_values([enrichment("acme", rows=50, rows_total=200, outcomes=outcomes, deleted_references=4)])
    assert {value.metric for value in values} == {metric.name for metric in ENRICHMENTS}
    for value in values:
        assert set(value.labels or {}) == set(METRICS[value.metric].labels)
    assert found(values, "enrichment_unfinished") == [1]
    assert found(values, "enrichment_progress_ratio") == [0.25]
    assert found(values, "enrichment_rows", outcome="patched") == [30]
    assert found(values, "enrichment_rows", outcome="refused") == [0]
    assert len(found(values, "enrichment_rows")) == len(Outcome)
    assert found(values, "enrichment_deleted_references") == [4]
    assert found(values, "enrichment_updated_timestamp_seconds") == [NOW.timestamp()]


def test_an_enrichment_that_is_over_is_whole_whatever_was_counted_before() -> None:
    values = enrichment_values([enrichment("acme", rows=7, rows_total=9, finished=True), enrichment("none")])
    assert found(values, "enrichment_unfinished", account="acme") == [0]
    assert found(values, "enrichment_progress_ratio", account="acme") == [1]
    assert found(values, "enrichment_progress_ratio", account="none") == [0]  # its rows have not been counted yet


def test_enrichments_are_bounded_and_the_last_heard_of_stay() -> None:
    values = enrichment_values([enrichment(f"a{n}", minutes=n) for n in range(9)], accounts_max=2)
    assert {dict(value.labels or {})["account"] for value in values} == {"a8", "a7"}
