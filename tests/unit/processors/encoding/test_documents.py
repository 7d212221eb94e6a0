"""What MongoDB can hold: keys, values, size, and the same bytes every time."""

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.encoding import documents
from schemas.identity import ID_BYTES

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters()), JSON, max_size=5))
@settings(deadline=None)
def test_whatever_a_row_holds_becomes_bson(value: dict[str, Any]) -> None:
    encoded = documents.encode({"changes": [{"field": "x", "from": None, "to": value}]})
    decoded = bson.decode(encoded)
    assert documents.encode(decoded) == encoded
    assert decoded["changes"][0]["to"] == bson.decode(bson.encode(documents.storable(value)))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        ({"a.b": {"$c": {"": 1}}}, {"a.b": {"$c": {"": 1}}}),
        ({"a\0b": "c\0d"}, {"a\u2400b": "c\0d"}),
        ({"a": ["\ud83d!"]}, {"a": ["\ufffd!"]}),
        ({"$ruby": "Crm::Person"}, {"$ruby": "Crm::Person"}),
        (datetime(2024, 1, 31, 17, 30, 0, 123000, UTC), datetime(2024, 1, 31, 17, 30, 0, 123000)),  # noqa: DTZ001
    ],
)
def test_how_a_value_is_stored(value: Any, stored: Any) -> None:
    assert bson.decode(documents.encode({"v": value}))["v"] == stored


def test_a_document_of_16_mib_with_its_id_is_too_large() -> None:
    empty = len(documents.encode({"v": ""}))
    fits = documents.encode({"v": "x" * (documents.DOCUMENT_BYTES_MAX - empty)})
    assert len(fits) + ID_BYTES == documents.MONGODB_DOCUMENT_BYTES_MAX
    assert not documents.is_too_large(fits)
    assert documents.is_too_large(documents.encode({"v": "x" * (documents.DOCUMENT_BYTES_MAX - empty + 1)}))


def test_every_process_makes_the_same_bytes() -> None:
    script = (
        "import hashlib\n"
        "from ops.checks.file_rows import FileLookups\n"
        "from processors.encoding import documents\n"
        "from processors.encoding.transform import Transformed, Transformer\n"
        "from schemas.source import mapping\n"
        "from tests.unit.schemas.sample import rows\n"
        "transformer, digest = Transformer(mapping.load(None), 'A'), hashlib.sha256()\n"
        "for row in rows():\n"
        "    result = transformer.transform(row.event, FileLookups('A', None, {}))\n"
        "    if isinstance(result, Transformed): digest.update(documents.encode(result.document))\n"
        "print(digest.hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(digests) == 1
    assert len(digests.pop()) == 65
