"""I/O: the update that halts a job with too many failed records (the rule is in `failure_rate`)."""

import datetime as dt
import time
from typing import Any

from schemas.errors import ReplayError
from schemas.job import ReplayJob
from schemas.process.mongodb import Document, Documents
from schemas.vocabulary import ExitCode, JobStatus
from sink.failure_rate import halt_reason, seen_of, too_many_failed, what_to_do
from sink.job_counts import Repaired, RunTotals, job_fields, present, repaired_in
from sink.progress import Progress
from sink.waiting import Waiting

GATE_EVERY_S = 1.0  # how long a halt by another sink or an operator may go unnoticed
END_CHECK_S = 0.25


class HaltedError(ReplayError):
    """The job is halted, or this run may no longer write; offsets are kept."""

    exit_code = ExitCode.HALTED


class JobGate:
    """Whether this run may continue to write, and the halt of its job."""

    def __init__(self, jobs: Documents, job_id: str, run: int) -> None:
        """`jobs` is `crm_activity_log_migration_jobs`."""
        self._jobs = jobs
        self._job_id = job_id
        self._run = run
        self._known: Document = {}

    def closed_because(self) -> str | None:
        """Return why this run must no longer write, or None. Also reads the fields that `too_many` and `halt` use.

        A job without a document never closes (a sink that is run by hand).
        """
        fields = {"status": 1, "run": 1, "failure_bound": 1, "failure_halt": 1, "repaired": 1, "records_total": 1}
        job = self._jobs.find_one({"_id": self._job_id}, fields)
        if job is None:
            return None
        self._known = job
        if job.get("run") != self._run:
            return f"the job is at run {job.get('run')}, this sink belongs to run {self._run}"
        if job["status"] not in (JobStatus.IN_PROGRESS, JobStatus.COMPLETED):
            return f"the job is {job['status']}"
        return None

    @property
    def _repaired(self) -> Repaired:
        return repaired_in(self._known.get("repaired"))

    def too_many(self, totals: RunTotals) -> bool:
        """Return whether too many records have failed, over the whole run; `totals` are the sinks'."""
        return too_many_failed(present(totals, self._repaired), self._known.get("failure_bound"))

    def _fields(self, totals: RunTotals) -> dict[str, Any]:
        counts = job_fields(totals, self._repaired, self._known.get("records_total", 0))
        return {**counts, "updated_at": dt.datetime.now(dt.UTC)}

    def halt(self, totals: RunTotals) -> str:
        """Mark the job halted, if it is in progress and at this run; return the reason, also after a lost race.

        Counts and reason come from these totals. Batches in flight are counted later: `settle`.
        """
        reason = halt_reason(present(totals, self._repaired), self._known.get("failure_bound"))
        self._jobs.update_one(
            {"_id": self._job_id, "run": self._run, "status": JobStatus.IN_PROGRESS.value},
            {
                "$set": {
                    **self._fields(totals),
                    "status": JobStatus.HALTED.value,
                    "error": reason,
                    "failure_halt": True,
                }
            },
        )
        return reason

    def settle(self, totals: RunTotals) -> None:
        """Update the counts of a halted job, and the numbers in its reason, to what has been counted since.

        Called by each process that has finished counting. A no-op with totals older than the stored ones, for a job
        that has been resumed, and if rows have been repaired meanwhile.
        """
        self.closed_because()
        if self._known.get("run") != self._run or self._known.get("status") != JobStatus.HALTED:
            return
        fields = self._fields(totals)
        if self._known.get("failure_halt"):
            fields["error"] = halt_reason(present(totals, self._repaired), self._known.get("failure_bound"))
        names = ("records_migrated", "records_skipped", "records_failed", "records_foreign")
        stored = {"$add": [{"$ifNull": [f"${name}", 0]} for name in names]}
        self._jobs.update_one(
            {
                "_id": self._job_id,
                "run": self._run,
                "status": JobStatus.HALTED.value,
                "repaired": self._known.get("repaired"),
                "$expr": {"$lte": [stored, seen_of(totals)]},
            },
            {"$set": fields},
        )


class ReplayGate:
    """Ends a sink whose job is halted, halts a job with too many failed records, and detects the run's end."""

    def __init__(self, jobs: Documents, job: ReplayJob, progress: Progress, waiting: Waiting) -> None:
        """`jobs` is `crm_activity_log_migration_jobs`."""
        self._job = job
        self._gate = JobGate(jobs, job.job_id, job.run)
        self._progress = progress
        self._until_answered = waiting.until_answered
        self._seen_at = 0.0
        self._end_seen_at = 0.0

    def check(self, *, at_once: bool) -> None:
        """Raise HaltedError if the job does not continue; halt it if too many records have failed."""
        now = time.monotonic()
        if not at_once and now - self._seen_at < GATE_EVERY_S:
            return
        self._seen_at = now
        closed = self._until_answered("MongoDB", self._gate.closed_because)
        if closed is not None:
            self._until_answered("MongoDB", lambda: self._gate.settle(self._progress.totals()))
            raise HaltedError(closed, "offsets are kept; crm-replay resume continues where it stopped")
        totals = self._until_answered("MongoDB", self._progress.totals)
        if self._gate.too_many(totals):
            reason = self._until_answered("MongoDB", lambda: self._gate.halt(totals))
            self._until_answered("MongoDB", lambda: self._gate.settle(self._progress.totals()))
            raise HaltedError(reason, what_to_do(self._job.company_sso_id))

    def has_ended(self) -> bool:
        """Return whether the sinks have counted the end marker of every partition of the run."""
        now = time.monotonic()
        if now - self._end_seen_at < END_CHECK_S:
            return False
        self._end_seen_at = now
        totals = self._until_answered("MongoDB", self._progress.totals)
        return totals.partitions_ended >= self._job.partitions
