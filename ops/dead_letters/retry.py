"""Retries of dead letters: their rows, sent through the topology again.

Order of effects of a retry: the attempt is noted, then the rows are replayed in a job of their own, then the outcome is
noted. Dying in between leaves an attempt without outcome, which counts as a failed one: a row that kills its
runner must not be retried indefinitely.
"""

import getpass
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ops.jobs.documents import rows_with_document
from ops.jobs.letters import Outcome, grouped
from ops.jobs.store import JobAlreadyRunningError, JobStore
from ops.kafka.rows import Topics
from ops.progress import RunView
from schemas.collections import RETRIES
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.mongodb import Database
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord
from schemas.topics import AccountTopics


def retry_rows(
    account: str,
    audit_ids: Sequence[int],
    reason: str,
    database: Database,
    topics: Topics,
    replay: Callable[[Sequence[int]], Any],
    view: RunView,
) -> tuple[Any, dict[int, Outcome]]:
    """Replay the rows, note the attempt, and return the run's result and what each row has ended as.

    `replay` is `ops.runner.replay.run_selected` with everything but the ids. What it raises is noted and raised on.
    """
    started_at = datetime.now(UTC).replace(microsecond=0)
    retries = database[RETRIES]
    attempt = retries.insert_one(
        {
            "company_sso_id": account,
            "started_at": started_at,
            "finished_at": None,
            "who": f"{_user()}@{socket.gethostname()}",
            "reason": reason,
            "audit_ids": list(audit_ids),
            "job_id": None,
            "run": 0,
            "outcome": "started",
            "outcomes": [],
            "error": None,
        }
    ).inserted_id

    def close(outcome: str, job: Any, outcomes: Mapping[int, Outcome], error: str | None) -> None:
        ended = {"finished_at": datetime.now(UTC), "outcome": outcome, "outcomes": grouped(outcomes), "error": error}
        named = {"job_id": job.job_id, "run": job.run} if job is not None else {}
        retries.update_one({"_id": attempt}, {"$set": {**ended, **named}})

    try:
        result = replay(audit_ids)
    except (BadInputError, ServiceUnreachableError, JobAlreadyRunningError):
        retries.delete_one({"_id": attempt})  # nothing was tried
        raise
    except ReplayError as error:
        ours = [job for job in JobStore(database).jobs(account, 5) if job.partial and job.created_at >= started_at]
        job = ours[0] if ours else None
        reached = outcomes_of(job, audit_ids, account, topics, database, view) if job is not None else {}
        reached = {audit_id: outcome for audit_id, outcome in reached.items() if outcome[0] != "gone"}
        close(re.sub(r"Error$", "", type(error).__name__).lower(), job, reached, str(error))
        raise
    outcomes = outcomes_of(result.job, audit_ids, account, topics, database, view)
    close("done", result.job, outcomes, None)
    return result, outcomes


def outcomes_of(
    job: Any, audit_ids: Sequence[int], account: str, topics: Topics, database: Database, view: RunView
) -> dict[int, Outcome]:
    """Return each row's outcome in a job's run: migrated, skipped or failed, with the reason; else `gone`."""
    names = AccountTopics.of(account)
    outcomes: dict[int, Outcome] = {}
    begin = topics.offsets_at(names.outcomes, job.started_at)
    logs: set[int] = set()
    for found in topics.find(names.outcomes, audit_ids, view, begin):
        record = found.record
        if isinstance(record, AuditEvent) or record.run != job.run:
            continue
        if isinstance(record, SkippedRecord):
            outcomes[record.audit_id] = ("skipped", record.reason)
        elif isinstance(record, ActivityLog):
            logs.add(record.audit_id)
    for audit_id in rows_with_document(database, account, logs):
        outcomes[audit_id] = ("migrated", "")
    for found in topics.find(names.dead_letters, audit_ids, view):
        record = found.record
        if isinstance(record, DeadLetter) and record.run == job.run:
            outcomes[record.audit_id] = ("failed", record.cause)
    gone = dict.fromkeys(audit_ids, ("gone", "no row of the account in scope any more"))
    return {**gone, **outcomes}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id, as in some containers
        return "unknown"
