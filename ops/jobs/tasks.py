"""Work that a runner does on request and that is not a job: a verification, a preflight, a retry, a roll back.

`crm_replay_tasks` holds one document each. An account has at most one of a kind queued or running; the database
enforces it. A runner that has claimed a task renews its lease; when it stops renewing, another restarts the task,
so every kind has to be repeatable. Leases count by the server's clock.
"""

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from schemas.collections import TASKS
from schemas.errors import ReplayError
from schemas.process.mongodb import Database, Document, Documents
from sink.indexes import ONE_ACTIVE_TASK

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
ATTEMPTS_MAX = 3  # a task that kills its runner must not be retried indefinitely
LOOK_AT_MAX = 50


class TaskKind(StrEnum):
    """What is to be done. Stored: add values, never rename one."""

    VERIFY = "verify"
    PREFLIGHT = "preflight"
    DLQ_RETRY = "dlq_retry"
    ROLLBACK = "rollback"


class TaskStatus(StrEnum):
    """State of a task."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class TaskAlreadyQueuedError(ReplayError):
    """The account has a task of this kind that is not over."""


class TaskLostError(ReplayError):
    """The task is not this runner's any more: another has taken it over, or it has ended."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task. Times are aware UTC; `progress` has `done`, `total` and `text` as far as they are known."""

    task_id: str
    company_sso_id: str
    kind: TaskKind
    status: TaskStatus
    arguments: Mapping[str, Any]
    requested_by: str
    requested_at: dt.datetime
    request_id: str = ""
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: str | None = None
    attempts: int = 0
    owner: str | None = None


class TaskStore:
    """The tasks of all accounts."""

    def __init__(self, database: Database) -> None:
        """`database` is the customer data platform's; its migrations have been applied."""
        aware: CodecOptions[Document] = CodecOptions(tz_aware=True)
        self._tasks: Documents = database.get_collection(TASKS, codec_options=aware)

    def request(
        self, company_sso_id: str, kind: TaskKind, *, by: str, arguments: Mapping[str, Any], request_id: str = ""
    ) -> Task:
        """Queue a task and return it. Raises TaskAlreadyQueuedError."""
        document: Document = {
            "_id": uuid.uuid4().hex,
            "company_sso_id": company_sso_id,
            "kind": kind.value,
            "status": TaskStatus.QUEUED.value,
            "active": True,
            "arguments": dict(arguments),
            "requested_by": by,
            "requested_at": _now(),
            "request_id": request_id,
            "started_at": None,
            "finished_at": None,
            "progress": {},
            "result": None,
            "error": None,
            "attempts": 0,
            "owner": None,
            "lease_until": EPOCH,
        }
        try:
            self._tasks.insert_one(document)
        except DuplicateKeyError as error:
            raise TaskAlreadyQueuedError(
                f"a {kind.value} of {company_sso_id} is queued or running", "wait for it"
            ) from error
        return task_of(document)

    def get(self, task_id: str) -> Task | None:
        """Return a task."""
        document = self._tasks.find_one({"_id": task_id})
        return task_of(document) if document else None

    def tasks(self, company_sso_id: str, limit: int = 20) -> list[Task]:
        """Return the account's tasks, the last requested first."""
        found = self._tasks.find({"company_sso_id": company_sso_id}).sort("requested_at", DESCENDING).limit(limit)
        return [task_of(document) for document in found]

    def claim_next(self, owner: str, lease_s: float) -> Task | None:
        """Return the task that has waited longest, now this owner's; None if there is none to be had.

        One whose runner has fallen silent is had again; after ATTEMPTS_MAX such runners it is marked failed instead.
        """
        free = {"active": True, "$expr": {"$lt": ["$lease_until", "$$NOW"]}}
        waiting = self._tasks.find(free, {"attempts": 1}, hint=ONE_ACTIVE_TASK.name)
        for candidate in waiting.sort("requested_at", 1).limit(LOOK_AT_MAX):
            key = {"_id": candidate["_id"], **free}
            if candidate["attempts"] >= ATTEMPTS_MAX:
                fields = _ended(TaskStatus.FAILED, {}, f"{ATTEMPTS_MAX} runners have died during it, or lost it")
                self._tasks.update_one(key, {"$set": fields})
                continue
            claimed = self._tasks.find_one_and_update(
                key,
                [
                    {
                        "$set": {
                            "status": TaskStatus.RUNNING.value,
                            "owner": owner,
                            "lease_until": _lease_end(lease_s),
                            "attempts": {"$add": ["$attempts", 1]},
                            "started_at": "$$NOW",
                            "progress": {"$literal": {}},
                        }
                    }
                ],
                return_document=ReturnDocument.AFTER,
            )
            if claimed is not None:
                return task_of(claimed)
        return None

    def renew(self, task: Task, lease_s: float, progress: Mapping[str, Any] | None = None) -> None:
        """Renew the task's lease and save its progress. Raises TaskLostError."""
        update: Document = {"lease_until": _lease_end(lease_s)}
        if progress is not None:
            update["progress"] = {"$literal": dict(progress)}
        if not self._tasks.update_one(_mine(task), [{"$set": update}]).matched_count:
            raise TaskLostError(f"{task.kind} of {task.company_sso_id} has gone to another runner", "nothing is lost")

    def finish(self, task: Task, result: Mapping[str, Any] | None, error: str | None = None) -> None:
        """End the task: done with its result, or failed with an error. Raises TaskLostError."""
        status = TaskStatus.FAILED if error else TaskStatus.DONE
        if not self._tasks.update_one(_mine(task), {"$set": _ended(status, result, error)}).matched_count:
            raise TaskLostError(f"{task.kind} of {task.company_sso_id} has gone to another runner", "nothing is lost")

    def give_back(self, task: Task) -> None:
        """Let another runner have the task at once; this attempt does not count."""
        fields = {"status": TaskStatus.QUEUED.value, "owner": None, "lease_until": EPOCH}
        self._tasks.update_one(_mine(task), {"$set": fields, "$inc": {"attempts": -1}})


def _mine(task: Task) -> Document:
    # The attempt is the fencing token: the same owner may meet a task of its own again after having lost it.
    return {"_id": task.task_id, "active": True, "owner": task.owner, "attempts": task.attempts}


def _ended(status: TaskStatus, result: Mapping[str, Any] | None, error: str | None) -> Document:
    return {
        "status": status.value,
        "active": False,
        "finished_at": _now(),
        "result": None if result is None else dict(result),
        "error": error,
        "lease_until": EPOCH,
    }


def _lease_end(lease_s: float) -> Document:
    return {"$add": ["$$NOW", int(lease_s * 1000)]}


def task_of(document: Mapping[str, Any]) -> Task:
    """Return the task in a stored document."""
    return Task(
        task_id=document["_id"],
        company_sso_id=document["company_sso_id"],
        kind=TaskKind(document["kind"]),
        status=TaskStatus(document["status"]),
        arguments=document["arguments"],
        requested_by=document["requested_by"],
        requested_at=document["requested_at"],
        request_id=document["request_id"],
        started_at=document["started_at"],
        finished_at=document["finished_at"],
        progress=document["progress"],
        result=document["result"],
        error=document["error"],
        attempts=document["attempts"],
        owner=document["owner"],
    )


def _now() -> dt.datetime:
    now = dt.datetime.now(dt.UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
