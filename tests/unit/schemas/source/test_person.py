"""Whose row it is: every comment form of the sample, every form of the changes, and the key the producer uses."""
# ruff: noqa: E501 - a table of fragments

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import AuditEvent
from schemas.source.audited_changes import Columns, read
from schemas.source.mapping import PersonRule
from schemas.source.person import (
    COMBINED,
    changes_candidates,
    comment_candidates,
    person_candidates,
    record_key,
)
from tests.support.factories import event
from tests.unit.schemas.sample import SampleRow, row_id, rows

RULE = PersonRule()


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ('{"crm_person_id":50007}', ("50007",)),
        ('{"crm_person_id":"50007","source":"import"}', ("50007",)),
        ('{"crm_person_id": " 0050007 "}', ("50007",)),
        ('{"crm_person_id":50007,"crm_deal_id":null,"note":"ganti: \\"harga\\""}', ("50007",)),
        ('{"crm_person_id":[50007]}', ("50007",)),
        ('{"crm_person_id":[50007,"50008",null,50007.5]}', ("50007", "50008")),
        ('{"crm_person\\u005fid":50007}', ("50007",)),
        (' {"crm_person_id" : 50007}\n', ("50007",)),
        (f'{{"crm_person_id":50007}}{COMBINED}', ("50007",)),
        (f'{{"crm_person_id":50007}}{COMBINED}{COMBINED}', ("50007",)),
        ('{"crm_person_id":null}', ()),
        ('{"crm_person_id":true}', ()),
        ('{"crm_person_id":50007.0}', ()),
        ('{"crm_person_id":0}', ()),
        ('{"crm_person_id":-5}', ()),
        ('{"crm_person_id":9223372036854775808}', ()),
        ('{"crm_person_id":"abc"}', ()),
        ('{"crm_person_id":"٣"}', ()),
        ('{"crm_person_id":{"id":50007}}', ()),
        ('{"crm_deal_id":50007}', ()),
        ('{"nested":{"crm_person_id":50007}}', ()),
        ("{crm_person_id: 50007}", ()),
        ('{"crm_person_id":50007', ()),
        ('[{"crm_person_id":50007}]', ()),
        ("ditutup oleh supervisor", ()),
        (f"langkah empat{COMBINED}", ()),
        (COMBINED, ()),
        ("123", ()),
        ("null", ()),
        ("   ", ()),
        ("", ()),
        ('{"crm_person_id":' + "[" * 100_000, ()),
        ('{"crm_person_id":' + "9" * 5_000 + "}", ()),
    ],
)
def test_who_a_comment_names(comment: str, expected: tuple[str, ...]) -> None:
    assert comment_candidates(comment, RULE) == expected
    assert person_candidates(event(comment=comment), RULE) == expected


@pytest.mark.parametrize(
    ("action", "changes", "expected"),
    [
        ("create", "---\ncrm_person_id: 50007\n", ("50007",)),
        ("destroy", "---\nname: 'x'\ncrm_person_id: 50007\n", ("50007",)),
        ("update", "---\ncrm_person_id:\n- 50001\n- 50002\n", ("50002", "50001")),
        ("update", "---\ncrm_person_id:\n- 50001\n-\n", ("50001",)),
        ("update", "---\ncrm_person_id:\n-\n- 50002\n", ("50002",)),
        ("update", "---\ncrm_person_id: 50003\nname:\n- a\n- b\n", ("50003",)),  # a combined row
        ("update", "---\ncrm_person_id:\n- '50001'\n- '50002'\n", ("50002", "50001")),
        ("create", "---\ncrm_person_id:\n- 1\n- 2\n", ()),  # a list where a value belongs
        ("create", "---\ncrm_person_id:\n", ()),
        ("create", "---\nold_crm_person_id: 5\n", ()),
        ("create", '---\n"crm_person\\x5fid": 5\n', ("5",)),
        ("create", "---\n!binary Y3JtX3BlcnNvbl9pZA==: 5\n", ("5",)),
        ("create", "---\n!<!bin%61ry> Y3JtX3BlcnNvbl9pZA==: 5\n", ("5",)),
        ("create", "%TAG ! tag:yaml.org,2002:bin\n---\n!ary Y3JtX3BlcnNvbl9pZA==: 5\n", ("5",)),
        ("create", '---\n? "crm_person\\\n  _id"\n: 5\n', ("5",)),
        ("create", "---\nnote: |\n  crm_person_id: 5\n", ()),
        ("create", "---\nnested:\n  crm_person_id: 5\n", ()),
        ("create", "---\nnote: 'a\ncrm_person_id: 5\n'\n", ()),
        ("create", '{"crm_person_id": 50007}', ("50007",)),
        ("update", '{"crm_person_id": [50001, 50002]}', ("50002", "50001")),
        ("update", '{"crm_person\\u005fid": [50001, 50002]}', ("50002", "50001")),
        ("create", "---\ncrm_person_id: 5\nbroken: 'x\n", ()),
    ],
)
def test_who_the_changes_name(action: str, changes: str, expected: tuple[str, ...]) -> None:
    row = event(action=action, audited_changes=changes)
    assert person_candidates(row, RULE) == expected
    assert record_key(row, RULE) == (expected[0] if expected else "Crm::Deal:7")


