"""The Faust application's agent with a producer and a transformer of the test's own."""

import asyncio
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from processors.app import BatchHandler, Parts, ReplayApp
from processors.batching import Assignment, Batch
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import OutcomeNotDeliveredError, OutcomeProducer
from schemas.codec import Codec
from schemas.process.liveness import Liveness

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
        self.liveness = Liveness(60.0)
        self.tables_fail = False
        self.high_waters: dict[Assignment, HighWater] = {}
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
    def __init__(self, batch: Batch, acked: list[int]) -> None:
        self.value = batch
        self._acked = acked

    def ack(self) -> bool:
        self._acked.append(self.value.begin)
        return True


class Bench:
    def __init__(self) -> None:
        self.app = FakeApp()
        self.producer = FakeProducer()
        self.assignment = Assignment(1, "", 1)
        self.app.high_waters[self.assignment] = HighWater(1)
        self.acked: list[int] = []
        self.seen: list[int] = []
        self.handler = BatchHandler(
            cast("ReplayApp", self.app),
            parts(FakeTransformer()),
            cast("OutcomeProducer", self.producer),
            ProcessorMetrics(),
            lambda batch: self.seen.append(batch.begin),
        )

    def event(self, begin: int, assignment: Assignment | None = None) -> Event:
        records = [begin, begin + 1]
        return Event(Batch(TP, records, begin, begin + 2, assignment or self.assignment), self.acked)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def replay_app(*, exit_at_end: bool) -> ReplayApp:
    """Return an application that is never started."""
    app = ReplayApp(
        "unit",
        broker="kafka://localhost:9",
        metrics=ProcessorMetrics(),
        exit_at_end=exit_at_end,
        kafka={},
        codec=Codec(),
        load_timeout_s=1,
        liveness=Liveness(60.0),
        batch_records_max=10,
        batch_bytes_max=1000,
    )
    app.high_water = partial(HighWater, 1)
    return app
