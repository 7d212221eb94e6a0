"""MongoDB: the real server code with WiredTiger, as a Node.js add-on behind a small listener of ours.

What survives a kill: writes that were acknowledged with `j: true`. Killed with SIGKILL while one client inserted, in 18
runs per write concern (batches of 1, 100 and 1000): `w: 1` had lost acknowledged documents in 11 of them (the journal
is written every 100 ms), `w: "majority"` in 3 (one server alone does not wait for its journal then), `j: true` in none.
So the published URL has `journal=true`; a client with a write concern of its own has to set `j=True`. It
costs a tenth of the rate in batches of 100, nothing that could be measured in batches of 1000.

It has no sessions, transactions, change streams, authentication or TLS.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from ops.local.services import ports as loopback
from ops.local.services import tools
from ops.local.services.detached import Command
from ops.local.services.layout import Service
from ops.local.services.server import DataDirectory, Server, Surroundings, environment

_LISTENER = Path(__file__).parent / "mongo_listener.js"


class MongoServer(Server):
    """One MongoDB engine and its listener on the loopback address."""

    service = Service.MONGODB
    port_names = ("mongodb",)

    def __init__(self, around: Surroundings) -> None:
        """Nothing is looked for or created yet."""
        super().__init__(around)
        self._data = DataDirectory(self._root / "data", self._root / "data.json")
        self._program: tuple[str, ...] = ()
        self._modules = Path()

    def prepare(self) -> None:
        """Find or fetch Node.js, the engine and, if need be, a newer C library."""
        cache = self._around.tools
        node = tools.find_node(cache)
        self._modules = tools.mongodb_engine(cache, node)
        self._program = (*tools.newer_libc(cache), str(node.node))
        self._root.mkdir(parents=True, exist_ok=True)
        if self._data.made_by() is None:
            self._data.wipe()

    def command(self, ports: Mapping[str, int]) -> Command:
        """Return how to start the listener, which opens the engine."""
        self._data.path.mkdir(exist_ok=True)
        argv = [*self._program, str(_LISTENER), "--modules", str(self._modules), "--data", str(self._data.path),
                "--host", loopback.HOST, "--port", str(ports["mongodb"]),
                "--cache-mib", str(self._around.settings.mongodb_cache_mib)]  # fmt: skip
        return Command(argv, cwd=self._root, env=environment())

    def problem(self, ports: Mapping[str, int]) -> str | None:
        """Ping it."""
        if not loopback.accepts(ports["mongodb"]):
            return "its port is closed"
        try:
            with pymongo.MongoClient[dict[str, Any]](
                self.url(ports), serverSelectionTimeoutMS=3000, connectTimeoutMS=3000, socketTimeoutMS=5000
            ) as client:
                client.admin.command("ping")
        except PyMongoError as error:
            return " ".join(str(error).split())[:200]
        return None

    def url(self, ports: Mapping[str, int]) -> str:
        """Return the URL for clients."""
        return f"mongodb://{loopback.HOST}:{ports['mongodb']}/?directConnection=true&journal=true"

    def welcome(self, ports: Mapping[str, int]) -> None:  # noqa: ARG002 - the same for all servers
        """Mark the data directory as complete: the engine has created it, and has responded."""
        if self._data.made_by() is None:
            self._data.complete(self._modules.parent.name)

    def traces(self) -> list[tuple[str, str]]:
        """Return the option with its data directory."""
        return [("--data", str(self._data.path))]

    def delete_data(self) -> None:
        """Remove the databases."""
        self._data.wipe()
