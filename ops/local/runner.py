"""One replay from the first check to the ledger: the processes of one account's job on this host.

Order of effects, and what a death between two of them costs:

1. checks: nothing is changed before they all pass.
2. the job document: from here on a second runner is refused by the database's unique index.
3. topics, references, begin markers, committed offsets: a resume repeats those that are not on file yet; a repeated
   begin marker is one more record that everybody passes over.
4. producer, processors, sinks: each takes up its work from what it had committed.
5. validation, then the job is completed. Dying before it, a resume finds every partition ended and validates.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from ops.control import kafka_admin, migrations, validation
from ops.control.jobs import Job, Ledger
from ops.control.store import JobAlreadyRunningError, JobStore, NewJob
from ops.local.processes import Supervised, Supervisor, child_environment, python_module
from ops.local.view import RunView
from producer import markers, references
from producer.survey import Survey, count_in_scope, survey
from schemas.codec import Codec
from schemas.connections import Connections
from schemas.errors import BadInputError, ReplayError
from schemas.mapping import SourceMapping, load
from schemas.registry import codec_for
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from sink.database import connect

HEARTBEAT_EVERY_S = 1.0
STALE_AFTER_S = 10.0  # without a heartbeat for so long, a job's runner is taken for dead
POLL_EVERY_S = 0.2
SINK_HALTED = 3  # exit code of a sink that halted its job
BAD_INPUT = 2  # exit code of a process that will not do better when started again


class InterruptedRunError(ReplayError):
    """Somebody asked the run to stop; it can be taken up again."""

    exit_code = 130


class HaltedError(ReplayError):
    """Too many records failed."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is done on this host."""

    mapping_path: str = ""
    partitions: int = 4
    processors: int = 1
    sinks: int = 1
    date_range_start: datetime | None = None
    resume_halted: bool = False
    home: Path = Path(".crm-replay")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run."""

    job: Job
    ledger: Ledger
    seconds: float  # from the start of the processes to the last end marker


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that has been checked before anything is changed."""

    connections: Connections
    kafka: Mapping[str, Any]
    mapping: SourceMapping
    survey: Survey
    store: JobStore
    database: Any
    topics: AccountTopics
    codec: Codec


def run_account(account: str, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay one account and return its ledger, which is also in the job document.

    Takes up a job whose runner has died. Raises BadInputError before anything is changed, HaltedError,
    InterruptedRunError (both can be resumed), or ReplayError if a process keeps dying.
    """
    topics = AccountTopics.of(account)
    connections.require("crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url")
    mapping = load(options.mapping_path or None)
    found = survey(connections.crm_audit_database_url, mapping, account, date_range_start=options.date_range_start)
    kafka = connections.kafka()
    admin = kafka_admin.client(kafka)
    database = connect(connections, app_name="crm-replay-runner")
    try:
        _require_migrations(database)
        codec = codec_for(connections.schema_registry_url)
        around = Surroundings(connections, kafka, mapping, found, JobStore(database), database, topics, codec)
        with _stop_on_signals() as stop:
            job = _open_job(account, options, around, view)
            heartbeat = _Heartbeat(around.store, job)
            with heartbeat:
                partitions = kafka_admin.ensure_topics(admin, topics, job.partitions)
                job = _prepare(job, partitions, around, view, heartbeat)
                return _work(job, options, around, view, stop)
    finally:
        database.client.close()


def _require_migrations(database: Any) -> None:
    missing = [step.name for step in migrations.status(database) if step.applied_at is None]
    if missing:
        raise BadInputError(
            f"MongoDB lacks {', '.join(missing)}", "make its collections and indexes: crm-replay migrate up"
        )


def _open_job(account: str, options: RunOptions, around: Surroundings, view: RunView) -> Job:
    """Return the account's job in progress: a new one, the next run of a completed one, or one taken up again."""
    store, latest = around.store, around.store.latest(account)
    new = NewJob(
        company_sso_id=account,
        partitions=options.partitions,
        top_audit_id=around.survey.top_audit_id,
        snapshot_xmax=around.survey.snapshot_xmax,
        cutoff=around.survey.cutoff,
        mapping_path=str(Path(options.mapping_path).resolve()) if options.mapping_path else "",
        mapping_sha256=_digest(around.mapping),
        records_total=around.survey.rows,
        triggered_by=f"crm-replay run on {socket.gethostname()}",
        date_range_start=options.date_range_start,
    )
    if latest is None or latest.status is JobStatus.ROLLED_BACK:
        return store.create(new)
    if latest.status is JobStatus.COMPLETED:
        view.note(f"{account} has been replayed before; what is there already is skipped as a duplicate")
        return store.rerun(latest.job_id, new)
    if latest.mapping_sha256 != new.mapping_sha256:
        raise BadInputError(
            f"the job of {account} was started with another source mapping ({latest.mapping_path or 'the default'})",
            "give the same --mapping to take it up again",
        )
    if latest.status is JobStatus.IN_PROGRESS:
        claimed = store.claim(latest, STALE_AFTER_S)
        if claimed is None:
            raise JobAlreadyRunningError(
                f"a run of {account} is in progress (last heard of {latest.heartbeat_at:%H:%M:%S} UTC)",
                f"wait for it; a run whose process has died can be taken up after {STALE_AFTER_S:.0f} s",
            )
        view.note(f"taking up the job of {account} where it was: {latest.records_migrated:,} migrated so far")
        return claimed
    if not options.resume_halted:
        raise BadInputError(
            f"the job of {account} is {latest.status} ({latest.error or 'no reason given'})",
            f"when the cause is gone: crm-replay resume --account {account}",
        )
    return store.transition(latest.job_id, latest.status, JobStatus.IN_PROGRESS)


def _digest(mapping: SourceMapping) -> str:
    return sha256(mapping.model_dump_json().encode()).hexdigest()


def _prepare(job: Job, partitions: int, around: Surroundings, view: RunView, heartbeat: "_Heartbeat") -> Job:
    """Publish references and begin markers and commit where both groups begin, unless that is on file."""
    kafka, topics, store = around.kafka, around.topics, around.store
    published = references.publish(
        around.connections.crm_audit_database_url,
        around.mapping,
        job.company_sso_id,
        kafka=kafka,
        mongo=around.database,
        topics=topics,
        codec=around.codec,
    )
    view.note(
        f"references published: {published.contacts:,} contacts, {published.users:,} users, "
        f"{published.referents:,} referents"
    )
    if not job.begin_offsets:
        # Nobody has worked for this run yet. Dying before its begin offsets are on file repeats these two lines.
        outcomes_end = kafka_admin.end_offsets(kafka, topics.outcomes, partitions)
        kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, outcomes_end)
        begin_offsets = markers.begin(
            kafka, topics.replay, partitions, job_id=job.job_id, run=job.run, codec=around.codec
        )
        job = store.set_begin_offsets(job, begin_offsets, partitions)
        heartbeat.job = job
    begin = [offset + 1 for offset in job.begin_offsets]
    committed = kafka_admin.committed_offsets(kafka, topics.processors_group, topics.replay, len(begin))
    wanted = [max(pair) for pair in zip(committed, begin, strict=True)]
    if wanted != committed:  # a group that has not come to this run's stretch yet starts behind its begin marker
        kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, wanted)
    return job


