"""Avro's binary encoding for records of plain fields, compiled from their schemas to straight Python.

A record without unions and maps, whose only arrays are of pairs of bytes, is a row of varints, texts and bytes. Written
out field by field that takes half the time of a general library, whose call per field and dictionary per record cost
more than the bytes (docs/performance.md). Equal to fastavro on every record; tests/unit/schemas/test_flat_avro.py shows
it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
VARINT_BITS_MAX = 63  # the last shift of a 64-bit varint
# How long the varints are that are read without a loop: times in microseconds have eight bytes, lengths rarely three.
NUMBER_BYTES, LENGTH_BYTES = 8, 3
_KINDS = {"long": "number", "int": "number", "string": "text", "bytes": "bytes", "boolean": "boolean"}

Pair = tuple[bytes, bytes]
Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


def varint(number: int) -> bytes:
    """Return a number in zigzag and base 128, seven bits a byte. Raises OverflowError beyond 64 bits."""
    if not LONG_MIN <= number <= LONG_MAX:
        raise OverflowError(f"{number} has more than 64 bits")
    left = (number << 1) ^ (number >> 63)
    if left < _PAIRS:
        return _LAST[left]
    out = _NOT_LAST[left % _PAIRS]
    left //= _PAIRS
    while left >= _PAIRS:
        out += _NOT_LAST[left % _PAIRS]
        left //= _PAIRS
    return out + _LAST[left]


_PAIRS = 1 << 14  # what two bytes hold, seven bits each
_LAST = tuple(bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7)) for n in range(_PAIRS))
_NOT_LAST = tuple(bytes((n & 127 | 128, n >> 7 | 128)) for n in range(_PAIRS))
SMALL = _LAST[::2]  # numbers from 0 to 8,191: most lengths and many ids


# By the byte that is all of a number: the number; and, if it is a length, how far from the byte its value ends.
_ZIGZAG = tuple((byte >> 1) ^ -(byte & 1) for byte in range(128))
_BEHIND = tuple(1 + (byte >> 1) if not byte & 1 else 2**63 for byte in range(128))  # none is negative


def is_flat(schema: Mapping[str, Any]) -> bool:
    """Return whether every field of a record's schema is of a plain type, or an array of pairs of bytes."""
    return all(_kind(field["type"]) is not None for field in schema["fields"])


def _kind(avro_type: Any) -> str | None:
    """Return how a field of an Avro type is coded; None if not here."""
    if isinstance(avro_type, str):
        return _KINDS.get(avro_type)
    if isinstance(avro_type, dict) and avro_type.get("type") == "array" and isinstance(avro_type["items"], dict):
        parts = avro_type["items"].get("fields", ())
        return "pairs" if [part["type"] for part in parts] == ["bytes", "bytes"] else None
    return None


def encode_pairs(pairs: Sequence[Pair]) -> bytes:
    """Return an Avro array of records that have two fields of bytes: one block, and the empty one that ends it."""
    parts = [varint(len(pairs))] if pairs else []
    for pair in pairs:
        for value in pair:
            size = len(value)
            parts.append(SMALL[size] if size < len(SMALL) else varint(size))
            parts.append(value)
    parts.append(b"\x00")
    return b"".join(parts)


def decode_pairs(data: bytes, at: int) -> tuple[tuple[Pair, ...], int]:
    """Return the pairs of the array that begins at `at`, in however many blocks, and where it ends.

    Raises EOFError, IndexError or ValueError for anything else.
    """
    pairs: list[Pair] = []
    while True:
        bits, at = _any_varint(data, at)
        if bits & 1:
            raise ValueError("a block that names its size: nobody here writes one")
        at += 1
        if not bits:
            return tuple(pairs), at
        for _ in range(bits >> 1):
            key, at = _bytes_at(data, at)
            value, at = _bytes_at(data, at)
            pairs.append((key, value))


