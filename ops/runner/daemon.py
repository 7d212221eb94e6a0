"""The runner's daemon: executes what was requested over HTTP, from the console or by `crm-replay trigger`.

It claims jobs and tasks from MongoDB, as many at a time as this host may run; any number of runners on any number of
hosts share the work. Each job is a child process that renews the job's own lease, so a job notices no more than SIGTERM
when the daemon dies, hangs or is replaced, and a job that crashes its process affects nothing else. Children and
workers would need seconds to import their libraries; a fork server has them loaded, and a child is kept ready as well,
for hosts without a fork server. A task is a command of `crm-replay` in a process of its own; its `--json` output is the
task's result.

What a death costs: if the daemon dies, its children stop their workers and release their jobs; if a child dies, the job
can be claimed again at once; if the host dies, after the lease. The daemon has no durable state.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pymongo
from confluent_kafka import KafkaException
from pymongo.errors import PyMongoError

from ops.jobs import enrichments, http_documents, migrations
from ops.jobs.jobs import Job
from ops.jobs.store import JobChangedError, JobStore
from ops.jobs.tasks import Task, TaskKind, TaskLostError, TaskStore
from ops.kafka.rows import Topics
from ops.progress import RunView
from ops.runner import repairs
from ops.runner.forkserver import Forked, ForkServer, forked
from ops.runner.options import RunOptions
from ops.runner.processes import child_environment, python_module
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, open_database
from schemas.process.waiting import Deadline

POLL_EVERY_S = 0.5  # for work: two small queries by index
LOOK_EVERY_S = 0.05  # at the children, which needs no server
TASK_LEASE_S = 30.0
TASK_RENEW_EVERY_S = 2.0
ANSWER_MAX_S = 5.0  # of MongoDB; the loop has other children to watch
OUTAGE_POLL_MAX_S = 5.0
NO_ROOM_PAUSE_S = 5.0
STOP_MAX_S = 30.0  # a job's runner ends its workers within 15 s, or kills them
READY_CHILDREN = 1
ERROR_CHARACTERS_MAX = 2_000
PROGRESS = re.compile(r"([0-9,]+) of ([0-9,]+) rows")


Child = subprocess.Popen[str] | Forked


@dataclass(frozen=True, slots=True)
class Order:
    """What a child reads from its standard input: which claimed job to run, and how."""

    job_id: str
    owner: str
    fence: int
    processors: int
    sinks: int
    mapping_path: str
    home: str


@dataclass(slots=True)
class JobChild:
    """A claimed job and the process that runs it."""

    job: Job
    process: Child


@dataclass(slots=True)
class TaskChild:
    """A claimed task and the process that executes it."""

    task: Task
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    arguments_file: Path | None
    renewed_at: float = 0.0
    last_said: str = ""  # the last line on its standard error


@dataclass(slots=True)
class Limits:
    """How many jobs and tasks this host runs at a time, and the workers of a job."""

    jobs: int = 4
    tasks: int = 2
    processors: int = 1
    sinks: int = 1
    mapping_path: str = ""  # of this host; "": the job's
    home: Path = Path(".crm-replay")


def say(text: str) -> None:
    """Print one line about one event."""
    print(f"{datetime.now(UTC):%H:%M:%S} crm-replay runner: {text}", file=sys.stderr, flush=True)  # noqa: T201


@dataclass(slots=True)
class Daemon:
    """Claims, starts and watches jobs and tasks. One thread; `stop` ends it."""

    connections: Connections
    limits: Limits
    stop: threading.Event = field(default_factory=threading.Event)
    jobs: dict[str, JobChild] = field(default_factory=dict)
    tasks: dict[str, TaskChild] = field(default_factory=dict)
    forks: ForkServer | None = None  # with the libraries of a child and its workers loaded
    ready: list[Child] = field(default_factory=list)
    database: Database = field(init=False)
    outage: str = ""

    def run(self, *, until_idle: bool = False) -> None:
        """Work until `stop`, or with `until_idle` until nothing is left to do; then release everything."""
        self.database = open_database(self.connections, app_name="crm-replay-runner")
        pause_s = POLL_EVERY_S
        checked = False
        try:
            while not self._pause(pause_s):
                try:
                    with pymongo.timeout(ANSWER_MAX_S):
                        if not checked:
                            migrations.require_current(self.database)
                            checked = True
                            say(f"ready for {self.limits.jobs} jobs and {self.limits.tasks} tasks at a time")
                        claimed = self.step_or_say()
                    self._answers()
                    pause_s = 0.0 if claimed else POLL_EVERY_S
                    if until_idle and not (claimed or self.jobs or self.tasks):
                        return
                except PyMongoError as error:
                    self._does_not_answer(error)
                    pause_s = min(OUTAGE_POLL_MAX_S, max(POLL_EVERY_S, pause_s * 2))
        finally:
            self._release_all()
            self.database.client.close()

    def _pause(self, pause_s: float) -> bool:
        """Wait, but not beyond the end of a child, which makes room for the next job; True once `stop` is set."""
        deadline = Deadline(pause_s)
        while not self.stop.wait(min(LOOK_EVERY_S, deadline.left_s)):
            ended = any(process.poll() is not None for process in self._children())
            if (ended and not self.outage) or deadline.passed:
                return False
        return True

    def step_or_say(self) -> bool:
        """Do a step; a change by another runner in the middle of it does not end the daemon."""
        try:
            return self.step()
        except JobChangedError as error:
            say(str(error))
            return False

    def step(self) -> bool:
        """Check the children, then claim as much as there is room for; return whether anything was claimed."""
        for child in list(self.jobs.values()):
            self._look_after_job(child)
        for task_child in list(self.tasks.values()):
            self._look_after_task(task_child)
        claimed = False
        if len(self.jobs) < self.limits.jobs:
            claimed = self._claim_job()
        if len(self.tasks) < self.limits.tasks:
            claimed |= self._claim_task()
        self._keep_ready()
        self._reap()
        return claimed

    # ---- jobs

    def _claim_job(self) -> bool:
        store = JobStore(self.database)
        job = store.claim_next(f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}", tuple(self.jobs))
        if job is None:
            return False
        account = job.company_sso_id
        try:
            process = self.ready.pop() if self.ready and self.ready[-1].poll() is None else self._start_child()
        except OSError as error:  # no memory, too many processes: another host may have room
            why = f"no process could be started ({error.strerror})"
            store.release(job, pause_s=NO_ROOM_PAUSE_S, attempts=job.attempts, error=why)
            say(f"{account}: {why}; the job is free again")
            return False
        order = Order(
            job.job_id,
            job.owner or "",
            job.fence,
            self.limits.processors,
            self.limits.sinks,
            self.limits.mapping_path,
            str(self.limits.home),
        )
        assert process.stdin is not None
        self.jobs[job.job_id] = JobChild(job, process)
        try:
            process.stdin.write(json.dumps(asdict(order)) + "\n")
            process.stdin.flush()  # not closed: end of file tells the child that the daemon is gone
        except BrokenPipeError:
            return True  # it has just died; the next check finds that, and releases the job
        how = "taking up" if job.begin_offsets else "starting"
        say(f"{account}: {how} job {job.job_id}, run {job.run}, as process {process.pid}")
        return True

    def _look_after_job(self, child: JobChild) -> None:
        code = child.process.poll()
        if code is None:
            return
        job = child.job
        if code != 0:  # it had no time to report why, nor to release the job
            from ops.runner.lease import Terms, release, terms_after

            why = f"its process ended with signal {-code}" if code < 0 else f"its process ended with code {code}"
            store = JobStore(self.database)
            present = store.get(job.job_id)
            terms = terms_after(ReplayError(why), job, present or job) or Terms()
            say(f"{job.company_sso_id}: {why}; {terms.in_words()}")
            release(store, job, terms)
        close_pipes(child.process)
        del self.jobs[job.job_id]

    def _keep_ready(self) -> None:
        """Keep a child with its libraries loaded ready, as long as there is room for a job."""
        self.ready = [process for process in self.ready if process.poll() is None]
        if not self.ready and len(self.jobs) < self.limits.jobs:
            self.ready += [self._start_child() for _ in range(READY_CHILDREN)]

    def _start_child(self) -> Child:
        """Return a process that imports what a run needs and then waits for its order."""
        command = python_module("ops.runner.daemon")
        environment = child_environment(**self.connections.environment())
        if self.forks is not None:
            try:
                # It detects the daemon's end at its standard input; a second SIGTERM would make it abandon its job.
                return self.forks.spawn(command, environment, with_stdin=True, die_with_us=False)
            except OSError as error:
                say(f"the fork server is gone ({error}); jobs start slower until this runner is restarted")
                self.forks = None
        return subprocess.Popen(  # noqa: S603 - our own module
            command,
            env=environment,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only the daemon, which then stops them in order
        )

    def _reap(self) -> None:
        """Reap the workers of killed children: this process adopts them, and they end with their parent."""
        if self.forks is None:
            return
        self.forks.reap_others({process.pid for process in (*self._children(), *self.ready)})

    def _children(self) -> list[subprocess.Popen[Any] | Forked]:
        """Return the processes of all jobs and tasks."""
        return [*(child.process for child in self.jobs.values()), *(child.process for child in self.tasks.values())]

    # ---- tasks

    def _claim_task(self) -> bool:
        store = TaskStore(self.database)
        task = store.claim_next(f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}", TASK_LEASE_S)
        if task is None:
            return False
        arguments_file = None
        try:
            if audit_ids := task.arguments.get("audit_ids"):
                arguments_file = write_lines(audit_ids)
            words = command_of(task, self.limits.mapping_path, arguments_file)
        except (BadInputError, OSError) as error:
            store.finish(task, None, str(error))
            return True
        out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed when the task is over
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-c", "from ops.cli.main import main; main()", *words],
            env=child_environment(**self.connections.environment()),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        self.tasks[task.task_id] = TaskChild(task, process, out, err, arguments_file, time.monotonic())
        say(f"{task.company_sso_id}: {task.kind} requested by {task.requested_by}, as process {process.pid}")
        return True

    def _look_after_task(self, child: TaskChild) -> None:
        store, task = TaskStore(self.database), child.task
        code = child.process.poll()
        try:
            if code is None:
                said = last_line(child.err)
                if said != child.last_said or time.monotonic() - child.renewed_at >= TASK_RENEW_EVERY_S:
                    store.renew(task, TASK_LEASE_S, self._progress(task, said))
                    child.last_said, child.renewed_at = said, time.monotonic()
                return
            result = result_of(child.out)
            error = None if result is not None else last_line(child.err) or f"ended with code {code}"
            store.finish(task, result, error)
            say(f"{task.company_sso_id}: {task.kind} is {'done' if error is None else f'not done: {error}'}")
        except TaskLostError as lost:
            say(f"{task.company_sso_id}: {lost}")
            end(child.process, signal.SIGKILL)
        self._forget_task(child)

    def _progress(self, task: Task, said: str) -> dict[str, Any]:
        if task.kind is TaskKind.ROLLBACK:
            job = JobStore(self.database).latest(task.company_sso_id)
            rollback = (job.rollback if job else None) or {}
            removed, left = rollback.get("removed", 0), rollback.get("remaining", 0)
            return {"done": removed, "total": removed + left, "text": said}
        return progress_of(said)

    def _forget_task(self, child: TaskChild) -> None:
        child.process.wait()
        child.out.close()
        child.err.close()
        if child.arguments_file is not None:
            child.arguments_file.unlink(missing_ok=True)
        del self.tasks[child.task.task_id]

    # ---- the end, and outages

    def _release_all(self) -> None:
        """End every child; they release their jobs, tasks are released here."""
        for process in self.ready:
            close_pipes(process)  # nothing to do: it ends
        for child in self.jobs.values():
            end(child.process, signal.SIGTERM)
        for task_child in self.tasks.values():
            end(task_child.process, signal.SIGTERM)
        if self.jobs or self.tasks:
            say(f"stopping: {len(self.jobs)} jobs and {len(self.tasks)} tasks are released")
        deadline = Deadline(STOP_MAX_S)
        for process in (*self.ready, *self._children()):
            try:
                process.wait(deadline.left_s)
            except subprocess.TimeoutExpired:
                end(process, signal.SIGKILL)
                process.wait()
        for child in self.jobs.values():
            close_pipes(child.process)
        for task_child in list(self.tasks.values()):
            try:
                with pymongo.timeout(ANSWER_MAX_S):
                    TaskStore(self.database).give_back(task_child.task)
            except PyMongoError as error:
                say(f"{task_child.task.kind} could not be released ({type(error).__name__}); its lease will expire")
            self._forget_task(task_child)
        say("stopped")

    def _does_not_answer(self, error: PyMongoError) -> None:
        if not self.outage:
            say(f"MongoDB does not answer ({type(error).__name__}); waiting")
        self.outage = type(error).__name__

    def _answers(self) -> None:
        if self.outage:
            say("MongoDB answers again")
        self.outage = ""


def close_pipes(process: Child) -> None:
    """Close this end of a child's standard input."""
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            return


