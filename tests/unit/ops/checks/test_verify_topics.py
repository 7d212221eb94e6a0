"""What the check reads from topics, from records that a topic would give."""

from collections.abc import Iterator

import pytest

from ops.checks.verify import topics
from ops.checks.verify.topics import RowLookup, dead_letters, unhandled
from ops.kafka.topics import Read, Span
from schemas.codec import Codec
from schemas.records import ActivityLog, AuditEvent, DeadLetter, OutcomeBatch, Record, SkippedRecord, SnapshotMarker
from schemas.topics import AccountTopics

NAMES = AccountTopics.of("acme")
RUN = 100


class Job:
    """As much of a job as is asked for."""

    company_sso_id = "acme"
    run = RUN
    begin_offsets = (0, 0)


class Kafka:
    """Topics in memory, in place of the broker."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], list[bytes]] = {}
        self.low: dict[tuple[str, int], int] = {}
        self.committed: dict[str, list[int]] = {}
        self.codec = Codec()

    def put(self, topic: str, partition: int, *records: object) -> None:
        encoded = [r if isinstance(r, bytes) else self.codec.encode(r) for r in records]  # type: ignore[arg-type]
        self.values.setdefault((topic, partition), []).extend(encoded)

    def spans(self, _config: object, topic: str) -> dict[int, Span]:
        return {p: Span(self.low.get((t, p), 0), len(values)) for (t, p), values in self.values.items() if t == topic}

    def records(self, _config: object, topic: str, begin: dict[int, int] | None = None) -> Iterator[Read]:
        for partition, span in self.spans(_config, topic).items():
            for offset in range(max(span.low, (begin or {}).get(partition, 0)), span.end):
                yield Read(partition, offset, self.values[topic, partition][offset])


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    fake = Kafka()
    monkeypatch.setattr(topics, "spans", fake.spans)
    monkeypatch.setattr(topics, "records", fake.records)
    monkeypatch.setattr("ops.kafka.admin.committed_offsets", lambda _, group, *__: fake.committed[group])
    return fake


def letter(audit_id: int, run: int, cause: str) -> DeadLetter:
    return DeadLetter(audit_id, 0, NAMES.replay, 0, 0, run, cause, "", b"", b"", 0)


def event(audit_id: int) -> AuditEvent:
    return AuditEvent(audit_id, 0, 0, "Crm::Deal", 1, "", 0, "", 0, "", "update", "", False, 1, "", "", "acme")


def batch(*outcomes: Record) -> OutcomeBatch:
    return OutcomeBatch(tuple((b"key", Codec().encode(outcome)) for outcome in outcomes))


MARKER = SnapshotMarker("end", "job", -1, RUN)


def test_only_letters_of_the_run_or_later_about_the_accounts_own_rows_count(kafka: Kafka) -> None:
    kafka.put(
        NAMES.dead_letters,
        0,
        letter(1, RUN - 1, "write_refused"),  # the run has had this row again
        letter(2, RUN, "write_refused"),
        letter(2, RUN + 1, "undecodable_changes"),
        letter(0, RUN, "undecodable_record"),
        letter(3, RUN, "wrong_account"),
        b"not a record",
        letter(4, RUN + 5, "row_too_large"),
    )
    assert dead_letters({}, NAMES, Codec(), RUN) == {2: "undecodable_changes", 4: "row_too_large"}


def test_a_row_is_followed_to_where_it_was_lost(kafka: Kafka) -> None:
    kafka.put(NAMES.replay, 0, MARKER, event(1), event(2), event(300))
    kafka.put(NAMES.replay, 1, MARKER, event(4), event(2))
    kafka.put(
        NAMES.outcomes,
        0,
        batch(ActivityLog(1, 0, 1, RUN, b"x"), SkippedRecord(2, 0, 2, RUN - 1, "of_an_earlier_run")),
        b"junk",
        SkippedRecord(300, 0, 3, RUN, "contact_not_found"),
    )
    told = RowLookup({}, Job(), Codec(), whole_topic=False).find([1, 2, 5, 300], lambda _: None)  # type: ignore[arg-type]
    assert told == {
        1: "published at partition 0, offset 1; outcome at partition 0, offset 0, no document: it was removed, or its"
        " offset was committed before it was written",
        2: "published at partition 1, offset 2, no outcome: its offset was committed before it was handled",
        5: "never published: the cursor passed it",
        300: "published at partition 0, offset 3; outcome at partition 0, offset 2: skipped as contact_not_found",
    }
    assert RowLookup({}, Job(), Codec(), whole_topic=False).find([], print) == {}  # type: ignore[arg-type]


def test_a_topic_that_has_let_records_go_proves_nothing(kafka: Kafka) -> None:
    kafka.put(NAMES.replay, 0, MARKER, event(1))
    kafka.low[NAMES.replay, 0] = 1
    told = RowLookup({}, Job(), Codec(), whole_topic=False).find([9], lambda _: None)  # type: ignore[arg-type]
    assert "the place of the loss is unknown" in told[9]


def test_a_group_must_have_committed_every_row_but_not_the_markers_behind_them(kafka: Kafka) -> None:
    kafka.put(NAMES.replay, 0, MARKER, event(1), MARKER, MARKER)
    kafka.put(NAMES.replay, 1, MARKER, event(2), event(3), MARKER)
    kafka.put(NAMES.outcomes, 0, SkippedRecord(1, 0, 1, RUN, "x"), batch(MARKER, MARKER))
    kafka.put(NAMES.outcomes, 1, b"not a record")
    kafka.put(NAMES.outcomes, 2, batch(SkippedRecord(4, 0, 4, RUN, "x"), MARKER))
    kafka.committed = {NAMES.processors_group: [2, 2], NAMES.sink_group: [1, -1001, 0]}
    left = [(u.group, u.partition, u.committed, u.end) for u in unhandled({}, Job(), Codec())]  # type: ignore[arg-type]
    assert left == [(NAMES.processors_group, 1, 2, 4), (NAMES.sink_group, 1, -1001, 1), (NAMES.sink_group, 2, 0, 1)]
    kafka.committed = {NAMES.processors_group: [4, 4], NAMES.sink_group: [2, 1, 1]}
    assert unhandled({}, Job(), Codec()) == []  # type: ignore[arg-type]