def _work(job: Job, options: RunOptions, around: Surroundings, view: RunView, stop: threading.Event) -> RunResult:
    """Run the processes until every end marker has passed the sink, then validate."""
    store = around.store
    started = time.monotonic()
    with Supervisor() as supervisor:
        for process in _processes(job, options, around.connections):
            supervisor.add(process)
        saved_at = 0.0
        while True:
            halted = any(p.returncode == SINK_HALTED for p in supervisor.check())
            totals = store.aggregate_progress(job)
            view.progress(totals.accounted, job.records_total, dict(totals.skipped), totals.failed_total)
            if time.monotonic() - saved_at >= HEARTBEAT_EVERY_S:
                job = store.save_totals(job, totals)
                saved_at = time.monotonic()
            if halted or job.status is JobStatus.HALTED:
                raise HaltedError(
                    f"the job is halted: {store.get(job.job_id).error}",  # type: ignore[union-attr]
                    f"see the dead letters; then crm-replay resume --account {job.company_sso_id}",
                )
            if totals.partitions_ended >= job.partitions:
                break
            if stop.is_set():
                raise InterruptedRunError("interrupted", "the same command goes on from here")
            time.sleep(POLL_EVERY_S)
        seconds = time.monotonic() - started
    view.close()
    return RunResult(*_conclude(job, around), seconds)


def _conclude(job: Job, around: Surroundings) -> tuple[Job, Ledger]:
    """Validate, write the verdict into the job document and return both."""
    store, totals = around.store, around.store.aggregate_progress(job)
    source = count_in_scope(
        around.connections.crm_audit_database_url,
        around.mapping,
        job.company_sso_id,
        top_audit_id=job.top_audit_id,
        cutoff=job.cutoff,
    )
    ledger = validation.validate(around.database, job.company_sso_id, totals, source.rows)
    job = store.save_totals(job, totals, accuracy_pct=ledger.accuracy_pct)
    if ledger.balanced and ledger.documents_agree:
        return store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED), ledger
    reason = (
        f"{ledger.source_rows} source rows, {ledger.accounted} accounted for; "
        f"{ledger.documents_expected} documents expected, {ledger.documents} found; "
        f"crm-replay verify --account {job.company_sso_id} names the rows"
    )
    return store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED, reason), ledger


def _processes(job: Job, options: RunOptions, connections: Connections) -> Iterator[Supervised]:
    """Yield every process of the job on this host."""
    logs = options.home / "logs" / AccountTopics.of(job.company_sso_id).replay.rsplit(".", 1)[1] / f"run-{job.run}"
    addresses = {name.upper(): str(value) for name, value in connections.model_dump().items() if value}
    shared = {**addresses, "CRM_REPLAY_JOB": job.replay_job().model_dump_json()}

    def process(role: str, number: int, *, finishes: bool = False) -> Supervised:
        name = f"{role}-{number}"
        worker = f"{socket.gethostname()}-{name}"
        # A processor keeps its place in the group over a restart. A sink gets none: librdkafka cannot give it back at a
        # graceful end, and the next run must find an empty group to set its offsets.
        env = child_environment(**shared, CRM_REPLAY_WORKER=worker)
        return Supervised(
            name,
            python_module(role),
            env,
            logs / f"{name}.log",
            finishes=finishes,
            final_codes=frozenset({SINK_HALTED}) if role == "sink" else frozenset(),
            hopeless_codes=frozenset({BAD_INPUT}),
        )

    yield process("producer", 0, finishes=True)
    for number in range(options.processors):
        yield process("processors", number)
    for number in range(options.sinks):
        yield process("sink", number)


class _Heartbeat:
    """Tells the job document every second that this runner lives; lets go of it at the end."""

    def __init__(self, store: JobStore, job: Job) -> None:
        self.job = job
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "_Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()
        self._store.release(self.job)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_EVERY_S):
            try:
                self._store.heartbeat(self.job)
            except Exception:  # noqa: S112 - an outage: the next beat may get through, the main thread reports
                continue


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set; a second one ends at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
