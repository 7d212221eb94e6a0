"""Pure: the progress of a snapshot, what is left of it, and how that is split among readers.

A snapshot is a set of id ranges. Each is read in ascending order by one reader at a time and published under its own
number, so that on every partition the ids of one number rise at their first occurrence, whatever is repeated. By that
invariant processors and sink deduplicate and count (DECISIONS.md, decision 8).
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from schemas.errors import CursorDidNotAdvanceError

Gap = tuple[int, int]  # first and last of consecutive ids that had no row, of any type or account

EARLIEST = datetime(1, 1, 1, tzinfo=UTC)  # Python's minimum; PostgreSQL has earlier ones, and -infinity


@dataclass(frozen=True, slots=True)
class IdRange:
    """The ids in (first, last], read up to and including `cursor`."""

    id_range: int  # its number, in every record of it
    first: int
    cursor: int
    last: int
    rows: int = 0  # published and confirmed, each counted once
    reach: int = 0  # no id above it has been published under this number
    gaps: tuple[Gap, ...] = ()  # ids without a row when they were read, to be read again before the end
    gaps_to: int = 0  # up to here `gaps` is complete; saved before the rows around them are published
    late: bool = False  # the second read of the other ranges' gaps

    @property
    def done(self) -> bool:
        """Whether the whole range is read."""
        return self.cursor >= self.last

    @property
    def left(self) -> int:
        """The number of ids left to read."""
        return max(0, self.last - self.cursor)


def cutoff(date_range_start: datetime | None, earliest_row: datetime | None, now: datetime) -> datetime:
    """Return COALESCE(date_range_start, MIN(created_at)); `now` for an account without a row."""
    if date_range_start is not None:
        return date_range_start
    return earliest_row if earliest_row is not None else now


def advance(range_: IdRange, page_end: int, rows: int) -> IdRange:
    """Return the range after a page that was scanned up to `page_end` and of which `rows` were published.

    Raises CursorDidNotAdvanceError.
    """
    if not range_.cursor < page_end <= range_.last:
        raise CursorDidNotAdvanceError(range_.cursor, page_end)
    return replace(range_, cursor=page_end, rows=range_.rows + rows)


def announce(range_: IdRange, ahead: IdRange) -> IdRange:
    """Return a range as it has to be saved before the rows between it and `ahead`, its next state, are published."""
    return replace(range_, reach=max(range_.reach, ahead.cursor), gaps=ahead.gaps, gaps_to=ahead.gaps_to)


def note_gaps(range_: IdRange, found: Iterable[Gap], scanned_to: int) -> IdRange:
    """Return the range with the gaps found between `gaps_to` and `scanned_to`; known gaps stay as they are.

    A known gap may have been filled since. Its row still belongs to the late range, as rows above it may have been
    published already: under one number, ids must rise.
    """
    if scanned_to <= range_.gaps_to:
        return range_
    known_to = max(range_.gaps_to, range_.first)
    new = [(max(low, known_to + 1), high) for low, high in clip(found, known_to, scanned_to)]
    return replace(range_, gaps=(*range_.gaps, *new), gaps_to=scanned_to)


def clip(gaps: Iterable[Gap], above: int, up_to: int) -> list[Gap]:
    """Return the parts of the gaps that lie in (above, up_to]."""
    return [(max(low, above + 1), min(high, up_to)) for low, high in gaps if high > above and low <= up_to]


def in_gaps(gaps: Sequence[Gap], audit_id: int) -> bool:
    """Return whether an id lies in one of the gaps, which are in ascending order."""
    at = bisect_right(gaps, audit_id, key=lambda gap: gap[0]) - 1
    return at >= 0 and audit_id <= gaps[at][1]


def all_gaps(ranges: Iterable[IdRange]) -> list[Gap]:
    """Return the gaps of all ranges in ascending order."""
    return sorted(gap for range_ in ranges for gap in range_.gaps)


def reconcile(ranges: Iterable[IdRange]) -> list[IdRange]:
    """Return the ranges except the late one, in ascending order and without overlaps.

    A split saves the new tail before it shortens the head; a crash in between leaves the head too long.
    """
    ordered = sorted((range_ for range_ in ranges if not range_.late), key=lambda range_: range_.first)
    return [
        replace(range_, last=min(range_.last, following.first)) if following else range_
        for range_, following in zip(ordered, [*ordered[1:], None], strict=False)
    ]


def next_number(ranges: Iterable[IdRange]) -> int:
    """Return the smallest number above all that are in use."""
    return max((range_.id_range for range_ in ranges), default=-1) + 1


def split(range_: IdRange, number: int, ids: Sequence[int]) -> tuple[IdRange, IdRange] | None:
    """Return a range as its head, which keeps the number, and a tail under a new number; None if it is too short.

    `ids` are ids with about the same number of rows between any two neighbours (empty: unknown), as ids may be spread
    unevenly. The tail begins above `reach` (published) and `gaps_to` (searched for gaps).
    """
    low = max(range_.cursor, range_.reach, range_.gaps_to)
    inside = [id_ for id_ in ids if low < id_ < range_.last]
    middle = inside[len(inside) // 2] if len(inside) > 1 else low + (range_.last - low) // 2
    if not low < middle < range_.last:
        return None
    head = replace(range_, last=middle)
    return head, IdRange(number, first=middle, cursor=middle, last=range_.last)


def share_out(ranges: Sequence[IdRange], readers: int) -> list[list[IdRange]]:
    """Return the unfinished ranges in at most `readers` groups of about the same number of ids."""
    lots: list[list[IdRange]] = [[] for _ in range(readers)]
    for range_ in sorted((range_ for range_ in ranges if not range_.done), key=lambda range_: -range_.left):
        min(lots, key=lambda lot: sum(member.left for member in lot)).append(range_)
    return [sorted(lot, key=lambda range_: range_.first) for lot in lots if lot]


def progress(ranges: Iterable[IdRange]) -> float:
    """Return the part of the ids that has been read, 0.0 to 1.0; below 1.0 until the end."""
    read = whole = 0
    for range_ in ranges:
        if not range_.late:
            read += range_.cursor - range_.first
            whole += range_.last - range_.first
    return read / whole if whole else 1.0
