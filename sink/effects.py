"""The hook around every durable effect of the sink, by which tests crash, fail or delay exactly one of them."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TypeVar

T = TypeVar("T")


class Effect(StrEnum):
    """The durable effects, in their order within one batch."""

    WRITE_LOGS = "write_logs"
    DELIVER_DEAD_LETTERS = "deliver_dead_letters"
    SAVE_PROGRESS = "save_progress"
    COMMIT_OFFSETS = "commit_offsets"


class EffectHook(Protocol):
    """Runs an effect. A test's hook may do something before or after it, or raise instead."""

    def __call__(self, effect: Effect, run: Callable[[], T]) -> T:
        """Return what `run` returns."""


def no_hook(effect: Effect, run: Callable[[], T]) -> T:  # noqa: ARG001  production only runs it
    """Return what the effect returns: the hook of a real sink."""
    return run()
