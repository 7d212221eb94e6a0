"""I/O: what the console shows, read from MongoDB and Kafka. Everything here blocks; the API calls it in threads."""

import datetime as dt
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import DESCENDING

from ops.control.backend import Backend
from ops.control.console_models import (
    AccountDetail,
    AccountRow,
    Action,
    AuditEntry,
    Flag,
    LetterDetail,
    LetterPage,
    LetterSource,
    LetterView,
    Pace,
    Rollback,
    Stage,
    StageName,
    TaskView,
)
from ops.control.pace import PaceKeeper
from ops.control.status_reader import NOT_STARTED, view_of
from ops.jobs import audit_log, flags, guards
from ops.jobs.documents import rows_with_document
from ops.jobs.jobs import Job
from ops.jobs.letters import Letter, Listed, State, judge, last_runs, letter_of, moment, once, payload_of
from ops.jobs.store import job_of
from ops.jobs.tasks import Task, TaskKind, TaskStatus, TaskStore
from ops.kafka.lag import FRESH_S
from ops.kafka.topics import records, spans
from schemas.codec import Codec
from schemas.collections import CHECKPOINTS, JOBS, RETRIES
from schemas.errors import UndecodableRecordError
from schemas.process.mongodb import Document, Documents
from schemas.process.registry import codec_for
from schemas.records import DeadLetter
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus

HISTORY_MAX = 20
TASKS_MAX = 50
ACCOUNTS_MAX = 10_000  # with a job or a flag; a console for more needs a search of its own
LETTERS_MAX = 2_000  # the newest so many of an account are read
LETTERS_FRESH_S = 5.0
RESTING_FRESH_S = 10.0  # of the lag of an account of which no job is in progress
ROWS_FRESH_S = 0.9
ROWS_WHOLE_EVERY_S = 10.0
CLOCKS_DIFFER_S = 5.0
ROLLBACK_STALLED_S = 30.0


@dataclass(frozen=True, slots=True)
class Letters:
    """An account's dead letters as they were a moment ago; the newest last."""

    listed: tuple[Listed, ...]
    truncated: bool


