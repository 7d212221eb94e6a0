"""Pure: the document that a row becomes against the one that is stored.

Bytes are compared, not checksums: both sides are in the same process, so a checksum would cost more and show less. Only
unequal documents are decoded, to name the fields that differ.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from schemas.identity import AUDIT_ID_BYTES, ID_BYTES

LENGTH_BYTES = 4
BODY_AT = LENGTH_BYTES + ID_BYTES
AUDIT_ID_AT = BODY_AT - AUDIT_ID_BYTES  # the ObjectIds of a run end with the audit id
METADATA = "metadata"
PATH_DEPTH_MAX = 3  # `changes.0.to`: deeper, a name could be a value of the CRM's
PATHS_MAX = 10
# An altered document can hold values that Python's own types cannot.
TOLERANT: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)


def body_of(document: bytes) -> bytes:
    """Return what of a BSON document without `_id` is the same in the stored one: all but its length."""
    return document[LENGTH_BYTES:]


def stored(batch: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and audit id of each document of a batch whose `_id`s are all of our making."""
    at, end = 0, len(batch)
    while at < end:
        following = at + int.from_bytes(batch[at : at + LENGTH_BYTES], "little")
        yield at, following, int.from_bytes(batch[at + AUDIT_ID_AT : at + BODY_AT], "big")
        at = following


def documents(batch: bytes) -> Iterator[dict[str, Any]]:
    """Yield each document of a batch, decoded."""
    at, end = 0, len(batch)
    while at < end:
        following = at + int.from_bytes(batch[at : at + LENGTH_BYTES], "little")
        yield decode(batch[at:following])
        at = following


def decode(document: bytes) -> dict[str, Any]:
    """Return a stored document, with any dates and texts."""
    return bson.decode(document, TOLERANT)


def expected_document(body: bytes) -> dict[str, Any]:
    """Return the document of which `body_of` gave the body."""
    return decode((len(body) + LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + body)


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the names of the fields that differ, and whether metadata was added that `expected` lacks.

    `_id` does not count, nor does the order of the fields. Added metadata is the enricher's, and no difference.
    """
    paths: list[str] = []
    enriched = False
    for name in dict.fromkeys((*expected, *found)):
        if name == "_id":
            continue
        if name == METADATA and isinstance(found.get(name), dict):
            ours, theirs = expected.get(name, {}), found[name]
            enriched = not theirs.keys() <= ours.keys()
            paths += _paths(name, ours, {key: value for key, value in theirs.items() if key in ours}, 1)
        elif name not in expected or name not in found:
            paths.append(name)
        else:
            paths += _paths(name, expected[name], found[name], 1)
    return tuple(paths[:PATHS_MAX]), enriched


def _paths(path: str, expected: Any, found: Any, depth: int) -> list[str]:
    """Return the paths below (or at) `path` at which the two values differ, types included."""
    if bson.encode({"": expected}) == bson.encode({"": found}):
        return []
    if depth < PATH_DEPTH_MAX:
        if isinstance(expected, dict) and isinstance(found, dict):
            return [  # none: only their order differs
                inner
                for key in dict.fromkeys((*expected, *found))
                for inner in (
                    _paths(f"{path}.{key}", expected[key], found[key], depth + 1)
                    if key in expected and key in found
                    else [f"{path}.{key}"]
                )
            ]
        if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
            return [
                inner
                for at, (ours, theirs) in enumerate(zip(expected, found, strict=True))
                for inner in _paths(f"{path}.{at}", ours, theirs, depth + 1)
            ]
    return [path]
