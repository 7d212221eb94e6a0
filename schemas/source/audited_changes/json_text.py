"""JSON: what a `json` or `jsonb` column prints, and JSON text in a text column."""

import json
import re
from typing import Any

import orjson

from schemas.source.audited_changes import scalars
from schemas.source.audited_changes.limits import DEPTH_MAX, NODES_MAX, EncryptedError, UnreadableError

SMALL_LENGTH_MAX = NODES_MAX  # characters that cannot hold too many values: each takes two, its comma included
# From here on a float may have been an integer that orjson could not hold, and an integer is beyond 64 bits.
_FLOAT_TO_WATCH = 2.0**63
# Possessive, and an unterminated string extends to the end of the text: otherwise each of its quotes would be tried as
# the beginning of a string, and a megabyte would take a day.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_json(text: str) -> dict[str, Any] | None:
    """Return the columns in a JSON object; None for `null`. Raises UnreadableError, also for an encrypted column."""
    if len(text) > SMALL_LENGTH_MAX:
        _check_size(text)
    try:
        root = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        root = _exact(text)  # again: lone surrogates are an error to orjson, and so is what overflows a float
    else:
        if not _is_exact(root):
            root = _exact(text)
    if root is None:
        return None
    if isinstance(root, str) and is_encrypted_text(root):
        raise EncryptedError
    if not isinstance(root, dict):
        raise UnreadableError("the JSON value is not an object of columns")
    if len(root) == 2 and is_encrypted(root):
        raise EncryptedError
    return root


def is_encrypted(value: Any) -> bool:
    """Return whether a JSON value is a message of ActiveRecord's encryption, and so no columns.

    That is exactly `{"p": <base64>, "h": {"iv": <base64>, "at": <base64>, ...}}`: payload, and headers with the
    initialisation vector and the authentication tag. There can be more headers (`k`, the data key as such a message;
    `i`, the key's name; `c`, compressed; `e`, the encoding), and no third part.
    """
    if not isinstance(value, dict) or value.keys() != _MESSAGE_PARTS:
        return False
    payload, headers = value["p"], value["h"]
    return (
        isinstance(headers, dict)
        and _is_base64(payload)
        and _is_base64(headers.get("iv"))
        and _is_base64(headers.get("at"))
    )


def is_encrypted_text(text: str) -> bool:
    """Return whether a text is such a message as JSON: what a `json` column of an encrypted attribute holds quoted."""
    if not text.startswith("{"):
        return False
    try:
        return is_encrypted(orjson.loads(text))
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return False


def _is_base64(value: Any) -> bool:
    return isinstance(value, str) and _BASE64.fullmatch(value) is not None


_MESSAGE_PARTS = frozenset(("p", "h"))
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def _is_exact(root: Any) -> bool:
    """Return whether every number equals its text: orjson makes floats of integers beyond 64 bits.

    The standard library, which is three times slower, reads the few texts where one is not. Raises UnreadableError for
    nesting too deep.
    """
    level = [root]
    depth = 0
    while level:
        below: list[Any] = []
        for value in level:
            for part in value.values() if type(value) is dict else value if type(value) is list else (value,):
                kind = type(part)
                if kind is dict or kind is list:
                    below.append(part)
                elif kind is float:
                    if not -_FLOAT_TO_WATCH < part < _FLOAT_TO_WATCH:
                        return False
                elif kind is int and part > scalars.INT_MAX:
                    return False
        level = below
        depth += 1
        if depth > DEPTH_MAX:
            raise UnreadableError(f"nested deeper than {DEPTH_MAX} levels")
    return True


def _exact(text: str) -> Any:
    _check_size(text)
    try:
        root = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_refuse_constant, strict=False)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"not JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise UnreadableError(f"nested deeper than {DEPTH_MAX} levels") from None
    return _without_surrogates(root) if "\\u" in text or _SURROGATE.search(text) is not None else root


def _integer(digits: str) -> int | str:
    if len(digits) < 19:
        return int(digits)
    return scalars.integer(int(digits)) if len(digits) <= scalars.NUMBER_LENGTH_MAX else digits


def _number(digits: str) -> Any:
    if len(digits) > scalars.NUMBER_LENGTH_MAX:
        return digits
    return scalars.floating(float(digits))


def _refuse_constant(word: str) -> Any:
    raise UnreadableError(f"not JSON: {word}")


def _check_size(text: str) -> None:
    """Raise UnreadableError for what would cost too much; commas and brackets bound the number of values."""
    opened = text.count("[") + text.count("{")
    if opened <= DEPTH_MAX and opened + text.count(",") <= NODES_MAX // 2:
        return
    bare = _STRING.sub("", text)
    if bare.count("[") + bare.count("{") + bare.count(",") + bare.count(":") > NODES_MAX:
        raise UnreadableError(f"more than {NODES_MAX} nodes")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH_MAX:
            raise UnreadableError(f"nested deeper than {DEPTH_MAX} levels")


def _without_surrogates(value: Any) -> Any:
    """Return the value with U+FFFD for every lone surrogate, which no UTF-8 and so no document can hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(part) for part in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _without_surrogates(part) for key, part in value.items()}
    return value
