"""I/O: a run's processes on this host, watched until every end marker has passed the sink."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pymongo
from pymongo.errors import PyMongoError

from ops.jobs.jobs import Job
from ops.kafka.lag import Lag, LagReader
from ops.progress import RunView
from ops.runner.conclude import settling
from ops.runner.lease import ANSWER_MAX_S, QUICK_STOP_S, Lease, OutageError, SilentError, halted_by, interrupted
from ops.runner.options import RunInput, RunOptions
from ops.runner.processes import ProcessGaveUpError, Supervised, Supervisor, child_environment, python_module
from ops.runner.surroundings import Surroundings
from schemas.errors import ReplayError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.process.connections import Connections
from schemas.process.exposition import of_children
from schemas.topics import AccountTopics
from schemas.vocabulary import ExitCode, JobStatus

SAVE_EVERY_S = 1.0
POLL_EVERY_S = 0.2
POLL_AT_FIRST_S = 0.05  # a small account is done soon, and its end should be noticed at once
AT_FIRST_S = 5.0
REPORT_EVERY_S = 20.0  # while nothing is counted
END_LOST_AFTER_S = 60.0  # with nothing left to consume; the last batch of a sink takes less
OUTAGE_MAX_S = 300.0  # of MongoDB; its sinks wait indefinitely, but a run without a status is useless


class Patience:
    """Waits during an outage of MongoDB, and reports it."""

    def __init__(self, view: RunView, stop: threading.Event) -> None:
        """`view` shows the beginning and end of the outage; `stop` ends the waiting."""
        self._view = view
        self._stop = stop
        self._since: float | None = None

    def wait(self, error: Exception) -> None:
        """Wait a moment. Raises OutageError if the outage has lasted too long, InterruptedRunError if `stop` is set.

        Raises the error itself if it is not an outage.
        """
        if kind_of(error) not in (None, ServiceUnreachableError):
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._view.note(f"MongoDB does not answer ({type(error).__name__}); waiting")
        if now - self._since > OUTAGE_MAX_S:
            raise OutageError(f"MongoDB has not answered for {OUTAGE_MAX_S:.0f} s", "the same command continues")
        if self._stop.wait(POLL_EVERY_S):
            raise interrupted()

    def over(self) -> None:
        """Note that MongoDB answers."""
        if self._since is not None:
            self._view.note(f"MongoDB answers again after {time.monotonic() - self._since:.0f} s")
            self._since = None


class EndLostError(ReplayError):
    """Rows or the end of a run were consumed without being counted, so that it cannot end by itself."""


class Standstill:
    """Reports what a run waits for while nothing is counted, and ends one that waits for nothing."""

    def __init__(
        self,
        account: str,
        lag: Callable[[], Lag],
        view: RunView,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lag` is queried only while nothing is counted."""
        self._account = account
        self._lag = lag
        self._view = view
        self._clock = clock
        self._accounted = -1
        self._since = self._reported_at = clock()
        self._empty_since: float | None = None

    def check(self, accounted: int, total: int, *, producing: bool) -> None:
        """Compare the count with the last one. `producing`: the producer has not ended.

        Raises EndLostError if for long nothing is left to consume, and the end has not come.
        """
        now = self._clock()
        if accounted != self._accounted:
            if self._reported_at > self._since:
                self._view.note(f"rows are counted again, after {now - self._since:.0f} s")
            self._accounted, self._since, self._reported_at, self._empty_since = accounted, now, now, None
            return
        if now - self._reported_at < REPORT_EVERY_S:
            return
        lag = self._lag()
        waits_for = _what_waits(lag, producing=producing)
        if waits_for:
            self._empty_since = None
        else:
            self._empty_since = self._empty_since if self._empty_since is not None else now
            if now - self._empty_since >= END_LOST_AFTER_S:
                raise EndLostError(
                    f"the run cannot end: {total - accounted:,} of {total:,} rows are not counted, and nothing is left"
                    " to consume (a worker of another release in the group?)",
                    f"crm-replay halt --account {self._account}, then verify --repair replays what is missing",
                )
        self._reported_at = now
        self._view.note(f"no row has been counted for {now - self._since:.0f} s: {waits_for or 'waiting for the end'}")


def _what_waits(lag: Lag, *, producing: bool) -> str:
    """Return what is waited for; "" if nothing is left that could be."""
    if lag.processors is None or lag.sink is None:
        return "Kafka does not answer"
    if lag.processors:
        return f"{lag.processors:,} records wait for the processors"
    if lag.sink:
        return f"{lag.sink:,} records wait for the sinks"
    return "the producer has published no further row" if producing else ""


