"""When too many records have failed."""

import pytest

from sink.failure_rate import failure_rate, halt_reason, too_many_failed
from sink.progress import RunTotals


def totals(migrated: int, failed: int, foreign: int = 0) -> RunTotals:
    return RunTotals(migrated=migrated, failed={"a": failed}, foreign={"b": foreign})


@pytest.mark.parametrize(
    ("counted", "halts"),
    [
        (totals(0, 499), False),  # not a page yet
        (totals(0, 500), True),
        (totals(450, 50), False),  # a tenth is not more than a tenth
        (totals(449, 51), True),
        (totals(450, 0, 50), False),
        (totals(449, 0, 51), True),  # nobody can tell whose they are, yet they are failures
        (totals(0, 0), False),
    ],
)
def test_more_than_a_tenth_of_at_least_a_page(counted: RunTotals, halts: bool) -> None:
    assert too_many_failed(counted) is halts


def test_the_rate_is_of_the_whole_life_and_only_an_operator_raises_its_bound() -> None:
    assert too_many_failed(totals(600, 600))
    assert too_many_failed(totals(600, 600), 0.4)
    assert not too_many_failed(totals(600, 600), 0.5)
    assert failure_rate(totals(3, 1)) == 0.25
    assert failure_rate(totals(0, 0)) == 0.0


def test_the_reason_has_the_numbers_of_the_counts_and_changes_when_rows_are_repaired() -> None:
    assert halt_reason(totals(445, 57)) == "57 of 502 records failed, more than 10%"
    assert halt_reason(totals(400, 100, 100), 0.125) == "200 of 600 records failed, more than 12.5%"
    assert halt_reason(totals(500, 2)).startswith("2 of 502 records are failed, no more than 10% since others were re")
