"""The source throttle by a clock of the test's own: the rate holds, distress slows down, and it passes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.settings import ProducerSettings
from producer.throttle import LAG_POLL_S, PAUSE_FIRST_S, PAUSE_MAX_S, Bounds, Pacer, Throttle


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def pacer(clock: Clock, bounds: Bounds, lags: list[float | None] | None = None, stop: bool = False) -> Pacer:
    said: list[str] = []
    answers = iter(lags or [])
    return Pacer(Throttle(bounds), lambda: next(answers), clock, clock.sleep, said.append, lambda: stop)


@given(st.lists(st.tuples(st.integers(1, 5_000), st.floats(0, 0.4)), min_size=50, max_size=200))
def test_no_stretch_of_pages_is_faster_than_the_rate(pages: list[tuple[int, float]]) -> None:
    clock, rate = Clock(), 10_000.0
    paced = pacer(clock, Bounds(rows_per_s=rate))
    done: list[tuple[float, int]] = []
    for rows, query_s in pages:
        clock.now_s += query_s
        done.append((clock.now_s, rows))
        paced.after_page(rows, query_s)
    for first in range(0, len(done), 7):
        for last in range(first + 1, len(done), 11):
            rows_between = sum(rows for _, rows in done[first:last])  # all but the last: its wait comes behind it
            assert rows_between <= rate * (done[last][0] - done[first][0]) + rate * 1.0 + 1e-6


def test_a_source_slower_than_the_rate_never_waits_and_an_outage_is_not_made_up_for() -> None:
    clock = Clock()
    paced = pacer(clock, Bounds(rows_per_s=1_000))
    for _ in range(50):
        clock.now_s += 0.6  # 500 rows in it
        paced.after_page(500, 0.6)
    assert paced.waited_s == 0
    clock.now_s += 3_600
    began = clock.now_s
    for _ in range(10):
        paced.after_page(500, 0.0)
    assert clock.now_s - began == pytest.approx(4.0)  # 5,000 rows: one second's worth in hand, the rest at the rate


def test_without_bounds_nothing_waits() -> None:
    clock = Clock()
    paced = pacer(clock, Bounds())
    for _ in range(10):
        paced.after_page(100_000, 100.0)
    assert clock.now_s == 1_000.0


def test_slow_queries_double_the_pauses_up_to_a_bound_and_good_pages_halve_them() -> None:
    throttle = Throttle(Bounds(query_max_s=1.0))
    slow = [throttle.after_page(0.0, 500, 1.5, None) for _ in range(9)]
    assert slow[:4] == [PAUSE_FIRST_S, 1.0, 2.0, 4.0]
    assert slow[-1] == PAUSE_MAX_S
    assert "1.5 s, over 1 s" in throttle.why
    well = [throttle.after_page(0.0, 500, 0.1, None) for _ in range(8)]
    assert well[:2] == [15.0, 7.5]
    assert well[-1] == 0.0
    assert not throttle.why


def test_a_lagging_replica_is_polled_at_intervals_and_a_primary_once() -> None:
    clock = Clock()
    asked: list[float] = []

    def lag() -> float | None:
        asked.append(clock.now_s)
        return 90.0 if len(asked) < 3 else 0.0

    said: list[str] = []
    paced = Pacer(Throttle(Bounds(replica_lag_max_s=60)), lag, clock, clock.sleep, said.append)
    while len(asked) < 4:
        clock.now_s += 0.02
        paced.after_page(500, 0.02)
    assert all(later - earlier >= LAG_POLL_S for earlier, later in pairwise(asked))
    assert said == ["reading slower: the replica is 90 s behind, over 60 s", "reading at full speed again"]
    assert paced.waited_s > 5

    primary: list[None] = []
    paced = Pacer(Throttle(Bounds(replica_lag_max_s=60)), lambda: primary.append(None), clock, clock.sleep, said.append)
    for _ in range(100):
        clock.now_s += 1
        paced.after_page(500, 0.02)
    assert len(primary) == 1


def test_a_request_to_stop_ends_the_wait() -> None:
    clock = Clock()
    pacer(clock, Bounds(rows_per_s=1), stop=True).after_page(1_000, 0.0)
    assert clock.now_s == 1_000.0


def test_readers_of_a_job_share_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_SOURCE_ROWS_PER_S", "9000")
    monkeypatch.setenv("CRM_REPLAY_SOURCE_QUERY_MAX_S", "2.5")
    settings = ProducerSettings()
    assert settings.throttle(3) == Bounds(3_000.0, 2.5, 60.0)
    assert settings.throttle().rows_per_s == 9_000.0
