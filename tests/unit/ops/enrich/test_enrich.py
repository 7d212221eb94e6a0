"""Names from the reference table first, then from the source; and what the mapping says of enrichment."""

from collections.abc import Collection
from typing import Any

import pytest

from ops.enrich import run as enrich
from ops.enrich.run import Names, Referents
from ops.jobs.enrichments import EnrichmentState, in_words, view_of
from ops.jobs.operations import digest
from processors.rules.enrichment import Name
from schemas.codec import Codec
from schemas.errors import MappingError
from schemas.records import Referent
from schemas.source.mapping import parse

MINIMAL = "scope: [Crm::Deal]\ncategories: {Crm::Deal: {category: deal}}\n"
TABLES = "referents: {Crm::Deal: {table: deals, name: name}, Crm::Company: {table: companies, name: name}}\n"
CODEC = Codec()


class Source:
    """Stands for the source: what was asked of it, and names that differ from the table's."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def names_of(self, type_name: str, ids: Collection[int]) -> dict[int, str]:
        self.asked.append((type_name, sorted(ids)))
        return {id_: f"{type_name} {id_} of the source" for id_ in ids if id_ < 90}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    monkeypatch.setattr(enrich, "NameReader", lambda *_: source)
    return source


def table(**names: str) -> Referents:
    rows = {
        f"Crm::Deal:{id_[1:]}".encode(): CODEC.encode(Referent("Crm::Deal", int(id_[1:]), name))
        for id_, name in names.items()
    }
    return Referents({**rows, b"Crm::Deal:7": b"no record"}, CODEC)


def learn(read: Any, *ids: tuple[str, int]) -> list[str]:
    names = Names(None, parse(MINIMAL + TABLES, "m.yaml"), None, read)  # type: ignore[arg-type]
    wanted = [Name("key", type_name, id_) for type_name, id_ in ids]
    names.learn(wanted)
    return [names.get(name) for name in wanted]


def test_names_come_from_the_reference_table_where_it_has_them_else_from_the_source(source: Source) -> None:
    read = lambda: table(_1="One", _2="", _95="gone since")  # noqa: E731
    wanted = [("Crm::Deal", id_) for id_ in (1, 2, 3, 7, 95, 99)]
    found = learn(read, *wanted, ("Crm::Company", 1), ("Crm::Note", 1))
    assert found == [
        "One",
        "",  # it has no name, which the table knows
        "Crm::Deal 3 of the source",
        "Crm::Deal 7 of the source",  # what cannot be read is not in the table
        "gone since",
        "[Deleted reference]",
        "Crm::Company 1 of the source",
        "",  # a type without a table of names
    ]
    assert source.asked == [("Crm::Deal", [3, 7, 99]), ("Crm::Company", [1])]


def test_the_reference_table_is_read_once_and_only_if_a_name_is_wanted(source: Source) -> None:
    read: list[int] = []

    def count() -> Referents | None:
        read.append(1)
        return None

    names = Names(None, parse(MINIMAL + TABLES, "m.yaml"), None, count)  # type: ignore[arg-type]
    names.learn([Name("key", "Crm::Note", 1)])
    assert read == []
    names.learn([Name("key", "Crm::Deal", 1)])
    names.learn([Name("key", "Crm::Deal", 1), Name("key", "Crm::Deal", 2)])
    assert read == [1]
    assert source.asked == [("Crm::Deal", [1]), ("Crm::Deal", [2])]


def test_enrichment_is_on_by_default_and_no_part_of_what_a_job_compares() -> None:
    plain = parse(MINIMAL, "m.yaml")
    off = parse(MINIMAL + "enrichment: {during_run: false, window_s: 5}", "m.yaml")
    assert (plain.enrichment.during_run, plain.enrichment.window_s) == (True, 2.0)
    assert (off.enrichment.during_run, off.enrichment.window_s) == (False, 5.0)
    assert digest(plain) == digest(off)
    assert (
        "enrichment" not in off.model_dump_json()
    )  # so a job that was made before there was this field can be resumed
    with pytest.raises(MappingError, match=r"line 3, key enrichment\.window_s"):
        parse(MINIMAL + "enrichment: {window_s: 4000}", "m.yaml")


def test_what_a_job_says_of_its_enrichment_in_words() -> None:
    counted = {"outcomes": {"patched": 1200, "complete": 3, "enrich_ambiguous": 2, "no_contact": 4}}
    done = view_of({"state": "done", **counted, "deleted_references": 5})
    assert (done.state, done.association_rows, done.patched) == (EnrichmentState.DONE, 1209, 1200)
    assert in_words(done, "a") == (
        "association logs: 1,200 enriched, 3 complete already, 2 ambiguous; 5 name a deleted record"
    )
    pending = view_of({"state": "pending", **counted, "error": "PostgreSQL is away: start it"})
    assert in_words(pending, "a") == (
        "enrichment pending (PostgreSQL is away: start it); crm-replay enrich --account a finishes it"
    )
    assert in_words(view_of({"state": "off"}), "a") == in_words(view_of(None), "a") == ""
