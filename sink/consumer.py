"""Poll, write, dead-letter, count, commit, in that order.

Every step is idempotent: a bulk write meets its own `_id`s, a dead letter identifies its record, progress is saved by
compare-and-set, a lost commit only causes redelivery. So after a crash between two steps, the next sink repeats the
batch and ends with the same collection and the same counts.

What differs between a replay and a live feed is passed in as `Parts`: `sink.replay` and `sink.feed.sink` create them.
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
from schemas.process.liveness import Liveness, Watchdog
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
from sink.effects import Effect, EffectHook, no_hook
from sink.group import Group
from sink.indexes import UNIQUE_EXTERNAL_ID
from sink.metrics import SinkMetrics
from sink.records import Decided, Taken
from sink.settings import SinkSettings
from sink.waiting import Waiting
from sink.writer import write_batch

log = logging.getLogger(__name__)

FIRST_RECORD_BYTES_GUESS = 2_000
POLL_IDLE_S = 0.1  # also how long an idle sink takes to react to a stop request
POLL_IN_FLIGHT_S = 0.02  # without new records, the batch in flight comes first
BULK_WRITE = {"db.system.name": "mongodb", "db.collection.name": ACTIVITY_LOGS, "db.operation.name": "bulkWrite"}


class Identity(Protocol):
    """Records to documents with their `_id`s, and to bins. Pure."""

    def batch(self, messages: Iterable[Taken], now_us: int) -> Batch:
        """Return the messages as a batch; `now_us` dates the dead letters."""
        ...

    def decide(self, batch: Batch, outcome: BatchOutcome, now_us: int) -> dict[int, list[Decided]]:
        """Return every record of the batch with its final bin, by partition, after the server's answer."""
        ...


class Gate(Protocol):
    """Whether the sink continues."""

    def check(self, *, at_once: bool) -> None:
        """Raise ReplayError if it does not; rate-limited unless `at_once`."""
        ...

    def has_ended(self) -> bool:
        """Return whether every record of the run has been counted."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop and its parts share."""

    settings: SinkSettings
    database: Database
    codec: Codec
    hook: EffectHook
    metrics: SinkMetrics
    waiting: Waiting
    document_bytes_max: int  # the server's limit of a document with its `_id`


@dataclass(frozen=True, slots=True)
class Parts:
    """What differs between a replay and a live feed."""

    identity: Identity
    accounting: Accounting[Any]
    gate: Gate
    topic_replaced_to_do: str  # for the operator


