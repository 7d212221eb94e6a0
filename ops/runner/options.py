"""What a run is asked to do on this host, what it reads, and what came of it."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ops.jobs.jobs import Job, Ledger
from ops.runner.forkserver import ForkServer
from producer.cursor import IdRange


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is done on this host."""

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
    forks: ForkServer | None = None  # forks its processes; without one each imports its libraries itself


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run."""

    job: Job
    ledger: Ledger
    seconds: float  # from the start of the processes to the last end marker


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a run reads, where that is not simply everything from the source."""

    snapshot: IdRange | None = None  # saved as the snapshot's cursor before it starts
    published_at: tuple[int, ...] = ()  # begin offsets of a former run's stretch, to be read again
    audit_ids: tuple[int, ...] | None = None  # all that is replayed
