"""Pure: the limit of failed authentications. A sliding window per key, in bounded memory."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

KEYS_MAX = 10_000  # about 5 MB at ten failures each; the key that failed longest ago goes first


@dataclass(slots=True)
class FailureLimit:
    """Counts failures by key; times are seconds of any clock that only goes forward."""

    failures_max: int
    window_s: float
    keys_max: int = KEYS_MAX
    _failures: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def retry_after_s(self, key: str, now: float) -> float:
        """Return how long the key has to wait; 0.0 if it may try now."""
        failures = self._failures.get(key)
        if failures is None:
            return 0.0
        while failures and failures[0] <= now - self.window_s:
            failures.popleft()
        if not failures:
            del self._failures[key]
            return 0.0
        return failures[0] + self.window_s - now if len(failures) >= self.failures_max else 0.0

    def failed(self, key: str, now: float) -> None:
        """Note a failure. Only the newest that decide are kept."""
        failures = self._failures.get(key)
        if failures is None:
            failures = self._failures[key] = deque(maxlen=self.failures_max)
        failures.append(now)
        self._failures.move_to_end(key)
        while len(self._failures) > self.keys_max:
            self._failures.popitem(last=False)

    def succeeded(self, key: str) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._failures)
