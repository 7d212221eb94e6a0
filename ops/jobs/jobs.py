"""Pure: the job, its status transitions, and the ledger that checks whether every row is accounted for."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from producer.cursor import EARLIEST
from schemas.errors import ReplayError
from schemas.job import ReplayJob
from schemas.vocabulary import JobStatus
from sink.job_counts import Repaired, duplicates, percent
from sink.job_counts import progress_pct as progress_pct

# What may follow. A rolled back job stays that: its account's next run is a new job.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.IN_PROGRESS: frozenset((JobStatus.HALTED, JobStatus.COMPLETED, JobStatus.FAILED)),
    JobStatus.HALTED: frozenset((JobStatus.IN_PROGRESS, JobStatus.FAILED, JobStatus.ROLLED_BACK)),
    JobStatus.FAILED: frozenset((JobStatus.IN_PROGRESS, JobStatus.ROLLED_BACK)),
    JobStatus.COMPLETED: frozenset((JobStatus.IN_PROGRESS, JobStatus.ROLLED_BACK)),
    JobStatus.ROLLED_BACK: frozenset(),
}
# Final statuses of a job; `finished_at` is set with them.
FINISHED = frozenset((JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.ROLLED_BACK))
_WHY_NOT: Mapping[tuple[JobStatus, JobStatus], str] = {
    (JobStatus.IN_PROGRESS, JobStatus.ROLLED_BACK): "halt it first: its processes still write",
    # But for a job whose copy has been proved: JobStore.complete_proved.
    (JobStatus.HALTED, JobStatus.COMPLETED): "resume it: only a run that has passed every end marker is complete",
    (JobStatus.FAILED, JobStatus.COMPLETED): "resume it: only a run that has passed every end marker is complete",
    (JobStatus.ROLLED_BACK, JobStatus.IN_PROGRESS): "its documents are gone; start a new job of the account",
}
NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ALL_BUT_ONE_PCT = 99.99
LEASE_S = 15.0  # a runner that has not renewed its lease for so long is taken for dead


class IllegalTransitionError(ReplayError):
    """The job's status does not allow the requested one."""


def refusal(source: JobStatus, target: JobStatus) -> str | None:
    """Return why a job must not go from `source` to `target`, or None if it may."""
    if target in TRANSITIONS[source]:
        return None
    if source is target:
        return f"the job is {source} already"
    return _WHY_NOT.get((source, target), f"a job that is {source} cannot become {target}")


