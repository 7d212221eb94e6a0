"""Rows of certain kinds only, chosen by PostgreSQL: never fewer than are wanted, whatever their changes look like."""

from contextlib import closing
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.jobs.coverage import persons_in_scope
from ops.subject.find import source_rows
from ops.subject.model import Person
from processors.rules.enrichment import AssociationFinder
from producer.audits import AuditReader, AuditSource, Limits, RowKind, connect, resolve
from producer.survey import count
from schemas.records import AuditEvent
from schemas.source import mapping
from schemas.source.mapping import SourceMapping
from sink.indexes import ENRICHED_ACTIONS, ENRICHED_CATEGORIES
from tests.integration.producer.crm import CUTOFF, add_audits, load_sample, make_audits

pytestmark = pytest.mark.services
LIMITS = Limits(page_rows=100, id_window=1_000_000)


def read(dsn: str, source: AuditSource) -> dict[int, AuditEvent]:
    """Return the rows by id."""
    found: dict[int, AuditEvent] = {}
    with closing(AuditReader(dsn, source, CUTOFF, LIMITS)) as reader:
        cursor, top = 0, 10**9
        while cursor < top:
            page = reader.page_after(cursor, top, 0, (), look_for_gaps=False)
            found |= {event.audit_id: event for event in page.events}
            cursor = page.end
    return found


def sources(dsn: str, of: SourceMapping) -> tuple[AssociationFinder, AuditSource, AuditSource]:
    """Return the finder of association rows, the account's whole source, and that of the rows that can be some."""
    finder = AssociationFinder(of, "a", ENRICHED_CATEGORIES, ENRICHED_ACTIONS)
    with closing(connect(dsn)) as db:
        everything = resolve(db, of, "a")
    return finder, everything, replace(everything, kinds=tuple(starmap(RowKind, finder.kinds)))


@pytest.mark.parametrize("schema", ["public", "jsonb_variant"])
def test_of_the_sample_every_row_that_can_be_an_association_is_read_and_few_others(
    database_dsn: str, schema: str
) -> None:
    load_sample(database_dsn)
    default = mapping.load(None)
    of = default.model_copy(update={"source": default.source.model_copy(update={"schema_name": schema})})
    finder, everything, narrowed = sources(database_dsn, of)
    rows, chosen = read(database_dsn, everything), read(database_dsn, narrowed)
    wanted = {audit_id for audit_id, event in rows.items() if finder.may_be(event)}
    assert len(wanted) > 30
    assert wanted <= chosen.keys()
    assert {audit_id: rows[audit_id] for audit_id in chosen} == chosen
    assert len(chosen) < len(rows) / 2
    with closing(connect(database_dsn)) as db:
        assert count(db, narrowed, 10**9, None, None).rows == len(chosen)


SPELLINGS: dict[str, Any] = {
    "as it is": "---\ncrm_stage_id:\n- 1\n- 39\n",
    "by a numeric escape": '---\n"crm_stage\\x5fid":\n- 1\n- 39\n',
    "in base64": "---\n!binary Y3JtX3N0YWdlX2lk:\n- 1\n- 39\n",
    "in base64 by the tag's whole name": "---\n!<tag:yaml.org,2002:binary> Y3JtX3N0YWdlX2lk:\n- 1\n- 39\n",
    "under another handle": "%TAG !y! tag:yaml.org,2002:bin\n---\n!y!ary Y3JtX3N0YWdlX2lk:\n- 1\n- 39\n",
    "as JSON": '{"crm_stage_id":[1,39]}',
    "as JSON with an escape": '{"crm_stage\\u005fid":[1,39]}',
}


