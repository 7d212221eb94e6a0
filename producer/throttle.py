"""Pure: how long the snapshot waits before its next page, so that the CRM's database keeps up with its own work.

Two reasons to wait. A rate: so many rows a second, with a second's worth in hand. And signs of distress, which are a
page query that takes longer than its bound, or a replica that is further behind than its bound: then the pauses double,
and they halve again with every page that was well. Times are seconds of any steady clock; nothing here looks at one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

BURST_S = 1.0  # rows of so long may come at once: a page is not cut for the rate's sake
PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 30.0
LAG_ASKED_EVERY_S = 5.0  # a query of its own; a replica's lag does not change faster than that matters
SLEEP_S = 0.5  # at a time, so that a request to stop is heard


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the source may be asked for; 0 is no bound."""

    rows_per_s: float = 0.0
    query_max_s: float = 0.0
    replica_lag_max_s: float = 0.0


@dataclass(slots=True)
class Throttle:
    """Decides; told what was read, it says when to read on."""

    bounds: Bounds
    free_at_s: float = 0.0  # when the rate allows the next row
    pause_s: float = 0.0  # because of distress
    sign: str = ""  # of distress: "query", "lag", or "" if the source is well
    why: str = ""  # in words

    def after_page(self, now_s: float, rows: int, query_s: float, lag_s: float | None) -> float:
        """Return how long to wait after a page; `lag_s` is the replica's, None for a primary or if nobody asked."""
        rate_s = 0.0
        if self.bounds.rows_per_s > 0:
            # What was not used does not add up beyond a burst: after an outage the source is not asked for all of it.
            self.free_at_s = max(self.free_at_s, now_s - BURST_S) + rows / self.bounds.rows_per_s
            rate_s = self.free_at_s - now_s
        self.sign, self.why = self._distress(query_s, lag_s)
        if self.sign:
            self.pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, self.pause_s * 2))
        else:
            self.pause_s = self.pause_s / 2 if self.pause_s / 2 >= PAUSE_FIRST_S else 0.0
        return max(0.0, rate_s, self.pause_s)

    def _distress(self, query_s: float, lag_s: float | None) -> tuple[str, str]:
        if 0 < self.bounds.query_max_s < query_s:
            return "query", f"a page took {query_s:.1f} s, over {self.bounds.query_max_s:g} s"
        if lag_s is not None and 0 < self.bounds.replica_lag_max_s < lag_s:
            return "lag", f"the replica is {lag_s:.0f} s behind, over {self.bounds.replica_lag_max_s:g} s"
        return "", ""


@dataclass(slots=True)
class Pacer:
    """Waits as the throttle says. Everything it touches is given to it: clock, sleep, the question for the lag."""

    throttle: Throttle
    replica_lag: Callable[[], float | None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    say: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False
    waited_s: float = 0.0  # in all, for the log
    _lag_asked_at_s: float = field(default=float("-inf"))
    _lag_s: float | None = None
    _is_primary: bool = False
    _said: str = ""

    def after_page(self, rows: int, query_s: float) -> None:
        """Return when the next page may be read, or at once when asked to stop."""
        pause_s = self.throttle.after_page(self.clock(), rows, query_s, self._lag())
        self._tell()
        until_s = self.clock() + pause_s
        while (left_s := until_s - self.clock()) > 0 and not self.stop():
            self.sleep(min(SLEEP_S, left_s))
            self.waited_s += min(SLEEP_S, left_s)

    def _lag(self) -> float | None:
        """Return the replica's lag, asked for now and then; a primary is asked once."""
        if self.throttle.bounds.replica_lag_max_s <= 0 or self._is_primary:
            return None
        now_s = self.clock()
        if now_s - self._lag_asked_at_s >= LAG_ASKED_EVERY_S:
            self._lag_asked_at_s = now_s
            self._lag_s = self.replica_lag()
            self._is_primary = self._lag_s is None
        return self._lag_s

    def _tell(self) -> None:
        """Say when distress begins and when it is over, and not every page of it."""
        if self.throttle.sign != self._said:
            self.say(f"reading slower: {self.throttle.why}" if self.throttle.sign else "reading at full pace again")
            self._said = self.throttle.sign