@dataclass(frozen=True, slots=True)
class Job:
    """A job document. Times are aware UTC; `cutoff` keeps its microseconds."""

    job_id: str
    company_sso_id: str
    status: JobStatus
    run: int
    partitions: int
    top_audit_id: int
    snapshot_xmax: int
    cutoff: dt.datetime
    mapping_path: str
    mapping_sha256: str
    triggered_by: str
    partial: bool  # replays chosen rows of a history that another job has replayed
    date_range_start: dt.datetime | None
    begin_offsets: tuple[int, ...]
    records_total: int
    records_migrated: int
    records_skipped: int
    records_failed: int
    records_foreign: int
    skips_by_reason: Mapping[str, int]
    failures_by_cause: Mapping[str, int]
    last_audit_id: int
    progress_pct: float
    accuracy_pct: float | None
    created_at: dt.datetime
    started_at: dt.datetime
    updated_at: dt.datetime
    finished_at: dt.datetime | None
    heartbeat_at: dt.datetime
    error: str | None
    prepared: bool = True  # surveyed: top, xmax, cutoff and total are known; else the runner that claims it looks
    planned_begin: tuple[int, ...] = ()  # `begin_offsets`, once both groups have been set to them
    planned_outcomes: tuple[int, ...] = ()  # where the sinks begin on the outcomes topic, by partition
    writers: tuple[str, ...] = ()  # virtual transactions of the source that may still commit ids up to top
    published_at: tuple[int, ...] = ()  # of a rerun: begin offsets of the run that is read again
    owner: str | None = None  # the runner that works on it; None: it waits for one
    fence: int = 0  # rises with every claim: a former owner's writes are refused
    lease_until: dt.datetime = NEVER  # by the database's clock; after it, any runner may claim the job
    attempts: int = 0  # of runners, in a row, that released the job without progress
    enrichment: Mapping[str, Any] | None = None  # of the present run; ops.jobs.enrichments
    http_documents: Mapping[str, Any] | None = None  # that came by HTTP, and that no row of the run accounts for
    out_of_scope_by_type: Mapping[str, int] = field(default_factory=dict)  # rows of types that are not read
    rollback: Mapping[str, Any] | None = None  # removed, remaining, by, started_at, updated_at, finished_at, unanswered
    records_late: int = 0  # rows found when the gaps were read again; they are in the other counts
    records_repaired: int = 0  # rows that failed and have been repaired since; they are in their new bins
    repaired: Repaired = field(default_factory=Repaired)
    actors_fell_back: int = 0  # logs written whose actor is the deleted user
    documents: int | None = None  # of the account's replay in MongoDB, as counted last
    documents_at: dt.datetime | None = None  # when that was
    failure_bound: float | None = None  # raised by an operator, until the next resume
    failure_halt: bool = False  # halted because too many records failed, and not by an operator
    proof: Mapping[str, Any] | None = None  # of a run that verify has completed: at, run, migrated, skipped, failed

    @property
    def reads_from(self) -> dt.datetime:
        """Return the time before which rows are left out; EARLIEST without a date range, which leaves out none.

        `cutoff` is then only where the history began as far as the survey saw it: rows may have any created_at.
        """
        return self.cutoff if self.date_range_start is not None else EARLIEST

    def waiting(self, now: dt.datetime) -> bool:
        """Whether it is in progress and no runner has it, or its runner has fallen silent."""
        return self.status is JobStatus.IN_PROGRESS and (self.owner is None or self.lease_until < now)

    def replay_job(self) -> ReplayJob:
        """Return the job as the processes of this run get it."""
        return ReplayJob(
            company_sso_id=self.company_sso_id,
            job_id=self.job_id,
            run=self.run,
            partitions=self.partitions,
            top_audit_id=self.top_audit_id,
            snapshot_xmax=self.snapshot_xmax,
            writers=self.writers,
            cutoff=self.reads_from,
            mapping_path=self.mapping_path,
            fence=self.fence,
            begin_offsets=self.begin_offsets,
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every source row in scope, and the bin it ended in. `foreign`: dead letters that are no known source rows.

    `documents` is the number of documents in MongoDB that the account's replay owns; None if they were not counted.
    """

    source_rows: int
    migrated: int
    skipped: Mapping[str, int] = field(default_factory=dict)  # by reason
    failed: int = 0
    foreign: int = 0
    documents: int | None = None
    out_of_scope: Mapping[str, int] = field(default_factory=dict)  # by type: not read, and no part of the sums
    late: int = 0  # of the source rows: found when the gaps were read again
    repaired: int = 0  # rows that failed and have been repaired since, in their new bins
    actors_fell_back: int = 0  # of the migrated: their actor is the deleted user
    ids_agree: bool | None = None  # the documents are of the very rows that should have one; None: not compared

    @property
    def skipped_total(self) -> int:
        """Rows left out on purpose."""
        return sum(self.skipped.values())

    @property
    def accounted(self) -> int:
        """Rows that ended in a bin."""
        return self.migrated + self.skipped_total + self.failed

    @property
    def balanced(self) -> bool:
        """Whether every source row ended in exactly one bin."""
        return self.accounted == self.source_rows

    @property
    def deleted(self) -> int:
        """How many more rows ended in a bin than the source has now."""
        return max(0, self.accounted - self.source_rows)

    @property
    def documents_expected(self) -> int:
        """Rows that have become a document: written by this run, or there before it."""
        return self.migrated + duplicates(self.skipped)

    @property
    def documents_agree(self) -> bool:
        """Whether MongoDB holds the documents that it should, as far as they were counted and their ids compared."""
        return self.documents in (None, self.documents_expected) and self.ids_agree is not False

    @property
    def accuracy_pct(self) -> float | None:
        """Documents in MongoDB per row that should have become one, failed rows among them; None if not counted.

        Where the right number of documents are of the wrong rows, it is just below 100.
        """
        accuracy = accuracy_of(self.documents, self.documents_expected + self.failed)
        return ALL_BUT_ONE_PCT if accuracy == 100.0 and self.ids_agree is False else accuracy

    @property
    def failure_rate(self) -> float:
        """Return failed / (migrated + skipped + failed), foreign dead letters included; 0.0 if there are none."""
        seen = self.accounted + self.foreign
        return (self.failed + self.foreign) / seen if seen else 0.0


def accuracy_of(documents: int | None, rows: int) -> float | None:
    """Return documents in MongoDB per row that should have become one; None if they were not counted.

    Cut to two digits, never rounded: 100.0 means all. More than 100 means documents that no row accounts for.
    """
    if documents is None:
        return None
    if rows == 0:
        return 100.0 if documents == 0 else 0.0
    return percent(documents, rows)
