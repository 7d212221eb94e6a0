"""Records <-> Avro bytes. The only module that knows fastavro.

A value on a topic is a short frame that names the writer's schema, then the record in Avro's binary encoding. The
frame is Avro's single-object header (`C3 01` and the CRC-64-AVRO fingerprint), or, with a schema registry, Confluent's
(`00` and a four-byte schema id). Either way its first bytes say which record it is, so one topic can carry several.
"""

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar, cast

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.errors import UndecodableRecordError
from schemas.records import RECORD_TYPES, Record

R = TypeVar("R", bound=Record)

SINGLE_OBJECT_MARKER = b"\xc3\x01"
SINGLE_OBJECT_HEADER_BYTES = 10
CONFLUENT_HEADER_BYTES = 5


def schema_name(record_type: type[Record]) -> str:
    """Return the name of the record's schema file, without `.avsc`: `AuditEvent` -> `audit_event`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in record_type.__name__).lstrip("_")


def schema_of(record_type: type[Record]) -> dict[str, Any]:
    """Return the record's Avro schema as JSON."""
    text = files("schemas").joinpath(f"{schema_name(record_type)}.avsc").read_text("utf-8")
    return cast("dict[str, Any]", json.loads(text))


def single_object_header(record_type: type[Record]) -> bytes:
    """Return `C3 01` and the little-endian CRC-64-AVRO fingerprint of the schema's canonical form."""
    canonical = to_parsing_canonical_form(schema_of(record_type))
    # fastavro prints the fingerprint's bytes in the order in which the single-object encoding wants them.
    return SINGLE_OBJECT_MARKER + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))


class Codec:
    """Encode and decode every record type; build one per process, it holds the compiled schemas."""

    def __init__(self, schema_ids: Mapping[type[Record], int] | None = None) -> None:
        """Frame for Confluent's registry if `schema_ids` gives its id of every record type, else as single objects."""
        self._write: Callable[[BytesIO, Any, Any], None] = fastavro.schemaless_writer
        self._read: Callable[[BytesIO, Any], dict[str, Any]] = fastavro.schemaless_reader
        self._schemas: dict[type[Record], Any] = {}
        self._headers: dict[type[Record], bytes] = {}
        self._types: dict[bytes, tuple[type[Record], Any]] = {}
        for record_type in RECORD_TYPES:
            schema = fastavro.parse_schema(schema_of(record_type))
            if schema_ids is None:
                header = single_object_header(record_type)
            else:
                header = b"\x00" + schema_ids[record_type].to_bytes(4, "big")
            self._schemas[record_type] = schema
            self._headers[record_type] = header
            self._types[header] = (record_type, schema)
        self._header_bytes = SINGLE_OBJECT_HEADER_BYTES if schema_ids is None else CONFLUENT_HEADER_BYTES

    def encode(self, record: Record) -> bytes:
        """Return the framed bytes of a record."""
        record_type = type(record)
        out = BytesIO()
        out.write(self._headers[record_type])
        self._write(out, self._schemas[record_type], record._asdict())
        return out.getvalue()

    def decode(self, data: bytes) -> Record:
        """Return the record in `data`, which says itself which one it is.

        Raises UndecodableRecordError for anything that is not a complete record of a known schema.
        """
        header = data[: self._header_bytes]
        try:
            record_type, schema = self._types[header]
        except KeyError:
            raise UndecodableRecordError(f"unknown schema header {header.hex() or '(empty)'}") from None
        body = BytesIO(data)
        body.seek(self._header_bytes)
        try:
            fields = self._read(body, schema)
        except Exception as error:  # fastavro raises whatever its C code meets: EOFError, ValueError, IndexError, ...
            raise UndecodableRecordError(
                f"{len(data)} bytes are no {record_type.__name__} ({type(error).__name__})"
            ) from error
        if body.tell() != len(data):
            raise UndecodableRecordError(f"{len(data) - body.tell()} bytes follow a complete {record_type.__name__}")
        # fastavro fills the dictionary in the schema's order, which is the record's (tests/unit/schemas shows it).
        return record_type(*fields.values())

    def decode_as(self, record_type: type[R], data: bytes) -> R:
        """Like `decode`, where only one record type makes sense."""
        record = self.decode(data)
        if not isinstance(record, record_type):
            raise UndecodableRecordError(f"a {type(record).__name__} stands where a {record_type.__name__} belongs")
        return record
