"""Pure: checks of documents, and the server's answer -> the outcome of each document."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import bson

BSON_LENGTH_BYTES = 4
BSON_BYTES_MIN = 5  # an empty document
DEPTH_MAX = 180  # levels of nesting that MongoDB stores
DUPLICATE_KEY = 11000
PRIMARY_KEY_INDEX = "_id_"
_INDEX_IN_MESSAGE = re.compile(r" index: (\S+)")
# A server's message has values of a document inside quotes, braces or brackets; they must not be logged.
_VALUES_IN_MESSAGE = re.compile(r"\{.*\}|\[.*\]|\"[^\"]*\"|'[^']*'|\{.*$|\[.*$|\"[^\"]*$|'[^']*$", re.DOTALL)
MESSAGE_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server refused one document; `message` has none of the document's values."""

    code: int
    message: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"code {self.code}: {self.message}"


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The outcome of each document of a batch, by position. Every position is in exactly one of the four."""

    inserted: frozenset[int] = frozenset()
    redelivered: frozenset[int] = frozenset()  # written by this run before
    duplicates: frozenset[int] = frozenset()  # another writer's document has this external_id
    failed: Mapping[int, Refusal] = field(default_factory=dict)


def is_whole(document: bytes) -> bool:
    """Return whether the bytes have a BSON document's length and end; the content is not checked."""
    return (
        len(document) >= BSON_BYTES_MIN
        and int.from_bytes(document[:BSON_LENGTH_BYTES], "little") == len(document)
        and document[-1] == 0
    )


def is_sound(document: bytes) -> bool:
    """Return whether a server can read the BSON document: every field is complete, nesting is within the limit.

    Costs a full decode; only for a suspicious document.
    """
    try:
        level: list[Any] = [bson.decode(document)]
    except (bson.errors.InvalidBSON, RecursionError):
        return False
    for _ in range(DEPTH_MAX):
        values = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return True
    return False


class AccountCheck:
    """Checks whether a document is this account's; fast if the account is the first field."""

    def __init__(self, company_sso_id: str) -> None:
        """`company_sso_id` is the account."""
        self._company_sso_id = company_sso_id
        # The processors write company_sso_id first, so a document starts like one with this field alone.
        self.begin = bson.encode({"company_sso_id": company_sso_id})[BSON_LENGTH_BYTES:-1]
        self._end = BSON_LENGTH_BYTES + len(self.begin)

    def __call__(self, document: bytes) -> bool:
        """Return whether `company_sso_id` of the BSON document is the account."""
        if document[BSON_LENGTH_BYTES : self._end] == self.begin:
            return True
        try:
            return bool(bson.decode(document).get("company_sso_id") == self._company_sso_id)
        except bson.errors.InvalidBSON:
            return False


def scrub(message: str) -> str:
    """Return a server's message without quoted values, in one line of bounded length."""
    return " ".join(_VALUES_IN_MESSAGE.sub("…", message).split())[:MESSAGE_LENGTH_MAX]


def violated_index(error: Mapping[str, Any]) -> str | None:
    """Return the violated index of a write error, "" if unnamed; None if it is no duplicate key error."""
    if error.get("code") != DUPLICATE_KEY:
        return None
    named = _INDEX_IN_MESSAGE.search(str(error.get("errmsg", "")))
    return named.group(1) if named else ""


def classify(sent: int, write_errors: Iterable[Mapping[str, Any]], unique_index: str) -> BatchOutcome:
    """Return the outcome of each of `sent` documents. Only `_id_` and `unique_index` cause a duplicate.

    Raises ValueError if the answer names a document twice or one that was not sent.
    """
    redelivered: set[int] = set()
    duplicates: set[int] = set()
    failed: dict[int, Refusal] = {}
    inserted = set(range(sent))
    for error in write_errors:
        position = int(error["index"])
        if position not in inserted:
            raise ValueError(f"the answer names document {position} of {sent} twice, or it was not sent")
        inserted.discard(position)
        index = violated_index(error)
        if index == PRIMARY_KEY_INDEX:
            redelivered.add(position)
        elif index == unique_index:
            duplicates.add(position)
        elif index is None:
            failed[position] = Refusal(int(error.get("code", 0)), scrub(str(error.get("errmsg", ""))))
        else:
            failed[position] = Refusal(DUPLICATE_KEY, f"duplicate key in index {index or '(unnamed)'}")
    return BatchOutcome(frozenset(inserted), frozenset(redelivered), frozenset(duplicates), failed)
