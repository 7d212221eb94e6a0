"""Poll, write, dead-letter, count, commit, in that order.

Every step may be repeated: a bulk write meets its own `_id`s, a dead letter says which record it is about, progress is
compared before it is set, a commit that is lost only brings records again. So whatever dies between two steps, the next
sink repeats the batch and ends with the same collection and the same counts.

What a replay and a live feed do differently is handed in as `Parts`: `sink.replay` and `sink.feed.sink` make them.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Message

from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import BadInputError
from schemas.job import ReplayJob
from schemas.process.mongodb import Database, Document, Documents
from schemas.process.topic_watch import KafkaQuestions, Positions, TopicWatch
from schemas.process.tracing import OFF, Traces, Work, context_of
from schemas.process.waiting import StoppedError
from schemas.records import DeadLetter
from sink.accounting import Accounting
from sink.core import taken_from
from sink.dead_letters import DeadLetterTopic, now_us
from sink.decoding import Batch
from sink.documents import BatchOutcome
from sink.effects import Effect, Seam, straight
from sink.group import Group
from sink.indexes import UNIQUE_EXTERNAL_ID
from sink.metrics import SinkMetrics
from sink.records import Decided, Taken
from sink.settings import SinkSettings
from sink.waiting import Waiting
from sink.writer import write_batch

log = logging.getLogger(__name__)

FIRST_RECORD_BYTES_GUESS = 2_000
POLL_IDLE_S = 0.1  # also how long a sink that has nothing to do takes to hear that it is to end
POLL_IN_FLIGHT_S = 0.02  # nothing new comes: see to the batch in flight instead
BULK_WRITE = {"db.system.name": "mongodb", "db.collection.name": ACTIVITY_LOGS, "db.operation.name": "bulkWrite"}


class Identity(Protocol):
    """Which documents records become, under which `_id`, and in which bin each record ends. Pure."""

    def batch(self, messages: Iterable[Taken], now_us: int) -> Batch:
        """Return the messages as a batch; `now_us` dates the dead letters."""
        ...

    def decide(self, batch: Batch, outcome: BatchOutcome, now_us: int) -> dict[int, list[Decided]]:
        """Return every record of the batch with its final bin, by partition, after the server's answer."""
        ...


class Gate(Protocol):
    """Whether the sink continues."""

    def check(self, *, at_once: bool) -> None:
        """Raise ReplayError if it does not; at most once a while, but for `at_once`."""
        ...

    def has_ended(self) -> bool:
        """Return whether everything that there was to be consumed has been counted."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop and its parts have in common."""

    settings: SinkSettings
    database: Database
    codec: Codec
    seam: Seam
    metrics: SinkMetrics
    waiting: Waiting
    document_bytes_max: int  # the server's limit of a document with its `_id`


@dataclass(frozen=True, slots=True)
class Parts:
    """What a replay and a live feed do differently."""

    identity: Identity
    accounting: Accounting[Any]
    gate: Gate
    topic_replaced_to_do: str  # for the operator


@dataclass(frozen=True, slots=True)
class InFlight:
    """A batch that a writer's thread is writing."""

    batch: Batch
    written: Future[tuple[BatchOutcome, float]]  # with the seconds it took


