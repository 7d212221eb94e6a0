"""The real connector: Debezium in Kafka Connect, started as `services up --with debezium` does, feeding a live feed."""

import functools
import json
import signal
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, TopicMetadata

from ops.feed import connector
from ops.kafka import admin as kafka_admin
from ops.local import services
from ops.local.sample_crm import SAMPLE_JSONB, SAMPLE_YAML, load_sample
from ops.local.services import Extra, ServiceSettings
from ops.local.services.detached import Process, stop
from ops.local.services.layout import Home
from ops.local.services.registry import CONFLUENT_PATH, OWN_PATH
from ops.local.services.tools import AVRO_CONVERTER
from processors.feed.change_events import SCHEMA_HEADER, ChangeDecoder
from producer.audits import AuditReader, Limits, connect, resolve
from schemas.errors import BadInputError
from schemas.process.registry import SchemaLookup
from schemas.records import AuditEvent
from schemas.source.mapping import load
from tests.e2e.conftest import Crm, mapping_of
from tests.e2e.feed import feed_on, records_on
from tests.fixtures.services import private_home
from tests.support.waiting import wait_until
from tests.unit.processors.feed.connect_schemas import as_avro

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

EVERYTHING_FROM = datetime(1990, 1, 1, tzinfo=UTC)
PATIENCE_S = 240.0  # for a condition; nothing is slept through


@dataclass
class Worker:
    """A Kafka Connect worker of this module's own, which it may kill."""

    home: Path

    def up(self) -> str:
        """Start it if it does not run; return its address."""
        settings = ServiceSettings.load(start_timeout_s=300.0)  # on a machine that does much else
        return services.up(self.home, extras=[Extra.DEBEZIUM], settings=settings).kafka_connect_url

    def registry_up(self) -> str:
        """Start a schema registry beside it if none runs; return its address."""
        settings = ServiceSettings.load(start_timeout_s=300.0)
        return services.up(self.home, extras=[Extra.REGISTRY], settings=settings).schema_registry_url

    def kill(self) -> None:
        process = Process.read(Home.at(self.home).process_file(Extra.DEBEZIUM))
        assert process is not None
        stop(process, number=signal.SIGKILL, timeout_s=30)


@pytest.fixture(scope="module")
def worker(service_environment: dict[str, str]) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch, private_home() as home:
        for name, url in service_environment.items():
            patch.setenv(name, url)
        with psycopg.connect(service_environment["CRM_AUDIT_DATABASE_URL"]) as db:
            row = db.execute("SHOW wal_level").fetchone()
        if row != ("logical",):
            pytest.skip("this PostgreSQL has no logical decoding (wal_level)")
        found = Worker(home)
        found.up()
        yield found


@pytest.fixture
def api(worker: Worker) -> Iterator[connector.Connect]:
    with connector.Connect(worker.up()) as found:
        yield found


@pytest.fixture
def connectors(api: connector.Connect) -> Iterator[ExitStack]:
    """Takes what has to be undone before the databases are dropped: a slot in use would keep them."""
    with ExitStack() as undo:
        yield undo


def name_of_connector() -> str:
    return f"t_{uuid.uuid4().hex[:8]}"


def insert(dsn: str, persons: Sequence[int], count: int) -> set[int]:
    """Insert audit rows one by one, as a CRM does; return their ids."""
    ids = set()
    with psycopg.connect(dsn, autocommit=True) as db:
        for number in range(count):
            row = db.execute(
                "INSERT INTO audits (auditable_type, auditable_id, action, audited_changes, version, created_at) VALUES"
                " ('Crm::Person', %s, 'update', %s, 1, now() AT TIME ZONE 'UTC') RETURNING id",
                (persons[number % len(persons)], f"---\nfirst_name:\n- A\n- B{number}\n"),
            ).fetchone()
            ids.add(row[0])
    return ids


