"""Audit rows and the activity logs they become, through the public command."""

import json
from pathlib import Path

import orjson
import pytest

from ops.checks.file_rows import FileLookups, event_of, read_contacts, read_users
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from schemas.codec import Codec
from schemas.source import mapping
from tests.support.golden import GOLDEN, as_lines, cases
from tests.support.transform_command import run

SAMPLE = Path(__file__).parents[2] / "ops" / "local" / "sample"
COMPANY = "company-a"
CONTACTS, USERS = GOLDEN / "transform" / "contacts.jsonl", SAMPLE / "users.jsonl"
CASES = cases("transform")


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """Return the line that the command has printed for each case."""
    result = run(
        "--rows", "-", "--contacts", CONTACTS, "--users", USERS, "--company", COMPANY, text=as_lines(CASES),
    )  # fmt: skip
    assert result.exit_code == 0
    return dict(zip(CASES, result.stdout.split("\n")[:-1], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_row_becomes_what_was_agreed(found: dict[str, str], name: str) -> None:
    assert json.loads(found[name]) == CASES[name].outcome, CASES[name].why
    assert found[name] == orjson.dumps(CASES[name].outcome).decode()  # to the byte: also the order of the keys


@pytest.mark.parametrize("name", CASES)
def test_the_core_makes_the_same(name: str) -> None:
    lookups = FileLookups(COMPANY, read_contacts(str(CONTACTS), COMPANY), read_users(str(USERS)))
    rules = mapping.load(None)
    rows = RowEncoder(Transformer(rules, COMPANY), lookups, Codec(), fast=True)
    event = rules.named_now(event_of(CASES[name].row, name))
    plain = rows.plain(event)
    wanted = documents.encode(plain.document) if isinstance(plain, Transformed) else plain
    assert rows.document(event) == wanted


def test_no_row_is_missing_or_added_and_each_says_why_it_is_there(found: dict[str, str]) -> None:
    assert [json.loads(line)["id"] for line in found.values()] == [case.row["id"] for case in CASES.values()]
    assert len({case.why for case in CASES.values()}) == len(CASES)
