"""Seals: what is kept of a proof, and every fingerprint that makes it void."""

from collections import Counter
from dataclasses import replace
from importlib.resources import files
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import DuplicateKeyError, OperationFailure

from ops.checks.verify import seals
from ops.checks.verify.check import CHUNK_IDS_MAX, CHUNK_IDS_MIN, CHUNKS_MAX, chunk_ids
from ops.checks.verify.model import Failed, Tally
from ops.checks.verify.seals import (
    Evidence,
    Letters,
    Seal,
    SealStore,
    answers_fingerprint,
    basis_of,
    code_fingerprint,
    table_fingerprint,
)
from schemas.collections import SEALS
from schemas.source.mapping import load

EVIDENCE = Evidence("basis", "rows", {"1700000000": "documents"}, "letters", "answers")
TALLY = Tally(
    rows=10,
    logs=6,
    before_cutoff=2,
    matched=6,
    enriched=1,
    tagged=6,
    retried=1,
    skipped=Counter(contact_not_found=3),
    failed=Counter({"undecodable_changes": 1, "a.new $cause": 1}),
    failures=[Failed(7, "undecodable_changes"), Failed(9, "a.new $cause")],
)
SEAL = Seal.of(0, 2_000, EVIDENCE, TALLY, without=(9, 8), acting=(2, 1))


def test_a_sealed_chunk_comes_to_what_it_came_to_when_it_was_proved() -> None:
    assert SEAL.tally() == replace(TALLY, unchanged=10)
    assert SEAL.without == (8, 9)
    assert SEAL.acting == (1, 2)


def test_a_seal_is_the_same_after_it_was_kept() -> None:
    document = SEAL.as_document("acme")
    assert document["_id"] == "acme/0"
    assert document["company_sso_id"] == "acme"
    assert Seal.from_document(document) == SEAL


@pytest.mark.parametrize(
    "change",
    [
        {"low": None},
        {"documents": 7},
        {"counts": {}},
        {"counts": {"rows": "many"}},
        {"counters": {"skipped": [["a", 1]]}},
        {"failures": [[1]]},
        {"without": ["x"]},
    ],
)
def test_a_seal_of_another_release_or_that_somebody_has_altered_is_none(change: dict[str, Any]) -> None:
    assert Seal.from_document({**SEAL.as_document("acme"), **change}) is None
    assert Seal.from_document({}) is None


def test_a_seal_names_as_many_failed_rows_as_there_are_or_were_asked_for() -> None:
    assert SEAL.names_enough(100)
    few = Seal.of(0, 2_000, EVIDENCE, replace(TALLY, failures=TALLY.failures[:1]))
    assert few.names_enough(1)
    assert not few.names_enough(2)


# ---- fingerprints

TABLES = {"contacts": {b"1": b"a", b"12": b"b"}, "users": {b"1": b"a"}}
SETTINGS = {"cutoff_us": 5, "dead_letters_expired": False}


def test_anything_that_all_chunks_share_changes_the_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = load(None)
    basis = basis_of("acme", mapping, TABLES, SETTINGS)
    assert basis == basis_of("acme", mapping, dict(reversed(TABLES.items())), dict(reversed(SETTINGS.items())))
    other_labels = mapping.model_copy(update={"scope": mapping.scope[:-1]})
    others = [
        basis_of("other", mapping, TABLES, SETTINGS),
        basis_of("acme", other_labels, TABLES, SETTINGS),
        basis_of("acme", mapping, {**TABLES, "users": {b"1": b"b"}}, SETTINGS),
        basis_of("acme", mapping, {**TABLES, "users": {}}, SETTINGS),
        basis_of("acme", mapping, {"contacts": TABLES["users"], "users": TABLES["contacts"]}, SETTINGS),
        basis_of("acme", mapping, TABLES, {**SETTINGS, "cutoff_us": 6}),
    ]
    monkeypatch.setattr(seals, "code_fingerprint", lambda: "of a later release")
    others.append(basis_of("acme", mapping, TABLES, SETTINGS))
    assert len({basis, *others}) == 1 + len(others)


