"""Poll, write, dead-letter, count, commit, in that order.

Every step may be repeated: a bulk write meets its own `_id`s, a dead letter says which record it is about, progress is
compared before it is set, a commit that is lost only brings records again. So whatever dies between two steps, the next
sink repeats the batch and ends with the same collection and the same counts.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from bson.errors import InvalidDocument
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from pymongo.errors import ConfigurationError, InvalidOperation, PyMongoError

from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS, JOBS, PROGRESS
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.job import ReplayJob
from schemas.process.topic_watch import RUN_AGAIN, KafkaQuestions, Positions, TopicWatch
from schemas.process.tracing import OFF, Traces, Work, context_of
from schemas.records import DeadLetter
from schemas.vocabulary import ExitCode
from sink.counting import Advance, Decided, PartitionProgress, advance
from sink.database import Document, Documents
from sink.dead_letters import DeadLetterTopic, now_us
from sink.decoding import Batch, Decoder, Taken
from sink.documents import BatchOutcome
from sink.effects import Effect, Seam, straight
from sink.failure_rate import what_to_do
from sink.halting import JobGate
from sink.identity import shift_of
from sink.indexes import UNIQUE_EXTERNAL_ID
from sink.metrics import SinkMetrics
from sink.progress import Progress
from sink.settings import SinkSettings
from sink.writer import NotAnsweredError, write_batch

log = logging.getLogger(__name__)
T = TypeVar("T")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
STOP_CHECK_S = 0.1  # a wait looks this often whether it should end
GATE_EVERY_S = 1.0  # how long a halt by another sink or an operator may go unnoticed
END_CHECK_S = 0.25
FIRST_RECORD_BYTES_GUESS = 2_000
POLL_IDLE_S = 0.1  # also how long a sink that has nothing to do takes to hear that it is to end
POLL_IN_FLIGHT_S = 0.02  # nothing new comes: see to the batch in flight instead
ANSWER_TIMEOUT_S = 10.0
BULK_WRITE = {"db.system.name": "mongodb", "db.collection.name": ACTIVITY_LOGS, "db.operation.name": "bulkWrite"}
POSITION_EVERY_S = 1.0
SAVE_ATTEMPTS_MAX = 100  # races lost in a row; with a few sinks a second one is rare already

# The group has moved on without us: what was to be committed is another sink's now, and will be repeated there.
NOT_OURS_ANY_MORE = frozenset(
    (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001  librdkafka's public names begin with an underscore
        KafkaError._STATE,  # noqa: SLF001
        KafkaError._NO_OFFSET,  # noqa: SLF001
    )
)


class OutcomesLostError(ReplayError):
    """Kafka deleted outcomes before they were written."""


class HaltedError(ReplayError):
    """The job is halted, or this run may not write any more; offsets are kept."""

    exit_code = ExitCode.HALTED


class StoppedError(Exception):
    """Asked to stop while waiting for a server; nothing of the batch in hand is committed."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A batch that a writer's thread is writing."""

    batch: Batch
    written: Future[tuple[BatchOutcome, float]]  # with the seconds it took


