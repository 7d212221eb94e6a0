"""A live feed's alarm, instead of a halt, while too many of an account's records fail."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sink.counting import PartitionProgress
from sink.failure_rate import FAILURE_RATE_MAX
from sink.feed.progress import Key

log = logging.getLogger(__name__)

ALARM_EVERY_S = 60.0
ALARM_SEEN_MIN = 50  # of an account in that time: with fewer, a handful of failures would exceed the rate


@dataclass
class Alarm:
    """Finds accounts with too many failed records in the last minute. Pure."""

    started_at: float
    seen: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    sounded: int = 0

    def add(self, account: str, seen: int, failed: int) -> None:
        """Add an account's counts."""
        self.seen[account] = self.seen.get(account, 0) + seen
        self.failed[account] = self.failed.get(account, 0) + failed

    def due(self, now: float) -> list[tuple[str, int, int]]:
        """Return account, failed and seen where the rate is exceeded, once a minute; then reset."""
        if now - self.started_at < ALARM_EVERY_S:
            return []
        over = [
            (account, self.failed[account], seen)
            for account, seen in self.seen.items()
            if seen >= ALARM_SEEN_MIN and self.failed[account] > FAILURE_RATE_MAX * seen
        ]
        self.started_at, self.seen, self.failed = now, {}, {}
        self.sounded += len(over)
        return over


class FeedGate:
    """Raises the alarm. A feed is never halted and has no end."""

    def __init__(self, alarm: Alarm) -> None:
        """`note` adds counts to `alarm`."""
        self._alarm = alarm

    def note(self, before: Mapping[Key, PartitionProgress], after: Mapping[Key, PartitionProgress]) -> None:
        """Add a batch's counts."""
        for key, state in after.items():
            earlier = before[key]
            self._alarm.add(key[1], _seen(state) - _seen(earlier), _failed(state) - _failed(earlier))

    def check(self, *, at_once: bool) -> None:  # noqa: ARG002
        """Log each account with too many failed records."""
        for account, failed, seen in self._alarm.due(time.monotonic()):
            owner = f"account {account}" if account else "no readable account"
            log.error("%d of %d records of %s failed in the last minute; see the dead letters", failed, seen, owner)

    def has_ended(self) -> bool:
        """Return False."""
        return False


def _seen(progress: PartitionProgress) -> int:
    """Return how many records have ended in a bin."""
    return progress.migrated + sum(progress.skipped.values()) + _failed(progress)


def _failed(progress: PartitionProgress) -> int:
    """Return how many records became dead letters."""
    return sum(progress.failed.values()) + sum(progress.foreign.values())