class ConsoleState:
    """Answers the console's questions; safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        """`backend` has the connections."""
        self._backend = backend
        self._database = backend.database
        self._tasks = TaskStore(backend.database)
        self._pace = PaceKeeper()
        self._pace_lock = threading.Lock()
        self._accounts = _Accounts(backend)
        self._letters: dict[str, tuple[float, Letters]] = {}
        self._letters_lock = threading.Lock()
        self._codec: Codec | None = None

    # ---- accounts ----------------------------------------------------------------------------------------------------

    def accounts(self) -> list[AccountRow]:
        """Return every account that has a job or a flag, by its id; at most a second old."""
        return self._accounts.rows()

    def account(self, account: str) -> AccountDetail:
        """Return all that is shown of an account, also of an unknown one."""
        now = _now()
        history = self._backend.store.jobs(account, HISTORY_MAX)
        job = _latest(history) or (self._backend.store.latest(account) if len(history) == HISTORY_MAX else None)
        flag = flags.read(self._database, account)
        tasks = self._tasks.tasks(account, TASKS_MAX)
        over = [task for task in tasks if task.status in (TaskStatus.DONE, TaskStatus.FAILED)]
        return AccountDetail(
            company_sso_id=account,
            status=job.status if job else NOT_STARTED,
            flag=Flag(enabled=flag.enabled, changed_at=flag.changed_at, changed_by=flag.changed_by),
            job=view_of(job, now) if job else None,
            history=[view_of(former, now) for former in history],
            pace=self._pace_of(job, now) if job and job.status is JobStatus.IN_PROGRESS else None,
            stages=self._stages(job) if job else [],
            preflight=_last(over, TaskKind.PREFLIGHT),
            verification=_last(over, TaskKind.VERIFY),
            tasks=[task_view(task) for task in tasks if task not in over],
            rollback=_rollback_of(job, now) if job else None,
            actions=_actions(account, job, flag.enabled, tasks),
        )

    def _pace_of(self, job: Job, now: dt.datetime) -> Pace:
        accounted = job.records_migrated + job.records_skipped + job.records_failed
        with self._pace_lock:
            self._pace.note(job.job_id, job.run, accounted, time.monotonic())
            rate = self._pace.rate(job.job_id, job.run, job.records_total)
        seconds = (now - job.started_at).total_seconds()
        return Pace(
            rows_per_s=_rounded(rate.rows_per_s),
            rows_per_s_average=_rounded(accounted / seconds) if seconds > 0 and accounted else None,
            eta_s=_rounded(rate.eta_s) if job.records_total else None,  # not counted yet: the runner has just begun
        )

    def _stages(self, job: Job) -> list[Stage]:
        account = job.company_sso_id
        topics = AccountTopics.of(account)
        running = job.status is JobStatus.IN_PROGRESS
        lag = self._backend.lag.of(account, FRESH_S if running else RESTING_FRESH_S)
        read = sum(
            int(found.get("rows", 0))
            for found in self._database[CHECKPOINTS].find({"job_id": job.job_id, "run": job.run}, {"rows": 1})
        )
        accounted = job.records_migrated + job.records_skipped + job.records_failed
        return [
            Stage(name=StageName.PRODUCER, topic=None, done=read, total=job.records_total, waiting=None),
            Stage(name=StageName.PROCESSORS, topic=topics.replay, done=None, total=None, waiting=lag.processors),
            Stage(
                name=StageName.SINK, topic=topics.outcomes, done=accounted, total=job.records_total, waiting=lag.sink
            ),
            Stage(
                name=StageName.DEAD_LETTERS, topic=topics.dead_letters, done=None, total=None, waiting=lag.dead_letters
            ),
        ]

    def audit_entries(self, account: str | None, limit: int) -> list[AuditEntry]:
        """Return who did what, the newest first."""
        return [
            AuditEntry(
                at=entry.at,
                who=entry.who,
                action=entry.action,
                company_sso_id=entry.company_sso_id,
                outcome=entry.outcome,
                detail=dict(entry.detail),
            )
            for entry in audit_log.entries(self._database, account, limit)
        ]

    def note_letter_read(self, account: str, offset: int, who: str, request_id: str) -> None:
        """Record in the audit log that a user has read a payload."""
        audit_log.append(self._database, "dlq-show", account, who=who, request_id=request_id, detail={"offset": offset})

    # ---- dead letters ------------------------------------------------------------------------------------------------

    def letters_page(self, account: str, cause: str | None, before: int | None, limit: int) -> LetterPage:
        """Return dead letters, the newest first, those below the offset `before`."""
        letters = self._letters_of(account)
        wanted = [each for each in letters.listed if cause is None or each.letter.cause == cause]
        states = {state.value: sum(1 for each in wanted if each.state is state) for state in State}
        causes: dict[str, int] = {}
        for each in letters.listed:
            causes[each.letter.cause] = causes.get(each.letter.cause, 0) + 1
        below = [each for each in reversed(wanted) if before is None or each.letter.offset < before]
        shown = below[:limit]
        return LetterPage(
            company_sso_id=account,
            total=len(wanted),
            states=states,
            causes=causes,
            letters=[letter_view(each) for each in shown],
            next_cursor=str(shown[-1].letter.offset) if len(below) > len(shown) else None,
            truncated=letters.truncated,
        )

    def letter(self, account: str, offset: int) -> LetterDetail | None:
        """Return a dead letter with its payload, or None if Kafka has none there any more."""
        found = next((each for each in self._letters_of(account).listed if each.letter.offset == offset), None)
        if found is None:
            return None
        topic = AccountTopics.of(account).dead_letters
        codec = self._codec_now()
        reading = records(
            self._backend.connections.kafka(), topic, dict.fromkeys(spans_of(self._backend, topic), offset)
        )
        try:
            value = next((value for _, at, value in reading if at == offset), None)
        finally:
            reading.close()  # type: ignore[attr-defined]
        if value is None:
            return None
        try:
            record = codec.decode_as(DeadLetter, value)
            key, payload = record.key.decode("utf-8", "replace"), payload_of(record.payload, codec)
        except UndecodableRecordError:
            key, payload = "", payload_of(value, codec)
        return LetterDetail(**letter_view(found).model_dump(), key=key, payload=payload)

    def _letters_of(self, account: str) -> Letters:
        """Return the account's letters, read again after a few seconds. One account at a time is read."""
        with self._letters_lock:
            found = self._letters.get(account)
            if found is not None and time.monotonic() - found[0] < LETTERS_FRESH_S:
                return found[1]
            letters = self._read_letters(account)
            self._letters = {account: (time.monotonic(), letters)}  # of one account only: they may be thousands
            return letters

    def _read_letters(self, account: str) -> Letters:
        topic = AccountTopics.of(account).dead_letters
        held = spans_of(self._backend, topic)
        begin = {partition: max(span.low, span.end - LETTERS_MAX) for partition, span in held.items()}
        codec = self._codec_now()
        kafka = self._backend.connections.kafka()
        letters = once(letter_of(offset, value, codec) for _, offset, value in records(kafka, topic, begin))
        truncated = any(begin[partition] > span.low for partition, span in held.items())
        return Letters(tuple(judge(letters, self._resolved(account, letters))), truncated)

    def _resolved(self, account: str, letters: list[Letter]) -> dict[int, str]:
        """Return why rows need no retry any more, as far as MongoDB shows: a document, or a retry that skipped it.

        The command line also looks through the outcomes topic, which takes too long for a page.
        """
        failed_in = last_runs(letters)
        resolved = dict.fromkeys(rows_with_document(self._database, account, failed_in), "it has a document")
        for attempt in self._database[RETRIES].find({"company_sso_id": account}) if failed_in else ():
            for group in attempt.get("outcomes", ()):
                if group["outcome"] == "skipped":
                    for audit_id in group["audit_ids"]:
                        if attempt.get("run", 0) > failed_in.get(audit_id, attempt.get("run", 0)):
                            resolved.setdefault(audit_id, f"skipped as {group['why']} by run {attempt['run']}")
        return resolved

    def _codec_now(self) -> Codec:
        if self._codec is None:
            self._codec = codec_for(self._backend.connections.schema_registry_url)
        return self._codec


