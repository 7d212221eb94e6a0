"""The loop against a source whose rows commit late, killed at every effect there is.

The source is played here and not mocked call by call: rows have an id and the moment they become visible, and a moment
passes with every effect. What is asserted is what everybody downstream sees after dropping repetitions by high-water
marks (DECISIONS.md, decision 8): each row exactly once.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.cursor import next_number
from producer.messages import Encoder, Page
from producer.parallel import ranges_of_run, split_for
from producer.snapshot import Snapshot
from schemas.errors import CursorDidNotAdvanceError, ReplayError
from schemas.process.waiting import StoppedError
from tests.support.world import CODEC, PARTITIONS, DiedError, FakePublisher, FakeReader, PatientReader, World, bounds_of


def snapshot_of(world: World, reader: FakeReader, stop: Callable[[], bool] = lambda: False, **bounds: Any) -> Snapshot:
    encoder = Encoder(CODEC, lambda event: str(event.audit_id), "t", 1, 10_000)
    limits = bounds_of(world, **bounds)
    return Snapshot(reader, encoder, FakePublisher(world), world, limits, stop=stop)


def attempt(world: World, page_rows: int = 3, window: int = 7, readers: int = 1) -> None:
    """One process, from its start to its end or death."""
    snapshot = snapshot_of(world, PatientReader(world, page_rows, window))
    ranges = ranges_of_run(world, 0, world.top)
    for range_ in split_for(readers, ranges, next_number(world.load()), world, list):
        snapshot.read(range_)
    snapshot.read_late_rows(world.load())


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
    snapshot = snapshot_of(world, FakeReader(world, 3, 7), stop=lambda: len(world.topic) >= 6)
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


def test_more_gaps_than_can_be_noted_wait_for_the_horizon() -> None:
    world = World(dict.fromkeys(range(2, 101, 2), 0), open_until=0)
    asked: list[int] = []

    class Asked(FakeReader):
        def horizon_passed(self, xmax: int) -> bool:
            asked.append(self.world.moment)
            return len(asked) > 8

    snapshot = snapshot_of(world, Asked(world, 3, 7), gaps_noted_max=4)
    done = snapshot.read(ranges_of_run(world, 0, 100)[0])
    assert done.rows == 50
    assert len(asked) == 9
    assert len([gap for gap in done.gaps if gap[0] < 80]) <= 8, "what is read behind the horizon is final"
