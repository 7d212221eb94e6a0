"""When too many records fail, and the one update that halts the job. The rule is pure; `JobGate` is I/O."""

import datetime as dt
from dataclasses import dataclass

from schemas.vocabulary import JobStatus
from sink.database import Documents
from sink.progress import RunTotals

FAILURE_RATE_MAX = 0.10
SEEN_MIN = 500  # one page: before it, a handful of failures would be a rate


@dataclass(frozen=True, slots=True)
class Baseline:
    """What had been counted when the job was last resumed: a cause that is gone must not halt it again."""

    failed: int = 0
    seen: int = 0


def seen_of(totals: RunTotals) -> int:
    """Return how many records have ended in a bin, those that are no known source rows included."""
    return totals.accounted + totals.foreign_total


def failed_of(totals: RunTotals) -> int:
    """Return how many records became dead letters."""
    return totals.failed_total + totals.foreign_total


def failure_rate(totals: RunTotals, baseline: Baseline) -> float:
    """Return failed / (migrated + skipped + failed) since the baseline; 0.0 before anything was seen."""
    seen = seen_of(totals) - baseline.seen
    return (failed_of(totals) - baseline.failed) / seen if seen > 0 else 0.0


def too_many_failed(totals: RunTotals, baseline: Baseline) -> bool:
    """Return whether the job has to halt."""
    return seen_of(totals) - baseline.seen >= SEEN_MIN and failure_rate(totals, baseline) > FAILURE_RATE_MAX


class JobGate:
    """Says whether this run may go on writing, and shuts it."""

    def __init__(self, jobs: Documents, job_id: str, run: int) -> None:
        """`jobs` is `crm_activity_log_migration_jobs`."""
        self._jobs = jobs
        self._job_id = job_id
        self._run = run
        self.baseline = Baseline()

    def closed_because(self) -> str | None:
        """Return why this run must not write any more, or None. Also reads the baseline of the last resume.

        A job without a document is nobody's to stop (a sink that is run by hand).
        """
        job = self._jobs.find_one({"_id": self._job_id}, {"status": 1, "run": 1, "failure_baseline": 1})
        if job is None:
            return None
        if job.get("run") != self._run:
            return f"the job is at run {job.get('run')}, this sink belongs to run {self._run}"
        if job["status"] not in (JobStatus.IN_PROGRESS, JobStatus.COMPLETED):
            return f"the job is {job['status']}"
        stored = job.get("failure_baseline") or {}
        self.baseline = Baseline(stored.get("failed", 0), stored.get("seen", 0))
        return None

    def halt(self, totals: RunTotals) -> str:
        """Mark the job halted, if it is in progress and at this run; return the reason, also if another was first."""
        failed, seen = failed_of(totals) - self.baseline.failed, seen_of(totals) - self.baseline.seen
        reason = f"{failed} of {seen} records failed, more than {FAILURE_RATE_MAX:.0%}"
        now = dt.datetime.now(dt.UTC)
        self._jobs.update_one(
            {"_id": self._job_id, "run": self._run, "status": JobStatus.IN_PROGRESS.value},
            {
                "$set": {
                    "status": JobStatus.HALTED.value,
                    "error": reason,
                    "records_migrated": totals.migrated,
                    "records_skipped": totals.skipped_total,
                    "records_failed": totals.failed_total,
                    "updated_at": now,
                }
            },
        )
        return reason
