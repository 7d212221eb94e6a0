"""The loop against a source whose rows commit late, killed at every effect there is.

The source is played here and not mocked call by call: rows have an id and the moment they become visible, and a moment
passes with every effect. What is asserted is what everybody downstream sees after dropping repetitions by high-water
marks (DECISIONS.md, decision 8): each row exactly once.
"""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer import snapshot as module
from producer.cursor import Gap, IdRange, clip, in_gaps, next_number
from producer.messages import Encoder, Page
from producer.parallel import ranges_of_run, split_for
from producer.publisher import Keyed
from producer.snapshot import Bounds, Snapshot
from schemas.codec import Codec
from schemas.errors import CursorDidNotAdvanceError, ReplayError
from schemas.process.tracing import Headers
from schemas.process.waiting import StoppedError
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


def snapshot_of(world: World, reader: FakeReader, **bounds: float) -> Snapshot:
    encoder = Encoder(CODEC, lambda event: str(event.audit_id), "t", 1, 10_000)
    limits = Bounds(world.top, 0, bounds.get("horizon_wait_s", 60), CHECKPOINT_ROWS)
    return Snapshot(reader, encoder, FakePublisher(world), world, limits)


def attempt(world: World, page_rows: int = 3, window: int = 7, readers: int = 1) -> None:
    """One process, from its start to its end or death."""
    snapshot = snapshot_of(world, PatientReader(world, page_rows, window))
    ranges = ranges_of_run(world, 0, world.top)
    for range_ in split_for(readers, ranges, next_number(world.load()), world, list):
        snapshot.read(range_)
    snapshot.read_late_rows(world.load())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEWEST_IDS", 5)
    monkeypatch.setattr(module, "HORIZON_POLL_S", 0)


def test_every_row_comes_once_and_in_order_and_the_cursor_follows_the_confirmation() -> None:
    world = World(dict.fromkeys((1, 2, 3, 4, 9, 30, 31), 0))
    attempt(world)
    assert [event.audit_id for _, event in world.topic] == [1, 2, 3, 4, 9, 30, 31]
    published = 0
    for what in world.story:
        published = published + 1 if what == "publish" else 0 if what == "flush" else published
        assert what != "save" or not published, "a cursor was saved before its page was confirmed"


def test_an_empty_source_ends_at_once() -> None:
    world = World({})
    attempt(world)
    assert world.topic == []
    assert world.saved == {}


@settings(max_examples=150, deadline=None)
@given(
    rows=st.dictionaries(st.integers(1, 60), st.sampled_from([0, 0, 0, 5, 20, 40, 80]), max_size=40),
    deaths=st.lists(st.integers(1, 60), max_size=6),
    readers=st.lists(st.integers(1, 4), min_size=7, max_size=7),
    page_rows=st.integers(1, 5),
    window=st.integers(2, 20),
)
def test_whatever_commits_late_and_whenever_it_dies_each_row_counts_once(
    rows: dict[int, int], deaths: list[int], readers: list[int], page_rows: int, window: int
) -> None:
    # Everything commits by the moment the horizon passes; that moment comes by effects or by waiting.
    world = World(rows, open_until=max(rows.values(), default=0), top=60)
    for death, count in zip([*deaths, None], readers, strict=False):
        world.die_at = None if death is None else world.moment + death
        try:
            attempt(world, page_rows, window, count)
        except DiedError:
            continue
        break
    else:
        world.die_at = None
        attempt(world, page_rows, window, 1)
    assert sorted(world.counted_once()) == sorted(rows)
    assert sum(range_.rows for range_ in world.saved.values()) == len(rows)
    for partition in range(PARTITIONS):
        assert all(event.audit_id % PARTITIONS == partition for at, event in world.topic if at == partition)