def _bytes_at(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the bytes whose length stands at `at`, and where they end."""
    bits = data[at]
    if bits > 127:
        second = data[at + 1]
        if second < 128:  # of two bytes, as most
            bits += (second << 7) - 128
            at += 1
        else:
            bits, at = _any_varint(data, at)
    if bits & 1:
        raise EOFError("a negative length")
    to = at + 1 + (bits >> 1)
    if to > len(data):
        raise EOFError("a value reaches beyond the record")
    return data[at + 1 : to], to


def compile_encoder(schema: Mapping[str, Any], header: bytes) -> Encode:
    """Return a function from a record (a tuple in the schema's order) to `header` and its Avro encoding."""
    names = _names(schema)
    lines = ["def encode(record):", f"    ({', '.join(names)},) = record"]
    parts = ["HEADER"]
    for name, kind in zip(names, _kinds(schema), strict=True):
        if kind == "number":
            parts.append(f"SMALL[{name}] if 0 <= {name} < {len(SMALL)} else varint({name})")
        elif kind == "boolean":
            parts.append(f'b"\\x01" if {name} else b"\\x00"')
        elif kind == "pairs":
            parts.append(f"encode_pairs({name})")
        else:
            if kind == "text":
                lines.append(f"    {name} = {name}.encode()")
            lines.append(f"    size = len({name})")
            lines.append(f"    {name}_size = SMALL[size] if size < {len(SMALL)} else varint(size)")
            parts += [f"{name}_size", name]
    lines.append(f'    return b"".join(({", ".join(parts)},))')
    scope = {"HEADER": header, "SMALL": SMALL, "varint": varint, "encode_pairs": encode_pairs}
    encode: Encode = _compile(lines, "encode", scope)
    return encode


def compile_decoder(schema: Mapping[str, Any], record_type: type, header_bytes: int) -> Decode:
    """Return a function from framed bytes to the record, which is the whole of what stands behind the frame.

    Raises EOFError, IndexError, UnicodeDecodeError or ValueError for anything that is not exactly one record.
    """
    names = _names(schema)
    lines = ["def decode(data):", f"    end, at = len(data), {header_bytes}"]
    for name, kind in zip(names, _kinds(schema), strict=True):
        if kind == "boolean":
            lines += [
                '    if data[at] > 1: raise ValueError("a boolean that is neither 0 nor 1")',
                f"    {name} = data[at] == 1",
                "    at += 1",
            ]
            continue
        if kind == "pairs":
            lines.append(f"    {name}, at = decode_pairs(data, at)")
            continue
        # Most numbers and lengths are of one byte, whose meaning is in a table.
        lines += [
            "    byte = data[at]",
            f"    if byte < 128: {f'{name} = ZIGZAG[byte]' if kind == 'number' else 'to = at + BEHIND[byte]'}",
            "    else:",
            *_longer_varint(NUMBER_BYTES if kind == "number" else LENGTH_BYTES),
        ]
        if kind == "number":
            lines += [f"        {name} = (bits >> 1) ^ -(bits & 1)", "    at += 1"]
        else:
            cut = "data[at + 1:to].decode()" if kind == "text" else "data[at + 1:to]"
            lines += [
                '        if bits & 1: raise EOFError("a negative length")',
                "        to = at + 1 + (bits >> 1)",
                '    if to > end: raise EOFError("a value reaches beyond the record")',
                f"    {name} = {cut}",
                "    at = to",
            ]
    lines += [
        '    if at != end: raise ValueError(f"{end - at} bytes follow a complete record")',
        f"    return new(record_type, ({', '.join(names)},))",
    ]
    scope = {
        "new": tuple.__new__,
        "record_type": record_type,
        "ZIGZAG": _ZIGZAG,
        "BEHIND": _BEHIND,
        "any_varint": _any_varint,
        "decode_pairs": decode_pairs,
    }
    decode: Decode = _compile(lines, "decode", scope)
    return decode


def _longer_varint(size_max: int) -> list[str]:
    """Return lines that read a varint of two bytes and more into `bits`; `at` moves on to its last byte.

    Written out, byte by byte, up to `size_max`: a loop takes twice as many instructions. Every byte but the last has
    128 too many, which is taken off at the end, all of it at once.
    """
    lines = ["        bits = byte"]
    for size in range(2, size_max + 1):
        indent, shift = " " * (4 * size), 7 * (size - 1)
        too_many = sum(128 << 7 * place for place in range(size - 1))
        lines += [
            f"{indent}byte = data[at + {size - 1}]",
            f"{indent}bits += byte << {shift}",
            f"{indent}if byte < 128:",
            f"{indent}    bits -= {too_many}",
            f"{indent}    at += {size - 1}",
            f"{indent}else:",
        ]
    return [*lines, f"{' ' * (4 + 4 * size_max)}bits, at = any_varint(data, at)"]


def _any_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the bits of the varint that begins at `at`, and where its last byte is."""
    bits = shift = 0
    while True:
        byte = data[at]
        bits |= (byte & 127) << shift
        if byte < 128:
            if bits >> 64:  # the tenth byte has room for one bit; no writer of ours, nor BSON, could take the number
                raise ValueError("a number of more than 64 bits")
            return bits, at
        at += 1
        shift += 7
        if shift > VARINT_BITS_MAX:
            raise ValueError("a number of more than 64 bits")


def _names(schema: Mapping[str, Any]) -> list[str]:
    return [f"f{number}" for number in range(len(schema["fields"]))]


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    return [str(_kind(field["type"])) for field in schema["fields"]]


def _compile(lines: Sequence[str], name: str, names: dict[str, Any]) -> Any:
    # The text is made of our own names and numbers only; nothing of a schema or a record is in it.
    exec(compile("\n".join(lines), f"<flat_avro {name}>", "exec"), names)  # noqa: S102
    return names[name]
