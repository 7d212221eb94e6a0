"""Records <-> Avro bytes. The only module that knows fastavro, which reads the schemas and names their fingerprints.

A value on a topic is a short frame that names the writer's schema, then the record in Avro's binary encoding. The
frame is Avro's single-object header (`C3 01` and the CRC-64-AVRO fingerprint), or, with a schema registry, Confluent's
(`00` and a four-byte schema id). Either way its first bytes identify the record type, so one topic can carry several,
in both frames: a codec writes one of them and reads both.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar, cast

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas import avro
from schemas.errors import UndecodableRecordError, UnknownSchemaError
from schemas.records import RECORD_TYPES, OutcomeBatch, Record

R = TypeVar("R", bound=Record)
K = TypeVar("K", bound=bytes | None)

SINGLE_OBJECT_MARKER = b"\xc3\x01"
SINGLE_OBJECT_HEADER_BYTES = 10
CONFLUENT_MARKER = b"\x00"
CONFLUENT_HEADER_BYTES = 5
REFUSED_MAX = 1_000  # frames whose refusal is remembered
Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]
SchemaOf = Callable[[int], str | None]  # the registry's Avro schema with an id, as JSON text; None if it has none


def schema_name(record_type: type[Record]) -> str:
    """Return the name of the record's schema file, without `.avsc`: `AuditEvent` -> `audit_event`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in record_type.__name__).lstrip("_")


def schema_of(record_type: type[Record]) -> dict[str, Any]:
    """Return the record's Avro schema as JSON."""
    text = files("schemas").joinpath(f"{schema_name(record_type)}.avsc").read_text("utf-8")
    return cast("dict[str, Any]", json.loads(text))


def single_object_header(record_type: type[Record]) -> bytes:
    """Return `C3 01` and the little-endian CRC-64-AVRO fingerprint of the schema's canonical form."""
    return _single_object_header(json.dumps(schema_of(record_type)))


def _single_object_header(schema: str) -> bytes:
    """Return the frame of an Avro schema's values; b"" for a text that is none."""
    try:
        canonical = to_parsing_canonical_form(json.loads(schema))
    except Exception:  # whatever fastavro raises for what a registry holds
        return b""
    # fastavro prints the fingerprint's bytes in the order in which the single-object encoding wants them.
    return SINGLE_OBJECT_MARKER + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))


@lru_cache(maxsize=256)  # of other people's schemas, a few at a time
def _parsed(schema: str) -> Any:
    return fastavro.parse_schema(json.loads(schema))


