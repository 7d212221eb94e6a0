"""The transport's bookkeeping on a simulated partition; tests/integration/processors has the real Kafka."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka.errors import CommitFailedError, OffsetMetadataTooLargeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.batching import Assignment, Batch, BatchApp, CommittedOffsetMissingError, Fetched, split
from tests.support.waiting import in_loop

TOPIC = "replay"
WIRE_TP = TopicPartition(TOPIC, 0)
FAUST_TP = TP(TOPIC, 0)
FETCH_RECORDS = 7


class Record(NamedTuple):
    offset: int
    key: bytes | None = b"k"
    value: bytes | None = b"v"
    timestamp: int = 0
    timestamp_type: int = 0
    headers: tuple[()] = ()


# -- split


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    records_max=st.integers(1, 20),
    bytes_max=st.integers(1, 120),
    hole=st.integers(0, 5),
)
def test_pieces_keep_every_record_in_order_within_both_bounds(
    sizes: list[int], records_max: int, bytes_max: int, hole: int
) -> None:
    records = [Record(offset * 2, b"", b"x" * size) for offset, size in enumerate(sizes)]
    end = records[-1].offset + 1 + hole
    pieces = list(split(records, end, records_max, bytes_max))
    assert [record for piece, _ in pieces for record in piece] == records
    assert pieces[-1][1] == end
    for (_, piece_end), (following, _) in pairwise(pieces):
        assert piece_end == following[0].offset
    for piece, _ in pieces:
        assert 1 <= len(piece) <= records_max
        assert len(piece) == 1 or sum(len(record.value or b"") for record in piece) <= bytes_max


# -- the consumer on a simulated partition


class Partition:
    """A partition with holes and its group; stands in for aiokafka's consumer, coordinator and fetcher."""

    def __init__(self, offsets: list[int], end: int, committed: int | None) -> None:
        self.offsets = offsets
        self.end = end
        self.committed = None if committed is None else OffsetAndMetadata(committed, "")
        self.position = 0
        self.commits_fail = False
        self.note_characters_max = 4096
        self._closed = False
        self._max_poll_records = FETCH_RECORDS
        self._coordinator = self
        self._fetcher = SimpleNamespace(
            _closed=False,
            _subscriptions=SimpleNamespace(fetch_context=nullcontext),
            fetched_records=self.fetched_records,
        )
        state = SimpleNamespace(state_value=lambda tp: self if tp == WIRE_TP else None)
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=state))

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset([WIRE_TP])

    def seek(self, tp: TopicPartition, offset: int) -> None:
        assert tp == WIRE_TP
        self.position = offset

    async def fetch_committed_offsets(self, _partitions: Any) -> dict[TopicPartition, OffsetAndMetadata]:
        return {} if self.committed is None else {WIRE_TP: self.committed}

    async def fetched_records(self, _partitions: Any, timeout: float, max_records: int) -> dict[Any, list[Record]]:
        offsets = [offset for offset in self.offsets if offset >= self.position][:max_records]
        if not offsets:
            return {}
        following = [offset for offset in self.offsets if offset > offsets[-1]]
        # Like aiokafka's, the position passes over what is no record, up to the end of the fetched data.
        self.position = offsets[-1] + 1 if following else self.end
        return {WIRE_TP: [Record(offset) for offset in offsets]}

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if len(offsets[WIRE_TP].metadata) > self.note_characters_max:
            raise OffsetMetadataTooLargeError
        if self.commits_fail:
            raise CommitFailedError("the group has already rebalanced")
        self.committed = offsets[WIRE_TP]


