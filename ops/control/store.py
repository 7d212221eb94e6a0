"""Job documents in MongoDB. Every change is one conditional update, so two processes cannot both make it."""

import datetime as dt
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from ops.control.jobs import FINISHED, IllegalTransitionError, Job, progress_pct, refusal
from schemas.errors import ReplayError
from schemas.vocabulary import JobStatus
from sink.database import Document, Documents
from sink.halting import failed_of, seen_of
from sink.indexes import COUNTERS, JOBS, ONE_RUNNING_JOB, PROGRESS
from sink.progress import RunTotals, totals_of

RUN_MAX = 2**31 - 1  # an Avro int
RUN_COUNTER = "run"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class JobAlreadyRunningError(ReplayError):
    """The account has a job in progress."""


class JobChangedError(ReplayError):
    """The job is not what the caller took it for: another process was first."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is known of a run when it starts."""

    company_sso_id: str
    partitions: int
    top_audit_id: int
    snapshot_xmax: int
    cutoff: dt.datetime
    mapping_path: str = ""
    mapping_sha256: str = ""
    records_total: int = 0
    triggered_by: str = ""
    date_range_start: dt.datetime | None = None
    partial: bool = False  # replays chosen rows of a history that another job has replayed


class JobStore:
    """The jobs of all accounts."""

    def __init__(self, database: Any) -> None:
        """`database` is the customer data platform's; its migrations have been applied."""
        aware: CodecOptions[Document] = CodecOptions(tz_aware=True)
        self._jobs: Documents = database.get_collection(JOBS, codec_options=aware)
        self._progress: Documents = database.get_collection(PROGRESS, codec_options=aware)
        self._counters: Documents = database.get_collection(COUNTERS, codec_options=aware)

    def next_run(self) -> int:
        """Return a run number greater than any before: the time in seconds, or one more than the last."""
        now = int(time.time())
        counter = self._counters.find_one_and_update(
            {"_id": RUN_COUNTER},
            [{"$set": {"last": {"$max": [now, {"$add": [{"$ifNull": ["$last", 0]}, 1]}]}}}],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        run = int((counter or {})["last"])
        if run > RUN_MAX:
            raise ReplayError(f"run number {run} is over {RUN_MAX}", f"is the clock right? see {COUNTERS}")
        return run

    def create(self, new: NewJob, *, begin_offsets: Sequence[int] = ()) -> Job:
        """Store a job in progress and return it.

        Raises JobAlreadyRunningError: the database allows one in progress per account.
        """
        now = _now()
        document: Document = {
            "_id": uuid.uuid4().hex,
            "company_sso_id": new.company_sso_id,
            "status": JobStatus.IN_PROGRESS.value,
            "triggered_by": new.triggered_by,
            "partial": new.partial,
            "created_at": now,
            **_run_fields(new, self.next_run(), begin_offsets, now),
        }
        try:
            self._jobs.insert_one(document)
        except DuplicateKeyError as error:
            raise self._already_running(new.company_sso_id, error) from error
        return job_of(document)

    def rerun(self, job_id: str, new: NewJob, *, begin_offsets: Sequence[int] = ()) -> Job:
        """Begin the next run of a job that is over or halted, with counts of its own, and return it."""
        now = _now()
        return self._move(
            job_id, None, JobStatus.IN_PROGRESS, "", _run_fields(new, self.next_run(), begin_offsets, now)
        )

    def get(self, job_id: str) -> Job | None:
        """Return a job."""
        document = self._jobs.find_one({"_id": job_id})
        return job_of(document) if document else None

    def latest(self, company_sso_id: str) -> Job | None:
        """Return the account's job in progress, else the one that started last, partial replays left out."""
        running = self._jobs.find_one({"company_sso_id": company_sso_id, "status": JobStatus.IN_PROGRESS.value})
        document = running or self._jobs.find_one(
            {"company_sso_id": company_sso_id, "partial": {"$ne": True}},
            sort=[("started_at", DESCENDING), ("run", DESCENDING)],
        )
        return job_of(document) if document else None

    def jobs(self, company_sso_id: str | None = None, limit: int = 100) -> list[Job]:
        """Return jobs, the last started first; of one account or of all."""
        query = {} if company_sso_id is None else {"company_sso_id": company_sso_id}
        found = self._jobs.find(query).sort([("started_at", DESCENDING), ("run", DESCENDING)]).limit(limit)
        return [job_of(document) for document in found]

    def transition(self, job_id: str, source: JobStatus, target: JobStatus, reason: str = "") -> Job:
        """Change a job's status if it is `source` now; return the job. `reason` becomes its `error`, "" clears it.

        Going back to in progress sets the baseline from which the failure rate counts: a cause that is gone must not
        halt the job again. Raises IllegalTransitionError, JobChangedError, or JobAlreadyRunningError.
        """
        return self._move(job_id, source, target, reason, {})

    def _move(
        self, job_id: str, source: JobStatus | None, target: JobStatus, reason: str, fields: Mapping[str, Any]
    ) -> Job:
        job = self.get(job_id)
        if job is None:
            raise JobChangedError(f"there is no job {job_id}", "see crm-replay status")
        source = source or job.status
        why_not = refusal(source, target)
        if why_not:
            raise IllegalTransitionError(f"job {job_id} cannot become {target}", why_not)
        now = _now()
        update: Document = {"status": target.value, "error": reason or None, "updated_at": now, **fields}
        if target in FINISHED:
            update["finished_at"] = now
        elif target is JobStatus.IN_PROGRESS and "run" not in fields:
            totals = self.aggregate_progress(job)
            update["failure_baseline"] = {"failed": failed_of(totals), "seen": seen_of(totals)}
            update |= {"finished_at": None, "heartbeat_at": now}
        try:
            document = self._jobs.find_one_and_update(
                {"_id": job_id, "status": source.value, "run": job.run},
                {"$set": update},
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError as error:
            raise self._already_running(job.company_sso_id, error) from error
        if document is None:
            present = self.get(job_id)
            raise JobChangedError(
                f"job {job_id} is {present.status if present else 'gone'}, not {source}", "look again"
            )
        return job_of(document)

    def set_begin_offsets(self, job: Job, begin_offsets: Sequence[int], partitions: int | None = None) -> Job:
        """Note where the run's stretch begins on each partition, and how many there are; return the job."""
        fields = {"begin_offsets": list(begin_offsets), "partitions": partitions or job.partitions}
        return self._set(job, fields)

    def set_records_total(self, job: Job, records_total: int) -> Job:
        """Note how many source rows are in scope; return the job."""
        return self._set(job, {"records_total": records_total})

    def heartbeat(self, job: Job) -> None:
        """Note that a runner is alive with this run."""
        self._jobs.update_one({"_id": job.job_id, "run": job.run}, {"$set": {"heartbeat_at": _now()}})

    def claim(self, job: Job, stale_after_s: float) -> Job | None:
        """Take over a job in progress whose runner has been silent for so long; None if another process was first."""
        if (_now() - job.heartbeat_at).total_seconds() < stale_after_s:
            return None
        document = self._jobs.find_one_and_update(
            {"_id": job.job_id, "run": job.run, "status": job.status.value, "heartbeat_at": job.heartbeat_at},
            {"$set": {"heartbeat_at": _now()}},
            return_document=ReturnDocument.AFTER,
        )
        return job_of(document) if document else None

    def release(self, job: Job) -> None:
        """Let another runner claim the job at once: this one has ended all its processes."""
        self._jobs.update_one({"_id": job.job_id, "run": job.run}, {"$set": {"heartbeat_at": EPOCH}})

    def aggregate_progress(self, job: Job) -> RunTotals:
        """Return what the sinks have counted in the job's present run."""
        return totals_of(self._progress, job.job_id, job.run)

    def save_totals(
        self, job: Job, totals: RunTotals, *, accuracy_pct: float | None = None, last_audit_id: int | None = None
    ) -> Job:
        """Copy the counts of a run into its job document, if the job is still at that run; return the job."""
        fields: Document = {
            "records_migrated": totals.migrated,
            "records_skipped": totals.skipped_total,
            "records_failed": totals.failed_total,
            "records_foreign": totals.foreign_total,
            "skips_by_reason": dict(totals.skipped),
            "failures_by_cause": dict(totals.failed),
            "last_audit_id": totals.last_audit_id if last_audit_id is None else last_audit_id,
            "progress_pct": progress_pct(totals.accounted, job.records_total),
        }
        if accuracy_pct is not None:
            fields["accuracy_pct"] = accuracy_pct
        return self._set(job, fields)

    def _set(self, job: Job, fields: Document) -> Job:
        document = self._jobs.find_one_and_update(
            {"_id": job.job_id, "run": job.run},
            {"$set": {**fields, "updated_at": _now()}},
            return_document=ReturnDocument.AFTER,
        )
        if document is None:
            raise JobChangedError(f"job {job.job_id} is no longer at run {job.run}", "a later run has begun")
        return job_of(document)

    def _already_running(self, company_sso_id: str, error: DuplicateKeyError) -> ReplayError:
        if ONE_RUNNING_JOB.name not in str((error.details or {}).get("errmsg", "")):
            return ReplayError("the job document met another of its kind", "try again")
        running = self.latest(company_sso_id)
        which = f" ({running.job_id})" if running else ""
        return JobAlreadyRunningError(
            f"account {company_sso_id} has a job in progress{which}", "wait for it, or crm-replay halt it"
        )


def job_of(document: Mapping[str, Any]) -> Job:
    """Return the job in a stored document."""
    return Job(
        job_id=document["_id"],
        company_sso_id=document["company_sso_id"],
        status=JobStatus(document["status"]),
        run=document["run"],
        partitions=document["partitions"],
        top_audit_id=document["top_audit_id"],
        snapshot_xmax=document["snapshot_xmax"],
        cutoff=EPOCH + dt.timedelta(microseconds=document["cutoff_us"]),
        mapping_path=document["mapping_path"],
        mapping_sha256=document["mapping_sha256"],
        triggered_by=document["triggered_by"],
        partial=bool(document.get("partial")),
        date_range_start=document["date_range_start"],
        begin_offsets=tuple(document["begin_offsets"]),
        records_total=document["records_total"],
        records_migrated=document["records_migrated"],
        records_skipped=document["records_skipped"],
        records_failed=document["records_failed"],
        records_foreign=document["records_foreign"],
        skips_by_reason=document["skips_by_reason"],
        failures_by_cause=document["failures_by_cause"],
        last_audit_id=document["last_audit_id"],
        progress_pct=document["progress_pct"],
        accuracy_pct=document["accuracy_pct"],
        created_at=document["created_at"],
        started_at=document["started_at"],
        updated_at=document["updated_at"],
        finished_at=document["finished_at"],
        heartbeat_at=document["heartbeat_at"],
        error=document["error"],
    )


def _run_fields(new: NewJob, run: int, begin_offsets: Sequence[int], now: dt.datetime) -> Document:
    """Return the fields that each run of a job has of its own."""
    return {
        "run": run,
        "partitions": new.partitions,
        "top_audit_id": new.top_audit_id,
        "snapshot_xmax": new.snapshot_xmax,
        # BSON dates have milliseconds, PostgreSQL microseconds: a resumed run must not begin somewhere else.
        "cutoff": new.cutoff,
        "cutoff_us": (new.cutoff - EPOCH) // dt.timedelta(microseconds=1),
        "mapping_path": new.mapping_path,
        "mapping_sha256": new.mapping_sha256,
        "date_range_start": new.date_range_start,
        "begin_offsets": list(begin_offsets),
        "records_total": new.records_total,
        "records_migrated": 0,
        "records_skipped": 0,
        "records_failed": 0,
        "records_foreign": 0,
        "skips_by_reason": {},
        "failures_by_cause": {},
        "last_audit_id": 0,
        "progress_pct": 0.0,
        "accuracy_pct": None,
        "failure_baseline": {"failed": 0, "seen": 0},
        "started_at": now,
        "updated_at": now,
        "finished_at": None,
        "heartbeat_at": now,
        "error": None,
    }


def _now() -> dt.datetime:
    """Return the time now, in milliseconds as BSON keeps it, so that what is returned equals what is stored."""
    now = dt.datetime.now(dt.UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
