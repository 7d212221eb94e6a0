"""The live feed's sink: the same poll, write, dead-letter, count, commit, for a topic of many accounts without an end.

What differs from a replay's sink, and why:

- **`_id`** says which record of the feed wrote a document (run, partition, source offset). So a record that is
  delivered again meets its own `_id`; a row that the source sends twice, or that the replay has written, only the
  unique index.
- **Counts** are kept by account and partition, against the highest source offset counted: a feed's rows come in the
  order of their commits, so their ids do not rise. An outcome's key is its account.
- **Nothing is halted.** A feed has no job to halt, and one account's poison must not hold up the others: its dead
  letters are kept, counted, and reported as an alarm while they exceed a tenth of what the account sends.
"""

import datetime as dt
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from pydantic import Field, ValidationError
from pydantic_settings import SettingsError
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError

from schemas.codec import Codec
from schemas.collections import PROGRESS
from schemas.errors import BadInputError, ReplayError, UndecodableRecordError
from schemas.identity import ID_BYTES, OBJECT_ID_FIELD, feed_id
from schemas.job import LiveFeed
from schemas.process.tracing import OFF, Traces
from schemas.records import ActivityLog, DeadLetter
from sink.consumer import SAVE_ATTEMPTS_MAX, Sink
from sink.counting import Advance, Bin, Decided, PartitionProgress
from sink.database import Document, Documents
from sink.dead_letters import now_us
from sink.decoding import Batch, Decoder, Source, Taken
from sink.documents import BSON_LENGTH_BYTES, DUPLICATE_KEY, BatchOutcome, is_whole
from sink.effects import Effect, Seam, straight
from sink.failure_rate import FAILURE_RATE_MAX
from sink.progress import RunTotals, from_document, to_fields
from sink.settings import SinkSettings

log = logging.getLogger(__name__)

LIVE = "CRM_REPLAY_LIVE"  # in the environment of a process: it belongs to a live feed
STATES_MAX = 100_000  # progress of accounts kept at hand, by partition
ALARM_EVERY_S = 60.0
ALARM_SEEN_MIN = 50  # of an account in that time: a handful of failures is no rate
ACCOUNT_FIRST = b"\x02company_sso_id\x00"  # BSON: a text of this name

Key = tuple[int, str]  # partition and account; "" has what cannot be told to be anybody's


class LiveSinkSettings(SinkSettings):
    """What a sink of a live feed is told."""

    job: LiveFeed = Field(description="the feed as JSON")


def is_wanted() -> bool:
    """Return whether this process belongs to a live feed."""
    return bool(os.environ.get(LIVE))


def load_settings() -> LiveSinkSettings:
    """Return the settings in the environment; raises BadInputError naming the first variable that is wrong."""
    try:
        return LiveSinkSettings()
    except SettingsError as error:
        raise BadInputError(f"the environment cannot be read ({error})", "CRM_REPLAY_JOB must be JSON") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "CRM_REPLAY_" + ".".join(str(part) for part in first["loc"])
        raise BadInputError(
            f"{name.upper()}: {first['msg']}", "crm-replay live sets it; see sink/feed/sink.py"
        ) from error


def with_id(run: int, partition: int, offset: int, document: bytes) -> bytes:
    """Return the BSON document with its `_id` in front."""
    length = (len(document) + ID_BYTES).to_bytes(BSON_LENGTH_BYTES, "little")
    return length + OBJECT_ID_FIELD + feed_id(run, partition, offset) + document[BSON_LENGTH_BYTES:]


def account_in(document: bytes) -> str:
    """Return the account of a BSON document that begins with it, as the processors write it; "" if it does not."""
    start = BSON_LENGTH_BYTES + len(ACCOUNT_FIRST)
    if document[BSON_LENGTH_BYTES:start] != ACCOUNT_FIRST:
        return ""
    size = int.from_bytes(document[start : start + BSON_LENGTH_BYTES], "little")
    text = document[start + BSON_LENGTH_BYTES : start + BSON_LENGTH_BYTES + size - 1]
    return text.decode("utf-8", "replace")