Processes = Callable[[Job, RunOptions, Connections], Iterable[Supervised]]  # those of a job on this host


def processes_of(job: Job, options: RunOptions, connections: Connections) -> Iterator[Supervised]:
    """Yield every process of the job on this host."""
    logs = options.home / "logs" / AccountTopics.of(job.company_sso_id).replay.rsplit(".", 1)[1] / f"run-{job.run}"
    addresses = connections.environment()
    replay_job = job.replay_job()
    if options.mapping_path:  # the same mapping, where it is on this host
        replay_job = replay_job.model_copy(update={"mapping_path": str(Path(options.mapping_path).resolve())})
    shared = {**addresses, "CRM_REPLAY_JOB": replay_job.model_dump_json()}

    def process(role: str, number: int, *, finishes: bool = False) -> Supervised:
        name = f"{role}-{number}"
        worker = f"{socket.gethostname()}-{name}"
        # A processor is a static member of its group. A sink is not: librdkafka cannot give the membership up at a
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


def run_processes(
    job: Job,
    run_input: RunInput,
    options: RunOptions,
    around: Surroundings,
    view: RunView,
    patience: Patience,
    lease: Lease,
    stop: threading.Event,
    processes: Processes = processes_of,
) -> None:
    """Run the processes until every end marker has passed the sink, over outages of MongoDB.

    Their counts are saved when an error ends them. Raises InterruptedRunError, HaltedError, LeaseLostError,
    OutageError, or ProcessGaveUpError if one of them keeps dying.
    """
    while True:
        try:
            with settling(job, run_input, around, view), Supervisor() as supervisor:
                for process in processes(job, options, around.connections):
                    supervisor.add(process)
                _watch(supervisor, job, around, view, patience, lease, stop)
            return
        except SilentError as error:
            view.note(f"{error}; its processes are stopped until MongoDB shows which runner owns it")
            while not lease.renewed_lately:
                lease.check(stop)
                patience.wait(error)
            patience.over()


def _watch(
    supervisor: Supervisor,
    job: Job,
    around: Surroundings,
    view: RunView,
    patience: Patience,
    lease: Lease,
    stop: threading.Event,
) -> None:
    """Return when every end marker has passed the sink.

    Raises SilentError, with all processes ended, before the lease runs out unrenewed.
    """
    store, began = around.store, time.monotonic()
    saved_at = 0.0
    halted = False
    accounted = None
    reader = cache(lambda: LagReader(around.kafka))  # most runs need none
    standstill = Standstill(job.company_sso_id, lambda: reader().of(job.company_sso_id), view)
    while True:
        if not lease.renewed_lately:
            supervisor.stop(timeout_s=QUICK_STOP_S)
            raise SilentError(f"the lease of {job.company_sso_id} could not be renewed for {lease.silence_max_s:.0f} s")
        if lease.lost:
            supervisor.stop(timeout_s=QUICK_STOP_S)
        lease.check(stop)
        exited = supervisor.check()
        if replaced := [p for p in exited if p.returncode == ExitCode.TOPIC_REPLACED]:
            raise ProcessGaveUpError(replaced[0].last_line())  # restarted, it would mistake the new topic for the old
        halted |= any(p.returncode == ExitCode.HALTED for p in exited)
        try:
            with pymongo.timeout(ANSWER_MAX_S):
                totals = store.aggregate_progress(job)
                ended = totals.partitions_ended >= job.partitions
                if ended or time.monotonic() - saved_at >= SAVE_EVERY_S:
                    job = store.save_totals(job, totals)
                    saved_at = time.monotonic()
                if accounted is not None and totals.accounted > accounted and (job.attempts or job.error):
                    job = store.reset_attempts(job)
                accounted = totals.accounted
            view.progress(totals.accounted, job.records_total, dict(totals.skipped), totals.failed_total)
            if halted or job.status is JobStatus.HALTED:
                raise halted_by(store.get(job.job_id) or job)
        except PyMongoError as error:  # the sinks wait too; their counts are saved
            patience.wait(error)
            continue
        patience.over()
        if ended:
            return
        producing = any(p.finishes and p.returncode is None for p in supervisor.processes)
        standstill.check(totals.accounted, job.records_total, producing=producing)
        time.sleep(POLL_AT_FIRST_S if time.monotonic() - began < AT_FIRST_S else POLL_EVERY_S)
