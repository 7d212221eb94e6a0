"""JSON: what a `json` or `jsonb` column prints, and JSON text in a text column."""

import json
import re
from typing import Any

import orjson

from schemas.audited_changes import scalars
from schemas.audited_changes.limits import DEPTH_MAX, NODES_MAX, UnreadableError

# orjson turns integers beyond 64 bits into floats, and refuses what overflows a float: the standard library, which is
# three times slower, reads any text that could hold one.
_NUMBER_TO_WATCH = re.compile(r"[0-9]{18}|[0-9][eE][+-]?[0-9]{3}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(text: str) -> dict[str, Any] | None:
    """Return the columns in a JSON object; None for `null`. Raises UnreadableError."""
    _check_size(text)
    try:
        root = orjson.loads(text) if _NUMBER_TO_WATCH.search(text) is None else _exact(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        root = _exact(text)  # once more: a lone surrogate is an error for the one and not for the other
    if root is None:
        return None
    if not isinstance(root, dict):
        raise UnreadableError("the JSON value is not an object of columns")
    return root


def _exact(text: str) -> Any:
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
    return scalars.integer(int(digits)) if len(digits) <= scalars.DIGITS_MAX else digits


def _number(digits: str) -> Any:
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
