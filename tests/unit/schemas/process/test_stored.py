"""Documents one by one: what cannot be decoded costs itself, and is named."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import encode
from bson.datetime_ms import DatetimeMS

from schemas.process.stored import Undecodable, decoded
from schemas.source.contact_rules import MICROSECONDS_MAX, microseconds


def damaged(document: dict[str, Any], data: bytes) -> bytes:
    """Return the document with these bytes in place of `####`."""
    raw = encode(document)
    assert raw.count(b"####") == 1
    assert len(data) == 4
    return raw.replace(b"####", data)


def read(*batches: bytes) -> tuple[list[Any], list[Undecodable]]:
    found: list[Undecodable] = []
    return list(decoded(batches, found.append)), found


def test_what_can_be_decoded_is() -> None:
    documents = [{"_id": number, "at": datetime(2024, 1, 1, tzinfo=UTC), "text": "é"} for number in range(3)]
    assert read(*(encode(document) for document in documents)) == (documents, [])
    assert read(b"".join(map(encode, documents)), b"") == (documents, [])


@pytest.mark.parametrize("data", [b"\xffabc", b"ab\xc3\x28", b"\xed\xa0\x80a", b"\xf5\x80\x80\x80", b"abc\xe2"])
@pytest.mark.parametrize("where", ["text", "key", "inside", "symbol"])
def test_a_text_that_is_no_utf8_costs_its_document(data: bytes, where: str) -> None:
    documents_by_place: dict[str, dict[str, Any]] = {
        "text": {"_id": "bad", "a": "x####"},
        "key": {"_id": "bad", "x####": 1},
        "inside": {"_id": "bad", "a": {"b": ["####"]}},
        "symbol": {"_id": "bad", "a": "#### symbol"},
    }
    raw = damaged(documents_by_place[where], data)
    if where == "symbol":
        raw = raw.replace(b"\x02a\x00", b"\x0ea\x00")
    documents, named = read(encode({"_id": 1}) + raw + encode({"_id": 2}), encode({"_id": 3}))
    assert documents == [{"_id": 1}, {"_id": 2}, {"_id": 3}]
    assert [undecodable.id for undecodable in named] == ["bad"]
    assert "utf-8" in named[0].why


def test_an_id_is_shown_on_one_short_line() -> None:
    raw = damaged({"_id": "a\nb####" + "x" * 100}, b"\xff\xff\xff\xff")
    _, ((shown, _),) = read(raw)
    assert shown.startswith("a\ufffdb\ufffd")
    assert len(shown) == 81
    assert shown.isprintable()
    without = encode({"_id": 1, "a": True, "b": "####"}).replace(b"\x08a\x00\x01", b"\x08a\x00\x02")
    assert read(without)[1] == [Undecodable("?", "invalid boolean value: 2")]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (0, 0),
        (1_704_067_200_123, 1_704_067_200_123_000),
        (263_384_265_600_000, 263_384_265_600_000_000),
        (-63_152_438_400_000, -63_152_438_400_000_000),
        (2**63 - 1, MICROSECONDS_MAX),
        (-(2**63), -MICROSECONDS_MAX),
    ],
)
def test_a_date_of_any_year_is_its_microseconds(milliseconds: int, expected: int) -> None:
    ((document,), _) = read(encode({"at": DatetimeMS(milliseconds)}))
    assert microseconds(document["at"]) == expected
