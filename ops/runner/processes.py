"""The processes of one job on this host: started, watched, restarted after a crash, ended with their parent.

No state here is durable. A child that dies is restarted and resumes from what it had committed; when this process dies,
the kernel sends its children SIGTERM (Linux), so no part of a job continues unsupervised.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.runner.forkserver import Forked, ForkServer
from schemas.errors import BadInputError, ReplayError
from schemas.process import logs
from schemas.process.waiting import Deadline
from schemas.vocabulary import ExitCode

STOP_TIMEOUT_S = 15.0  # a graceful leave takes less; longer than this means it hangs
RESTARTS_MAX = 5  # in a row, each within RESTART_WINDOW_S of its start: then the cause is not transient
RESTART_WINDOW_S = 60.0
STALL_WINDOW_S = 600.0  # the same for a worker that no longer moved, which takes minutes to be found
RESTART_BACKOFF_S = 0.5
LOG_LINES_SHOWN = 5
_PR_SET_PDEATHSIG = 1


class ProcessGaveUpError(ReplayError):
    """A process of the job kept ending."""


def require_writable(home: Path) -> None:
    """Create the directory of the processes' logs. Raises BadInputError if it cannot be written.

    To be called before anything else is changed: a job that cannot log must not exist.
    """
    logs_of_home = home / "logs"
    try:
        logs_of_home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=logs_of_home):
            pass
    except OSError as error:
        raise BadInputError(
            f"nothing can be written in {logs_of_home} ({error.strerror})",
            "set CRM_REPLAY_HOME to a writable directory",
        ) from None


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent ends; runs in the child between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Supervised:
    """One role's process and its state."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    finishes: bool = False  # ends by itself with exit code 0 when its work is done
    final_codes: frozenset[int] = frozenset()  # exit codes that are a result, not a crash
    hopeless_codes: frozenset[int] = frozenset()  # exit codes of a first start that a restart would repeat
    forks: ForkServer | None = None  # with its libraries loaded; tried first
    process: subprocess.Popen[bytes] | Forked | None = None
    returncode: int | None = None  # set once it has ended for good
    restarts: int = 0
    started_at: float = 0.0
    crashes_in_a_row: int = field(default=0)

    def start(self) -> None:
        """Start it; its output is appended to its log. Raises ProcessGaveUpError if that cannot be written."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            log = self.log.open("ab")
        except OSError as error:
            raise ProcessGaveUpError(
                f"{self.name} cannot be started: {self.log} cannot be written ({error.strerror})",
                "free disk space, or grant write permission",
            ) from error
        with log:
            self.process = self._forked(log.fileno()) or subprocess.Popen(  # noqa: S603 - our own modules
                list(self.argv),
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
                start_new_session=True,  # Ctrl-C reaches only the runner, which then stops them in order
            )
        self.started_at = time.monotonic()

    def _forked(self, log: int) -> Forked | None:
        if self.forks is None:
            return None
        try:
            return self.forks.spawn(self.argv, self.env, out=log, err=log)
        except OSError:  # it has died; from now on each start takes a second
            self.forks = None
            return None

    @property
    def running(self) -> bool:
        """Whether it is alive now."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal if it is alive."""
        if self.process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def last_line(self) -> str:
        """Return the last line of its log."""
        return self.last_lines().rsplit(" | ", 1)[-1]

    def last_lines(self) -> str:
        """Return the end of its log on one line."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return "(no log)"
        shown = [logs.last_event(line.strip()) for line in lines[-LOG_LINES_SHOWN:] if line.strip()]
        return " | ".join(shown) or "(empty log)"


class Supervisor:
    """Keeps the processes of one job alive. Use as a context manager: leaving it stops them all."""

    def __init__(self) -> None:
        """Start with none."""
        self.processes: list[Supervised] = []

    def __enter__(self) -> "Supervisor":
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Stop every process that still runs."""
        self.stop()

    def add(self, process: Supervised) -> None:
        """Start a process and watch it from now on."""
        process.start()
        self.processes.append(process)

    def check(self) -> list[Supervised]:
        """Restart crashed processes; return those that ended for good since the last call.

        Raises ProcessGaveUpError for one that keeps crashing, with the end of its log.
        """
        ended = []
        for process in self.processes:
            if process.returncode is not None or process.process is None or process.running:
                continue
            code = process.process.returncode
            if (process.finishes and code == 0) or code in process.final_codes:
                process.returncode = code
                ended.append(process)
                continue
            # What has run before has valid input: a later start that fails like this met an outage.
            if code in process.hopeless_codes and process.restarts == 0:
                raise ProcessGaveUpError(f"{process.name} ended: {process.last_line()}", f"see {process.log}")
            lived_s = time.monotonic() - process.started_at
            window_s = STALL_WINDOW_S if code == ExitCode.STALLED else RESTART_WINDOW_S
            process.crashes_in_a_row = process.crashes_in_a_row + 1 if lived_s < window_s else 1
            if process.crashes_in_a_row > RESTARTS_MAX:
                raise ProcessGaveUpError(
                    f"{process.name} ended {process.crashes_in_a_row} times in a row (last exit code {code}): "
                    f"{process.last_lines()}",
                    f"see {process.log}; the job can be resumed",
                )
            time.sleep(RESTART_BACKOFF_S * 2 ** (process.crashes_in_a_row - 1))
            process.restarts += 1
            process.start()
        return ended

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End them all: SIGTERM, and SIGKILL for those that still run after `timeout_s`."""
        for process in self.processes:
            process.signal(signal.SIGTERM)
        deadline = Deadline(timeout_s)
        for process in self.processes:
            if process.process is None:
                continue
            try:
                process.process.wait(deadline.left_s)
            except subprocess.TimeoutExpired:
                process.process.kill()
                process.process.wait()
            if process.returncode is None:
                process.returncode = process.process.returncode


def python_module(module: str) -> list[str]:
    """Return the command that runs one of this product's packages in this interpreter."""
    return [sys.executable, "-m", module]


def child_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with `extra`, and unbuffered output so that logs are complete after a kill."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **extra}
