"""How a process waits: until a deadline, until an effect succeeds, or until a stop request."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
INDEFINITELY_S = float("inf")
SET_MAX_S = 0.5


class StoppedError(Exception):
    """A stop was requested while waiting."""


class Deadline:
    """A deadline by the monotonic clock."""

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        """`seconds` count from now. `stop` ends its waits."""
        self._at = time.monotonic() + seconds
        self._stop = stop or threading.Event()

    @property
    def left_s(self) -> float:
        """The remaining seconds, never below 0."""
        return max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return self.left_s == 0.0

    def wait(self, pause_s: float) -> bool:
        """Return False at once if the deadline has passed; else wait, at most until then, and return True.

        Raises StoppedError as soon as a stop is requested.
        """
        left_s = self.left_s
        if self._stop.wait(min(pause_s, left_s)):
            raise StoppedError
        return left_s > 0.0


def retrying(
    effect: Callable[[], T],
    errors: type[E] | tuple[type[E], ...],
    deadline: Deadline,
    pause_s: float,
    pause_max_s: float = 0.0,
    *,
    passes: Callable[[E], bool] = lambda _: True,
) -> T:
    """Return what `effect` returns; it is called again while it raises one of `errors` that passes.

    The pauses double up to `pause_max_s`, if given. Raises the last error when `deadline` has passed, and StoppedError
    when that is stopped.
    """
    while True:
        try:
            return effect()
        except errors as error:
            if not passes(error) or not deadline.wait(pause_s):
                raise
        pause_s = max(pause_s, min(pause_max_s, 2 * pause_s))


@contextmanager
def stop_on_signals(stop: threading.Event | None = None, *, second_ends: bool = False) -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; restores their handlers. Call it in the main thread.

    `second_ends`: a second signal ends the process at once.
    """
    event, signals = stop or threading.Event(), list[int]()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if second_ends and signals:
            os._exit(128 + number)
        signals.append(number)
        # In a thread: the interrupted code may be waiting for the event, and hold the lock that `set` needs. It rarely
        # does, and the event is set before it continues.
        done = threading.Lock()
        done.acquire()

        def set_event() -> None:
            event.set()
            done.release()

        _thread.start_new_thread(set_event, ())
        done.acquire(timeout=SET_MAX_S)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
