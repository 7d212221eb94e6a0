"""Which legacy document of the live feed is which row. Pure.

A legacy document has no external_id, so it is identified by the match key: customer, category, action, linked entity,
and a timestamp near the row's. Several rows can have one key within the tolerance (a deal saved twice in a second).
Each document matches one row: rows without another document are matched first, nearest in time first; a document that
is left over is an overlap.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

TAKEN_MAX = 10_000  # legacy documents remembered as taken: rows with one key come close together, not only on one page


class Expected(NamedTuple):
    """A row that should have become a document."""

    audit_id: int
    customer_id: str
    category: str
    action: str
    entity: Any  # linked_entity_id; None: a row about the person itself
    timestamp_ms: int
    has_document: bool  # one with its external_id


class Legacy(NamedTuple):
    """A document without an external_id; `entity` is None where it has none."""

    document_id: Any
    customer_id: str
    category: str
    action: str
    entity: Any
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Matched:
    """Legacy documents by the row that they match."""

    by_row: dict[int, Any]  # audit id -> document id


class Matcher:
    """Matches page after page; a document that was taken on an earlier page stays taken."""

    def __init__(self, tolerance_ms: int) -> None:
        """`tolerance_ms`: a document may be so much earlier or later than its row."""
        self._tolerance_ms = tolerance_ms
        self._taken: OrderedDict[Any, None] = OrderedDict()

    def match(self, rows: Sequence[Expected], documents: Iterable[Legacy]) -> Matched:
        """Return the documents that match rows of this page, one a row at most and one row each."""
        by_key: dict[tuple[str, str, str], list[Legacy]] = defaultdict(list)
        for document in documents:
            if document.document_id not in self._taken:
                by_key[document.customer_id, document.category, document.action].append(document)
        pairs = []
        for at, row in enumerate(rows):
            for document in by_key.get((row.customer_id, row.category, row.action), ()):
                distance = abs(document.timestamp_ms - row.timestamp_ms)
                if distance <= self._tolerance_ms and _same_entity(row.entity, document.entity):
                    # A document that names the entity is a better match than one that does not.
                    unsure = document.entity is None and row.entity is not None
                    pairs.append((row.has_document, unsure, distance, at, document))
        pairs.sort(key=lambda pair: pair[:4])
        by_row: dict[int, Any] = {}
        for *_, at, document in pairs:
            audit_id = rows[at].audit_id
            if audit_id not in by_row and document.document_id not in self._taken:
                by_row[audit_id] = document.document_id
                self._taken[document.document_id] = None
        while len(self._taken) > TAKEN_MAX:
            self._taken.popitem(last=False)
        return Matched(by_row)


def _same_entity(one: Any, other: Any) -> bool:
    """Return whether two ids may be the same record's: numbers or their digits; a document may lack it."""
    return other is None or str(one) == str(other)


def ranges(rows: Iterable[Expected], tolerance_ms: int) -> list[tuple[str, int, int]]:
    """Return (customer, from, to) in milliseconds that together hold every place where a row's document can be.

    The ranges of one customer do not overlap.
    """
    by_customer: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_customer[row.customer_id].append(row.timestamp_ms)
    found: list[tuple[str, int, int]] = []
    for customer_id, moments in by_customer.items():
        first = last = None
        for moment in sorted(moments):
            if last is not None and first is not None and moment - tolerance_ms > last:
                found.append((customer_id, first, last))
                first = None
            first = moment - tolerance_ms if first is None else first
            last = moment + tolerance_ms
        if first is not None and last is not None:
            found.append((customer_id, first, last))
    return found
