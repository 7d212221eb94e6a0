"""BSON by hand: elements as bytes, to be joined to a document. Pure.

A document that is built as a dictionary and then encoded is walked twice; most of ours have the same pieces in the same
order, and half of the pieces have been written before. What is made here is, to the byte, what
`processors.encoding.documents` makes of the same value; tests/unit/processors/encoding/test_to_bson.py shows it.
"""

import struct
from collections.abc import Callable
from typing import Any

from processors.encoding.documents import encode, storable

_DOUBLE = struct.Struct("<d")
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
LENGTHS_MAX = 65_536
LENGTHS = tuple(size.to_bytes(4, "little") for size in range(LENGTHS_MAX))  # of most documents and texts, ready-made
INDEXES_MAX = 1_000
# How the n-th document of an array begins: its type, its index, and the NUL that ends a name.
DOCUMENT_AT = tuple(b"\x03%d\x00" % index for index in range(INDEXES_MAX))
LENGTH_BYTES = 4  # in front of a document
END = b"\x00"  # of a document


def length(size: int) -> bytes:
    """Return a length as BSON has it: four bytes, the lowest first."""
    return LENGTHS[size] if size < LENGTHS_MAX else size.to_bytes(4, "little")


def text_element(name: bytes, value: str) -> bytes:
    """Return an element that holds a text."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raw = str(storable(value)).encode()
    size = len(raw) + 1
    return b"\x02%b\x00%b%b\x00" % (name, length(size), raw)


def integer_element(name: bytes, value: int) -> bytes:
    """Return an element that holds a whole number, of 32 bits if that is enough. Raises OverflowError beyond 64."""
    if INT32_MIN <= value <= INT32_MAX:
        return b"\x10%b\x00%b" % (name, value.to_bytes(4, "little", signed=True))
    return b"\x12%b\x00%b" % (name, value.to_bytes(8, "little", signed=True))


def integer_writer(name: bytes) -> Callable[[int], bytes]:
    """Return `integer_element` for one name, in half the time."""
    begin = b"\x10%b\x00" % name
    pack = struct.Struct(f"<{len(begin)}si").pack

    def write(value: int) -> bytes:
        try:
            return pack(begin, value)
        except struct.error:  # more than 32 bits
            return integer_element(name, value)

    return write


def element(name: bytes, value: Any) -> bytes:
    """Return an element that holds any value of a column, or anything made of such."""
    kind = type(value)
    if kind is str:
        return text_element(name, value)
    if value is None:
        return b"\x0a%b\x00" % name
    if kind is int and INT32_MIN <= value <= INT32_MAX:
        return b"\x10%b\x00%b" % (name, value.to_bytes(4, "little", signed=True))
    if kind is bool:
        return b"\x08%b\x00%b" % (name, b"\x01" if value else b"\x00")
    if kind is float:
        return b"\x01%b\x00%b" % (name, _DOUBLE.pack(value))
    return elements({name.decode(): value})


def elements(document: dict[str, Any]) -> bytes:
    """Return the elements of a document, without what stands around them."""
    return encode(document)[LENGTH_BYTES : -len(END)]
