"""Rows of certain kinds only, chosen by PostgreSQL: never fewer than are wanted, whatever their changes look like."""

from contextlib import closing
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors.enrichment import AssociationFinder
from producer.audits import AuditReader, AuditSource, Limits, RowKind, connect, resolve
from producer.survey import count
from schemas import mapping
from schemas.mapping import SourceMapping
from schemas.records import AuditEvent
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
