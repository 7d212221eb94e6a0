"""Pure: rows a second over the last while, from what was counted and when."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RateMeter:
    """The rate over a window of (time, rows) samples; times are seconds of a clock that never goes back."""

    window_s: float
    sample_every_s: float = 0.0  # a count that comes sooner after the last sample is left out
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now_s: float, rows: int) -> float:
        """Take a count and return the rate now."""
        if not self.samples or now_s - self.samples[-1][0] >= self.sample_every_s:
            self.samples.append((now_s, rows))
        # One older than the window stays, so that the rate is always over the whole of it.
        while len(self.samples) > 2 and self.samples[1][0] <= now_s - self.window_s:
            self.samples.popleft()
        return self.rate

    @property
    def rate(self) -> float:
        """Rows a second; 0.0 before there are two samples."""
        (first_s, first), (last_s, last) = self.samples[0], self.samples[-1]
        return max(0, last - first) / (last_s - first_s) if last_s > first_s else 0.0
