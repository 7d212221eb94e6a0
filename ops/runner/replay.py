"""One replay from the first check to the ledger: the processes of one account's job on this host.

Order of effects, and what a death between two of them costs:

1. checks (ops.runner.surroundings): nothing is changed before they all pass.
2. the job document: from here on the database's unique index refuses a second runner. A job that was requested over
   HTTP exists already and is claimed.
3. topics, references, begin markers, committed offsets: a resume repeats those that are not saved yet; a repeated
   begin marker is one more record that every reader skips.
4. producer, processors, sinks (ops.runner.watch): each continues from its committed state.
5. enrichment of the association logs (ops.runner.enrichment): a resume continues it.
6. validation, then the job is completed (ops.runner.conclude). Dying before it, a resume finds every partition ended
   and validates.

The runner holds the job under a lease (ops.runner.lease). A runner that cannot renew it stops its processes before the
lease expires, and restarts them if it still owns the job. A runner that was frozen past its lease is fenced: its
fencing token is refused by the job document, and its snapshot's by the cursors; its processors and sinks are members of
the same groups as its successor's, where Kafka assigns each partition to one member.
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
from ops.runner.options import RunInput, RunOptions, RunResult
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
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.waiting import Deadline, retrying, stop_on_signals
from schemas.vocabulary import JobStatus
from sink.halting import JobGate

CLAIM_PATIENCE_S = 20.0  # before a resume, for the runner of the halted job to end its processes


def run_account(account: str, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay one account and return its ledger, which is also in the job document.

    Takes over a job whose runner has died, or that waits for one. Raises BadInputError before anything is changed,
    HaltedError, InterruptedRunError (both can be resumed), or ReplayError if a process keeps dying.
    """
    with surroundings(account, options.mapping_path, connections, options.home) as around:
        found = around.look(account, options.date_range_start, view)
        with stop_on_signals(second_ends=True) as stop:
            job, noted = _open_job(account, options, found, around, view)
            return _run(job, noted, input_of(job), options, around, view, stop)


