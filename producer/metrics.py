"""The snapshot's counters, for its log lines and its metrics."""

import time
from dataclasses import dataclass, field

from producer.messages import Encoded, Page
from schemas.process.metrics import Value


@dataclass(slots=True)
class Counters:
    """Since the start of this process; the checkpoint has the sums over all restarts."""

    rows: int = 0  # published and confirmed
    pages: int = 0
    dead_letters: int = 0  # of the rows: published as dead letters
    gaps_noted: int = 0
    late_rows: int = 0  # of the rows: found in gaps by the second read
    rows_read: int = 0
    read_s: float = 0.0  # in the source's page queries
    throttle_wait_s: float = 0.0
    cursors: dict[int, int] = field(default_factory=dict)  # by id range: highest audit id published and saved
    cursor_saved_at: float = 0.0  # time.time(); 0: none yet
    top_audit_id: int = 0

    def count(self, page: Page, encoded: Encoded, *, late: bool = False) -> None:
        """Add a page whose delivery is confirmed and whose cursor is saved."""
        rows = len(encoded.records)
        self.pages += 1
        self.rows += rows
        self.dead_letters += encoded.dead_letters
        self.gaps_noted += len(page.gaps)
        if late:
            self.late_rows += rows

    def saved(self, id_range: int, cursor: int) -> None:
        """Record a range's saved cursor."""
        self.cursors[id_range] = cursor
        self.cursor_saved_at = time.time()

    def values(self) -> list[Value]:
        """Return all counters under their metric names."""
        found = [
            Value("rows_read_total", self.rows_read),
            Value("rows_published_total", self.rows),
            Value("rows_late_total", self.late_rows),
            Value("rows_unpublishable_total", self.dead_letters),
            Value("pages_total", self.pages),
            Value("page_read_seconds_total", self.read_s),
            Value("throttle_wait_seconds_total", self.throttle_wait_s),
            Value("top_audit_id", self.top_audit_id),
        ]
        if self.cursors:
            found += [
                Value("cursor_audit_id", max(list(self.cursors.values()))),
                Value("cursor_saved_timestamp_seconds", self.cursor_saved_at),
            ]
        return found
