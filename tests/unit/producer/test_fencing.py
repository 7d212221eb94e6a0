"""A snapshot that is frozen at any of its effects, replaced, and wakes up at any effect of the one that took over.

The world is that of test_snapshot.py; here two processes share it, and the checkpoint keeps the runners' numbers as the
real one does (tests/integration/producer/test_checkpoint.py holds the real one to that).
"""

import threading
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from producer.checkpoint import NUMBERS_TAKEN, FencedError
from producer.cursor import IdRange, next_number
from producer.messages import Encoder
from producer.parallel import ranges_of_run, split_for
from producer.snapshot import Snapshot
from tests.support.world import CODEC, DiedError, FakePublisher, PatientReader, World, bounds_of

WAIT_S = 30.0


class SharedWorld(World):
    """A world in which each process has something of its own happen at its effects."""

    def __init__(self, visible_from: dict[int, int], *, open_until: int, top: int) -> None:
        super().__init__(visible_from, open_until=open_until, top=top)
        self.fences: dict[int, int] = {}
        self.at_effects: dict[int, Callable[[], None]] = {}  # by thread

    def effect(self, what: str) -> None:
        super().effect(what)
        self.at_effects.get(threading.get_ident(), lambda: None)()


class Numbered:
    """The checkpoint as a runner with this number has it."""

    def __init__(self, world: SharedWorld, fence: int) -> None:
        self.world, self.fence = world, fence

    def take_over(self) -> None:
        for id_range in range(max(self.world.saved, default=-1) + 1 + NUMBERS_TAKEN):
            self.world.fences[id_range] = max(self.world.fences.get(id_range, 0), self.fence)

    def load(self) -> list[IdRange]:
        return list(self.world.saved.values())

    def save(self, range_: IdRange) -> None:
        self.world.effect("save")
        if self.world.fences.get(range_.id_range, 0) > self.fence:
            raise FencedError("another runner has taken over")
        self.world.saved[range_.id_range] = range_
        self.world.fences[range_.id_range] = self.fence


def attempt(world: SharedWorld, fence: int, page_rows: int, window: int, readers: int) -> None:
    """One process, as `producer.__main__` has it."""
    checkpoint = Numbered(world, fence)
    checkpoint.take_over()
    encoder = Encoder(CODEC, lambda event: str(event.audit_id), "t", 1, 10_000)
    reader = PatientReader(world, page_rows, window)
    snapshot = Snapshot(reader, encoder, FakePublisher(world), checkpoint, bounds_of(world))
    ranges = ranges_of_run(checkpoint, 0, world.top)
    for range_ in split_for(readers, ranges, next_number(checkpoint.load()), checkpoint, list):
        snapshot.read(range_)
    snapshot.read_late_rows(checkpoint.load())


class Frozen:
    """A process that stands still at one of its effects until it is woken."""

    def __init__(self, world: SharedWorld, freeze_at: int, run: Callable[[], None]) -> None:
        self._left = freeze_at
        self._run = run
        self._world = world
        self._still = threading.Event()
        self._woken = threading.Event()
        self._over = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._live)

    def freeze(self) -> None:
        """Return when it stands still, or is over."""
        self._thread.start()
        assert self._still.wait(WAIT_S)

    def wake(self) -> None:
        """Return when it is over."""
        self._woken.set()
        assert self._over.wait(WAIT_S)
        self._thread.join()

    def _live(self) -> None:
        self._world.at_effects[threading.get_ident()] = self._step
        try:
            self._run()
        except (FencedError, DiedError) as error:
            self.error = error
        finally:
            del self._world.at_effects[threading.get_ident()]
            self._over.set()
            self._still.set()

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._still.set()
            assert self._woken.wait(WAIT_S)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.dictionaries(st.integers(1, 40), st.sampled_from([0, 0, 0, 5, 20, 40]), max_size=30),
    freeze_at=st.integers(1, 60),
    wake_at=st.integers(1, 60),
    page_rows=st.integers(1, 5),
    window=st.integers(2, 20),
    readers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
# Asleep between saving the range and reading its first page, which has a row by then; the other has noted a gap.
@example(rows={1: 20}, freeze_at=3, wake_at=16, page_rows=1, window=2, readers=(1, 1))
def test_a_snapshot_that_wakes_up_after_a_take_over_takes_nothing_away_and_adds_nothing(
    rows: dict[int, int], freeze_at: int, wake_at: int, page_rows: int, window: int, readers: tuple[int, int]
) -> None:
    world = SharedWorld(rows, open_until=max(rows.values(), default=0), top=40)
    zombie = Frozen(world, freeze_at, lambda: attempt(world, 1, page_rows, window, readers[0]))
    zombie.freeze()
    left = wake_at

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            zombie.wake()

    world.at_effects[threading.get_ident()] = step
    attempt(world, 2, page_rows, window, readers[1])
    zombie.wake()
    assert sorted(world.counted_once()) == sorted(rows)
    done = Numbered(world, 2).load()
    assert all(range_.done for range_ in done)
    assert sum(range_.rows for range_ in done) == len(rows)
