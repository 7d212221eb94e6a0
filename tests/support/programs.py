"""Programs of ours as processes, without waiting a second or two for the imports of each.

`Program` is a `subprocess.Popen` of `python -m MODULE ...`, forked from a process that has loaded what our commands and
workers need (as the product does with a run's workers, ops/runner/forkserver.py). A process, an environment, files and
signals of its own: a test can kill it, stop it and read what it says. Commands in the tests of the documentation are
executed as a user does.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ops.runner import forkserver

ROOT = Path(__file__).resolve().parents[2]
NUMBER = struct.Struct("!i")  # of a process, or its exit status
LENGTH = struct.Struct("!Q")
CALL_TIMEOUT_S = 240
OF_TESTS = ("tests.integration.processors.worker", "tests.integration.sink.faulty_sink")
ROOM = "-" * 4_000  # for the words of what is forked: a fork shows them where its parent's are


class Program(subprocess.Popen[Any]):
    """`python -m MODULE WORDS` with the given files and environment; `words` begin with the module."""

    def __init__(self, *words: str, env: Mapping[str, str] | None = None, **how: Any) -> None:
        """`how` are Popen's streams and text mode."""
        self._status = -1
        super().__init__([sys.executable, "-m", *words], env=dict(os.environ if env is None else env), **how)

    @classmethod
    def call(cls, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end, and return its exit code and what it has written."""
        with cls(*words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            out, err = process.communicate(timeout=CALL_TIMEOUT_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def _execute_child(self, args: Any, _executable: Any, _preexec: Any, _close: Any, _pass: Any, cwd: Any, env: Any,
                       *rest: Any) -> None:  # fmt: skip
        _startupinfo, _flags, _shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_ = rest
        streams = [
            os.open(os.devnull, os.O_RDONLY) if p2cread == -1 else p2cread,
            1 if c2pwrite == -1 else c2pwrite,
            2 if errwrite == -1 else errwrite,
        ]
        try:
            self.pid, self._status = _SERVER.spawn([*map(str, args)], env, cwd or str(Path.cwd()), streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
            if p2cread == -1:
                os.close(streams[0])

    def _internal_poll(self, *_given: Any, **_named: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Return as os.waitpid does; whose child the process is has been told by the server."""
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._status, NUMBER.size)
        os.close(self._status)
        if not told:
            raise ChildProcessError(f"the process that forked {self.args!r} has ended")
        return self.pid, NUMBER.unpack(told)[0]


class _Server:
    """This process's end: starts the one that forks with the first order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: socket.socket | None = None

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], cwd: str, streams: Sequence[int]) -> tuple[int, int]:
        """Return the number of the new process, and where its exit status will be told."""
        reading, writing = os.pipe()
        order = json.dumps({"argv": argv, "env": env, "cwd": cwd}).encode()
        try:
            with self._lock:
                orders = self._started()
                socket.send_fds(orders, [LENGTH.pack(len(order))], [*streams, writing])
                orders.sendall(order)
                (pid,) = NUMBER.unpack(forkserver._exactly(orders, NUMBER.size))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return pid, reading

    def _started(self) -> socket.socket:
        if self._orders is None:
            self._orders, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.programs", str(theirs.fileno()), ROOM],
                    pass_fds=[theirs.fileno()],
                    cwd=ROOT,
                    start_new_session=True,
                )
            atexit.register(self._close, process)
        return self._orders

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if self._orders is not None:
            self._orders.close()
        process.kill()
        process.wait()


_SERVER = _Server()


# ---- in the process that forks --------------------------------------------------------------------------------------


def serve(orders: socket.socket) -> None:
    """Import, then fork what is ordered and tell how it ended, until the test process is gone."""
    _load()
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    if forkserver._has_threads():
        sys.exit("a library has started a thread: what is forked would find its locks as they are")
    statuses: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([orders, woken], [], [])
        if woken in readable:
            with suppress(BlockingIOError):
                woken.recv(4096)
            _bury(statuses)
        if orders in readable:
            header, files, _, _ = socket.recv_fds(orders, LENGTH.size, 4)
            if not header:
                return
            order = json.loads(forkserver._exactly(orders, *LENGTH.unpack(header)))
            *streams, status = files
            pid = os.fork()
            if pid == 0:
                for descriptor in (orders.fileno(), woken.fileno(), wake.fileno(), status, *statuses.values()):
                    os.close(descriptor)
                signal.set_wakeup_fd(-1)
                _become(order, streams)
            statuses[pid] = status
            orders.sendall(NUMBER.pack(pid))
            for descriptor in streams:
                os.close(descriptor)


def _load() -> None:
    """Import what commands and workers import."""
    from ops.cli import main as cli

    cli.application()
    forkserver.load(("ops", *forkserver.WORKERS, *OF_TESTS))
    gc.freeze()


def _become(order: Mapping[str, Any], streams: Sequence[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(order["cwd"])
    go, give = os.pipe()
    os.write(give, forkserver._GO)
    os.close(give)
    what = {**order, "owner": 0, "die_with_owner": False, "ignores_interrupts": False}
    forkserver._become(what, [*streams, go])


def _bury(statuses: dict[int, int]) -> None:
    """Tell the ends of all that have ended."""
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        told = statuses.pop(pid)
        with suppress(BrokenPipeError):
            os.write(told, NUMBER.pack(status))
        os.close(told)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))


def alive(pid: int) -> bool:
    """Alive and not a zombie that its new parent has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
