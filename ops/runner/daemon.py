"""The runner's daemon: does what has been asked for over HTTP, from the console or by `crm-replay trigger`.

It claims jobs and tasks from MongoDB, as many at a time as this host may run; any number of runners on any number of
hosts share the work. Each job is a child process that renews the job's own lease, so the daemon can die, hang or be
replaced without a job noticing more than SIGTERM, and a job that takes its process down takes nothing else with it.
Children and workers would need seconds to import their libraries; a fork server has them loaded, and a child is kept
ready all the same, for where there can be none. A task is a command of `crm-replay`, run as a process of its own; its
`--json` is the task's result.

What a death costs: of the daemon, its children stop their workers and let go of their jobs; of a child, the job is free
again at once; of the host, after the lease. Nothing durable is here.
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
LOOK_EVERY_S = 0.05  # at the children, which asks nobody else
TASK_LEASE_S = 30.0
TASK_RENEW_EVERY_S = 2.0
ANSWER_MAX_S = 5.0  # of MongoDB; the loop has others to look after
OUTAGE_POLL_MAX_S = 5.0
NO_ROOM_PAUSE_S = 5.0
STOP_MAX_S = 30.0  # a job's runner ends its workers within 15 s, or kills them
READY_CHILDREN = 1
ERROR_CHARACTERS_MAX = 2_000
PROGRESS = re.compile(r"([0-9,]+) of ([0-9,]+) rows")


Child = subprocess.Popen[str] | Forked


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is told on its standard input: which claimed job to run, and how."""

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
    """A claimed task and the process that does it."""

    task: Task
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    arguments_file: Path | None
    renewed_at: float = 0.0
    said: str = ""  # the last line on its standard error


@dataclass(slots=True)
class Limits:
    """How much this host does at a time, and with how many workers a job."""

    jobs: int = 4
    tasks: int = 2
    processors: int = 1
    sinks: int = 1
    mapping_path: str = ""  # of this host; "": where the job says it is
    home: Path = Path(".crm-replay")


def say(text: str) -> None:
    """Say one line about one event."""
    print(f"{datetime.now(UTC):%H:%M:%S} crm-replay runner: {text}", file=sys.stderr, flush=True)  # noqa: T201


@dataclass(slots=True)
class Daemon:
    """Claims, starts, watches. One thread; `stop` ends it."""

    connections: Connections
    limits: Limits
    stop: threading.Event = field(default_factory=threading.Event)
    jobs: dict[str, JobChild] = field(default_factory=dict)
    tasks: dict[str, TaskChild] = field(default_factory=dict)
    forks: ForkServer | None = None  # has loaded what a child and its workers need
    ready: list[Child] = field(default_factory=list)
    database: Database = field(init=False)
    outage: str = ""

    def run(self, *, until_idle: bool = False) -> None:
        """Work until asked to stop, or with `until_idle` until nothing is left to do; then let go of everything."""
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
            self._let_go()
            self.database.client.close()

    def _pause(self, pause_s: float) -> bool:
        """Wait, but not after the end of a child, which makes room for the next job; True when asked to stop."""
        deadline = Deadline(pause_s)
        while not self.stop.wait(min(LOOK_EVERY_S, deadline.left_s)):
            ended = any(process.poll() is not None for process in self._children())
            if (ended and not self.outage) or deadline.passed:
                return False
        return True

    def step_or_say(self) -> bool:
        """Do a step; what another runner has changed in the midst of it is no reason to end."""
        try:
            return self.step()
        except JobChangedError as error:
            say(str(error))
            return False

    def step(self) -> bool:
        """Look after what runs, then claim what there is room for; return whether anything was claimed."""
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
        self._bury()
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
        except OSError as error:  # no memory, too many processes: another host may do better
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
            process.stdin.flush()  # not closed: its end tells the child that we are gone
        except BrokenPipeError:
            return True  # it has just died; the next look finds that, and frees the job
        how = "taking up" if job.begin_offsets else "starting"
        say(f"{account}: {how} job {job.job_id}, run {job.run}, as process {process.pid}")
        return True

    def _look_after_job(self, child: JobChild) -> None:
        code = child.process.poll()
        if code is None:
            return
        job = child.job
        if code != 0:  # it had no time to say why, nor to let go
            from ops.runner.lease import Terms, let_go, terms_after

            why = f"its process ended with signal {-code}" if code < 0 else f"its process ended with code {code}"
            store = JobStore(self.database)
            present = store.get(job.job_id)
            terms = terms_after(ReplayError(why), job, present or job) or Terms()
            say(f"{job.company_sso_id}: {why}; {terms.in_words()}")
            let_go(store, job, terms)
        close_pipes(child.process)
        del self.jobs[job.job_id]

    def _keep_ready(self) -> None:
        """Have a child ready that has its libraries loaded, as long as there is room for a job."""
        self.ready = [process for process in self.ready if process.poll() is None]
        if not self.ready and len(self.jobs) < self.limits.jobs:
            self.ready += [self._start_child() for _ in range(READY_CHILDREN)]

    def _start_child(self) -> Child:
        """Return a process that loads what a run needs and then waits for its order."""
        command = python_module("ops.runner.daemon")
        environment = child_environment(**self.connections.environment())
        if self.forks is not None:
            try:
                # It sees our end at its standard input; a second SIGTERM would have it leave its job as it is.
                return self.forks.spawn(command, environment, with_stdin=True, die_with_us=False)
            except OSError as error:
                say(f"the fork server is gone ({error}); jobs start slower until this runner is started again")
                self.forks = None
        return subprocess.Popen(  # noqa: S603 - our own module
            command,
            env=environment,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the daemon alone, which then stops them in order
        )

    def _bury(self) -> None:
        """Take note of the end of what a killed child has left to us: we adopt its workers, which end with it."""
        if self.forks is None:
            return
        self.forks.bury_others({process.pid for process in (*self._children(), *self.ready)})

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
        say(f"{task.company_sso_id}: {task.kind} asked for by {task.requested_by}, as process {process.pid}")
        return True

    def _look_after_task(self, child: TaskChild) -> None:
        store, task = TaskStore(self.database), child.task
        code = child.process.poll()
        try:
            if code is None:
                said = last_line(child.err)
                if said != child.said or time.monotonic() - child.renewed_at >= TASK_RENEW_EVERY_S:
                    store.renew(task, TASK_LEASE_S, self._progress(task, said))
                    child.said, child.renewed_at = said, time.monotonic()
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
            told = (job.rollback if job else None) or {}
            removed, left = told.get("removed", 0), told.get("remaining", 0)
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

    def _let_go(self) -> None:
        """End every child; jobs are let go by theirs, tasks are given back here."""
        for process in self.ready:
            close_pipes(process)  # nothing to do: it ends
        for child in self.jobs.values():
            end(child.process, signal.SIGTERM)
        for task_child in self.tasks.values():
            end(task_child.process, signal.SIGTERM)
        if self.jobs or self.tasks:
            say(f"stopping: {len(self.jobs)} jobs and {len(self.tasks)} tasks are let go")
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
                say(f"{task_child.task.kind} could not be given back ({type(error).__name__}); its lease runs out")
            self._forget_task(task_child)
        say("stopped")

    def _does_not_answer(self, error: PyMongoError) -> None:
        if not self.outage:
            say(f"MongoDB does not answer ({type(error).__name__}); waiting for it")
        self.outage = type(error).__name__

    def _answers(self) -> None:
        if self.outage:
            say("MongoDB answers again")
        self.outage = ""


