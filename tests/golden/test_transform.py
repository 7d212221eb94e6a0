"""Audit rows and the activity logs they become, through the public command."""

import json
from pathlib import Path

import pytest

from tests.support.transform_command import run

HERE = Path(__file__).parent / "transform"
SAMPLE = Path(__file__).parents[2] / "ops" / "local" / "sample"
WANTED = (HERE / "outcomes.jsonl").read_text("utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def found() -> list[str]:
    result = run(
        "--rows", HERE / "rows.jsonl", "--contacts", HERE / "contacts.jsonl",
        "--users", SAMPLE / "users.jsonl", "--company", "company-a",
    )  # fmt: skip
    assert result.exit_code == 0
    return result.stdout.split("\n")[:-1]


@pytest.mark.parametrize("number", range(len(WANTED)), ids=[str(json.loads(line)["id"]) for line in WANTED])
def test_a_row_becomes_what_was_agreed(found: list[str], number: int) -> None:
    assert json.loads(found[number]) == json.loads(WANTED[number])
    assert found[number] == WANTED[number]  # to the byte: also the order of the keys


def test_no_row_is_missing_or_added(found: list[str]) -> None:
    assert len(found) == len(WANTED) == len((HERE / "rows.jsonl").read_text("utf-8").split("\n")) - 1
