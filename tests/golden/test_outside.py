"""Rows of kinds that others met, with the right answer: through the public command, and by every way of reading."""

import json
from pathlib import Path
from typing import Any

import pytest

from ops.checks.file_rows import FileLookups, read_events
from processors.encoding import documents
from processors.encoding.transform import Transformed, Transformer
from schemas.source import mapping
from schemas.source.audited_changes import Columns, Unreadable, read
from tests.support.transform_command import run

HERE = Path(__file__).parent / "outside"
EXPECTED = [json.loads(line) for line in (HERE / "expected.jsonl").read_text("utf-8").split("\n")[:-1]]
EVENTS = list(read_events(str(HERE / "rows.jsonl")))
CASES = pytest.mark.parametrize("number", range(len(EXPECTED)), ids=[f"{e['id']}: {e['note']}" for e in EXPECTED])


def test_every_row_has_an_answer() -> None:
    assert [event.audit_id for event in EVENTS] == [expected["id"] for expected in EXPECTED]


@CASES
def test_a_row_reads_as_ruby_reads_it(number: int) -> None:
    event, expected = EVENTS[number], EXPECTED[number]
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
    texts = [event.audited_changes for event in EVENTS if not event.audited_changes.startswith("---")]
    assert len(texts) > 5
    for text in texts:
        assert read(text, is_json=True) == read(text)


@CASES
def test_the_document_is_the_same_by_both_ways(number: int) -> None:
    event = EVENTS[number]
    transformer, lookups = Transformer(mapping.load(None), "company"), FileLookups("company", None, {})
    one, other = transformer.transform(event, lookups), transformer.to_bson(event, lookups)
    assert other == (documents.encode(one.document) if isinstance(one, Transformed) else one)


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    result = run("--rows", HERE / "rows.jsonl")
    assert result.exit_code == 0
    return [json.loads(line) for line in result.stdout.split("\n")[:-1]]


@CASES
def test_a_row_becomes_what_was_agreed(outcomes: list[dict[str, Any]], number: int) -> None:
    outcome, expected = outcomes[number], EXPECTED[number]
    assert (outcome["id"], outcome["outcome"]) == (expected["id"], expected["outcome"])
    assert outcome.get("reason") == expected.get("reason")
    if expected["outcome"] != "log":
        return
    action = EVENTS[number].action
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
