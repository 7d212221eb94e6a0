"""A source, a publisher and a checkpoint in memory: a snapshot dies at any of their effects."""

from collections.abc import Iterable, Sequence
from typing import Any

from producer.cursor import Gap, IdRange, clip, in_gaps
from producer.messages import Page
from producer.publisher import Keyed
from producer.snapshot import Bounds
from schemas.codec import Codec
from schemas.process.tracing import Headers
from schemas.records import AuditEvent

CODEC = Codec()
PARTITIONS = 2
CHECKPOINT_ROWS = 5  # of pages that have 1 to 30


class DiedError(Exception):
    """The process is gone."""


class World:
    """Everything that outlives the process: the source, the topic, the checkpoint; and the moment of its death."""

    def __init__(self, visible_from: dict[int, int], *, open_until: int = 0, top: int | None = None) -> None:
        self.visible_from = visible_from
        self.open_until = open_until
        self.top = max(visible_from, default=0) if top is None else top
        self.moment = 0
        self.die_at: int | None = None
        self.topic: list[tuple[int, AuditEvent]] = []
        self.saved: dict[int, IdRange] = {}
        self.story: list[str] = []

    def effect(self, what: str) -> None:
        self.moment += 1
        if self.moment == self.die_at:
            raise DiedError
        self.story.append(what)

    def rows(self, low: int, high: int) -> list[int]:
        return [
            id_ for id_ in sorted(self.visible_from) if low <= id_ <= high and self.visible_from[id_] <= self.moment
        ]

    # The checkpoint.
    def load(self) -> list[IdRange]:
        return list(self.saved.values())

    def save(self, range_: IdRange) -> None:
        self.effect("save")
        self.saved[range_.id_range] = range_

    def counted_once(self) -> list[int]:
        high: dict[tuple[int, int], int] = {}
        kept = []
        for partition, event in self.topic:
            if event.audit_id > high.get((partition, event.id_range), -1):
                high[partition, event.id_range] = event.audit_id
                kept.append(event.audit_id)
        return kept


class FakeReader:
    def __init__(self, world: World, page_rows: int, window: int) -> None:
        self.world, self.page_rows, self.window = world, page_rows, window

    def page_after(
        self, cursor: int, last: int, id_range: int, gaps_known: Sequence[Gap], *, look_for_gaps: bool
    ) -> Page:
        self.world.effect("read")
        window_end = min(cursor + self.window, last)
        ids = self.world.rows(cursor + 1, window_end)[: self.page_rows]
        if len(ids) == self.page_rows:
            end = ids[-1]
        elif ids or window_end == last:
            end = window_end
        else:
            end = min([*self.world.rows(window_end + 1, last), last + 1]) - 1
        gaps: list[Gap] = []
        if look_for_gaps:
            missing = set(range(cursor + 1, end + 1)) - set(self.world.rows(cursor + 1, end))
            gaps = [(id_, id_) for id_ in sorted(missing)]
        events = tuple(self.event(id_, id_range) for id_ in ids if not in_gaps(gaps_known, id_))
        return Page(events, end, tuple(gaps))

    def late_page_after(self, cursor: int, gaps: Sequence[Gap], id_range: int) -> Page:
        self.world.effect("read")
        ahead = clip(gaps, cursor, gaps[-1][1])[:3]
        ids = [id_ for low, high in ahead for id_ in self.world.rows(low, high)]
        return Page(tuple(self.event(id_, id_range) for id_ in ids), ahead[-1][1])

    def horizon_passed(self, xmax: int) -> bool:
        return self.world.moment >= self.world.open_until

    def oldest_transactions(self) -> str:
        return "pid 1"

    def event(self, id_: int, id_range: int) -> AuditEvent:
        return AuditEvent(id_, id_range, 0, "T", id_, "", 0, "", 0, "", "create", "", False, 1, "", "")


def bounds_of(world: "World", **bounds: Any) -> Bounds:
    """Return bounds under which nothing is waited for, and a handful of ids are the newest."""
    return Bounds(**{"top": world.top, "xmax": 0, "horizon_wait_s": 60, "checkpoint_rows": CHECKPOINT_ROWS,
                     "horizon_poll_s": 0.0, "newest_ids": 5, **bounds})  # fmt: skip


class FakePublisher:
    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: list[AuditEvent] = []

    def publish(self, records: Iterable[Keyed], headers: Headers | None = None) -> None:
        assert headers is None  # nothing is traced
        for _, value in records:
            assert value is not None
            event = CODEC.decode_as(AuditEvent, value)
            self.world.effect("publish")
            self.world.topic.append((event.audit_id % PARTITIONS, event))

    def flush(self) -> None:
        self.world.effect("flush")


class PatientReader(FakeReader):
    """Asking for the horizon takes a moment, so that waiting comes to an end."""

    def horizon_passed(self, xmax: int) -> bool:
        self.world.effect("ask")
        return super().horizon_passed(xmax)