class LiveDecoder(Decoder):
    """Decodes the outcomes of a feed."""

    def __init__(self, feed: LiveFeed, codec: Codec, document_bytes_max: int) -> None:
        """`document_bytes_max` is the server's limit of a document with its `_id`."""
        super().__init__(feed, codec, document_bytes_max)
        self._feed = feed
        self._codec_of_feed = codec
        self._bytes_max = document_bytes_max
        self._accounts: dict[tuple[int, int], str] = {}  # of records in flight, by partition and offset

    def take_account(self, partition: int, offset: int) -> str:
        """Return the account under which a record of a batch came, and forget it."""
        return self._accounts.pop((partition, offset), "")

    def batch(self, messages: Iterable[Taken], now_us: int) -> Batch:
        """Return the messages as a batch. Nothing in a message can make this raise, but as `Decoder.batch` says."""
        batch = Batch()
        for taken in messages:
            batch.records += 1
            batch.bytes += len(taken.value)
            self._accounts[taken.partition, taken.offset] = taken.key.decode("utf-8", "replace")
            records = batch.decided.setdefault(taken.partition, [])
            try:
                record = self._codec_of_feed.decode(taken.value)
            except UndecodableRecordError as error:
                self._refuse_what_is_ours(taken, error)
                batch.undecodable += 1
                records.append(self._undecodable(taken, error.what, now_us))
                continue
            if type(record) is ActivityLog and record.run == self._feed.run and record.audit_id > 0:
                records.append(self._log(record, taken, batch, len(records), now_us))
            else:
                records.append(self._other(record, taken, batch, now_us))
        return batch

    def _log(self, record: ActivityLog, taken: Taken, batch: Batch, position: int, now_us: int) -> Decided:
        """Return a log's bin, and have it written if it is fit: whole, of its account, not too large."""
        document = record.document
        account = taken.key.decode("utf-8", "replace")
        if (
            not is_whole(document)
            or len(document) + ID_BYTES > self._bytes_max
            or not account
            or account_in(document) != account
            or record.source_offset < 0
        ):
            return self._unfit(record, taken, now_us)
        batch.sources.append(Source(position, record, taken))
        batch.documents.append(with_id(self._feed.run, taken.partition, record.source_offset, document))
        return Decided(taken.offset, record.source_offset, record.audit_id, record.id_range, Bin.MIGRATED)


def advance(progress: PartitionProgress, batch: Sequence[Decided]) -> Advance:
    """Return the progress of one account in one partition after its part of a batch, in offset order.

    New is what stands behind the highest source offset counted; where that is not known, the outcome's own offset says.
    To count a batch again changes nothing.
    """
    source_offset, outcomes_offset = progress.source_offset, progress.outcomes_offset
    migrated, repeated = progress.migrated, 0
    bins = {
        Bin.SKIPPED: dict(progress.skipped),
        Bin.FAILED: dict(progress.failed),
        Bin.FOREIGN: dict(progress.foreign),
    }
    dead_letters: list[DeadLetter] = []
    for record in batch:
        before, outcomes_offset = outcomes_offset, max(outcomes_offset, record.offset)
        if record.bin in (Bin.PASSED_OVER, Bin.ENDED):
            continue
        is_new = record.source_offset > source_offset if record.source_offset >= 0 else record.offset > before
        source_offset = max(source_offset, record.source_offset)
        if not is_new:
            repeated += 1
        elif record.bin is Bin.MIGRATED:
            migrated += 1
        else:
            counts = bins[record.bin]
            counts[record.reason] = counts.get(record.reason, 0) + 1
            if record.dead_letter is not None:
                dead_letters.append(record.dead_letter)
    after = PartitionProgress(
        version=progress.version + 1,
        outcomes_offset=outcomes_offset,
        source_offset=source_offset,
        migrated=migrated,
        skipped=bins[Bin.SKIPPED],
        failed=bins[Bin.FAILED],
        foreign=bins[Bin.FOREIGN],
    )
    return Advance(after, tuple(dead_letters), repeated)


def progress_job(feed: str, account: str) -> str:
    """Return the `job_id` of an account's progress documents in a feed."""
    return f"live:{feed}:{account}"


