"""One replay from the first check to the ledger: the processes of one account's job on this host.

Order of effects, and what a death between two of them costs:

1. checks (ops.runner.surroundings): nothing is changed before they all pass.
2. the job document: from here on a second runner is refused by the database's unique index. A job that was asked for
   over HTTP is there already and is claimed.
3. topics, references, begin markers, committed offsets: a resume repeats those that are not on file yet; a repeated
   begin marker is one more record that every reader passes over.
4. producer, processors, sinks (ops.runner.watch): each continues from what it had committed.
5. enrichment of the association logs (ops.runner.enrichment): a resume continues it.
6. validation, then the job is completed (ops.runner.conclude). Dying before it, a resume finds every partition ended
   and validates.

The runner holds the job under a lease (ops.runner.lease). One that cannot renew it stops its processes before the lease
runs out, and starts them again if the job is still its own. One that was frozen and wakes up too late finds itself
fenced: its number no longer counts for the job document, nor its snapshot's for the cursors; its processors and sinks
are members of the same groups as its successor's, where Kafka gives each partition to one.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from pymongo.errors import PyMongoError

from ops.jobs import audit_log, operations
from ops.jobs.jobs import LEASE_S, Job
from ops.jobs.store import JobAlreadyRunningError, LeaseLostError, NewJob
from ops.kafka import admin as kafka_admin
from ops.progress import RunView
from ops.runner import repairs
from ops.runner.conclude import conclude
from ops.runner.lease import Lease, OutageError, halted_by
from ops.runner.options import RunOptions, RunResult, Stretch
from ops.runner.surroundings import Surroundings, surroundings
from ops.runner.watch import POLL_EVERY_S, Patience, run_processes
from producer import markers, references
from producer.audits import AuditReader, Limits, resolve
from producer.audits import connect as db_connect
from producer.checkpoint import Checkpoint
from producer.cursor import EARLIEST, Gap, IdRange
from producer.survey import Survey
from schemas.collections import JOBS
from schemas.compiled import hot_paths
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.waiting import Deadline, retrying, stop_on_signals
from schemas.vocabulary import JobStatus
from sink.halting import JobGate

CLAIM_PATIENCE_S = 20.0  # for the runner of a job that was halted to end its processes, before a resume


def run_account(account: str, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay one account and return its ledger, which is also in the job document.

    Takes up a job whose runner has died, or that waits for one. Raises BadInputError before anything is changed,
    HaltedError, InterruptedRunError (both can be resumed), or ReplayError if a process keeps dying.
    """
    with surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        with stop_on_signals(second_ends=True) as stop:
            job, noted = _open_job(account, options, found, around, view)
            return _run(job, noted, stretch_of(job), options, around, view, stop)


