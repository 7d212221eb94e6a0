"""Records <-> bytes: nothing is lost on the way, and what is no record says so."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import (
    CONFLUENT_HEADER_BYTES,
    REFUSED_MAX,
    SINGLE_OBJECT_HEADER_BYTES,
    Codec,
    header_bytes,
    schema_name,
    schema_of,
    single_object_header,
)
from schemas.errors import UndecodableRecordError, UnknownSchemaError
from schemas.records import RECORD_TYPES, OutcomeBatch, Record, Referent, SkippedRecord, SnapshotMarker
from tests.unit.schemas.values import records, unhurried

CODEC = Codec()
CONFLUENT_IDS = {record_type: 100_000 + number for number, record_type in enumerate(RECORD_TYPES)}
CONFLUENT = Codec(CONFLUENT_IDS)

# What stands before every record of a type. It changes with the schema, and then old records need the old schema:
# see tests/golden/schemas/README.md before you change one of these.
HEADERS = {
    "audit_event": "c3012543f9a99c7db6d7",
    "activity_log": "c301e9a2d420658ac176",
    "skipped_record": "c301931bfc4b6a049f11",
    "dead_letter": "c30119e677cfdea249d1",
    "snapshot_marker": "c30121ac383403797c53",
    "outcome_batch": "c301bec54b50e5013ad4",
    "contact": "c3013b66ea0565afdf48",
    "user": "c301f31650e95302d4c4",
    "referent": "c301353a6b4aecaf9e9e",
}


def crc_64_avro(data: bytes) -> int:
    """Return the Rabin fingerprint of Avro's specification, bit by bit."""
    empty = 0xC15D213AA4D7A795
    fingerprint = empty
    for byte in data:
        fingerprint ^= byte
        for _ in range(8):
            fingerprint = fingerprint >> 1 ^ (empty if fingerprint & 1 else 0)
    return fingerprint


def canonical_form(schema: Any) -> str:
    """Return Avro's parsing canonical form of a record: full names, order of keys, nothing else."""
    return json.dumps(_canonical(schema, schema["namespace"]), separators=(",", ":"))


def _canonical(schema: Any, namespace: str) -> Any:
    if isinstance(schema, str):
        return schema
    if schema["type"] == "array":
        return {"type": "array", "items": _canonical(schema["items"], namespace)}
    fields = [{"name": field["name"], "type": _canonical(field["type"], namespace)} for field in schema["fields"]]
    return {"name": f"{namespace}.{schema['name']}", "type": "record", "fields": fields}


@pytest.mark.parametrize(
    ("canonical", "fingerprint"),
    [('"null"', 0x63DD24E7CC258F8A), ('"int"', 0x7275D51A3F395C8F), ('"boolean"', 0x9F42FC78A4D4F764)],
)
def test_the_reckoning_below_is_avros(canonical: str, fingerprint: int) -> None:
    assert crc_64_avro(canonical.encode()) == fingerprint  # from the specification's own test vectors


@pytest.mark.parametrize("record_type", RECORD_TYPES)
def test_the_header_is_the_schemas_fingerprint(record_type: type[Record]) -> None:
    header = single_object_header(record_type)
    assert header[:2] == b"\xc3\x01"
    assert header[2:] == crc_64_avro(canonical_form(schema_of(record_type)).encode()).to_bytes(8, "little")
    assert header.hex() == HEADERS[schema_name(record_type)]


def test_every_record_type_has_a_header_of_its_own() -> None:
    assert len(set(HEADERS.values())) == len(RECORD_TYPES) == len(HEADERS)


@unhurried
@given(records)
def test_a_record_survives_the_way_there_and_back(record: Record) -> None:
    for codec in (CODEC, CONFLUENT):
        decoded = codec.decode(codec.encode(record))
        assert decoded == record
        assert type(decoded) is type(record)
        assert codec.decode_as(type(record), codec.encode(record)) == record


@unhurried
@given(records)
def test_the_same_record_gives_the_same_bytes_in_any_codec_of_a_kind(record: Record) -> None:
    assert CODEC.encode(record) == Codec().encode(record)
    assert CODEC.encode(record)[SINGLE_OBJECT_HEADER_BYTES:] == CONFLUENT.encode(record)[CONFLUENT_HEADER_BYTES:]