class LiveProgress:
    """The progress documents of one run of a feed: one for each account and partition."""

    def __init__(self, collection: Documents, feed: str, run: int) -> None:
        """`collection` is `crm_replay_progress`."""
        self._collection = collection
        self._feed = feed
        self._run = run

    def _id(self, key: Key) -> str:
        return f"{progress_job(self._feed, key[1])}/{self._run}/{key[0]}"

    def load(self, keys: Sequence[Key]) -> dict[Key, PartitionProgress]:
        """Return each progress as stored; one that there is not gets an empty one, stored."""
        found = self._find(keys)
        if missing := [key for key in keys if key not in found]:
            self._create(missing)
            found |= self._find(missing)
        return found

    def _find(self, keys: Sequence[Key]) -> dict[Key, PartitionProgress]:
        by_id = {self._id(key): key for key in keys}
        return {by_id[d["_id"]]: from_document(d) for d in self._collection.find({"_id": {"$in": list(by_id)}})}

    def _create(self, keys: Sequence[Key]) -> None:
        empty, now = to_fields(PartitionProgress()), _now()
        new = [
            InsertOne(
                {
                    "_id": self._id(key),
                    "job_id": progress_job(self._feed, key[1]),
                    "run": self._run,
                    "partition": key[0],
                    "feed": self._feed,
                    "company_sso_id": key[1],
                    **empty,
                    "updated_at": now,
                }
            )
            for key in keys
        ]
        try:
            self._collection.bulk_write(new, ordered=False)
        except BulkWriteError as error:
            if any(refusal.get("code") != DUPLICATE_KEY for refusal in error.details["writeErrors"]):
                raise  # else another sink was first

    def save(self, progress: Mapping[Key, PartitionProgress]) -> bool:
        """Save each progress if the stored one is still the version before it; return whether all were."""
        now = _now()
        updates: list[UpdateOne] = [
            UpdateOne(
                {"_id": self._id(key), "version": state.version - 1}, {"$set": {**to_fields(state), "updated_at": now}}
            )
            for key, state in progress.items()
        ]
        return self._collection.bulk_write(updates, ordered=False).matched_count == len(updates)


def totals_by_account(collection: Documents, feed: str, run: int | None = None) -> dict[str, RunTotals]:
    """Return the counts of a feed by account, as stored; of all its runs, or of one."""
    query: Document = {"job_id": {"$gte": progress_job(feed, ""), "$lt": f"live:{feed};"}}  # `;` follows `:`
    if run is not None:
        query["run"] = run
    found: dict[str, list[Document]] = {}
    for document in collection.find(query):
        found.setdefault(document["company_sso_id"], []).append(document)
    return {account: _total(documents) for account, documents in sorted(found.items())}


def _total(documents: Sequence[Document]) -> RunTotals:
    sums: dict[str, dict[str, int]] = {"skipped": {}, "failed": {}, "foreign": {}}
    for document in documents:
        for name, counts in sums.items():
            for reason, count in document[name].items():
                counts[reason] = counts.get(reason, 0) + count
    return RunTotals(
        migrated=sum(document["migrated"] for document in documents),
        skipped=sums["skipped"],
        failed=sums["failed"],
        foreign=sums["foreign"],
        updated_at=max(document["updated_at"] for document in documents),
    )


@dataclass
class Alarm:
    """Notices accounts of whose records too many fail at present. Pure but for the log."""

    started_at: float
    seen: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    sounded: int = 0

    def add(self, account: str, seen: int, failed: int) -> None:
        """Add what has been counted of an account."""
        self.seen[account] = self.seen.get(account, 0) + seen
        self.failed[account] = self.failed.get(account, 0) + failed

    def due(self, now: float) -> list[tuple[str, int, int]]:
        """Return account, failed and seen where it is too much, once a minute; then begin anew."""
        if now - self.started_at < ALARM_EVERY_S:
            return []
        over = [
            (account, self.failed[account], seen)
            for account, seen in self.seen.items()
            if seen >= ALARM_SEEN_MIN and self.failed[account] > FAILURE_RATE_MAX * seen
        ]
        self.started_at, self.seen, self.failed = now, {}, {}
        self.sounded += len(over)
        return over


