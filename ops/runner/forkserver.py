"""Workers with their libraries loaded: a process that imports once and forks them, in milliseconds instead of a second.

A process that is to start others calls `forked` before it has threads or clients. Its child, the fork server, never has
any: it imports what workers need, waits for orders on a socket, and forks. What it forks becomes a child of the
*owner*: the server forks twice, and the owner is the subreaper of its descendants (PR_SET_CHILD_SUBREAPER). So exit
codes, signals and the parent's death work as for any other child, and a running worker no longer needs the server.

A worker looks like `python -m MODULE`: a process, a session, an environment, files and arguments of its own. It also
ends like one, except that the interpreter is not finalized.

What a death costs: if the owner dies, the server and the workers get SIGTERM; a worker that is just being forked waits
for the owner's go, and ends without it. If the server dies, `spawn` raises OSError, and its caller executes the command
instead. Linux only: elsewhere, and in a process that already has threads, `forked` yields None.
"""

import atexit
import ctypes
import gc
import json
import logging
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

WORKERS = ("producer", "processors", "sink")
# What Faust imports only when an app is made; a worker without one of them imports it then.
LATER = (
    "faust.app.router",
    "faust.assignor.leader_assignor",
    "faust.events",
    "faust.stores.base",
    "faust.tables.sets",
    "faust.topics",
    "faust.worker",
    "importlib.readers",
    "mode.debug",
)
ANSWER_TIMEOUT_S = 60.0  # the first order waits for the imports, on a machine that may have other work
WAIT_POLL_S = 0.005  # where the kernel has no file descriptors for processes
TITLE = ("crm-replay", "fork", "server")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LENGTH = struct.Struct("!Q")
_PID = struct.Struct("!q")  # an errno below zero instead, if there is none
_GO = b"g"


class Forked:
    """A child that a fork server has forked; has the used part of the interface of `subprocess.Popen`."""

    def __init__(self, pid: int, argv: Sequence[str], stdin: IO[str] | None = None) -> None:
        """`stdin` is the owner's end of its standard input, if it is a pipe."""
        self.pid = pid
        self.args = list(argv)
        self.stdin = stdin
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code once it has ended. Raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            _wait_for_end(self.pid, timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal if it is alive; until `poll` has reaped it, its pid cannot be reused."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The owner's end of a fork server; see `forked`."""

    def __init__(self, pid: int, orders: socket.socket) -> None:
        """Not to be called directly: use `forked`."""
        self._pid: int | None = pid
        self._orders = orders
        self._orders.settimeout(ANSWER_TIMEOUT_S)

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        out: int = 1,
        err: int = 2,
        with_stdin: bool = False,
        die_with_us: bool = True,
    ) -> Forked:
        """Return a new child that does what `argv`, `[python, "-m", MODULE, ...]`, would do, in a session of its own.

        `out` and `err` are descriptors of this process. Its standard input is empty, or with `with_stdin` a pipe; with
        `die_with_us` it gets SIGTERM when this process ends. Raises OSError if the server is gone or cannot fork.
        """
        go, give = os.pipe()
        theirs, ours = os.pipe() if with_stdin else (os.open(os.devnull, os.O_RDONLY), None)
        try:
            order = {"argv": list(argv), "env": dict(env), "owner": os.getpid(), "die_with_owner": die_with_us}
            pid = self._ask(json.dumps(order).encode(), (theirs, out, err, go))
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # ChildProcessError if not a child
            os.write(give, _GO)
        except BaseException:
            if ours is not None:
                os.close(ours)
            raise
        finally:
            for descriptor in (go, give, theirs):
                os.close(descriptor)
        return Forked(pid, argv, None if ours is None else os.fdopen(ours, "w", encoding="utf-8"))

    def _ask(self, order: bytes, files: Sequence[int]) -> int:
        """Return the pid of the process that the server has forked; it waits for the owner's go."""
        try:
            socket.send_fds(self._orders, [_LENGTH.pack(len(order))], list(files))
            self._orders.sendall(order)
            (pid,) = _PID.unpack(_exactly(self._orders, _PID.size))
        except BaseException as error:
            self.close()  # a late reply would be taken for the next order's
            if isinstance(error, OSError | EOFError):
                raise OSError("the fork server does not answer") from error
            raise
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)

    def reap_others(self, ours: Collection[int]) -> None:
        """Reap ended children that are not among `ours`: orphans that this process has adopted."""
        with suppress(ChildProcessError):  # no child at all
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in ours or ended.si_pid == self._pid:
                    return  # reaped by what started it; the others after that
                os.waitpid(ended.si_pid, 0)

    def close(self) -> None:
        """End the server; the processes that it has forked continue."""
        self._orders.close()
        if self._pid is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            self._pid = None


@contextmanager
def forked(modules: Sequence[str] = WORKERS) -> Iterator[ForkServer | None]:
    """Yield a fork server that loads `modules`; None where forking is not possible. It ends with the context.

    To be called early: a process with threads cannot be forked safely, and the server's imports take time.
    """
    server = _start(modules)
    try:
        yield server
    finally:
        if server is not None:
            server.close()


