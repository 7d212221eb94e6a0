"""A run's records and the outcomes they become."""

from collections.abc import Callable
from typing import Any

import pytest

from processors.batches import DETAIL_CHARACTERS_MAX, KEY_BYTES_MAX, BatchTransformer, acting_users
from processors.encoding.documents import DOCUMENT_BYTES_MAX
from processors.encoding.transform import Transformed
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.rules.decide import Refused, Skip
from schemas.codec import Codec
from schemas.errors import UnreadableTopicError
from schemas.records import (
    RECORD_TYPES,
    ActivityLog,
    AuditEvent,
    DeadLetter,
    Outcome,
    Record,
    SkippedRecord,
    SnapshotMarker,
)
from schemas.vocabulary import DeadLetterCause, SkipReason
from tests.support.factories import JOB, Consumed

CODEC = Codec()
EVENT = AuditEvent(5, 1, 1000, "Crm::Person", 1, "", 0, "User", 3, "", "update", "--- {}\n", False, 1, "", "")
Transform = Callable[[AuditEvent], Transformed | Skip | Refused]


def echo(event: AuditEvent) -> Transformed:
    return Transformed({"id": event.audit_id})


def encode(document: Any) -> bytes:
    return b"%d" % document["id"]


class Bench:
    """A transformer, what it counted, and where its partition stands."""

    def __init__(self, transform: Transform = echo, encode_document: Callable[[Any], bytes] = encode) -> None:
        self.metrics = ProcessorMetrics()
        self.transformer = BatchTransformer(JOB, CODEC, transform, encode_document, self.metrics)
        self.high = HighWater(JOB.run)

    def ended(self) -> bool:
        return self.high.ended

    def run(self, *records: Consumed) -> list[tuple[bytes, Outcome | SnapshotMarker]]:
        decoded = self.transformer.decode(records)
        messages = self.transformer.outcomes(records, decoded, 1, self.high)
        return [(key, CODEC.decode(value)) for key, value in messages]  # type: ignore[misc]

    def one(self, event: AuditEvent = EVENT) -> Outcome | SnapshotMarker:
        ((key, outcome),) = self.run(Consumed(b"k", CODEC.encode(event)))
        assert key == b"k"
        return outcome


def test_a_row_that_only_the_settings_keep_from_being_decoded_is_no_dead_letter() -> None:
    row = Codec({record_type: 1 + at for at, record_type in enumerate(RECORD_TYPES)}).encode(EVENT)
    with pytest.raises(UnreadableTopicError, match=r"offset 40 cannot be decoded: .*set SCHEMA_REGISTRY_URL"):
        Bench().run(Consumed(b"k", CODEC.encode(EVENT)), Consumed(b"k", row))
    for poison in (row[:-1], b"\0" * 40):
        ((_, letter),) = Bench().run(Consumed(b"k", poison))
        assert isinstance(letter, DeadLetter)


def test_a_log_carries_the_documents_very_bytes() -> None:
    bench = Bench()
    assert bench.one() == ActivityLog(5, 1, 40, 9, b"5")
    assert (bench.metrics.records_in, bench.metrics.logs) == (1, 1)


def test_a_skip_is_an_outcome_with_its_reason() -> None:
    bench = Bench(lambda _: Skip(SkipReason.CONTACT_NOT_FOUND))
    assert bench.one() == SkippedRecord(5, 1, 40, 9, "contact_not_found")
    assert bench.metrics.skips == {"contact_not_found": 1}


def test_a_refused_row_is_a_dead_letter_with_all_that_is_needed_to_try_again() -> None:
    bench = Bench(lambda _: Refused(DeadLetterCause.UNDECODABLE_CHANGES, "not YAML"))
    letter = bench.one()
    assert isinstance(letter, DeadLetter)
    assert letter._replace(failed_at=0) == DeadLetter(
        5, 1, JOB.topics.replay, 1, 40, 9, "undecodable_changes", "not YAML", b"k", CODEC.encode(EVENT), 0
    )
    assert letter.failed_at > 1_700_000_000_000_000
    assert bench.metrics.dead_letters == {"undecodable_changes": 1}


