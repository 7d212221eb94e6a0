"""Job documents in MongoDB. Every change is one conditional update, so only one process can make it.

A runner works on a job under a lease: it is the job's owner, renews the lease while it lives, and holds a number, the
fence, that rises with every claim. Its writes are accepted only under its own number, so one that was frozen beyond
its lease cannot disturb its successor. Leases count by the server's clock: hosts need not agree on the time.
"""

import datetime as dt
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from ops.jobs.jobs import FINISHED, LEASE_S, NEVER, IllegalTransitionError, Job, Ledger, accuracy_of, refusal
from schemas.collections import CHECKPOINTS, COUNTERS, JOBS, PROGRESS
from schemas.errors import ReplayError
from schemas.process.mongodb import Database, Document, Documents
from schemas.vocabulary import JobStatus
from sink.failure_rate import halt_reason
from sink.identity import Identities, shift_of, with_ids
from sink.indexes import ONE_FOLLOWS, ONE_RUNNING_JOB
from sink.job_counts import Move, Repaired, duplicates, has_document, job_fields, present, repaired_by, repaired_in
from sink.progress import RunTotals, identities_of, totals_of

RUN_MAX = 2**31 - 1  # an Avro int
RUN_COUNTER = "run"
EPOCH = NEVER
LOOK_AT_MAX = 50  # waiting jobs, of which a runner tries to claim one
_LEASE_UNTIL = {"$ifNull": ["$lease_until", NEVER]}
# A partial job may name thousands of rows there; only `fold_repairs` reads them.
NO_REPAIRS: Mapping[str, int] = {"repairs": 0}
_FREE: Mapping[str, Any] = {"$or": [{"owner": None}, {"$expr": {"$lt": [_LEASE_UNTIL, "$$NOW"]}}]}


class JobAlreadyRunningError(ReplayError):
    """The account has a job in progress."""


class JobChangedError(ReplayError):
    """The job is not what the caller took it for: another process was first."""


class LeaseLostError(JobChangedError):
    """Another runner has taken the job over; this one has to stop its processes."""


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
    out_of_scope_by_type: Mapping[str, int] = field(default_factory=dict)  # rows of types that are not read
    triggered_by: str = ""
    date_range_start: dt.datetime | None = None
    partial: bool = False  # replays chosen rows of a history that another job has replayed
    writers: tuple[str, ...] = ()  # virtual transactions of the source that may still commit ids up to top
    prepared: bool = True  # the survey's fields are known; else the runner that claims the job surveys the source
    published_at: tuple[int, ...] = ()  # of a rerun: begin offsets of the run that is read again
    follows: str | None = None  # the account's last job as the request saw it, "" for none; None: does not matter


