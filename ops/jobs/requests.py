"""The one place that triggers, halts, resumes, reruns or rolls back a job, for every caller.

HTTP, the command line and the console call these functions and nothing below them, so that guards, refusals and the
audit log are the same for all. They only record requests: a runner (`crm-replay runner`) executes them. A
roll back is the exception, it deletes at once; as a task it is a runner's work too.

What every function may raise besides its refusals: BadInputError for an invalid or unknown account (400),
ServiceUnreachableError, ReplayError or pymongo's errors for an outage (503).
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ops.jobs import audit_log, coverage, flags, guards, http_documents, operations
from ops.jobs.flags import Flag
from ops.jobs.guards import HTTP_STATUS, Action, Refusal, RespCode
from ops.jobs.jobs import NEVER, IllegalTransitionError, Job
from ops.jobs.store import JobAlreadyRunningError, JobChangedError, JobStore, NewJob
from ops.jobs.tasks import Task, TaskAlreadyQueuedError, TaskKind, TaskStore
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.source.mapping import load
from schemas.topics import AccountTopics
from schemas.vocabulary import ExitCode, JobStatus
from sink.rollback import RollbackFailedError

_TASK_ACTIONS = {
    TaskKind.VERIFY: Action.VERIFY,
    TaskKind.PREFLIGHT: Action.PREFLIGHT,
    TaskKind.DLQ_RETRY: Action.DLQ_RETRY,
    TaskKind.ROLLBACK: Action.ROLLBACK,
}
_CALL_IS_WRONG = frozenset((403, 404, 422))  # for the command line


class RequestRefusedError(ReplayError):
    """The request is refused; nothing has been changed (ROLLBACK_FAILED: repeat it, it continues).

    `resp_code` and `http_status` are those of the answer; `meta` has what a program may want to know besides.
    """

    def __init__(self, refusal: Refusal, meta: Mapping[str, Any] | None = None) -> None:
        """Refuse for the reason given."""
        super().__init__(refusal.what, refusal.to_do)
        self.resp_code = refusal.resp_code
        self.http_status = HTTP_STATUS[refusal.resp_code]
        self.meta = dict(meta or {})
        self.exit_code = ExitCode.BAD_INPUT if self.http_status in _CALL_IS_WRONG else ExitCode.FAILED


@dataclass(frozen=True)
class Control:
    """What the control plane works with. `database` is migrated; `mapping_path` "" is the sample CRM's mapping."""

    database: Database
    connections: Connections
    mapping_path: str = ""
    partitions: int = 4
    _locks: dict[str, threading.Lock] = field(default_factory=dict, repr=False, compare=False)

    def lock(self, company_sso_id: str) -> threading.Lock:
        """Return a lock for the account's requests to this process, so that a burst of them queries the source once."""
        return self._locks.setdefault(company_sso_id, threading.Lock())


def trigger(
    control: Control,
    company_sso_id: str,
    *,
    date_range_start: datetime | None = None,
    triggered_by: str,
    request_id: str = "",
) -> Job:
    """Return a new job in progress, which the next free runner claims; nothing has been read for it yet.

    Refused with FLAG_DISABLED, JOB_ALREADY_RUNNING, ALREADY_COMPLETED, ILLEGAL_TRANSITION (a job that is halted or has
    failed is resumed or rolled back first), contacts_not_migrated (no job row is made). Of any number of requests at
    once, in however many processes, one makes the job.
    """
    AccountTopics.of(company_sso_id)
    detail = {"date_range_start": date_range_start.isoformat()} if date_range_start else {}
    with _noted(control, "trigger", company_sso_id, triggered_by, request_id, detail) as noted:
        _require(control, Action.TRIGGER, company_sso_id)  # most of a burst end here, without waiting
        with control.lock(company_sso_id):
            seen = _require(control, Action.TRIGGER, company_sso_id)
            mapping = load(control.mapping_path or None)
            known = coverage.measure(
                control.database,
                control.connections.crm_audit_database_url,
                mapping,
                company_sso_id,
                date_range_start=date_range_start,
            )
            noted["coverage"] = known.as_dict()
            refused = guards.contacts_refusal(company_sso_id, known)
            if refused:
                raise RequestRefusedError(refused, known.as_dict())
            new = NewJob(
                company_sso_id=company_sso_id,
                partitions=control.partitions,
                top_audit_id=0,
                snapshot_xmax=0,
                cutoff=NEVER,
                mapping_path=control.mapping_path,
                mapping_sha256=operations.digest(mapping),
                triggered_by=triggered_by,
                date_range_start=date_range_start,
                prepared=False,
                follows=seen.job_id if seen else "",
            )
            try:
                job = JobStore(control.database).create(new)
            except (JobAlreadyRunningError, JobChangedError) as error:
                _require(control, Action.TRIGGER, company_sso_id)  # sees the job of the request before
                raise _raced(company_sso_id) from error
        noted["job_id"] = job.job_id
        return job


