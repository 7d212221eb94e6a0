"""What a run does while MongoDB does not answer."""

import threading

import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure

from ops.progress import PlainView
from ops.runner import watch
from ops.runner.lease import InterruptedRunError, OutageError
from ops.runner.watch import Patience


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