def close_pipes(process: Child) -> None:
    """Close our end of a child's standard input."""
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            return


def end(process: subprocess.Popen[Any] | Forked, number: int) -> None:
    """Send a signal to a process and to what it has started in its session, if it is alive."""
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
    """Return the words of the command that does the task. Raises BadInputError for arguments it does not know."""
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
    """Return the JSON object that a command has printed; None if it has printed something else."""
    out.seek(0)
    try:
        said = json.loads(out.read())
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def last_line(err: IO[bytes]) -> str:
    """Return the last line that a command has said."""
    size = err.seek(0, os.SEEK_END)
    err.seek(max(0, size - 16 * 1024))
    lines = [line.strip() for line in err.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:ERROR_CHARACTERS_MAX] if lines else ""


def progress_of(said: str) -> dict[str, Any]:
    """Return how far a command is, from the line it has said last; {} before the first."""
    if not said:
        return {}
    found = PROGRESS.search(said)
    if found is None:
        return {"text": said}
    done, total = (int(number.replace(",", "")) for number in found.groups())
    return {"done": done, "total": total, "text": said}


# ---- the child ------------------------------------------------------------------------------------------------------


class _EventView:
    """Says a run's notes in one line each; how far it is stands in the job document."""

    def __init__(self, account: str) -> None:
        self._account = account

    def note(self, text: str) -> None:
        """Say one line."""
        say(f"{self._account}: {text}")

    def progress(self, done: int, total: int, skipped: Mapping[str, int], failed: int) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to do."""


def child() -> int:
    """Run the job that a line on standard input names; return the exit code: 0 if the job's document says it all."""
    from ops.runner import replay as runner  # before the line is waited for: this takes a second

    with forked() as forks:
        return _child(runner, forks)


def _child(runner: Any, forks: ForkServer | None) -> int:
    line = sys.stdin.readline()
    if not line:
        return 0
    order = Order(**json.loads(line))
    threading.Thread(target=_end_with_daemon, daemon=True, name="end-with-daemon").start()
    connections = Connections()  # the daemon's, which it has put into our environment
    database = open_database(connections, app_name="crm-replay-runner")
    try:
        with pymongo.timeout(ANSWER_MAX_S):
            found = JobStore(database).get(order.job_id)
        if found is None:
            return 0
        # As it was claimed; if it is another's by now, that will show.
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
    """End a replay of chosen rows whose runner has died: which rows are left, only its command knew."""
    try:
        topics = Topics(connections.kafka(), connections.schema_registry_url)
        repairs.end_claimed(job, JobStore(database), topics, database, view)
    except (ReplayError, KafkaException, PyMongoError) as error:  # once the lease has run out, it is claimed again
        view.note(f"a replay of chosen rows could not be ended: {error}")
    else:
        view.note(f"a replay of chosen rows has failed: {repairs.RUNNER_DIED}")


def _end_with_daemon() -> None:
    """Ask this process to stop when the daemon is gone: it holds the other end of our standard input."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(child())
