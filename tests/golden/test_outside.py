"""Rows of kinds that others met, with the right answer: through the public command, and by every way of reading."""

import json
from typing import Any

import pytest

from ops.checks.file_rows import FileLookups, event_of
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from schemas.codec import Codec
from schemas.source import mapping
from schemas.source.audited_changes import Columns, Unreadable, read
from tests.support.golden import as_lines, cases
from tests.support.transform_command import run

OUTSIDE = cases("outside")
EVENTS = {name: event_of(case.row, name) for name, case in OUTSIDE.items()}
CASES = pytest.mark.parametrize("name", OUTSIDE)


def test_every_case_says_why_it_is_there() -> None:
    assert len({case.why for case in OUTSIDE.values()}) == len(OUTSIDE)


@CASES
def test_a_row_reads_as_ruby_reads_it(name: str) -> None:
    event, expected = EVENTS[name], OUTSIDE[name].outcome
    result = read(event.audited_changes, event.changes_are_json)
    if expected["outcome"] == "log":
        assert isinstance(result, Columns)
        assert json.dumps(result.values) == json.dumps(expected["changes"])
        assert result.refused == 0
    else:
        assert isinstance(result, Unreadable)
        assert result.encrypted
        assert "encrypted by ActiveRecord" in result.why


def test_a_json_column_with_the_same_text_reads_the_same() -> None:
    texts = [event.audited_changes for event in EVENTS.values() if not event.audited_changes.startswith("---")]
    assert len(texts) > 5
    for text in texts:
        assert read(text, is_json=True) == read(text)


@CASES
def test_the_document_is_the_same_by_both_ways(name: str) -> None:
    event = EVENTS[name]
    transformer, lookups = Transformer(mapping.load(None), "company"), FileLookups("company", None, {})
    one, other = (
        transformer.transform(event, lookups),
        RowEncoder(transformer, lookups, Codec(), fast=True).document(event),
    )
    assert other == (documents.encode(one.document) if isinstance(one, Transformed) else one)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    result = run("--rows", "-", text=as_lines(OUTSIDE))
    assert result.exit_code == 0
    return dict(zip(OUTSIDE, map(json.loads, result.stdout.split("\n")[:-1]), strict=True))


@CASES
def test_a_row_becomes_what_was_agreed(outcomes: dict[str, Any], name: str) -> None:
    outcome, expected = outcomes[name], OUTSIDE[name].outcome
    assert (outcome["id"], outcome["outcome"]) == (OUTSIDE[name].row["id"], expected["outcome"])
    assert outcome.get("reason") == expected.get("reason")
    if expected["outcome"] != "log":
        return
    action = EVENTS[name].action
    sides = {change["field"]: [change["from"], change["to"]] for change in outcome["document"]["changes"]}
    if action == "update":
        assert sides == {
            name: pair if isinstance(pair, list) else [None, pair] for name, pair in expected["changes"].items()
        }
    else:
        bare = {name: value for name, value in expected["changes"].items() if value is not None or action == "destroy"}
        assert sides == {name: [None, value] if action == "create" else [value, None] for name, value in bare.items()}


def test_a_json_column_can_hold_the_message_as_a_string() -> None:
    message = json.dumps({"p": "Zm9v", "h": {"iv": "aXY=", "at": "YXQ="}})
    result = read(json.dumps(message), is_json=True)
    assert isinstance(result, Unreadable)
    assert result.encrypted
    other = read(json.dumps("{some text}"), is_json=True)
    assert isinstance(other, Unreadable)
    assert not other.encrypted
