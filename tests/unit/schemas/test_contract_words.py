"""The words that are the contract stand in `schemas` alone: collections, external id, source tag, exit codes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import collections, identity
from schemas.vocabulary import ExitCode

NAMES = {value for name, value in vars(collections).items() if name.isupper()}
ROOT = Path(__file__).resolve().parents[3]
HERE = {ROOT / "schemas/collections.py", ROOT / "schemas/identity.py"}
PACKAGES = ("schemas", "producer", "processors", "sink", "ops")
ELSEWHERE = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path not in HERE
}
TREES = {module: ast.parse(text) for module, text in ELSEWHERE.items()}
DATABASES = {"database", "_database", "mongo", "primary", "db"}


def literals(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a source but those of `Literal[...]`, which takes no name."""
    if isinstance(tree, ast.Subscript) and isinstance(tree.value, ast.Name) and tree.value.id == "Literal":
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    for part in ast.iter_child_nodes(tree):
        yield from literals(part)


def taken_from_a_database(tree: ast.AST) -> Iterator[str]:
    """Yield the text in each `database["text"]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            name = getattr(node.value, "id", getattr(node.value, "attr", ""))
            if name in DATABASES:
                yield str(node.slice.value)


def test_collections_are_named_once() -> None:
    # "contacts" is an ordinary word as well: of it, only what is taken from a database counts.
    wrong = {
        (module, text)
        for module, tree in TREES.items()
        for text in (*(text for text in literals(tree) if text != collections.CONTACTS), *taken_from_a_database(tree))
        if text in NAMES
    }
    assert wrong == set()


@pytest.mark.parametrize("word", [identity.EXTERNAL_ID_PREFIX, identity.EXTERNAL_ID_END])
def test_the_external_id_is_spelt_once(word: str) -> None:
    assert [module for module, text in ELSEWHERE.items() if word in text] == []


def test_the_source_tag_is_spelt_once() -> None:
    assert [module for module, tree in TREES.items() if identity.SOURCE_TAG in literals(tree)] == []


def test_each_exit_code_has_one_meaning() -> None:
    assert len(ExitCode.__members__) == len(set(ExitCode.__members__.values()))


@pytest.mark.parametrize("audit_id", [0, 1, 258, identity.AUDIT_ID_MAX])
def test_an_external_id_is_parsed_back(audit_id: int) -> None:
    assert identity.audit_id_of(identity.external_id_of(audit_id)) == audit_id
    assert identity.EXTERNAL_ID_FORMAT % audit_id == identity.external_id_of(audit_id).encode()
    assert identity.EXTERNAL_ID_PREFIX < identity.external_id_of(audit_id) < identity.EXTERNAL_ID_END


@pytest.mark.parametrize(
    "text", ["crm_audit:", "crm_audit:01", "crm_audit:-1", "crm_audit:9223372036854775808", "7", 7]
)
def test_no_other_text_is_an_external_id(text: object) -> None:
    assert identity.audit_id_of(text) is None


def test_both_kinds_of_id_begin_with_their_run_and_sort_within_it() -> None:
    assert identity.replay_id(7, 258) == bytes.fromhex("000000070000000000000102")
    assert identity.feed_id(7, 1, 258) == bytes.fromhex("000000070001000000000102")
    assert identity.run_in(identity.replay_id(2**31 - 1, 5)) == identity.run_in(identity.feed_id(2**31 - 1, 0, 5))
    assert identity.replay_id(7, 2**40) < identity.replay_id(8, 1)
