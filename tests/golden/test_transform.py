"""Audit rows and the activity logs they become, through the public command."""

import json
from pathlib import Path

import pytest

from ops.checks.file_rows import FileLookups, read_contacts, read_events, read_users
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from schemas.codec import Codec
from schemas.source import mapping
from tests.unit.ops.cli.test_transform import run

HERE = Path(__file__).parent / "transform"
SAMPLE = Path(__file__).parents[2] / "ops" / "local" / "sample"
COMPANY = "company-a"
USERS = SAMPLE / "users.jsonl"
EVENTS = list(read_events(str(HERE / "rows.jsonl")))
WANTED = (HERE / "outcomes.jsonl").read_text("utf-8").split("\n")[:-1]
CASES = pytest.mark.parametrize("number", range(len(WANTED)), ids=[str(json.loads(line)["id"]) for line in WANTED])


@pytest.fixture(scope="module")
def found() -> list[str]:
    result = run(
        "--rows", HERE / "rows.jsonl", "--contacts", HERE / "contacts.jsonl",
        "--users", USERS, "--company", COMPANY,
    )  # fmt: skip
    assert result.exit_code == 0
    return result.stdout.split("\n")[:-1]


@CASES
def test_a_row_becomes_what_was_agreed(found: list[str], number: int) -> None:
    assert json.loads(found[number]) == json.loads(WANTED[number])
    assert found[number] == WANTED[number]  # to the byte: also the order of the keys


@CASES
def test_the_core_makes_the_same(number: int) -> None:
    lookups = FileLookups(COMPANY, read_contacts(str(HERE / "contacts.jsonl"), COMPANY), read_users(str(USERS)))
    rules = mapping.load(None)
    rows = RowEncoder(Transformer(rules, COMPANY), lookups, Codec(), fast=True)
    event = rules.named_now(EVENTS[number])
    plain = rows.plain(event)
    wanted = documents.encode(plain.document) if isinstance(plain, Transformed) else plain
    assert rows.document(event) == wanted


def test_no_row_is_missing_or_added(found: list[str]) -> None:
    assert len(found) == len(WANTED) == len((HERE / "rows.jsonl").read_text("utf-8").split("\n")) - 1
