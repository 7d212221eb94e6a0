"""Processes that outlive the command that started them: started, recognised again, ended.

A process is known by its id *and* its start mark, so an id that the system has given to another process meanwhile is
never signalled.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.local.services import launcher
from ops.local.services.launcher import start_mark
from schemas.errors import BadInputError
from schemas.process.waiting import Deadline

LOG_LINES_SHOWN = 4
LOG_BYTES_MAX = 8 << 20  # a longer log is put aside at the next start; one older log is kept
_STACK_FRAME = re.compile(r"\s+(at |\.\.\. \d+ more)")  # of Java and Node: the line above them has the error
_LOOK_AGAIN_S = 0.05  # only where the system has no pidfd to wait on


@dataclass(frozen=True, slots=True)
class Process:
    """One running or ended process, distinguished from any other process with the same id, past or future."""

    pid: int
    mark: str

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return start_mark(self.pid) == self.mark

    @classmethod
    def read(cls, file: Path) -> "Process | None":
        """Return the live process that `file` names; None if there is no file, or it has ended."""
        try:
            found = json.loads(file.read_text())
            process = cls(int(found["pid"]), str(found["mark"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a torn file of an earlier crash names nothing
        return process if process.alive else None

    def write(self, file: Path) -> None:
        """Put it on file, atomically."""
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"pid": self.pid, "mark": self.mark}))
        partial.replace(file)


@dataclass(frozen=True, slots=True)
class User:
    """The account a server runs as when root starts it."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """What to start: absolute program first, whole environment, working directory, and the user (None: ours)."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    user: User | None = None


def start(command: Command, *, process_file: Path, log: Path) -> Process:
    """Start it in a session of its own and return it. Its output is appended to `log`.

    Raises BadInputError if it cannot be executed at all. What it does afterwards is the caller's to watch.
    """
    for directory in (process_file.parent, log.parent):
        directory.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
    process_file.unlink(missing_ok=True)
    spec = {
        "argv": list(command.argv),
        "cwd": str(command.cwd),
        "process_file": str(process_file),
        "log": str(log),
        "uid": command.user.uid if command.user else None,
        "gid": command.user.gid if command.user else None,
    }
    answer = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-S", launcher.__file__, json.dumps(spec)],
        env=dict(command.env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    if answer.returncode != 0:
        process_file.unlink(missing_ok=True)
        raise BadInputError(f"cannot run {command.argv[0]}", answer.stdout or answer.stderr.strip()[-300:])
    found = json.loads(process_file.read_text())
    return Process(found["pid"], found["mark"])


def stop(process: Process, *, number: signal.Signals = signal.SIGTERM, timeout_s: float) -> bool:
    """End the process and return once it has ended; False if it had to be killed after `timeout_s`."""
    if _signal(process, number, timeout_s):
        return True
    _signal(process, signal.SIGKILL, timeout_s=30.0)
    return False


def _signal(process: Process, number: signal.Signals, timeout_s: float) -> bool:
    """Send the signal and wait for the end; whether it came in time."""
    try:
        handle = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return True
    except OSError:
        handle = None  # a kernel before 5.3
    deadline = Deadline(timeout_s)
    try:
        if not process.alive:  # checked after the handle is open: from here on the id cannot be reused unnoticed
            return True
        with contextlib.suppress(ProcessLookupError):
            if handle is not None:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(process.pid, number)
        if handle is not None:
            poll = select.poll()
            poll.register(handle, select.POLLIN)  # readable once it has ended
            return bool(poll.poll(timeout_s * 1000))
        while process.alive and deadline.wait(_LOOK_AGAIN_S):
            pass
        return not process.alive
    finally:
        if handle is not None:
            os.close(handle)


def with_arguments(first: str, second: str) -> list[Process]:
    """Return the running processes of which these two words follow each other on the command line.

    For servers whose process file was lost, with the home it was in. Only where there is a /proc; else nothing.
    """
    words = f"{first}\0{second}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"\0" + words in (entry / "cmdline").read_bytes() and (mark := start_mark(int(entry.name))):
                found.append(Process(int(entry.name), mark))
    return found


def last_lines(log: Path, *, since_byte: int = 0, lines_max: int = LOG_LINES_SHOWN) -> str:
    """Return the end of a log (from `since_byte` on) as one line; `(empty)` if nothing was written."""
    try:
        with log.open("rb") as file:
            file.seek(max(since_byte, log.stat().st_size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _STACK_FRAME.match(line)]
    return " | ".join(lines[-lines_max:]) or "(empty)"
