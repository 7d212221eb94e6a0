"""Faust with batches instead of single records. With `tables`, the only code on Faust's and aiokafka's internals.

Faust makes two asyncio tasks, an event, two queue hops and an ack out of every record: 3,500 records/s. Here one Faust
message is a *batch*, the records fetched from one partition, up to a bound: the same groups, assignment, rebalancing,
streams and commits, at fifty times the rate.

Records get lost at a rebalance, with unmodified Faust too: records fetched before the seek to the committed offset are
delivered after it; a fetch whose caller was cancelled has advanced the position nevertheless; records of a cleared
queue are gone. In each case what follows looks like a gap in the log, which Faust marks as acknowledged. So nothing is
inferred from offsets here. What this worker has to handle of a partition is an `Assignment`, with three invariants:

- it begins at the offset committed at the broker, read in the consumer's thread atomically with the seek to it;
- every fetch reports the positions between which it read, taken in that thread atomically with the fetch. Only a fetch
  that begins where the last delivered batch ended is delivered, offsets without a record included (aborted
  transactions, compaction); anything else is fetched again;
- a handled batch advances the assignment only if it begins where the last handled one ended.

What is committed is the end of the last handled batch of an assignment, so everything before it has been handled. A
group without a committed offset, or one whose records retention has deleted, ends the worker
(`auto_offset_reset=none`): there is no offset it could begin at without a guess. A new assignment or a new seek makes
new assignments, and batches of an old one no longer count. tests/integration/processors/test_rebalance.py proves it.
"""

# ruff: noqa: SLF001 - the private parts of faust-streaming 0.15.3 and aiokafka 0.14, which are pinned for this

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import faust
from aiokafka.consumer import fetcher
from aiokafka.errors import CommitFailedError, IllegalStateError, OffsetMetadataTooLargeError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.serializers import codecs
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode.utils.futures import notify

from schemas.errors import ReplayError

BATCH_CODEC = "batch"
FETCH_TIMEOUT_S = 1.0
FETCH_WAIT_MS = 200  # for a fetch to fill; what is there by then is delivered
FLOOD_RECORDS = 500  # that one fetch returns: under such load the next one may wait for more
COMMITTED_TIMEOUT_S = 30.0  # well below the request timeout at which Faust would continue without an answer


class CommittedOffsetMissingError(ReplayError):
    """The group has no committed offset on a partition, so it is unknown what has been handled there."""


class RecordsGoneError(ReplayError):
    """The next records that the group has to handle are no longer on the topic."""


class Assignment:
    """What this worker has to handle of one partition since it was assigned."""

    __slots__ = ("begin", "begin_note", "committed", "delivered", "epoch", "handled", "note")

    def __init__(self, begin: int, note: str, epoch: int) -> None:
        """`begin` and `note` are the committed offset and its metadata; `epoch` counts the seeks of this consumer."""
        self.begin = begin
        self.begin_note = note
        self.epoch = epoch
        self.delivered = begin  # end of the last batch that went to the stream
        self.handled = begin  # end of the last batch whose effects are confirmed
        self.committed = begin
        self.note = note  # metadata to commit together with `handled`


class Batch:
    """Records of one partition, in order; covers every offset from `begin` up to but excluding `end`."""

    __slots__ = ("assignment", "begin", "end", "is_handled", "note", "records", "tp")

    def __init__(self, tp: Any, records: Sequence[Any], begin: int, end: int, assignment: Assignment) -> None:
        """`records` are aiokafka's, as they were parsed: `key`, `value`, `offset`, `timestamp`, `headers`."""
        self.tp = tp
        self.records = records
        self.begin = begin
        self.end = end
        self.assignment = assignment
        self.is_handled = False
        self.note = assignment.begin_note

    @property
    def topic(self) -> str:
        """Return the topic it was read from."""
        return str(self.tp.topic)

    @property
    def partition(self) -> int:
        """Return the partition it was read from."""
        return int(self.tp.partition)

    def set_handled(self, note: str) -> None:
        """Mark its effects as confirmed; only an ack after this counts. `note` is committed with its end."""
        self.is_handled = True
        self.note = note


class Fetched:
    """Records of one partition that one fetch returned, and the positions between which it read."""

    __slots__ = ("begin", "end", "epoch", "records")

    def __init__(self, records: Sequence[Any], begin: int, end: int, epoch: int) -> None:
        """`epoch` is that of the last seek of the partition before the fetch."""
        self.records = records
        self.begin = begin
        self.end = end
        self.epoch = epoch


