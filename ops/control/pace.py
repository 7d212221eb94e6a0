"""Pure: a job's rate, from its counts over time."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 30.0  # long enough to bridge a batch, short enough to show a stall
SAMPLE_EVERY_S = 0.5
JOBS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows a second over the window, and how long the rest takes; None where unknown yet."""

    rows_per_s: float | None
    eta_s: float | None


@dataclass(slots=True)
class PaceKeeper:
    """Remembers how many rows each run had accounted for lately; times are seconds of a clock that never goes back."""

    window_s: float = WINDOW_S
    _samples: dict[tuple[str, int], deque[tuple[float, int]]] = field(default_factory=dict)

    def note(self, job_id: str, run: int, accounted: int, now: float) -> None:
        """Remember a count. What another run had is forgotten, and so is the job updated longest ago."""
        key = (job_id, run)
        samples = self._samples.pop(key, None)
        if samples is None:
            for other in [other for other in self._samples if other[0] == job_id]:
                del self._samples[other]
            samples = deque()
        self._samples[key] = samples
        while len(self._samples) > JOBS_MAX:
            del self._samples[next(iter(self._samples))]
        if samples and now - samples[-1][0] < SAMPLE_EVERY_S:
            return
        samples.append((now, accounted))
        # One older than the window stays, so that the rate is always over the whole of it.
        while len(samples) > 2 and samples[1][0] <= now - self.window_s:
            samples.popleft()

    def rate(self, job_id: str, run: int, total: int) -> Rate:
        """Return the rate, and how long `total` takes from the last count on."""
        samples = self._samples.get((job_id, run))
        if samples is None or len(samples) < 2:
            return Rate(None, None)
        (began, first), (ended, last) = samples[0], samples[-1]
        rows_per_s = max(0, last - first) / (ended - began)
        left = max(0, total - last)
        if rows_per_s == 0:
            return Rate(0.0, 0.0 if left == 0 else None)
        return Rate(rows_per_s, left / rows_per_s)
