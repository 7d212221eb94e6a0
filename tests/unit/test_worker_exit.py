"""How a worker ends with an error: which code its runner takes for worth another start."""

from typing import Any

import pytest

import processors.__main__
import producer.__main__
import sink.__main__
from schemas.errors import BadInputError, ServiceUnreachableError


@pytest.mark.parametrize(
    ("error", "code"),
    [(ServiceUnreachableError("Kafka does not answer"), 1), (BadInputError("there is no such topic"), 2)],
)
@pytest.mark.parametrize(
    ("module", "work"),
    [(producer.__main__, "run"), (processors.__main__, "_run"), (sink.__main__, "SinkSettings.load")],
)
def test_a_server_that_is_away_is_worth_another_start(
    module: Any, work: str, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"{module.__name__}.{work}", fails)
    monkeypatch.setattr(module.logs, "configure", lambda _: None)
    monkeypatch.setattr("sys.argv", ["worker"])
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    assert module.main() == code
