"""Which rows are association rows, and what each says of its links."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from processors.encoding.transform import Transformer
from processors.rules.decide import Refused, Skip
from processors.rules.enrichment import AssociationFinder, AssociationLog, Name
from schemas.records import Referent
from schemas.source import mapping
from schemas.vocabulary import SkipReason
from sink.indexes import ENRICHED_ACTIONS, ENRICHED_CATEGORIES
from tests.support.factories import event
from tests.support.lookups import BEFORE, ROW, WATERMARK, Anyone, Lookups
from tests.unit.schemas.sample import rows

MAPPING = mapping.load(None)
FINDER = AssociationFinder(MAPPING, "A", ENRICHED_CATEGORIES, ENRICHED_ACTIONS)


class Nameless(Lookups):
    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        return None


def link(type_name: str, changes: str, action: str = "create", **fields: Any) -> AssociationLog | Skip | Refused | None:
    row = event(auditable_type=type_name, action=action, audited_changes=changes, created_at=BEFORE, **fields)
    assert FINDER.may_be(row)
    return FINDER.find(row, Nameless())


def test_the_types_are_the_join_models_and_those_with_a_status() -> None:
    assert FINDER.types == tuple(sorted([*MAPPING.join_models, "Crm::Deal", "Crm::Task", "Crm::Ticket"]))


def test_a_link_has_its_ids_and_asks_for_the_names_of_both_sides() -> None:
    found = link("Crm::TicketCompany", "---\ncrm_ticket_id: 7\ncrm_company_id: 8\n", comment='{"crm_person_id":1}')
    assert isinstance(found, AssociationLog)
    assert found.links == {
        "crm_person_id": 1,
        "linked_entity_type": "Crm::Ticket",
        "linked_entity_id": 7,
        "crm_company_id": 8,
    }
    assert found.names == (Name("linked_entity_name", "Crm::Ticket", 7), Name("crm_company_name", "Crm::Company", 8))
    assert (found.category, found.action) == ("ticket", "link")


def test_a_person_needs_no_name() -> None:
    found = link("Crm::DealPerson", "---\ncrm_deal_id: 7\ncrm_person_id: 1\n", action="destroy")
    assert isinstance(found, AssociationLog)
    assert found.names == (Name("linked_entity_name", "Crm::Deal", 7),)
    assert found.action == "unlink"


def test_a_status_that_was_reached_is_one_and_another_is_not() -> None:
    found = FINDER.find(ROW, Lookups())
    assert isinstance(found, AssociationLog)
    assert found.action == "won"
    assert found.names == (Name("linked_entity_name", "Crm::Deal", ROW.auditable_id),)
    other = ROW._replace(audited_changes="---\ncrm_stage_id:\n- 31\n- '32'\n")
    assert FINDER.may_be(other)
    assert FINDER.find(other, Lookups()) is None
    assert not FINDER.may_be(ROW._replace(audited_changes="---\ncrm_stage_id:\n- 31\n- 32\n"))
    assert not FINDER.may_be(ROW._replace(audited_changes="---\nname:\n- a\n- b\n"))
    assert not FINDER.may_be(ROW._replace(action="create"))
    assert not FINDER.may_be(event(auditable_type="Crm::DealPerson", action="update"))


LINES = (
    "---",
    "--- !ruby/hash:ActiveSupport::HashWithIndifferentAccess",
    "crm_stage_id:",
    '"crm_stage\\x5fid":',
    "!binary Y3JtX3N0YWdlX2lk:",
    "? crm_stage_id",
    ":",
    "crm_stage_id: [31, 39]",
    "crm_stage_id: &a",
    "*a",
    "name: |",
    "-",
    "- ",
    "- 31",
    "- 39",
    "- '39'",
    "- 047",
    "- 0x27",
    "- !ruby/object:Stage",
    "- 3",
    "  9",
    "  crm_stage_id:",
    "  - 39",
    "...",
)


@given(st.lists(st.sampled_from(LINES), max_size=7).map(lambda lines: "\n".join(["---", *lines, ""])))
@example("---\ncrm_stage_id:\n- 31\n- 32\ncrm_stage_id:\n- 31\n- 39\n")
@example("---\ncrm_stage_id:\n-\n- 39\n")
@example("---\ncrm_stage_id:\n- 31\n- 047\n")
@example('---\n"crm_stage\\x5fid":\n- 31\n- 39\n')
@example("---\n!binary Y3JtX3N0YWdlX2lk:\n- 31\n- 39\n")
@settings(max_examples=400, deadline=None)
def test_no_row_that_is_one_is_taken_for_another_beforehand(text: str) -> None:
    row = ROW._replace(audited_changes=text)
    assert FINDER.may_be(row) or FINDER.find(row, Lookups()) is None


@pytest.mark.parametrize("created_at", [BEFORE, WATERMARK, WATERMARK + 1])
def test_it_makes_no_difference_who_owns_the_row(created_at: int) -> None:
    found = FINDER.find(ROW._replace(created_at=created_at), Lookups())
    assert isinstance(found, AssociationLog)
    assert found.external_id == "crm_audit:42"


def test_a_row_of_nobody_counts_only_if_it_is_one() -> None:
    nobody = ROW._replace(comment="")
    assert FINDER.find(nobody, Lookups()) == Skip(SkipReason.CONTACT_NOT_FOUND)
    assert FINDER.find(nobody._replace(audited_changes="---\ncrm_stage_id:\n- 39\n- 31\n"), Lookups()) is None
    assert link("Crm::TaskDeal", "---\ncrm_task_id: 1\ncrm_deal_id: 2\n") == Skip(SkipReason.CONTACT_NOT_FOUND)
    assert isinstance(link("Crm::TaskDeal", "--- [", comment='{"crm_person_id":1}'), Refused)


def test_of_the_sample_rows_exactly_those_are_found_that_the_topology_logs_so() -> None:
    transformer, seen = Transformer(MAPPING, "A"), 0
    for row in rows():
        document = getattr(transformer.transform(row.event, Anyone()), "document", {})
        is_one = document.get("category") in ENRICHED_CATEGORIES and document.get("action") in ENRICHED_ACTIONS
        found = FINDER.find(row.event, Anyone()) if FINDER.may_be(row.event) else None
        assert isinstance(found, AssociationLog) == is_one, row.event.audit_id
        if isinstance(found, AssociationLog):
            seen += 1
            named = {key: value for key, value in document["metadata"].items() if key not in ("request_id", "version")}
            assert found.links == named
    assert seen > 60
