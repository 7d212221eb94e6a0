"""BSON elements, appended to a growing buffer. Pure, and compiled where a compiler is available.

The output equals, byte for byte, that of `processors.encoding.documents` for the same value. A value that BSON cannot
hold is not written: `NotStorableError`, and `documents` decides what is stored instead.

A name is given with the NUL that ends it (`b"from\\x00"`), so that it is one constant and one copy.
"""

from typing import Any, Final

from librt.strings import BytesWriter, write_f64_le, write_i32_le, write_i64_le
from mypy_extensions import i32, i64, u8

DOUBLE: Final = 0x01
TEXT: Final = 0x02
DOCUMENT: Final = 0x03
ARRAY: Final = 0x04
BOOLEAN: Final = 0x08
DATE: Final = 0x09
NULL: Final = 0x0A
INT32: Final = 0x10
INT64: Final = 0x12

INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
NAMES_MAX: Final = 1_000
ARRAY_NAMES: Final[list[bytes]] = [b"%d\x00" % n for n in range(NAMES_MAX)]


class NotStorableError(ValueError):
    """BSON cannot hold the value unchanged: a key with a NUL, more than 64 bits, another type."""


def begin_length(w: BytesWriter) -> i64:
    """Leave room for the length of what begins here, and return where that is."""
    at: i64 = len(w)
    write_i32_le(w, 0)
    return at


def end_length(w: BytesWriter, at: i64) -> None:
    """End the document or array that begins at `at`: its last byte, and its length."""
    w.append(0)
    size: i64 = len(w) - at
    w[at] = u8(size & 255)
    w[at + 1] = u8(size >> 8 & 255)
    w[at + 2] = u8(size >> 16 & 255)
    w[at + 3] = u8(size >> 24 & 255)


def write_text(w: BytesWriter, name: bytes, text: bytes) -> None:
    """Write a text that is UTF-8 already."""
    w.append(TEXT)
    w.write(name)
    write_i32_le(w, i32(len(text) + 1))
    w.write(text)
    w.append(0)


def write_null(w: BytesWriter, name: bytes) -> None:
    """Write an element that holds nothing."""
    w.append(NULL)
    w.write(name)


def write_integer(w: BytesWriter, name: bytes, value: i64) -> None:
    """Write a whole number, of 32 bits if that is enough."""
    if INT32_MIN <= value <= INT32_MAX:
        w.append(INT32)
        w.write(name)
        write_i32_le(w, i32(value))
    else:
        w.append(INT64)
        w.write(name)
        write_i64_le(w, value)


def write_value(w: BytesWriter, name: bytes, value: Any) -> None:
    """Write any value of a column. Raises ValueError for one that BSON does not hold as it is."""
    if isinstance(value, str):
        write_text(w, name, value.encode())
    elif value is None:
        write_null(w, name)
    elif isinstance(value, bool):
        w.append(BOOLEAN)
        w.write(name)
        w.append(1 if value else 0)
    elif isinstance(value, int):
        if value < INT64_MIN or value > INT64_MAX:
            raise NotStorableError
        write_integer(w, name, value)
    elif isinstance(value, float):
        w.append(DOUBLE)
        w.write(name)
        write_f64_le(w, value)
    elif isinstance(value, dict):
        _write_document(w, name, value)
    elif isinstance(value, list):
        _write_array(w, name, value)
    else:
        raise NotStorableError


def _write_document(w: BytesWriter, name: bytes, members: dict[str, Any]) -> None:
    w.append(DOCUMENT)
    w.write(name)
    at = begin_length(w)
    for key, value in members.items():
        raw = key.encode()
        if b"\x00" in raw:
            raise NotStorableError
        write_value(w, raw + b"\x00", value)
    end_length(w, at)


def _write_array(w: BytesWriter, name: bytes, items: list[Any]) -> None:
    w.append(ARRAY)
    w.write(name)
    at = begin_length(w)
    for index, value in enumerate(items):
        write_value(w, array_name(index), value)
    end_length(w, at)


def array_name(index: i64) -> bytes:
    """Return the name of an array's element."""
    return ARRAY_NAMES[index] if index < NAMES_MAX else b"%d\x00" % int(index)
