"""Categories, contacts, watermark, actors, associations: one rule each."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.checks.file_rows import FileLookups
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from processors.rules.actors import ActorRules
from processors.rules.associations import AssociationRules, metadata_of, record_id_in
from processors.rules.categories import CategoryOf, action_of, category_rules, changes_status
from processors.rules.contacts import resolve
from processors.rules.enrichment import AssociationFinder, AssociationLog
from processors.rules.watermark import skip_reason
from schemas.codec import Codec
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.source import mapping
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import FellBack, SkipReason
from sink.indexes import ENRICHED_ACTIONS, ENRICHED_CATEGORIES
from tests.support.factories import event

MAPPING = mapping.load(None)
RULES = category_rules(MAPPING)

# Categories -----------------------------------------------------------------------------------------------------------


def logged(type_name: str, action: str, columns: dict[str, Any] | None = None) -> tuple[str, str] | None:
    rule = RULES.get((type_name, action))
    return (rule.category, action_of(rule, columns or {})) if rule is not None else None


@pytest.mark.parametrize(
    ("type_name", "category"),
    [
        ("Crm::Person", "contact"), ("Crm::Company", "company"), ("Crm::Deal", "deal"), ("Crm::Task", "task"),
        ("Crm::Ticket", "ticket"), ("Crm::Note", "note"),
    ],
)  # fmt: skip
def test_records(type_name: str, category: str) -> None:
    assert logged(type_name, "create") == (category, "create")
    assert logged(type_name, "update") == (category, "update")
    assert logged(type_name, "destroy") == (category, "delete")


@pytest.mark.parametrize(
    ("type_name", "category"),
    [
        ("Crm::DealPerson", "deal"), ("Crm::DealCompany", "deal"), ("Crm::CompanyPerson", "company"),
        ("Crm::TaskPerson", "task"), ("Crm::TaskDeal", "task"), ("Crm::TicketPerson", "ticket"),
        ("Crm::TicketCompany", "ticket"), ("Crm::TicketDeal", "ticket"),
    ],
)  # fmt: skip
def test_join_models(type_name: str, category: str) -> None:
    assert logged(type_name, "create") == (category, "link")
    assert logged(type_name, "update") == (category, "update")
    assert logged(type_name, "destroy") == (category, "unlink")


@pytest.mark.parametrize(
    ("type_name", "column", "reached", "action"),
    [
        ("Crm::Deal", "crm_stage_id", 39, "won"),
        ("Crm::Task", "crm_task_status_id", 5, "completed"),
        ("Crm::Ticket", "crm_ticket_status_id", 4, "resolved"),
    ],
)
def test_a_status_that_is_reached_names_the_action(type_name: str, column: str, reached: int, action: str) -> None:
    category = RULES[type_name, "update"].category
    assert logged(type_name, "update", {column: [1, reached]}) == (category, action)
    assert logged(type_name, "update", {column: ["1", str(reached)]}) == (category, action)
    for other in (
        [reached, 1],
        [1, None],
        [reached, None],
        reached,
        [reached],
        [1, reached, 1],
        [1, [reached]],
        [0, True],
    ):
        assert logged(type_name, "update", {column: other}) == (category, "update"), other
    assert logged(type_name, "create", {column: reached}) == (category, "create")
    assert logged(type_name, "destroy", {column: [1, reached]}) == (category, "delete")


WAYS_OF_39 = [39, "39", 39.0, "39.0", "39.00"]


@pytest.mark.parametrize("named", WAYS_OF_39)
def test_a_status_id_compares_by_value(named: Any) -> None:
    mapping = MAPPING.model_dump(by_alias=True) | {"id_sets": {"won": [named, "closed", "007"]}}
    rule = category_rules(SourceMapping.model_validate(mapping))["Crm::Deal", "update"]
    for stored in (*WAYS_OF_39, "closed", "007"):
        assert action_of(rule, {"crm_stage_id": [1, stored]}) == "won", stored
    for other in (
        3.9,
        39.5,
        "39.5",
        "39.",
        "3.9e1",
        "+39",
        " 39",
        "39\n",
        "-39",
        -39,
        390,
        "7",
        7,
        "Closed",
        "",
        True,
        None,
    ):
        assert action_of(rule, {"crm_stage_id": [1, other]}) == "update", other


@pytest.mark.parametrize(
    "changes",
    [
        "---\ncrm_stage_id:\n- 31\n- '39'\n",
        "---\ncrm_stage_id:\n- 31.0\n- 39.0\n",
        "---\ncrm_stage_id:\n- !ruby/object:BigDecimal 18:0.31e2\n- !ruby/object:BigDecimal 18:0.39e2\n",
        '{"crm_stage_id": ["31", "39"]}',
        '{"crm_stage_id": [31.0, 39.0]}',
    ],
)
def test_every_reader_brings_a_status_to_its_action(changes: str) -> None:
    lookups = FileLookups("a", None, {})
    row = AuditEvent(1, 0, 0, "Crm::Deal", 7, "Crm::Person", 1, "", 0, "", "update", changes, False, 1, "", "")
    transformed = Transformer(MAPPING, "a").transform(row, lookups)
    assert isinstance(transformed, Transformed)
    assert transformed.document["action"] == "won"
    assert RowEncoder(Transformer(MAPPING, "a"), lookups, Codec()).document(row) == documents.encode(
        transformed.document
    )
    finder = AssociationFinder(MAPPING, "a", ENRICHED_CATEGORIES, ENRICHED_ACTIONS)
    assert finder.may_be(row)
    found = finder.find(row, lookups)
    assert isinstance(found, AssociationLog)
    assert found.action == "won"


@pytest.mark.parametrize("ids", [{}, {"won": []}])
def test_an_id_set_that_is_not_configured_leaves_an_update(ids: dict[str, Any]) -> None:
    rule = category_rules(MAPPING.model_copy(update={"id_sets": ids}))["Crm::Deal", "update"]
    assert rule.status_ids is None
    assert changes_status(rule, {"crm_stage_id": [31, 39]})
    assert not changes_status(rule, {"name": ["a", "b"]})
    assert action_of(rule, {"crm_stage_id": [31, 39]}) == "update"


@pytest.mark.parametrize(
    ("type_name", "action"),
    [
        ("Crm::Deal", "merge"), ("Crm::Deal", ""), ("Crm::Deal", "Create"), ("Crm::Product", "create"),
        ("User", "update"), ("", "create"), ("crm::deal", "create"), ("Crm::DealPerson", "archive"),
    ],
)  # fmt: skip
def test_anything_else_is_unmapped(type_name: str, action: str) -> None:
    assert logged(type_name, action) is None


def test_a_type_outside_the_scope_is_unmapped_though_it_has_a_category() -> None:
    narrow = MAPPING.model_copy(update={"scope": ("Crm::Deal",)})
    assert {type_name for type_name, _ in category_rules(narrow)} == {"Crm::Deal"}


def test_a_rule_without_a_status_watches_nothing() -> None:
    assert not changes_status(CategoryOf("deal", "update"), {"": [1, 2]})


# Contacts -------------------------------------------------------------------------------------------------------------


class Contacts:
    def __init__(self, *contacts: Contact) -> None:
        self._contacts = {contact.crm_person_id: contact for contact in contacts}
        self.asked: list[str] = []

    def contact(self, person_id: str) -> Contact | None:
        self.asked.append(person_id)
        return self._contacts.get(person_id)


def test_persons_are_tried_until_one_has_a_contact() -> None:
    lookups = Contacts(Contact("A", "2", "customer-2", 0), Contact("A", "3", "customer-3", 0))
    found = resolve(("1", "2", "3"), "A", lookups)
    assert (found[0], found[1].customer_id) == ("2", "customer-2")
    assert lookups.asked == ["1", "2"]
    assert resolve(("1", "9"), "A", lookups) is None
    assert resolve((), "A", lookups) is None


@given(st.lists(st.tuples(st.sampled_from("12345"), st.sampled_from("AB")), max_size=8), st.permutations("12345"))
def test_another_account_s_contact_never_fits(known: list[tuple[str, str]], tried: list[str]) -> None:
    # Two CRMs count their persons from 1 both: the same id in the wrong table is another human being.
    contacts = [Contact(account, person_id, f"{account}-{person_id}", 0) for person_id, account in known]
    found = resolve(tried, "A", Contacts(*contacts))
    assert found is None or found[1].company_sso_id == "A"
    of_a = {person_id for person_id, account in dict(known).items() if account == "A"}
    assert (found[0] if found else None) == next((person for person in tried if person in of_a), None)


# Watermark ------------------------------------------------------------------------------------------------------------

MICROS = st.integers(min_value=-(2**53), max_value=2**53)


@given(MICROS, MICROS | st.sampled_from((0, 1, -1)))
def test_exactly_one_side_takes_a_row(created_at: int, distance: int) -> None:
    for watermark in (created_at + distance, created_at, created_at + 1, created_at - 1):
        replay = skip_reason(created_at, watermark, live=False)
        live = skip_reason(created_at, watermark, live=True)
        assert (replay is None) != (live is None)
        assert replay in (None, SkipReason.POST_SYNC_LIVE_FEED)
        assert live in (None, SkipReason.PRE_SYNC_REPLAY)


def test_the_same_instant_belongs_to_the_live_feed() -> None:
    assert skip_reason(1000, 1000, live=False) is SkipReason.POST_SYNC_LIVE_FEED
    assert skip_reason(1000, 1000, live=True) is None
    assert skip_reason(999, 1000, live=False) is None


@given(st.datetimes(), st.integers(-12, 14), st.integers(-12, 14), st.integers(-1, 1))
def test_time_zones_do_not_move_the_watermark(moment: datetime, zone: int, other_zone: int, micros: int) -> None:
    def stamp(at: datetime) -> int:
        return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    row = moment.replace(tzinfo=timezone(timedelta(hours=zone)))
    try:
        watermark = (row + timedelta(microseconds=micros)).astimezone(timezone(timedelta(hours=other_zone)))
    except OverflowError:
        return
    assert (skip_reason(stamp(row), stamp(watermark), live=False) is None) == (micros > 0)


# Actors ---------------------------------------------------------------------------------------------------------------


class Users:
    def user(self, user_id: int) -> User | None:
        return {
            11: User(11, "siti@example.com", "Siti", False),
            12: User(12, "unheard.of@example.com", "Unheard Of", False),
            13: User(13, "", "No Email", False),
            14: User(14, "siti@example.com", "Left", True),
        }.get(user_id)

    def sso_id(self, email: str) -> str | None:
        return {"siti@example.com": "uuid-11"}.get(email)


DELETED = {"type": "deleted_user", "id": None, "name": "[Deleted CRM User]"}
SYSTEM = {"type": "system", "id": None, "name": "Qontak System"}


@pytest.mark.parametrize(
    ("fields", "actor"),
    [
        ({"user_type": "User", "user_id": 11}, {"type": "user", "id": "uuid-11", "name": "Siti"}),
        (
            {"user_type": "User", "user_id": 11, "username": "x"},
            {"type": "user", "id": "uuid-11", "name": "Siti"},
        ),
        ({"user_type": "User", "user_id": 12}, DELETED),
        ({"user_type": "User", "user_id": 13}, DELETED),
        ({"user_type": "User", "user_id": 14}, DELETED),
        ({"user_type": "User", "user_id": 15}, DELETED),
        ({"user_type": "ApiClient", "user_id": 11}, DELETED),
        ({"user_type": "", "user_id": 11}, DELETED),
        ({"username": "sidekiq-import"}, DELETED),
        ({"user_type": "User", "username": "sidekiq-import"}, DELETED),
        ({}, SYSTEM),
        ({"user_type": "User"}, SYSTEM),
    ],
)
def test_who_did_it(fields: dict[str, Any], actor: dict[str, Any]) -> None:
    assert ActorRules(MAPPING).actor(event(**fields), Users()) == tuple(actor.values())


@pytest.mark.parametrize(
    ("fields", "case"),
    [
        ({"user_type": "User", "user_id": 12}, FellBack.NO_SSO_ID),
        ({"user_type": "User", "user_id": 13}, FellBack.NO_EMAIL),
        ({"user_type": "User", "user_id": 14}, FellBack.DELETED),
        ({"user_type": "User", "user_id": 15}, FellBack.NO_USER),
        ({"user_type": "ApiClient", "user_id": 11}, FellBack.OTHER_TYPE),
        ({"username": "sidekiq-import"}, FellBack.USERNAME_ONLY),
    ],
)
def test_each_actor_that_falls_back_is_counted_under_its_case(fields: dict[str, Any], case: FellBack) -> None:
    rules = ActorRules(MAPPING)
    assert rules.actor(event(**fields), Users()) == tuple(DELETED.values())
    assert rules.actor(event(**fields), Users())
    rules.actor(event(user_type="User", user_id=11), Users())
    rules.actor(event(), Users())
    assert rules.fell_back == {case: 2}


def test_the_names_of_nobody_are_the_mapping_s() -> None:
    other = mapping.ActorNames(deleted_user="[Gone]", system="CRM")
    rules = ActorRules(MAPPING.model_copy(update={"actors": other}))
    assert rules.actor(event(), Users())[2] == "CRM"
    assert rules.actor(event(username="x"), Users())[2] == "[Gone]"


# Associations ---------------------------------------------------------------------------------------------------------


class Names:
    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        name = {("Crm::Deal", 7): "Renewal", ("Crm::Company", 3): "PT Maju", ("Crm::Ticket", 4): ""}.get(
            (referent_type, referent_id)
        )
        return Referent(referent_type, referent_id, name) if name is not None else None


def linked(columns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return metadata_of(AssociationRules(MAPPING).links(event(**fields), columns, Names()))


def test_a_join_row_links_the_side_of_its_category() -> None:
    deal = {"linked_entity_type": "Crm::Deal", "linked_entity_id": 7, "linked_entity_name": "Renewal"}
    assert linked({"crm_deal_id": 7, "crm_person_id": 5}, auditable_type="Crm::DealPerson") == deal
    company = {"crm_company_id": 3, "crm_company_name": "PT Maju"}
    for columns in ({"crm_deal_id": 7, "crm_company_id": 3}, {"crm_company_id": "3", "crm_deal_id": [6, 7]}):
        assert linked(columns, auditable_type="Crm::DealCompany") == deal | company
    assert linked({"crm_task_id": 1, "crm_deal_id": 7}, auditable_type="Crm::TaskDeal") == {
        "linked_entity_type": "Crm::Task",
        "linked_entity_id": 1,
        "crm_deal_id": 7,
        "crm_deal_name": "Renewal",
    }


def test_a_join_row_without_its_keys_links_nothing() -> None:
    assert linked({"role": [None, "owner"]}, auditable_type="Crm::DealPerson") == {}
    assert linked({"crm_deal_id": [1, 2, 3]}, auditable_type="Crm::DealPerson") == {}


def test_a_record_s_row_links_the_record_and_a_person_s_row_nothing() -> None:
    assert linked({}, auditable_type="Crm::Deal", auditable_id=7)["linked_entity_name"] == "Renewal"
    assert linked({}, auditable_type="Crm::Deal", auditable_id=8) == {
        "linked_entity_type": "Crm::Deal",
        "linked_entity_id": 8,
    }
    assert "linked_entity_name" not in linked({}, auditable_type="Crm::Ticket", auditable_id=4)
    assert linked({}, auditable_type="Crm::Person", auditable_id=7) == {}
    assert linked({}, auditable_type="Crm::Deal", auditable_id=0) == {}


@pytest.mark.parametrize(
    ("value", "record_id"),
    [
        (5, 5), ("5", 5), ([4, 5], 5), ([4, None], 4), ([None, "5"], 5), (None, None), (0, None), (-1, None),
        (True, None), (5.0, None), ("x", None), ("²", None), ([1], None), ([[1], [2]], None), ("9" * 30, None),
        (2**63, None),
    ],
)  # fmt: skip
def test_the_id_in_a_foreign_key(value: Any, record_id: int | None) -> None:
    assert record_id_in(value) == record_id
