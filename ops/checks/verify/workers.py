"""Segments shared out over processes, one a core. Forked, so that the reference tables are in memory once."""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.util import Finalize

from pymongo.errors import PyMongoError

from ops.checks.verify.model import Tally
from ops.checks.verify.segments import Chunk, SegmentChecker, Work
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError

GC_THRESHOLD = 100_000  # a segment makes some ten thousand objects, none of them in cycles
AHEAD = 2  # tasks a worker that wait for it: it never idles, and few are planned in vain
_PR_SET_PDEATHSIG = 1

_checker: SegmentChecker | None = None
_broken: "_Broken | None" = None


@dataclass(frozen=True, slots=True)
class _Broken:
    """An error from a worker: our exceptions do not survive pickling."""

    what: str
    to_do: str
    kind: type[ReplayError]

    def error(self) -> ReplayError:
        return self.kind(self.what, self.to_do)


def check_all(work: Work, chunks: Iterable[Chunk], workers: int) -> Iterator[tuple[Chunk, Tally]]:
    """Yield each chunk with its result, in the order of completion.

    Call it before any client has started threads: the processes are forks of this one. Raises what a worker raised;
    ReplayError if one died.
    """
    context = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,))
    waiting = iter(chunks)
    running: dict[Future[Tally | _Broken], Chunk] = {}
    try:
        while True:
            for chunk in islice(waiting, workers * AHEAD - len(running)):
                running[executor.submit(_check, chunk)] = chunk
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = running.pop(future)
                result = future.result()
                if isinstance(result, _Broken):
                    raise result.error()
                yield chunk, result
    except BrokenProcessPool as error:
        raise ReplayError(
            "a process of the check has died", "out of memory? try --workers 1; nothing was changed"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start(work: Work) -> None:
    """Begin a worker: it ends with its parent, and leaves Ctrl-C to it."""
    global _checker, _broken
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        _checker = SegmentChecker(work)
    except ReplayError as error:
        _broken = _of(error)
        return
    Finalize(None, _checker.close, exitpriority=10)


def _check(chunk: Chunk) -> Tally | _Broken:
    if _checker is None:
        assert _broken is not None
        return _broken
    try:
        return _checker.check(chunk)
    except ReplayError as error:
        return _of(error)
    except PyMongoError as error:
        return _Broken(f"MongoDB does not answer ({type(error).__name__})", "verify again when it is back", ReplayError)


def _of(error: ReplayError) -> _Broken:
    kinds = (ServiceUnreachableError, BadInputError, ReplayError)
    return _Broken(error.what, error.to_do, next(kind for kind in kinds if isinstance(error, kind)))
