"""The authoritative check of a run: every source row in exactly one bin, and the documents that there should be."""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ops.jobs.jobs import Ledger
from schemas.collections import ACTIVITY_LOGS
from schemas.identity import EXTERNAL_ID_PREFIX, SOURCE_TAG, audit_id_of, external_id_of
from sink.database import Documents
from sink.identity import Identities, with_ids
from sink.indexes import COMPANY_SOURCE_TAG, UNIQUE_EXTERNAL_ID
from sink.progress import RunTotals
from sink.rollback import documents_of

SEGMENT_IDS = 10_000
RAW_DOCUMENTS = 20_000  # read at once
# In a document of nothing else: only a whole text of the one form that we write is an id.
_ID_IN_RAW = re.compile(
    rb"\x02external_id\x00.{4}%b(0|-?[1-9]\d{0,18})\x00\x00(?!\x00)" % EXTERNAL_ID_PREFIX.encode(), re.DOTALL
)
NAMED_MAX = 100  # ids that a mismatch names; beyond it the count says enough


def validate(database: Any, company_sso_id: str, totals: RunTotals, source_rows: int | Callable[[], int]) -> Ledger:
    """Return the ledger of a run whose every partition has ended; documents are counted by index.

    `totals` are the sinks' counts, `source_rows` is the source's own COUNT in scope up to `top`. A run over part of the
    history only leaves the account with more documents than it accounts for; its `accuracy_pct` is then over 100.
    """
    return Ledger(
        source_rows=source_rows if isinstance(source_rows, int) else source_rows(),
        migrated=totals.migrated,
        skipped=dict(totals.skipped),
        failed=totals.failed_total,
        foreign=totals.foreign_total,
        documents=documents_of(database, company_sso_id),
    )


def documents_with(database: Any, company_sso_id: str, audit_ids: Sequence[int]) -> int:
    """Return how many of these rows have a document of ours."""
    logs: Documents = database[ACTIVITY_LOGS]
    found = 0
    for segment in _segments(audit_ids, SEGMENT_IDS):
        names = [external_id_of(audit_id) for audit_id in segment]
        query = {"company_sso_id": company_sso_id, "external_id": {"$in": names}, "source_tag": SOURCE_TAG}
        found += logs.count_documents(query, hint=UNIQUE_EXTERNAL_ID.name)
    return found


def documents_since(database: Any, company_sso_id: str, cutoff: dt.datetime) -> int:
    """Return how many documents of ours are of rows created at or after `cutoff`; documents have milliseconds."""
    logs: Documents = database[ACTIVITY_LOGS]
    first = cutoff.replace(microsecond=cutoff.microsecond // 1000 * 1000)
    query = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG, "timestamp": {"$gte": first}}
    return logs.count_documents(query, hint=COMPANY_SOURCE_TAG.name)


def identities_since(database: Any, company_sso_id: str, cutoff: dt.datetime | None, shift: int) -> Identities:
    """Return which rows have a document of ours, of all rows or of those created at or after `cutoff`.

    Read in the order in which the documents lie on disk, in bounded memory (decision 55).
    """
    query: dict[str, Any] = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    if cutoff is not None:
        query["timestamp"] = {"$gte": cutoff.replace(microsecond=cutoff.microsecond // 1000 * 1000)}
    return _identities(database, query, COMPANY_SOURCE_TAG.name, shift, {})


def identities_with(database: Any, company_sso_id: str, audit_ids: Sequence[int], shift: int) -> Identities:
    """Return which of these rows have a document of ours."""
    found: Identities = {}
    for segment in _segments(audit_ids, SEGMENT_IDS):
        names = [external_id_of(audit_id) for audit_id in segment]
        query = {"company_sso_id": company_sso_id, "external_id": {"$in": names}, "source_tag": SOURCE_TAG}
        found = _identities(database, query, UNIQUE_EXTERNAL_ID.name, shift, found)
    return found


def _identities(database: Any, query: dict[str, Any], index: str, shift: int, found: Identities) -> Identities:
    logs: Documents = database[ACTIVITY_LOGS]
    batches: Any = logs.find_raw_batches(query, {"_id": 0, "external_id": 1}, hint=index, batch_size=RAW_DOCUMENTS)
    for batch in batches:
        found = with_ids(found, [int(digits) for digits in _ID_IN_RAW.findall(batch)], shift)
    return found


@dataclass(frozen=True, slots=True)
class IdComparison:
    """The source's ids against the documents'. The ids are the lowest of their kind, `NAMED_MAX` at most.

    A row without a document may be skipped, failed or lost: which of these is not stored by id, so `without_document`
    names the candidates, and only its count can be held against the ledger (`missing`). A document without a row is
    always wrong.
    """

    without_document: tuple[int, ...]
    without_document_total: int
    without_row: tuple[str, ...]  # their external_id, or their _id if they have none
    without_row_total: int

    def missing(self, ledger: Ledger) -> int:
        """Return how many rows should have a document and have none; negative if some have one that should not."""
        skipped_or_failed = ledger.source_rows - ledger.documents_expected
        return self.without_document_total - skipped_or_failed


def compare_ids(
    database: Any,
    company_sso_id: str,
    source_ids: Iterable[int],
    rows_with: Callable[[Sequence[int]], Iterable[int]],
    *,
    segment_ids: int = SEGMENT_IDS,
) -> IdComparison:
    """Return which ids are on one side only, at bounded memory: both sides are read in segments, by index.

    `source_ids` are all ids in scope, in any order, each once; `rows_with` returns those of some ids that are in scope.
    """
    logs: Documents = database[ACTIVITY_LOGS]
    absent: list[int] = []
    absent_total = 0
    for segment in _segments(source_ids, segment_ids):
        wanted = {external_id_of(audit_id): audit_id for audit_id in segment}
        query = {"company_sso_id": company_sso_id, "external_id": {"$in": list(wanted)}}
        found = logs.find(query, {"_id": 0, "external_id": 1}, hint=UNIQUE_EXTERNAL_ID.name)
        there = {document["external_id"] for document in found}
        gone = sorted(audit_id for external_id, audit_id in wanted.items() if external_id not in there)
        absent_total += len(gone)
        absent = sorted([*absent, *gone])[:NAMED_MAX]
    extra: list[str] = []
    extra_total = 0
    ours = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    documents = logs.find(ours, {"external_id": 1}, hint=COMPANY_SOURCE_TAG.name)
    for batch in _segments(documents, segment_ids):
        ids = {document["_id"]: audit_id_of(document.get("external_id")) for document in batch}
        rows = set(rows_with([audit_id for audit_id in ids.values() if audit_id is not None]))
        names = [str(d.get("external_id") or d["_id"]) for d in batch if ids[d["_id"]] not in rows]
        extra_total += len(names)
        extra = [*extra, *names][:NAMED_MAX]
    return IdComparison(tuple(absent), absent_total, tuple(extra), extra_total)


def _segments(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    segment: list[Any] = []
    for item in items:
        segment.append(item)
        if len(segment) == size:
            yield segment
            segment = []
    if segment:
        yield segment
