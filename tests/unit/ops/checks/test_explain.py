"""The lineage of a row: bounds, persons, the rule that decided, the end in one phrase."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from ops.checks.explain.lineage import Lineage, Row, candidates, out_of_scope, run_of, steps, text_lines, verdict
from ops.checks.verify.expected import expected_of
from ops.kafka.rows import murmur2, partition_of
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from producer.cursor import EARLIEST
from schemas.codec import Codec
from schemas.identity import replay_id
from schemas.records import AuditEvent, Contact
from schemas.source.mapping import load
from schemas.vocabulary import DeadLetterCause, SkipReason
from tests.support.lookups import Nothing

ACCOUNT = "acme"
MAPPING = load(None)
SYNCED = 1_700_000_000_000_000
BEFORE, AFTER = SYNCED - 1, SYNCED
MOMENT = 1_600_000_000_000_000


class Platform(Nothing):
    """Contacts in memory."""

    def __init__(self, *contacts: Contact) -> None:
        self._contacts = {contact.crm_person_id: contact for contact in contacts}

    def contact(self, person_id: str) -> Contact | None:
        return self._contacts.get(person_id)


KNOWN = Platform(Contact(ACCOUNT, "9", "cus-9", SYNCED), Contact("other", "10", "cus-10", SYNCED))


def event(
    changes: str = "---\nname: Budi\n",
    *,
    type_: str = "Crm::Person",
    id_: int = 9,
    action: str = "create",
    comment: str = "",
    created_at: int = BEFORE,
    associated: tuple[str, int] = ("", 0),
) -> AuditEvent:
    return AuditEvent(7, 0, created_at, type_, id_, *associated, "User", 1, "", action, changes, False, 1, comment, "")


@pytest.mark.parametrize(
    ("row", "rule", "verdict_", "ends"),
    [
        (event(action="merge"), "scope", "skip", SkipReason.UNMAPPED_ACTION_TYPE),
        (event(type_="Crm::Company", id_=3), "contact", "skip", SkipReason.CONTACT_NOT_FOUND),
        (event(id_=10), "contact", "skip", SkipReason.CONTACT_NOT_FOUND),  # another tenant's contact
        (event(created_at=AFTER), "watermark", "skip", SkipReason.POST_SYNC_LIVE_FEED),
        (event("--- [never closed"), "changes", "refuse", DeadLetterCause.UNDECODABLE_CHANGES),
        (event(), "changes", "pass", bytes),
    ],
)
def test_the_rule_that_decides_is_the_transformations_own(row: Any, rule: str, verdict_: str, ends: Any) -> None:
    last = steps(row, MAPPING, ACCOUNT, KNOWN)[-1]
    assert (last.rule, last.verdict) == (rule, verdict_)
    expected = expected_of(row, RowEncoder(Transformer(MAPPING, ACCOUNT), KNOWN, Codec()))
    if ends is bytes:
        assert isinstance(expected, bytes)
    else:
        assert expected is ends
        assert ends.value in last.values.values()


def test_the_steps_name_what_was_compared() -> None:
    found = steps(event(comment='{"crm_person_id": 11}'), MAPPING, ACCOUNT, KNOWN)
    assert [step.rule for step in found] == ["scope", "contact", "watermark", "changes"]
    assert (
        "person 11 (comment) is no contact of this account, person 9 (the row itself) is customer cus-9"
        in found[1].text
    )
    assert "2023-11-14T22:13:19.999999+00:00" in found[2].text
    assert "2023-11-14T22:13:20+00:00" in found[2].text
    assert "Budi" not in " ".join(step.text for step in found)


def test_a_status_that_was_reached_is_said() -> None:
    rule = MAPPING.categories["Crm::Deal"].status
    won = MAPPING.id_sets[rule.id_set][0]
    row = event(
        f"---\n{rule.column}:\n- 0\n- {won}\n", type_="Crm::Deal", action="update", comment='{"crm_person_id":9}'
    )
    last = steps(row, MAPPING, ACCOUNT, KNOWN)[-1]
    assert (last.rule, last.text.endswith(": deal/won")) == ("status", True)
    row = event(
        f"---\n{rule.column}:\n- 0\n- 999999\n", type_="Crm::Deal", action="update", comment='{"crm_person_id":9}'
    )
    assert steps(row, MAPPING, ACCOUNT, KNOWN)[-1].text.endswith(": deal/update")


def test_persons_are_in_the_order_tried_each_with_its_place() -> None:
    row = event(
        "---\ncrm_person_id:\n- 12\n- 13\n",
        action="update",
        comment='{"crm_person_id": 11}',
        associated=("Crm::Person", 14),
    )
    assert [(each["person_id"], each["from"]) for each in candidates(row, MAPPING)] == [
        ("11", "comment"),
        ("13", "audited_changes"),
        ("12", "audited_changes"),
        ("9", "the row itself"),
        ("14", "associated record"),
    ]
    assert candidates(event(type_="Crm::Company"), MAPPING) == []


@dataclass(frozen=True)
class Job:
    reads_from: datetime = datetime(2020, 1, 1, tzinfo=UTC)
    top_audit_id: int = 100


def row(**changed: object) -> Row:
    fields = {"exists": True, "auditable_type": "Crm::Deal", "action": "create", "created_at_us": MOMENT, "ours": True}
    return Row(**{**fields, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "audit_id", "says"),
    [
        (row(), 100, ""),
        (row(), 101, "above the job's top, 100"),
        (row(created_at_us=1_577_836_800_000_000), 7, ""),
        (row(created_at_us=1_577_836_799_999_999), 7, "before the job's cutoff 2020-01-01"),
        (row(created_at_us=None), 7, "no created_at"),
        (row(auditable_type="Crm::Secret"), 7, "Crm::Secret is not in the mapping's scope"),
        (row(ours=False), 7, "another account's"),
        (Row(exists=False), 7, "no row with this id"),
    ],
)
def test_why_a_row_is_not_read_is_told(found: Any, audit_id: int, says: str) -> None:
    why = "; ".join(out_of_scope(found, audit_id, MAPPING, Job()))
    assert (says in why) if says else (why == "")


def test_a_job_without_a_date_range_reads_rows_whatever_their_created_at() -> None:
    for created_at_us in (None, -(2**63), 2**63 - 1):
        assert out_of_scope(row(created_at_us=created_at_us), 7, MAPPING, Job(reads_from=EARLIEST)) == []


def test_without_a_job_no_bound_is_known() -> None:
    assert out_of_scope(row(), 10**9, MAPPING, None) == []


LOG = {"what": "activity log", "reason": ""}
SKIPPED = {"what": "skipped", "reason": "contact_not_found"}
FAILED = {"what": "dead letter", "reason": "write_refused"}


def lineage(**facts: object) -> Lineage:
    return Lineage(ACCOUNT, 7, dict(facts))


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"document": {"found": True, "of_replay": True, "differs": []}}, "migrated"),
        (
            {"document": {"found": True, "of_replay": True, "differs": ["action"]}},
            "differs from what the row becomes now: action",
        ),
        ({"document": {"found": True, "of_replay": False}}, "the live feed has written its document"),
        ({"document": {"found": False}, "outcome": {"records": [LOG, SKIPPED]}}, "skipped: contact_not_found"),
        ({"document": {"found": False}, "outcome": {"records": [LOG]}}, "there is no document"),
        ({"outcome": {"records": [LOG]}}, "whether it was written could not be checked"),
        (
            {"dead_letters": {"letters": [{"cause": "write_refused", "offset": 4}]}},
            "write_refused (dead letter at offset 4)",
        ),
        ({"document": {"found": False}, "outcome": {"records": [FAILED]}}, "failed: write_refused"),
        ({"source": {"out_of_scope": ["it is new"]}}, "not replayed: it is new"),
        ({"published": {"records": [{}]}, "outcome": {"records": []}}, "in transit, or lost"),
        ({"job": None}, "the account has no job"),
        ({"job": {}, "decision": {"result": "a document"}}, "it would be a document now; where it is"),
        ({}, "too few servers could be queried"),
    ],
)
def test_the_outcome_in_one_phrase(facts: dict[str, Any], says: str) -> None:
    assert says in verdict(lineage(**facts))


def test_an_unavailable_part_is_shown_in_its_place() -> None:
    found = lineage()
    found.add("source", {"exists": True}, "one", "two")
    found.not_looked_at["published"] = "Kafka is down"
    lines = list(text_lines(found))
    assert [line.split() for line in lines] == [
        ["source", "one"],
        ["two"],
        ["published", "unavailable:", "Kafka", "is", "down"],
    ]
    shown = found.as_dict()
    assert shown["not_looked_at"] == {"published": "Kafka is down"}
    assert shown["published"] is None


def test_the_run_is_read_from_an_id_of_our_making_alone() -> None:
    assert run_of(ObjectId(replay_id(1_795_260_184, 7)), 7) == 1_795_260_184
    assert run_of(ObjectId(replay_id(1_795_260_184, 7)), 8) is None
    assert run_of("somebody's own", 7) is None


@pytest.mark.parametrize(
    ("key", "hashed"),  # as Kafka's own tests have them
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_are_shared_out_as_kafka_does(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed % 2**32
    assert partition_of(key, 4) == (hashed & 0x7FFFFFFF) % 4
