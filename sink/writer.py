"""I/O: one unordered bulk write."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo import InsertOne
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure

from schemas.errors import ReplayError
from schemas.process.mongodb import Documents
from schemas.server_state import is_server_state
from sink.documents import BatchOutcome, Refusal, classify, is_sound, scrub
from sink.indexes import UNIQUE_EXTERNAL_ID

log = logging.getLogger(__name__)

# Codes with which a server refuses a whole command because of one document's content.
# BadValue, FailedToParse, Overflow (nested too deep), InvalidBSON, BSONObjectTooLarge
REFUSED_FOR_A_DOCUMENT = frozenset((2, 9, 15, 22, 10334))

UNSOUND = Refusal(22, "the document is not BSON that a server can read")  # InvalidBSON


class CountsDisagreeError(ReplayError):
    """The counts in the server's answer do not match what was sent; nothing of the batch is counted or committed."""


class NotAnsweredError(ReplayError):
    """The outcome of some documents is unknown because of the server's state. The batch is to be written again."""


class WriteConcernUnmetError(NotAnsweredError):
    """The documents were written, but the write concern was not met."""


class ServerStateError(NotAnsweredError):
    """Some documents were refused for the server's state, as by a mongos while a shard is unavailable."""


def write_batch(collection: Documents, documents: Sequence[bytes]) -> BatchOutcome:
    """Insert what is new; each document ends in exactly one of inserted, redelivered, duplicates, failed.

    `documents` are BSON with `_id`, none over the server's limit. A refused one is retried once. Idempotent. Raises
    pymongo's error or NotAnsweredError only when the outcome is unknown: then commit no offset.
    """
    outcome = _insert(collection, documents)
    if outcome.failed:
        outcome = _retry_failed(collection, documents, outcome)
    if outcome.duplicates:
        outcome = _own_among_duplicates(collection, documents, outcome)
    binned = len(outcome.inserted) + len(outcome.redelivered) + len(outcome.duplicates) + len(outcome.failed)
    if binned != len(documents):
        raise CountsDisagreeError(f"{len(documents)} documents were sent, {binned} are accounted for", "report this")
    return outcome


def _insert(collection: Documents, documents: Sequence[bytes]) -> BatchOutcome:
    """Insert once; return the outcome of every document."""
    if not documents:
        return BatchOutcome()
    sent = len(documents)
    # The bytes are sent unchanged; pymongo splits them by the server's message size.
    requests: list[Any] = [InsertOne(RawBSONDocument(document)) for document in documents]
    errors: list[dict[str, Any]] = []
    try:
        inserted = collection.bulk_write(requests, ordered=False).inserted_count
    except BulkWriteError as error:
        require_answer(error)
        inserted, errors = error.details["nInserted"], error.details["writeErrors"]
    except (AutoReconnect, OperationFailure) as error:
        if is_server_state(error):
            raise
        if isinstance(error, OperationFailure) and error.code in REFUSED_FOR_A_DOCUMENT:
            return _isolate(collection, documents, Refusal(error.code, scrub(error.args[0])))
        # A server may drop the connection after broken BSON, or report an internal error: taken for an outage, it would
        # be retried indefinitely.
        unsound = {position for position, document in enumerate(documents) if not is_sound(document)}
        if not unsound:
            raise
        return _without(collection, documents, unsound)
    outcome = classify(sent, errors, UNIQUE_EXTERNAL_ID.name)
    if inserted != len(outcome.inserted):
        raise CountsDisagreeError(
            f"{sent} documents were sent, {inserted} inserted and {len(errors)} refused", "report this"
        )
    return outcome


def require_answer(error: BulkWriteError) -> None:
    """Raise NotAnsweredError if the outcome of a document is unknown after a bulk write."""
    if error.details["writeConcernErrors"]:
        raise WriteConcernUnmetError("the write concern was not met", "check the replica set") from None
    for refusal in error.details["writeErrors"]:
        if is_server_state(refusal):
            why = scrub(str(refusal.get("errmsg", "")))
            raise ServerStateError(
                f"MongoDB does not accept writes at present (code {refusal['code']}: {why})",
                "check that every shard has a reachable primary",
            ) from None


def _isolate(collection: Documents, documents: Sequence[bytes], refusal: Refusal) -> BatchOutcome:
    """Insert the halves of a batch that was refused as a whole, until only the causing documents have failed."""
    if len(documents) == 1:
        return BatchOutcome(failed={0: refusal})
    half = len(documents) // 2
    left, right = _insert(collection, documents[:half]), _insert(collection, documents[half:])
    return BatchOutcome(
        left.inserted | {half + i for i in right.inserted},
        left.redelivered | {half + i for i in right.redelivered},
        left.duplicates | {half + i for i in right.duplicates},
        {**left.failed, **{half + i: refused for i, refused in right.failed.items()}},
    )


def _without(collection: Documents, documents: Sequence[bytes], unsound: set[int]) -> BatchOutcome:
    """Insert all except the unsound documents, which have failed."""
    sound = [position for position in range(len(documents)) if position not in unsound]
    outcome = _insert(collection, [documents[position] for position in sound])
    return BatchOutcome(
        frozenset(sound[i] for i in outcome.inserted),
        frozenset(sound[i] for i in outcome.redelivered),
        frozenset(sound[i] for i in outcome.duplicates),
        {**{sound[i]: refusal for i, refusal in outcome.failed.items()}, **dict.fromkeys(unsound, UNSOUND)},
    )


def _retry_failed(collection: Documents, documents: Sequence[bytes], outcome: BatchOutcome) -> BatchOutcome:
    """Retry each failed document once: a refusal that is in no list may have been temporary."""
    positions = sorted(position for position, refusal in outcome.failed.items() if refusal is not UNSOUND)
    if not positions:
        return outcome
    again = _insert(collection, [documents[position] for position in positions])
    return BatchOutcome(
        outcome.inserted | {positions[i] for i in again.inserted},
        outcome.redelivered | {positions[i] for i in again.redelivered},
        outcome.duplicates | {positions[i] for i in again.duplicates},
        {
            **{position: refusal for position, refusal in outcome.failed.items() if refusal is UNSOUND},
            **{positions[i]: refusal for i, refusal in again.failed.items()},
        },
    )


def _own_among_duplicates(collection: Documents, documents: Sequence[bytes], outcome: BatchOutcome) -> BatchOutcome:
    """Move to `redelivered` the duplicates whose stored document has the `_id` that was sent.

    A server names one of the violated indexes, which is not always `_id_`. The look-up uses the unique index and costs
    a tenth of what the refusal of the duplicates costs.
    """
    positions = sorted(outcome.duplicates)
    ids = [RawBSONDocument(documents[position])["_id"] for position in positions]
    ours = {found["_id"] for found in collection.find({"_id": {"$in": ids}}, {"_id": 1})}
    redelivered = {position for position, own_id in zip(positions, ids, strict=True) if own_id in ours}
    return replace(outcome, redelivered=outcome.redelivered | redelivered, duplicates=outcome.duplicates - redelivered)