class _Accounts:
    """All accounts with their last jobs: read whole now and then, in between only what has changed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        aware: CodecOptions[Document] = CodecOptions(tz_aware=True)
        self._jobs: Documents = backend.database.get_collection(JOBS, codec_options=aware)
        self._lock = threading.Lock()
        self._latest: dict[str, Job] = {}
        self._read_at = self._whole_at = float("-inf")
        self._changed_since = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._rows: list[AccountRow] = []

    def rows(self) -> list[AccountRow]:
        """Return the rows, at most a second old."""
        with self._lock:
            if time.monotonic() - self._read_at >= ROWS_FRESH_S:
                self._read()
            return self._rows

    def _read(self) -> None:
        now = _now()
        if time.monotonic() - self._whole_at >= ROWS_WHOLE_EVERY_S:
            self._latest = {job.company_sso_id: job for job in self._latest_of_all()}
            self._whole_at = time.monotonic()
        else:
            changed = self._jobs.distinct("company_sso_id", {"updated_at": {"$gte": self._changed_since}})
            for account in changed:
                job = self._backend.store.latest(account)
                if job is not None:
                    self._latest[account] = job
        # What was written during this read, by a clock that is a little behind, is read again.
        self._changed_since = now - dt.timedelta(seconds=CLOCKS_DIFFER_S)
        enabled = {flag.company_sso_id: flag.enabled for flag in flags.read_all(self._backend.database, ACCOUNTS_MAX)}
        self._rows = [
            AccountRow(
                company_sso_id=account,
                flag_enabled=enabled.get(account, False),
                status=job.status if (job := self._latest.get(account)) else NOT_STARTED,
                job=view_of(job, now) if job else None,
            )
            for account in sorted({*self._latest, *enabled})
        ]
        self._read_at = time.monotonic()

    def _latest_of_all(self) -> list[Job]:
        found = self._jobs.aggregate(
            [
                {"$match": {"$or": [{"partial": {"$ne": True}}, {"status": JobStatus.IN_PROGRESS.value}]}},
                {"$addFields": {"running": {"$eq": ["$status", JobStatus.IN_PROGRESS.value]}}},
                {"$sort": {"running": DESCENDING, "started_at": DESCENDING, "run": DESCENDING}},
                {"$group": {"_id": "$company_sso_id", "job": {"$first": "$$ROOT"}}},
                {"$limit": ACCOUNTS_MAX},
            ],
            allowDiskUse=True,
        )
        return [job_of(group["job"]) for group in found]


def spans_of(backend: Backend, topic: str) -> Mapping[int, Any]:
    """Return the offsets that each partition of a topic holds; raises BadInputError if no Kafka is configured."""
    backend.connections.require("kafka_bootstrap_servers")
    return spans(backend.connections.kafka(), topic)


def task_view(task: Task) -> TaskView:
    """Return a task as the console shows it."""
    return TaskView(
        task_id=task.task_id,
        company_sso_id=task.company_sso_id,
        kind=task.kind.value,
        status=task.status.value,
        requested_by=task.requested_by,
        requested_at=task.requested_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
        progress=dict(task.progress),
        result=None if task.result is None else dict(task.result),
        error=task.error,
    )


def letter_view(listed: Listed) -> LetterView:
    """Return a dead letter as the console lists it."""
    letter = listed.letter
    return LetterView(
        offset=letter.offset,
        audit_id=letter.audit_id or None,
        cause=letter.cause,
        detail=letter.detail,
        failed_at=moment(letter.failed_at_us),
        run=letter.run,
        source=LetterSource(topic=letter.source_topic, partition=letter.source_partition, offset=letter.source_offset),
        payload_bytes=letter.payload_bytes,
        failures=listed.failures,
        repeats=letter.repeats,
        state=listed.state.value,
        why=listed.why,
    )


def _latest(history: list[Job]) -> Job | None:
    running = (job for job in history if job.status is JobStatus.IN_PROGRESS)
    return next(running, None) or next((job for job in history if not job.partial), None)


def _last(over: list[Task], kind: TaskKind) -> TaskView | None:
    return next((task_view(task) for task in over if task.kind is kind), None)


def _rollback_of(job: Job, now: dt.datetime) -> Rollback | None:
    found = job.rollback
    if not found or found.get("finished_at") is not None:
        return None
    silent_s = (now - found["updated_at"]).total_seconds()
    return Rollback(
        removed=found["removed"],
        remaining=found["remaining"],
        started_at=found.get("started_at", found["updated_at"]),
        by=found["by"],
        stalled=silent_s > ROLLBACK_STALLED_S,
    )


_TASK_OF = {
    guards.Action.VERIFY: TaskKind.VERIFY,
    guards.Action.PREFLIGHT: TaskKind.PREFLIGHT,
    guards.Action.DLQ_RETRY: TaskKind.DLQ_RETRY,
}


def _actions(account: str, job: Job | None, flag_enabled: bool, tasks: list[Task]) -> list[Action]:
    active = {task.kind for task in tasks if task.status in (TaskStatus.QUEUED, TaskStatus.RUNNING)}
    actions = []
    for action in guards.Action:
        refused = guards.why_not(action, account, job.status if job else None, flag_enabled=flag_enabled)
        why_not = None if refused is None else f"{refused.what}: {refused.to_do}" if refused.to_do else refused.what
        if why_not is None and _TASK_OF.get(action) in active:
            why_not = "one is queued or running"
        actions.append(Action(name=action.value, allowed=why_not is None, why_not=why_not))
    return actions


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
