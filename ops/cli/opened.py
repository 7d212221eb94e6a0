"""The customer data platform's database, as a command opens it."""

from ops.cli import host
from ops.jobs import migrations
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, connect


class Opened:
    """Opens the customer data platform's database and closes it again."""

    def __init__(self, connections: Connections | None = None, *, any_schema: bool = False) -> None:
        """`connections` are the configured ones if left out."""
        self._connections = connections or host.connections()
        self._any_schema = any_schema

    def __enter__(self) -> Database:
        """Return it; raises ReplayError if its schema is not this release's."""
        self._database = connect(self._connections)
        if not self._any_schema:
            try:
                migrations.require_current(self._database)
            except BaseException:
                self._database.client.close()
                raise
        return self._database

    def __exit__(self, *_exc: object) -> None:
        """Close it."""
        self._database.client.close()
