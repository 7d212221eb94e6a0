"""One replay from the first check to the ledger: the processes of one account's job on this host.

Order of effects, and what a death between two of them costs:

1. checks: nothing is changed before they all pass.
2. the job document: from here on a second runner is refused by the database's unique index. A job that was asked for
   over HTTP is there already and is claimed.
3. topics, references, begin markers, committed offsets: a resume repeats those that are not on file yet; a repeated
   begin marker is one more record that everybody passes over.
4. producer, processors, sinks: each takes up its work from what it had committed.
5. enrichment of the association logs (ops.runner.enrichment): a resume continues it.
6. validation, then the job is completed. Dying before it, a resume finds every partition ended and validates.

The runner holds the job under a lease. One that cannot renew it stops its processes before the lease runs out, and
starts them again if the job is still its own. One that was frozen and wakes up too late finds itself fenced: its number
no longer counts for the job document, nor its snapshot's for the cursors; its processors and sinks are members of the
same groups as its successor's, where Kafka gives each partition to one.
"""

import os
import signal
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pymongo
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from pymongo.errors import ConnectionFailure, PyMongoError

from ops.jobs import audit_log, http_documents, migrations, operations, validation
from ops.jobs.jobs import LEASE_S, IllegalTransitionError, Job, Ledger
from ops.jobs.migrations import MigrationRefusedError
from ops.jobs.store import JobAlreadyRunningError, JobChangedError, JobStore, LeaseLostError, NewJob
from ops.kafka import admin as kafka_admin
from ops.kafka.rows import Topics
from ops.progress import RunView
from ops.runner import repairs
from ops.runner.forkserver import ForkServer
from ops.runner.processes import (
    ProcessGaveUpError,
    Supervised,
    Supervisor,
    child_environment,
    python_module,
    require_writable,
)
from producer import markers, references
from producer.audits import AuditReader, Limits, resolve
from producer.audits import connect as db_connect
from producer.checkpoint import Checkpoint
from producer.cursor import EARLIEST, Gap, IdRange
from producer.survey import Survey, UnreplayableIdsError, count_in_scope, survey
from producer.visibility import require_whole_tables, tables_read
from schemas.codec import Codec
from schemas.collections import JOBS
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.exposition import of_children
from schemas.process.registry import codec_for
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics
from schemas.vocabulary import ExitCode, JobStatus
from sink.database import connect, open_database
from sink.failure_rate import what_to_do
from sink.halting import JobGate
from sink.identity import Identities, ids_of, shift_of, unlike, without
from sink.job_counts import present
from sink.progress import RunTotals

RENEW_EVERY_S = 1.0
ANSWER_MAX_S = 3.0  # of MongoDB while workers run: whoever waits for longer would sleep through the end of the lease
QUICK_STOP_S = 2.0
SETTLE_MAX_S = 10.0  # of MongoDB, for the last counts of a run that is ending anyway
# Without a renewal for so long the processes are stopped: noticing and stopping has to fit into the rest of the lease.
SILENCE_MAX_S = LEASE_S - ANSWER_MAX_S - QUICK_STOP_S - 1.0
SAVE_EVERY_S = 1.0
ATTEMPTS_MAX = 5  # of runners, in a row, that did not get on with a job
PAUSE_MAX_S = 60.0  # between them
CLAIM_PATIENCE_S = 20.0  # for the runner of a job that was halted to end its processes, before a resume
POLL_EVERY_S = 0.2
POLL_AT_FIRST_S = 0.05  # a small account is over before long, and its end should not have to wait to be seen
AT_FIRST_S = 5.0
VALIDATIONS_MAX = 5  # while others send documents by HTTP
OUTAGE_MAX_S = 300.0  # of MongoDB; its sinks wait for ever, but a run that nobody can follow is no use


class InterruptedRunError(ReplayError):
    """Somebody asked the run to stop; it can be taken up again."""

    exit_code = ExitCode.INTERRUPTED


class HaltedError(ReplayError):
    """Too many records failed."""


class OutageError(ReplayError):
    """A server was away for too long; the job can be taken up."""


