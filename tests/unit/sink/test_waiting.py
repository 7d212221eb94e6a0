"""Calls of client libraries that have no time limit of their own."""

import threading
import time

import pytest
from pymongo.errors import AutoReconnect

from schemas.errors import ServiceUnreachableError
from schemas.process.liveness import Liveness
from sink import waiting
from sink.metrics import SinkMetrics
from sink.waiting import Waiting


@pytest.fixture
def sink_waiting() -> Waiting:
    return Waiting(SinkMetrics(), Liveness(60.0))


def test_a_call_that_returns_or_raises_in_time_does_so_for_its_caller(sink_waiting: Waiting) -> None:
    assert sink_waiting.in_time("Kafka", lambda: 7, 60.0) == 7
    with pytest.raises(ZeroDivisionError):
        sink_waiting.in_time("Kafka", lambda: 1 // 0, 60.0)
    assert not sink_waiting.hangs


def test_one_that_does_not_return_in_time_is_an_outage_and_leaves_the_process_to_be_ended(
    sink_waiting: Waiting,
) -> None:
    released = threading.Event()
    with pytest.raises(ServiceUnreachableError, match=r"Kafka has not answered for [01] s"):
        sink_waiting.in_time("Kafka", released.wait, 0.05)
    released.set()
    assert sink_waiting.hangs


def test_a_stop_shortens_the_wait(sink_waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STOPPING_MAX_S", 0.1)
    released, began = threading.Event(), time.monotonic()
    threading.Timer(0.1, sink_waiting.stopping.set).start()
    with pytest.raises(ServiceUnreachableError):
        sink_waiting.in_time("Kafka", released.wait, 60.0)
    released.set()
    assert time.monotonic() - began < 30


def test_a_wait_is_a_turn_of_the_loop(sink_waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0.01)
    liveness = sink_waiting._liveness
    liveness._turned_at = 0.0
    sink_waiting.in_time("Kafka", lambda: time.sleep(0.05), 60.0)
    assert liveness.since_turn_s < 30


def test_each_attempt_of_an_outage_is_a_turn_of_the_loop(
    sink_waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a sink that waits for MongoDB, as long as it takes, would be ended for not moving."""
    monkeypatch.setattr(waiting, "BACKOFF_FIRST_S", 0.0)
    attempts, liveness = 0, sink_waiting._liveness

    def write() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            liveness._turned_at = 0.0
            raise AutoReconnect("gone")
        return "written"

    assert sink_waiting.until_answered("MongoDB", write) == "written"
    assert liveness.since_turn_s < 30
