"""A job's counts: one set of totals, every row in one bin."""

from hypothesis import given
from hypothesis import strategies as st

from sink.job_counts import Move, Repaired, job_fields, present, repaired_by, repaired_in
from sink.progress import RunTotals

TOTALS = RunTotals(
    migrated=90,
    skipped={"x": 4, "duplicate_external_id": 1},
    failed={"a": 3, "b": 2},
    foreign={"c": 1},
    last_audit_id=9,
)


def test_all_counts_of_a_document_are_of_one_set_of_totals() -> None:
    assert job_fields(TOTALS, Repaired(), 200) == {
        "records_total": 200,
        "records_migrated": 90,
        "records_skipped": 5,
        "records_failed": 5,
        "records_foreign": 1,
        "records_repaired": 0,
        "skips_by_reason": {"x": 4, "duplicate_external_id": 1},
        "failures_by_cause": {"a": 3, "b": 2},
        "actors_fell_back": 0,
        "last_audit_id": 9,
        "progress_pct": 50.0,
    }


def test_a_row_that_came_after_the_source_was_counted_raises_the_total_and_no_progress_is_over_100() -> None:
    fields = job_fields(RunTotals(migrated=32), Repaired(), 31)
    assert (fields["records_total"], fields["records_migrated"], fields["progress_pct"]) == (32, 32, 100.0)


def test_a_repaired_row_moves_to_its_new_bin_and_is_counted_as_repaired() -> None:
    repaired = repaired_by([Move("a"), Move("a", None, fell_back=True), Move("b", "x")], TOTALS)
    assert repaired_in(repaired.as_document()) == repaired
    fields = job_fields(TOTALS, repaired, 100)
    assert (fields["records_migrated"], fields["skips_by_reason"]["x"], fields["failures_by_cause"]) == (
        92,
        5,
        {"a": 1, "b": 1},
    )
    assert (fields["records_failed"], fields["records_repaired"], fields["actors_fell_back"]) == (2, 3, 1)
    assert fields["progress_pct"] == 100.0


def test_no_more_rows_leave_a_cause_than_the_run_has_counted_there() -> None:
    repaired = repaired_by([Move("a")] * 5 + [Move("unknown")], TOTALS)
    assert (repaired.migrated, repaired.failed) == (3, {"a": 3})


COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 5), max_size=3)
MOVES = st.builds(Move, st.sampled_from("abcd"), st.sampled_from([None, "x", "y"]), st.booleans())


@given(st.integers(0, 9), COUNTS, COUNTS, st.lists(MOVES, max_size=20))
def test_moves_change_no_sum(migrated: int, skipped: dict[str, int], failed: dict[str, int], moves: list[Move]) -> None:
    totals = RunTotals(migrated=migrated, skipped=skipped, failed=failed)
    repaired = repaired_by(moves, totals)
    now = present(totals, repaired)
    assert now.accounted == totals.accounted
    assert min([0, *now.failed.values()]) == 0
    assert totals.failed_total - now.failed_total == repaired.total
    fields = job_fields(totals, repaired, 0)
    assert fields["records_skipped"] == sum(fields["skips_by_reason"].values())
    assert fields["records_failed"] == sum(fields["failures_by_cause"].values())