@unhurried
@given(records)
def test_the_confluent_frame_is_a_zero_and_the_schemas_id(record: Record) -> None:
    data = CONFLUENT.encode(record)
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") == CONFLUENT_IDS[type(record)]


@unhurried
@given(records, st.data())
def test_a_record_cut_short_is_undecodable(record: Record, data: st.DataObject) -> None:
    encoded = CODEC.encode(record)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(UndecodableRecordError):
        CODEC.decode(encoded[:cut])


@unhurried
@given(records, st.binary(min_size=1))
def test_bytes_behind_a_record_make_it_undecodable(record: Record, more: bytes) -> None:
    with pytest.raises(UndecodableRecordError):
        CODEC.decode(CODEC.encode(record) + more)


@unhurried
@given(st.sampled_from(RECORD_TYPES), st.binary(max_size=200))
def test_garbage_behind_a_header_is_undecodable_or_that_very_record(record_type: type[Record], garbage: bytes) -> None:
    try:
        record = CODEC.decode(single_object_header(record_type) + garbage)
    except UndecodableRecordError:
        return
    assert type(record) is record_type
    again = CODEC.decode(CODEC.encode(record))  # numbers can be written in more bytes than they need
    assert again == record


@unhurried
@given(records, st.data())
def test_a_flipped_bit_never_raises_anything_else(record: Record, data: st.DataObject) -> None:
    encoded = bytearray(CODEC.encode(record))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    try:
        decoded = CODEC.decode(bytes(encoded))
    except UndecodableRecordError:
        return
    assert bit // 8 >= SINGLE_OBJECT_HEADER_BYTES
    assert type(decoded) is type(record)


@pytest.mark.parametrize("data", [b"", b"\xc3", b"\xc3\x01", b"\x00\x00\x00\x00\x01", b"{}", b"\xc3\x01" + bytes(8)])
def test_bytes_without_a_known_header_are_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableRecordError, match="unknown schema header"):
        CODEC.decode(data)


@unhurried
@given(records)
def test_a_codec_with_a_registry_reads_both_frames(record: Record) -> None:
    assert CONFLUENT.decode(CODEC.encode(record)) == record
    assert header_bytes(CODEC.encode(record)) == SINGLE_OBJECT_HEADER_BYTES
    assert header_bytes(CONFLUENT.encode(record)) == CONFLUENT_HEADER_BYTES


def test_without_a_registry_its_frame_is_a_matter_of_configuration() -> None:
    with pytest.raises(UnknownSchemaError, match="none is configured: set SCHEMA_REGISTRY_URL"):
        CODEC.decode(CONFLUENT.encode(SnapshotMarker("begin", "job", -1, 1)))


def test_other_ids_of_the_same_schemas_are_looked_up_once_each() -> None:
    asked: list[int] = []
    schemas = {7: json.dumps(schema_of(Referent), indent=2), 8: '{"type": "string"}', 9: "no JSON"}

    def look_up(schema_id: int) -> str | None:
        asked.append(schema_id)
        return schemas.get(schema_id)

    codec = Codec(CONFLUENT_IDS, look_up)
    referent = Referent("Crm::Deal", 7001, "Renewal")
    body = CONFLUENT.encode(referent)[CONFLUENT_HEADER_BYTES:]
    for _ in range(2):
        assert codec.decode(b"\x00\x00\x00\x00\x07" + body) == referent
        for schema_id, error in ((6, UnknownSchemaError), (8, UndecodableRecordError), (9, UndecodableRecordError)):
            with pytest.raises(UndecodableRecordError, match="unknown schema header") as raised:
                codec.decode(b"\x00\x00\x00\x00" + bytes([schema_id]) + body)
            assert type(raised.value) is error
    assert asked == [7, 6, 8, 9]


def test_what_is_remembered_of_garbage_has_a_bound() -> None:
    codec = Codec(CONFLUENT_IDS, lambda schema_id: None)
    for schema_id in range(1000, 1000 + 3 * REFUSED_MAX):
        with pytest.raises(UnknownSchemaError):
            codec.decode(b"\x00" + schema_id.to_bytes(4, "big"))
    assert len(codec._refused) <= REFUSED_MAX


def test_an_unknown_schema_id_is_undecodable() -> None:
    with pytest.raises(UndecodableRecordError, match="unknown schema header 0000000001"):
        CONFLUENT.decode(b"\x00\x00\x00\x00\x01\x02\x02")


