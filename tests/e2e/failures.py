"""What happens to servers in the middle of a run: they are killed, come back, answer slowly, or have no disk left."""

import contextlib
import os
import resource
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ops.bench.measure import children
from ops.local import services
from ops.local.services import Service
from ops.local.services.detached import Process
from ops.local.services.layout import Home
from ops.local.services.ports import Ports, is_free
from tests.support.waiting import wait_until

LOOK_AGAIN_S = 0.02
CHUNK = 64 * 1024


@dataclass
class Servers:
    """Embedded servers of a test's own, which it may kill."""

    home: Path
    killed: list[Service] = field(default_factory=list)

    def up(self) -> services.Endpoints:
        """Start what does not run."""
        return services.up(self.home)

    def process(self, service: Service) -> Process:
        """Return a server's process; it must run."""
        process = Process.read(Home.at(self.home).process_file(service))
        assert process is not None, f"{service} does not run"
        return process

    def is_gone(self, service: Service) -> bool:
        """Whether its process has ended, all threads of it, so that its port is free for the next one."""
        place = Home.at(self.home)
        port = Ports(place.ports).get(service.value)
        return Process.read(place.process_file(service)) is None and port is not None and is_free(port)

    def kill(self, service: Service) -> None:
        """SIGKILL a server and its children (PostgreSQL's backends); return once it is gone."""
        process = self.process(service)
        backends = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        for backend in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
        wait_until(lambda: self.is_gone(service), f"{service} to be gone")
        self.killed.append(service)

    def stutter(self, service: Service, frozen_s: float, running_s: float, for_s: float) -> int:
        """Stop and continue a server and its children in turns; return how often."""
        process, times, until = self.process(service), 0, time.monotonic() + for_s
        while time.monotonic() < until:
            for number, pause_s in ((signal.SIGSTOP, frozen_s), (signal.SIGCONT, running_s)):
                for pid in (process.pid, *children(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(pause_s)
            times += 1
        return times

    def limit_files(self, service: Service, bytes_max: int) -> None:
        """Let a server write no file beyond this size from now on: to it, the disk is full."""
        _, hard = resource.prlimit(self.process(service).pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process(service).pid, resource.RLIMIT_FSIZE, (bytes_max, hard))


class SlowProxy:
    """A TCP proxy that holds back everything its target answers for `delay_s`; one thread for all connections."""

    def __init__(self, target: tuple[str, int], delay_s: float) -> None:
        """Listens on a free port of the loopback address at once."""
        self._target = target
        self._delay_s = delay_s
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._answers: set[socket.socket] = set()  # sockets to the target
        self._held: deque[tuple[float, socket.socket, bytes]] = deque()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="slow-proxy", daemon=True)
        self.held = 0  # answers, or parts of one

    @property
    def port(self) -> int:
        """Return where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def __enter__(self) -> "SlowProxy":
        """Serve from now on."""
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close every connection."""
        self._over.set()
        self._thread.join()
        for each in (*self._peers, self._listener):
            each.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            wait_s = max(0.0, self._held[0][0] - time.monotonic()) if self._held else LOOK_AGAIN_S
            for key, _ in self._selector.select(min(wait_s, LOOK_AGAIN_S)):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.fileobj)  # type: ignore[arg-type]
            while self._held and self._held[0][0] <= time.monotonic():
                _, to, data = self._held.popleft()
                self._send(to, data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        self._answers.add(server)
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        if source not in self._peers:
            return  # closed a moment ago, with its peer
        try:
            data = source.recv(CHUNK)
        except ConnectionError:
            data = b""
        if not data:
            self._close(source)
        elif source in self._answers:
            self.held += 1
            self._held.append((time.monotonic() + self._delay_s, self._peers[source], data))
        else:
            self._send(self._peers[source], data)

    def _send(self, to: socket.socket, data: bytes) -> None:
        if to not in self._peers:
            return
        try:
            to.sendall(data)
        except ConnectionError:
            self._close(to)

    def _close(self, one: socket.socket) -> None:
        for each in (one, self._peers[one]):
            self._selector.unregister(each)
            self._peers.pop(each, None)
            self._answers.discard(each)
            each.close()


@contextlib.contextmanager
def reading(pipe: Iterable[str] | None) -> Iterator[list[str]]:
    """Give the lines of a pipe as they come, so that nobody waits for it to be read."""
    assert pipe is not None
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(line.rstrip("\n") for line in pipe), daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        thread.join(10)


def workers_of(runner: subprocess.Popen[str]) -> dict[int, str]:
    """Return pid -> role of the runner's live workers."""
    found = {}
    for pid in Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"-m" in words:
            found[int(pid)] = words[words.index(b"-m") + 1].decode()
    return found
