"""Which document a row enriches, and with what."""

from typing import Any

import pytest

from sink.match_key import Association, agree, candidates, key_of, match_key, missing, same_form

ROW = Association(
    audit_id=1,
    external_id="crm_audit:1",
    customer_id="c",
    category="deal",
    action="link",
    timestamp_ms=10_000,
    ids={"crm_person_id": 5, "linked_entity_id": 70},
    texts={"linked_entity_type": "Crm::Deal", "linked_entity_name": "Roof"},
)


def document(**metadata: Any) -> dict[str, Any]:
    return {"customer_id": "c", "category": "deal", "action": "link", "metadata": metadata}


@pytest.mark.parametrize("same", [70, "70", " 070 ", 70.0])
def test_an_id_is_the_same_however_it_is_stored(same: Any) -> None:
    assert same_form(same) == 70
    assert key_of(document(linked_entity_id=same)) == match_key(ROW)


@pytest.mark.parametrize("value", [None, True, 7.5, "", "  "])
def test_what_is_no_id_matches_nothing(value: Any) -> None:
    assert same_form(value) is None
    assert key_of(document(linked_entity_id=value)) is None


def test_a_document_that_lacks_a_part_of_the_key_has_none() -> None:
    assert key_of({**document(linked_entity_id=70), "customer_id": None}) is None
    assert key_of({**document(), "metadata": None}) is None
    assert key_of({"customer_id": "c", "category": "deal", "action": "link"}) is None
    assert match_key(ROW._replace(ids={"crm_person_id": 5})) is None


def test_the_window_includes_its_ends() -> None:
    key = match_key(ROW)
    assert key is not None
    by_key = {key: [(7_999, "too early"), (8_000, "first"), (12_000, "last"), (12_001, "too late")]}
    assert candidates(ROW, by_key, 2_000) == ["first", "last"]
    assert candidates(ROW, by_key, 0) == []
    assert candidates(ROW._replace(customer_id="d"), by_key, 2_000) == []


def test_only_what_is_not_there_is_missing() -> None:
    assert missing(ROW, document()) == {**ROW.ids, **ROW.texts}
    assert missing(ROW, document(crm_person_id="5", linked_entity_name="Old name")) == {
        "linked_entity_id": 70,
        "linked_entity_type": "Crm::Deal",
    }
    assert missing(ROW, document(**{**ROW.ids, **ROW.texts})) == {}
    nothing = {name: value for name, value in document().items() if name != "metadata"}
    assert missing(ROW, nothing) == {**ROW.ids, **ROW.texts}


def test_a_null_is_there_and_contradicts_nothing() -> None:
    assert missing(ROW, document(**ROW.ids, linked_entity_name=None)) == {"linked_entity_type": "Crm::Deal"}
    assert "crm_person_id" not in (missing(ROW, document(crm_person_id=None)) or {})


@pytest.mark.parametrize(
    "other",
    [
        {**document(), "action": "unlink"},
        {**document(), "category": "task"},
        {**document(), "metadata": None},
        {**document(), "metadata": [{"crm_person_id": 5}]},
        document(crm_person_id=6),
        document(linked_entity_id=71),
    ],
)
def test_a_document_that_says_something_else_is_left_alone(other: dict[str, Any]) -> None:
    assert missing(ROW, other) is None


def test_rows_agree_if_they_would_add_the_same() -> None:
    assert agree([ROW, ROW._replace(audit_id=2, ids={"linked_entity_id": 70, "crm_company_id": 3})])
    assert not agree([ROW, ROW._replace(ids={"crm_person_id": 6})])