@pytest.mark.parametrize(("page_rows", "window"), [(2, 5), (9, 20), (30, 40)])
@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_dying_at_every_single_effect_and_going_on_with_other_readers(
    page_rows: int, window: int, first: int, second: int
) -> None:
    rows = {id_: 0 for id_ in range(1, 41) if id_ % 7} | {7: 12, 14: 25, 21: 40, 35: 10**6}
    for death in range(1, 400):
        world = World(rows, open_until=45, top=40)
        world.die_at = death
        try:
            attempt(world, page_rows, window, first)
        except DiedError:
            world.die_at = world.moment + death % 11 + 1
            try:
                attempt(world, page_rows, window, second)
            except DiedError:
                world.die_at = None
                attempt(world, page_rows, window, second)
            assert sorted(world.counted_once()) == sorted(id_ for id_ in rows if id_ != 35)
        else:
            assert death > 20
            return
    pytest.fail("the first attempt never came to its end")


def test_a_row_that_commits_between_two_attempts_at_a_page_is_not_taken_for_a_repetition() -> None:
    world = World({1: 0, 2: 99, 3: 0, 4: 0, 5: 0}, open_until=99)
    world.die_at = 10  # the page with 1, 3 and 4 is published, its cursor not saved
    with pytest.raises(DiedError):
        attempt(world)
    assert [event.audit_id for _, event in world.topic] == [1, 3, 4]
    world.moment, world.die_at = 100, None
    attempt(world)
    assert sorted(world.counted_once()) == [1, 2, 3, 4, 5]
    assert [event.id_range for _, event in world.topic if event.audit_id == 2] == [1]


def test_transactions_that_stay_open_end_it_with_their_name() -> None:
    world = World({1: 0, 3: 0}, open_until=10**9)
    snapshot = snapshot_of(world, FakeReader(world, 3, 7), horizon_wait_s=0)
    snapshot.read(ranges_of_run(world, 0, 3)[0])
    with pytest.raises(ReplayError, match=r"still open: pid 1: .*CRM_REPLAY_HORIZON_WAIT_S"):
        snapshot.read_late_rows(world.load())


def test_without_a_gap_nobody_waits_for_open_transactions() -> None:
    world = World({1: 0, 2: 0, 3: 0}, open_until=10**9)
    snapshot_of(world, FakeReader(world, 3, 7), horizon_wait_s=0).read_late_rows(
        [snapshot_of(world, FakeReader(world, 3, 7)).read(ranges_of_run(world, 0, 3)[0])]
    )
    assert [event.audit_id for _, event in world.topic] == [1, 2, 3]


def test_stopping_ends_after_a_confirmed_page_and_the_next_start_goes_on() -> None:
    world = World(dict.fromkeys(range(1, 21), 0))
    encoder = Encoder(CODEC, lambda event: str(event.audit_id), "t", 1, 10_000)
    reader, bounds = FakeReader(world, 3, 7), Bounds(20, 0, 60, CHECKPOINT_ROWS)
    snapshot = Snapshot(reader, encoder, FakePublisher(world), world, bounds, stop=lambda: len(world.topic) >= 6)
    with pytest.raises(StoppedError):
        snapshot.read(ranges_of_run(world, 0, 20)[0])
    assert world.saved[0].cursor == world.topic[-1][1].audit_id < 20
    attempt(world)
    assert [event.audit_id for _, event in world.topic] == list(range(1, 21)), "nothing came twice"


def test_a_reader_that_does_not_advance_ends_with_an_error() -> None:
    class Stuck(FakeReader):
        def page_after(self, cursor: int, *args: object, **kwargs: object) -> Page:
            return Page((), cursor)

    world = World({5: 0})
    snapshot = snapshot_of(world, Stuck(world, 3, 7))
    with pytest.raises(CursorDidNotAdvanceError):
        snapshot.read(ranges_of_run(world, 0, 5)[0])
    assert world.saved[0].cursor == 0


def test_more_gaps_than_can_be_noted_wait_for_the_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GAPS_NOTED_MAX", 4)
    world = World(dict.fromkeys(range(2, 101, 2), 0), open_until=0)
    asked: list[int] = []

    class Asked(FakeReader):
        def horizon_passed(self, xmax: int) -> bool:
            asked.append(self.world.moment)
            return len(asked) > 8

    snapshot = snapshot_of(world, Asked(world, 3, 7))
    done = snapshot.read(ranges_of_run(world, 0, 100)[0])
    assert done.rows == 50
    assert len(asked) == 9
    assert len([gap for gap in done.gaps if gap[0] < 80]) <= 8, "what is read behind the horizon is final"
