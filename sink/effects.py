"""The seam around every durable effect of the sink, so that tests can die, fail or dawdle at exactly one of them."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TypeVar

T = TypeVar("T")


class Effect(StrEnum):
    """What outlives this process, in the order in which one batch does it."""

    WRITE_LOGS = "write_logs"
    DELIVER_DEAD_LETTERS = "deliver_dead_letters"
    SAVE_PROGRESS = "save_progress"
    COMMIT_OFFSETS = "commit_offsets"


class Seam(Protocol):
    """Runs an effect. A test's own seam may do something before or after it, or raise instead of it."""

    def __call__(self, effect: Effect, run: Callable[[], T]) -> T:
        """Return what `run` returns."""


def straight(effect: Effect, run: Callable[[], T]) -> T:  # noqa: ARG001  production has nothing to add
    """Return what the effect returns: the seam of a real sink."""
    return run()