def test_another_record_than_expected_is_undecodable() -> None:
    data = CODEC.encode(SkippedRecord(1, 0, 2, 3, "contact_not_found"))
    with pytest.raises(UndecodableRecordError, match="found a SkippedRecord instead of a Referent"):
        CODEC.decode_as(Referent, data)
    with pytest.raises(UndecodableRecordError, match="found a SkippedRecord instead of a Referent"):
        CODEC.require_frame(Referent, data)


@pytest.mark.parametrize("codec", [CODEC, CONFLUENT])
def test_a_frame_says_of_which_type_a_value_is_whoever_wrote_it(codec: Codec) -> None:
    value = codec.encode(Referent("Crm::Deal", 1, "Renewal"))
    assert value.startswith(codec.frame(Referent))
    codec.require_frame(Referent, value)
    CONFLUENT.require_frame(Referent, value)
    for data in (b"", b"garbage", value[:4]):
        with pytest.raises(UndecodableRecordError, match="unknown schema header"):
            codec.require_frame(Referent, data)


def test_a_text_of_negative_or_enormous_length_is_undecodable() -> None:
    header = single_object_header(Referent)
    for length in (b"\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(UndecodableRecordError, match="no Referent"):
            CODEC.decode(header + length + b"\x02\x00")


def test_text_that_is_not_utf_8_is_undecodable() -> None:
    with pytest.raises(UndecodableRecordError, match="no Referent"):
        CODEC.decode(single_object_header(Referent) + b"\x02\xff\x02\x00")


def test_the_message_says_nothing_of_the_content() -> None:
    data = CODEC.encode(Referent("Crm::Person", 1, "Siti Nurhaliza"))
    with pytest.raises(UndecodableRecordError) as raised:
        CODEC.decode(data + b"!")
    assert "Siti" not in str(raised.value)


ONE, OTHER = (b"1", CODEC.encode(SkippedRecord(1, 0, 1, 7, "why"))), (b"2", CODEC.encode(Referent("Crm::Deal", 1, "x")))


@unhurried
@given(st.lists(st.tuples(st.binary(max_size=300), records.map(CODEC.encode)), min_size=1, max_size=9))
def test_a_batch_is_taken_apart_into_what_it_was_made_of(outcomes: list[tuple[bytes, bytes]]) -> None:
    for codec in (CODEC, CONFLUENT):
        batch = codec.encode(OutcomeBatch(tuple(outcomes)))
        for reader in (codec, CONFLUENT):  # one that writes the other frame reads both
            assert list(reader.outcomes(b"", batch)) == outcomes


@unhurried
@given(st.binary(max_size=20), records.filter(lambda record: not isinstance(record, OutcomeBatch)).map(CODEC.encode))
def test_an_outcome_that_is_alone_is_returned_as_it_came(key: bytes, value: bytes) -> None:
    assert list(CODEC.outcomes(key, value)) == [(key, value)]
    assert list(CODEC.outcomes(None, value)) == [(None, value)]


@unhurried
@given(st.data())
def test_what_is_no_whole_batch_is_one_record_that_cannot_be_decoded(data: st.DataObject) -> None:
    batch = CODEC.encode(OutcomeBatch((ONE, OTHER)))
    cut = batch[: data.draw(st.integers(0, len(batch) - 1))]
    empty = CODEC.encode(OutcomeBatch(()))
    for poison in (cut, batch + b"\0", empty, b"", b"\0" * 40, data.draw(st.binary(max_size=60))):
        assert list(CODEC.outcomes(b"k", poison)) == [(b"k", poison)]
    with pytest.raises(UndecodableRecordError):
        CODEC.decode(cut)


def test_a_batch_whose_frame_is_unknown_is_taken_apart_if_its_outcomes_have_such_frames() -> None:
    ours = [(key, CONFLUENT.encode(CODEC.decode(value))) for key, value in (ONE, OTHER)]
    assert list(CODEC.outcomes(b"", CONFLUENT.encode(OutcomeBatch(tuple(ours))))) == ours
    for _, value in ours:
        with pytest.raises(UnknownSchemaError):
            CODEC.decode(value)
    mixed = CONFLUENT.encode(OutcomeBatch((ours[0], ONE)))
    assert list(CODEC.outcomes(b"k", mixed)) == [(b"k", mixed)]