@dataclass(frozen=True, slots=True)
class InFlight:
    """A batch that a writer thread is writing."""

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
        hook: EffectHook = no_hook,
        traces: Traces = OFF,
    ) -> None:
        """Open a sink; `kafka` is the connection's configuration, `hook` wraps every durable effect."""
        self.job: ReplayJob = settings.job
        self.metrics = SinkMetrics()
        self._settings = settings
        self._topics = self.job.topics
        self._hook = hook
        self._traces = traces
        self.liveness = Liveness(settings.stalled_after_s)
        self._waiting = Waiting(self.metrics, self.liveness)
        self.stopping = self._waiting.stopping  # once set, the loop ends after the batches in flight
        hello: Document = database.client.admin.command("hello")
        document_bytes_max = int(hello.get("maxBsonObjectSize", 16 * 1024 * 1024))
        self._parts = parts(
            Surroundings(settings, database, codec, hook, self.metrics, self._waiting, document_bytes_max)
        )
        self._contexts: dict[bytes, int] = {}  # partition by trace context, of the gathered records
        self._logs: Documents = database[ACTIVITY_LOGS]
        self._writers = ThreadPoolExecutor(settings.sink_writers, thread_name_prefix="writer")
        self._in_flight: deque[InFlight] = deque()  # in the order in which they were polled
        self._dead_letters = DeadLetterTopic(kafka, self._topics.dead_letters, codec)
        self._gathered: list[Taken] = []
        self._record_bytes = FIRST_RECORD_BYTES_GUESS
        self._idle_positions: Positions | None = None  # while it polls with no batch in progress
        self._outcomes_a_record = 1  # maximum so far
        self._codec = codec
        self._kafka = kafka
        self._group = Group(settings, kafka, self._waiting, self.metrics, hook)

    def run(self) -> None:
        """Consume until stopped, or with `exit_at_end` until the run has ended.

        Raises HaltedError when the job is halted, OutcomesLostError, BadInputError for a missing topic, and what
        `TopicWatch` raises.
        """
        gate = self._parts.gate
        watch = TopicWatch(
            KafkaQuestions(self._kafka),
            self._topics.outcomes,
            group=self._topics.sink_group,
            to_do=self._parts.topic_replaced_to_do,
            positions=lambda: self._idle_positions,
        )
        watchdog = Watchdog((self.liveness.check, watch.check_now), self._waiting.end_with)
        try:
            self._group.require_topics()
            watchdog.start()
            self._require_unique_index()
            gate.check(at_once=True)
            self._group.join(finish=self._drain, forget=self._forget)
            self.liveness.ready = True
            while not self.stopping.is_set():
                self.liveness.turned()
                self._waiting.raise_error()
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
            log.info("stopped while a server did not answer; the batch in progress is delivered again")
        finally:
            self.stopping.set()  # ends the retries of a batch that is still in flight; it is delivered again
            self._writers.shutdown()
            self._in_flight.clear()
            self._group.close()
            watchdog.close()  # may wait for a response of Kafka
            self.metrics.log()

    def _turn(self, batch: Batch | None) -> int:
        """Submit a batch for writing, and account for the oldest one in flight; return its number of dead letters.

        Batches are accounted for in the order in which they were polled, also if a later one is written first.
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
        """Return the oldest batch in flight with the server's answer; None without a batch or an answer."""
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
        """Drop gathered records and cached counts of partitions that were assigned or revoked."""
        self._gathered = [taken for taken in self._gathered if taken.partition not in partitions]
        self._parts.accounting.forget(partitions)

    # --- a batch ---

    def _gather(self) -> list[Taken]:
        """Return a batch of outcomes, bounded by count and bytes; empty after an idle poll.

        All outcomes of a record are in one batch, even beyond a bound: those without a source offset are deduplicated
        by the record's offset.
        """
        self._gathered = []
        self._contexts = {}
        records = size = 0
        deadline = 0.0
        while len(self._gathered) < self._settings.sink_batch_records and size < self._settings.sink_batch_bytes:
            # Poll as many as fit by the size of the last records, so that large ones overshoot by one poll only.
            room = (self._settings.sink_batch_bytes - size) // self._record_bytes + 1
            left = (self._settings.sink_batch_records - len(self._gathered)) // self._outcomes_a_record
            wanted = max(1, min(room, left))
            idle_s = POLL_IN_FLIGHT_S if self._in_flight else POLL_IDLE_S
            wait_s = max(0.0, deadline - time.monotonic()) if deadline else idle_s
            if not deadline:
                self._idle_positions = None if self._in_flight else self._group.positions()
                polled = self._group.consume(1, wait_s)  # the first record starts the linger time
                self._idle_positions = None
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
        """Collect the trace contexts of records, with their partitions."""
        for message in polled:
            headers, partition = message.headers(), message.partition()
            if isinstance(headers, list) and partition is not None and (context := context_of(headers)):
                self._contexts[context] = partition

    def _follow(self, batch: Batch) -> Work:
        """Return the batch as work in each trace of its records."""
        contexts = [context for context, partition in self._contexts.items() if partition in batch.decided]
        of_batch: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.destination.name": self._topics.outcomes,
            "messaging.batch.message_count": batch.records,
            "crm_replay.documents": len(batch.documents),
        }
        return self._traces.follow("batch", contexts, **of_batch)

    def _write(self, batch: Batch) -> tuple[BatchOutcome, float]:
        # A crash before this line costs nothing. After it, the documents are stored and not counted: the next sink
        # sends them again, meets their `_id`s, and counts them as migrated.
        started = time.perf_counter()
        with batch.work.step("bulk write", **BULK_WRITE):
            outcome = self._waiting.until_answered(
                "MongoDB", lambda: self._hook(Effect.WRITE_LOGS, lambda: write_batch(self._logs, batch.documents))
            )
        return outcome, time.perf_counter() - started

    def _account(self, batch: Batch, outcome: BatchOutcome) -> int:
        """Dead-letter, count and commit a written batch; return its number of dead letters."""
        decided = self._parts.identity.decide(batch, outcome, now_us())
        counted = self._parts.accounting.count(decided, batch, outcome)
        dead_letters = counted.dead_letters
        self._deliver(dead_letters)

        # A crash before this line repeats the dead letters: each has its run, partition and source offset.
        self._parts.accounting.save(counted)

        # A crash before this line redelivers the batch: it is written again without effect, and counts nothing.
        self._group.commit(batch.next_offsets, batch.next_source_offsets)
        self.liveness.progressed()
        return len(dead_letters)

    def _deliver(self, dead_letters: Sequence[DeadLetter]) -> None:
        if not dead_letters:
            return
        self._waiting.until_answered(
            "Kafka",
            lambda: self._hook(
                Effect.DELIVER_DEAD_LETTERS,
                lambda: self._dead_letters.deliver(dead_letters, lambda: not self.stopping.is_set()),
            ),
        )
        self.metrics.dead_letters += len(dead_letters)


def _of_outcome(outcome: BatchOutcome, dead_letters: int) -> dict[str, int]:
    """Return the outcome attributes of a batch's span."""
    return {
        "crm_replay.inserted": len(outcome.inserted),
        "crm_replay.redelivered": len(outcome.redelivered),
        "crm_replay.duplicates": len(outcome.duplicates),
        "crm_replay.failed": len(outcome.failed),
        "crm_replay.dead_letters": dead_letters,
    }
