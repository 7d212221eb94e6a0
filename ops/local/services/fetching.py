"""The cache of downloaded tools: each is installed once per user, whole or not at all.

A tool is unpacked into a temporary directory and renamed as the last step, under a file lock. So an existing directory
is complete, two checkouts can install at once, and the next process removes the remains of a killed one.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ops.local.services.detached import last_lines
from schemas.errors import BadInputError, ReplayError

Say = Callable[[str], None]
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(
    r"(?i)^(?!.*(stack trace of the errors|Re-run Maven)).*\berror\b|^E: "
)  # of Maven, npm and pip; of apt
_GIST_CHARACTERS_MAX = 500
_LOCK_LOOK_AGAIN_S = 0.2
_TOOL_LOOK_AGAIN_S = 0.1


class CancelledError(ReplayError):
    """Another server failed, or the user interrupted: this work was given up on purpose."""


def flush(directory: Path) -> None:
    """Return once everything in this directory is on the disk (`sync` would wait for other data too)."""
    for parent, _directories, files in os.walk(directory):
        for name in (".", *files):
            path = Path(parent, name)
            if path.is_file() or name == ".":
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


@contextlib.contextmanager
def locked(file: Path, *, cancel: threading.Event, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on `file` (made if missing); a holder that dies releases it.

    `waiting` is called once if another process holds it. Raises CancelledError if `cancel` is set meanwhile,
    BadInputError if the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("w")
    except OSError as error:
        raise BadInputError(f"cannot write in {file.parent}: {error.strerror}", "give this user the right to") from None
    with handle:
        notified = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not notified:
                    notified = True
                    waiting()
                if cancel.wait(_LOCK_LOOK_AGAIN_S):
                    raise CancelledError("given up while waiting for another process") from None
        yield


def _gist(log: Path) -> str:
    """Return the first errors of an installer's log (the last lines only point to manuals), else its end."""
    text = _COLOURS.sub("", log.read_text("utf-8", "replace"))
    errors = [line.strip() for line in text.splitlines() if _ERROR.search(line) and len(line.split()) > 1]
    return " | ".join(errors[:2])[:_GIST_CHARACTERS_MAX] or last_lines(log)


class ToolCache:
    """Installs tools below one directory, with the callback for progress and the event for cancellation."""

    def __init__(self, directory: Path, *, logs: Path, say: Say, cancel: threading.Event) -> None:
        """`logs` gets the installers' output; `cancel` ends a running download."""
        self.directory = directory
        self.logs = logs
        self.say = say
        self.cancel = cancel

    def path(self, name: str, what: str, fill: Callable[[Path], None]) -> Path:
        """Return the directory of tool `name`, filled by `fill` if it does not exist yet.

        `name` has to contain everything that decides the content: version, platform, digest of a pinned list.
        """
        target = self.directory / name
        if target.is_dir():
            return target
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(
                f"cannot make the cache directory {self.directory}: {error.strerror}",
                "set CRM_REPLAY_CACHE to one that can be written",
            ) from None

        def waiting() -> None:
            self.say(f"waiting for another process that is fetching {what}")

        with locked(self.directory / f".{name}.lock", cancel=self.cancel, waiting=waiting):
            if target.is_dir():
                return target
            for left_over in self.directory.glob(f".{name}.partial-*"):
                shutil.rmtree(left_over, ignore_errors=True)
            self.say(f"fetching {what}")
            partial = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=self.directory))
            try:
                fill(partial)
                partial.chmod(0o755)
                flush(partial)  # else a power cut could keep the name and lose the content
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        return target

    def run(
        self,
        what: str,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        to_do: str = "check the network and the package settings of this user, then try again",
    ) -> None:
        """Run an installer to its end; its output is in `logs`/install-`what`.log.

        Raises BadInputError with its last lines if it fails, CancelledError if `cancel` is set.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"install-{what}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - argv is ours
                [str(part) for part in argv],
                cwd=cwd,
                env=dict(env) if env is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                umask=0o022,  # root's PostgreSQL is run by another user
                start_new_session=True,  # so that its children can be ended with it
            )
            try:
                while process.poll() is None:
                    if self.cancel.is_set():
                        raise CancelledError(f"fetching {what} was given up")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_TOOL_LOOK_AGAIN_S)
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.returncode != 0:
            program = Path(str(argv[0])).name
            raise BadInputError(
                f"{program} could not fetch {what} (exit code {process.returncode}): {_gist(log)}",
                f"{to_do}; its output: {log}",
            )
