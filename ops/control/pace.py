"""Pure: a job's rate, from its counts over time."""

from dataclasses import dataclass, field

from ops.rate import RateMeter

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
    _meters: dict[tuple[str, int], RateMeter] = field(default_factory=dict)

    def note(self, job_id: str, run: int, accounted: int, now: float) -> None:
        """Remember a count. What another run had is forgotten, and so is the job updated longest ago."""
        key = (job_id, run)
        meter = self._meters.pop(key, None)
        if meter is None:
            for other in [other for other in self._meters if other[0] == job_id]:
                del self._meters[other]
            meter = RateMeter(self.window_s, SAMPLE_EVERY_S)
        self._meters[key] = meter
        while len(self._meters) > JOBS_MAX:
            del self._meters[next(iter(self._meters))]
        meter.add(now, accounted)

    def rate(self, job_id: str, run: int, total: int) -> Rate:
        """Return the rate, and how long `total` takes from the last count on."""
        meter = self._meters.get((job_id, run))
        if meter is None or len(meter.samples) < 2:
            return Rate(None, None)
        left = max(0, total - meter.samples[-1][1])
        if meter.rate == 0:
            return Rate(0.0, 0.0 if left == 0 else None)
        return Rate(meter.rate, left / meter.rate)
