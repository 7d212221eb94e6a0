"""The cost of processes, from /proc (Linux), by sampling: CPU seconds with children, peak memory of the largest one."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY_S = 0.1
MEMORY_EVERY_S = 0.5
STEADY_FROM, STEADY_TO = 0.2, 0.9  # of all rows: the part of a run that a longer run would have more of


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds (user and system) and peak resident memory of a process."""

    cpu_s: float
    peak_mib: float


def cpu_seconds(pid: int) -> float:
    """Return user + system time of a process, without its children; 0.0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(value) for value in fields[11:13]) / TICKS_PER_S


def peak_mib(pid: int) -> float:
    """Return the highest resident set of a process in MiB; 0.0 if it is gone."""
    return _status_mib(pid, "VmHWM:")


def resident_mib(pid: int) -> float:
    """Return the resident set of a process in MiB; 0.0 if it is gone."""
    return _status_mib(pid, "VmRSS:")


def _status_mib(pid: int, name: str) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """Return the live children of a process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def workers_of(pid: int) -> dict[str, int]:
    """Return module -> pid of a process's children that were started with `-m`."""
    found: dict[str, int] = {}
    for child in children(pid):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"-m" in words:
            found[words[words.index(b"-m") + 1].decode()] = child
    return found


@dataclass
class Meter:
    """Samples processes and one counter in a thread of its own, from `start` to `stop`.

    `pids` gives name -> process id, called at every sample (processes come and go). A server's live children
    (PostgreSQL's backends) count as its own.
    """

    pids: Callable[[], Mapping[str, int]]
    counter: Callable[[], int] = lambda: 0
    samples: list[tuple[float, int]] = field(default_factory=list)  # seconds since start, counter
    resident: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name -> counter, MiB at that time
    _cpu: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)  # first and last seen
    _peak: dict[str, float] = field(default_factory=dict)
    _memory_due: float = 0.0

    def start(self) -> "Meter":
        """Begin; returns itself."""
        self._over = threading.Event()
        self._started = time.monotonic()
        self._sample(first=True)
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> float:
        """End, and return the seconds since the start."""
        seconds = time.monotonic() - self._started
        self._over.set()
        self._thread.join()
        return seconds

    def costs(self) -> dict[str, Cost]:
        """Return what each process has cost; one that was there before the start counts from then."""
        cpu: dict[str, float] = {}
        for (name, _), (first, last) in self._cpu.items():
            cpu[name] = cpu.get(name, 0.0) + max(0.0, last - first)
        return {name: Cost(round(seconds, 2), round(self._peak.get(name, 0.0), 1)) for name, seconds in cpu.items()}

    def steady_rate(self, total: int) -> float | None:
        """Return the counter's slope between 20 and 90 % of `total`; None if it was never sampled in between."""
        inside = [(at, rows) for at, rows in self.samples if STEADY_FROM * total <= rows <= STEADY_TO * total]
        if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
            return None
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    def growth_mib(self, total: int) -> dict[str, float]:
        """Return how much larger each process's resident set was at 90 % of `total` than at 20 %.

        A process that ended before is left out, and so are a server's children.
        """
        found = {}
        for name, samples in self.resident.items():
            sizes = [mib for rows, mib in samples if STEADY_FROM * total <= rows <= STEADY_TO * total]
            if len(sizes) >= 2 and samples[-1][0] >= STEADY_TO * total:
                found[name] = round(sizes[-1] - sizes[0], 1)
        return found

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_EVERY_S):
            self._sample(first=False)

    def _sample(self, *, first: bool) -> None:
        with contextlib.suppress(Exception):  # a counter that cannot be read now is read at the next sample
            self.samples.append((time.monotonic() - self._started, self.counter()))
        pids = self.pids()
        if self.samples and time.monotonic() >= self._memory_due:
            self._memory_due = time.monotonic() + MEMORY_EVERY_S
            for name, pid in pids.items():
                if mib := resident_mib(pid):
                    self.resident.setdefault(name, []).append((self.samples[-1][1], mib))
        for name, pid in pids.items():
            for each in (pid, *children(pid)):
                seconds = cpu_seconds(each)
                if seconds == 0.0:
                    continue
                # A process that starts later began at 0; one that was there counts from here.
                begin = seconds if first else 0.0
                self._cpu[name, each] = (self._cpu.get((name, each), (begin, 0.0))[0], seconds)
                self._peak[name] = max(self._peak.get(name, 0.0), peak_mib(each))
