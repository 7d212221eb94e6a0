"""Documents of the platform's own collections, decoded one by one: one that cannot be decoded does not affect another.

MongoDB keeps what Python has no value for. A date outside of the years 1 to 9999 comes out as `DatetimeMS`, which is
its milliseconds. A text that is not UTF-8 makes its document an `Undecodable`: a replaced text could name
another customer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON

Document = Mapping[str, Any]
OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
_TOLERANT = OPTIONS.with_options(unicode_decode_error_handler="replace")
_ID_LENGTH_MAX = 80
_LENGTH_BYTES = 4


class Undecodable(NamedTuple):
    """A document that cannot be decoded."""

    id: str  # its `_id` as it may be shown, "?" if that cannot be read either
    why: str


Report = Callable[[Undecodable], None]


def leave_out(_: Undecodable) -> None:
    """Do without a document that cannot be decoded, where those who read all of them name it."""


def find(collection: Any, query: Document, fields: Document, report: Report, **options: Any) -> Iterator[Document]:
    """Yield what the query finds; what cannot be decoded goes to `report` instead. Raises PyMongoError for an outage.

    `options` are those of `find_raw_batches`: `batch_size`, `hint`, `max_time_ms`.
    """
    return decoded(collection.find_raw_batches(query, fields, **options), report)


def decoded(batches: Iterable[bytes], report: Report) -> Iterator[Document]:
    """Yield the documents in batches of BSON documents that follow one another; pure but for `report`."""
    for batch in batches:
        try:
            documents = bson.decode_all(batch, OPTIONS)
        except InvalidBSON:
            documents = list(_one_by_one(batch, report))
        yield from documents


def _one_by_one(batch: bytes, report: Report) -> Iterator[dict[str, Any]]:
    at = 0
    while at < len(batch):
        end = at + int.from_bytes(batch[at : at + _LENGTH_BYTES], "little")
        raw, at = batch[at:end], end
        try:
            yield bson.decode(raw, OPTIONS)
        except InvalidBSON as error:
            report(Undecodable(shown_id(_id_of(raw)), str(error)))


def _id_of(raw: bytes) -> Any:
    try:
        return bson.decode(raw, _TOLERANT).get("_id", "?")
    except InvalidBSON:
        return "?"


def shown_id(value: Any) -> str:
    """Return an `_id` on one line, short enough for a log."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in str(value))
    return text if len(text) <= _ID_LENGTH_MAX else f"{text[:_ID_LENGTH_MAX]}…"