def split(records: Sequence[Any], end: int, records_max: int, bytes_max: int) -> Iterator[tuple[Sequence[Any], int]]:
    """Yield slices of the records within both bounds, each with the offset after it; the last one ends at `end`.

    A single record over `bytes_max` is a slice of its own.
    """
    start = 0
    size = 0
    for index, record in enumerate(records):
        size += len(record.value or b"") + len(record.key or b"")
        if index > start and (index - start >= records_max or size > bytes_max):
            yield records[start:index], record.offset
            start = index
            size = len(record.value or b"") + len(record.key or b"")
    yield records[start:], end


class ParsedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Returns records as parsed: copying the eleven fields of each took longer than parsing it."""

    def _consumer_record(self, _tp: Any, record: Any) -> Any:
        return record


fetcher.PartitionRecords = ParsedRecords  # the fetcher creates them by this name; no other consumer is in the process


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """aiokafka's consumer in its own thread and event loop; what is atomic here is atomic for the consumer."""

    consumer: "BatchConsumer"

    def __post_init__(self) -> None:
        """Faust's hook at the end of its constructor."""
        super().__post_init__()
        self._epoch = 0
        self._reached: dict[Any, int] = {}  # position after the last fetch or seek, by partition
        self._sought: dict[Any, int] = {}  # epoch of the last seek, by partition

    def _create_worker_consumer(self, transport: Any) -> Any:
        """Set what Faust has no settings for.

        Faust reads what aborted transactions have written, unless it is exactly-once itself; this worker never does.
        """
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Begin a new assignment on every assigned partition and return where each begins.

        Raises CommittedOffsetMissingError, and aiokafka's IllegalStateError if the assignment has changed meanwhile.
        """
        return dict(await self.call_thread(self._seek_to_committed))

    async def _seek_to_committed(self) -> Mapping[Any, int]:
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        if not assigned:
            return {}
        committed = await asyncio.wait_for(consumer._coordinator.fetch_committed_offsets(assigned), COMMITTED_TIMEOUT_S)
        missing = sorted(set(assigned) - set(committed))
        if missing:
            raise CommittedOffsetMissingError(
                f"group {self.app.conf.id} has no committed offset on {missing[0].topic}[{missing[0].partition}]"
                f" ({len(missing)} of {len(assigned)} partitions)",
                "let crm-replay run start the workers: it commits the first offset of each partition",
            )
        assignments = {}
        for tp in assigned:  # no await from here on: seek, epoch and assignment belong together
            offset, note = committed[tp].offset, committed[tp].metadata or ""
            self._seek_now(tp, offset)
            assignments[TP(tp.topic, tp.partition)] = Assignment(offset, note, self._epoch)
        self.consumer.assignments = assignments
        return {tp: assignment.begin for tp, assignment in assignments.items()}

    def position(self, tp: Any) -> int:
        """Return where the next fetch begins, offsets without a record skipped; below zero: unknown. Any thread."""
        consumer = self._consumer
        subscription = consumer._subscription.subscription if consumer is not None else None
        assignment = subscription.assignment if subscription is not None else None
        state = assignment.state_value(TopicPartition(tp.topic, tp.partition)) if assignment is not None else None
        return state._position if state is not None and state._position is not None else -1

    def reached(self, tp: Any) -> int | None:
        """Return the position after the last fetch or seek; to be called while no fetch is in progress."""
        return self._reached.get(tp)

    async def seek_back(self, tp: Any, assignment: Assignment) -> None:
        """Fetch again what `assignment` has not delivered yet."""
        await self.call_thread(self._seek_back, tp, assignment)

    async def _seek_back(self, tp: Any, assignment: Assignment) -> None:
        if self.consumer.assignments.get(tp) is assignment:
            self._seek_now(TopicPartition(tp.topic, tp.partition), assignment.delivered)
            assignment.epoch = self._epoch

    def _seek_now(self, tp: TopicPartition, offset: int) -> None:
        self._ensure_consumer().seek(tp, offset)
        self._epoch += 1
        self._reached[tp] = offset
        self._sought[tp] = self._epoch

    async def _fetch_records(
        self, consumer: Any, active_partitions: Any, timeout: float | None = None, max_records: int | None = None
    ) -> Mapping[Any, Fetched]:
        """Return what was fetched by partition, each with the positions it spans."""
        records = await super()._fetch_records(consumer, active_partitions, timeout=timeout, max_records=max_records)
        is_flood = sum(map(len, records.values())) >= FLOOD_RECORDS
        consumer._fetcher._fetch_min_bytes = self.app.fetch_bytes_min if is_flood else 1
        fetched = {}
        for tp, of_partition in records.items():  # no await since aiokafka moved the positions
            state = consumer._subscription.subscription.assignment.state_value(tp)
            if state is None or tp not in self._reached:
                continue  # no longer assigned, or no seek yet: the coming seek fetches it again
            end = max(state.position, of_partition[-1].offset + 1)
            fetched[TP(tp.topic, tp.partition)] = Fetched(of_partition, self._reached[tp], end, self._sought[tp])
            self._reached[tp] = end
        return fetched

    async def _commit(self, offsets: Mapping[Any, tuple[int, str]]) -> set[Any]:
        """Commit offsets with their notes; return the partitions for which Kafka has accepted them.

        An empty result means that the group has rebalanced: handled records will be delivered again.
        """
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        mine = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        if not mine:
            return set()
        now = asyncio.get_running_loop().time()
        wanted = {TopicPartition(*tp): OffsetAndMetadata(*offset) for tp, offset in mine.items()}
        try:
            try:
                await consumer.commit(wanted)
            except OffsetMetadataTooLargeError:  # the broker's offset.metadata.max.bytes is below Kafka's default
                self.log.warning("Kafka refuses the metadata of the offsets; they are committed without it")
                await consumer.commit({tp: OffsetAndMetadata(offset.offset, "") for tp, offset in wanted.items()})
        except (CommitFailedError, IllegalStateError) as error:
            self.log.info("offsets were not committed, their records will be delivered again: %s", error)
            return set()
        self.tp_last_committed_at.update(dict.fromkeys(mine, now))
        return set(mine)

    async def on_thread_stop(self) -> None:
        """Leave the group if the app is to; a static member that just dies keeps its membership."""
        if self.app.leaving and self._consumer is not None:
            # aiokafka sends LeaveGroup only for a member without an instance id.
            self._consumer._coordinator._group_instance_id = None
        await super().on_thread_stop()


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer; delivers batches and commits the ends of assignments."""

    consumer_stopped_errors: ClassVar[Any] = driver.Consumer.consumer_stopped_errors
    assignments: dict[Any, Assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept Faust's arguments."""
        self.assignments = {}
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- assignment

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Discard the former assignments; `perform_seek` creates the new ones."""
        self.assignments = {}
        await super().on_partitions_assigned(assigned, generation_id)

    async def perform_seek(self) -> None:
        """Begin new assignments at the committed offsets."""
        begins = await self.seek_to_committed()
        self._read_offset.update(begins)
        self._committed_offset.update(begins)
        await self.app.on_assignments(self.assignments)

    def on_buffer_full(self, tp: Any) -> None:
        """Do nothing: a full queue makes the delivery wait; Faust's handling would sleep for a second."""

    def on_buffer_drop(self, tp: Any) -> None:
        """Do nothing, like `on_buffer_full`."""

    def resting_positions(self) -> dict[int, int] | None:
        """Return the position on each assigned partition, None while a delivered batch is unhandled. Any thread."""
        assignments = dict(self.assignments)
        if any(assignment.handled != assignment.delivered for assignment in assignments.values()):
            return None
        return {
            tp.partition: max(assignment.delivered, self._thread.position(tp)) for tp, assignment in assignments.items()
        }

    # -- delivery

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                fetched, _ = await self._wait_next_records(FETCH_TIMEOUT_S)
                await self.sleep(0)
                if self.flow_active and not self.should_stop:
                    await self._take(fetched or {})
        except OffsetOutOfRangeError as error:
            raise RecordsGoneError(
                f"the topic no longer has the records at the committed offset ({error.args[0]})",
                "its retention has deleted them: publish the snapshot again, or reset the group knowingly",
            ) from error
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise

    async def _take(self, fetched: Mapping[Any, Fetched]) -> None:
        """Deliver what one fetch returned."""
        for tp, of_partition in fetched.items():
            if not await self._deliver(tp, of_partition):
                return  # the flow is suspended; resuming it begins with a seek
        if not fetched:  # at the end of the log no later fetch would reveal that an earlier one was lost
            for tp, assignment in list(self.assignments.items()):
                if self._thread.reached(tp) != assignment.delivered:
                    await self._fetch_again(tp, assignment)

    async def _fetch_again(self, tp: Any, assignment: Assignment) -> None:
        self.log.info("fetching %s[%d] again from offset %d", tp.topic, tp.partition, assignment.delivered)
        await self._thread.seek_back(tp, assignment)

    async def _deliver(self, tp: Any, fetched: Fetched) -> bool:
        """Deliver what was fetched from one partition; False once a rebalance has begun."""
        assignment = self.assignments.get(tp)
        if not self.flow_active:
            return False
        if assignment is None or fetched.epoch != assignment.epoch:
            return True  # fetched before the last seek, after which it is fetched again
        if fetched.begin != assignment.delivered:
            await self._fetch_again(tp, assignment)
            return True
        for records, end in split(fetched.records, fetched.end, self.app.batch_records_max, self.app.batch_bytes_max):
            batch = Batch(tp, records, assignment.delivered, end, assignment)
            message = self._message_of(batch)
            await self.wait_first(self.callback(message), self.suspend_flow.wait())
            if self.suspend_flow.is_set() or self.should_stop or self.assignments.get(tp) is not assignment:
                return False  # it may or may not be in a queue; the assignment does not count it as delivered
            assignment.delivered = end
        return True

    def _message_of(self, batch: Batch) -> Any:
        """Return a batch as Faust's message, with offset and time of its last record."""
        last = batch.records[-1]
        place = (batch.topic, batch.partition, last.offset, last.timestamp / 1000, last.timestamp_type)
        generation = self.app.consumer_generation_id
        message = ConsumerMessage(*place, None, None, None, None, tp=batch.tp, generation_id=generation)
        message.value = batch
        return message

    # -- acks and commits

    def ack(self, message: Any) -> bool:
        """Advance the batch's assignment if the batch was handled; True if it did.

        Faust also acks messages that a stream has skipped: those were not handled and do not count. Raises
        RuntimeError if earlier batches have not been handled, which would be a defect.
        """
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        batch = message.value
        if (
            not isinstance(batch, Batch)
            or not batch.is_handled
            or self.assignments.get(batch.tp) is not batch.assignment
        ):
            return False
        assignment = batch.assignment
        if batch.end <= assignment.handled:
            return False  # delivered twice, and handled before
        if batch.begin != assignment.handled:
            raise RuntimeError(
                f"{batch.topic}[{batch.partition}]: a batch from {batch.begin} was acknowledged,"
                f" {assignment.handled} comes first"
            )
        assignment.note = batch.note
        assignment.handled = batch.end
        self._n_acked += len(batch.records)
        return True

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Commit the end of every assignment that has advanced; True if Kafka has accepted all of them."""
        due = {
            tp: assignment for tp, assignment in self.assignments.items() if assignment.handled > assignment.committed
        }
        if not due:
            return False
        offsets = {tp: (assignment.handled, assignment.note) for tp, assignment in due.items()}
        committed = await self._thread.commit(offsets)
        for tp in committed:
            due[tp].committed = max(due[tp].committed, offsets[tp][0])
        return len(committed) == len(due)

    async def commit_and_end_transactions(self) -> None:
        """Commit what was handled last, also if another commit was in progress."""
        if not await self.commit():
            await self.commit()


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """Faust's transport with this consumer."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer


class PassThrough(codecs.Codec):  # type: ignore[misc]
    """A batch is a Python object already: there is nothing to decode."""

    def loads(self, s: Any) -> Any:
        """Return it as it is."""
        return s

    def dumps(self, obj: Any) -> Any:
        """Return it as it is."""
        return obj


codecs.register(BATCH_CODEC, PassThrough())


class BatchApp(faust.App):  # type: ignore[misc]
    """A Faust app whose topics deliver batches. It writes nothing to disk and creates no topics."""

    fetch_bytes_min = 1  # that a fetch waits for under load, FETCH_WAIT_MS at most

    def __init__(self, *args: Any, batch_records_max: int, batch_bytes_max: int, **kwargs: Any) -> None:
        """Accept Faust's arguments, and the bounds of a batch."""
        self.batch_records_max = batch_records_max
        self.batch_bytes_max = batch_bytes_max
        self.leaving = False  # set it before stopping the app to release the partitions at once
        super().__init__(
            *args,
            table_standby_replicas=0,  # no table for Faust's assignor to manage
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="none",
            **kwargs,
        )

    def batch_topic(self, name: str) -> Any:
        """Return the topic `name` as a source of `Batch` objects."""
        return self.topic(name, key_serializer="raw", value_serializer=BATCH_CODEC)

    async def on_assignments(self, assignments: Mapping[Any, Assignment]) -> None:
        """Receive what this worker has to handle from now on; called after each rebalance, before any delivery."""

    def resting_positions(self) -> dict[int, int] | None:
        """Return the consumer's `resting_positions`; None while there is no consumer."""
        consumer = self._consumer
        return consumer.resting_positions() if consumer is not None else None

    def crashed_event(self) -> Any:
        """Return the event that is set when the app cannot continue; `crash_reason` then has the error."""
        return self._crashed

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """Create none: nothing is stored."""
