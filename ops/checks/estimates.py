"""Pure: estimates of a replay's duration and bytes; every number names its basis."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ops.checks.model import bytes_text, duration_text

FLOOR_ROWS_PER_S = 500  # the contract's; slower is out of it
# One producer, one processor and one sink with their servers on two cores made 6,700 rows/s (docs/performance-log.md);
# half of it, for a source and a network that are busy with other things.
ASSUMED_ROWS_PER_S = 3_000
ROWS_TO_MEASURE_MIN = 10_000  # a shorter run is mostly start-up
EVENT_OVERHEAD_BYTES = 150  # key, envelope and the short columns of a row on the replay topic
DOCUMENT_OVERHEAD_BYTES = 420  # an activity log beside its changes: actor, metadata, ids
CHANGES_GROWTH = 1.6  # field, label, from and to of every changed column, against the text in the source
INDEX_BYTES = 110  # of the three indexes that a document is in


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows per second and where that number comes from."""

    rows_per_s: float
    basis: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a replay of so many rows."""

    rows: int
    row_bytes: float
    rate: Rate
    topics_bytes: int  # replay and outcomes topics, one copy
    documents_bytes: int  # with their indexes, before the server's compression
    seconds: float
    seconds_at_floor: float

    def facts(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "rows": self.rows,
            "row_bytes": round(self.row_bytes),
            "rows_per_s": round(self.rate.rows_per_s),
            "basis": self.rate.basis,
            "seconds": round(self.seconds),
            "seconds_at_floor": round(self.seconds_at_floor),
            "topics_bytes": self.topics_bytes,
            "documents_bytes": self.documents_bytes,
        }

    def text(self) -> str:
        """Return it in one line."""
        return (
            f"{self.rows:,} rows take about {duration_text(self.seconds)} at {self.rate.rows_per_s:,.0f} rows/s"
            f" ({self.rate.basis}), {duration_text(self.seconds_at_floor)} at the floor of {FLOOR_ROWS_PER_S};"
            f" {bytes_text(self.topics_bytes)} on topics, up to {bytes_text(self.documents_bytes)} in MongoDB,"
            " before compression"
        )


def rate_of(runs: Iterable[tuple[int, datetime, datetime | None]]) -> Rate:
    """Return the rate of the newest run that was long enough; else the assumed one.

    `runs` are rows, start and end of finished runs, the newest first.
    """
    for rows, started_at, finished_at in runs:
        if finished_at is None or rows < ROWS_TO_MEASURE_MIN:
            continue
        seconds = (finished_at - started_at).total_seconds()
        if seconds > 0:
            return Rate(rows / seconds, f"the run of {started_at:%Y-%m-%d} over {rows:,} rows")
    return Rate(ASSUMED_ROWS_PER_S, "assumed: half of what two cores have done, docs/performance.md")


def estimate(rows: int, row_bytes: float, rate: Rate) -> Estimate:
    """Return the estimate of a replay of `rows`, of `row_bytes` text each (changes and comment)."""
    event, document = row_bytes + EVENT_OVERHEAD_BYTES, row_bytes * CHANGES_GROWTH + DOCUMENT_OVERHEAD_BYTES
    return Estimate(
        rows=rows,
        row_bytes=row_bytes,
        rate=rate,
        topics_bytes=round(rows * (event + document)),
        documents_bytes=round(rows * (document + INDEX_BYTES)),
        seconds=rows / max(rate.rows_per_s, 1e-9),
        seconds_at_floor=rows / FLOOR_ROWS_PER_S,
    )