def test_a_feed_of_debezium_is_written_once_through_snapshot_stream_and_death(
    sample_crm: Crm, worker: Worker, api: connector.Connect, connectors: ExitStack
) -> None:
    crm, name = sample_crm, name_of_connector()
    mapping_path = mapping_of(SAMPLE_YAML)
    persons = [contact["crm_data"]["id"] for contact in crm.database["contacts"].find({"company_sso_id": SAMPLE_YAML})][
        :9
    ]
    persons = [int(person) for person in persons]
    with psycopg.connect(crm.dsn) as db:
        history = db.execute("SELECT count(*) FROM audits").fetchone()
    assert history is not None
    feed = connectors.enter_context(feed_on(crm, mapping_path))
    config = connector.connector_config(
        load(mapping_path), crm.dsn, name=name, topic=feed.feed.topic, account=SAMPLE_YAML
    )
    connectors.callback(connector.remove, api, crm.dsn, name)
    api.put(name, config)
    assert connector.wait_running(api, crm.dsn, name, PATIENCE_S).running

    def on_topic() -> int:
        return sum(kafka_admin.end_offsets(crm.connections.kafka(), feed.feed.topic, feed.feed.partitions))

    def written() -> set[str]:
        return {log["external_id"] for log in crm.logs(SAMPLE_YAML)}

    with feed.running("--no-names"):
        wait_until(lambda: feed.counted() >= history[0], "the snapshot's rows in their bins", PATIENCE_S)
        of_snapshot = feed.counts(SAMPLE_YAML)
        assert (
            of_snapshot["migrated"] + sum(of_snapshot["skipped"].values()) + sum(of_snapshot["failed"].values())
            == history[0]
        )
        assert of_snapshot["skipped"]["pre_sync_replay"] > 100
        before = written()
        assert len(before) == of_snapshot["migrated"] > 0  # rows of contacts that were synced in mid-history

        seen = on_topic()
        new = insert(crm.dsn, persons, 60)
        wait_until(lambda: on_topic() > seen, "the stream begins", PATIENCE_S)
        worker.kill()  # what it has sent and not noted comes again
        new |= insert(crm.dsn, persons, 40)
        worker.up()
        new |= insert(crm.dsn, persons, 20)
        expected = before | {f"crm_audit:{audit_id}" for audit_id in new}
        wait_until(lambda: len(written()) >= len(expected), "every new row is written", PATIENCE_S)
        feed.wait_drained()
        assert written() == expected
        assert crm.database["activity_logs"].count_documents({}) == len(expected)

        changed, gone, *_ = sorted(new)
        with psycopg.connect(crm.dsn, autocommit=True) as db:
            db.execute("UPDATE audits SET comment = 'changed afterwards' WHERE id = %s", (changed,))
            db.execute("DELETE FROM audits WHERE id = %s", (gone,))  # an event, then a tombstone
            db.execute("TRUNCATE audits")
        last = crm.logs(SAMPLE_YAML)
        wait_until(
            lambda: _refused(feed) >= {"audit_updated", "audit_deleted", "audits_truncated"}, "refusals", PATIENCE_S
        )
        feed.wait_drained()
        assert crm.logs(SAMPLE_YAML) == last
        assert None in [
            value for _, value, _ in records_on(crm.environment["KAFKA_BOOTSTRAP_SERVERS"], feed.feed.topic)
        ]
        assert connector.status(api, crm.dsn, name).running


def _refused(feed: Any) -> set[str]:
    """Return the reasons and causes that the feed has counted, whoever's."""
    accounts = feed.status().as_dict()["accounts"].values()
    return {name for counts in accounts for bin_ in ("skipped", "failed", "foreign") for name in counts[bin_]}


def test_every_form_is_the_row_that_the_snapshot_reads(
    sample_crm: Crm, kafka_bootstrap: str, api: connector.Connect, connectors: ExitStack
) -> None:
    crm = sample_crm
    no_schemas = {
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
    }
    forms = {
        "jsonb": (SAMPLE_JSONB, False, {"provide.transaction.metadata": "true"}),
        "flattened": (SAMPLE_YAML, True, {**no_schemas, "time.precision.mode": "isostring"}),
    }
    # As an account it is text, whatever it looks like to Connect.
    named = {"jsonb": SAMPLE_JSONB, "flattened": "007"}
    found: dict[str, list[tuple[bytes | None, bytes | None, Any]]] = {}
    names = {form: name_of_connector() for form in forms}
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    for form, (account, flatten, more) in forms.items():
        topic = f"test.{names[form]}"
        config = connector.connector_config(
            load(mapping_of(account)),
            crm.dsn,
            name=names[form],
            topic=topic,
            account=named[form],
            flatten=flatten,
            partitions=2,
        )
        connectors.callback(kafka_admin_delete, admin, topic)
        connectors.callback(connector.remove, api, crm.dsn, names[form])
        api.put(names[form], config | more)
    for form, (account, _, _) in forms.items():
        connector.wait_running(api, crm.dsn, names[form], PATIENCE_S)
        mapping = load(mapping_of(account))
        rows = {id_: row._replace(company_sso_id=named[form]) for id_, row in rows_of(crm, account).items()}
        topic, bootstrap = f"test.{names[form]}", {"bootstrap.servers": kafka_bootstrap}
        wait_until(lambda: has_records(bootstrap, topic, len(rows)), f"the snapshot {form}", PATIENCE_S)  # noqa: B023
        found[form] = records_on(kafka_bootstrap, topic)
        decoder = ChangeDecoder(mapping)
        assert by_id(decoder.decode(*record) for record in found[form]) == rows
    schemas: dict[int, str] = {}
    avro = ChangeDecoder(load(mapping_of(SAMPLE_JSONB)), schema_of=schemas.get)
    events = []
    for key, value, headers in found["jsonb"]:
        schemas[1], framed = as_avro(value or b"", 1)
        events.append(avro.decode(key, framed, headers))
    assert by_id(events) == rows_of(crm, SAMPLE_JSONB)
    assert json.loads(found["flattened"][0][1] or b"")["__op"] == "r"