class Sink:
    """One member of an account's sink group."""

    topic_replaced_to_do = RUN_AGAIN

    def __init__(
        self,
        settings: SinkSettings,
        kafka: dict[str, Any],
        database: Any,
        codec: Codec,
        *,
        seam: Seam = straight,
        traces: Traces = OFF,
    ) -> None:
        """Open a sink; `kafka` is the connection's configuration, `seam` stands around every durable effect."""
        self.job: ReplayJob = settings.job
        self.metrics = SinkMetrics()
        self._settings = settings
        self._topics = self.job.topics
        self._codec = codec
        self._seam = seam
        self._traces = traces
        self._contexts: dict[bytes, int] = {}  # partition by trace context, of the records gathered
        self._logs: Documents = database[ACTIVITY_LOGS]
        self._progress = Progress(database[PROGRESS], self.job.job_id, self.job.run)
        self._id_shift = shift_of(self.job.top_audit_id)
        self._gate = JobGate(database[JOBS], self.job.job_id, self.job.run)
        hello: Document = database.client.admin.command("hello")
        self._decoder = Decoder(self.job, codec, int(hello.get("maxBsonObjectSize", 16 * 1024 * 1024)))
        self._writers = ThreadPoolExecutor(settings.sink_writers, thread_name_prefix="writer")
        self._in_flight: deque[InFlight] = deque()  # in the order in which they were polled
        self._dead_letters = DeadLetterTopic(kafka, self._topics.dead_letters, codec)
        self._states: dict[int, PartitionProgress] = {}  # of assigned partitions, as last stored by us or read
        self._gathered: list[Taken] = []
        self._record_bytes = FIRST_RECORD_BYTES_GUESS
        self._stop_requested = False
        self._gate_seen_at = 0.0
        self._end_seen_at = 0.0
        self._begins: dict[int, int] = {}  # by partition: where it was assigned
        self._position: dict[int, int] = {}
        self._position_seen_at = 0.0
        self._resting: Positions | None = None  # where it is, while it has nothing in hand and asks for records
        self._trouble: ReplayError | None = None  # that the watch has found
        self._kafka = kafka
        self._consumer = Consumer(self._consumer_config(kafka), logger=log)

    def _consumer_config(self, kafka: dict[str, Any]) -> dict[str, Any]:
        config = {
            **kafka,
            "group.id": self._topics.sink_group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Where a group has no offset yet we say where to begin; an offset that Kafka has deleted is an error.
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "session.timeout.ms": self._settings.sink_session_timeout_ms,
            "heartbeat.interval.ms": max(300, self._settings.sink_session_timeout_ms // 4),
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": max(16_384, 2 * self._settings.sink_batch_bytes // 1024),
        }
        if self._settings.sink_instance_id:
            config["group.instance.id"] = f"{self._topics.sink_group}.{self._settings.sink_instance_id}"
        return config

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand; safe in a signal handler."""
        self._stop_requested = True

    def _end_with(self, error: ReplayError) -> None:
        self._trouble = error

    def run(self) -> None:
        """Sink until asked to stop, or until the run has ended if that was asked for.

        Raises HaltedError when the job is halted, OutcomesLostError, BadInputError for a topic that is not there, and
        what `TopicWatch` raises.
        """
        watch = TopicWatch(
            KafkaQuestions(self._kafka),
            self._topics.outcomes,
            to_do=self.topic_replaced_to_do,
            positions=lambda: self._resting,
        )
        try:
            self._require_topics()
            watch.start(self._end_with)
            self._require_unique_index()
            self._check_gate(at_once=True)
            self._consumer.subscribe(
                [self._topics.outcomes], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
            while not self._stop_requested:
                if self._trouble is not None:
                    raise self._trouble
                batch = self._decoder.batch(self._gather(), now_us())
                if self._contexts:
                    batch.work = self._follow(batch)
                failures = self._turn(batch if batch.records else None)
                self._check_gate(at_once=failures > 0)
                if self._settings.exit_at_end and not self._in_flight and self._has_ended():
                    return
                self.metrics.log_if_due()
            self._drain()
        except StoppedError:
            log.info("stopped while a server did not answer; the batch in hand comes again")
        finally:
            self._stop_requested = True  # ends the waiting of a batch that is still in flight; it comes again
            self._writers.shutdown()
            self._in_flight.clear()
            self._consumer.close()  # leaves the group: the others take over at once
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

    def _require_topics(self) -> None:
        deadline = time.monotonic() + self._settings.sink_patience_s

        wanted = (self._topics.outcomes, self._topics.dead_letters)

        def ask() -> dict[str, Any]:
            """Return the topics that are there, without all the others of the cluster."""
            try:
                found = {
                    name: self._consumer.list_topics(name, timeout=ANSWER_TIMEOUT_S).topics[name] for name in wanted
                }
                return {name: topic for name, topic in found.items() if topic.error is None}
            except KafkaException as error:
                if time.monotonic() < deadline:
                    raise
                raise ServiceUnreachableError(
                    f"Kafka does not answer ({error.args[0].str()})",
                    "check KAFKA_BOOTSTRAP_SERVERS, or start the embedded servers: crm-replay services up",
                ) from error

        known = self._until_answered("Kafka", ask)
        for topic in wanted:
            if topic not in known:
                raise BadInputError(f"topic {topic} does not exist", "start the job with crm-replay run")

    def _require_unique_index(self) -> None:
        """Refuse to write without the index that decides duplicates: a rerun would store everything twice."""
        index = UNIQUE_EXTERNAL_ID
        indexes = self._until_answered("MongoDB", self._logs.index_information)
        found = indexes.get(index.name, {})
        if [key for key, _ in found.get("key", ())] != list(index.keys) or not found.get("unique"):
            raise BadInputError(f"{ACTIVITY_LOGS} lacks the unique index {index.name}", "crm-replay migrate up")

    # --- the group ---

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin where the group had committed, or at the beginning; counts are read when they are needed."""

        def ask() -> list[TopicPartition]:
            answers = consumer.committed(partitions, timeout=ANSWER_TIMEOUT_S)
            for answer in answers:
                if answer.error is not None:
                    raise KafkaException(answer.error)
            return answers

        committed = self._until_answered("Kafka", ask)
        for partition in committed:
            self._states.pop(partition.partition, None)
            if partition.offset < 0:
                partition.offset = OFFSET_BEGINNING
        self._begins = {partition.partition: partition.offset for partition in committed}
        consumer.assign(committed)
        self.metrics.rebalances += 1
        log.info("assigned %s", {p.partition: p.offset for p in committed})

    def _revoked(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Finish what is in flight while the partitions are still ours, and forget what was only gathered."""
        self._drain()
        self._lost(_consumer, partitions)

    def _lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Forget what is another sink's by now; a batch in flight finds out when it saves its progress."""
        gone = {partition.partition for partition in partitions}
        self._gathered = [message for message in self._gathered if message.partition not in gone]
        for partition in gone:
            self._states.pop(partition, None)
        log.info("revoked %s", sorted(gone))

    # --- a batch ---

    def _gather(self) -> list[Taken]:
        """Return up to a batch of records, bounded by count and bytes; empty after an idle moment."""
        self._gathered = []
        self._contexts = {}
        size = 0
        deadline = 0.0
        while len(self._gathered) < self._settings.sink_batch_records and size < self._settings.sink_batch_bytes:
            # Ask for what fits by the size of the records so far, so that large ones overshoot by one poll only.
            room = (self._settings.sink_batch_bytes - size) // self._record_bytes + 1
            wanted = min(room, self._settings.sink_batch_records - len(self._gathered))
            idle_s = POLL_IN_FLIGHT_S if self._in_flight else POLL_IDLE_S
            wait_s = max(0.0, deadline - time.monotonic()) if deadline else idle_s
            if not deadline:
                self._resting = self._where()
                polled = self._consumer.consume(1, wait_s)  # the first record starts the clock
                self._resting = None
            else:
                polled = self._consumer.consume(wanted, wait_s)
            if self._traces.on:
                self._note_contexts(polled)
            for message in polled:
                error = message.error()
                if error is not None:
                    self._consumer_error(error)
                    continue
                taken = _taken(message)
                size += len(taken.value)
                self._gathered.append(taken)
            if self._gathered:
                self._record_bytes = max(1, size // len(self._gathered))
                deadline = deadline or time.monotonic() + self._settings.sink_linger_ms / 1000
            if self._stop_requested or (not polled and (not deadline or time.monotonic() >= deadline)):
                break
        gathered, self._gathered = self._gathered, []
        return gathered

    def _where(self) -> Positions | None:
        """Return the position on each assigned partition, a second old at most; None with a batch in flight."""
        if self._in_flight:
            return None
        now = time.monotonic()
        if now - self._position_seen_at >= POSITION_EVERY_S:
            self._position_seen_at = now
            assigned = self._consumer.assignment()
            positions = self._consumer.position(assigned) if assigned else []
            self._position = {
                at.partition: at.offset if at.offset >= 0 else self._begins.get(at.partition, at.offset)
                for at in positions
            }
        return self._position

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

    def _consumer_error(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):  # noqa: SLF001
            raise OutcomesLostError(
                f"outcomes were deleted from {self._topics.outcomes} before they were written",
                "lengthen the topic's retention and run crm-replay rerun",
            )
        if error.fatal():
            raise KafkaException(error)
        log.warning("Kafka: %s", error.str())

    def _write(self, batch: Batch) -> tuple[BatchOutcome, float]:
        # Dying before this line costs nothing. Dying after it: the documents are there, uncounted; the next sink sends
        # them again, meets their `_id`s, and counts them as migrated.
        started = time.perf_counter()
        with batch.work.step("bulk write", **BULK_WRITE):
            outcome = self._until_answered(
                "MongoDB", lambda: self._seam(Effect.WRITE_LOGS, lambda: write_batch(self._logs, batch.documents))
            )
        return outcome, time.perf_counter() - started

    def _account(self, batch: Batch, outcome: BatchOutcome) -> int:
        """Do everything that follows a batch's write; return its number of dead letters once it is committed."""
        decided = self._decoder.decide(batch, outcome, now_us())
        ahead = self._advance(decided)
        repeated = sum(step.repeated for step in ahead.values())
        self.metrics.repeated += repeated
        if repeated:
            self._watch_repeats(batch, outcome)
        dead_letters = [letter for step in ahead.values() for letter in step.dead_letters]
        self._deliver(dead_letters)

        # Dying before this line brings the same dead letters once more: each names run, partition and source offset.
        self._save(decided, ahead)

        # Dying before this line: the batch comes again, is written again without effect, and counts nothing.
        self._commit(batch.next_offsets)
        return len(dead_letters)

    def _advance(self, decided: dict[int, list[Decided]]) -> dict[int, Advance]:
        """Return each partition's progress after the batch, reading what is not known yet."""
        unknown = [partition for partition in decided if partition not in self._states]
        if unknown:
            self._states.update(self._until_answered("MongoDB", lambda: self._progress.load(unknown)))
        states, shift = self._states, self._id_shift
        return {partition: advance(states[partition], records, shift) for partition, records in decided.items()}

    def _watch_repeats(self, batch: Batch, outcome: BatchOutcome) -> None:
        """Count documents that were inserted although their row had been counted: two outcomes of one row differ."""
        for at in outcome.inserted:
            record, partition = batch.sources[at].record, batch.sources[at].taken.partition
            if record.audit_id <= self._states[partition].id_ranges.get(record.id_range, 0):
                self.metrics.repeats_inserted += 1
                log.warning("audit %d was counted before and is written only now", record.audit_id)

    def _deliver(self, dead_letters: Sequence[DeadLetter]) -> None:
        if not dead_letters:
            return
        self._until_answered(
            "Kafka",
            lambda: self._seam(
                Effect.DELIVER_DEAD_LETTERS,
                lambda: self._dead_letters.deliver(dead_letters, lambda: not self._stop_requested),
            ),
        )
        self.metrics.dead_letters += len(dead_letters)

    def _save(self, decided: dict[int, list[Decided]], ahead: dict[int, Advance]) -> None:
        """Store the counts; what another sink has stored meanwhile is read, and only what is new to it is added."""
        wanted = {partition: step.progress for partition, step in ahead.items()}
        for _ in range(SAVE_ATTEMPTS_MAX):
            if self._until_answered(
                "MongoDB", partial(self._seam, Effect.SAVE_PROGRESS, partial(self._progress.save, wanted))
            ):
                self._states.update(wanted)
                return
            self.metrics.lost_races += 1
            stored = self._until_answered("MongoDB", partial(self._progress.load, list(wanted)))
            # Dead letters of what is new below have been delivered above: they were new to the older progress too.
            wanted = {
                partition: advance(stored[partition], records, self._id_shift).progress
                for partition, records in decided.items()
            }
        raise ReplayError(f"progress could not be saved in {SAVE_ATTEMPTS_MAX} attempts", "are there too many sinks?")

    def _commit(self, next_offsets: dict[int, int]) -> None:
        offsets = [
            TopicPartition(self._topics.outcomes, partition, offset) for partition, offset in next_offsets.items()
        ]

        def commit() -> None:
            answers = self._consumer.commit(offsets=offsets, asynchronous=False)
            for answer in answers or ():
                if answer.error is not None:
                    raise KafkaException(answer.error)

        try:
            self._until_answered("Kafka", lambda: self._seam(Effect.COMMIT_OFFSETS, commit))
        except KafkaException as error:
            if error.args[0].code() not in NOT_OURS_ANY_MORE:
                raise
            log.warning("offsets not committed (%s); the batch comes again and counts nothing", error.args[0].str())

    # --- halting and ending ---

    def _check_gate(self, *, at_once: bool = False) -> None:
        """Raise HaltedError if the job does not go on; halt it if too many records have failed."""
        now = time.monotonic()
        if not at_once and now - self._gate_seen_at < GATE_EVERY_S:
            return
        self._gate_seen_at = now
        closed = self._until_answered("MongoDB", self._gate.closed_because)
        if closed is not None:
            self._until_answered("MongoDB", lambda: self._gate.settle(self._progress.totals()))
            raise HaltedError(closed, "offsets are kept; crm-replay resume goes on where it stopped")
        totals = self._until_answered("MongoDB", self._progress.totals)
        if self._gate.too_many(totals):
            reason = self._until_answered("MongoDB", lambda: self._gate.halt(totals))
            self._until_answered("MongoDB", lambda: self._gate.settle(self._progress.totals()))
            raise HaltedError(reason, what_to_do(self.job.company_sso_id))

    def _has_ended(self) -> bool:
        now = time.monotonic()
        if now - self._end_seen_at < END_CHECK_S:
            return False
        self._end_seen_at = now
        totals = self._until_answered("MongoDB", self._progress.totals)
        return totals.partitions_ended >= self.job.partitions

    def _until_answered(self, server: str, effect: Callable[[], T]) -> T:
        """Return what the effect returns; while the server does not answer, try again with backoff.

        Raises StoppedError when asked to stop meanwhile, and what is no outage.
        """
        wait_s = BACKOFF_FIRST_S
        while True:
            try:
                return effect()
            except (InvalidOperation, ConfigurationError, InvalidDocument):
                raise  # a defect of ours, which no waiting mends
            except (PyMongoError, NotAnsweredError) as error:
                # Errors that are a document's own never come here; a server that refuses everything (no primary, no
                # space, no permission) is waited for: an operator has to repair it, and nothing is lost meanwhile.
                code = getattr(error, "code", None)
                cause = error.what if isinstance(error, NotAnsweredError) else type(error).__name__
                log.warning(
                    "%s does not answer (%s%s); again in %.1f s", server, cause, f" {code}" if code else "", wait_s
                )
            except KafkaException as error:
                kafka_error = error.args[0]
                if kafka_error.fatal() or kafka_error.code() in NOT_OURS_ANY_MORE:
                    raise
                log.warning("%s does not answer (%s); again in %.1f s", server, kafka_error.str(), wait_s)
            self.metrics.retries += 1
            self._sleep(wait_s)
            wait_s = min(BACKOFF_MAX_S, wait_s * 2)

    def _sleep(self, seconds: float) -> None:
        """Wait; raises StoppedError as soon as a stop is asked for."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._trouble is not None:
                raise self._trouble
            if self._stop_requested:
                raise StoppedError
            time.sleep(min(left, STOP_CHECK_S))
        if self._stop_requested:
            raise StoppedError


def _of_outcome(outcome: BatchOutcome, dead_letters: int) -> dict[str, int]:
    """Return what a batch's span says came of it."""
    return {
        "crm_replay.inserted": len(outcome.inserted),
        "crm_replay.redelivered": len(outcome.redelivered),
        "crm_replay.duplicates": len(outcome.duplicates),
        "crm_replay.failed": len(outcome.failed),
        "crm_replay.dead_letters": dead_letters,
    }


def _taken(message: Message) -> Taken:
    """Return the record in a message; a null value (a tombstone) is taken as empty bytes, which decode to no record."""
    # Key and value are bytes, for nothing deserializes them; partition and offset are there, for it is no error.
    return Taken(message.partition(), message.offset(), message.key() or b"", message.value() or b"")  # type: ignore[arg-type]
