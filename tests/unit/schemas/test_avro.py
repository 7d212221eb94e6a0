"""The encoding is Avro's: the same bytes and the same records as fastavro, and errors instead of nonsense."""

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import avro
from schemas.codec import Codec, schema_of
from schemas.errors import UndecodableRecordError
from schemas.records import RECORD_TYPES, AuditEvent, OutcomeBatch, Record, SkippedRecord, User
from tests.unit.schemas.values import fields_from, record_from, records, unhurried

SCHEMAS = {record_type: fastavro.parse_schema(schema_of(record_type)) for record_type in RECORD_TYPES}
KINDS = {record_type: avro.kinds_of(schema_of(record_type)) for record_type in RECORD_TYPES}
ENCODE = {record_type: avro.RecordEncoder(kinds, b"").encode for record_type, kinds in KINDS.items()}
DECODE = {record_type: avro.RecordDecoder(kinds, record_type, 0).decode for record_type, kinds in KINDS.items()}

pytestmark = pytest.mark.hot_paths


def by_library(record: Record) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, SCHEMAS[type(record)], fields_from(record))
    return out.getvalue()


@unhurried
@given(record=records)
def test_bytes_and_records_are_the_librarys(record: Record) -> None:
    data = ENCODE[type(record)](record)
    assert data == by_library(record)
    read = fastavro.schemaless_reader(io.BytesIO(data), SCHEMAS[type(record)])
    assert isinstance(read, dict)
    assert DECODE[type(record)](data) == record == record_from(type(record), read)
    assert type(DECODE[type(record)](data)) is type(record)


# Where a varint grows by a byte, on both sides of zero: zigzag has a number of 7 bits a byte, less one for the sign.
EDGES = [edge for bits in range(6, 64, 7) for edge in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1)]


@pytest.mark.parametrize("number", [0, -1, 1, *(edge for edge in EDGES if -(2**63) <= edge < 2**63)])
def test_numbers_of_every_size(number: int) -> None:
    record = SkippedRecord(number, 0, number, 0, "x")
    assert ENCODE[SkippedRecord](record) == by_library(record)
    assert DECODE[SkippedRecord](ENCODE[SkippedRecord](record)) == record


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_beyond_64_bits_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="64"):
        ENCODE[SkippedRecord](SkippedRecord(number, 0, 0, 0, "x"))


@pytest.mark.parametrize("last", [b"\x02", b"\x04", b"\x7f"])
def test_a_tenth_byte_of_a_number_has_one_bit(last: bytes) -> None:
    user = ENCODE[User](User(1, "", "", False))
    with pytest.raises(ValueError, match="64 bits"):
        DECODE[User](b"\xff" * 9 + last + user[1:])
    assert DECODE[User](b"\xff" * 9 + b"\x01" + user[1:]) == User(-(2**63), "", "", False)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4095, 4096, 16_383, 16_384, 300_000, 1_100_000])
def test_texts_of_every_length(size: int) -> None:
    record = SkippedRecord(1, 0, 0, 0, "é" * size)
    assert ENCODE[SkippedRecord](record) == by_library(record)
    assert DECODE[SkippedRecord](ENCODE[SkippedRecord](record)) == record


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4095, 4096, 16_383, 16_384, 1_100_000])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 500, 8192])
def test_pairs_of_every_size_and_number(count: int, size: int) -> None:
    record = OutcomeBatch(tuple((b"%d" % number, bytes(size if number < 3 else 2)) for number in range(count)))
    assert ENCODE[OutcomeBatch](record) == by_library(record)
    assert DECODE[OutcomeBatch](ENCODE[OutcomeBatch](record)) == record


def test_an_array_in_several_blocks_is_one() -> None:
    one, two = OutcomeBatch(((b"1", b"a"),)), OutcomeBatch(((b"2", b"b"), (b"3", b"c")))
    joined = ENCODE[OutcomeBatch](one)[:-1] + ENCODE[OutcomeBatch](two)
    assert DECODE[OutcomeBatch](joined) == OutcomeBatch((*one.outcomes, *two.outcomes))


@unhurried
@given(record=records, data=st.data())
def test_what_is_cut_short_or_too_long_is_refused(record: Record, data: Any) -> None:
    codec = Codec()
    whole = codec.encode(record)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for broken in (whole[:cut], whole + b"\x00"):
        with pytest.raises(UndecodableRecordError):
            codec.decode(broken)


@unhurried
@given(record=records, data=st.data())
def test_changed_bytes_give_a_record_that_the_library_reads_too_or_an_error(record: Record, data: Any) -> None:
    whole = bytearray(ENCODE[type(record)](record))
    if whole:
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = DECODE[type(record)](bytes(whole))
    except (EOFError, IndexError, ValueError):
        return
    source = io.BytesIO(bytes(whole))
    try:
        expected = fastavro.schemaless_reader(source, SCHEMAS[type(record)])
    except Exception as error:
        raise AssertionError(f"read what the library refuses ({error})") from error
    assert isinstance(expected, dict)
    assert read == record_from(type(record), expected)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 11,  # a varint without an end
        b"\x02\x00\x00\x00\x01",  # a text of length -1
        b"\x02\x00\x00\x00\x04\xff\xfe",  # no UTF-8
        b"\x02\x00\x00\x00\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01x",  # a text of nine exabytes
    ],
)
def test_impossible_lengths_and_texts_are_refused(body: bytes) -> None:
    with pytest.raises((EOFError, IndexError, ValueError)):
        DECODE[SkippedRecord](body)


@pytest.mark.parametrize("kind", [["null", "string"], "double", {"type": "array", "items": "long"}])
def test_a_record_of_other_types_is_refused(kind: Any) -> None:
    schema = schema_of(AuditEvent)
    with pytest.raises(ValueError, match="another type"):
        avro.kinds_of({**schema, "fields": [*schema["fields"], {"name": "more", "type": kind}]})


def test_a_record_has_as_many_values_as_fields() -> None:
    with pytest.raises(ValueError, match="1 values for 5 fields"):
        ENCODE[SkippedRecord]((1,))


@pytest.mark.parametrize("number", [-1, 0, 63, 64, 8191, 8192, 2**63 - 1, -(2**63)])
def test_one_number_alone_is_as_within_a_record(number: int) -> None:
    assert ENCODE[SkippedRecord](SkippedRecord(number, 0, 0, 0, "")) == avro.varint(number) + bytes(4)