class Simulation:
    """A real BatchConsumer and its thread, not started, over a simulated partition; the queue is the agent's."""

    def __init__(self, partition: Partition, batch_records_max: int = 3) -> None:
        self.partition = partition
        self.app = BatchApp(
            "unit", broker="kafka://localhost:9", batch_records_max=batch_records_max, batch_bytes_max=10_000
        )
        self.app.finalize()
        self.consumer = self.app.consumer
        self.thread = self.consumer._thread
        self.thread._consumer = partition
        self.thread.call_thread = self._call
        self.queue: deque[Any] = deque()
        self.suspend_in_callback = False
        self.consumer.callback = self._callback
        self.handled: set[int] = set()
        opened.append(self)

    def close(self) -> None:
        """Close the event loop of the thread that never ran."""
        self.thread.thread_loop.close()

    async def _call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return await method(*args, **kwargs)

    async def _callback(self, message: Any) -> None:
        self.queue.append(message)
        if self.suspend_in_callback:
            self.suspend()

    def suspend(self) -> None:
        """What a revocation does, as far as the transport is concerned: no more flow, queues cleared."""
        self.consumer.stop_flow()
        self.queue.clear()

    async def resume(self) -> None:
        """What the end of a rebalance does."""
        await self.consumer.perform_seek()
        self.queue.clear()
        self.consumer.resume_flow()

    async def fetch(self) -> dict[Any, Fetched]:
        return dict(await self.thread._fetch_records(self.partition, {WIRE_TP}, timeout=0, max_records=FETCH_RECORDS))

    async def deliver(self, fetched: dict[Any, Fetched]) -> None:
        await self.consumer._take(fetched)

    def handle(self, note: str = "") -> Any:
        """Handle the next batch in the queue, and acknowledge it."""
        message = self.queue.popleft()
        self.handled |= {record.offset for record in message.value.records}
        message.value.set_handled(note)
        self.consumer.ack(message)
        return message

    async def commit(self) -> None:
        await self.consumer.force_commit()
        self.check()

    def check(self) -> None:
        committed = self.partition.committed
        assert all(offset in self.handled for offset in self.partition.offsets if offset < committed.offset)

    async def finish(self) -> None:
        """Go on without disturbance until nothing is left."""
        self.partition.commits_fail = self.suspend_in_callback = False
        if not self.consumer.flow_active or not self.consumer.assignments:
            await self.resume()
        for _ in range(3 * len(self.partition.offsets) + 3):
            await self.deliver(await self.fetch())
            while self.queue:
                self.handle()
            await self.commit()


opened: list[Simulation] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def begun(offsets: Sequence[int] = range(1, 30), end: int = 30, committed: int = 1) -> Simulation:
    return Simulation(Partition(list(offsets), end, committed))


async def delivered(note_characters_max: int = 4096) -> Simulation:
    """Return a simulation whose first records are in the queue."""
    simulation = begun()
    simulation.partition.note_characters_max = note_characters_max
    await simulation.resume()
    await simulation.deliver(await simulation.fetch())
    return simulation


@in_loop
async def test_batches_cover_the_partition_without_a_hole_and_their_end_is_committed_with_the_note() -> None:
    simulation = begun([1, 2, 3, 6, 7, 8, 9, 15], 18)
    await simulation.resume()
    await simulation.deliver(await simulation.fetch())
    batches = [message.value for message in simulation.queue]
    assert [(batch.begin, batch.end, len(batch.records)) for batch in batches] == [(1, 6, 3), (6, 9, 3), (9, 10, 1)]
    while simulation.queue:
        simulation.handle("first")
    await simulation.deliver(await simulation.fetch())
    simulation.handle("second")
    await simulation.commit()
    assert simulation.partition.committed == OffsetAndMetadata(18, "second")
    await simulation.resume()
    assert simulation.consumer.assignments[FAUST_TP].begin_note == "second"


@in_loop
async def test_what_was_fetched_before_the_seek_is_not_delivered_after_it() -> None:
    simulation = begun()
    await simulation.resume()
    await simulation.fetch()
    late = await simulation.fetch()  # offsets 8 to 14
    await simulation.resume()  # back to offset 1
    await simulation.deliver(late)
    assert not simulation.queue
    await simulation.deliver(await simulation.fetch())
    assert simulation.queue[0].value.begin == 1


@in_loop
async def test_a_fetch_whose_result_got_lost_is_fetched_again_and_not_taken_for_a_hole() -> None:
    simulation = begun()
    await simulation.resume()
    await simulation.fetch()  # whoever asked for it was cancelled
    await simulation.deliver(await simulation.fetch())
    assert not simulation.queue
    await simulation.finish()
    assert simulation.handled == set(range(1, 30))
    assert simulation.partition.committed == OffsetAndMetadata(30, "")


@in_loop
async def test_once_the_flow_is_suspended_the_rest_is_dropped_and_comes_again() -> None:
    simulation = begun()
    await simulation.resume()
    simulation.suspend_in_callback = True
    await simulation.deliver(await simulation.fetch())
    assert simulation.consumer.assignments[FAUST_TP].delivered == 1
    await simulation.finish()
    assert simulation.handled == set(range(1, 30))


@in_loop
async def test_an_ack_of_a_former_assignment_moves_nothing() -> None:
    simulation = await delivered()
    former = simulation.queue[0]
    await simulation.resume()
    former.value.set_handled("")
    assert simulation.consumer.ack(former) is False
    assert await simulation.consumer.force_commit() is False
    assert simulation.partition.committed == OffsetAndMetadata(1, "")


@in_loop
async def test_an_ack_without_being_handled_moves_nothing() -> None:
    simulation = await delivered()
    assert simulation.consumer.ack(simulation.queue[0]) is False  # as Faust does with what a stream skips
    assert simulation.consumer.assignments[FAUST_TP].handled == 1