def _start(modules: Sequence[str]) -> ForkServer | None:
    if sys.platform != "linux" or _has_threads() or _prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        return None
    ours, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    owner = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _serve(theirs, owner, modules)
            os._exit(0)
        except BaseException:  # of any kind: the owner's code up the stack must not run in this process
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    return ForkServer(pid, ours)


# ---- in the server --------------------------------------------------------------------------------------------------


def _serve(orders: socket.socket, owner: int, modules: Sequence[str]) -> None:
    """Import, then fork what is ordered until the owner is gone."""
    os.setsid()
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN) is signal.SIG_IGN  # as in a background process of a shell
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with(owner)
    _entitle(TITLE)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    gc.disable()  # imports stay, and memory that the collector does not touch is shared with the forks
    load(modules)
    gc.freeze()
    if _has_threads():
        return  # a library has started one: its locks would be forked in an arbitrary state
    while True:
        header, files, _, _ = socket.recv_fds(orders, _LENGTH.size, 4)
        try:
            if len(header) < _LENGTH.size:
                header += _exactly(orders, _LENGTH.size - len(header))
            order = _exactly(orders, *_LENGTH.unpack(header))
        except EOFError:
            return
        orders.sendall(_PID.pack(_fork(orders, {**json.loads(order), "ignores_interrupts": ignored}, files)))
        for file in files:
            os.close(file)


def load(modules: Sequence[str]) -> None:
    """Import what the workers among `modules` need at their start."""
    for module in modules:
        _load(module)
    for module in LATER:
        with suppress(Exception):
            import_module(module)
    with suppress(Exception):
        from schemas.process.registry import codec_for  # not for every command

        codec_for("")  # compiles the schemas


def _load(module: str) -> None:
    """Import what `python -m module` does."""
    with suppress(Exception):  # the process that needs it reports the error
        import_module(module)
        import_module(_main_of(module))


def _main_of(module: str) -> str:
    """Return the name of the module that `python -m module` executes."""
    return f"{module}.__main__" if hasattr(sys.modules.get(module), "__path__") else module


def _fork(orders: socket.socket, order: Mapping[str, Any], files: Sequence[int]) -> int:
    """Return the pid of a process that waits for the owner's go, by then a child of the owner."""
    reading, writing = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            orders.close()
            os.close(reading)
            os.write(writing, _PID.pack(_fork_again(writing, order, files)))
            os._exit(0)
    except OSError as error:
        os.close(writing)
        os.close(reading)
        return -(error.errno or 1)
    os.close(writing)
    answer = os.read(reading, _PID.size)
    os.close(reading)
    os.waitpid(between, 0)
    return int(_PID.unpack(answer)[0]) if len(answer) == _PID.size else -1


def _fork_again(answer: int, order: Mapping[str, Any], files: Sequence[int]) -> int:
    try:
        pid = os.fork()
    except OSError as error:
        return -(error.errno or 1)
    if pid == 0:
        os.close(answer)
        _become(order, files)
    return pid


# ---- in what is forked ----------------------------------------------------------------------------------------------


def _become(order: Mapping[str, Any], files: Sequence[int]) -> NoReturn:
    """Become the process of the order, once the owner gives the go."""
    *streams, go = files
    if os.read(go, 1) != _GO:
        os._exit(0)
    os.setsid()
    if order["die_with_owner"]:
        _end_with(order["owner"])
    for number, file in enumerate(streams):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    if not order["ignores_interrupts"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they last as long as the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    argv = order["argv"]
    _entitle(argv)
    sys.argv = ["-m", *argv[3:]]
    atexit._clear()  # noqa: SLF001 - the registered handlers are the owner's
    gc.enable()
    os._exit(_run(argv[2]))


def _run(module: str) -> int:
    """Return the exit code of `python -m module` in this process, with its exit handlers run."""
    sys.modules.pop(_main_of(module), None)  # to be executed now, and not for the second time
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - waits for threads as the interpreter does
        atexit._run_exitfuncs()  # noqa: SLF001
        logging.shutdown()
        sys.stdout.flush()
    return code


# ---- the system -----------------------------------------------------------------------------------------------------


def _end_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent ends; end at once if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


def _has_threads() -> bool:
    """Whether this process has other threads than this one, Python's or a library's."""
    return len([*Path("/proc/self/task").iterdir()]) > 1


def _prctl(option: int, value: int) -> int:
    return int(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0))


def _entitle(words: Sequence[str]) -> None:
    """Show `words` as the arguments of this process, if there is room: a fork has those of its parent."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(stat[45]), int(stat[46])  # arg_start and arg_end, fields 48 and 49
    for first in (words[0], Path(words[0]).name):
        text = b"\0".join(os.fsencode(word) for word in (first, *words[1:])) + b"\0"
        if begin and len(text) <= end - begin:
            ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)
            return


def _exactly(stream: socket.socket, size: int) -> bytes:
    """Return `size` bytes. Raises EOFError if there are fewer."""
    found = b""
    while len(found) < size:
        part = stream.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _wait_for_end(pid: int, timeout: float | None) -> None:
    """Return when the child has ended or the time is over; does not reap it."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # an old kernel
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                return
            time.sleep(WAIT_POLL_S)
        return
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll(None if timeout is None else timeout * 1000)
    finally:
        os.close(descriptor)