def test_a_document_over_mongodbs_bound_is_a_dead_letter() -> None:
    assert isinstance(Bench(encode_document=lambda _: bytes(DOCUMENT_BYTES_MAX)).one(), ActivityLog)
    letter = Bench(encode_document=lambda _: bytes(DOCUMENT_BYTES_MAX + 1)).one()
    assert isinstance(letter, DeadLetter)
    assert letter.cause == DeadLetterCause.DOCUMENT_TOO_LARGE


def failing(times: int) -> Transform:
    left = [times]

    def transform(event: AuditEvent) -> Transformed:
        if left[0]:
            left[0] -= 1
            raise ValueError(f"about {event.user_id}")
        return echo(event)

    return transform


def test_a_rule_that_fails_is_tried_once_more() -> None:
    assert isinstance(Bench(failing(1)).one(), ActivityLog)
    letter = Bench(failing(2)).one()
    assert isinstance(letter, DeadLetter)
    assert letter.cause == DeadLetterCause.TRANSFORM_FAILED
    assert letter.detail.startswith("ValueError in transform, line ")
    assert "about 3" not in letter.detail


def test_a_reference_that_cannot_be_read_ends_the_process_and_costs_no_row() -> None:
    def transform(event: AuditEvent) -> Transformed:
        raise UnreadableTopicError(f"the contact of {event.audit_id} cannot be decoded")

    bench = Bench(transform)
    with pytest.raises(UnreadableTopicError):
        bench.one()
    assert not bench.metrics.dead_letters


def test_a_document_that_cannot_be_encoded_is_a_dead_letter() -> None:
    letter = Bench(encode_document=lambda _: encode({})).one()
    assert isinstance(letter, DeadLetter)
    assert letter.cause == DeadLetterCause.TRANSFORM_FAILED


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        (Consumed(b"k", None), "a tombstone"),
        (Consumed(b"k", b""), "unknown schema header"),
        (Consumed(None, CODEC.encode(EVENT)), "audit 5 has no key"),
        (Consumed(b"k", CODEC.encode(SkippedRecord(1, 1, 1, 1, "x"))), "a SkippedRecord stands where"),
    ],
)
def test_what_is_no_event_is_a_dead_letter(record: Consumed, detail: str) -> None:
    bench = Bench()
    ((key, letter),) = bench.run(record)
    assert isinstance(letter, DeadLetter)
    assert letter.cause == DeadLetterCause.UNDECODABLE_RECORD
    assert detail in letter.detail
    assert (key, letter.key, letter.payload) == (record.key or b"", record.key or b"", record.value or b"")
    assert (letter.audit_id, letter.id_range) == (0, 0)


def test_a_dead_letter_is_bounded() -> None:
    bench = Bench(lambda _: Refused(DeadLetterCause.UNDECODABLE_CHANGES, "x" * 10_000))
    ((key, letter),) = bench.run(Consumed(b"k" * (KEY_BYTES_MAX + 1), CODEC.encode(EVENT)))
    assert isinstance(letter, DeadLetter)
    assert len(letter.detail) == DETAIL_CHARACTERS_MAX
    assert len(key) == len(letter.key) == KEY_BYTES_MAX


def marker(edge: str, job_id: str = "job-1", run: int = 4) -> Consumed:
    return Consumed(b"", CODEC.encode(SnapshotMarker(edge, job_id, -1, run)), 77)


def test_only_this_jobs_end_marker_is_passed_on_in_this_runs_name() -> None:
    bench = Bench()
    assert bench.run(marker("begin"), marker("end", "job-0"), marker("begin", "job-2")) == []
    assert not bench.ended()
    assert bench.run(marker("end")) == [(b"", SnapshotMarker("end", "job-1", 77, 9))]
    assert bench.ended()
    assert bench.metrics.markers == bench.metrics.records_in == 4


def test_what_stands_behind_this_runs_end_is_another_runs_and_has_no_outcome_here() -> None:
    bench = Bench()
    later = [Consumed(b"k", CODEC.encode(EVENT)), Consumed(b"k", b"garbage"), marker("end"), marker("begin", "job-2")]
    assert bench.run(marker("end"), *later) == [(b"", SnapshotMarker("end", "job-1", 77, 9))]
    assert (bench.metrics.beyond_end, bench.metrics.markers) == (2, 3)
    assert bench.metrics.records_in == 5


