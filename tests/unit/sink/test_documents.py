"""Record -> document, and the server's answer -> what became of each document."""

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import ID_BYTES, replay_id
from sink.core import IdMaker
from sink.documents import (
    DEPTH_MAX,
    AccountCheck,
    BatchOutcome,
    Refusal,
    classify,
    is_sound,
    is_whole,
    scrub,
)

pytestmark = pytest.mark.hot_paths

UNIQUE = "uniq_company_external_id"


def duplicate(index: int, name: str) -> dict[str, object]:
    message = f'E11000 duplicate key error collection: cdp.activity_logs index: {name} dup key: {{ x: "Anna" }}'
    return {"index": index, "code": 11000, "errmsg": message}


@given(run=st.integers(1, 2**31 - 1), audit_id=st.integers(1, 2**63 - 1), text=st.text())
def test_the_id_goes_in_front_and_nothing_else_changes(run: int, audit_id: int, text: str) -> None:
    document = bson.encode({"company_sso_id": "a", "text": text.replace("\0", ""), "n": {"m": [1, None]}})
    full = IdMaker(run)(audit_id, document)
    assert len(full) == len(document) + ID_BYTES
    assert full[4 + ID_BYTES :] == document[4:]
    decoded = bson.decode(full)
    assert next(iter(decoded)) == "_id"
    assert decoded.pop("_id").binary == replay_id(run, audit_id)
    assert decoded == bson.decode(document)
    assert RawBSONDocument(full).raw == full


def test_ids_of_two_runs_or_rows_never_meet() -> None:
    ids = {replay_id(run, audit_id) for run in (1, 256, 2**31 - 1) for audit_id in (1, 256, 2**32, 2**63 - 1)}
    assert len(ids) == 12
    assert {len(one) for one in ids} == {12}


def test_an_answer_without_errors_means_all_inserted() -> None:
    assert classify(3, [], UNIQUE) == BatchOutcome(inserted=frozenset((0, 1, 2)))


def test_only_two_indexes_make_a_duplicate() -> None:
    errors = [
        duplicate(0, "_id_"),
        duplicate(1, UNIQUE),
        duplicate(2, "somebody_elses"),
        duplicate(3, UNIQUE + "_2"),
        {"index": 4, "code": 121, "errmsg": "Document failed validation"},
        {"index": 5, "code": 11000, "errmsg": "E11000 of an unknown form"},
    ]
    outcome = classify(7, errors, UNIQUE)
    assert outcome.inserted == {6}
    assert outcome.redelivered == {0}
    assert outcome.duplicates == {1}
    assert set(outcome.failed) == {2, 3, 4, 5}
    assert str(outcome.failed[2]) == "code 11000: duplicate key in index somebody_elses"
    assert outcome.failed[4] == Refusal(121, "Document failed validation")


def test_a_value_that_looks_like_our_index_does_not_make_a_duplicate() -> None:
    error = duplicate(0, "other")
    error["errmsg"] = f'{error["errmsg"]} " index: {UNIQUE} dup key'
    assert set(classify(1, [error], UNIQUE).failed) == {0}


@pytest.mark.parametrize("errors", [[duplicate(0, "_id_"), duplicate(0, UNIQUE)], [duplicate(2, "_id_")]])
def test_an_answer_that_does_not_fit_what_was_sent_is_refused(errors: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="of 2"):
        classify(2, errors, UNIQUE)


@pytest.mark.parametrize(
    ("message", "scrubbed"),
    [
        ("Document failed validation", "Document failed validation"),
        ('bad value "Anna Kern" in field', "bad value … in field"),
        ("dup key: { email: 'anna@example.org', n: { a: 1 } } here", "dup key: … here"),
        ('cut off in the middle: { name: "An', "cut off in the middle: …"),
        ('cut off: "Anna', "cut off: …"),
        ("cut off: 'Anna", "cut off: …"),
        ("two\nlines", "two lines"),
        ("array [1, 'x'] end", "array … end"),
    ],
)
def test_values_of_a_document_never_get_into_a_message(message: str, scrubbed: str) -> None:
    assert scrub(message) == scrubbed


def test_a_message_is_bounded() -> None:
    assert len(scrub("word " * 1000)) <= 200


def test_only_the_account_passes_wherever_the_field_stands() -> None:
    check = AccountCheck("acc")
    assert check(bson.encode({"company_sso_id": "acc", "a": 1}))
    assert check(bson.encode({"a": 1, "company_sso_id": "acc"}))
    assert not check(bson.encode({"company_sso_id": "acc2"}))
    assert not check(bson.encode({"company_sso_id": "ac"}))
    assert not check(bson.encode({"a": {"company_sso_id": "acc"}}))
    assert not check(bson.encode({"company_sso_id": ["acc"]}))
    assert not check(b"\x10\0\0\0 not bson at all")


@pytest.mark.parametrize("data", [b"", b"\x05\0\0\0", b"\x06\0\0\0\0", b"\x05\0\0\0\x01", b"\x05\0\0\0\0\0"])
def test_what_has_not_the_ends_of_a_document_is_not_whole(data: bytes) -> None:
    assert not is_whole(data)


def test_an_empty_document_is_whole() -> None:
    assert is_whole(bson.encode({}))


def nested(levels: int) -> bytes:
    document: dict[str, object] = {}
    for level in range(levels):
        document = {"a": document if level % 2 else [document]}
    return bson.encode(document)


def test_a_document_that_no_server_reads_is_not_sound() -> None:
    good = bson.encode({"a": "text", "b": [1, {"c": 2}]})
    assert is_sound(good)
    assert not is_sound(good.replace(b"text", b"\xff\xfe\xfd\xfc"))
    wrong_type = bytearray(good)
    wrong_type[4] = 0x7E
    assert not is_sound(bytes(wrong_type))
    assert is_sound(nested(DEPTH_MAX // 2))
    assert not is_sound(nested(DEPTH_MAX))