def run_claimed(job: Job, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Execute a claimed job and return its ledger; `job` is as the claim returned it.

    An error goes to the job document with the time of the next try (`terms_after`). Raises what
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
        return _work_on(lease, input_of(job), options, around, view, stop)


def input_of(job: Job) -> RunInput:
    """Return the input of the job's present run: the whole source, or for a rerun what was published."""
    if not job.published_at:
        return RunInput()
    nothing = IdRange(0, first=job.top_audit_id, cursor=job.top_audit_id, last=job.top_audit_id)
    return RunInput(published_at=job.published_at, snapshot=nothing)


def rerun_account(account: str, options: RunOptions, connections: Connections, view: RunView) -> RunResult:
    """Replay what the account's last run has published, by offset reset of its groups; the source is only counted.

    Raises BadInputError if there is no finished run, or if some of its records are gone.
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
            return _run(job, Noted("rerun"), input_of(job), options, around, view, stop)


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
            return _run(job, Noted("rerun", {"since": since.isoformat()}), RunInput(), options, around, view, stop)


def run_selected(
    account: str, audit_ids: Iterable[int], options: RunOptions, connections: Connections, view: RunView
) -> RunResult:
    """Replay chosen rows of the account through the topology, in a job of their own, and return their ledger.

    Ids that are not rows of the account in scope are not counted in any bin.
    """
    gaps = _id_ranges(audit_ids)
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
        # A range that has been read, with the chosen ids as its gaps: the snapshot reads gaps again at its end.
        chosen = IdRange(0, gaps[0][0] - 1, gaps[-1][1], gaps[-1][1], gaps=tuple(gaps), gaps_to=gaps[-1][1])
        run_input = RunInput(snapshot=chosen, audit_ids=ids)
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
            return _run(job, Noted("rerun", {"rows": len(ids)}), run_input, options, around, view, stop)


def new_owner() -> str:
    """Return a unique name for a runner."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Noted:
    """The audit log's entry for the beginning of a run."""

    action: str = ""  # "": a run that is taken over, without a request
    detail: Mapping[str, Any] = field(default_factory=dict)


def _run(
    job: Job,
    noted: Noted,
    run_input: RunInput,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    stop: threading.Event,
) -> RunResult:
    """Run a job that this runner owns; the reason of its end goes to the job's document."""
    with Lease(around.connections, job) as lease, _outages_in_one_line():
        if noted.action:
            _note(noted.action, job, around, **noted.detail)
        return _work_on(lease, run_input, options, around, view, stop)


def _work_on(
    lease: Lease,
    run_input: RunInput,
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
        run_input = RunInput()
    if not job.prepared:
        found = around.look(job.company_sso_id, job.date_range_start, view)
        job = around.store.prepare(job, _surveyed(job, found))
        lease.check(stop)
    partitions = kafka_admin.ensure_topics(
        around.admin, around.topics, job.partitions, around.connections.kafka_replication_factor
    )
    job = _prepare(job, run_input, partitions, around, view, lambda: lease.check(stop))
    if job.status is JobStatus.HALTED:
        raise halted_by(job)
    _require_failure_rate(job, around)
    return _work(job, run_input, options, around, view, stop, lease)


def _note(action: str, job: Job, around: Surroundings, **detail: Any) -> None:
    """Write the action and the user of this host to the audit log."""
    known = {"job_id": job.job_id, "run": job.run, **detail}
    audit_log.append(around.database, action, job.company_sso_id, who=audit_log.on_this_host(), detail=known)


@contextmanager
def _outages_in_one_line() -> Iterator[None]:
    """Turn an error of a server's client or of the disk into one line; the next run continues from there."""
    try:
        yield
    except ServiceUnreachableError as error:  # which is no bad call any more: the servers have answered before
        raise OutageError(error.what, "the same command continues") from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ReplayError(f"{error.strerror or type(error).__name__}{where}", "the same command continues") from error
    except PyMongoError as error:
        raise OutageError(f"MongoDB does not answer ({type(error).__name__})", "the same command continues") from error
    except KafkaException as error:
        raise OutageError(f"Kafka does not answer ({error.args[0].str()})", "the same command continues") from error


def _selected_ids(around: Surroundings, account: str, gaps: Sequence[Gap], cutoff: datetime) -> tuple[int, ...]:
    """Return the chosen ids that are rows of the account in scope, ascending."""
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


def _id_ranges(audit_ids: Iterable[int]) -> list[Gap]:
    """Return ids as ranges of consecutive ids, first and last of each, ascending."""
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
    """Return the job's run with the survey of the source."""
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
    """Return the account's job in progress, owned by this runner, and its entry for the audit log.

    It is a new job, the next run of a completed one, or one that is resumed or taken over.
    """
    store, new, owner = around.store, _new_job(account, options, found, around), new_owner()
    _end_dead_partial(account, around, view)
    latest = store.latest(account)
    if options.resume_halted and (latest is None or latest.status is JobStatus.ROLLED_BACK):
        # A job that was rolled back on purpose is not restored by a command that continues jobs.
        state = "has no job" if latest is None else "has been rolled back"
        raise BadInputError(f"{account} {state}, there is nothing to resume", f"crm-replay run --account {account}")
    if latest is None or latest.status is JobStatus.ROLLED_BACK:
        return store.create(replace(new, follows=latest.job_id if latest else ""), owner=owner), Noted("run")
    if latest.status is JobStatus.COMPLETED:
        view.note(f"{account} has been replayed before; existing documents are skipped as duplicates")
        return store.rerun(latest.job_id, new, owner=owner), Noted("run")
    if not latest.partial:
        around.require_mapping(latest)
    if latest.status is JobStatus.IN_PROGRESS:
        claimed = store.claim(latest.job_id, owner)
        if claimed is None:
            raise JobAlreadyRunningError(
                f"a run of {account} is in progress (last heartbeat {latest.heartbeat_at:%H:%M:%S} UTC)",
                f"wait for it; a run whose process has died can be taken over after {LEASE_S:.0f} s",
            )
        view.note(f"continuing the job of {account}: {latest.records_migrated:,} migrated so far")
        return claimed, Noted()
    if not options.resume_halted:
        raise BadInputError(
            f"the job of {account} is {latest.status} ({latest.error or 'no reason given'})",
            f"once the cause is fixed: crm-replay resume --account {account}",
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
    # While the lease is held, the halted job's runner is ending its processes.
    job = retrying(resume, LeaseLostError, Deadline(CLAIM_PATIENCE_S), POLL_EVERY_S)
    return job, Noted("resume", {**bound, **({"reason": options.reason} if options.reason else {})})


def _prepare(
    job: Job,
    run_input: RunInput,
    partitions: int,
    around: Surroundings,
    view: RunView,
    check: Callable[[], None],
) -> Job:
    """Publish the references and commit the run's first offsets for both groups, unless that is saved already.

    A run that is taken over keeps the references it began with: rows that its workers had not acknowledged come again,
    and a contact that has appeared since would give them another outcome than the one that was counted.
    `check` raises if this runner no longer owns the job; called before each effect that other processes see.
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
        if run_input.snapshot is not None:
            Checkpoint(around.database, job.job_id, job.run, job.fence).save(run_input.snapshot)
        begin_offsets = run_input.published_at or markers.begin(
            kafka, topics.replay, partitions, job_id=job.job_id, run=job.run, codec=around.codec
        )
        job = store.plan_offsets(job, begin_offsets, outcomes_end, partitions)
    # No worker starts for this run before its begin offsets are saved. Planned offsets do not change, so a runner that
    # resumes here after its job was taken over resets a group to its beginning at worst: a repetition.
    kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, job.planned_outcomes)
    # Behind the begin marker: a group without committed offsets must never meet a worker (decision 2).
    first = [offset + 1 for offset in job.planned_begin]
    kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, first)
    return store.set_begin_offsets(job, job.planned_begin, job.partitions)


def _work(
    job: Job,
    run_input: RunInput,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    stop: threading.Event,
    lease: Lease,
) -> RunResult:
    """Run the processes until every end marker has passed the sink, enrich, then validate and complete the job."""
    patience = Patience(view, stop)
    started = time.monotonic()
    run_processes(job, run_input, options, around, view, patience, lease, stop)
    seconds = time.monotonic() - started
    view.close()
    job = _enriched(job, run_input, options, around, view, patience, lambda: lease.check(stop))
    if job.status is JobStatus.HALTED:
        raise halted_by(job)
    while True:
        try:
            return RunResult(*conclude(job, run_input, around, view), seconds)
        except PyMongoError as error:
            patience.wait(error)


def _enriched(
    job: Job,
    run_input: RunInput,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    patience: Patience,
    check: Callable[[], None],
) -> Job:
    """Enrich the association logs of the run's rows, if the source mapping or the options say so; return the job."""
    from ops.runner.enrichment import Place, RunEnrichment  # takes 0.1 s, and no worker has to wait for it

    wanted = around.mapping.enrichment.during_run if options.enrich is None else options.enrich
    gaps = None if run_input.audit_ids is None else _id_ranges(run_input.audit_ids)
    place = Place(around.connections, around.database, around.store, around.mapping, around.codec)
    enrichment = RunEnrichment(job, gaps, place, view, check, patience.wait, patience.over)
    job = enrichment.run() if wanted else enrichment.off()
    patience.over()
    return job


def _require_failure_rate(job: Job, around: Surroundings) -> None:
    """Halt a job in which too many records had failed before it was resumed, and raise HaltedError."""
    totals = around.store.aggregate_progress(job)
    gate = JobGate(around.database[JOBS], job.job_id, job.run)
    if gate.closed_because() is None and gate.too_many(totals):
        gate.halt(totals)
        raise halted_by(around.store.get(job.job_id) or job)


def _end_dead_partial(account: str, around: Surroundings, view: RunView) -> None:
    """End a replay of chosen rows whose runner has died; otherwise it would block every later job of the account."""
    repairs.end_dead(account, around.store, new_owner(), around.row_reader(), around.database, view)
