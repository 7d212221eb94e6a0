"""Readers of id ranges as processes: what they end with is what the whole ends with."""

import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from producer.cursor import IdRange
from producer.parallel import read_in_children
from schemas.errors import ReplayError
from schemas.process.waiting import StoppedError

LOTS = [[IdRange(number, 0, 0, 9)] for number in range(2)]


def readers(monkeypatch: pytest.MonkeyPatch, commands: Sequence[str]) -> None:
    """Have shell commands in place of the readers."""
    start: Callable[..., Any] = subprocess.Popen
    left = iter(commands)
    monkeypatch.setattr(subprocess, "Popen", lambda _, stdin: start(["sh", "-c", next(left)], stdin=stdin))


def test_a_reader_that_is_stopped_before_it_can_say_so_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    readers(monkeypatch, ["trap 'exit 5' TERM; while :; do sleep 0.05; done", "exec sleep 60"])
    stop_at = time.monotonic() + 0.5  # the first one has set its trap by then
    with pytest.raises(StoppedError):
        read_in_children(LOTS, stop=lambda: time.monotonic() > stop_at)


def test_a_reader_that_somebody_else_ends_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    readers(monkeypatch, ["exec sleep 60", "kill -TERM $$"])
    with pytest.raises(ReplayError, match="ended with code -15"):
        read_in_children(LOTS, stop=lambda: False)
