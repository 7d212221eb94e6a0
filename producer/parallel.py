"""Which process reads which id ranges: this one, or a child process per group of ranges.

The state of ranges is in the checkpoint, so any number of readers can resume what others began. Processes and not
threads, since reading is CPU-bound in Python. A child ends with its parent: otherwise it would publish beside the
readers of a restarted parent.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from producer.checkpoint import Saves
from producer.cursor import IdRange, reconcile, split
from schemas.errors import BadInputError, ReplayError
from schemas.process.waiting import StoppedError
from schemas.vocabulary import ExitCode

logger = logging.getLogger(__name__)

CHILD_POLL_S = 0.2

Spread = Callable[[], Sequence[int]]


def ranges_of_run(checkpoint: Saves, first: int, top: int) -> list[IdRange]:
    """Return this run's ranges as saved, in ascending order; a run's first start creates one for (first, top]."""
    ranges = reconcile(checkpoint.load())
    if not ranges and first < top:
        ranges = [IdRange(0, first=first, cursor=first, last=top)]
        checkpoint.save(ranges[0])
    return ranges


def split_for(readers: int, ranges: Sequence[IdRange], taken: int, checkpoint: Saves, spread: Spread) -> list[IdRange]:
    """Return the ranges, split until each reader has one or no range is large enough to split.

    `taken` is the next free number. The tail is saved before its head is shortened: a crash in between leaves an
    overlap, which `reconcile` removes, and never a hole.
    """
    divided = list(ranges)
    bounds = spread() if sum(not range_.done for range_ in divided) < readers else ()
    while 0 < sum(not range_.done for range_ in divided) < readers:
        largest = max((range_ for range_ in divided if not range_.done), key=lambda range_: weight(range_, bounds))
        halves = split(largest, taken, bounds)
        if halves is None:
            break
        taken += 1
        head, tail = halves
        checkpoint.save(tail)
        checkpoint.save(head)
        divided[divided.index(largest) : divided.index(largest) + 1] = [head, tail]
    return divided


def weight(range_: IdRange, bounds: Sequence[int]) -> tuple[int, int]:
    """Return how much of a range is left: by the bounds of equal row counts inside it, then by ids."""
    return sum(range_.cursor < id_ <= range_.last for id_ in bounds), range_.left


def read_in_children(lots: Sequence[Sequence[IdRange]], stop: Callable[[], bool]) -> None:
    """Read each group of ranges in a child process; return when all are done.

    Raises StoppedError on a stop request, and ReplayError or BadInputError if a child failed (it has logged why); the
    other children then stop after their page.
    """
    # The command is this program; the numbers are our own.
    children = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "producer", *(str(range_.id_range) for range_ in lot)], stdin=subprocess.PIPE
        )
        for lot in lots
    ]
    running, ending, codes = list(children), False, list[int]()
    try:
        while running:
            for child in list(running):
                try:
                    code = child.wait(CHILD_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
                running.remove(child)
                # A child that was stopped during its start has no signal handler yet, and has published nothing.
                codes.append(ExitCode.STOPPED if ending and code == -signal.SIGTERM else code)
            if not ending and (stop() or any(codes)):
                ending = True
                for child in running:
                    child.terminate()
    finally:
        for child in children:
            if child.stdin is not None:
                child.stdin.close()  # ends a child that still runs
            child.wait()
    worst = next((code for code in codes if code not in (0, ExitCode.STOPPED)), 0)
    if worst:
        error = BadInputError if worst == ExitCode.BAD_INPUT else ReplayError
        raise error(f"a reader of an id range ended with code {worst}", "see its log lines above, and start again")
    if any(codes):
        raise StoppedError


def end_with_parent() -> None:
    """End this process as soon as its parent is gone: the parent holds the other end of its standard input."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock must not be held when the interpreter ends
            pass
        os._exit(ExitCode.ORPHANED)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
