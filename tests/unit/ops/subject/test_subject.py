"""Whether a record is about a person, in every form in which one can be; and what a certificate says."""

import json
from datetime import UTC, datetime, timedelta

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.subject.model import Certificate, Kept, Person, gone_by, is_about, shown_record
from schemas.codec import Codec
from schemas.errors import BadInputError
from schemas.records import ActivityLog, Contact, DeadLetter, Record, Referent, SkippedRecord
from schemas.source.mapping import PersonRule
from schemas.source.person import PERSON_ID_MAX
from sink.purge import of_person
from tests.support.factories import event

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CODEC = Codec()
RULE = PersonRule()


def log(person_id: int, **more: object) -> ActivityLog:
    return ActivityLog(1, 0, 0, 1, bson.encode({"metadata": {"crm_person_id": person_id}, **more}))


def letter(payload: Record, key: bytes = b"") -> DeadLetter:
    return DeadLetter(1, 0, "t", 0, 0, 1, "write_refused", "", key, CODEC.encode(payload), 0)


def about(person: Person, record: Record, key: bytes | None = None) -> bool:
    return is_about(person, key, CODEC.encode(record), CODEC)


@given(st.integers(1, PERSON_ID_MAX) | st.integers(1, 300))
def test_a_person_is_found_in_every_form_that_names_one_and_a_neighbour_never_is(number: int) -> None:
    person = Person.of("acme", str(number), RULE)
    other = Person.of("acme", str(number - 1 if number > 1 else 2), RULE)
    records: list[Record] = [
        event(comment=f'{{"crm_person_id": {number}}}'),
        event(audited_changes=f"---\ncrm_person_id: {number}\n"),
        event(audited_changes=f'{{"crm_person_id": [null, "{number}"]}}', changes_are_json=True),
        event(auditable_type="Crm::Person", auditable_id=number),
        event(associated_type="Crm::Person", associated_id=number, company_sso_id="acme"),
        log(number),
        letter(event(auditable_type="Crm::Person", auditable_id=number)),
        letter(log(number)),
        Contact("acme", str(number), "customer", 0),
        Referent("Crm::Person", number, "a name"),
    ]
    for record in records:
        assert about(person, record), record
        assert not about(other, record), record
    assert is_about(person, str(number).encode(), b"no Avro", CODEC)
    assert is_about(person, f"Crm::Person:{number}".encode(), b"no Avro", CODEC)
    assert about(person, SkippedRecord(1, 0, 0, 1, "contact_not_found"), str(number).encode())


def test_numbers_that_only_look_like_the_person_are_not_about_them() -> None:
    person = Person.of("acme", "50001", RULE)
    for record in (
        event(audit_id=50001, audited_changes="---\namount: 50001\n"),
        event(auditable_id=50001),  # a deal with the same number
        log(1, external_id="crm_audit:50001"),
        Referent("Crm::Deal", 50001, "a deal"),
        event(auditable_type="Crm::Person", auditable_id=50001, company_sso_id="another"),
    ):
        assert not about(person, record), record
    assert not is_about(person, None, b"50001 and no Avro", CODEC)
    assert not about(person, ActivityLog(1, 0, 0, 1, b"50001 and no BSON"))


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "\u0661", str(PERSON_ID_MAX + 1)])
def test_what_is_no_person_id_is_bad_input(text: str) -> None:
    with pytest.raises(BadInputError, match="no CRM person id"):
        Person.of("acme", text, RULE)
    assert Person.of("acme", " 007 ", RULE).person_id == "7"


def test_the_query_names_account_person_and_our_external_ids_only() -> None:
    query = of_person("acme", "7", ["c2", "c1"])
    assert (query["company_sso_id"], query["external_id"]) == ("acme", {"$gte": "crm_audit:", "$lt": "crm_audit;"})
    assert query["$or"][0] == {"metadata.crm_person_id": {"$in": ["7", 7]}}
    assert query["$or"][1]["customer_id"] == {"$in": ["c1", "c2"]}
    assert len(of_person("acme", "7")["$or"]) == 1


def test_a_topic_lets_go_after_retention_and_segment_or_never() -> None:
    day = 24 * 3600 * 1000
    config = {"cleanup.policy": "delete", "retention.ms": str(30 * day), "segment.ms": str(7 * day)}
    assert gone_by(config, NOON) == NOON + timedelta(days=37)
    assert gone_by({**config, "retention.ms": "-1"}, NOON) is None
    assert gone_by({**config, "cleanup.policy": "compact"}, NOON) is None


def test_a_certificate_is_complete_only_when_nothing_is_left_and_nothing_can_come_back() -> None:
    certificate = Certificate("acme", "7", NOON, "somebody@host", still_in={"contacts": 0})
    assert certificate.complete
    certificate.left.append(Kept("topic", 2, "retention of the topic", NOON))
    assert not certificate.complete
    answer = json.loads(json.dumps(certificate.as_dict()))
    assert answer["left"] == [
        {"where": "topic", "count": 2, "why": "retention of the topic", "gone_by": NOON.isoformat()}
    ]
    assert not Certificate("acme", "7", NOON, "x", still_in={"contacts": 1}).complete


def test_an_export_shows_what_a_dead_letter_carries() -> None:
    shown = shown_record("t", 0, 5, b"7", CODEC.encode(letter(log(7, note="kept"))), CODEC)
    inner = shown["record"]["fields"]["payload"]
    assert (shown["offset"], shown["key"], inner["kind"]) == (5, "7", "ActivityLog")
    assert inner["fields"]["document"]["note"] == "kept"