def halt(control: Control, company_sso_id: str, *, reason: str = "", by: str, request_id: str = "") -> Job:
    """Return the account's job, halted: its runner ends every process within a second or two, all cursors are kept.

    Refused with JOB_NOT_FOUND or ILLEGAL_TRANSITION.
    """
    reason = reason or f"halted by {by}"
    with _noted(control, "halt", company_sso_id, by, request_id, {"reason": reason}) as noted:
        job = _require_job(control, Action.HALT, company_sso_id)
        noted["job_id"] = job.job_id
        return JobStore(control.database).transition(job.job_id, job.status, JobStatus.HALTED, reason)


def resume(
    control: Control,
    company_sso_id: str,
    *,
    by: str,
    reason: str = "",
    request_id: str = "",
    failure_bound: float | None = None,
) -> Job:
    """Return the account's job, in progress again; the next free runner resumes it.

    `failure_bound` is that of the failure rate until the next resume, over the usual one and at most 1.0; it needs a
    reason. Refused with JOB_NOT_FOUND, JOB_ALREADY_RUNNING or ILLEGAL_TRANSITION.
    """
    guards.require_bound(failure_bound, reason)
    detail = {"reason": reason, **({} if failure_bound is None else {"failure_bound": failure_bound})}
    with _noted(control, "resume", company_sso_id, by, request_id, detail) as noted:
        job = _require_job(control, Action.RESUME, company_sso_id)
        noted["job_id"] = job.job_id
        return JobStore(control.database).transition(
            job.job_id, job.status, JobStatus.IN_PROGRESS, failure_bound=failure_bound
        )


def rerun(control: Control, company_sso_id: str, *, by: str, reason: str = "", request_id: str = "") -> Job:
    """Return the account's job at its next run, which reads again what the last one has published.

    Refused with JOB_NOT_FOUND, JOB_ALREADY_RUNNING, ILLEGAL_TRANSITION, or NOTHING_TO_REPLAY if Kafka has deleted the
    first records of that.
    """
    with _noted(control, "rerun", company_sso_id, by, request_id, {"reason": reason}) as noted:
        job = _require_job(control, Action.RERUN, company_sso_id)
        noted["job_id"] = job.job_id
        store = JobStore(control.database)
        refused = operations.why_no_rerun(job, store, control.connections)
        if refused:
            raise RequestRefusedError(Refusal(RespCode.NOTHING_TO_REPLAY, *refused))
        return store.rerun(job.job_id, operations.next_run_of(job))


def rollback(
    control: Control,
    company_sso_id: str,
    *,
    by: str,
    on_batch: Callable[[int], None] = lambda removed: None,  # noqa: ARG005
    reason: str = "",
    request_id: str = "",
    to_be_answered: bool = False,
) -> int:
    """Delete what the replay has written for the account and return how many documents were removed; again: 0.

    `on_batch` receives the number removed so far; the job document has it too. Whatever ends it half-way, call it
    again: the number is that of the whole roll back (`operations.rollback`, also for `to_be_answered`).
    Refused with JOB_NOT_FOUND; JOB_ALREADY_RUNNING, also while a halted run is still ending its processes; or
    ROLLBACK_FAILED.
    """
    with _noted(control, "rollback", company_sso_id, by, request_id, {"reason": reason}) as noted:
        AccountTopics.of(company_sso_id)
        job = _require(control, Action.ROLLBACK, company_sso_id)
        if job is not None:
            noted["job_id"] = job.job_id
        audit_log.append(
            control.database,
            "rollback",
            company_sso_id,
            who=by,
            outcome=audit_log.BEGUN,
            request_id=request_id,
            detail=noted,
        )
        try:
            removed = operations.rollback(
                control.database, company_sso_id, on_batch, by=by, to_be_answered=to_be_answered
            )
        except operations.RollbackRefusedError as error:
            raise RequestRefusedError(Refusal(RespCode.JOB_ALREADY_RUNNING, error.what, error.to_do)) from error
        except RollbackFailedError as error:
            raise RequestRefusedError(Refusal(RespCode.ROLLBACK_FAILED, error.what, error.to_do)) from error
        noted["records_removed"] = removed
        return removed


