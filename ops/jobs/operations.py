"""An operator's actions on a job besides running it: halt, rerun, roll back."""

from collections.abc import Callable
from hashlib import sha256

from ops.jobs import http_documents
from ops.jobs.jobs import Job, refusal
from ops.jobs.store import JobStore, LeaseLostError, NewJob
from ops.kafka import admin as kafka_admin
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.process.waiting import Deadline, retrying
from schemas.source.mapping import SourceMapping
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from sink import rollback as documents

STOPPING_MAX_S = 30.0  # a runner whose job was halted ends its processes within 15 s, or kills them
STOPPING_POLL_S = 0.2


class NoSuchJobError(BadInputError):
    """The account has never been replayed."""


class RollbackRefusedError(ReplayError):
    """The account's job still writes, or has begun to."""


def digest(mapping: SourceMapping) -> str:
    """Return the digest of a job's source mapping."""
    return sha256(mapping.model_dump_json().encode()).hexdigest()


def halt(store: JobStore, company_sso_id: str, reason: str) -> Job:
    """Mark the account's job halted; its runner stops every process within a second, cursor and offsets are kept.

    Raises NoSuchJobError, or IllegalTransitionError for a job that is not in progress.
    """
    job = _latest(store, company_sso_id)
    return store.transition(job.job_id, job.status, JobStatus.HALTED, reason)


def why_no_rerun(job: Job, store: JobStore, connections: Connections) -> tuple[str, str] | None:
    """Return why what the job's last run has published cannot be read again, and what to do; None if it can.

    Its records end at its end markers. Without them, rows are missing, and records of later replays follow.
    """
    account = job.company_sso_id
    if not job.begin_offsets:
        return f"no run of {account} has published anything", f"crm-replay run --account {account}"
    if job.proof is not None:
        what = f"the last run of {account} was completed by verify, and may not have published every row"
        return what, f"crm-replay run --account {account}"
    if store.aggregate_progress(job).partitions_ended < job.partitions:
        what = f"the last run of {account} has ended before it had published every row"
        return what, f"crm-replay resume --account {account}"
    kafka = connections.kafka()
    kafka_admin.client(kafka)
    oldest = kafka_admin.oldest_offsets(kafka, AccountTopics.of(account).replay, job.partitions)
    if any(low > begin for low, begin in zip(oldest, job.begin_offsets, strict=True)):
        return f"Kafka has deleted the beginning of the last run of {account}", f"crm-replay run --account {account}"
    return None


def next_run_of(job: Job) -> NewJob:
    """Return what the job's next run starts with that reads again what its last one has published."""
    return NewJob(
        company_sso_id=job.company_sso_id,
        partitions=job.partitions,
        top_audit_id=job.top_audit_id,
        snapshot_xmax=job.snapshot_xmax,
        cutoff=job.cutoff,
        mapping_path=job.mapping_path,
        mapping_sha256=job.mapping_sha256,
        records_total=job.records_total,
        out_of_scope_by_type=job.out_of_scope_by_type,
        triggered_by=job.triggered_by,
        date_range_start=job.date_range_start,
        published_at=job.begin_offsets,
    )


def rollback(
    database: Database,
    company_sso_id: str,
    on_batch: Callable[[int], None] = lambda _: None,
    *,
    by: str = "",
    to_be_answered: bool = False,
) -> int:
    """Delete what the replay wrote for the account and return how many documents the roll back has removed; again: 0.

    An account without a job may have documents that came by HTTP; they go, too. The job is marked first: dying half-way
    leaves documents of a job that is rolled back, and the next call removes them, and returns the number of the whole
    roll back, also concurrently. Its progress is in the job document. With `to_be_answered` the number is
    returned again until `JobStore.note_rollback_answered`: an answer can be lost. Raises NoSuchJobError;
    RollbackRefusedError while a job is in progress or its processes are being ended, also if one begins meanwhile.
    """
    store = JobStore(database)
    if store.latest(company_sso_id) is None and http_documents.are_known(database, company_sso_id):
        return _rollback_without_job(store, database, company_sso_id, on_batch)
    job = _mark_rolled_back(store, company_sso_id)
    before = job.rollback or {}
    there = documents.documents_of(database, company_sso_id)
    finished = before.get("finished_at") is not None
    if finished and there == 0:
        if not before.get("unanswered"):
            return 0
        if not to_be_answered:
            store.note_rollback_answered(company_sso_id)
        return int(before["removed"])
    whole = before["removed"] + before["remaining"] if before and not finished else there
    done_before = max(0, whole - there)
    store.note_rollback(job, removed=done_before, remaining=there, by=by)

    def still_ours(removed: int) -> None:
        removed += done_before
        on_batch(removed)
        store.note_rollback(job, removed=removed, remaining=max(0, whole - removed), by=by)
        if _latest(store, company_sso_id).status is not JobStatus.ROLLED_BACK:
            raise RollbackRefusedError(
                f"a run of {company_sso_id} has begun after {removed:,} documents were removed",
                "halt it, then roll back again",
            )

    removed = documents.rollback(database, company_sso_id, on_batch=still_ours) + done_before
    removed = max(removed, whole)  # a concurrent call has removed the others
    store.note_rollback(job, removed=removed, remaining=0, by=by, finished=True, unanswered=to_be_answered)
    return removed


def _rollback_without_job(
    store: JobStore, database: Database, company_sso_id: str, on_batch: Callable[[int], None]
) -> int:
    def still_without(removed: int) -> None:
        on_batch(removed)
        if store.latest(company_sso_id) is not None:
            raise RollbackRefusedError(
                f"a run of {company_sso_id} has begun after {removed:,} documents were removed",
                "halt it, then roll back again",
            )

    return documents.rollback(database, company_sso_id, on_batch=still_without)


def _mark_rolled_back(store: JobStore, company_sso_id: str) -> Job:
    """Return the account's job, rolled back; waits for a runner that is ending its processes: they write until then."""

    def mark() -> Job:
        job = _latest(store, company_sso_id)
        if job.status is JobStatus.ROLLED_BACK:
            return job
        why_not = refusal(job.status, JobStatus.ROLLED_BACK)
        if why_not:
            raise RollbackRefusedError(f"the job of {company_sso_id} is {job.status}", why_not)
        return store.transition(job.job_id, job.status, JobStatus.ROLLED_BACK, only_if_free=True)

    try:
        return retrying(mark, LeaseLostError, Deadline(STOPPING_MAX_S), STOPPING_POLL_S)
    except LeaseLostError as error:
        raise RollbackRefusedError(
            f"the runner of {company_sso_id} ({_latest(store, company_sso_id).owner}) has not ended its processes yet",
            "try again",
        ) from error


def _latest(store: JobStore, company_sso_id: str) -> Job:
    job = store.latest(company_sso_id)
    if job is None:
        raise NoSuchJobError(f"{company_sso_id} has no job", f"crm-replay run --account {company_sso_id}")
    return job
