"""A live feed's dead letters: listed with their states, and their records produced to the feed's topic again.

A feed has no job that could read a row again, but its records still exist: each is sent unchanged, with its headers
if Kafka still keeps it at its place, else as its dead letter has it. The feed itself decides again, and the unique
index absorbs what had been written.

Order of effects of a retry: the attempt is noted, then the records are sent, then their new places are noted. Dying in
between leaves an attempt without places: its letters still wait, and the next retry sends them again.
"""

import getpass
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from ops.jobs.audit_ids import AUDIT_IDS_MAX
from ops.jobs.documents import rows_with_document
from ops.jobs.letters import RETRIES_MAX, Letter, Listed, State, judge
from ops.kafka import admin as kafka_admin
from ops.kafka.rows import Topics
from ops.kafka.topics import Span
from ops.progress import RunView
from processors.batches import PAYLOAD_BYTES_MAX
from schemas.codec import Codec
from schemas.collections import PROGRESS, RETRIES
from schemas.errors import BadInputError, ReplayError, UndecodableRecordError
from schemas.job import LiveFeed
from schemas.process.mongodb import Database
from schemas.process.waiting import Deadline
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord
from sink.feed.decoding import account_in
from sink.feed.progress import totals_by_account

ANSWER_TIMEOUT_S = 30.0
POLL_EVERY_S = 0.5


class Position(NamedTuple):
    """A record's position on the feed's topic."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Sending:
    """What a retry of a feed sends, and what it leaves out."""

    letters: list[Listed]
    left_out: list[tuple[int, str]]  # offset of the letter, why


@dataclass(frozen=True, slots=True)
class Sent:
    """The state of a retry: the letters' offsets, the new places, and whether the feed has passed these."""

    places: Mapping[int, Position]
    whole: int  # of them with their headers
    passed: bool
    failed: list[Letter]  # those that have failed again


def judged(
    letters: Sequence[Letter], feed: LiveFeed, topics: Topics, database: Database, view: RunView
) -> list[Listed]:
    """Return the feed's letters with their states.

    Resolved is a row that has a document of one of the feed's accounts, or that was skipped behind the failure; and a
    record that a retry has sent again: if that fails, it has a letter of its own.
    """
    last: dict[int, Letter] = {letter.row: letter for letter in letters if letter.row is not None}
    accounts = sorted(
        {*filter(None, totals_by_account(database[PROGRESS], feed.feed)), *filter(None, [feed.table_account])}
    )
    resolved = dict.fromkeys(rows_with_document(database, accounts, last), "it has a document")
    if left := last.keys() - resolved.keys():
        for found in topics.find(feed.topics.outcomes, left, view):
            record = found.record
            if isinstance(record, SkippedRecord):
                letter = last[record.audit_id]
                behind = (record.run, record.source_offset) > (letter.run, letter.source_offset)
                if found.partition == letter.source_partition and behind:
                    resolved[record.audit_id] = f"skipped as {record.reason}"
    sent = {
        each["letter"]: f"sent again as {feed.topic}/{each['partition']}@{each['offset']}"
        for attempt in attempts_of(database, feed.feed)
        for each in attempt["sent"]
    }
    return [
        replace(each, state=State.RESOLVED, why=sent[each.letter.offset])
        if each.state is not State.RESOLVED and each.letter.offset in sent
        else each
        for each in judge(letters, resolved)
    ]


def attempts_of(database: Database, feed: str) -> list[dict[str, Any]]:
    """Return the feed's retries in the order in which they began."""
    return list(database[RETRIES].find({"feed": feed}).sort([("started_at", 1), ("_id", 1)]))


