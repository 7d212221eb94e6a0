"""What the servers have in common: how one is prepared, started, checked and ended."""

import json
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ops.local.services.detached import Command
from ops.local.services.fetching import Say, ToolCache, flush
from ops.local.services.layout import AnyService, Home, ServiceSettings


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A server's environment: its directory, the settings, the tools, the callback for progress."""

    home: Home
    settings: ServiceSettings
    tools: ToolCache
    say: Say
    kafka: str = ""  # where Kafka is, for a server that needs it


class Server(ABC):
    """One kind of server. `prepare` comes first, then `command`, then `problem` until it is None, then `welcome`."""

    service: ClassVar[AnyService]
    port_names: ClassVar[tuple[str, ...]]  # the first one is the clients'
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_timeout_s: ClassVar[float] = 30.0  # all three write down what they hold in memory

    def __init__(self, around: Surroundings) -> None:
        """Nothing is looked for or created yet."""
        self._around = around
        self._root = around.home.directory(self.service)

    @abstractmethod
    def prepare(self) -> None:
        """Find or fetch its programs and create its data directory; no process runs yet."""

    @abstractmethod
    def command(self, ports: Mapping[str, int]) -> Command:
        """Return how to start it on these ports, with its configuration written."""

    @abstractmethod
    def problem(self, ports: Mapping[str, int]) -> str | None:
        """Return why it does not serve clients, None if it does. Takes a few seconds at most."""

    @abstractmethod
    def url(self, ports: Mapping[str, int]) -> str:
        """Return its address for clients."""

    @abstractmethod
    def traces(self) -> list[tuple[str, str]]:
        """Return pairs of words that only this home's server has side by side on its command line."""

    @abstractmethod
    def delete_data(self) -> None:
        """Remove its data, wherever it is; it does not run."""

    def welcome(self, ports: Mapping[str, int]) -> None:  # noqa: B027 - most have nothing left to do
        """Do what is left once it answers."""


class DataDirectory:
    """A directory that is used only once complete: a marker file beside it is written last and removed first."""

    def __init__(self, path: Path, marker: Path) -> None:
        """Nothing is created here."""
        self.path = path
        self._marker = marker

    def made_by(self) -> str | None:
        """Return what created it, as passed to `complete`; None if it is absent or incomplete."""
        try:
            found = json.loads(self._marker.read_text())
        except (OSError, ValueError):
            return None
        return str(found.get("made_by")) if found.get("path") == str(self.path) and self.path.is_dir() else None

    def wipe(self) -> None:
        """Remove it; create it with `make` afterwards."""
        self._marker.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def complete(self, made_by: str) -> None:
        """Mark it as complete, with what created it. The mark is void at another path."""
        flush(self.path)  # the marker must not survive a power cut that its directory did not survive
        partial = self._marker.with_suffix(".partial")
        partial.write_text(json.dumps({"made_by": made_by, "path": str(self.path)}))
        partial.replace(self._marker)


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment for a server: without settings that are meant for other programs."""
    dropped = ("CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "NODE_OPTIONS", "NODE_PATH",
               "KAFKA_OPTS", "LD_PRELOAD")  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("PG")}
    return {**kept, **extra}