class SilentError(Exception):
    """The lease has not been renewed for too long; whether it is still ours shows when the database answers."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is done on this host."""

    mapping_path: str = ""
    partitions: int = 4
    processors: int = 1
    sinks: int = 1
    date_range_start: datetime | None = None
    resume_halted: bool = False
    failure_bound: float | None = None  # of a resume: instead of the usual failure rate
    reason: str = ""  # of a resume, for the audit log
    home: Path = Path(".crm-replay")
    enrich: bool | None = None  # whether the run enriches its association logs; None: as the source mapping says
    forks: ForkServer | None = None  # forks its processes; without one each imports its libraries itself


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run."""

    job: Job
    ledger: Ledger
    seconds: float  # from the start of the processes to the last end marker


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a run reads, where that is not simply everything from the source."""

    snapshot: IdRange | None = None  # saved as the snapshot's cursor before it starts
    published_at: tuple[int, ...] = ()  # begin offsets of a former run's stretch, to be read again
    audit_ids: tuple[int, ...] | None = None  # all that is replayed


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is let go of that is not over: after what pause it may be claimed, or that nobody should try again."""

    pause_s: float = 0.0
    attempts: int = 0
    error: str | None = None
    fail: bool = False

    def in_words(self) -> str:
        """Return it as the end of a sentence."""
        if self.fail:
            return "the job has failed; resume it when the cause is gone"
        return f"again in {self.pause_s:.0f} s" if self.pause_s else "the job is free"


def terms_after(error: BaseException, before: Job, now: Job) -> Terms | None:
    """Return on what terms a job is released after an error; None if its document says all there is to say.

    An outage is waited for as long as it takes. Anything else is tried again, ATTEMPTS_MAX times in a row without
    having got on with the job; then the job has failed, and says why. A replay of chosen rows fails at once: only the
    caller knows which rows, so no other runner can continue it.
    """
    if isinstance(error, (HaltedError, JobChangedError, IllegalTransitionError)):
        return None
    if isinstance(error, UnreplayableIdsError):  # no further try will find other ids
        return Terms(attempts=now.attempts + 1, error=str(error), fail=True)
    if before.partial:
        return Terms(attempts=now.attempts, error=_in_words(error), fail=True)
    if isinstance(error, InterruptedRunError) or not isinstance(error, Exception):
        return Terms(attempts=now.attempts, error=_in_words(error))
    got_on = (now.run, now.records_migrated + now.records_skipped + now.records_failed) != (
        before.run,
        before.records_migrated + before.records_skipped + before.records_failed,
    )
    attempts = 1 if got_on else now.attempts + 1
    text = _in_words(error)
    outage = isinstance(error, (ServiceUnreachableError, OutageError, MigrationRefusedError))
    if attempts >= ATTEMPTS_MAX and not outage:
        return Terms(attempts=attempts, error=text, fail=True)
    return Terms(min(PAUSE_MAX_S, 2.0 ** (attempts - 1)), attempts, text)


def _in_words(error: BaseException) -> str:
    """Return an error as the job's document keeps it: of a defect, whose text may be personal, its place."""
    if isinstance(error, ReplayError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(where[-1].filename).name}, line {where[-1].lineno}" if where else ""
    return f"ended by {type(error).__name__}{place}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that has been checked before anything is changed."""

    connections: Connections
    kafka: Mapping[str, Any]
    admin: AdminClient
    mapping: SourceMapping
    store: JobStore
    database: Any
    topics: AccountTopics
    codec: Codec

    def look(self, account: str, date_range_start: datetime | None, view: RunView) -> Survey:
        """Return the source as it is now, if Kafka keeps a replay of it for long enough. Raises BadInputError."""
        found = survey(
            self.connections.crm_audit_database_url, self.mapping, account, date_range_start=date_range_start
        )
        kafka_admin.require_retention(self.admin, self.topics, found.rows)
        for note in found.notes:
            view.note(note)
        return found