def run_claimed(job: Job, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay what a claimed job says and return its ledger; `job` is as the claim returned it.

    Whatever keeps it from that is in the job document, and when it is tried again (`terms_after`). Raises what
    `run_account` does, and LeaseLostError if another runner has taken the job over.
    """
    account = job.company_sso_id
    with (
        Lease(connections, job) as lease,
        stop_on_signals(second_ends=True) as stop,
        _outages_in_one_line(),
        surroundings(account, options.mapping_path or job.mapping_path, connections, options.home) as around,
    ):
        around.require_mapping(job)
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
    with surroundings(account, options.mapping_path, connections, options.home) as around:
        _end_dead_partial(account, around, view)
        last = around.store.latest(account)
        if last is None or last.status not in (JobStatus.COMPLETED, JobStatus.FAILED) or not last.begin_offsets:
            state = "never been replayed" if last is None else f"a job that is {last.status}"
            then = "resume" if last is not None and last.status is JobStatus.HALTED else "run"
            raise BadInputError(f"{account} has {state}", f"crm-replay {then} --account {account}")
        around.require_mapping(last)
        around.look(account, last.date_range_start, view)
        refused = operations.why_no_rerun(last, around.store, connections)
        if refused:
            raise BadInputError(*refused)
        with stop_on_signals(second_ends=True) as stop:
            job = around.store.rerun(last.job_id, operations.next_run_of(last), owner=new_owner())
            return _run(job, Noted("rerun"), stretch_of(job), options, around, view, stop)


def run_since(account: str, since: datetime, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay the account's rows created at or after `since`, in a job of their own, and return their ledger."""
    options = replace(options, date_range_start=since.replace(microsecond=since.microsecond // 1000 * 1000))
    with surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        _end_dead_partial(account, around, view)
        last = around.store.latest(account)
        if last is not None:
            around.require_mapping(last)
        new = _new_job(account, options, found, around)
        with stop_on_signals(second_ends=True) as stop:
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
    with surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        _end_dead_partial(account, around, view)
        last = around.store.latest(account)
        if last is not None:
            around.require_mapping(last)
        ids = _selected_ids(around, account, gaps, options.date_range_start or EARLIEST)
        new = _new_job(account, options, found, around)
        # A range that has been read, with the chosen ids as its gaps: the snapshot looks at gaps once more at its end.
        chosen = IdRange(0, gaps[0][0] - 1, gaps[-1][1], gaps[-1][1], gaps=tuple(gaps), gaps_to=gaps[-1][1])
        stretch = Stretch(snapshot=chosen, audit_ids=ids)
        with stop_on_signals(second_ends=True) as stop:
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
    with Lease(around.connections, job) as lease, _outages_in_one_line():
        if noted.action:
            _note(noted.action, job, around, **noted.detail)
        return _work_on(lease, stretch, options, around, view, stop)


def _work_on(
    lease: Lease,
    stretch: Stretch,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    stop: threading.Event,
) -> RunResult:
    view.note(f"hot paths: {hot_paths()}")
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
        raise halted_by(job)
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
        around.require_mapping(latest)
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
    bound = {} if options.failure_bound is None else {"failure_bound": options.failure_bound}
    resume = partial(
        store.transition,
        latest.job_id,
        latest.status,
        JobStatus.IN_PROGRESS,
        owner=owner,
        failure_bound=options.failure_bound,
    )
    # A lease that is held: the runner that was halted is ending its processes.
    job = retrying(resume, LeaseLostError, Deadline(CLAIM_PATIENCE_S), POLL_EVERY_S)
    return job, Noted("resume", {**bound, **({"reason": options.reason} if options.reason else {})})


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
    for warning in published.warnings():
        view.note(warning)
    check()
    if not job.planned_begin:
        outcomes_end = kafka_admin.end_offsets(kafka, topics.outcomes, partitions)
        if stretch.snapshot is not None:
            Checkpoint(around.database, job.job_id, job.run, job.fence).save(stretch.snapshot)
        begin_offsets = stretch.published_at or markers.begin(
            kafka, topics.replay, partitions, job_id=job.job_id, run=job.run, codec=around.codec
        )
        job = store.plan_offsets(job, begin_offsets, outcomes_end, partitions)
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
    lease: Lease,
) -> RunResult:
    """Run the processes until every end marker has passed the sink, enrich, then validate and complete the job."""
    patience = Patience(view, stop)
    started = time.monotonic()
    run_processes(job, stretch, options, around, view, patience, lease, stop)
    seconds = time.monotonic() - started
    view.close()
    job = _enriched(job, stretch, options, around, view, patience, lambda: lease.check(stop))
    if job.status is JobStatus.HALTED:
        raise halted_by(job)
    while True:
        try:
            return RunResult(*conclude(job, stretch, around, view), seconds)
        except PyMongoError as error:
            patience.wait(error)


def _enriched(
    job: Job,
    stretch: Stretch,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    patience: Patience,
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


def _require_failure_rate(job: Job, around: Surroundings) -> None:
    """Halt a job of which too many records had failed before it was resumed, and raise HaltedError."""
    totals = around.store.aggregate_progress(job)
    gate = JobGate(around.database[JOBS], job.job_id, job.run)
    if gate.closed_because() is None and gate.too_many(totals):
        gate.halt(totals)
        raise halted_by(around.store.get(job.job_id) or job)


def _end_dead_partial(account: str, around: Surroundings, view: RunView) -> None:
    """End a replay of chosen rows whose runner has died: nothing else would, and the account could begin no other."""
    repairs.end_dead(account, around.store, new_owner(), around.row_reader(), around.database, view)
