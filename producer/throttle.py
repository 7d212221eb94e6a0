"""Pure: how long the snapshot waits before its next page, to limit the load on the CRM's database.

Two reasons to wait. A rate limit in rows a second, with a burst of one second. And signs of overload, a page query or a
replica lag over its bound: then the pauses double, and they halve with every page without such a sign. Times are
seconds of any monotonic clock, which is passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

BURST_S = 1.0  # rows of this time may be read at once: pages keep their size
PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 30.0
LAG_POLL_S = 5.0  # the lag takes a query of its own
SLEEP_S = 0.5  # at a time, to react to a stop request


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of the load on the source; 0 is no limit."""

    rows_per_s: float = 0.0
    query_max_s: float = 0.0
    replica_lag_max_s: float = 0.0


@dataclass(slots=True)
class Throttle:
    """Computes the pause after each page."""

    bounds: Bounds
    free_at_s: float = 0.0  # when the rate allows the next row
    pause_s: float = 0.0  # because of overload
    sign: str = ""  # of overload: "query", "lag", or "" for none
    why: str = ""  # in words

    def after_page(self, now_s: float, rows: int, query_s: float, lag_s: float | None) -> float:
        """Return how long to wait after a page; `lag_s` is the replica's, None for a primary or if it is unknown."""
        rate_s = 0.0
        if self.bounds.rows_per_s > 0:
            # Unused capacity accumulates for one burst only: after an outage the reading does not catch up.
            self.free_at_s = max(self.free_at_s, now_s - BURST_S) + rows / self.bounds.rows_per_s
            rate_s = self.free_at_s - now_s
        self.sign, self.why = self._overload(query_s, lag_s)
        if self.sign:
            self.pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, self.pause_s * 2))
        else:
            self.pause_s = self.pause_s / 2 if self.pause_s / 2 >= PAUSE_FIRST_S else 0.0
        return max(0.0, rate_s, self.pause_s)

    def _overload(self, query_s: float, lag_s: float | None) -> tuple[str, str]:
        if 0 < self.bounds.query_max_s < query_s:
            return "query", f"a page took {query_s:.1f} s, over {self.bounds.query_max_s:g} s"
        if lag_s is not None and 0 < self.bounds.replica_lag_max_s < lag_s:
            return "lag", f"the replica is {lag_s:.0f} s behind, over {self.bounds.replica_lag_max_s:g} s"
        return "", ""


@dataclass(slots=True)
class Pacer:
    """Waits as the throttle computes. Clock, sleep and the lag's query are passed in."""

    throttle: Throttle
    replica_lag: Callable[[], float | None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    log: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False
    waited_s: float = 0.0  # in all, for the log
    _lag_read_at_s: float = field(default=float("-inf"))
    _lag_s: float | None = None
    _is_primary: bool = False
    _logged: str = ""

    def after_page(self, rows: int, query_s: float) -> None:
        """Return when the next page may be read, or at once on a stop request."""
        pause_s = self.throttle.after_page(self.clock(), rows, query_s, self._lag())
        self._log_change()
        until_s = self.clock() + pause_s
        while (left_s := until_s - self.clock()) > 0 and not self.stop():
            self.sleep(min(SLEEP_S, left_s))
            self.waited_s += min(SLEEP_S, left_s)

    def _lag(self) -> float | None:
        """Return the replica's lag, read at most every LAG_POLL_S; a primary is queried once."""
        if self.throttle.bounds.replica_lag_max_s <= 0 or self._is_primary:
            return None
        now_s = self.clock()
        if now_s - self._lag_read_at_s >= LAG_POLL_S:
            self._lag_read_at_s = now_s
            self._lag_s = self.replica_lag()
            self._is_primary = self._lag_s is None
        return self._lag_s

    def _log_change(self) -> None:
        """Log when an overload begins and when it ends."""
        if self.throttle.sign != self._logged:
            self.log(f"reading slower: {self.throttle.why}" if self.throttle.sign else "reading at full speed again")
            self._logged = self.throttle.sign
