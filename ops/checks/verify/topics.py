"""The account's topics: dead letters, where missing rows were last seen, unprocessed records.

They are read by plain consumers that join no group and commit nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ops.checks.verify.model import Unhandled
from ops.jobs.jobs import Job
from ops.kafka import admin as kafka_admin
from ops.kafka.rows import AboutRow, about_rows
from ops.kafka.topics import Span, records, spans
from schemas.codec import Codec
from schemas.errors import UndecodableRecordError, UnknownSchemaError, UnreadableTopicError
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord, SnapshotMarker
from schemas.topics import AccountTopics
from schemas.vocabulary import DeadLetterCause


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a row was seen on a topic."""

    partition: int
    offset: int
    what: str  # of an outcome: `log`, `skipped as <reason>`, `dead letter (<cause>)`


def dead_letters(kafka: Mapping[str, Any], topics: AccountTopics, codec: Codec, since_run: int) -> dict[int, str]:
    """Return the cause of each audit id that ended as a dead letter in `since_run` or later; of several the last.

    A letter of an earlier run excuses no row: the run has produced the row's document, or a letter of its own. Nor does
    one about a record of another account, whose audit id is that account's. Raises UnreadableTopicError for one whose
    schema cannot be looked up: its row would count as lost.
    """
    causes: dict[str, str] = {}  # each text once
    found: dict[int, str] = {}
    for read in records(kafka, topics.dead_letters):
        try:
            letter = codec.decode_as(DeadLetter, read.value)
        except UnknownSchemaError as error:
            raise UnreadableTopicError.at(topics.dead_letters, read.partition, read.offset, error) from error
        except UndecodableRecordError:
            continue
        if letter.audit_id > 0 and letter.run >= since_run and letter.cause != DeadLetterCause.WRONG_ACCOUNT:
            found[letter.audit_id] = causes.setdefault(letter.cause, letter.cause)
    return found


def unhandled(kafka: Mapping[str, Any], job: Job, codec: Codec) -> list[Unhandled]:
    """Return the partitions of which a group of the account has not committed every row.

    Markers may be left: a run has ended when the first end marker has passed, and a producer that was restarted after
    its end has published another.
    """
    topics = AccountTopics.of(job.company_sso_id)
    found = []
    for group, topic in ((topics.processors_group, topics.replay), (topics.sink_group, topics.outcomes)):
        held = spans(kafka, topic)
        committed = dict(enumerate(kafka_admin.committed_offsets(kafka, group, topic, len(held))))
        behind = {p: offset for p, offset in committed.items() if max(offset, held[p].low) < held[p].end}
        # Where a group has committed nothing, all records are left; of the others, the rest is read.
        with_rows = {partition for partition, offset in behind.items() if offset < 0}
        rest = {p: behind.get(p, span.end) for p, span in held.items() if p not in with_rows}
        looked_at = behind.keys() - with_rows
        if looked_at:
            with_rows |= _with_rows(kafka, topic, {**rest, **{p: held[p].end for p in with_rows}}, looked_at, codec)
        found += [Unhandled(group, p, behind[p], held[p].end) for p in sorted(with_rows)]
    return found


def _with_rows(
    kafka: Mapping[str, Any], topic: str, begin: Mapping[int, int], partitions: Set[int], codec: Codec
) -> set[int]:
    """Return those of the partitions with records other than markers from `begin` on."""
    found: set[int] = set()
    for read in records(kafka, topic, begin):
        if not all(_is_marker(value, codec) for _, value in codec.outcomes(None, read.value)):
            found.add(read.partition)
            if found >= partitions:
                break
    return found


def _is_marker(value: bytes, codec: Codec) -> bool:
    try:
        return isinstance(codec.decode(value), SnapshotMarker)
    except UndecodableRecordError:
        return False


class RowLookup:
    """Finds how far rows without a document came. Reads all records of a run: only for rows that are named."""

    def __init__(self, kafka: Mapping[str, Any], job: Job, codec: Codec, *, whole_topic: bool) -> None:
        """`whole_topic`: the last run replayed a part only, so earlier runs are looked through as well."""
        self._kafka = kafka
        self._job = job
        self._topics = AccountTopics.of(job.company_sso_id)
        self._codec = codec
        self._whole_topic = whole_topic

    def find(self, audit_ids: Sequence[int], progress: Callable[[str], None]) -> dict[int, str]:
        """Return one phrase for each id."""
        if not audit_ids:
            return {}
        begin = dict(enumerate(self._job.begin_offsets))
        held = spans(self._kafka, self._topics.replay)
        cut = any(held.get(p, Span(0, 0)).low > offset for p, offset in begin.items())
        progress(f"looking for {len(audit_ids):,} rows on {self._topics.replay}")
        published = self._find(self._topics.replay, audit_ids, {} if self._whole_topic else begin)
        there = [audit_id for audit_id in audit_ids if audit_id in published]
        if there:
            progress(f"looking for the outcomes of {len(there):,} rows on {self._topics.outcomes}")
        outcomes = self._find(self._topics.outcomes, there, {})
        return {
            audit_id: phrase(published.get(audit_id), outcomes.get(audit_id), topic_cut=cut) for audit_id in audit_ids
        }

    def _find(self, topic: str, audit_ids: Iterable[int], begin: Mapping[int, int]) -> dict[int, Seen]:
        """Return where each id was seen last."""
        found: dict[int, Seen] = {}
        read = records(self._kafka, topic, begin)
        for partition, offset, record in about_rows(read, topic, audit_ids, self._codec):
            if (what := self._what(record)) is not None:
                found[record.audit_id] = Seen(partition, offset, what)
        return found

    def _what(self, record: AboutRow) -> str | None:
        """Return a record's outcome of its row; None if it is of an earlier run."""
        if isinstance(record, AuditEvent):
            return "event"
        if record.run < self._job.run and not self._whole_topic:
            return None
        if isinstance(record, ActivityLog):
            return "log"
        if isinstance(record, SkippedRecord):
            return f"skipped as {record.reason}"
        return f"dead letter ({record.cause})"


def phrase(published: Seen | None, outcome: Seen | None, *, topic_cut: bool) -> str:
    """Return how far a row without a document came. `topic_cut`: the run's records are no longer all on the topic."""
    if published is None:
        if topic_cut:
            return "the replay topic does not hold all of the run any more, so the place of the loss is unknown"
        return "never published: the cursor passed it"
    where = f"published at partition {published.partition}, offset {published.offset}"
    if outcome is None:
        return f"{where}, no outcome: its offset was committed before it was handled"
    at = f"{where}; outcome at partition {outcome.partition}, offset {outcome.offset}"
    if outcome.what == "log":
        return f"{at}, no document: it was removed, or its offset was committed before it was written"
    return f"{at}: {outcome.what}"
