"""Which status may follow which, and what a ledger says."""

import itertools

import pytest

from ops.jobs.jobs import TRANSITIONS, Ledger, progress_pct, refusal
from schemas.vocabulary import JobStatus
from sink.job_counts import percent

ALLOWED = {
    ("in_progress", "halted"),
    ("in_progress", "completed"),
    ("in_progress", "failed"),
    ("halted", "in_progress"),
    ("halted", "failed"),
    ("halted", "rolled_back"),
    ("failed", "in_progress"),
    ("failed", "rolled_back"),
    ("completed", "in_progress"),
    ("completed", "rolled_back"),
}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(JobStatus, JobStatus)))
def test_every_pair_of_statuses_is_allowed_or_refused_with_a_reason(source: JobStatus, target: JobStatus) -> None:
    why_not = refusal(source, target)
    if (source, target) in ALLOWED:
        assert why_not is None
    else:
        assert why_not


def test_the_table_knows_every_status() -> None:
    assert set(TRANSITIONS) == set(JobStatus)


def test_a_running_job_is_halted_before_it_is_rolled_back() -> None:
    assert "halt it first" in str(refusal(JobStatus.IN_PROGRESS, JobStatus.ROLLED_BACK))


def test_a_ledger_balances_only_if_every_row_is_in_one_bin() -> None:
    skipped = {"contact_not_found": 2, "duplicate_external_id": 3}
    ledger = Ledger(10, 4, skipped, 1, documents=7)
    assert (ledger.accounted, ledger.balanced, ledger.documents_expected) == (10, True, 7)
    assert (ledger.accuracy_pct, ledger.documents_agree) == (87.5, True)  # the failed row should have become one, too
    assert ledger.failure_rate == pytest.approx(0.1)
    assert not Ledger(11, 4, skipped, 1).balanced
    assert not Ledger(9, 4, skipped, 1).balanced
    assert [Ledger(rows, 4, skipped, 1).deleted for rows in (11, 10, 7)] == [0, 0, 3]


def test_foreign_dead_letters_are_no_source_rows_but_failures() -> None:
    ledger = Ledger(10, 10, {}, 0, foreign=10)
    assert ledger.balanced
    assert ledger.failure_rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("migrated", "documents", "accuracy"),
    [
        (100_000, 99_999, 99.99),  # never rounded up
        (3, 3, 100.0),
        (100, 101, 101.0),
        (0, 0, 100.0),
        (0, 1, 0.0),
        (5, None, None),
    ],
)
def test_accuracy_says_all_only_when_it_is_all(migrated: int, documents: int | None, accuracy: float | None) -> None:
    assert Ledger(migrated, migrated, documents=documents).accuracy_pct == accuracy


def test_a_right_number_of_documents_of_the_wrong_rows_is_not_all_of_them() -> None:
    ledger = Ledger(3, 3, documents=3, ids_agree=False)
    assert (ledger.documents_agree, ledger.accuracy_pct) == (False, 99.99)
    assert Ledger(3, 3, documents=4, ids_agree=False).accuracy_pct == 133.33
    assert Ledger(3, 3, documents=3, ids_agree=True).accuracy_pct == 100.0


def test_an_empty_ledger_is_balanced_and_has_no_failures() -> None:
    assert Ledger(0, 0).balanced
    assert Ledger(0, 0).failure_rate == 0.0


def test_progress_is_cut_and_never_over_100() -> None:
    assert progress_pct(0, 0) == 100.0
    assert progress_pct(99_999, 100_000) == 99.99
    assert progress_pct(12, 10) == 100.0
    assert percent(1, 3) == 33.33
