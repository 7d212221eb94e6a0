"""When too many records have failed."""

import pytest

from sink.halting import Baseline, failure_rate, too_many_failed
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
    assert too_many_failed(counted, Baseline()) is halts


def test_what_failed_before_the_resume_is_forgiven() -> None:
    assert not too_many_failed(totals(600, 600), Baseline(failed=600, seen=700))
    assert too_many_failed(totals(600, 700), Baseline(failed=600, seen=700))
    assert failure_rate(totals(1, 1), Baseline(failed=1, seen=2)) == 0.0