def end(process: subprocess.Popen[Any] | Forked, number: int) -> None:
    """Send a signal to a process, SIGKILL to its whole session, if it is alive."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
        except ProcessLookupError:
            return


def write_lines(values: list[int]) -> Path:
    """Return a file with one value a line: thousands of audit ids do not fit an argument."""
    descriptor, name = tempfile.mkstemp(prefix="crm-replay-ids-", text=True)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{value}\n" for value in values)
    return Path(name)


def command_of(task: Task, mapping_path: str, audit_ids: Path | None) -> list[str]:
    """Return the words of the command that executes the task. Raises BadInputError for unknown arguments."""
    account, arguments = f"--account={task.company_sso_id}", task.arguments
    known = {
        TaskKind.VERIFY: set[str](),
        TaskKind.PREFLIGHT: {"mapping_path"},
        TaskKind.DLQ_RETRY: {"cause", "audit_ids", "force", "reason"},
        TaskKind.ROLLBACK: {"reason"},
    }[task.kind]
    if strange := sorted(set(arguments) - known):
        raise BadInputError(f"{task.kind} takes no {', '.join(strange)}", f"it takes {', '.join(sorted(known))}")
    if task.kind is TaskKind.VERIFY:
        return ["verify", account, "--json"]
    if task.kind is TaskKind.PREFLIGHT:
        path = mapping_path or arguments.get("mapping_path") or ""
        return ["preflight", account, "--json", *([f"--mapping={path}"] if path else [])]
    if task.kind is TaskKind.ROLLBACK:
        reason = arguments.get("reason")
        asked = [f"--by={task.requested_by}", *([f"--reason={reason}"] if reason else [])]
        return ["rollback", account, "--yes", "--json", *asked]
    words = ["dlq", "retry", account, "--yes", "--json"]
    words.append(f"--reason={arguments.get('reason') or f'asked for by {task.requested_by}'}")
    if cause := arguments.get("cause"):
        words.append(f"--cause={cause}")
    if audit_ids is not None:
        words.append(f"--audit-ids=@{audit_ids}")
    return [*words, "--force"] if arguments.get("force") else words


def result_of(out: IO[bytes]) -> dict[str, Any] | None:
    """Return the JSON object that a command has printed; None for any other output."""
    out.seek(0)
    try:
        said = json.loads(out.read())
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def last_line(err: IO[bytes]) -> str:
    """Return the last line of a command's standard error."""
    size = err.seek(0, os.SEEK_END)
    err.seek(max(0, size - 16 * 1024))
    lines = [line.strip() for line in err.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:ERROR_CHARACTERS_MAX] if lines else ""


