"""Waiting for what another process or thread brings about."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 60.0


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """Return the condition's first true value. Raises AssertionError if there is none in time; `what` says of what."""
    give_up_at = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return value
