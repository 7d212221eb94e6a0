"""What a run does while MongoDB does not answer."""

import threading

import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure

from ops.kafka.lag import Lag
from ops.progress import PlainView
from ops.runner import watch
from ops.runner.lease import InterruptedRunError, OutageError
from ops.runner.watch import EndLostError, Patience, Standstill


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    monkeypatch.setattr(watch, "POLL_EVERY_S", 0.0)
    return Patience(PlainView(), threading.Event())


@pytest.mark.parametrize(
    "error", [AutoReconnect(""), ExecutionTimeout("", 50), OperationFailure("", 91), OutageError("of ours")]
)
def test_an_outage_is_waited_for_but_not_for_ever(
    patience: Patience, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience.wait(error)
    patience.wait(error)
    monkeypatch.setattr(watch, "OUTAGE_MAX_S", -1.0)
    with pytest.raises(OutageError, match="MongoDB has not answered"):
        patience.wait(error)


def test_a_refusal_is_not_waited_for(patience: Patience) -> None:
    with pytest.raises(OperationFailure, match="not authorized"):
        patience.wait(OperationFailure("not authorized", 13))


def test_a_stop_ends_the_waiting() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedRunError):
        Patience(PlainView(), stop).wait(AutoReconnect(""))


class Notes:
    """A view that keeps its notes, and a clock."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.now = 0.0

    def note(self, text: str) -> None:
        self.notes.append(text)


def standstill(view: Notes, *lags: Lag) -> tuple[Standstill, list[Lag]]:
    left = list(lags)
    return Standstill("acme", lambda: left.pop(0), view, lambda: view.now), left  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lag", "producing", "said"),
    [
        (Lag(), True, "Kafka does not answer"),
        (Lag(7, None), True, "Kafka does not answer"),
        (Lag(1_200, 5), True, "1,200 records wait for the processors"),
        (Lag(0, 5), False, "5 records wait for the sinks"),
        (Lag(0, 0), True, "the producer has published no further row"),
    ],
)
def test_a_run_that_counts_nothing_says_what_it_waits_for(lag: Lag, producing: bool, said: str) -> None:
    view = Notes()
    checked, left = standstill(view, *[lag] * 3)
    for view.now in (0.0, 5.0, 19.0):
        checked.check(3, 10, producing=producing)
    assert len(left) == 3, "Kafka is not queried while it may go on"
    for view.now in (20.0, 30.0, 45.0):
        checked.check(3, 10, producing=producing)
    assert view.notes == [f"no row has been counted for {seconds} s: {said}" for seconds in (20, 45)]
    view.now = 50.0
    checked.check(4, 10, producing=producing)
    assert view.notes[2:] == ["rows are counted again, after 50 s"]


def test_a_run_whose_end_was_consumed_uncounted_ends_in_one_line() -> None:
    view = Notes()
    checked, _ = standstill(view, Lag(0, 4), *[Lag(0, 0)] * 9)

    def wait() -> None:
        for second in range(300):
            view.now = float(second)
            checked.check(7, 10, producing=False)

    with pytest.raises(EndLostError, match=r"3 of 10 rows are not counted.* acme, then verify --repair"):
        wait()
    assert view.now >= 60.0


def test_a_run_that_counts_is_silent() -> None:
    view = Notes()
    checked, _ = standstill(view)
    for second in range(300):
        view.now = float(second)
        checked.check(second // 15, 10_000, producing=True)
    assert view.notes == []