def progress_of(said: str) -> dict[str, Any]:
    """Return a command's progress, from its last line; {} before the first."""
    if not said:
        return {}
    found = PROGRESS.search(said)
    if found is None:
        return {"text": said}
    done, total = (int(number.replace(",", "")) for number in found.groups())
    return {"done": done, "total": total, "text": said}


# ---- the child ------------------------------------------------------------------------------------------------------


class _EventView:
    """Prints a run's notes in one line each; its progress is in the job document."""

    def __init__(self, account: str) -> None:
        self._account = account

    def note(self, text: str) -> None:
        """Print one line."""
        say(f"{self._account}: {text}")

    def progress(self, done: int, total: int, skipped: Mapping[str, int], failed: int) -> None:
        """Print nothing."""

    def close(self) -> None:
        """Nothing to do."""


def child() -> int:
    """Run the job that a line on standard input names; return the exit code: 0 if the job document has the result."""
    from ops.runner import replay as runner  # before reading the line: the import takes a second

    with forked() as forks:
        return _child(runner, forks)


def _child(runner: Any, forks: ForkServer | None) -> int:
    line = sys.stdin.readline()
    if not line:
        return 0
    order = Order(**json.loads(line))
    threading.Thread(target=_end_with_daemon, daemon=True, name="end-with-daemon").start()
    connections = Connections()  # the daemon's, from the environment
    database = open_database(connections, app_name="crm-replay-runner")
    try:
        with pymongo.timeout(ANSWER_MAX_S):
            found = JobStore(database).get(order.job_id)
        if found is None:
            return 0
        # As it was claimed; if another runner owns it by now, the fence shows it.
        job = replace(found, owner=order.owner, fence=order.fence)
        view = _EventView(job.company_sso_id)
        if job.partial:
            _end_partial(job, connections, database, view)
            return 0
    finally:
        database.client.close()
    options = RunOptions(
        order.mapping_path, processors=order.processors, sinks=order.sinks, home=Path(order.home), forks=forks
    )
    try:
        result = runner.run_claimed(job, options, connections, view)
    except ReplayError as error:
        view.note(str(error))
        return 0
    skipped = f", {result.ledger.skipped_total:,} skipped" if result.ledger.skipped_total else ""
    failed = f", {result.ledger.failed:,} failed" if result.ledger.failed else ""
    view.note(
        f"{result.job.status}: {result.ledger.migrated:,} migrated{skipped}{failed} in {result.seconds:.1f} s"
        f"{f' ({result.job.error})' if result.job.error else ''}"
    )
    if said := enrichments.in_words(enrichments.view_of(result.job.enrichment), job.company_sso_id):
        view.note(said)
    if said := http_documents.in_words(result.job.http_documents, job.company_sso_id):
        view.note(said)
    return 0


def _end_partial(job: Job, connections: Connections, database: Database, view: RunView) -> None:
    """End a replay of chosen rows whose runner has died: only its command knew which rows are left."""
    try:
        topics = Topics(connections.kafka(), connections.schema_registry_url)
        repairs.end_claimed(job, JobStore(database), topics, database, view)
    except (ReplayError, KafkaException, PyMongoError) as error:  # after the lease has expired, it is claimed again
        view.note(f"a replay of chosen rows could not be ended: {error}")
    else:
        view.note(f"a replay of chosen rows has failed: {repairs.RUNNER_DIED}")


def _end_with_daemon() -> None:
    """Stop this process when the daemon is gone: it holds the other end of standard input."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(child())
