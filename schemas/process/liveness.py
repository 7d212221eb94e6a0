"""Whether a worker still moves, and the end of one that does not. I/O: a thread, and the end of the process.

A worker's loop reports each turn, and each time that it has handled something. A thread of its own compares these times
with the time allowed, and runs the other checks that a worker has (`schemas.process.topic_watch`). What it finds ends
the worker in order; where that takes too long, because the loop hangs in a client library, it ends the process.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from schemas.errors import ReplayError
from schemas.process.metrics import Value
from schemas.vocabulary import ExitCode

log = logging.getLogger(__name__)

CHECK_EVERY_S = 5.0
END_WITHIN_S = 20.0  # in order, from the report of a finding to the end of the process
CLOSE_TIMEOUT_S = 2.0
RESTARTS = "this process ends, and is started again by its supervisor"


def end_process(code: int) -> None:
    """End the process at once; what was logged is written."""
    logging.shutdown()
    os._exit(code)


class StalledError(ReplayError):
    """The process no longer moves; its supervisor starts it again, a bounded number of times."""

    exit_code = ExitCode.STALLED


class Liveness:
    """When a loop last turned and last handled something. Written by the worker's threads, read by others."""

    def __init__(self, stuck_after_s: float) -> None:
        """`stuck_after_s` is the longest time between two turns: longer than any call that a turn consists of."""
        self.stuck_after_s = stuck_after_s
        self.ready = False  # it has started: it has its tables, its group, its first page
        self._turned_at = time.monotonic()
        self._turned = self._progressed = time.time()

    def turned(self) -> None:
        """Note a turn of the loop; waiting for a server in bounded steps is one at each step."""
        self._turned_at = time.monotonic()
        self._turned = time.time()

    def progressed(self) -> None:
        """Note that something was handled, which is a turn, too."""
        self.turned()
        self._progressed = self._turned

    @property
    def since_turn_s(self) -> float:
        """Seconds since the last turn."""
        return time.monotonic() - self._turned_at

    @property
    def is_live(self) -> bool:
        """Whether the loop has turned in the time allowed."""
        return self.since_turn_s <= self.stuck_after_s

    def check(self) -> None:
        """Raise StalledError if the loop has not turned in the time allowed."""
        if not self.is_live:
            raise StalledError(
                f"the loop has not turned for {self.since_turn_s:.0f} s (allowed: {self.stuck_after_s:.0f} s)",
                RESTARTS,
            )

    def values(self) -> list[Value]:
        """Return the metrics."""
        return [
            Value("last_turn_timestamp_seconds", self._turned),
            Value("last_progress_timestamp_seconds", self._progressed),
        ]


class Watchdog:
    """Runs checks at intervals, in a thread, and ends a process that fails one."""

    def __init__(
        self,
        checks: Sequence[Callable[[], None]],
        report: Callable[[ReplayError], None],
        *,
        every_s: float | None = None,
        end_within_s: float = END_WITHIN_S,
        end: Callable[[int], None] = end_process,
    ) -> None:
        """Each check raises the ReplayError that the process is to end with. `report` gets the first, in the thread.

        The process then has `end_within_s` to `close` this; `end` gets the exit code of one that does not.
        """
        self._checks = checks
        self._report = report
        self._every_s = CHECK_EVERY_S if every_s is None else every_s
        self._end_within_s = end_within_s
        self._end_process = end
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                for check in self._checks:
                    check()
            except ReplayError as error:
                if not self._closing.is_set():  # the loop that would receive it may have ended
                    self._end(error)
                return

    def _end(self, error: ReplayError) -> None:
        self._report(error)
        if not self._closing.wait(self._end_within_s):
            log.error("%s; it has not ended in order within %.0f s", error, self._end_within_s)
            self._end_process(error.exit_code)

    def close(self) -> None:
        """Stop checking; a check that is under way is waited for only for a moment."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