def test_a_column_is_found_however_its_name_is_spelt(database_dsn: str, tmp_path: Path) -> None:
    """Type names are the mapping's own, so also one with a quote and a per cent sign."""
    strange = "Crm::O'Deal%s"
    file = tmp_path / "mapping.yaml"
    file.write_text(
        f'scope: [Crm::Deal, "{strange}"]\n'
        "categories:\n"
        "  Crm::Deal: {category: deal, status: {column: crm_stage_id, id_set: won, action: won}}\n"
        "join_models:\n"
        f'  "{strange}": {{category: deal, links: {{crm_deal_id: Crm::Deal, crm_person_id: Crm::Person}}}}\n'
        "id_sets: {won: [39]}\n"
    )
    make_audits(database_dsn)
    for audit_id, text in enumerate(SPELLINGS.values(), start=1):
        add_audits(database_dsn, [audit_id], auditable_type="Crm::Deal", action="update", audited_changes=text)
    add_audits(database_dsn, [101], auditable_type="Crm::Deal", action="update", audited_changes="---\nname: x\n")
    add_audits(database_dsn, [102], auditable_type="Crm::Deal", action="create", audited_changes=SPELLINGS["as it is"])
    add_audits(database_dsn, [103], auditable_type="Crm::Deal", action="update", audited_changes=None)
    add_audits(database_dsn, [104, 105], auditable_type=strange, action="create", audited_changes="--- {}\n")
    add_audits(database_dsn, [106], auditable_type=strange, action="update", audited_changes="--- {}\n")
    finder, everything, narrowed = sources(database_dsn, mapping.load(str(file)))
    rows, chosen = read(database_dsn, everything), read(database_dsn, narrowed)
    assert set(chosen) == {*range(1, len(SPELLINGS) + 1), 104, 105}
    assert {audit_id for audit_id, event in rows.items() if finder.may_be(event)} == chosen.keys()
    with psycopg.connect(database_dsn) as db:
        assert db.execute("SELECT count(*) FROM audits").fetchone() == (len(rows),)


def renamed(dsn: str) -> SourceMapping:
    """Give every second row of the sample the classes' former names, and return the mapping that knows them."""
    with psycopg.connect(dsn) as db:
        for column in ("auditable_type", "associated_type", "user_type"):
            db.execute(f"UPDATE audits SET {column} = replace({column}, 'Crm::', 'Old') WHERE id % 2 = 0")
        db.execute("UPDATE audits SET user_type = 'Account' WHERE id % 2 = 0 AND user_type = 'User'")
    default = mapping.load(None).model_dump(by_alias=True)
    types = [name for name in default["scope"] if name.startswith("Crm::")]
    aliases = {name.replace("Crm::", "Old"): name for name in types} | {"Account": "User"}
    return SourceMapping.model_validate(default | {"aliases": aliases})


def test_rows_under_former_names_are_what_they_would_be_under_the_names_now(database_dsn: str) -> None:
    load_sample(database_dsn)
    default = mapping.load(None)
    _, everything, narrowed = sources(database_dsn, default)
    rows, chosen = read(database_dsn, everything), read(database_dsn, narrowed)
    persons = persons_in_scope(database_dsn, default, "a")
    with closing(connect(database_dsn)) as db:
        counted = count(db, everything, 10**10, None, None).rows

    of = renamed(database_dsn)
    assert len(read(database_dsn, everything)) < len(rows), "some rows have a former name now"
    _, everything, narrowed = sources(database_dsn, of)
    assert read(database_dsn, everything) == rows
    assert read(database_dsn, narrowed) == chosen
    assert persons_in_scope(database_dsn, of, "a") == persons
    with closing(connect(database_dsn)) as db:
        assert count(db, everything, 10**10, None, None).rows == counted
    person = next(event for event in rows.values() if event.auditable_type == "Crm::Person" and event.audit_id % 2 == 0)
    subject = Person.of("a", str(person.auditable_id), of.person)
    assert source_rows(database_dsn, of, subject) == source_rows(database_dsn, default, subject) + sum(
        (event.auditable_type, event.auditable_id) == ("Crm::Person", person.auditable_id) and event.audit_id % 2 == 0
        for event in rows.values()
    )


def test_a_class_that_is_logged_like_persons_and_is_none_lowers_the_coverage(database_dsn: str) -> None:
    make_audits(database_dsn)
    add_audits(database_dsn, range(1, 11), auditable_id=1)
    for audit_id in (11, 12, 13):
        add_audits(database_dsn, [audit_id], auditable_type="Person", auditable_id=audit_id)
    default = mapping.load(None).model_dump(by_alias=True)
    default["scope"] = [*default["scope"], "Person"]
    default["categories"]["Person"] = {"category": "contact"}
    both = SourceMapping.model_validate(default)
    assert set(persons_in_scope(database_dsn, both, "a").ids) == {"1", "Person:11", "Person:12", "Person:13"}
    default["person"]["type"] = ["Crm::Person", "Person"]
    persons = persons_in_scope(database_dsn, SourceMapping.model_validate(default), "a")
    assert set(persons.ids) == {"1", "11", "12", "13"}
