"""The handler of runs: in order, acknowledged after the confirmation, and never if anything went wrong."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust import types

from processors.app import RUNS_ON_THEIR_WAY_MAX, Parts, ReplayApp, RunHandler, kafka_url
from processors.batching import Run, Stretch
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import OutcomeNotDeliveredError, OutcomeProducer
from schemas.codec import Codec

TP = SimpleNamespace(topic="replay", partition=0)


class FakeProducer:
    """Deliveries are confirmed when the test says so."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.confirmations: list[asyncio.Event] = []
        self.refuse: set[int] = set()

    def send(self, messages: Sequence[Any], count: int, partition: int) -> int:
        assert (count, partition) == (len(messages), 0)
        self.sent.append(len(messages))
        self.confirmations.append(asyncio.Event())
        return len(self.sent) - 1

    async def confirmed(self, delivery: int) -> None:
        await self.confirmations[delivery].wait()
        if delivery in self.refuse:
            raise OutcomeNotDeliveredError("refused")


class FakeTransformer:
    def decode(self, records: Sequence[Any]) -> list[Any]:
        return list(records)

    def outcomes(self, records: Sequence[Any], _decoded: Any, _partition: int, high: HighWater) -> list[Any]:
        for record in records:
            high.is_republished(0, record)
        return [(b"", b"")] * len(records)


def parts(transformer: Any, *, begins_traces: bool = False) -> Parts:
    """Return parts of a replay that look nothing up."""

    async def prepare(_: Any, decoded: Sequence[Any]) -> Sequence[Any]:
        await asyncio.sleep(0)
        return decoded

    async def aclose() -> None: ...

    return Parts(transformer, prepare, partial(HighWater, 1), dict, aclose, "", begins_traces=begins_traces)


class FakeApp:
    def __init__(self) -> None:
        self.tables = self
        self.tables_fail = False
        self.high_waters: dict[Stretch, HighWater] = {}
        self.crashes: list[BaseException] = []
        self.ends_checked = 0
        self.crashed = asyncio.Event()

    def check_end(self) -> None:
        self.ends_checked += 1

    def check(self) -> None:
        if self.tables_fail:
            raise OutcomeNotDeliveredError("the tables are gone")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def crash(self, error: BaseException) -> None:
        self.crashes.append(error)
        self.crashed.set()


class Event:
    def __init__(self, run: Run, acked: list[int]) -> None:
        self.value = run
        self._acked = acked

    def ack(self) -> bool:
        self._acked.append(self.value.begin)
        return True


class Bench:
    def __init__(self) -> None:
        self.app = FakeApp()
        self.producer = FakeProducer()
        self.stretch = Stretch(1, "", 1)
        self.app.high_waters[self.stretch] = HighWater(1)
        self.acked: list[int] = []
        self.seen: list[int] = []
        self.handler = RunHandler(
            cast("ReplayApp", self.app),
            parts(FakeTransformer()),
            cast("OutcomeProducer", self.producer),
            ProcessorMetrics(),
            lambda run: self.seen.append(run.begin),
        )

    def event(self, begin: int, stretch: Stretch | None = None) -> Event:
        records = [begin, begin + 1]
        return Event(Run(TP, records, begin, begin + 2, stretch or self.stretch), self.acked)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def run(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Bench())

    asyncio.run(main())


def test_runs_are_acknowledged_in_order_whatever_the_order_of_the_confirmations() -> None:
    async def scenario(bench: Bench) -> None:
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
        # each run is committed with the high-water at its own end, not with what has been transformed since
        assert HighWater(1, first.value.note).is_republished(0, 2)
        assert not HighWater(1, first.value.note).is_republished(0, 3)
        assert bench.app.ends_checked == 2

    run(scenario)