def avro_settings(registry: str, *, in_headers: bool) -> dict[str, str]:
    """Return what a user gives with `--set` for Avro: in Confluent's wire format, or the schemas' ids in headers."""
    url = registry.removesuffix(CONFLUENT_PATH) + OWN_PATH
    settings = {
        "": AVRO_CONVERTER,
        ".apicurio.registry.url": url,
        ".apicurio.registry.auto-register": "true",
        ".apicurio.registry.as-confluent": "true",
        ".apicurio.registry.headers.enabled": str(in_headers).lower(),
        ".apicurio.registry.use-id": "contentId",
    }
    words = [f"{side}.converter{name}={value}" for side in ("key", "value") for name, value in settings.items()]
    return connector.parse_settings(words)


def test_avro_of_the_real_converter_is_followed_with_and_without_the_envelope_and_through_a_new_column(
    sample_crm: Crm, worker: Worker, api: connector.Connect, connectors: ExitStack
) -> None:
    crm, name, registry = sample_crm, name_of_connector(), worker.registry_up()
    mapping_path = mapping_of(SAMPLE_YAML)
    mapping = load(mapping_path)
    persons = [
        int(contact["crm_data"]["id"])
        for contact in crm.database["contacts"].find({"company_sso_id": SAMPLE_YAML}).limit(5)
    ]
    with psycopg.connect(crm.dsn) as db:
        history = db.execute("SELECT count(*) FROM audits").fetchone()
    assert history is not None
    feed = connectors.enter_context(feed_on(crm, mapping_path))
    connectors.callback(connector.remove, api, crm.dsn, name)

    def send(*, flatten: bool) -> None:
        config = connector.connector_config(
            mapping,
            crm.dsn,
            name=name,
            topic=feed.feed.topic,
            account=SAMPLE_YAML,
            flatten=flatten,
            more=avro_settings(registry, in_headers=flatten),
        )
        api.put(name, config)
        assert connector.wait_running(api, crm.dsn, name, PATIENCE_S).running

    def written() -> set[str]:
        return {log["external_id"] for log in crm.logs(SAMPLE_YAML)}

    with feed.running("--no-names", SCHEMA_REGISTRY_URL=registry):
        send(flatten=False)
        wait_until(lambda: feed.counted() >= history[0], "the snapshot's rows in their bins", PATIENCE_S)
        expected = written()
        assert expected, feed.status().as_dict()["accounts"]
        for flatten, column in ((False, ""), (False, "reviewed_by"), (True, ""), (True, "reviewed_at")):
            if flatten and not column:
                api.delete(name)  # its offsets stay; changed in place, the old task would go on for a moment
                wait_until(lambda: not connector.status(api, crm.dsn, name).slot_active, "its task to end", PATIENCE_S)
                send(flatten=True)
            if column:
                with psycopg.connect(crm.dsn, autocommit=True) as db:
                    db.execute(f"ALTER TABLE audits ADD COLUMN {column} text DEFAULT 'nobody'")
            expected |= {f"crm_audit:{audit_id}" for audit_id in insert(crm.dsn, persons, 5)}
            wait_until(lambda: written() >= expected, f"rows, {flatten=}, {column=}", PATIENCE_S)  # noqa: B023
        feed.wait_drained()
        assert written() == expected
        assert crm.database["activity_logs"].count_documents({}) == len(expected)
        assert not feed.counts(SAMPLE_YAML)["failed"]

    records = records_on(crm.environment["KAFKA_BOOTSTRAP_SERVERS"], feed.feed.topic)
    with closing(SchemaLookup(registry)) as lookup:
        decoder, names = ChangeDecoder(mapping, schema_of=lookup), Counter[str]()
        for schema_id in {dict(headers).get(SCHEMA_HEADER) or value[1:5] for _, value, headers in records if value}:
            names[json.loads(lookup(int.from_bytes(schema_id, "big")) or "{}").get("name")] += 1
        assert names == {"Envelope": 2, "Value": 2}  # two forms, each before and after a column came
        assert by_id(decoder.decode(*record) for record in records) == rows_of(crm, SAMPLE_YAML)


