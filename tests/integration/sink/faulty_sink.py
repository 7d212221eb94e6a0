"""A real sink process that dies (SIGKILL), freezes (SIGSTOP) or hangs at one durable effect: `after:write_logs:2`.

`before` and `after` kill it there; `freeze` stops it after the effect, until it receives SIGCONT; `hang` never returns
from the effect, as a call of a client library may.
"""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from sink.__main__ import main
from sink.effects import Effect

T = TypeVar("T")


class FaultySeam:
    """Does what `fault` says at the n-th time of an effect."""

    def __init__(self, fault: str) -> None:
        self.when, self.effect, number = fault.split(":")
        self.number = int(number)
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, effect: Effect, run: Callable[[], T]) -> T:
        with self.lock:
            self.seen[effect] += 1
            hit = effect == self.effect and self.seen[effect] == self.number
        if hit and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if hit and self.when == "hang":
            threading.Event().wait()
        result = run()
        if hit:
            os.kill(os.getpid(), signal.SIGKILL if self.when == "after" else signal.SIGSTOP)
        return result


if __name__ == "__main__":
    sys.exit(main(FaultySeam(sys.argv[1])))
