"""Records <-> Avro bytes. The only module that knows fastavro, which reads the schemas and names their fingerprints.

A value on a topic is a short frame that names the writer's schema, then the record in Avro's binary encoding. The
frame is Avro's single-object header (`C3 01` and the CRC-64-AVRO fingerprint), or, with a schema registry, Confluent's
(`00` and a four-byte schema id). Either way its first bytes say which record it is, so one topic can carry several.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar, cast

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas import flat_avro
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


@lru_cache(maxsize=256)  # of other people's schemas, a few at a time
def _parsed(schema: str) -> Any:
    return fastavro.parse_schema(json.loads(schema))


def read_avro(schema: str, data: bytes) -> Any:
    """Return the value in bytes that somebody else has written with this Avro schema (JSON text), frame taken off.

    Raises ValueError, without any of the content, for bytes or a schema that cannot be read.
    """
    try:
        stream = BytesIO(data)
        value = fastavro.schemaless_reader(stream, _parsed(schema), None)
    except Exception as error:  # whatever fastavro meets: it raises what its C code ran into
        raise ValueError(type(error).__name__) from error
    if stream.tell() != len(data):
        raise ValueError(f"{len(data) - stream.tell()} bytes too many")
    return value


class Codec:
    """Encode and decode every record type; build one per process, it holds the compiled schemas."""

    def __init__(self, schema_ids: Mapping[type[Record], int] | None = None) -> None:
        """Frame for Confluent's registry if `schema_ids` gives its id of every record type, else as single objects."""
        self._header_bytes = SINGLE_OBJECT_HEADER_BYTES if schema_ids is None else CONFLUENT_HEADER_BYTES
        self._encoders: dict[type[Record], flat_avro.Encode] = {}
        self._decoders: dict[bytes, tuple[type[Record], flat_avro.Decode]] = {}
        for record_type in RECORD_TYPES:
            schema = schema_of(record_type)
            fastavro.parse_schema(schema)  # raises for what is no Avro schema
            if schema_ids is None:
                header = single_object_header(record_type)
            else:
                header = b"\x00" + schema_ids[record_type].to_bytes(4, "big")
            self._encoders[record_type] = flat_avro.compile_encoder(schema, header)
            self._decoders[header] = (
                record_type,
                flat_avro.compile_decoder(schema, record_type, self._header_bytes),
            )

    def encode(self, record: Record) -> bytes:
        """Return the framed bytes of a record."""
        return self._encoders[type(record)](record)

    def encoder(self, record_type: type[Record]) -> flat_avro.Encode:
        """Return `encode` for records of one type, which may be plain tuples of its fields."""
        return self._encoders[record_type]

    def decode(self, data: bytes) -> Record:
        """Return the record in `data`, which says itself which one it is.

        Raises UndecodableRecordError for anything that is not a complete record of a known schema.
        """
        try:
            record_type, decode = self._decoders[data[: self._header_bytes]]
        except KeyError:
            header = data[: self._header_bytes].hex() or "(empty)"
            raise UndecodableRecordError(f"unknown schema header {header}") from None
        try:
            return cast("Record", decode(data))
        except (EOFError, IndexError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
            raise UndecodableRecordError(
                f"{len(data)} bytes are no {record_type.__name__} ({type(error).__name__})"
            ) from error

    def decode_as(self, record_type: type[R], data: bytes) -> R:
        """Like `decode`, where only one record type makes sense."""
        record = self.decode(data)
        if not isinstance(record, record_type):
            raise UndecodableRecordError(f"a {type(record).__name__} stands where a {record_type.__name__} belongs")
        return record