class Sink:
    """One member of a sink group."""

    def __init__(
        self,
        settings: SinkSettings,
        kafka: dict[str, Any],
        database: Database,
        codec: Codec,
        parts: Callable[[Surroundings], Parts],
        *,
        seam: Seam = straight,
        traces: Traces = OFF,
    ) -> None:
        """Open a sink; `kafka` is the connection's configuration, `seam` stands around every durable effect."""
        self.job: ReplayJob = settings.job
        self.metrics = SinkMetrics()
        self._settings = settings
        self._topics = self.job.topics
        self._seam = seam
        self._traces = traces
        self._waiting = Waiting(self.metrics)
        self.stopping = self._waiting.stopping  # to be set: the loop then ends after the batch in hand
        hello: Document = database.client.admin.command("hello")
        document_bytes_max = int(hello.get("maxBsonObjectSize", 16 * 1024 * 1024))
        self._parts = parts(
            Surroundings(settings, database, codec, seam, self.metrics, self._waiting, document_bytes_max)
        )
        self._contexts: dict[bytes, int] = {}  # partition by trace context, of the records gathered
        self._logs: Documents = database[ACTIVITY_LOGS]
        self._writers = ThreadPoolExecutor(settings.sink_writers, thread_name_prefix="writer")
        self._in_flight: deque[InFlight] = deque()  # in the order in which they were polled
        self._dead_letters = DeadLetterTopic(kafka, self._topics.dead_letters, codec)
        self._gathered: list[Taken] = []
        self._record_bytes = FIRST_RECORD_BYTES_GUESS
        self._resting: Positions | None = None  # where it is, while it has nothing in hand and asks for records
        self._outcomes_a_record = 1  # the most that were met
        self._codec = codec
        self._kafka = kafka
        self._group = Group(settings, kafka, self._waiting, self.metrics, seam)

    def run(self) -> None:
        """Sink until asked to stop, or until the run has ended if that was asked for.

        Raises HaltedError when the job is halted, OutcomesLostError, BadInputError for a topic that is not there, and
        what `TopicWatch` raises.
        """
        gate = self._parts.gate
        watch = TopicWatch(
            KafkaQuestions(self._kafka),
            self._topics.outcomes,
            to_do=self._parts.topic_replaced_to_do,
            positions=lambda: self._resting,
        )
        try:
            self._group.require_topics()
            watch.start(self._waiting.end_with)
            self._require_unique_index()
            gate.check(at_once=True)
            self._group.join(finish=self._drain, forget=self._forget)
            while not self.stopping.is_set():
                self._waiting.raise_trouble()
                batch = self._parts.identity.batch(self._gather(), now_us())
                if self._contexts:
                    batch.work = self._follow(batch)
                failures = self._turn(batch if batch.records else None)
                gate.check(at_once=failures > 0)
                if self._settings.exit_at_end and not self._in_flight and gate.has_ended():
                    return
                self.metrics.log_if_due()
            self._drain()
        except StoppedError:
            log.info("stopped while a server did not answer; the batch in hand comes again")
        finally:
            self.stopping.set()  # ends the waiting of a batch that is still in flight; it comes again
            self._writers.shutdown()
            self._in_flight.clear()
            self._group.close()
            watch.close()  # may wait for an answer of Kafka
            self.metrics.log()

    def _turn(self, batch: Batch | None) -> int:
        """Have a batch written, and account for the oldest one in flight meanwhile; return its number of dead letters.

        Batches are accounted for in the order in which they were polled, whichever is written first.
        """
        must_wait = batch is None or len(self._in_flight) >= self._settings.sink_writers
        oldest = self._oldest_written(wait=must_wait)
        if batch is not None:
            self._in_flight.append(InFlight(batch, self._writers.submit(self._write, batch)))
        if oldest is None:
            return 0
        written, outcome = oldest
        with written.work.step("count and commit"):
            dead_letters = self._account(written, outcome)
        written.work.end(**_of_outcome(outcome, dead_letters))
        return dead_letters

    def _oldest_written(self, *, wait: bool) -> tuple[Batch, BatchOutcome] | None:
        """Return the oldest batch in flight with the server's answer; None if there is none, or none yet."""
        if not self._in_flight or not (wait or self._in_flight[0].written.done()):
            return None
        batch, written = self._in_flight[0].batch, self._in_flight[0].written
        outcome, seconds = written.result()
        self._in_flight.popleft()
        self.metrics.add_batch(batch, outcome, seconds)
        return batch, outcome

    def _drain(self) -> int:
        """Account for everything in flight; return its number of dead letters."""
        dead_letters = 0
        while self._in_flight:
            dead_letters += self._turn(None)
        return dead_letters

    def _require_unique_index(self) -> None:
        """Refuse to write without the index that decides duplicates: a rerun would store everything twice."""
        index = UNIQUE_EXTERNAL_ID
        indexes = self._waiting.until_answered("MongoDB", self._logs.index_information)
        found = indexes.get(index.name, {})
        if [key for key, _ in found.get("key", ())] != list(index.keys) or not found.get("unique"):
            raise BadInputError(f"{ACTIVITY_LOGS} lacks the unique index {index.name}", "crm-replay migrate up")

    def _forget(self, partitions: set[int]) -> None:
        """Drop what was only gathered of partitions that are new or gone, and what is known of their counts."""
        self._gathered = [taken for taken in self._gathered if taken.partition not in partitions]
        self._parts.accounting.forget(partitions)

    # --- a batch ---

    def _gather(self) -> list[Taken]:
        """Return a batch of outcomes, bounded by count and bytes; empty after an idle moment.

        All outcomes of a record are in one batch, also where they exceed a bound: what has no source offset is known as
        counted by the record's.
        """
        self._gathered = []
        self._contexts = {}
        records = size = 0
        deadline = 0.0
        while len(self._gathered) < self._settings.sink_batch_records and size < self._settings.sink_batch_bytes:
            # Ask for what fits by the size of the records so far, so that large ones overshoot by one poll only.
            room = (self._settings.sink_batch_bytes - size) // self._record_bytes + 1
            left = (self._settings.sink_batch_records - len(self._gathered)) // self._outcomes_a_record
            wanted = max(1, min(room, left))
            idle_s = POLL_IN_FLIGHT_S if self._in_flight else POLL_IDLE_S
            wait_s = max(0.0, deadline - time.monotonic()) if deadline else idle_s
            if not deadline:
                self._resting = None if self._in_flight else self._group.positions()
                polled = self._group.consume(1, wait_s)  # the first record starts the clock
                self._resting = None
            else:
                polled = self._group.consume(wanted, wait_s)
            if self._traces.on:
                self._note_contexts(polled)
            for message in polled:
                size += self._take(message)
            records += len(polled)
            if records:
                self._record_bytes = max(1, size // records)
                deadline = deadline or time.monotonic() + self._settings.sink_linger_ms / 1000
            if self.stopping.is_set() or (not polled and (not deadline or time.monotonic() >= deadline)):
                break
        gathered, self._gathered = self._gathered, []
        return gathered

    def _take(self, message: Message) -> int:
        """Gather a message's outcomes; return their bytes. A null value (a tombstone) is taken as empty bytes."""
        partition, offset = message.partition(), message.offset()
        assert partition is not None  # for it is no error
        assert offset is not None
        # Key and value are bytes, for nothing deserializes them.
        outcomes: Any = self._codec.outcomes(message.key() or b"", message.value() or b"")
        self._outcomes_a_record = max(self._outcomes_a_record, len(outcomes))
        return taken_from(partition, offset, outcomes, self._gathered)

    def _note_contexts(self, polled: Iterable[Message]) -> None:
        """Note the trace contexts that records came with, and their partitions."""
        for message in polled:
            headers, partition = message.headers(), message.partition()
            if isinstance(headers, list) and partition is not None and (context := context_of(headers)):
                self._contexts[context] = partition

    def _follow(self, batch: Batch) -> Work:
        """Return the batch as work in each trace that it has records of."""
        contexts = [context for context, partition in self._contexts.items() if partition in batch.decided]
        of_batch: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.destination.name": self._topics.outcomes,
            "messaging.batch.message_count": batch.records,
            "crm_replay.documents": len(batch.documents),
        }
        return self._traces.follow("batch", contexts, **of_batch)

    def _write(self, batch: Batch) -> tuple[BatchOutcome, float]:
        # Dying before this line costs nothing. Dying after it: the documents are there, uncounted; the next sink sends
        # them again, meets their `_id`s, and counts them as migrated.
        started = time.perf_counter()
        with batch.work.step("bulk write", **BULK_WRITE):
            outcome = self._waiting.until_answered(
                "MongoDB", lambda: self._seam(Effect.WRITE_LOGS, lambda: write_batch(self._logs, batch.documents))
            )
        return outcome, time.perf_counter() - started

    def _account(self, batch: Batch, outcome: BatchOutcome) -> int:
        """Do everything that follows a batch's write; return its number of dead letters once it is committed."""
        decided = self._parts.identity.decide(batch, outcome, now_us())
        counted = self._parts.accounting.count(decided, batch, outcome)
        dead_letters = counted.dead_letters
        self._deliver(dead_letters)

        # Dying before this line brings the same dead letters once more: each names run, partition and source offset.
        self._parts.accounting.save(counted)

        # Dying before this line: the batch comes again, is written again without effect, and counts nothing.
        self._group.commit(batch.next_offsets, batch.next_source_offsets)
        return len(dead_letters)

    def _deliver(self, dead_letters: Sequence[DeadLetter]) -> None:
        if not dead_letters:
            return
        self._waiting.until_answered(
            "Kafka",
            lambda: self._seam(
                Effect.DELIVER_DEAD_LETTERS,
                lambda: self._dead_letters.deliver(dead_letters, lambda: not self.stopping.is_set()),
            ),
        )
        self.metrics.dead_letters += len(dead_letters)


def _of_outcome(outcome: BatchOutcome, dead_letters: int) -> dict[str, int]:
    """Return what a batch's span says came of it."""
    return {
        "crm_replay.inserted": len(outcome.inserted),
        "crm_replay.redelivered": len(outcome.redelivered),
        "crm_replay.duplicates": len(outcome.duplicates),
        "crm_replay.failed": len(outcome.failed),
        "crm_replay.dead_letters": dead_letters,
    }