class LiveSink(Sink):
    """One member of a feed's sink group."""

    topic_replaced_to_do = "crm-replay seam names the rows whose outcomes are lost"

    def __init__(
        self,
        settings: LiveSinkSettings,
        kafka: dict[str, Any],
        database: Any,
        codec: Codec,
        *,
        seam: Seam = straight,
        traces: Traces = OFF,
    ) -> None:
        """Open a sink, as `Sink` does."""
        super().__init__(settings, kafka, database, codec, seam=seam, traces=traces)
        feed = settings.job
        hello: Document = database.client.admin.command("hello")
        self._decoder = self._live_decoder = LiveDecoder(
            feed, codec, int(hello.get("maxBsonObjectSize", 16 * 1024 * 1024))
        )
        self._live_states: dict[Key, PartitionProgress] = {}  # as last stored by us or read
        self._live_progress = LiveProgress(database[PROGRESS], feed.feed, feed.run)
        self._alarm = Alarm(time.monotonic())

    def _account(self, batch: Batch, outcome: BatchOutcome) -> int:
        """Do everything that follows a batch's write, in the order in which `Sink` does it, by account."""
        by_key = self._by_key(self._decoder.decide(batch, outcome, now_us()))
        ahead = self._ahead(by_key)
        if repeated := sum(step.repeated for step in ahead.values()):
            self.metrics.repeated += repeated
            self._watch_repeats(batch, outcome)
        dead_letters = [letter for step in ahead.values() for letter in step.dead_letters]
        self._deliver(dead_letters)
        self._save_by_key(by_key, ahead)
        self._commit(batch.next_offsets)
        return len(dead_letters)

    def _by_key(self, decided: Mapping[int, Sequence[Decided]]) -> dict[Key, list[Decided]]:
        """Return the records by partition and account; what is nobody's for certain is under ""."""
        by_key: dict[Key, list[Decided]] = {}
        for partition, records in decided.items():
            for record in records:
                account = self._live_decoder.take_account(partition, record.offset)
                key = (partition, "" if record.bin in (Bin.FOREIGN, Bin.PASSED_OVER) else account)
                by_key.setdefault(key, []).append(record)
        return by_key

    def _ahead(self, by_key: Mapping[Key, Sequence[Decided]]) -> dict[Key, Advance]:
        """Return each progress after the batch, reading what is not known yet."""
        if len(self._live_states) > STATES_MAX:
            self._live_states.clear()
        if unknown := [key for key in by_key if key not in self._live_states]:
            self._live_states.update(self._until_answered("MongoDB", lambda: self._live_progress.load(unknown)))
        return {key: advance(self._live_states[key], records) for key, records in by_key.items()}

    def _save_by_key(self, by_key: Mapping[Key, Sequence[Decided]], ahead: Mapping[Key, Advance]) -> None:
        """Store the counts; what another sink has stored meanwhile is read, and only what is new to it is added."""
        wanted = {key: step.progress for key, step in ahead.items()}
        for _ in range(SAVE_ATTEMPTS_MAX):
            if self._until_answered(
                "MongoDB", partial(self._seam, Effect.SAVE_PROGRESS, partial(self._live_progress.save, wanted))
            ):
                for key, state in wanted.items():
                    before = self._live_states[key]
                    failed = _failed(state) - _failed(before)
                    self._alarm.add(key[1], _seen(state) - _seen(before), failed)
                self._live_states.update(wanted)
                return
            self.metrics.lost_races += 1
            stored = self._until_answered("MongoDB", partial(self._live_progress.load, list(wanted)))
            self._live_states.update(stored)
            wanted = {key: advance(stored[key], records).progress for key, records in by_key.items()}
        raise ReplayError(f"progress could not be saved in {SAVE_ATTEMPTS_MAX} attempts", "are there too many sinks?")

    def _watch_repeats(self, batch: Batch, outcome: BatchOutcome) -> None:
        """Count documents that were inserted although their record had been counted: two outcomes of it differ."""
        for at in outcome.inserted:
            record, taken = batch.sources[at].record, batch.sources[at].taken
            state = self._live_states.get((taken.partition, taken.key.decode("utf-8", "replace")))
            if state is not None and record.source_offset <= state.source_offset:
                self.metrics.repeats_inserted += 1
                log.warning("audit %d was counted before and is written only now", record.audit_id)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin where the group had committed; counts are read when they are needed."""
        self._forget(partitions)
        super()._assigned(consumer, partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Forget what is another sink's by now."""
        self._forget(partitions)
        super()._lost(consumer, partitions)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        gone = {partition.partition for partition in partitions}
        self._live_states = {key: state for key, state in self._live_states.items() if key[0] not in gone}

    def _check_gate(self, *, at_once: bool = False) -> None:  # noqa: ARG002
        """Sound the alarm where it is due; nothing halts a feed."""
        for account, failed, seen in self._alarm.due(time.monotonic()):
            whose = f"account {account}" if account else "no account that can be read"
            log.error("%d of %d records of %s failed in the last minute; see the dead letters", failed, seen, whose)

    def _has_ended(self) -> bool:
        """Return False: a feed has no end."""
        return False


def _seen(progress: PartitionProgress) -> int:
    """Return how many records have ended in a bin."""
    return progress.migrated + sum(progress.skipped.values()) + _failed(progress)


def _failed(progress: PartitionProgress) -> int:
    """Return how many records became dead letters."""
    return sum(progress.failed.values()) + sum(progress.foreign.values())


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
