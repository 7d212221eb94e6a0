"""The app's tables are Faust's: declared, read by key, in its monitor; and whole before the app's consumer starts."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from processors import tables
from processors.app import ReplayApp
from processors.lookups.answers import TableLookups, of_account
from processors.lookups.tables import ReferenceTables
from processors.tables import declare
from processors.worker import serve
from schemas.errors import ServiceUnreachableError
from schemas.records import Contact
from tests.support.bench import replay_app
from tests.support.reference_rows import ACCOUNT, CODEC, contact, reference_rows


class Reader(ReferenceTables):
    """Instead of Kafka: rows at once, or when the test says so."""

    goes_on = threading.Event()
    fails = False

    def load(self, timeout_s: float, stopping: Callable[[], bool] = lambda: False) -> None:
        if self.fails:
            raise ServiceUnreachableError("Kafka does not answer", "")
        while not self.goes_on.wait(0.01):
            if stopping():
                return
        for name, rows in reference_rows().items():
            self.rows[name].update(rows)
        self.load_s = 0.5

    def follow(self) -> None:
        """Nothing changes afterwards."""


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> type[Reader]:
    class Own(Reader):
        goes_on = threading.Event()

    Own.goes_on.set()
    monkeypatch.setattr(tables, "ReferenceTables", Own)
    return Own


async def wait_for(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.01)


def on_app(scenario: Callable[[ReplayApp], Awaitable[None]]) -> None:
    async def main() -> None:
        app = replay_app(exit_at_end=False)
        declare(app, "contacts", "of-contacts", of_account(ACCOUNT))
        declare(app, "users", "of-users")
        declare(app, "referents", "of-referents")
        app.finalize()
        try:
            await scenario(app)
        finally:
            await asyncio.wait_for(app.tables.stop(), 5)
            app.consumer._thread.thread_loop.close()

    asyncio.run(main())


def test_a_table_is_read_by_key_and_holds_records_of_its_account_only() -> None:
    async def scenario(app: ReplayApp) -> None:
        await app.tables.start()
        contacts = app.tables["contacts"]
        contacts.data.rows[b"4"] = CODEC.encode(contact(4, company_sso_id="somebody-else"))
        assert contacts[b"2"] == contacts.get(b"2") == contact(2)
        assert isinstance(contacts[b"2"], Contact)
        assert b"2" in contacts
        for absent in (b"4", b"5"):
            with pytest.raises(KeyError):
                contacts[absent]
            assert contacts.get(absent) is None
        assert set(contacts) == {b"1", b"2", b"3"}
        assert contacts.rejects == 1
        assert TableLookups(app.tables).contact("2") is contacts[b"2"]

    on_app(scenario)


def test_a_row_is_kept_as_the_bytes_that_came() -> None:
    async def scenario(app: ReplayApp) -> None:
        await app.tables.start()
        assert {name: table.data.rows for name, table in app.tables.items()} == reference_rows()
        assert all(type(value) is bytes for table in app.tables.values() for value in table.data.rows.values())

    on_app(scenario)


def test_nobody_writes_to_the_producers_topics() -> None:
    async def scenario(app: ReplayApp) -> None:
        await app.tables.start()
        contacts = app.tables["contacts"]
        with pytest.raises(TypeError, match="read-only"):
            contacts[b"2"] = contact(2)
        with pytest.raises(TypeError, match="read-only"):
            del contacts[b"2"]
        with pytest.raises(TypeError, match="read-only"):
            contacts.clear()
        assert len(contacts) == 3

    on_app(scenario)


def test_size_and_load_are_in_fausts_monitor() -> None:
    async def scenario(app: ReplayApp) -> None:
        app.sensors.add(app.monitor)  # as its start does
        await app.tables.start()
        assert app.tables["users"][b"1"]
        state = app.monitor.asdict()["tables"]
        assert set(state) == {"contacts", "users", "referents"}
        assert state["users"] == {
            "keys_retrieved": 1, "keys_updated": 0, "keys_deleted": 0, "rows": 3, "load_s": 0.5
        }  # fmt: skip

    on_app(scenario)


def test_the_topics_of_tables_are_none_of_the_groups() -> None:
    async def scenario(app: ReplayApp) -> None:
        await app.tables.start()
        assert app.tables["contacts"].changelog_topic_name == "of-contacts"
        assert set(app.topics) == set()
        assert app.tables.changelog_topics == set()  # else Faust's assignor would be the group's

    on_app(scenario)


def test_tables_start_before_anything_that_consumes() -> None:
    async def scenario(app: ReplayApp) -> None:
        services = list(app.boot_strategy.server())
        assert services.index(app.tables) < services.index(app.consumer)
        assert set(map(id, services)) == set(map(id, super(tables.TablesFirst, app.boot_strategy).server()))

    on_app(scenario)


def test_a_worker_that_is_told_to_stop_while_it_loads_ends_without_joining_its_group(reader: type[Reader]) -> None:
    async def scenario(app: ReplayApp) -> None:
        reader.goes_on.clear()
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(app, stop))
        await wait_for(lambda: app.tables._loading is not None)
        stop.set()
        await asyncio.wait_for(serving, 5)
        assert app.tables._loading.done()
        assert not app.consumer.started
        assert len(app.tables["contacts"]) == 0

    on_app(scenario)


def test_a_load_that_fails_ends_the_worker_with_its_own_error(reader: type[Reader]) -> None:
    async def scenario(app: ReplayApp) -> None:
        reader.fails = True
        with pytest.raises(ServiceUnreachableError):
            await serve(app, asyncio.Event())
        assert not app.consumer.started

    on_app(scenario)


def test_what_ends_the_following_is_raised_by_the_check() -> None:
    async def scenario(app: ReplayApp) -> None:
        await app.tables.start()
        app.tables.check()
        failure: Any = ValueError("gone")
        app.tables._reader._failure = failure
        with pytest.raises(Exception, match="can no longer be read"):
            app.tables.check()

    on_app(scenario)
