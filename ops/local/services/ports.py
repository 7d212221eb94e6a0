"""Ports for the servers: the user's if given, else those of the last start, else free ones."""

import json
import random
import socket
import threading
from pathlib import Path

from schemas.errors import BadInputError
from schemas.process.waiting import Deadline

HOST = "127.0.0.1"
# Below the range that systems hand to outgoing connections, so that no client takes a port between choice and use.
_LOWEST, _HIGHEST = 20_000, 32_000
_TRIES = 200
LAST_PORT_WAIT_S = 10.0  # for a server that was killed a moment ago, whose port goes with the last of its threads
_LOOK_AGAIN_S = 0.05


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections do not matter
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def accepts(port: int, *, timeout_s: float = 1.0) -> bool:
    """Whether something listens on this port of the loopback address."""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_s):
            return True
    except OSError:
        return False


class Ports:
    """The ports of one home, on file. For the threads of one `up`, which holds the home's lock."""

    def __init__(self, file: Path, *, patience_s: float = LAST_PORT_WAIT_S) -> None:
        """Read the file; a missing or torn one has no ports. A busy port of the last start is waited for so long."""
        self._file = file
        self._patience_s = patience_s
        self._choosing = threading.Lock()
        try:
            stored = json.loads(file.read_text())
            self._ports = {str(name): int(port) for name, port in stored.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self._ports = {}

    def get(self, name: str) -> int | None:
        """Return the port of the last start, None if there was none."""
        return self._ports.get(name)

    def choose(self, name: str, *, wanted: int | None = None, variable: str = "") -> int:
        """Return a free port for `name` and put it on file; the last start's, whose address is known, if it can be had.

        `wanted` is the user's, from `variable`: taken or refused. Raises BadInputError if it is busy.
        """
        last = self.get(name)
        deadline = Deadline(self._patience_s)
        while last is not None and wanted in (None, last) and not is_free(last) and deadline.wait(_LOOK_AGAIN_S):
            pass
        with self._choosing:
            return self._choose(name, wanted, variable)

    def _choose(self, name: str, wanted: int | None, variable: str) -> int:
        if wanted is not None:
            if not is_free(wanted):
                raise BadInputError(
                    f"port {wanted} ({variable}) is in use by another process",
                    f"end that, or give another {variable}, or none to have a free one chosen",
                )
            return self._store(name, wanted)
        last = self.get(name)
        if last is not None and is_free(last):
            return last
        taken = set(self._ports.values())
        for _ in range(_TRIES):
            port = random.SystemRandom().randrange(_LOWEST, _HIGHEST)
            if port not in taken and is_free(port):
                return self._store(name, port)
        raise BadInputError(f"no free port between {_LOWEST} and {_HIGHEST} on {HOST}", "give the ports yourself")

    def _store(self, name: str, port: int) -> int:
        self._ports[name] = port
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._ports, indent=2))
        partial.replace(self._file)
        return port