def request_task(
    control: Control,
    company_sso_id: str,
    kind: TaskKind,
    *,
    by: str,
    arguments: Mapping[str, Any] | None = None,
    request_id: str = "",
) -> Task:
    """Return a task that the next free runner does; its progress and result are in its document (`TaskStore.get`).

    `arguments`: verify and preflight take none; dlq_retry `{cause, audit_ids, force, reason}`, all of them optional;
    rollback `{reason}`. Refused with JOB_NOT_FOUND, JOB_ALREADY_RUNNING, ILLEGAL_TRANSITION or TASK_ALREADY_QUEUED.
    """
    AccountTopics.of(company_sso_id)
    action = _TASK_ACTIONS[kind]
    arguments = dict(arguments or {})
    if kind is TaskKind.PREFLIGHT and control.mapping_path:
        arguments.setdefault("mapping_path", control.mapping_path)
    with _noted(control, action.value, company_sso_id, by, request_id, _without_ids(arguments)) as noted:
        _require(control, action, company_sso_id)
        try:
            task = TaskStore(control.database).request(
                company_sso_id, kind, by=by, arguments=arguments, request_id=request_id
            )
        except TaskAlreadyQueuedError as error:
            raise RequestRefusedError(Refusal(RespCode.TASK_ALREADY_QUEUED, error.what, error.to_do)) from error
        noted["task_id"] = task.task_id
        return task


def set_flag(control: Control, company_sso_id: str, enabled: bool, *, by: str, request_id: str = "") -> Flag:
    """Turn the account's migration flag on or off and return it. A job in progress continues either way."""
    AccountTopics.of(company_sso_id)
    with _noted(control, "flag", company_sso_id, by, request_id, {"enabled": enabled}):
        return flags.write(control.database, company_sso_id, enabled, by)


def _require(control: Control, action: Action, company_sso_id: str) -> Job | None:
    """Return the account's latest job if the action is not refused by its status or the flag."""
    job = JobStore(control.database).latest(company_sso_id)
    flag = action is Action.TRIGGER and flags.read(control.database, company_sso_id).enabled
    refused = guards.why_not(action, company_sso_id, job.status if job else None, flag_enabled=flag)
    if job is None and action is Action.ROLLBACK and http_documents.are_known(control.database, company_sso_id):
        refused = None  # they came by HTTP
    if refused:
        raise RequestRefusedError(refused, {"job_id": job.job_id, "status": job.status.value} if job else None)
    return job


def _require_job(control: Control, action: Action, company_sso_id: str) -> Job:
    AccountTopics.of(company_sso_id)
    job = _require(control, action, company_sso_id)
    assert job is not None  # without a job these actions are refused
    return job


def _raced(company_sso_id: str) -> RequestRefusedError:
    return RequestRefusedError(
        Refusal(RespCode.JOB_ALREADY_RUNNING, f"another request for {company_sso_id} was first", "check its job")
    )


def _without_ids(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's arguments as the audit log has them: thousands of audit ids as their number."""
    return {
        name: f"{len(value):,} ids" if isinstance(value, list) and len(value) > 20 else value
        for name, value in arguments.items()
    }


@contextmanager
def _noted(
    control: Control,
    action: str,
    company_sso_id: str,
    by: str,
    request_id: str,
    detail: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Write a request's result to the audit log. Yields the detail to add to.

    What another process has changed meanwhile, and what the table of transitions forbids, becomes a refusal.
    """
    known = dict(detail)

    def note(outcome: str) -> None:
        audit_log.append(
            control.database, action, company_sso_id, who=by, outcome=outcome, request_id=request_id, detail=known
        )

    try:
        yield known
    except RequestRefusedError as error:
        note(error.resp_code.value)
        raise
    except JobAlreadyRunningError as error:
        note(RespCode.JOB_ALREADY_RUNNING.value)
        raise RequestRefusedError(Refusal(RespCode.JOB_ALREADY_RUNNING, error.what, error.to_do)) from error
    except (IllegalTransitionError, JobChangedError) as error:
        note(RespCode.ILLEGAL_TRANSITION.value)
        raise RequestRefusedError(Refusal(RespCode.ILLEGAL_TRANSITION, error.what, error.to_do)) from error
    except ReplayError as error:
        note(type(error).__name__)
        raise
    note(audit_log.OK)