def test_the_program_is_known_by_the_files_that_decide_what_a_row_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for package in seals.CODE for name, _ in seals._sources(files(package), package)}
    assert {
        "processors/rules/decide.py",
        "processors/encoding/changes_writer.py",
        "producer/audits.py",
        "producer/row.sql",
        "schemas/source/audited_changes/direct.py",
        "schemas/contact.avsc",
        "schemas/source/mapping.default.yaml",
        "ops.checks.verify/segments.py",
    } <= names
    before = code_fingerprint()
    monkeypatch.setattr(seals, "version", lambda _: "0")
    code_fingerprint.cache_clear()
    assert code_fingerprint() != before
    code_fingerprint.cache_clear()


Rows = dict[bytes, bytes]
rows = st.dictionaries(st.binary(max_size=4), st.binary(max_size=4), max_size=5)


@given(rows, rows)
def test_tables_have_the_same_fingerprint_only_if_they_have_the_same_rows(one: Rows, other: Rows) -> None:
    assert table_fingerprint(one) == table_fingerprint(dict(reversed(one.items())))
    assert (table_fingerprint(one) == table_fingerprint(other)) is (one == other)


def test_what_stands_between_keys_and_values_counts() -> None:
    assert table_fingerprint({b"1": b"23"}) != table_fingerprint({b"12": b"3"})
    assert table_fingerprint({b"1": b"2", b"3": b"4"}) != table_fingerprint({b"1": b"23", b"": b"4"})


def test_dead_letters_count_for_the_chunk_whose_rows_they_are_about() -> None:
    letters = Letters({30: "write_refused", 10: "undecodable_changes", 20: "undecodable_changes"})
    assert letters.fingerprint(0, 9) == letters.fingerprint(30, 99) == ""
    assert letters.fingerprint(9, 20) == Letters({10: "undecodable_changes", 20: "undecodable_changes"}).fingerprint(
        0, 100
    )
    assert letters.fingerprint(9, 20) != letters.fingerprint(9, 19)
    assert letters.fingerprint(0, 10) != Letters({10: "write_refused"}).fingerprint(0, 10)


def test_answers_of_the_directory_are_known_by_user() -> None:
    assert answers_fingerprint([(1, "a"), (2, None)]) != answers_fingerprint([(1, None), (2, "a")])
    assert answers_fingerprint([(1, "a")]) == answers_fingerprint(iter([(1, "a")]))


# ---- chunks


@given(st.integers(0, 2**62))
def test_chunks_are_few_and_keep_their_ends_while_an_account_grows(span: int) -> None:
    ids = chunk_ids(span)
    assert CHUNK_IDS_MIN <= ids <= CHUNK_IDS_MAX
    assert span <= ids * CHUNKS_MAX or ids == CHUNK_IDS_MAX
    assert chunk_ids(span + 1) in (ids, 2 * ids)


# ---- where they are kept


class Collection:
    """Refuses what it is told to refuse."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.kept: dict[str, Any] = {}

    def replace_one(self, query: dict[str, Any], document: dict[str, Any], *, upsert: bool) -> None:
        assert upsert
        if self.error is not None:
            raise self.error
        self.kept[query["_id"]] = document

    def delete_many(self, query: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.kept = {id_: kept for id_, kept in self.kept.items() if kept["basis"] == query["basis"]["$ne"]}

    def find(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        return [kept for kept in self.kept.values() if kept.get("company_sso_id") == query["company_sso_id"]]


def store_of(collections: dict[str, Any], account: str) -> SealStore:
    """Return the store of an account in a database that only has these collections."""
    return SealStore(cast("Any", collections), account)


def test_a_seal_replaces_the_one_before_it_and_those_of_another_basis_go() -> None:
    collection = Collection()
    store = store_of({SEALS: collection}, "acme")
    later = Seal.of(0, 4_000, EVIDENCE, TALLY)
    elsewhere = Seal.of(4_000, 6_000, replace(EVIDENCE, basis="of the release before"), TALLY)
    assert all(store.keep(seal) for seal in (SEAL, elsewhere, later))
    collection.kept["odd"] = {"company_sso_id": "acme", "basis": "basis"}
    assert store.load() == {0: later, 4_000: elsewhere}
    assert store_of({SEALS: collection}, "other").load() == {}
    store.drop_others("basis")
    assert store.load() == {0: later}


def test_a_check_that_may_not_write_says_so_and_goes_on() -> None:
    store = store_of({SEALS: Collection(OperationFailure("not authorized", 13))}, "acme")
    assert not store.keep(SEAL)
    store.drop_others("basis")
    assert store_of({SEALS: Collection(DuplicateKeyError("E11000"))}, "acme").keep(SEAL)