def run_account(account: str, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay one account and return its ledger, which is also in the job document.

    Takes up a job whose runner has died, or that waits for one. Raises BadInputError before anything is changed,
    HaltedError, InterruptedRunError (both can be resumed), or ReplayError if a process keeps dying.
    """
    with _surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        with _stop_on_signals() as stop:
            job, noted = _open_job(account, options, found, around, view)
            return _run(job, noted, stretch_of(job), options, around, view, stop)


def run_claimed(job: Job, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay what a claimed job says and return its ledger; `job` is as the claim returned it.

    Whatever keeps it from that is in the job document, and when it is tried again (`terms_after`). Raises what
    `run_account` does, and LeaseLostError if another runner has taken the job over.
    """
    account = job.company_sso_id
    with (
        _Lease(connections, job) as lease,
        _stop_on_signals() as stop,
        _outages_in_one_line(),
        _surroundings(account, options.mapping_path or job.mapping_path, connections, options.home) as around,
    ):
        _require_mapping(job, around)
        return _work_on(lease, stretch_of(job), options, around, view, stop)


def stretch_of(job: Job) -> Stretch:
    """Return what the job's present run reads: everything from the source, or of a rerun what was published."""
    if not job.published_at:
        return Stretch()
    nothing = IdRange(0, first=job.top_audit_id, cursor=job.top_audit_id, last=job.top_audit_id)
    return Stretch(published_at=job.published_at, snapshot=nothing)


def rerun_account(account: str, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay what the account's last run has published, by offset reset of its groups; the source is only counted.

    Raises BadInputError if there is no finished run, or if not all of its stretch is there.
    """
    with _surroundings(account, options.mapping_path, connections, options.home) as around:
        _end_dead_partial(account, around, view)
        last = around.store.latest(account)
        if last is None or last.status not in (JobStatus.COMPLETED, JobStatus.FAILED) or not last.begin_offsets:
            state = "never been replayed" if last is None else f"a job that is {last.status}"
            then = "resume" if last is not None and last.status is JobStatus.HALTED else "run"
            raise BadInputError(f"{account} has {state}", f"crm-replay {then} --account {account}")
        _require_mapping(last, around)
        around.look(account, last.date_range_start, view)
        refused = operations.why_no_rerun(last, around.store, connections)
        if refused:
            raise BadInputError(*refused)
        with _stop_on_signals() as stop:
            job = around.store.rerun(last.job_id, operations.next_run_of(last), owner=new_owner())
            return _run(job, Noted("rerun"), stretch_of(job), options, around, view, stop)


def run_since(account: str, since: datetime, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay the account's rows created at or after `since`, in a job of their own, and return their ledger."""
    options = replace(options, date_range_start=since.replace(microsecond=since.microsecond // 1000 * 1000))
    with _surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        _end_dead_partial(account, around, view)
        last = around.store.latest(account)
        if last is not None:
            _require_mapping(last, around)
        new = _new_job(account, options, found, around)
        with _stop_on_signals() as stop:
            job = around.store.create(replace(new, partial=True), owner=new_owner())
            return _run(job, Noted("rerun", {"since": since.isoformat()}), Stretch(), options, around, view, stop)


def run_selected(
    account: str, audit_ids: Iterable[int], options: RunOptions, connections: Connections, view: RunView
) -> RunResult:
    """Replay chosen rows of the account through the topology, in a job of their own, and return their ledger.

    Ids that are not rows of the account in scope are no source rows and so in no bin.
    """
    gaps = _stretches(audit_ids)
    if not gaps:
        raise BadInputError("no audit ids were given", "name at least one")
    with _surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        _end_dead_partial(account, around, view)
        last = around.store.latest(account)
        if last is not None:
            _require_mapping(last, around)
        ids = _selected_ids(around, account, gaps, options.date_range_start or EARLIEST)
        new = _new_job(account, options, found, around)
        # A range that has been read, with the chosen ids as its gaps: the snapshot looks at gaps once more at its end.
        chosen = IdRange(0, gaps[0][0] - 1, gaps[-1][1], gaps[-1][1], gaps=tuple(gaps), gaps_to=gaps[-1][1])
        stretch = Stretch(snapshot=chosen, audit_ids=ids)
        with _stop_on_signals() as stop:
            job = around.store.create(
                replace(
                    new,
                    partial=True,
                    records_total=len(ids),
                    out_of_scope_by_type={},
                    cutoff=options.date_range_start or EARLIEST,
                ),
                owner=new_owner(),
            )
            return _run(job, Noted("rerun", {"rows": len(ids)}), stretch, options, around, view, stop)


def new_owner() -> str:
    """Return a name for a runner that no other has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


@contextmanager
def _surroundings(account: str, mapping_path: str, connections: Connections, home: Path) -> Iterator[Surroundings]:
    """Give the surroundings of a run after every check that needs no job; nothing has been changed by then."""
    topics = AccountTopics.of(account)
    connections.require("crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url")
    mapping = load(mapping_path or None)
    require_writable(home)
    with closing(db_connect(connections.crm_audit_database_url)) as db:
        require_whole_tables(db, connections.crm_audit_database_url, tables_read(mapping))
        resolve(db, mapping, account)
    kafka = connections.kafka()
    admin = kafka_admin.client(kafka)
    database = connect(connections, app_name="crm-replay-runner")
    try:
        migrations.require_current(database)
        codec = codec_for(connections.schema_registry_url)
        yield Surroundings(connections, kafka, admin, mapping, JobStore(database), database, topics, codec)
    finally:
        database.client.close()


@dataclass(frozen=True, slots=True)
class Noted:
    """What the audit log has of the beginning of a run."""

    action: str = ""  # "": a run that is taken over, which is nobody's request
    detail: Mapping[str, Any] = field(default_factory=dict)


def _run(
    job: Job,
    noted: Noted,
    stretch: Stretch,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    stop: threading.Event,
) -> RunResult:
    """Run a job that is this runner's already; whatever ends it, the job's document says so."""
    with _Lease(around.connections, job) as lease, _outages_in_one_line():
        if noted.action:
            _note(noted.action, job, around, **noted.detail)
        return _work_on(lease, stretch, options, around, view, stop)


def _work_on(
    lease: "_Lease",
    stretch: Stretch,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    stop: threading.Event,
) -> RunResult:
    job = lease.job
    if around.store.has_lost_its_place(job):
        view.note(
            f"rows of {job.company_sso_id} were replayed since it stopped, so its history is read from the beginning"
        )
        job = around.store.begin_again(job, replace(operations.next_run_of(job), published_at=(), prepared=False))
        stretch = Stretch()
    if not job.prepared:
        found = around.look(job.company_sso_id, job.date_range_start, view)
        job = around.store.prepare(job, _surveyed(job, found))
        lease.check(stop)
    partitions = kafka_admin.ensure_topics(around.admin, around.topics, job.partitions)
    job = _prepare(job, stretch, partitions, around, view, lambda: lease.check(stop))
    if job.status is JobStatus.HALTED:
        raise _halted(job)
    _require_failure_rate(job, around)
    return _work(job, stretch, options, around, view, stop, lease)


def _note(action: str, job: Job, around: Surroundings, **detail: Any) -> None:
    """Write to the audit log who does this on this host."""
    known = {"job_id": job.job_id, "run": job.run, **detail}
    audit_log.append(around.database, action, job.company_sso_id, who=audit_log.on_this_host(), detail=known)


@contextmanager
def _outages_in_one_line() -> Iterator[None]:
    """Turn what a server's client or the disk raises into one line; the next run continues what was done by then."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ReplayError(f"{error.strerror or type(error).__name__}{where}", "the same command continues") from error
    except PyMongoError as error:
        raise OutageError(f"MongoDB does not answer ({type(error).__name__})", "the same command goes on") from error
    except KafkaException as error:
        raise OutageError(f"Kafka does not answer ({error.args[0].str()})", "the same command goes on") from error


def _selected_ids(around: Surroundings, account: str, gaps: Sequence[Gap], cutoff: datetime) -> tuple[int, ...]:
    """Return those of the chosen ids that are rows of the account in scope, in rising order."""
    dsn = around.connections.crm_audit_database_url
    with closing(db_connect(dsn)) as db:
        source = resolve(db, around.mapping, account)
    ids: list[int] = []
    with closing(AuditReader(dsn, source, cutoff, Limits())) as reader:
        cursor = gaps[0][0] - 1
        while cursor < gaps[-1][1]:
            page = reader.late_page_after(cursor, gaps, 0)
            ids += [event.audit_id for event in page.events]
            cursor = page.end
    return tuple(ids)


def _stretches(audit_ids: Iterable[int]) -> list[Gap]:
    """Return ids as runs of neighbours, first and last of each, in rising order."""
    gaps: list[Gap] = []
    for audit_id in sorted(set(audit_ids)):
        if gaps and audit_id == gaps[-1][1] + 1:
            gaps[-1] = (gaps[-1][0], audit_id)
        else:
            gaps.append((audit_id, audit_id))
    return gaps


def _new_job(account: str, options: RunOptions, found: Survey, around: Surroundings) -> NewJob:
    return NewJob(
        company_sso_id=account,
        partitions=options.partitions,
        top_audit_id=found.top_audit_id,
        snapshot_xmax=found.snapshot_xmax,
        writers=found.writers,
        cutoff=found.cutoff,
        mapping_path=str(Path(options.mapping_path).resolve()) if options.mapping_path else "",
        mapping_sha256=operations.digest(around.mapping),
        records_total=found.rows,
        out_of_scope_by_type=found.out_of_scope_by_type,
        triggered_by=f"crm-replay on {socket.gethostname()}",
        date_range_start=options.date_range_start,
    )


def _surveyed(job: Job, found: Survey) -> NewJob:
    """Return the job's run with what the source is now."""
    return NewJob(
        company_sso_id=job.company_sso_id,
        partitions=job.partitions,
        top_audit_id=found.top_audit_id,
        snapshot_xmax=found.snapshot_xmax,
        writers=found.writers,
        cutoff=found.cutoff,
        records_total=found.rows,
        out_of_scope_by_type=found.out_of_scope_by_type,
    )


def _open_job(
    account: str, options: RunOptions, found: Survey, around: Surroundings, view: RunView
) -> tuple[Job, Noted]:
    """Return the account's job in progress, now this runner's: a new one, the next run of a completed one, or one that
    is taken up again; and what the audit log has to have of it.
    """
    store, new, owner = around.store, _new_job(account, options, found, around), new_owner()
    _end_dead_partial(account, around, view)
    latest = store.latest(account)
    if options.resume_halted and (latest is None or latest.status is JobStatus.ROLLED_BACK):
        # What was taken back on purpose does not come back by a command that continues something.
        state = "has no job" if latest is None else "has been rolled back"
        raise BadInputError(f"{account} {state}, there is nothing to resume", f"crm-replay run --account {account}")
    if latest is None or latest.status is JobStatus.ROLLED_BACK:
        return store.create(replace(new, follows=latest.job_id if latest else ""), owner=owner), Noted("run")
    if latest.status is JobStatus.COMPLETED:
        view.note(f"{account} has been replayed before; what is there already is skipped as a duplicate")
        return store.rerun(latest.job_id, new, owner=owner), Noted("run")
    if not latest.partial:
        _require_mapping(latest, around)
    if latest.status is JobStatus.IN_PROGRESS:
        claimed = store.claim(latest.job_id, owner)
        if claimed is None:
            raise JobAlreadyRunningError(
                f"a run of {account} is in progress (last heard of {latest.heartbeat_at:%H:%M:%S} UTC)",
                f"wait for it; a run whose process has died can be taken up after {LEASE_S:.0f} s",
            )
        view.note(f"taking up the job of {account} where it was: {latest.records_migrated:,} migrated so far")
        return claimed, Noted()
    if not options.resume_halted:
        raise BadInputError(
            f"the job of {account} is {latest.status} ({latest.error or 'no reason given'})",
            f"when the cause is gone: crm-replay resume --account {account}",
        )
    give_up_at = time.monotonic() + CLAIM_PATIENCE_S
    while True:
        try:
            job = store.transition(
                latest.job_id,
                latest.status,
                JobStatus.IN_PROGRESS,
                owner=owner,
                failure_bound=options.failure_bound,
            )
            bound = {} if options.failure_bound is None else {"failure_bound": options.failure_bound}
            return job, Noted("resume", {**bound, **({"reason": options.reason} if options.reason else {})})
        except LeaseLostError:  # the runner that was halted is ending its processes
            if time.monotonic() > give_up_at:
                raise
            time.sleep(POLL_EVERY_S)


def _require_mapping(job: Job, around: Surroundings) -> None:
    if job.mapping_sha256 != operations.digest(around.mapping):
        raise BadInputError(
            f"the job of {job.company_sso_id} was started with another source mapping "
            f"({job.mapping_path or 'the default'})",
            "give the same --mapping",
        )


def _prepare(
    job: Job,
    stretch: Stretch,
    partitions: int,
    around: Surroundings,
    view: RunView,
    check: Callable[[], None],
) -> Job:
    """Publish the references, and say where the run's stretch begins for both groups, unless that is on file.

    A run that is taken up keeps the references it began with: rows that its workers had not acknowledged come again,
    and a contact that has appeared since would give them another outcome than the one that was counted.
    `check` raises when the job is not this runner's any more; asked before each thing that others would see.
    """
    kafka, topics, store = around.kafka, around.topics, around.store
    check()
    if job.begin_offsets:
        return job
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
    for said in published.said():
        view.note(said)
    check()
    if not job.planned_begin:
        outcomes_end = kafka_admin.end_offsets(kafka, topics.outcomes, partitions)
        if stretch.snapshot is not None:
            Checkpoint(around.database, job.job_id, job.run, job.fence).save(stretch.snapshot)
        begin_offsets = stretch.published_at or markers.begin(
            kafka, topics.replay, partitions, job_id=job.job_id, run=job.run, codec=around.codec
        )
        job = store.plan_stretch(job, begin_offsets, outcomes_end, partitions)
    # Nobody works for this run before its begin offsets are on file. What is planned is not changed any more, so a
    # runner that wakes up here after its job was taken over sets a group back to its beginning at worst: a repetition.
    kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, job.planned_outcomes)
    # Behind the begin marker: a group without committed offsets must never meet a worker (decision 2).
    first = [offset + 1 for offset in job.planned_begin]
    kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, first)
    return store.set_begin_offsets(job, job.planned_begin, job.partitions)


def _work(
    job: Job,
    stretch: Stretch,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    stop: threading.Event,
    lease: "_Lease",
) -> RunResult:
    """Run the processes until every end marker has passed the sink, then validate."""
    patience = _Patience(view, stop)
    started = time.monotonic()
    while True:
        try:
            with _settling(job, stretch, around, view), Supervisor() as supervisor:
                _watch(supervisor, job, options, around, view, patience, stop, lease)
            break
        except SilentError as error:
            view.note(f"{error}; its processes are stopped until MongoDB says whose job it is")
            while not lease.renewed_lately:
                lease.check(stop)
                patience.wait(error)
            patience.over()
    seconds = time.monotonic() - started
    view.close()
    job = _enriched(job, stretch, options, around, view, patience, lambda: lease.check(stop))
    if job.status is JobStatus.HALTED:
        raise _halted(job)
    while True:
        try:
            return RunResult(*_conclude(job, stretch, around, view), seconds)
        except ConnectionFailure as error:
            patience.wait(error)


def _enriched(
    job: Job,
    stretch: Stretch,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    patience: "_Patience",
    check: Callable[[], None],
) -> Job:
    """Enrich the association logs of the run's rows, if the source mapping or the options want it; return the job."""
    from ops.runner.enrichment import Place, RunEnrichment  # a tenth of a second that no worker has to wait for

    wanted = around.mapping.enrichment.during_run if options.enrich is None else options.enrich
    gaps = None if stretch.audit_ids is None else _stretches(stretch.audit_ids)
    place = Place(around.connections, around.database, around.store, around.mapping, around.codec)
    enrichment = RunEnrichment(job, gaps, place, view, check, patience.wait, patience.over)
    job = enrichment.run() if wanted else enrichment.off()
    patience.over()
    return job


def _watch(
    supervisor: Supervisor,
    job: Job,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    patience: "_Patience",
    stop: threading.Event,
    lease: "_Lease",
) -> None:
    """Start the processes and return when every end marker has passed the sink.

    Raises SilentError, with all processes ended, before the lease runs out unrenewed.
    """
    store, began = around.store, time.monotonic()
    for process in _processes(job, options, around.connections):
        supervisor.add(process)
    saved_at = 0.0
    halted = False
    accounted = None
    while True:
        if not lease.renewed_lately:
            supervisor.stop(timeout_s=QUICK_STOP_S)
            raise SilentError(f"the lease of {job.company_sso_id} could not be renewed for {SILENCE_MAX_S:.0f} s")
        if lease.lost:
            supervisor.stop(timeout_s=QUICK_STOP_S)
        lease.check(stop)
        exited = supervisor.check()
        if replaced := [p for p in exited if p.returncode == ExitCode.TOPIC_REPLACED]:
            raise ProcessGaveUpError(replaced[0].last_line())  # started again, it would take the new topic for the old
        halted |= any(p.returncode == ExitCode.HALTED for p in exited)
        try:
            with pymongo.timeout(ANSWER_MAX_S):
                totals = store.aggregate_progress(job)
                ended = totals.partitions_ended >= job.partitions
                if ended or time.monotonic() - saved_at >= SAVE_EVERY_S:
                    job = store.save_totals(job, totals)
                    saved_at = time.monotonic()
                if accounted is not None and totals.accounted > accounted and (job.attempts or job.error):
                    job = store.got_on(job)
                accounted = totals.accounted
            view.progress(totals.accounted, job.records_total, dict(totals.skipped), totals.failed_total)
            if halted or job.status is JobStatus.HALTED:
                raise _halted(store.get(job.job_id) or job)
        except PyMongoError as error:  # the sinks sit it out too; their counts are on file
            if not (isinstance(error, ConnectionFailure) or error.timeout):
                raise
            patience.wait(error)
            continue
        patience.over()
        if ended:
            return
        time.sleep(POLL_AT_FIRST_S if time.monotonic() - began < AT_FIRST_S else POLL_EVERY_S)


def _halted(job: Job) -> HaltedError:
    to_do = f"crm-replay resume --account {job.company_sso_id} continues it"
    if job.partial:  # a resume is of the account's own job
        to_do = "its rows are in no other run: ask for them again when the cause is gone"
    elif job.failure_halt:
        to_do = what_to_do(job.company_sso_id)
    return HaltedError(f"the job is halted: {job.error}", to_do)


def _require_failure_rate(job: Job, around: Surroundings) -> None:
    """Halt a job of which too many records had failed before it was resumed, and raise HaltedError."""
    totals = around.store.aggregate_progress(job)
    gate = JobGate(around.database[JOBS], job.job_id, job.run)
    if gate.closed_because() is None and gate.too_many(totals):
        gate.halt(totals)
        raise _halted(around.store.get(job.job_id) or job)


@contextmanager
def _settling(job: Job, stretch: Stretch, around: Surroundings, view: RunView) -> Iterator[None]:
    """Bring the job's counts up to the sinks' after its processes have been ended by an error, and raise that on."""
    try:
        yield
    except (SilentError, LeaseLostError):
        raise
    except BaseException as error:
        settled = None
        # What ended the run is to be reported, whatever else goes wrong.
        with suppress(PyMongoError, KafkaException, ReplayError), pymongo.timeout(SETTLE_MAX_S):
            settled = around.store.save_totals(job, around.store.aggregate_progress(job))
            if job.partial:
                _repair(settled, stretch, around, view)
        if settled is not None and isinstance(error, HaltedError):
            raise _halted(settled) from error
        raise


def _interrupted() -> InterruptedRunError:
    return InterruptedRunError("interrupted", "the same command goes on from here")


class _Patience:
    """Sits out an outage of MongoDB, and says so."""

    def __init__(self, view: RunView, stop: threading.Event) -> None:
        self._view = view
        self._stop = stop
        self._since: float | None = None

    def wait(self, error: Exception) -> None:
        """Wait a moment. Raises OutageError when it has lasted too long, InterruptedRunError when asked to stop."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._view.note(f"MongoDB does not answer ({type(error).__name__}); waiting for it")
        if now - self._since > OUTAGE_MAX_S:
            raise OutageError(f"MongoDB has not answered for {OUTAGE_MAX_S:.0f} s", "the same command goes on")
        if self._stop.wait(POLL_EVERY_S):
            raise _interrupted()

    def over(self) -> None:
        """Note that it answers."""
        if self._since is not None:
            self._view.note(f"MongoDB answers again after {time.monotonic() - self._since:.0f} s")
            self._since = None


def _conclude(job: Job, stretch: Stretch, around: Surroundings, view: RunView) -> tuple[Job, Ledger]:
    """Validate, write the verdict into the job document and return both. May be repeated after an outage."""
    store, totals = around.store, around.store.aggregate_progress(job)
    if stretch.published_at and totals.failed_total:
        met = repairs.met_by(job, store.partial_runs(job.company_sso_id), _topics(around), around.database)
        job = store.note_met(job, met, totals)
    ledger, ranges, strays = _validated(job, stretch, around, present(totals, job.repaired))
    if strays is not None:
        job = store.note_http_documents(job, strays)
    if ledger.ids_agree is None:
        view.note("an older release has counted a part of this run: documents are counted, their ids are not compared")
    job = store.save_totals(
        job,
        totals,
        accuracy_pct=ledger.accuracy_pct,
        documents=ledger.documents,
        source_rows=ledger.source_rows,
    )
    ledger = replace(
        ledger, late=job.records_late, repaired=job.records_repaired, actors_fell_back=job.actors_fell_back
    )
    if stretch.audit_ids is None and dict(job.out_of_scope_by_type) != dict(ledger.out_of_scope):
        job = store.note_out_of_scope(job, ledger.out_of_scope)  # late rows among them
    if job.partial:
        _repair(job, stretch, around, view)
    if ledger.balanced and ledger.documents_agree:
        verdict, reason = JobStatus.COMPLETED, ""
    else:
        verdict = JobStatus.FAILED
        reason = (
            f"{ledger.source_rows} source rows, {ledger.accounted} accounted for; "
            f"{ledger.documents_expected} documents expected, {ledger.documents} found; "
            f"{_of_deleted(ledger)}{_named(job, stretch, around, ranges)}"
            f"crm-replay verify --account {job.company_sso_id} names the rows"
        )
    if job.status is verdict:
        return job, ledger  # written before the outage; only its answer was lost
    return store.transition(job.job_id, JobStatus.IN_PROGRESS, verdict, reason, fence=job.fence), ledger


def _validated(
    job: Job, stretch: Stretch, around: Surroundings, totals: RunTotals
) -> tuple[Ledger, list[int], dict[str, Any] | None]:
    """Return the ledger, the id ranges whose documents are not those of their rows, and documents that came by HTTP.

    These are named and set apart where no row of the run accounts for them. What comes meanwhile is counted again.
    """
    store, account, shift = around.store, job.company_sso_id, shift_of(job.top_audit_id)
    expected = store.identities(job)
    for last_try in (*[False] * (VALIDATIONS_MAX - 1), True):
        there = http_documents.count(around.database, account)
        ledger = _ledger(job, stretch, around, totals)
        found = None if expected is None else _identities(job, stretch, around, shift)
        ledger, ranges = _compared(ledger, expected, found)
        if ledger.documents_agree or ledger.documents is None or not there:
            break
        from ops.checks.verify import http_strays  # all of verify: a rare need

        strays = http_strays.counted(
            job, stretch.audit_ids, around.database, around.connections, around.mapping, around.codec
        )
        # If none has come since the documents were counted, what was found was counted.
        if last_try or http_documents.count(around.database, account) == there:
            if not strays:
                break
            ids = [stray.audit_id for stray in strays if stray.audit_id is not None]
            apart = None if found is None else without(found, ids, shift)
            ledger, ranges = _compared(replace(ledger, documents=ledger.documents - len(strays)), expected, apart)
            return ledger, ranges, http_strays.as_fields(strays)
    return ledger, ranges, None


def _compared(ledger: Ledger, expected: Identities | None, found: Identities | None) -> tuple[Ledger, list[int]]:
    """Return the ledger with whether the documents are of the rows that should have one, and the ranges that differ."""
    if expected is None or found is None:
        return ledger, []
    ranges = unlike(expected, found)
    return replace(ledger, ids_agree=not ranges), ranges


def _identities(job: Job, stretch: Stretch, around: Surroundings, shift: int) -> Identities:
    """Return which rows have a document, of those that the run is over."""
    if stretch.audit_ids is not None:
        return validation.identities_with(around.database, job.company_sso_id, stretch.audit_ids, shift)
    since = None if job.date_range_start is None else job.cutoff
    return validation.identities_since(around.database, job.company_sso_id, since, shift)


def _repair(job: Job, stretch: Stretch, around: Surroundings, view: RunView) -> None:
    """Move the rows that a partial replay has repaired to their new bins in the account's job. May be repeated."""
    repairs.fold(
        job,
        stretch.audit_ids,
        around.store,
        _topics(around),
        around.database,
        view,
        lambda whole: _http_strays(whole, around),
    )


def _http_strays(whole: Job, around: Surroundings) -> int:
    """Return how many documents came by HTTP and belong to no row of the job; its own validation leaves them out."""
    if not http_documents.count(around.database, whole.company_sso_id):
        return 0
    from ops.checks.verify import http_strays  # all of verify: a rare need

    return len(http_strays.counted(whole, None, around.database, around.connections, around.mapping, around.codec))


def _end_dead_partial(account: str, around: Surroundings, view: RunView) -> None:
    """End a replay of chosen rows whose runner has died: nothing else would, and the account could begin no other."""
    repairs.end_dead(account, around.store, new_owner(), _topics(around), around.database, view)


def _topics(around: Surroundings) -> Topics:
    return Topics(around.kafka, around.connections.schema_registry_url)


def _ledger(job: Job, stretch: Stretch, around: Surroundings, totals: RunTotals) -> Ledger:
    account, database = job.company_sso_id, around.database
    if stretch.audit_ids is not None:
        ledger = validation.validate(database, account, totals, len(stretch.audit_ids))
        return replace(ledger, documents=validation.documents_with(database, account, stretch.audit_ids))
    source = count_in_scope(
        around.connections.crm_audit_database_url,
        around.mapping,
        account,
        top_audit_id=job.top_audit_id,
        cutoff=job.reads_from,
    )
    ledger = validation.validate(database, account, totals, source.rows)
    ledger = replace(ledger, out_of_scope=source.out_of_scope_by_type)
    return ledger if job.date_range_start is None else replace(ledger, documents=repairs.documents(database, job))


def _of_deleted(ledger: Ledger) -> str:
    """Return a phrase about rows that the CRM deleted after they had been read; empty if there are none."""
    if not ledger.deleted:
        return ""
    return (
        f"{ledger.deleted:,} more rows were read than the source has now: some were deleted meanwhile (the gem's"
        " max_audits does that), and crm-replay verify --repair removes their documents; "
    )


def _named(job: Job, stretch: Stretch, around: Surroundings, ranges: Sequence[int]) -> str:
    """Return what can be named of ranges whose documents are not those of their rows, as the beginning of a list."""
    if not ranges:
        return ""
    from ops.checks.verify.naming import named  # what a sound run does not need

    shift = shift_of(job.top_audit_id)
    within = [ids_of(id_range, shift) for id_range in ranges]
    try:
        return named(job, around.database, around.mapping, around.codec, around.connections, within, stretch.audit_ids)
    except (ReplayError, KafkaException) as error:
        return f"which ids differ could not be told ({error.what if isinstance(error, ReplayError) else error}); "


def _processes(job: Job, options: RunOptions, connections: Connections) -> Iterator[Supervised]:
    """Yield every process of the job on this host."""
    logs = options.home / "logs" / AccountTopics.of(job.company_sso_id).replay.rsplit(".", 1)[1] / f"run-{job.run}"
    addresses = connections.environment()
    told = job.replay_job()
    if options.mapping_path:  # the same mapping, where it is on this host
        told = told.model_copy(update={"mapping_path": str(Path(options.mapping_path).resolve())})
    shared = {**addresses, "CRM_REPLAY_JOB": told.model_dump_json()}

    def process(role: str, number: int, *, finishes: bool = False) -> Supervised:
        name = f"{role}-{number}"
        worker = f"{socket.gethostname()}-{name}"
        # A processor keeps its place in the group over a restart. A sink gets none: librdkafka cannot give it back at a
        # graceful end, and the next run must find an empty group to set its offsets.
        env = child_environment(**shared, **of_children(), CRM_REPLAY_WORKER=worker)
        return Supervised(
            name,
            python_module(role),
            env,
            logs / f"{name}.log",
            finishes=finishes,
            final_codes=frozenset({ExitCode.TOPIC_REPLACED, *({ExitCode.HALTED} if role == "sink" else ())}),
            hopeless_codes=frozenset({ExitCode.BAD_INPUT}),
            forks=options.forks,
        )

    yield process("producer", 0, finishes=True)
    for number in range(options.processors):
        yield process("processors", number)
    for number in range(options.sinks):
        yield process("sink", number)


def let_go(store: JobStore, job: Job, terms: Terms) -> None:
    """Let go of a job on these terms; nothing happens if it is another's by now, or no longer in progress."""
    try:
        if terms.fail:
            store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED, terms.error or "", fence=job.fence)
    except JobChangedError:
        terms = Terms()
    store.release(job, pause_s=terms.pause_s, attempts=terms.attempts, error=terms.error)


class _Lease:
    """Renews the job's lease every second, over a connection of its own; lets go of it at the end."""

    def __init__(self, connections: Connections, job: Job) -> None:
        """After an error the job is released on the terms of `terms_after`."""
        self.job = job
        self._database = open_database(connections, app_name="crm-replay-lease")
        self._store = JobStore(self._database)
        self._over = threading.Event()
        self._lost: LeaseLostError | None = None
        self._renewed_at = _uptime()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "_Lease":
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self._over.set()
        self._thread.join()
        # If MongoDB does not answer, the job can be taken up a little later; what ended the run is told.
        with suppress(PyMongoError, JobChangedError), pymongo.timeout(ANSWER_MAX_S):
            self._let_go(error)
        self._database.client.close()

    def _let_go(self, error: BaseException | None) -> None:
        now = self._store.get(self.job.job_id) if error is not None else None
        terms = terms_after(error, self.job, now) if error is not None and now is not None else None
        let_go(self._store, self.job, terms or Terms())

    @property
    def renewed_lately(self) -> bool:
        """Whether the lease holds for long enough to stop every process within it."""
        return _uptime() - self._renewed_at < SILENCE_MAX_S

    @property
    def lost(self) -> bool:
        """Whether the job has gone to another runner."""
        return self._lost is not None

    def check(self, stop: threading.Event) -> None:
        """Raise LeaseLostError if the job has gone to another runner, InterruptedRunError when asked to stop."""
        if self._lost is not None:
            raise self._lost
        if stop.is_set():
            raise _interrupted()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_EVERY_S):
            asked_at = _uptime()
            try:
                with pymongo.timeout(ANSWER_MAX_S):
                    self._store.renew(self.job)
                self._renewed_at = asked_at
            except LeaseLostError as error:
                self._lost = error
                return
            except PyMongoError:  # an outage: the next renewal may get through, the main thread reports
                continue


def _uptime() -> float:
    """Return seconds that pass while the machine sleeps, too, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


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
