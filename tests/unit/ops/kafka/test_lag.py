"""How many rows wait for the sink, where a record of outcomes has many."""

import pytest

from ops.kafka.lag import Committed, rows_waiting


@pytest.mark.parametrize(
    ("records", "metadata", "handled", "rows"),
    [
        (0, "100", 900, 0),  # the processors have handled markers that have no outcomes
        (2, "100", 900, 800),
        (2, "100", 50, 2),  # they commit a moment after their outcomes are there
        (2, "", 900, 2),  # by an older release, or where the runner has committed the beginning
        (2, "٣", 900, 2),
        (2, "100", None, 2),
    ],
)
def test_rows_are_told_by_the_replay_topics_offsets(
    records: int, metadata: str, handled: int | None, rows: int
) -> None:
    processors = None if handled is None else Committed(handled, "{}")
    assert rows_waiting(records, Committed(7, metadata), processors) == rows
