"""What the snapshot counts, for its log lines and its end report."""

from dataclasses import dataclass

from producer.messages import Encoded, Page


@dataclass(slots=True)
class Counters:
    """Since the start of this process; the checkpoint has the sums over all restarts."""

    rows: int = 0  # published and confirmed
    pages: int = 0
    dead_letters: int = 0  # of the rows: those published as what could be kept of them
    gaps_noted: int = 0
    late_rows: int = 0  # of the rows: found in gaps by the second look («holes filled»)

    def count(self, page: Page, encoded: Encoded, *, late: bool = False) -> None:
        """Add a page that is confirmed and saved."""
        rows = len(encoded.records)
        self.pages += 1
        self.rows += rows
        self.dead_letters += encoded.dead_letters
        self.gaps_noted += len(page.gaps)
        if late:
            self.late_rows += rows
