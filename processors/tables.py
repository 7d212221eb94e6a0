"""The app's tables: Faust's GlobalTables over the compacted reference topics, whole in every worker.

    contacts = declare(app, "contacts", job.topics.contacts, of_account(job.company_sso_id))
    contacts[b"50007"]  # a Contact; KeyError if there is none

Declaration, life cycle, mapping interface and monitor are Faust's. Its extension points are used here:

- the **store** keeps rows as the bytes from the topic, and decodes one when it is read (`DecodedRows`);
- the **table** is read-only, since its topic is the producer's, and `get`, called for every row of the source, reads
  the store without Faust's sensors;
- the **table manager** has `ReferenceTables` read the topics to their ends and follow them afterwards. Faust's recovery
  has nothing to do; `ReferenceTables` documents why it cannot be used. `TablesFirst` starts the manager first.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Protocol

import faust
from faust.sensors.monitor import TableState
from faust.stores import STORES, memory
from faust.tables import TableManager

from processors.lookups.answers import DecodedRows
from processors.lookups.tables import TYPES, ReferenceTables, TableRows
from schemas.codec import Codec

STORE = "rows://"
STORES.aliases["rows"] = f"{__name__}:RowStore"  # as an entry point in `faust.stores` would


class TablesApp(Protocol):
    """What the tables need of their app, in addition to Faust's."""

    kafka: Mapping[str, Any]  # confluent-kafka's configuration
    codec: Codec
    load_timeout_s: float


class RowStore(memory.Store):  # type: ignore[misc]
    """Faust's memory store with encoded rows, decoded when they are read."""

    app: TablesApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept Faust's arguments; the table's option `keep` decides which records may be used."""
        super().__init__(*args, **kwargs)
        self.rows: TableRows = {}
        self.data = DecodedRows(self.rows, self.app.codec, self.value_type, self.options["keep"])


class RowState(TableState):  # type: ignore[misc]
    """A table in Faust's monitor, with its size and its load time."""

    def asdict(self) -> Mapping[str, Any]:
        """Return Faust's counts (reads by `table[key]` only), the rows, and the load time of all tables in seconds."""
        return {**super().asdict(), "rows": len(self.table), "load_s": self.table.app.tables.load_s}


class ReferenceTable(faust.GlobalTable):  # type: ignore[misc]
    """A compacted topic of the producer's as a table of records by key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept Faust's arguments."""
        super().__init__(*args, **kwargs)
        self._records: DecodedRows[Any] = self.data.data  # of the store
        self.get = self._records.get  # Faust's `table[key]` costs 2 µs, a row's whole transformation 25
        self.app.monitor.tables[self.name] = RowState(self)

    @property
    def rejects(self) -> int:
        """Return how many of the records read must not be used."""
        return self._records.rejects

    def on_key_set(self, key: Any, value: Any) -> None:  # noqa: ARG002
        """Raise TypeError: the row would be written to the producer's topic."""
        raise TypeError(f"the table {self.name} is read-only: the producer publishes its topic")

    def on_key_del(self, key: Any) -> None:
        """Raise TypeError, like `on_key_set`."""
        self.on_key_set(key, None)


class TablesFirst(faust.App.BootStrategy):  # type: ignore[misc]
    """Faust's order of services, except the tables: loaded before the consumer starts, and so before it joins."""

    def server(self) -> Iterable[Any]:
        """Return the services in the order in which they start."""
        first = chain(self.sensors(), self.tables())
        return chain(first, self.kafka_producer(), self.kafka_consumer(), self.agents(), self.kafka_conductor())


class ReferenceTableManager(TableManager):  # type: ignore[misc]
    """Loads the tables before the app joins its group, and keeps them up to date from then on."""

    app: Any  # a faust.App and TablesApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept Faust's arguments."""
        super().__init__(*args, **kwargs)
        self._reader: ReferenceTables | None = None
        self._loading: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        """Return False, with any tables: Faust's recovery then resumes the streams and restores nothing."""
        return False

    @property
    def changelog_topics(self) -> set[str]:
        """Return no topic: one that Faust's consumer had to read would add its leader's assignor to the group."""
        return set()

    @property
    def load_s(self) -> float:
        """Return the load time in seconds; 0 before its end."""
        return self._reader.load_s if self._reader is not None else 0.0

    def check(self) -> None:
        """Raise ReplayError if the tables are no longer kept up to date."""
        if self._reader is not None:
            self._reader.check()

    async def on_start(self) -> None:
        """Load the tables and follow them. Raises what `ReferenceTables.load` raises."""
        topics = {name: table.changelog_topic_name for name, table in self.items()}
        rows = {name: table.data.rows for name, table in self.items()}
        reader = self._reader = ReferenceTables(self.app.kafka, topics, self.app.codec, rows)
        load = asyncio.to_thread(reader.load, self.app.load_timeout_s, lambda: bool(self.should_stop))
        self._loading = asyncio.create_task(load)
        await asyncio.shield(self._loading)  # a start that is cancelled leaves the thread to `on_stop`
        if not self.should_stop:
            reader.follow()
            await self._update_channels()
            await self.recovery.start()

    async def _update_channels(self) -> None:
        """Start the tables. Faust's method would also subscribe to their topics; called after each rebalance, too."""
        self._tables_finalized.set()
        for table in self.values():
            await table.maybe_start()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """End a load that is still in progress, and stop following."""
        await super().on_stop()
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)  # `on_start` has raised what it raised
        if self._reader is not None:
            await asyncio.to_thread(self._reader.close)


def declare(app: Any, name: str, topic: str, keep: Callable[[Any], bool] | None = None) -> ReferenceTable:
    """Return the app's table `name`, one of `processors.lookups.tables.TYPES`, over the compacted `topic`.

    `keep` decides whether a record may be used.
    """
    table: ReferenceTable = app.GlobalTable(
        name,
        key_type=bytes,
        value_type=TYPES[name],
        changelog_topic=app.topic(topic, key_serializer="raw", value_serializer="raw"),
        options={"keep": keep},
    )
    return table