def test_a_row_published_twice_has_one_outcome_also_if_that_was_a_dead_letter() -> None:
    bench = Bench(
        lambda event: Refused(DeadLetterCause.UNDECODABLE_CHANGES, "") if event.audit_id == 5 else echo(event)
    )
    rows = [Consumed(b"k", CODEC.encode(EVENT._replace(audit_id=n))) for n in (4, 5, 6, 4, 5, 6, 7)]
    outcomes = [outcome for _, outcome in bench.run(*rows)]
    assert [type(outcome) for outcome in outcomes] == [ActivityLog, DeadLetter, ActivityLog, ActivityLog]
    assert bench.metrics.republished == 3
    counted = bench.metrics.logs + bench.metrics.dead_letters.total() + bench.metrics.republished
    assert counted == bench.metrics.records_in == 7


def test_acting_users_are_those_of_the_events() -> None:
    bench = Bench()
    records = [Consumed(b"k", CODEC.encode(EVENT._replace(user_id=n))) for n in (3, 0, 3, 8)]
    assert acting_users(bench.transformer.decode([*records, marker("end"), Consumed(b"k", b"x")])) == {3, 8}


def test_a_row_the_snapshot_could_not_publish_is_passed_on_with_where_it_stands() -> None:
    bench = Bench()
    letter = DeadLetter(6, 1, "", -1, -1, 8, "row_too_large", "20 MB", b"k", b"cut", 5)
    record = Consumed(None, CODEC.encode(letter), 41)
    passed = letter._replace(source_topic=JOB.topics.replay, source_partition=1, source_offset=41, run=9)
    assert bench.run(record) == [(b"", passed)]
    assert bench.run(record) == []  # published twice
    assert (bench.metrics.dead_letters, bench.metrics.republished) == ({"row_too_large": 1}, 1)


def test_a_cause_that_says_anything_is_no_name_of_a_metric() -> None:
    bench = Bench()
    letter = DeadLetter(6, 1, "", -1, -1, 8, "somebody@example.com", "20 MB", b"k", b"cut", 5)
    assert len(bench.run(Consumed(None, CODEC.encode(letter), 41))) == 1
    assert bench.metrics.dead_letters == {"unreadable_reason": 1}


def test_another_accounts_row_is_a_dead_letter_and_hides_none_of_ours() -> None:
    bench = Bench()
    foreign = EVENT._replace(audit_id=9_000, company_sso_id="account-2")
    ours = EVENT._replace(audit_id=7, company_sso_id=JOB.company_sso_id)
    records = [Consumed(b"k", CODEC.encode(event), 40 + n) for n, event in enumerate((foreign, ours, foreign))]
    first, second, third = [outcome for _, outcome in bench.run(*records)]
    assert isinstance(first, DeadLetter)
    assert isinstance(third, DeadLetter)
    assert (first.cause, first.audit_id, first.source_offset) == ("wrong_account", 9_000, 40)
    assert second == ActivityLog(7, 1, 41, 9, b"7")


@pytest.mark.parametrize("audit_id", [0, -1, -(2**63), JOB.top_audit_id + 1, 2**61, 2**63 - 1])
def test_an_id_that_is_none_of_the_jobs_is_a_dead_letter_and_hides_no_row(audit_id: int) -> None:
    """Rows behind it would be below a high-water that it had raised, and be dropped as repetitions."""
    bench = Bench()
    letter = DeadLetter(audit_id, 1, "", -1, -1, 8, "row_too_large", "20 MB", b"k", b"cut", 5)
    values: list[Record] = [
        EVENT._replace(audit_id=7),
        EVENT._replace(audit_id=audit_id),
        letter,
        EVENT._replace(audit_id=8),
    ]
    made = [outcome for _, outcome in bench.run(*(Consumed(b"k", CODEC.encode(v), n) for n, v in enumerate(values)))]
    assert [type(outcome) for outcome in made] == [ActivityLog, DeadLetter, DeadLetter, ActivityLog]
    for outcome in made[1:3]:
        assert isinstance(outcome, DeadLetter)
        assert (outcome.cause, outcome.audit_id) == ("undecodable_record", 0)
        assert outcome.detail == f"audit id {audit_id} is none of the job's, 1 to {JOB.top_audit_id}"
