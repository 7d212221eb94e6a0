"""Waiting for a server that does not answer."""

import pytest
from pymongo.errors import AutoReconnect

from schemas.process.liveness import Liveness
from sink import waiting
from sink.metrics import SinkMetrics
from sink.waiting import Waiting


@pytest.fixture
def sink_waiting() -> Waiting:
    return Waiting(SinkMetrics(), Liveness(60.0))


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
