"""What an operator does to a job besides running it: halt it, roll it back."""

from collections.abc import Callable
from typing import Any

from ops.control.jobs import Job, refusal
from ops.control.store import JobStore
from schemas.errors import BadInputError, ReplayError
from schemas.vocabulary import JobStatus
from sink import rollback as documents


class NoSuchJobError(BadInputError):
    """The account has never been replayed."""


class RollbackRefusedError(ReplayError):
    """The account's job still writes, or has begun to."""


def halt(store: JobStore, company_sso_id: str, reason: str) -> Job:
    """Mark the account's job halted; its runner stops every process within a second, cursor and offsets are kept.

    Raises NoSuchJobError, or IllegalTransitionError for a job that is not in progress.
    """
    job = _latest(store, company_sso_id)
    return store.transition(job.job_id, job.status, JobStatus.HALTED, reason)


def rollback(database: Any, company_sso_id: str, on_batch: Callable[[int], None] = lambda _: None) -> int:
    """Delete what the replay wrote for the account and return how many documents that were; again: 0.

    The job is marked first: dying half-way leaves documents of a job that is rolled back, and the next call goes on
    with them. Raises NoSuchJobError; RollbackRefusedError while a job is in progress, also if one begins meanwhile.
    """
    store = JobStore(database)
    job = _latest(store, company_sso_id)
    if job.status is not JobStatus.ROLLED_BACK:
        why_not = refusal(job.status, JobStatus.ROLLED_BACK)
        if why_not:
            raise RollbackRefusedError(f"the job of {company_sso_id} is {job.status}", why_not)
        store.transition(job.job_id, job.status, JobStatus.ROLLED_BACK)

    def still_ours(removed: int) -> None:
        on_batch(removed)
        if _latest(store, company_sso_id).status is not JobStatus.ROLLED_BACK:
            raise RollbackRefusedError(
                f"a run of {company_sso_id} has begun after {removed:,} documents were removed",
                "halt it, then roll back again",
            )

    return documents.rollback(database, company_sso_id, on_batch=still_ours)


def _latest(store: JobStore, company_sso_id: str) -> Job:
    job = store.latest(company_sso_id)
    if job is None:
        raise NoSuchJobError(f"{company_sso_id} has no job", f"crm-replay run --account {company_sso_id}")
    return job
