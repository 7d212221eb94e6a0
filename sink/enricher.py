"""The only in-place update: adds metadata that association logs lack, and changes no existing value.

A batch of rows costs one read by external_id and one update by `_id`, and for the remaining rows one read by match key
and one more update. The server merges an update's fields under those present when it is applied: values that another
writer has added between the read and the write stay. So a patch is idempotent, and a crash costs nothing.

Batches can be patched concurrently, by threads: a document found by external_id belongs to one row. Only by match key
can two batches find the same document, so this part of a batch waits for its turn.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateMany, UpdateOne
from pymongo.errors import BulkWriteError

from schemas.process.mongodb import Document, Documents
from sink.documents import scrub
from sink.indexes import ENRICHMENT_MATCH, UNIQUE_EXTERNAL_ID
from sink.match_key import Association, MatchKey, Outcome, agree, candidates, key_of, match_key, missing
from sink.writer import require_answer

log = logging.getLogger(__name__)

WINDOW_MS = 2_000  # how far a live log's time may be from its row's
STATEMENT_BYTES_MAX = 1024 * 1024  # of the fields in one update; the server's limit is 16 MiB, names have none
OWN_FIELDS = {"external_id": 1, "category": 1, "action": 1, "metadata": 1}
FIELDS = {**OWN_FIELDS, "customer_id": 1, "timestamp": 1}
BY_ID = "_id_"  # every collection's own index
# A live feed's documents may have dates beyond Python's range, and texts that are not UTF-8.
TOLERANT: CodecOptions[Document] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, unicode_decode_error_handler="replace"
)


class _Patch(NamedTuple):
    """The fields to add to one document, for the row at `position`."""

    position: int
    document_id: Any
    fields: dict[str, Any]


class Enricher:
    """Patches one account's documents."""

    def __init__(
        self, logs: Documents, company_sso_id: str, *, window_ms: int = WINDOW_MS, dry_run: bool = False
    ) -> None:
        """`logs` is `activity_logs`; with `dry_run` nothing is written, and `patched` counts what would be."""
        self._logs = logs.with_options(codec_options=TOLERANT)
        self._account = company_sso_id
        self._window_ms = window_ms
        self._dry_run = dry_run

    def patch(self, rows: Sequence[Association], turn: Callable[[], object] = lambda: None) -> list[Outcome]:
        """Add what the rows' documents lack; return the outcome of each row, in their order.

        With concurrent batches, `turn` returns when the preceding ones are done, and raises if one of them has failed.
        Raises pymongo's error, or NotAnsweredError, when the answer is unknown: then patch the batch again.
        """
        outcomes: list[Outcome] = [Outcome.NO_DOCUMENT] * len(rows)
        own = self._by_external_id(rows)
        left: list[int] = []
        fitting: dict[int, list[Document]] = {}
        for at, row in enumerate(rows):
            if (document := own.get(row.external_id)) is not None:
                fitting[at] = [document]
            elif match_key(row) is not None:
                left.append(at)
        self._patch(rows, fitting, outcomes)
        if left:
            turn()
            by_key = self._by_match_key([rows[at] for at in left])
            self._patch(rows, {at: candidates(rows[at], by_key, self._window_ms) for at in left}, outcomes)
        return outcomes

    def _patch(
        self, rows: Sequence[Association], fitting: Mapping[int, Sequence[Document]], outcomes: list[Outcome]
    ) -> None:
        """Patch the documents that match rows, by the rows' positions."""
        targets: dict[ObjectId | bytes, list[int]] = {}  # document's _id -> positions of the rows that found it
        documents: dict[ObjectId | bytes, Document] = {}
        for at, found in fitting.items():
            if len(found) > 1:
                outcomes[at] = Outcome.ENRICH_AMBIGUOUS
            elif found:
                own_id = _hashable(found[0]["_id"])
                targets.setdefault(own_id, []).append(at)
                documents[own_id] = found[0]
        patches = []
        for own_id, claims in targets.items():
            if len(claims) > 1 and not agree(rows[at] for at in claims):
                for at in claims:
                    outcomes[at] = Outcome.ENRICH_AMBIGUOUS
                continue
            fields = missing(rows[claims[0]], documents[own_id])
            for at in claims:
                outcomes[at] = Outcome.CONFLICT if fields is None else Outcome.COMPLETE
            if fields:
                outcomes[claims[0]] = Outcome.PATCHED
                patches.append(_Patch(claims[0], documents[own_id]["_id"], fields))
        if patches and not self._dry_run:
            self._write(patches, outcomes)

    def _by_external_id(self, rows: Sequence[Association]) -> dict[str, Document]:
        """Return the rows' documents by external_id, of any writer."""
        wanted = [row.external_id for row in rows]
        if not wanted:
            return {}
        query = {"company_sso_id": self._account, "external_id": {"$in": wanted}}
        return {
            found["external_id"]: found for found in self._logs.find(query, OWN_FIELDS, hint=UNIQUE_EXTERNAL_ID.name)
        }

    def _by_match_key(self, rows: Sequence[Association]) -> dict[MatchKey, list[tuple[int, Document]]]:
        """Return the documents without external_id that have a row's match key, with their times.

        One query for all rows: an index step for each customer, category and action is cheap compared to a query.
        """
        wanted = {match_key(row) for row in rows}
        times = [row.timestamp_ms for row in rows]
        query = {
            "company_sso_id": self._account,
            "customer_id": {"$in": list({row.customer_id for row in rows})},
            "category": {"$in": list({row.category for row in rows})},
            **ENRICHMENT_MATCH.partial,  # exactly as in the index: for fewer actions, a server scans all of it
            "timestamp": {
                "$gte": DatetimeMS(min(times) - self._window_ms),
                "$lte": DatetimeMS(max(times) + self._window_ms),
            },
            "external_id": None,  # matches a missing field, too
        }
        by_key: dict[MatchKey, list[tuple[int, Document]]] = defaultdict(list)
        for document in self._logs.find(query, FIELDS, hint=ENRICHMENT_MATCH.name):
            if (key := key_of(document)) is not None and key in wanted:
                by_key[key].append((int(document["timestamp"]), document))
        return by_key

    def _write(self, patches: Sequence[_Patch], outcomes: list[Outcome]) -> None:
        """Write the patches, and read the documents again if one was changed since it was read."""
        try:
            if self._logs.bulk_write([*_statements(patches)], ordered=False).modified_count == len(patches):
                return
        except BulkWriteError as error:
            require_answer(error)
            self._write_one_by_one(patches, outcomes)  # a refused one has stopped its whole statement
        left = [patch for patch in patches if outcomes[patch.position] is not Outcome.REFUSED]
        query = {"_id": {"$in": [patch.document_id for patch in left]}}
        now = {_hashable(found["_id"]): found.get("metadata") for found in self._logs.find(query, {"metadata": 1})}
        for patch in left:
            own_id = _hashable(patch.document_id)
            metadata = now.get(own_id)
            if own_id not in now:
                outcomes[patch.position] = Outcome.NO_DOCUMENT
            elif not isinstance(metadata, dict):
                outcomes[patch.position] = Outcome.CONFLICT
            elif all(metadata.get(key) != value for key, value in patch.fields.items()):
                outcomes[patch.position] = Outcome.COMPLETE  # by another writer

    def _write_one_by_one(self, patches: Sequence[_Patch], outcomes: list[Outcome]) -> None:
        """Write each patch in a statement of its own, and mark those that are refused."""
        try:
            self._logs.bulk_write([_statement(patch) for patch in patches], ordered=False)
        except BulkWriteError as error:
            require_answer(error)
            for refusal in error.details["writeErrors"]:
                outcomes[patches[int(refusal["index"])].position] = Outcome.REFUSED
                log.warning("code %s: %s", refusal.get("code"), scrub(str(refusal.get("errmsg", ""))))


