"""The one in-place update: adds metadata that association logs lack, and changes nothing that is there.

A batch of rows costs one read by external_id, at most one read for each category and action among the rows that are
left, by match key, and one bulk of updates by `_id`. The server merges what an update adds under what is there when it
is applied: whatever another writer has added between the read and the write stays. So a patch can be repeated, and
dying anywhere costs nothing: what has been added is found complete the next time.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from sink.database import Document, Documents
from sink.documents import scrub
from sink.indexes import ENRICHMENT_MATCH, UNIQUE_EXTERNAL_ID
from sink.match_key import Association, MatchKey, Outcome, agree, candidates, key_of, match_key, missing
from sink.writer import WriteConcernUnmetError

log = logging.getLogger(__name__)

WINDOW_MS = 2_000  # how far a live log's time may be from its row's
FIELDS = {"external_id": 1, "customer_id": 1, "category": 1, "action": 1, "timestamp": 1, "metadata": 1}
# A live feed's documents may hold dates that Python's own type does not, and texts that are no UTF-8.
TOLERANT: CodecOptions[Document] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, unicode_decode_error_handler="replace"
)


class _Patch(NamedTuple):
    """What one document is to be given, for the sake of the row at `position`."""

    position: int
    document_id: Any
    fields: dict[str, Any]


class Enricher:
    """Patches one account's documents."""

    def __init__(
        self, logs: Documents, company_sso_id: str, *, window_ms: int = WINDOW_MS, dry_run: bool = False
    ) -> None:
        """`logs` is `activity_logs`; with `dry_run` nothing is written, and `patched` is what would be."""
        self._logs = logs.with_options(codec_options=TOLERANT)
        self._account = company_sso_id
        self._window_ms = window_ms
        self._dry_run = dry_run

    def patch(self, rows: Sequence[Association]) -> list[Outcome]:
        """Add what the rows' documents lack; return what became of each row, in their order.

        Raises pymongo's error, or WriteConcernUnmetError, when the answer is unknown: then patch the batch again.
        """
        outcomes: list[Outcome] = [Outcome.NO_DOCUMENT] * len(rows)
        found = self._by_external_id(rows)
        left = [at for at, row in enumerate(rows) if row.external_id not in found]
        by_key = self._by_match_key([rows[at] for at in left])
        targets: dict[bytes, list[int]] = defaultdict(list)  # document's _id -> positions of the rows that found it
        documents: dict[bytes, Document] = {}
        for at, row in enumerate(rows):
            fitting = [found[row.external_id]] if row.external_id in found else self._fitting(row, by_key)
            if len(fitting) > 1:
                outcomes[at] = Outcome.ENRICH_AMBIGUOUS
            elif fitting:
                own_id = _hashable(fitting[0]["_id"])
                targets[own_id].append(at)
                documents[own_id] = fitting[0]
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
        return outcomes

    def _fitting(self, row: Association, by_key: Mapping[MatchKey, Sequence[tuple[int, Document]]]) -> list[Document]:
        return candidates(row, by_key, self._window_ms)

    def _by_external_id(self, rows: Sequence[Association]) -> dict[str, Document]:
        """Return the rows' own documents, whoever wrote them."""
        wanted = [row.external_id for row in rows]
        if not wanted:
            return {}
        query = {"company_sso_id": self._account, "external_id": {"$in": wanted}}
        return {found["external_id"]: found for found in self._logs.find(query, FIELDS, hint=UNIQUE_EXTERNAL_ID.name)}

    def _by_match_key(self, rows: Iterable[Association]) -> dict[MatchKey, list[tuple[int, Document]]]:
        """Return the documents without external_id that have a row's match key, or may have, with their times."""
        groups: dict[tuple[str, str], list[Association]] = defaultdict(list)
        wanted: set[MatchKey] = set()
        for row in rows:
            if (key := match_key(row)) is not None:
                groups[row.category, row.action].append(row)
                wanted.add(key)
        by_key: dict[MatchKey, list[tuple[int, Document]]] = defaultdict(list)
        for (category, action), group in groups.items():
            first = min(row.timestamp_ms for row in group) - self._window_ms
            last = max(row.timestamp_ms for row in group) + self._window_ms
            query = {
                "company_sso_id": self._account,
                "customer_id": {"$in": list({row.customer_id for row in group})},
                "category": category,
                "action": action,
                "timestamp": {"$gte": DatetimeMS(first), "$lte": DatetimeMS(last)},
                "external_id": None,  # true where there is none
            }
            for document in self._logs.find(query, FIELDS, hint=ENRICHMENT_MATCH.name):
                if (key := key_of(document)) in wanted and key is not None:
                    by_key[key].append((int(document["timestamp"]), document))
        return by_key

    def _write(self, patches: Sequence[_Patch], outcomes: list[Outcome]) -> None:
        """Write the patches, and look once more at the documents where one has met something else than was read."""
        updates = [UpdateOne({"_id": patch.document_id}, _added(patch.fields)) for patch in patches]
        left = list(patches)
        try:
            # By `_id` and nothing else: that takes a server's shortest way, a third of what one more condition costs.
            if self._logs.bulk_write(updates, ordered=False).modified_count == len(updates):
                return
        except BulkWriteError as error:
            if error.details["writeConcernErrors"]:
                raise WriteConcernUnmetError("the write concern was not met", "check the replica set") from None
            for refusal in error.details["writeErrors"]:
                outcomes[patches[int(refusal["index"])].position] = Outcome.REFUSED
                log.warning("code %s: %s", refusal.get("code"), scrub(str(refusal.get("errmsg", ""))))
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
                outcomes[patch.position] = Outcome.COMPLETE  # by somebody else


def _added(fields: dict[str, Any]) -> list[Document]:
    """Return the update that adds fields to `metadata`, behind and under what is there; what is no document stays."""
    merged = {"$mergeObjects": ["$metadata", {"$literal": fields}, "$metadata"]}
    is_document = {"$in": [{"$type": "$metadata"}, ["missing", "object"]]}
    return [{"$set": {"metadata": {"$cond": [is_document, merged, "$metadata"]}}}]


def _hashable(document_id: Any) -> bytes:
    """Return an `_id` as bytes: a live feed's can be of any type, a document included."""
    return bson.encode({"": document_id})