def read_avro(schema: str, data: bytes) -> Any:
    """Return the value in bytes that another writer encoded with this Avro schema (JSON text), without frame.

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


def header_bytes(data: bytes) -> int:
    """Return how long the frame in front of a value is, whichever of the two it has."""
    return CONFLUENT_HEADER_BYTES if data[:1] == CONFLUENT_MARKER else SINGLE_OBJECT_HEADER_BYTES


class Codec:
    """Encode and decode every record type; build one per process, it holds the compiled schemas."""

    def __init__(self, schema_ids: Mapping[type[Record], int] | None = None, look_up: SchemaOf | None = None) -> None:
        """Frame for Confluent's registry if `schema_ids` gives its id of every record type, else as single objects.

        `look_up` is called for ids that are not among them, once each: a registry that was filled again has others.
        """
        self._header_bytes = SINGLE_OBJECT_HEADER_BYTES if schema_ids is None else CONFLUENT_HEADER_BYTES
        self._look_up = look_up
        self._frames: dict[type[Record], bytes] = {}
        self._encoders: dict[type[Record], Encode] = {}
        self._decoders: dict[bytes, tuple[type[Record], Decode]] = {}  # by frame
        self._types: dict[bytes, type[Record]] = {}  # by single-object frame
        self._body_decoders: dict[tuple[type[Record], int], Decode] = {}  # by type and length of the frame
        self._refused: dict[bytes, UndecodableRecordError] = {}  # frames that were looked up in vain
        for record_type in RECORD_TYPES:
            schema = schema_of(record_type)
            fastavro.parse_schema(schema)  # raises for what is no Avro schema
            header = single = single_object_header(record_type)
            self._types[single] = record_type
            if schema_ids is not None:
                header = CONFLUENT_MARKER + schema_ids[record_type].to_bytes(4, "big")
            self._frames[record_type] = header
            self._encoders[record_type] = avro.RecordEncoder(avro.kinds_of(schema), header).encode
            self._learn(header, record_type)

    def _learn(self, header: bytes, record_type: type[Record]) -> tuple[type[Record], Decode]:
        """Return the decoder of values with this frame, which are records of that type; it is known from now on."""
        decode = _decoder(record_type, len(header))
        self._decoders[header] = record_type, decode
        return record_type, decode

    def encode(self, record: Record) -> bytes:
        """Return the framed bytes of a record."""
        return self._encoders[type(record)](record)

    def frame(self, record_type: type[Record]) -> bytes:
        """Return the bytes in front of every value of this type that `encode` returns."""
        return self._frames[record_type]

    def encoder(self, record_type: type[Record]) -> Encode:
        """Return `encode` for records of one type, which may be plain tuples of its fields."""
        return self._encoders[record_type]

    def decode(self, data: bytes) -> Record:
        """Return the record in `data`, in either frame; the frame identifies its type.

        Raises UndecodableRecordError for anything that is not a complete record of a known schema; of these,
        UnknownSchemaError where the schema cannot be looked up, and ServiceUnreachableError if the registry is down.
        """
        try:
            record_type, decode = self._decoders[data[: self._header_bytes]]
        except KeyError:
            record_type, decode = self._decoder_of(data[: header_bytes(data)])
        try:
            return cast("Record", decode(data))
        except (EOFError, IndexError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
            raise UndecodableRecordError(
                f"{len(data)} bytes are no {record_type.__name__} ({type(error).__name__})"
            ) from error

    def outcomes(self, key: K, value: bytes) -> Sequence[tuple[K | bytes, bytes]]:
        """Return key and value of each outcome in a record of an outcomes topic: of a batch's, or the record's own.

        Every reader of such a topic begins with this. What is no whole batch is returned as it came, and decoding it
        says why. Raises ServiceUnreachableError if the registry that would know the frame is down.
        """
        alone = ((key, value),)
        try:
            record_type, decode = self._decoders.get(value[: self._header_bytes]) or self._decoder_of(
                value[: header_bytes(value)]
            )
        except UnknownSchemaError:  # its outcomes have such frames, too: the reader has to meet each of them
            batch = self.read_body(OutcomeBatch, value)
            if batch is None or any(not framed.startswith(CONFLUENT_MARKER) for _, framed in batch.outcomes):
                return alone
            return batch.outcomes or alone
        except UndecodableRecordError:
            return alone
        if record_type is not OutcomeBatch:
            return alone
        try:
            return cast("OutcomeBatch", decode(value)).outcomes or alone
        except (EOFError, IndexError, ValueError):
            return alone

    def _decoder_of(self, header: bytes) -> tuple[type[Record], Decode]:
        """Return record type and decoder of a frame that this codec does not write."""
        if (known := self._decoders.get(header)) is not None:
            return known
        if (record_type := self._types.get(header)) is not None:
            return self._learn(header, record_type)
        if header[:1] != CONFLUENT_MARKER or len(header) < CONFLUENT_HEADER_BYTES:
            raise UndecodableRecordError(f"unknown schema header {header.hex() or '(empty)'}")
        if (refused := self._refused.get(header)) is None:
            record_type, refused = self._looked_up(header)
            if record_type is not None:
                return self._learn(header, record_type)
            # A schema is registered before a record names it, so a second lookup cannot succeed.
            if len(self._refused) >= REFUSED_MAX:  # ids in garbage: what is remembered of them has a bound
                self._refused.clear()
            self._refused[header] = refused
        raise type(refused)(refused.what, refused.to_do)

    def _looked_up(self, header: bytes) -> tuple[type[Record] | None, UndecodableRecordError]:
        """Return the record type that the registry has under a frame's id, or None and why not."""
        schema_id = int.from_bytes(header[1:], "big")
        unknown = f"unknown schema header {header.hex()}"
        if self._look_up is None:
            return None, UnknownSchemaError(
                f"{unknown}: it is of a schema registry, and none is configured",
                "set SCHEMA_REGISTRY_URL as it was when the record was written",
            )
        if (schema := self._look_up(schema_id)) is None:
            return None, UnknownSchemaError(
                f"{unknown}: the schema registry has no schema {schema_id}",
                "set SCHEMA_REGISTRY_URL as it was when the record was written",
            )
        found = self._types.get(_single_object_header(schema))
        return found, UndecodableRecordError(f"{unknown}: the registry's schema {schema_id} is none of ours")

    def require_frame(self, record_type: type[Record], data: bytes) -> None:
        """Raise as `decode_as` does for a value whose frame is not one of this type. What follows it is not read."""
        found, _ = self._decoder_of(data[: header_bytes(data)])
        _require_type(found, record_type)

    def _body_decoder(self, record_type: type[Record], frame_bytes: int) -> Decode:
        key = record_type, frame_bytes
        if (decode := self._body_decoders.get(key)) is None:
            decode = _decoder(record_type, frame_bytes)
            self._body_decoders[key] = decode
        return decode

    def read_body(self, record_type: type[R], data: bytes) -> R | None:
        """Return the record that `data` is, its frame left aside; None if what follows the frame is none of that type.

        For a frame that cannot be looked up: a record of ours proves that the settings are wrong, and not the value.
        """
        try:
            return cast("R", self._body_decoder(cast("type[Record]", record_type), header_bytes(data))(data))
        except (EOFError, IndexError, ValueError):
            return None

    def decode_as(self, record_type: type[R], data: bytes) -> R:
        """Like `decode`, where only one record type makes sense."""
        record = self.decode(data)
        _require_type(type(record), record_type)
        return cast("R", record)


def _decoder(record_type: type[Record], frame_bytes: int) -> Decode:
    return avro.RecordDecoder(avro.kinds_of(schema_of(record_type)), record_type, frame_bytes).decode


def _require_type(found: type, wanted: type) -> None:
    if found is not wanted:
        raise UndecodableRecordError(f"found a {found.__name__} instead of a {wanted.__name__}")