def test_the_order_and_that_nobody_is_tried_twice() -> None:
    row = event(
        comment='{"crm_person_id":1}',
        audited_changes="---\ncrm_person_id:\n- 3\n- 2\n",
        auditable_type="Crm::Person",
        auditable_id=4,
        associated_type="Crm::Person",
        associated_id=5,
    )
    assert person_candidates(row, RULE) == ("1", "2", "3", "4", "5")
    assert person_candidates(row._replace(auditable_id=1, associated_id=3), RULE) == ("1", "2", "3")
    assert record_key(row, RULE) == "1"


def test_only_persons_count_among_the_row_s_own_ids() -> None:
    assert person_candidates(event(auditable_type="Crm::Person"), RULE) == ("7",)
    assert person_candidates(event(associated_type="Crm::Person", associated_id=9), RULE) == ("9",)
    assert person_candidates(event(associated_type="Crm::Deal", associated_id=9), RULE) == ()
    assert record_key(event(auditable_type="", auditable_id=0), RULE) == ":0"


def test_the_rule_s_own_names() -> None:
    rule = PersonRule(type="Lead", columns=("lead_id", "old_lead_id"), comment_key="lead")
    row = event(
        action="create",
        comment='{"lead":1}',
        audited_changes="---\nold_lead_id: 3\nlead_id: 2\n",
        auditable_type="Lead",
    )
    assert person_candidates(row, rule) == ("1", "2", "3", "7")
    assert person_candidates(row._replace(comment='{"crm_person_id":1}'), rule) == ("2", "3", "7")


def full(row: AuditEvent) -> tuple[str, ...]:
    """Return the candidates without any of the shortcuts."""
    columns = read(row.audited_changes, row.changes_are_json)
    named = changes_candidates(row.action, RULE, columns.values) if isinstance(columns, Columns) else ()
    records = ((row.auditable_type, row.auditable_id), (row.associated_type, row.associated_id))
    own = [str(id_) for type_name, id_ in records if type_name in RULE.types and id_ > 0]
    return tuple(dict.fromkeys((*comment_candidates(row.comment, RULE), *named, *own)))


def assert_shortcuts_change_nothing(row: AuditEvent) -> None:
    candidates = full(row)
    assert person_candidates(row, RULE) == candidates
    assert record_key(row, RULE) == (candidates[0] if candidates else f"{row.auditable_type}:{row.auditable_id}")


@pytest.mark.parametrize("row", rows(), ids=row_id)
def test_a_sample_row_has_the_key_that_reading_it_gives(row: SampleRow) -> None:
    assert_shortcuts_change_nothing(row.event)
    assert_shortcuts_change_nothing(row.event._replace(comment=""))


PARTS = st.sampled_from(
    ["crm_person_id", "crm_person_id:", " 5", " 50001", "\n", "\n-", "\n- ", "\n- 7", "\n  ", "'", '"', "\\x5f", "a: b", "note: ",
     "[", "{", "]", "}", ",", "\n? ", "\n: ", "|", "#", "&1 ", "*1", "!binary ", "<<: ", "---", "'x'", '"y"', "old_", "!!str ", "\ncrm_"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=10), st.sampled_from(["create", "update", "destroy", "merge"]))
@settings(max_examples=400, deadline=None)
def test_the_key_is_what_reading_the_whole_text_gives(parts: list[str], action: str) -> None:
    for start in ("---\n", "---\ncrm_person_id: 1\n", "---\ncrm_person_id:\n- 1\n- 2\n", "{"):
        assert_shortcuts_change_nothing(event(action=action, audited_changes=start + "".join(parts)))
        assert_shortcuts_change_nothing(event(action=action, audited_changes=start + "".join(parts) + "\n"))


def test_a_comment_of_a_row_that_was_combined_thousands_of_times_takes_no_time() -> None:
    began = time.process_time()
    assert comment_candidates('{"crm_person_id":50007}' + COMBINED * 20_000, RULE) == ("50007",)
    assert time.process_time() - began < 1
