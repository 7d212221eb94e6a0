"""One thread a server: its checks in sequence, each with a time limit. A server that hangs delays only its own."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ops.checks.model import Check, Verdict, fail
from schemas.errors import ReplayError, ServiceUnreachableError

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Step:
    """One check: its name, the question, and how long an answer may take."""

    name: str
    check: Callable[[], Check]
    timeout_s: float
    essential: bool = False  # without it none of the lane's later checks makes sense


@dataclass(slots=True)
class Lane:
    """The checks of one server, in order."""

    server: str
    steps: Sequence[Step]
    checks: dict[str, Check] = field(default_factory=dict)
    began_at: float = 0.0  # the step that runs
    at: int = 0
    over: bool = False


def run_lanes(lanes: Sequence[Lane], *, clock: Callable[[], float] = time.monotonic) -> list[Check]:
    """Return every check of every lane, in order. No check raises or outlasts its time limit.

    A thread that hangs is left behind; it ends with the process.
    """
    changed = threading.Condition()
    for lane in lanes:
        lane.began_at = clock()
        threading.Thread(
            target=_walk, args=(lane, changed, clock), name=f"preflight-{lane.server}", daemon=True
        ).start()
    with changed:
        while any(not lane.over for lane in lanes):
            for lane in lanes:
                _give_up_late(lane, clock())
            if any(not lane.over for lane in lanes):
                changed.wait(POLL_S)
        return [lane.checks[step.name] for lane in lanes for step in lane.steps]


def _walk(lane: Lane, changed: threading.Condition, clock: Callable[[], float]) -> None:
    for number, step in enumerate(lane.steps):
        with changed:
            if lane.over:
                return
            lane.at, lane.began_at = number, clock()
        check, lost = _result(step)
        with changed:
            if not _note(lane, step, check, lost=lost):
                return
            changed.notify_all()
    with changed:
        lane.over = True
        changed.notify_all()


def _note(lane: Lane, step: Step, check: Check, *, lost: bool) -> bool:
    """Record a result, and return whether the lane continues. A lane that was given up ignores it."""
    if lane.over:
        return False
    lane.checks[step.name] = check
    if lost or (step.essential and check.verdict is Verdict.FAIL):
        _skip_rest(lane, f"not checked: {check.found}")
        return False
    return True


def _result(step: Step) -> tuple[Check, bool]:
    """Return the answer, and whether the server is lost."""
    try:
        return step.check(), False
    except ServiceUnreachableError as error:
        return fail(step.name, error.what, error.to_do), True
    except ReplayError as error:
        return fail(step.name, error.what, error.to_do), False
    except Exception as error:  # a client's own error, or a defect of the check: the others still run
        text = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
        return fail(step.name, f"{type(error).__name__}: {text}", "see the server's log"), False


def _give_up_late(lane: Lane, now: float) -> None:
    if lane.over:
        return
    step = lane.steps[lane.at]
    if step.name not in lane.checks and now - lane.began_at > step.timeout_s:
        what = f"{lane.server} has not answered within {step.timeout_s:.0f} s"
        lane.checks[step.name] = fail(step.name, what, "see what keeps it busy, or raise --timeout")
        _skip_rest(lane, f"not checked: {what}")


def _skip_rest(lane: Lane, why: str) -> None:
    for step in lane.steps:
        lane.checks.setdefault(step.name, fail(step.name, why, ""))
    lane.over = True