def test_only_so_many_runs_are_on_their_way() -> None:
    async def scenario(bench: Bench) -> None:
        for n in range(RUNS_ON_THEIR_WAY_MAX):
            await bench.handler.handle(bench.event(1 + 2 * n))
        waiting = asyncio.create_task(bench.handler.handle(bench.event(1 + 2 * RUNS_ON_THEIR_WAY_MAX)))
        await bench.settle()
        assert not waiting.done()
        assert len(bench.producer.sent) == RUNS_ON_THEIR_WAY_MAX
        bench.producer.confirmations[0].set()
        await waiting
        assert len(bench.producer.sent) == RUNS_ON_THEIR_WAY_MAX + 1
        for confirmation in bench.producer.confirmations:
            confirmation.set()
        await bench.settle()

    run(scenario)


def test_a_refused_outcome_ends_the_worker_and_no_later_run_is_acknowledged() -> None:
    async def scenario(bench: Bench) -> None:
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

    run(scenario)


def test_a_run_of_a_former_assignment_is_let_go_unhandled() -> None:
    async def scenario(bench: Bench) -> None:
        event = bench.event(1, Stretch(1, "", 0))
        await bench.handler.handle(event)
        assert bench.acked == [1]  # the transport forgets it ...
        assert not event.value.is_handled  # ... and counts nothing
        assert bench.producer.sent == []

    run(scenario)


def test_tables_that_are_no_longer_kept_up_stop_the_handling() -> None:
    async def scenario(bench: Bench) -> None:
        bench.app.tables_fail = True
        with pytest.raises(OutcomeNotDeliveredError):
            await bench.handler.handle(bench.event(1))
        assert bench.producer.sent == []
        assert bench.acked == []

    run(scenario)


def replay_app(*, exit_at_end: bool) -> ReplayApp:
    app = ReplayApp(
        "unit",
        broker="kafka://localhost:9",
        metrics=ProcessorMetrics(),
        exit_at_end=exit_at_end,
        kafka={},
        codec=Codec(),
        load_timeout_s=1,
        run_records_max=10,
        run_bytes_max=1000,
    )
    app.high_water = partial(HighWater, 1)
    return app


def ended_note() -> str:
    high = HighWater(1)
    high.ended = True
    return high.note()


def test_the_end_is_when_all_assigned_partitions_have_ended_and_all_is_acknowledged() -> None:
    async def scenario() -> None:
        app = replay_app(exit_at_end=True)
        partitions = [types.TP("replay", n) for n in range(2)]
        app.high_waters = {}
        app.check_end()
        assert not app.ended.is_set()  # nothing is assigned
        stretches = [Stretch(1, "", 1), Stretch(9, ended_note(), 2)]
        await app.on_stretches(dict(zip(partitions, stretches, strict=True)))
        assert not app.ended.is_set()
        app.high_waters[stretches[0]].ended = True
        stretches[0].delivered = 5
        app.check_end()
        assert not app.ended.is_set()  # delivered and not acknowledged
        stretches[0].handled = 5
        app.check_end()
        assert app.ended.is_set()

    asyncio.run(scenario())


def test_the_end_is_seen_also_when_the_last_run_is_acknowledged_before_its_delivery_is_noted() -> None:
    async def scenario() -> None:
        app = replay_app(exit_at_end=True)
        stretch = Stretch(1, ended_note(), 1)
        app.high_waters = {stretch: HighWater(1, ended_note())}
        stretch.handled = 5  # the consumer notes `delivered` a moment later, and then nobody asks again
        app.check_end()
        assert app.ended.is_set()

    asyncio.run(scenario())


def test_without_being_told_so_a_worker_goes_on_after_the_end() -> None:
    async def scenario() -> None:
        app = replay_app(exit_at_end=False)
        app.high_waters = {Stretch(9, "", 1): HighWater(1, ended_note())}
        app.check_end()
        assert not app.ended.is_set()

    asyncio.run(scenario())


def test_every_bootstrap_server_becomes_a_url() -> None:
    assert kafka_url("a:1, b:2,") == ["kafka://a:1", "kafka://b:2"]