def chosen(
    topic: str,
    listed: Sequence[Listed],
    attempts: Iterable[Mapping[str, Any]],
    *,
    cause: str,
    audit_ids: Sequence[int] | None,
    force: bool,
) -> Sending:
    """Return which letters' records are sent again: those that wait, of a row the last one, and those without a row.

    `topic` is the feed's: what is about a record of another one is left out. `audit_ids` None: all of them. A row sent
    again `RETRIES_MAX` times is left out unless forced. Pure.
    """
    tried: Counter[int] = Counter()
    for attempt in attempts:
        tried.update({audit_id for audit_id in attempt["audit_ids"] if audit_id})
    last: dict[int | None, int] = {
        each.letter.row: each.letter.offset for each in listed if each.letter.row is not None
    }
    sending = Sending([], [])
    for each in listed:
        letter = each.letter
        wanted = (not cause or letter.cause == cause) and (audit_ids is None or letter.audit_id in set(audit_ids))
        if not wanted or each.state is State.RESOLVED or last.get(letter.row, letter.offset) != letter.offset:
            continue
        if letter.source_topic != topic or letter.source_offset < 0:
            sending.left_out.append((letter.offset, f"it is about no record of {topic}"))
        elif tried[letter.audit_id] >= RETRIES_MAX and not force:
            why = f"row {letter.audit_id} was sent again {tried[letter.audit_id]} times; --force sends it again"
            sending.left_out.append((letter.offset, why))
        else:
            sending.letters.append(each)
    return sending


def send_again(
    feed: LiveFeed,
    letters: Sequence[Letter],
    reason: str,
    topics: Topics,
    database: Database,
    read_letters: Callable[[], list[Letter]],
    payload_of: Callable[[int], DeadLetter | None],
    wait_s: float,
) -> Sent:
    """Send the letters' records onto the feed's topic, note that, and wait until the feed has passed them, or not.

    `payload_of` gives the dead letter at an offset of its topic. Raises ReplayError if Kafka does not take a record.
    """
    if len(letters) > AUDIT_IDS_MAX:
        raise BadInputError(f"{len(letters):,} records wait, over {AUDIT_IDS_MAX:,}", "narrow it down with --cause")
    attempt = (
        database[RETRIES]
        .insert_one(
            {
                "feed": feed.feed,
                "company_sso_id": None,
                "started_at": datetime.now(UTC).replace(microsecond=0),
                "finished_at": None,
                "who": f"{_user()}@{socket.gethostname()}",
                "reason": reason,
                "audit_ids": sorted({letter.audit_id for letter in letters if letter.audit_id}),
                "outcome": "started",
                "outcomes": [],
                "sent": [],
            }
        )
        .inserted_id
    )
    places, whole = _send(feed, letters, topics, payload_of)
    sent = [{"letter": letter, "partition": at.partition, "offset": at.offset} for letter, at in sorted(places.items())]
    ended = {"finished_at": datetime.now(UTC), "outcome": "done", "sent": sent}
    database[RETRIES].update_one({"_id": attempt}, {"$set": ended})
    passed = _wait_passed(feed, topics, places.values(), wait_s)
    new = {(feed.run, *at) for at in places.values()}
    failed = [each for each in read_letters() if (each.run, each.source_partition, each.source_offset) in new]
    return Sent(places, whole, passed, failed)


