"""Activity log documents <-> what MongoDB can hold. Pure; the one module of the processors that knows BSON.

Keys. MongoDB (5.0 and newer) stores nested keys with dots, with a leading `$`, and empty ones: they are kept as they
are, so `{"$ruby": ...}` and a CRM's own `{"npwp.old": 1}` arrive unchanged. The one key it cannot hold has a NUL
character, which becomes U+2400 (the symbol for NUL). No key of the document's own begins with `$`.

Values. Integers beyond 64 bits become their digits; lone surrogates, which UTF-8 does not have, become U+FFFD.
"""

import re
from collections.abc import Mapping
from typing import Any

import bson
from bson.errors import InvalidDocument

from schemas.identity import ID_BYTES
from schemas.source.audited_changes.scalars import integer

MONGODB_DOCUMENT_BYTES_MAX = 16 * 1024 * 1024
DOCUMENT_BYTES_MAX = MONGODB_DOCUMENT_BYTES_MAX - ID_BYTES

_NUL = "\0"
_NUL_SYMBOL = "\u2400"
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(document: Mapping[str, Any]) -> bytes:
    """Return the document as BSON: the same document gives the same bytes, in every process.

    The bytes can be more than `DOCUMENT_BYTES_MAX`: ask `is_too_large`, such a record ends as a dead letter.
    """
    try:
        return bson.encode(document)
    except (InvalidDocument, OverflowError, UnicodeEncodeError):
        return bson.encode(storable(document))


def is_too_large(encoded: bytes) -> bool:
    """Return whether MongoDB would refuse the document, `_id` included, for its size."""
    return len(encoded) > DOCUMENT_BYTES_MAX


def storable(value: Any) -> Any:
    """Return the value with every key and value that BSON cannot hold replaced, as in the module's docstring."""
    if isinstance(value, Mapping):
        return {_text(str(key)).replace(_NUL, _NUL_SYMBOL): storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [storable(part) for part in value]
    if isinstance(value, str):
        return _text(value)
    if type(value) is int:
        return integer(value)
    return value


def _text(value: str) -> str:
    return _SURROGATE.sub("\ufffd", value)