class JobStore:
    """The jobs of all accounts."""

    def __init__(self, database: Database) -> None:
        """`database` is the customer data platform's; its migrations have been applied."""
        aware: CodecOptions[Document] = CodecOptions(tz_aware=True)
        self._jobs: Documents = database.get_collection(JOBS, codec_options=aware)
        self._progress: Documents = database.get_collection(PROGRESS, codec_options=aware)
        self._counters: Documents = database.get_collection(COUNTERS, codec_options=aware)
        self._checkpoints: Documents = database[CHECKPOINTS]

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

    def create(self, new: NewJob, *, begin_offsets: Sequence[int] = (), owner: str | None = None) -> Job:
        """Store a job in progress and return it: its owner's, or waiting for a runner if none is named.

        Raises JobAlreadyRunningError: the database allows one in progress per account. JobChangedError if another
        request has followed the job that `new.follows` names.
        """
        now = _now()
        document: Document = {
            "_id": uuid.uuid4().hex,
            "company_sso_id": new.company_sso_id,
            "status": JobStatus.IN_PROGRESS.value,
            "triggered_by": new.triggered_by,
            "partial": new.partial,
            "created_at": now,
            "owner": owner,
            "fence": int(owner is not None),
            **({} if new.follows is None else {"follows": new.follows}),
            **_run_fields(new, self.next_run(), begin_offsets, now),
        }
        # An upsert and no insert: only an update can take the time of the lease from the server.
        lease = {"lease_until": _lease_end(LEASE_S) if owner is not None else NEVER}
        try:
            created = self._jobs.find_one_and_update(
                {"_id": document["_id"]},
                [{"$replaceWith": {"$mergeObjects": [{"$literal": document}, lease]}}],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError as error:
            raise self._already_running(new.company_sso_id, error) from error
        return job_of(created or {})

    def rerun(self, job_id: str, new: NewJob, *, begin_offsets: Sequence[int] = (), owner: str | None = None) -> Job:
        """Begin the next run of a finished or halted job, with counts of its own, and return it.

        It is its owner's, or waits for a runner if none is named.
        """
        fields = _run_fields(new, self.next_run(), begin_offsets, _now())
        return self._move(job_id, None, JobStatus.IN_PROGRESS, "", fields, owner=owner)

    def get(self, job_id: str) -> Job | None:
        """Return a job."""
        document = self._jobs.find_one({"_id": job_id}, NO_REPAIRS)
        return job_of(document) if document else None

    def latest(self, company_sso_id: str) -> Job | None:
        """Return the account's job in progress, else the one that started last, partial replays left out."""
        of_account = {"company_sso_id": company_sso_id, "status": JobStatus.IN_PROGRESS.value}
        running = self._jobs.find_one(of_account, NO_REPAIRS)
        return job_of(running) if running else self.latest_whole(company_sso_id)

    def latest_whole(self, company_sso_id: str) -> Job | None:
        """Return the account's job that started last, partial replays left out."""
        document = self._jobs.find_one(
            {"company_sso_id": company_sso_id, "partial": {"$ne": True}},
            NO_REPAIRS,
            sort=[("started_at", DESCENDING), ("run", DESCENDING)],
        )
        return job_of(document) if document else None

    def jobs(self, company_sso_id: str | None = None, limit: int = 100) -> list[Job]:
        """Return jobs, the last started first; of one account or of all."""
        query = {} if company_sso_id is None else {"company_sso_id": company_sso_id}
        found = self._jobs.find(query, NO_REPAIRS).sort([("started_at", DESCENDING), ("run", DESCENDING)]).limit(limit)
        return [job_of(document) for document in found]

    def transition(
        self,
        job_id: str,
        source: JobStatus,
        target: JobStatus,
        reason: str = "",
        *,
        owner: str | None = None,
        fence: int | None = None,
        only_if_free: bool = False,
        failure_bound: float | None = None,
    ) -> Job:
        """Change a job's status if it is `source` now; return the job. `reason` becomes its `error`, "" clears it.

        With `owner`, the job becomes that runner's, if no other has it. With `fence`, the change is that of the runner
        that holds this number, and fails if it does not any more. With `only_if_free`, no runner may hold the job.
        `failure_bound` is that of the failure rate from a resume to the next; None: the usual one. A job that is rolled
        back has no counts any more: its rows are in no bin, and the count of its documents is void.
        Raises IllegalTransitionError, JobChangedError, or JobAlreadyRunningError.
        """
        fields: Document = {}
        if target is JobStatus.IN_PROGRESS:
            fields = {"failure_bound": failure_bound, "failure_halt": False}
        elif target is JobStatus.ROLLED_BACK:
            fields = {**NO_COUNTS, "enrichment": None, "http_documents": None}
        return self._move(job_id, source, target, reason, fields, owner=owner, fence=fence, only_if_free=only_if_free)

    def _move(
        self,
        job_id: str,
        source: JobStatus | None,
        target: JobStatus,
        reason: str,
        fields: Mapping[str, Any],
        *,
        owner: str | None = None,
        fence: int | None = None,
        only_if_free: bool = False,
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
        elif target is JobStatus.IN_PROGRESS:
            update["attempts"] = 0
            if "run" not in fields:
                update |= {"finished_at": None, "accuracy_pct": None}
        condition: Document = {"_id": job_id, "status": source.value, "run": job.run}
        stages: Document = {name: {"$literal": value} for name, value in update.items()}
        if owner is not None or only_if_free:
            condition |= _FREE
        if owner is not None:
            stages |= _claimed_by(owner)
        if fence is not None:
            condition |= _fenced(fence)
        try:
            document = self._jobs.find_one_and_update(
                condition, [{"$set": stages}], return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError as error:
            raise self._already_running(job.company_sso_id, error) from error
        if document is None:
            raise self._changed(job, source)
        return job_of(document)

    def _changed(self, job: Job, source: JobStatus) -> JobChangedError:
        present = self.get(job.job_id)
        if present is not None and present.status is source and present.run == job.run:
            return LeaseLostError(f"job {job.job_id} is owned by {present.owner}", "wait until it is released")
        return JobChangedError(
            f"job {job.job_id} is {present.status if present else 'gone'}, not {source}", "refresh the status"
        )

    def has_lost_its_place(self, job: Job) -> bool:
        """Return whether a replay of chosen rows has moved the account's groups since this unfinished run began."""
        moved = {
            "company_sso_id": job.company_sso_id,
            "partial": True,
            "run": {"$gt": job.run},
            "planned_begin.0": {"$exists": True},
        }
        if job.partial or not job.begin_offsets or self._jobs.find_one(moved, {"_id": 1}) is None:
            return False
        return self.aggregate_progress(job).partitions_ended < job.partitions

    def begin_again(self, job: Job, new: NewJob) -> Job:
        """Begin the next run of a job in the hands of its runner, with counts of its own, and return the job."""
        fields = _run_fields(new, self.next_run(), (), _now())
        bound = {"failure_bound": job.failure_bound}  # that of this resume
        document = self._jobs.find_one_and_update(
            {"_id": job.job_id, "run": job.run, **_fenced(job.fence)},
            {"$set": {**fields, **bound}},
            NO_REPAIRS,
            return_document=ReturnDocument.AFTER,
        )
        if document is None:
            raise self._lost(job)
        return job_of(document)

    def prepare(self, job: Job, new: NewJob) -> Job:
        """Note what the survey of the source has found; return the job."""
        return self._set(job, {**_survey_fields(new), "prepared": True})

    def plan_offsets(
        self, job: Job, begin_offsets: Sequence[int], outcomes_offsets: Sequence[int], partitions: int
    ) -> Job:
        """Save at which offsets the run will begin on both topics, before any group is set to them; return the job.

        Every runner that claims the job later sets the groups to the same offsets.
        """
        fields = {"planned_begin": list(begin_offsets), "planned_outcomes": list(outcomes_offsets)}
        return self._set(job, {**fields, "partitions": partitions})

    def set_begin_offsets(self, job: Job, begin_offsets: Sequence[int], partitions: int | None = None) -> Job:
        """Save at which offset the run begins on each partition, and how many there are; return the job."""
        fields = {"begin_offsets": list(begin_offsets), "partitions": partitions or job.partitions}
        return self._set(job, fields)

    def note_out_of_scope(self, job: Job, by_type: Mapping[str, int]) -> Job:
        """Note how many rows are of types that are not read; return the job."""
        return self._set(job, {"out_of_scope_by_type": dict(by_type)})

    def note_enrichment(self, job: Job, fields: Mapping[str, Any]) -> Job:
        """Save the progress of the run's enrichment; return the job."""
        return self._set(job, {"enrichment": dict(fields)})

    def note_http_documents(self, job: Job, fields: Mapping[str, Any] | None) -> Job:
        """Note which documents came by HTTP and are no row's of the run; return the job."""
        return self._set(job, {"http_documents": fields})

    def note_rollback(
        self, job: Job, *, removed: int, remaining: int, by: str, finished: bool = False, unanswered: bool = False
    ) -> None:
        """Save the progress of the documents' deletion; `unanswered`: the caller has not been sent the number yet."""
        now = _now()
        fields = {"removed": removed, "remaining": remaining, "by": by, "updated_at": now, "unanswered": unanswered}
        fields["finished_at"] = now if finished else None
        update: Document = {f"rollback.{name}": value for name, value in fields.items()}
        if removed == 0 and not finished:
            update = {"rollback": {**fields, "started_at": now}}
        update |= {"documents": remaining, "documents_at": now}
        self._jobs.update_one({"_id": job.job_id}, {"$set": update})

    def note_rollback_answered(self, company_sso_id: str) -> None:
        """Note that the number of documents that a finished roll back has removed has been sent."""
        done = {"company_sso_id": company_sso_id, "rollback.unanswered": True, "rollback.finished_at": {"$ne": None}}
        self._jobs.update_many(done, {"$set": {"rollback.unanswered": False}})

    def claim(self, job_id: str, owner: str) -> Job | None:
        """Make a job in progress this owner's and return it; None if another has it, or it is not in progress."""
        return self._claim({"_id": job_id, **_FREE}, owner)

    def claim_next(self, owner: str, leave_out: Collection[str] = ()) -> Job | None:
        """Return the job in progress that has waited longest, now this owner's; None if there is none to be had.

        One that was released with a pause, or whose owner has not renewed, waits until that time has passed.
        """
        free = {"status": JobStatus.IN_PROGRESS.value, "$expr": {"$lt": [_LEASE_UNTIL, "$$NOW"]}}
        if leave_out:
            free["_id"] = {"$nin": sorted(leave_out)}
        waiting = self._jobs.find(free, {"_id": 1}, hint=ONE_RUNNING_JOB.name).sort("updated_at", 1).limit(LOOK_AT_MAX)
        for candidate in waiting:
            claimed = self._claim({**free, "_id": candidate["_id"]}, owner)
            if claimed is not None:
                return claimed
        return None

    def _claim(self, condition: Document, owner: str) -> Job | None:
        document = self._jobs.find_one_and_update(
            {**condition, "status": JobStatus.IN_PROGRESS.value},
            [{"$set": _claimed_by(owner)}],
            return_document=ReturnDocument.AFTER,
        )
        return job_of(document) if document else None

    def renew(self, job: Job) -> None:
        """Keep the job for another LEASE_S. Raises LeaseLostError if it has gone to another runner."""
        renewed = {"lease_until": _lease_end(LEASE_S), "heartbeat_at": "$$NOW"}
        mine = {"_id": job.job_id, "owner": job.owner, **_fenced(job.fence)}
        if not self._jobs.update_one(mine, [{"$set": renewed}]).matched_count:
            raise self._lost(job)

    def release(self, job: Job, *, pause_s: float = 0.0, attempts: int = 0, error: str | None = None) -> None:
        """Let another runner claim the job, at once or after a pause: this one has ended all its processes.

        `attempts` and `error`: how often in a row, and why, it was released unfinished. A job that is no longer in
        progress keeps the reason that it has.
        """
        fields: Document = {"owner": None, "lease_until": _lease_end(pause_s) if pause_s else NEVER}
        if error is not None:
            in_progress = {"$eq": ["$status", JobStatus.IN_PROGRESS.value]}
            why = {"$cond": [in_progress, {"$literal": error}, "$error"]}
            fields |= {"attempts": attempts, "error": why}
        mine = {"_id": job.job_id, "owner": job.owner, **_fenced(job.fence)}
        self._jobs.update_one(mine, [{"$set": fields}])

    def reset_attempts(self, job: Job) -> Job:
        """Forget the failed attempts before, because the run has made progress; return the job."""
        self._jobs.update_one(
            {"_id": job.job_id, "status": JobStatus.IN_PROGRESS.value, **_fenced(job.fence)},
            {"$set": {"attempts": 0, "error": None}},
        )
        return replace(job, attempts=0, error=None)

    def _lost(self, job: Job) -> LeaseLostError:
        present = self.get(job.job_id)
        whose = "gone" if present is None else f"owned by {present.owner or 'no runner'}"
        return LeaseLostError(f"job {job.job_id} of {job.company_sso_id} is {whose} now", "this runner releases it")

    def aggregate_progress(self, job: Job) -> RunTotals:
        """Return what the sinks have counted in the job's present run; of one that verify has completed, the proof."""
        totals = totals_of(self._progress, job.job_id, job.run)
        if job.proof is None:
            return totals
        return replace(totals, **{bin_: job.proof[bin_] for bin_ in ("migrated", "skipped", "failed")})

    def identities(self, job: Job) -> Identities | None:
        """Return which rows have a document, as the sinks of the job's present run and repairs since have counted.

        None if that is not known.
        """
        counted = None if job.proof is not None else identities_of(self._progress, job.job_id, job.run)
        if counted is None or not job.repaired.total:
            return counted
        written = [audit_id for audit_id, move in self._moves(job).items() if has_document(move)]
        return with_ids(counted, written, shift_of(job.top_audit_id))

    def save_totals(
        self,
        job: Job,
        totals: RunTotals,
        *,
        accuracy_pct: float | None = None,
        last_audit_id: int | None = None,
        documents: int | None = None,
        source_rows: int | None = None,
    ) -> Job:
        """Copy the counts of a run into its job document, if the job is still at that run; return the job.

        `totals` are the sinks'. `documents` and `source_rows` are what has been counted in MongoDB and in the source.
        If too many failures have halted the job meanwhile, the numbers in its reason become those of the counts.
        """
        total = job.records_total if source_rows is None else source_rows
        fields: Document = {**job_fields(totals, job.repaired, total), "records_late": self._late_rows(job)}
        if last_audit_id is not None:
            fields["last_audit_id"] = last_audit_id
        if accuracy_pct is not None:
            fields["accuracy_pct"] = accuracy_pct
        if documents is not None:
            fields |= {"documents": documents, "documents_at": _now()}
        why_halted = halt_reason(present(totals, job.repaired), job.failure_bound)
        halted = {"$and": [{"$eq": ["$status", JobStatus.HALTED.value]}, "$failure_halt"]}
        return self._set(job, fields, error={"$cond": [halted, {"$literal": why_halted}, "$error"]})

    def _late_rows(self, job: Job) -> int:
        """Return how many rows were found when the run's gaps were read again, as that cursor has counted them.

        A partial replay reads all of its chosen ids as gaps, so they are not late.
        """
        if job.partial:
            return 0
        late = {"job_id": job.job_id, "run": job.run, "late": True}
        return sum(int(found["rows"]) for found in self._checkpoints.find(late, {"rows": 1}))

    # ---- rows that had failed and were brought to another end by a replay of chosen rows

    def note_repairs(self, partial: Job, whole: Job, moves: Mapping[int, Move]) -> None:
        """Note in a partial job which failed rows of the account's job it has repaired, by their audit ids."""
        groups: dict[Move, list[int]] = {}
        for audit_id, move in sorted(moves.items()):
            groups.setdefault(move, []).append(audit_id)
        rows = [{**move._asdict(), "audit_ids": audit_ids} for move, audit_ids in groups.items()]
        self._set(partial, {"repairs": {"job_id": whole.job_id, "run": whole.run, "rows": rows}})

    def note_met(self, rerun: Job, moves: Mapping[int, Move], totals: RunTotals) -> Job:
        """Note in a rerun which rows it could not read have their document by an earlier repair; return the job."""
        self.note_repairs(rerun, rerun, moves)
        return self._set(rerun, {"repaired": repaired_by(moves.values(), totals).as_document()})

    def partial_runs(self, company_sso_id: str) -> set[int]:
        """Return the runs of the account's replays of chosen rows."""
        found = self._jobs.find({"company_sso_id": company_sso_id, "partial": True}, {"run": 1})
        return {int(partial["run"]) for partial in found}

    def fold_repairs(self, company_sso_id: str, documents: int | None = None) -> Job | None:
        """Move the account's repaired rows to their new bins, and return its job; None if it has none.

        What is noted in the partial jobs is summed from the beginning each time, a row by the last of them, so no row
        is moved twice, however often it was retried or this is called. `documents` are those in MongoDB, if counted.
        """
        job = self.latest_whole(company_sso_id)
        if job is None or job.status in (JobStatus.IN_PROGRESS, JobStatus.ROLLED_BACK):
            return job
        totals = self.aggregate_progress(job)
        repaired = repaired_by(self._moves(job).values(), totals)
        fields: Document = {
            **job_fields(totals, repaired, job.records_total),
            "repaired": repaired.as_document(),
            "updated_at": _now(),
        }
        if job.failure_halt:
            fields["error"] = halt_reason(present(totals, repaired), job.failure_bound)
        if documents is not None:
            fields |= {"documents": documents, "documents_at": fields["updated_at"]}
        if job.accuracy_pct is not None and documents is not None:
            rows = fields["records_migrated"] + duplicates(fields["skips_by_reason"]) + fields["records_failed"]
            fields["accuracy_pct"] = accuracy_of(documents, rows)
        document = self._jobs.find_one_and_update(
            {"_id": job.job_id, "run": job.run, "status": job.status.value},
            {"$set": fields},
            NO_REPAIRS,
            return_document=ReturnDocument.AFTER,
        )
        return job_of(document) if document else self.latest_whole(company_sso_id)

    def _moves(self, job: Job) -> dict[int, Move]:
        """Return which failed rows of the job's run were repaired since, by their ids; each by its last repair."""
        of_run = {"company_sso_id": job.company_sso_id, "repairs.job_id": job.job_id, "repairs.run": job.run}
        if job.proof is not None:  # which has the rows that were repaired before it in their bins
            of_run["created_at"] = {"$gt": job.proof["at"]}
        moves: dict[int, Move] = {}
        for partial in self._jobs.find(of_run, {"repairs": 1}).sort("run", 1):
            for group in partial["repairs"]["rows"]:
                move = Move(group["cause"], group["skipped"], group["fell_back"])
                moves |= dict.fromkeys(group["audit_ids"], move)
        return moves

    def _set(self, job: Job, fields: Document, **expressions: Document) -> Job:
        """Set fields, and others by expressions, if the job is at this run and in the hands of this runner."""
        stages = {name: {"$literal": value} for name, value in {**fields, "updated_at": _now()}.items()}
        document = self._jobs.find_one_and_update(
            {"_id": job.job_id, "run": job.run, **_fenced(job.fence)},
            [{"$set": {**stages, **expressions}}],
            NO_REPAIRS,
            return_document=ReturnDocument.AFTER,
        )
        if document is None:
            present = self.get(job.job_id)
            if present is not None and present.run == job.run:
                raise self._lost(job)
            raise JobChangedError(f"job {job.job_id} is no longer at run {job.run}", "a later run has begun")
        return job_of(document)

    def complete_proved(self, job: Job, ledger: Ledger, failures_by_cause: Mapping[str, int]) -> Job:
        """Complete a failed or halted job whose copy verify has proved, with the proof's counts; return the job.

        The one way out of these statuses that needs no end markers. Raises JobChangedError if the job is not as it was
        when the proof began, LeaseLostError if a runner holds it.
        """
        now = _now()
        last = self._jobs.find_one({"company_sso_id": job.company_sso_id}, {"run": 1}, sort=[("run", DESCENDING)])
        proof: Document = {
            "at": now,
            "run": max(job.run, int((last or {}).get("run", 0))),  # its letters are counted up to this one's
            "migrated": ledger.migrated,
            "skipped": dict(ledger.skipped),
            "failed": dict(failures_by_cause),
        }
        totals = self.aggregate_progress(replace(job, proof=proof))
        fields: Document = {
            **job_fields(totals, Repaired(), ledger.source_rows),
            "status": JobStatus.COMPLETED.value,
            "error": None,
            "failure_halt": False,
            "finished_at": now,
            "updated_at": now,
            "proof": proof,
            "repaired": None,
            "documents": ledger.documents,
            "documents_at": now,
            "accuracy_pct": ledger.accuracy_pct,
        }
        as_it_was = {"_id": job.job_id, "run": job.run, "status": job.status.value, **_FREE}
        stages = [{"$set": {name: {"$literal": value} for name, value in fields.items()}}]
        document = self._jobs.find_one_and_update(as_it_was, stages, return_document=ReturnDocument.AFTER)
        if document is None:
            raise self._changed(job, job.status)
        return job_of(document)

    def _already_running(self, company_sso_id: str, error: DuplicateKeyError) -> ReplayError:
        message = str((error.details or {}).get("errmsg", ""))
        if ONE_FOLLOWS.name in message:
            return JobChangedError(f"another request for {company_sso_id} was first", "refresh the status")
        if ONE_RUNNING_JOB.name not in message:
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
        prepared=bool(document.get("prepared", True)),
        writers=tuple(document.get("writers", ())),
        planned_begin=tuple(document.get("planned_begin", ())),
        planned_outcomes=tuple(document.get("planned_outcomes", ())),
        published_at=tuple(document.get("published_at", ())),
        owner=document.get("owner"),
        fence=document.get("fence", 0),
        lease_until=document.get("lease_until", NEVER),
        attempts=document.get("attempts", 0),
        enrichment=document.get("enrichment"),
        http_documents=document.get("http_documents"),
        rollback=document.get("rollback"),
        out_of_scope_by_type=document.get("out_of_scope_by_type", {}),
        records_late=document.get("records_late", 0),
        records_repaired=document.get("records_repaired", 0),
        repaired=repaired_in(document.get("repaired")),
        actors_fell_back=document.get("actors_fell_back", 0),
        documents=document.get("documents"),
        documents_at=document.get("documents_at"),
        failure_bound=document.get("failure_bound"),
        failure_halt=bool(document.get("failure_halt")),
        proof=document.get("proof"),
    )


# Of a run that has counted nothing yet; `documents` stays: it was counted in MongoDB and has its time.
NO_COUNTS: Mapping[str, Any] = {
    **{name: value for name, value in job_fields(RunTotals(), Repaired(), 0).items() if name != "records_total"},
    "progress_pct": 0.0,
    "accuracy_pct": None,
    "records_late": 0,
    "repaired": Repaired().as_document(),
}


def _run_fields(new: NewJob, run: int, begin_offsets: Sequence[int], now: dt.datetime) -> Document:
    """Return the fields that each run of a job has of its own."""
    return {
        **_survey_fields(new),
        "run": run,
        "partitions": new.partitions,
        "prepared": new.prepared,
        "mapping_path": new.mapping_path,
        "mapping_sha256": new.mapping_sha256,
        "date_range_start": new.date_range_start,
        "begin_offsets": list(begin_offsets),
        "planned_begin": [],
        "planned_outcomes": [],
        "published_at": list(new.published_at),
        "attempts": 0,
        "enrichment": None,
        "http_documents": None,
        **NO_COUNTS,
        "failure_bound": None,
        "failure_halt": False,
        "proof": None,
        "started_at": now,
        "updated_at": now,
        "finished_at": None,
        "heartbeat_at": now,
        "error": None,
    }


def _survey_fields(new: NewJob) -> Document:
    """Return the fields that the survey of the source has found."""
    return {
        "top_audit_id": new.top_audit_id,
        "snapshot_xmax": new.snapshot_xmax,
        "writers": list(new.writers),
        # BSON dates have milliseconds, PostgreSQL microseconds: a resumed run must not begin somewhere else.
        "cutoff": new.cutoff,
        "cutoff_us": (new.cutoff - EPOCH) // dt.timedelta(microseconds=1),
        "records_total": new.records_total,
        "out_of_scope_by_type": dict(new.out_of_scope_by_type),
    }


def _lease_end(seconds: float) -> Document:
    return {"$add": ["$$NOW", int(seconds * 1000)]}


def _claimed_by(owner: str) -> Document:
    """Return what a claim sets, as fields of a pipeline update: a former owner's writes are then refused."""
    return {
        "owner": {"$literal": owner},
        "fence": {"$add": [{"$ifNull": ["$fence", 0]}, 1]},
        "lease_until": _lease_end(LEASE_S),
        "heartbeat_at": "$$NOW",
    }


def _fenced(fence: int) -> Document:
    """Return the condition that this is the job's number still; a job made by an older release has none."""
    return {"fence": fence or {"$in": [0, None]}}


def _now() -> dt.datetime:
    """Return the time now, in milliseconds as BSON keeps it, so that what is returned equals what is stored."""
    now = dt.datetime.now(dt.UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
