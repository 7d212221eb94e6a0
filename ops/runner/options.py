"""The options of a run on this host, its input, and its result."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ops.jobs.jobs import Job, Ledger
from ops.runner.forkserver import ForkServer
from producer.cursor import IdRange


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is executed on this host."""

    mapping_path: str = ""
    partitions: int = 4
    processors: int = 1
    sinks: int = 1
    date_range_start: datetime | None = None
    resume_halted: bool = False
    failure_bound: float | None = None  # of a resume: instead of the usual failure rate
    reason: str = ""  # of a resume, for the audit log
    home: Path = Path(".crm-replay")
    enrich: bool | None = None  # whether the run enriches its association logs; None: as the source mapping says
    forks: ForkServer | None = None  # forks its processes; without it each imports its libraries itself


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run."""

    job: Job
    ledger: Ledger
    seconds: float  # from the start of the processes to the last end marker


@dataclass(frozen=True, slots=True)
class RunInput:
    """What a run reads, where that is not the whole source."""

    snapshot: IdRange | None = None  # saved as the snapshot's cursor before it starts
    published_at: tuple[int, ...] = ()  # begin offsets of an earlier run, whose records are read again
    audit_ids: tuple[int, ...] | None = None  # the only rows that are replayed