def has_records(kafka: dict[str, Any], topic: str, count: int) -> bool:
    """Return whether the topic is there, with so many records or more."""
    partitions = len(kafka_admin.client(kafka).list_topics(timeout=30).topics.get(topic, TopicMetadata()).partitions)
    return partitions > 0 and sum(kafka_admin.end_offsets(kafka, topic, partitions)) >= count


def kafka_admin_delete(admin: AdminClient, topic: str) -> None:
    admin.delete_topics([topic], operation_timeout=30)[topic].exception(30)


def by_id(events: Any) -> dict[int, AuditEvent]:
    found = {}
    for event in events:
        assert isinstance(event, AuditEvent), event
        found[event.audit_id] = event
    return found


def rows_of(crm: Crm, account: str) -> dict[int, AuditEvent]:
    """Return the account's rows as the snapshot's own reader gives them."""
    mapping = load(mapping_of(account))
    with closing(connect(crm.dsn)) as db:
        types = db.execute(f"SELECT DISTINCT auditable_type FROM {mapping.source.schema_name}.audits").fetchall()
        every_type = mapping.model_copy(update={"scope": tuple(row[0] for row in types)})
        source = resolve(db, every_type, account)
        top = db.execute(f"SELECT max(id) FROM {mapping.source.schema_name}.audits").fetchone()
    assert top is not None
    rows: dict[int, AuditEvent] = {}
    with closing(AuditReader(crm.dsn, source, EVERYTHING_FROM, Limits(id_window=2**31))) as reader:
        cursor = 0
        while cursor < top[0]:
            page = reader.page_after(cursor, top[0], 0, (), look_for_gaps=False)
            rows |= {event.audit_id: event for event in page.events}
            cursor = page.end
    return rows


def test_a_name_can_be_registered_again_after_it_was_removed(
    database_dsn: str, api: connector.Connect, connectors: ExitStack, kafka_bootstrap: str
) -> None:
    name = name_of_connector()
    topic = f"test.{name}.audits"
    load_sample(database_dsn)
    config = connector.connector_config(load(None), database_dsn, name=name, topic=topic, account=SAMPLE_YAML)
    connectors.callback(connector.remove, api, database_dsn, name)
    sent = 0
    for _ in range(2):
        with psycopg.connect(database_dsn) as db:
            [rows] = db.execute("SELECT count(*) FROM audits").fetchone() or [0]
        api.put(name, config)
        assert connector.wait_running(api, database_dsn, name, PATIENCE_S).running
        insert(database_dsn, [1], 1)
        sent += rows + 1  # the snapshot, which has what was written while nothing followed, and what comes
        all_sent = functools.partial(has_exactly, kafka_bootstrap, topic, sent)
        wait_until(all_sent, "all rows and a new one", PATIENCE_S)
        assert connector.remove(api, database_dsn, name)
        insert(database_dsn, [1], 1)


def has_exactly(bootstrap: str, topic: str, count: int) -> bool:
    return len(records_on(bootstrap, topic)) == count


def test_what_a_connector_cannot_do_is_one_line(api: connector.Connect, database_dsn: str) -> None:
    config = connector.connector_config(load(None), database_dsn, name="t_wrong", account="acme")
    with pytest.raises(BadInputError, match=r"Kafka Connect refuses the connector: .*(password|host|connect)"):
        api.put("t_wrong", config | {"database.port": "1"})
    assert api.state("t_wrong") == ("not registered", "")
    assert not connector.remove(api, database_dsn, "t_wrong")