def _statements(patches: Sequence[_Patch]) -> Iterator[UpdateMany]:
    """Yield updates that write the patches: as few as the size of a statement allows."""
    begin = size = 0
    for at, patch in enumerate(patches):
        own_size = len(bson.encode(patch.fields))
        if at > begin and size + own_size > STATEMENT_BYTES_MAX:
            yield _statement_of_many(patches[begin:at])
            begin, size = at, 0
        size += own_size
    yield _statement_of_many(patches[begin:])


def _statement_of_many(patches: Sequence[_Patch]) -> UpdateMany:
    """Return one update of many documents: two thirds of the server's work for as many single updates.

    It has two constants that the server parses once: the ids, and at the same positions the fields.
    """
    ids = [patch.document_id for patch in patches]
    nothing: Document = {}  # last, at index -1: for a document that is not in `ids`
    fields = {"$literal": [*(patch.fields for patch in patches), nothing]}
    own = {"$arrayElemAt": [fields, {"$indexOfArray": [{"$literal": ids}, "$_id"]}]}
    return UpdateMany({"_id": {"$in": ids}}, _added(own), hint=BY_ID)


def _statement(patch: _Patch) -> UpdateOne:
    # By `_id` only: the server's fast path, a third of the cost with one more condition.
    return UpdateOne({"_id": patch.document_id}, _added({"$literal": patch.fields}))


def _added(fields: Document) -> list[Document]:
    """Return the update that adds an expression's fields to `metadata`, after and without replacing existing ones.

    A `metadata` that is not a document stays as it is.
    """
    merged = {"$mergeObjects": ["$metadata", fields, "$metadata"]}
    is_document = {"$in": [{"$type": "$metadata"}, ["missing", "object"]]}
    return [{"$set": {"metadata": {"$cond": [is_document, merged, "$metadata"]}}}]


def _hashable(document_id: Any) -> ObjectId | bytes:
    """Return a hashable form of an `_id`: a live feed's can be of any type, a document included."""
    return document_id if type(document_id) is ObjectId else bson.encode({"": document_id})