@in_loop
async def test_acknowledging_a_run_before_the_one_in_front_of_it_is_an_error() -> None:
    simulation = await delivered()
    simulation.queue.popleft()
    with pytest.raises(RuntimeError, match="a batch from 4 was acknowledged, 1 comes first"):
        simulation.handle()
    assert simulation.consumer.assignments[FAUST_TP].handled == 1


@in_loop
async def test_a_run_that_was_delivered_twice_counts_once() -> None:
    simulation = await delivered()
    message = simulation.handle()
    message.acked = False
    assert simulation.consumer.ack(message) is False
    assert simulation.consumer.assignments[FAUST_TP].handled == 4


@in_loop
async def test_a_commit_that_failed_is_made_again() -> None:
    simulation = await delivered()
    simulation.handle()
    simulation.partition.commits_fail = True
    assert await simulation.consumer.force_commit() is False
    simulation.partition.commits_fail = False
    assert await simulation.consumer.force_commit() is True
    assert simulation.partition.committed == OffsetAndMetadata(4, "")
    assert await simulation.consumer.force_commit() is False  # nothing new


@in_loop
async def test_where_kafka_refuses_notes_the_offset_is_committed_without() -> None:
    simulation = await delivered(note_characters_max=3)
    simulation.handle("note")
    await simulation.commit()
    assert simulation.partition.committed == OffsetAndMetadata(4, "")


@in_loop
async def test_nothing_begins_without_a_committed_offset() -> None:
    simulation = Simulation(Partition([1, 2], 3, None))
    with pytest.raises(CommittedOffsetMissingError, match=r"group unit has no committed offset on replay\[0\]"):
        await simulation.resume()


@in_loop
async def test_records_before_the_first_seek_are_left_to_it() -> None:
    simulation = begun([1, 2, 3], 4)
    assert await simulation.fetch() == {}
    await simulation.finish()
    assert simulation.handled == {1, 2, 3}


STEPS: tuple[str, ...] = (
    "deliver",
    "lose a fetch",
    "rebalance between fetch and delivery",
    "rebalance",
    "suspend while delivering",
)
STEPS += ("handle", "handle", "commit", "commit fails", "acknowledge late")


@settings(max_examples=150, deadline=None)
@given(
    present=st.lists(st.booleans(), min_size=3, max_size=40),
    tail=st.integers(0, 4),
    steps=st.lists(st.sampled_from(STEPS), max_size=40),
)
def test_whatever_happens_nothing_is_committed_that_was_not_handled(
    present: list[bool], tail: int, steps: list[str]
) -> None:
    offsets = [1, *(offset for offset, there in enumerate(present, 2) if there)]

    async def step(simulation: Simulation, what: str, stale: list[Any]) -> None:
        if what == "deliver":
            await simulation.deliver(await simulation.fetch())
        elif what == "lose a fetch":
            await simulation.fetch()
        elif what == "rebalance between fetch and delivery":
            fetched = await simulation.fetch()
            simulation.suspend()
            await simulation.resume()
            await simulation.deliver(fetched)
        elif what == "rebalance":
            stale.extend(simulation.queue)
            simulation.suspend()
            await simulation.commit()
            await simulation.resume()
        elif what == "suspend while delivering":
            simulation.suspend_in_callback = True
            await simulation.deliver(await simulation.fetch())
            simulation.suspend_in_callback = False
            if not simulation.consumer.flow_active:
                await simulation.resume()
        elif what == "handle" and simulation.queue:
            simulation.handle()
        elif what in ("commit", "commit fails"):
            simulation.partition.commits_fail = what == "commit fails"
            await simulation.commit()
        elif what == "acknowledge late" and stale:
            message = stale.pop()
            simulation.handled |= {record.offset for record in message.value.records}
            message.value.set_handled("late")
            simulation.consumer.ack(message)

    async def scenario() -> None:
        simulation = begun(offsets, len(present) + 2 + tail)
        await simulation.resume()
        stale: list[Any] = []
        for what in steps:
            await step(simulation, what, stale)
        await simulation.finish()
        assert simulation.handled == set(offsets)
        assert simulation.partition.committed.offset > offsets[-1]

    try:
        asyncio.run(scenario())
    finally:
        opened.pop().close()


def test_a_run_knows_where_it_comes_from() -> None:
    batch = Batch(FAUST_TP, [Record(5)], 3, 6, Assignment(3, "note", 1))
    assert (batch.topic, batch.partition, batch.note, batch.is_handled) == (TOPIC, 0, "note", False)
