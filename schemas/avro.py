"""Avro's binary encoding of records without unions and maps, whose only arrays are of pairs of bytes.

Pure, and compiled where a C compiler is (`schemas/compiled.py`). Equal to fastavro on every record;
tests/unit/schemas/test_avro.py shows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from librt.strings import BytesWriter
from mypy_extensions import i64, u8

# Final, so that the compiled code has the numbers themselves.
NUMBER: Final = 0
TEXT: Final = 1
BYTES: Final = 2
BOOLEAN: Final = 3
PAIRS: Final = 4
KINDS: Final = {"long": NUMBER, "int": NUMBER, "string": TEXT, "bytes": BYTES, "boolean": BOOLEAN}
POSITIVE: Final = 2**63 - 1
TRUE: Final = b"\x01"
FALSE: Final = b"\x00"
# Numbers from 0 to 8,191, one byte or two: most lengths and many ids. Interpreted, to write them one by one takes long.
SMALL_END: Final = 8192
SMALL: Final = [bytes([n << 1] if n < 64 else [n << 1 & 127 | 128, n >> 6]) for n in range(SMALL_END)]


def kinds_of(schema: Mapping[str, Any]) -> bytes:
    """Return the kind of each of a record's fields, a byte a field. Raises ValueError for a type that has none."""
    return bytes([_kind(field["type"]) for field in schema["fields"]])


def _kind(avro_type: Any) -> int:
    if isinstance(avro_type, str) and avro_type in KINDS:
        return KINDS[avro_type]
    items = avro_type.get("items") if isinstance(avro_type, dict) else None
    if isinstance(items, dict) and [part["type"] for part in items["fields"]] == ["bytes", "bytes"]:
        return PAIRS
    raise ValueError(f"another type than {', '.join(KINDS)} and pairs of bytes")


def write_varint(out: BytesWriter, number: i64) -> None:
    """Write a number in zigzag and base 128, seven bits a byte. Raises ValueError beyond 64 bits."""
    sign: i64 = number >> 63
    if sign != 0 and sign != -1:  # compiled, the conversion to 64 bits has been refused before
        raise ValueError("a number of more than 64 bits")
    left: i64 = (number << 1) ^ sign
    while left < 0 or left >= 128:  # compiled, the sign is the 64th bit
        out.append(u8(left & 127 | 128))
        left = (left >> 7) & 0x1FF_FFFF_FFFF_FFFF
    out.append(u8(left))


def write_bytes(out: BytesWriter, data: bytes) -> None:
    """Write bytes behind their length."""
    size: i64 = len(data)
    if size < SMALL_END:
        out.write(SMALL[size])
    else:
        write_varint(out, size)
    out.write(data)


def write_pairs(out: BytesWriter, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Write an array of records that have two fields of bytes: one block, and the empty one that ends it."""
    if pairs:
        write_varint(out, len(pairs))
        for key, value in pairs:
            write_bytes(out, key)
            write_bytes(out, value)
    out.append(u8(0))


def varint(number: int) -> bytes:
    """Return what `write_varint` writes."""
    out = BytesWriter()
    write_varint(out, number)
    return out.getvalue()


class RecordEncoder:
    """Writes records of one type."""

    def __init__(self, kinds: bytes, header: bytes) -> None:
        """`header` stands in front of every record."""
        self._kinds = kinds
        self._header = header

    def encode(self, record: tuple[Any, ...]) -> bytes:
        """Return the header and a record's encoding; the record may be a plain tuple of its fields."""
        out = BytesWriter()
        self.write(out, record)
        return out.getvalue()

    def write(self, out: BytesWriter, record: tuple[Any, ...]) -> None:
        """Write what `encode` returns behind what is written already."""
        kinds = self._kinds
        out.write(self._header)
        if len(record) != len(kinds):
            raise ValueError(f"{len(record)} values for {len(kinds)} fields")
        place: i64 = 0
        while place < len(kinds):
            kind: i64 = kinds[place]
            if kind == NUMBER:
                number: i64 = record[place]
                if 0 <= number < SMALL_END:
                    out.write(SMALL[number])
                else:
                    write_varint(out, number)
            elif kind == TEXT:
                text: str = record[place]
                write_bytes(out, text.encode())
            elif kind == BYTES:
                data: bytes = record[place]
                write_bytes(out, data)
            elif kind == PAIRS:
                write_pairs(out, record[place])
            else:
                out.write(TRUE if record[place] else FALSE)
            place += 1


class Reader:
    """Reads values one after the other.

    Raises EOFError, IndexError or ValueError for anything that is none.
    """

    def __init__(self, data: bytes, at: i64) -> None:
        """`at` is where the first value begins."""
        self._data = data
        self.at: i64 = at

    def _bits(self) -> i64:
        """Return what a varint holds, in zigzag."""
        data = self._data
        at: i64 = self.at
        byte: i64 = data[at]
        at += 1
        bits: i64 = byte & 127
        shift: i64 = 7
        while byte >= 128:
            byte = data[at]
            at += 1
            if shift == 63 and byte > 1:  # the tenth byte has room for one bit
                raise ValueError("a number of more than 64 bits")
            bits |= (byte & 127) << shift
            shift += 7
        self.at = at
        return bits

    def number(self) -> i64:
        """Return a number."""
        bits = self._bits()
        return ((bits >> 1) & POSITIVE) ^ -(bits & 1)

    def boolean(self) -> bool:
        """Return a boolean."""
        byte: i64 = self._data[self.at]
        if byte > 1:
            raise ValueError("a boolean that is neither 0 nor 1")
        self.at += 1
        return byte == 1

    def raw(self) -> bytes:
        """Return bytes."""
        bits = self._bits()
        if bits & 1 != 0:
            raise EOFError("a negative length")
        begin: i64 = self.at
        size: i64 = (bits >> 1) & POSITIVE
        if size > len(self._data) - begin:
            raise EOFError("a value reaches beyond the record")
        self.at = begin + size
        return self._data[begin : begin + size]

    def pairs(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the pairs of an array, in however many blocks."""
        found: list[tuple[bytes, bytes]] = []
        while True:
            bits = self._bits()
            if bits & 1 != 0:
                raise ValueError("a block that names its size: nobody here writes one")
            if bits == 0:
                return tuple(found)
            left: i64 = (bits >> 1) & POSITIVE
            while left > 0:
                key = self.raw()
                found.append((key, self.raw()))
                left -= 1


class RecordDecoder:
    """Reads records of one type behind a header."""

    def __init__(self, kinds: bytes, record_type: type[Any], header_bytes: int) -> None:
        """`record_type` is a NamedTuple with as many fields as there are kinds."""
        self._kinds = kinds
        self._record_type = record_type
        self._header_bytes = header_bytes

    def decode(self, data: bytes) -> Any:
        """Return the record, which is the whole of what stands behind the header.

        Raises EOFError, IndexError, UnicodeDecodeError or ValueError for anything that is not exactly one record.
        """
        values: list[Any] = []
        kinds = self._kinds
        reader = Reader(data, self._header_bytes)
        place: i64 = 0
        while place < len(kinds):
            kind: i64 = kinds[place]
            if kind == NUMBER:
                values.append(reader.number())
            elif kind == TEXT:
                values.append(reader.raw().decode())
            elif kind == BYTES:
                values.append(reader.raw())
            elif kind == PAIRS:
                values.append(reader.pairs())
            else:
                values.append(reader.boolean())
            place += 1
        if reader.at != len(data):
            raise ValueError(f"{len(data) - reader.at} bytes follow a complete record")
        return tuple.__new__(self._record_type, values)
