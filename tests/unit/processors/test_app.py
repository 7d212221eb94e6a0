"""The handler of batches: in order, acknowledged after the confirmation, and never if anything went wrong."""

import asyncio

import pytest
from faust import types

from processors.app import BATCHES_IN_FLIGHT_MAX, kafka_url
from processors.batching import Assignment
from processors.lookups.tables import HighWater
from processors.outcomes import OutcomeNotDeliveredError
from tests.support.bench import Bench, replay_app
from tests.support.waiting import in_loop


@pytest.fixture
def bench() -> Bench:
    return Bench()


@in_loop
async def test_batches_are_acknowledged_in_order_whatever_the_order_of_the_confirmations(bench: Bench) -> None:
    first, second = bench.event(1), bench.event(3)
    await bench.handler.handle(first)
    await bench.handler.handle(second)
    assert bench.producer.sent == [2, 2]
    bench.producer.confirmations[1].set()
    await bench.settle()
    assert bench.acked == []
    bench.producer.confirmations[0].set()
    await bench.settle()
    assert bench.acked == bench.seen == [1, 3]
    assert first.value.is_handled
    # each batch is committed with the high-water at its own end, not with what has been transformed since
    assert HighWater(1, first.value.note).is_republished(0, 2)
    assert not HighWater(1, first.value.note).is_republished(0, 3)
    assert bench.app.ends_checked == 2


@in_loop
async def test_only_so_many_batches_are_in_flight(bench: Bench) -> None:
    for n in range(BATCHES_IN_FLIGHT_MAX):
        await bench.handler.handle(bench.event(1 + 2 * n))
    waiting = asyncio.create_task(bench.handler.handle(bench.event(1 + 2 * BATCHES_IN_FLIGHT_MAX)))
    await bench.settle()
    assert not waiting.done()
    assert len(bench.producer.sent) == BATCHES_IN_FLIGHT_MAX
    bench.producer.confirmations[0].set()
    await waiting
    assert len(bench.producer.sent) == BATCHES_IN_FLIGHT_MAX + 1
    for confirmation in bench.producer.confirmations:
        confirmation.set()
    await bench.settle()


@in_loop
async def test_a_refused_outcome_ends_the_worker_and_no_later_run_is_acknowledged(bench: Bench) -> None:
    bench.producer.refuse.add(0)
    events = [bench.event(1), bench.event(3)]
    for event in events:
        await bench.handler.handle(event)
    for confirmation in bench.producer.confirmations:
        confirmation.set()
    await asyncio.wait_for(bench.app.crashed.wait(), 5)
    await bench.settle()
    assert isinstance(bench.app.crashes[0], OutcomeNotDeliveredError)
    assert bench.acked == []
    assert not any(event.value.is_handled for event in events)
    with pytest.raises(OutcomeNotDeliveredError):
        await bench.handler.handle(bench.event(5))


@in_loop
async def test_a_batch_of_a_former_assignment_is_released_unhandled(bench: Bench) -> None:
    event = bench.event(1, Assignment(1, "", 0))
    await bench.handler.handle(event)
    assert bench.acked == [1]  # the transport forgets it ...
    assert not event.value.is_handled  # ... and counts nothing
    assert bench.producer.sent == []


@in_loop
async def test_tables_that_are_no_longer_kept_up_stop_the_handling(bench: Bench) -> None:
    bench.app.tables_fail = True
    with pytest.raises(OutcomeNotDeliveredError):
        await bench.handler.handle(bench.event(1))
    assert bench.producer.sent == []
    assert bench.acked == []


def ended_note() -> str:
    high = HighWater(1)
    high.ended = True
    return high.note()


@in_loop
async def test_the_end_is_when_all_assigned_partitions_have_ended_and_all_is_acknowledged() -> None:
    app = replay_app(exit_at_end=True)
    partitions = [types.TP("replay", n) for n in range(2)]
    app.high_waters = {}
    app.check_end()
    assert not app.ended.is_set()  # nothing is assigned
    assignments = [Assignment(1, "", 1), Assignment(9, ended_note(), 2)]
    await app.on_assignments(dict(zip(partitions, assignments, strict=True)))
    assert not app.ended.is_set()
    app.high_waters[assignments[0]].ended = True
    assignments[0].delivered = 5
    app.check_end()
    assert not app.ended.is_set()  # delivered and not acknowledged
    assignments[0].handled = 5
    app.check_end()
    assert app.ended.is_set()


@in_loop
async def test_the_end_is_seen_also_when_the_last_run_is_acknowledged_before_its_delivery_is_noted() -> None:
    app = replay_app(exit_at_end=True)
    assignment = Assignment(1, ended_note(), 1)
    app.high_waters = {assignment: HighWater(1, ended_note())}
    assignment.handled = 5  # the consumer notes `delivered` a moment later, and no check follows it
    app.check_end()
    assert app.ended.is_set()


@in_loop
async def test_without_being_told_so_a_worker_goes_on_after_the_end() -> None:
    app = replay_app(exit_at_end=False)
    app.high_waters = {Assignment(9, "", 1): HighWater(1, ended_note())}
    app.check_end()
    assert not app.ended.is_set()


def test_every_bootstrap_server_becomes_a_url() -> None:
    assert kafka_url("a:1, b:2,") == ["kafka://a:1", "kafka://b:2"]