def _send(
    feed: LiveFeed, letters: Sequence[Letter], topics: Topics, payload_of: Callable[[int], DeadLetter | None]
) -> tuple[dict[int, Position], int]:
    """Return the records' new places by their letters' offsets, and how many were still there with their headers."""
    producer = Producer({"log_level": 0, **topics.kafka, "enable.idempotence": True})
    places: dict[int, Position] = {}
    problems: list[str] = []
    whole = 0

    def delivered(letter: int) -> Callable[[Any, Message], None]:
        def note(error: Any, message: Message) -> None:
            if error is not None:
                problems.append(error.str())
            else:
                places[letter] = Position(int(message.partition() or 0), int(message.offset() or 0))

        return note

    config = {"log_level": 0, **topics.kafka, "group.id": f"{feed.topic}.retry", "enable.auto.commit": False}
    held = topics.spans(feed.topic)
    with closing(Consumer({**config, "enable.partition.eof": True})) as consumer:
        for letter in letters:
            at = Position(letter.source_partition, letter.source_offset)
            # In another run the topic was another one: the record at the place now is not the one that failed.
            found = _record_at(consumer, held, feed.topic, at) if letter.run == feed.run else None
            if found is not None:
                key, value, headers = found.key(), found.value(), found.headers() or []
                whole += 1
            else:
                kept = payload_of(letter.offset)
                if kept is None or not _is_whole(kept, topics.codec):
                    problems.append(f"the record of dead letter {letter.offset} is kept nowhere")
                    continue
                key, value, headers = kept.key, kept.payload, []
            partition = at.partition if at.partition in held else 0  # a recreated topic may have fewer
            producer.produce(feed.topic, value, key, partition, headers=headers, on_delivery=delivered(letter.offset))
            producer.poll(0)
    left = producer.flush(ANSWER_TIMEOUT_S)
    if not places and (problems or left):
        raise ReplayError(f"nothing could be sent: {(problems or ['Kafka does not answer'])[0]}", "try again")
    return places, whole


def _is_whole(letter: DeadLetter, codec: Codec) -> bool:
    """Return whether a letter has the feed's own record: neither cut nor left out, and not its outcome."""
    if not letter.payload or len(letter.payload) >= PAYLOAD_BYTES_MAX:
        return False
    try:
        return isinstance(codec.decode(letter.payload), AuditEvent)
    except UndecodableRecordError:
        return True  # another producer's: a change event, or an unreadable value


def _record_at(consumer: Consumer, held: Mapping[int, Span], topic: str, at: Position) -> Message | None:
    """Return the record at a place; None if Kafka has deleted it. `held` is the offsets that each partition holds."""
    span = held.get(at.partition)
    if span is None or not span.low <= at.offset < span.end:
        return None
    consumer.assign([TopicPartition(topic, at.partition, at.offset)])
    message = consumer.poll(ANSWER_TIMEOUT_S)
    if message is None:
        raise ReplayError(f"Kafka does not give {topic}/{at.partition}@{at.offset}", "try again when it is back")
    return message if message.error() is None and message.offset() == at.offset else None


def _wait_passed(feed: LiveFeed, topics: Topics, places: Iterable[Position], wait_s: float) -> bool:
    """Return whether both groups have passed these places within the time."""
    ends: dict[int, int] = {}
    for at in places:
        ends[at.partition] = max(ends.get(at.partition, 0), at.offset + 1)
    names, deadline = feed.topics, Deadline(wait_s)

    def passed() -> bool:
        done = kafka_admin.committed_offsets(topics.kafka, names.processors_group, names.replay, feed.partitions)
        if any(done[partition] < end for partition, end in ends.items()):
            return False
        made = kafka_admin.end_offsets(topics.kafka, names.outcomes, feed.partitions)
        written = kafka_admin.committed_offsets(topics.kafka, names.sink_group, names.outcomes, feed.partitions)
        return all(written[partition] >= made[partition] for partition in ends)

    while True:
        with suppress(KafkaException):  # an outage, or a group that moves: retried until the deadline
            if passed():
                return True
        if not deadline.wait(POLL_EVERY_S):
            return False


def outcomes_in_feed(
    feed: LiveFeed, audit_id: int, account: str, topics: Topics, view: RunView
) -> list[dict[str, Any]]:
    """Return what the feed has made of a row each time it came, as JSON takes it."""
    found = []
    for partition, _, record in topics.find(feed.topics.outcomes, [audit_id], view):
        if isinstance(record, ActivityLog) and account_in(record.document) == account:
            what, reason = "activity log", ""
        elif isinstance(record, SkippedRecord):
            what, reason = "skipped", record.reason
        elif isinstance(record, DeadLetter):
            what, reason = "dead letter", record.cause
        else:
            continue
        found.append({"partition": partition, "source_offset": record.source_offset, "what": what, "reason": reason})
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id, as in some containers
        return "unknown"
