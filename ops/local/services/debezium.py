"""Kafka Connect with Debezium's PostgreSQL connector and an Avro converter: a distributed worker, nothing on its disk.

Connectors, their offsets and states are in three compacted topics of Kafka. A worker that is killed therefore resumes
after the last offsets it had committed there, and sends later records again; the activity logs' unique
index absorbs them. `ops/feed/connector.py` registers the connector.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ops.local.services import ports as loopback
from ops.local.services import tools
from ops.local.services.detached import Command
from ops.local.services.kafka import as_property
from ops.local.services.layout import Extra
from ops.local.services.server import Server, Surroundings, environment
from schemas.errors import BadInputError
from schemas.process.connections import Connections

CONNECTOR_CLASS = "io.debezium.connector.postgresql.PostgresConnector"
_HERE = Path(__file__).parent

SETTINGS = {
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter.schemas.enable": "false",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter.schemas.enable": "true",  # the units of times and the types of columns are in the schema
    "value.converter.replace.null.with.default": "false",  # NULL is NULL, whatever the column's default
    "config.storage.replication.factor": "-1",  # the brokers' default
    "offset.storage.replication.factor": "-1",
    "status.storage.replication.factor": "-1",
    "offset.storage.partitions": "4",
    "status.storage.partitions": "2",
    "offset.flush.interval.ms": "2000",  # what a killed worker sends again
    "plugin.discovery": "service_load",  # all plugins here have manifests; looking for others takes seconds
    "connector.client.config.override.policy": "All",
    # There is one worker: after a kill only the former worker's session is waited for.
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "1500",
    "scheduled.rebalance.max.delay.ms": "0",
    "task.shutdown.graceful.timeout.ms": "10000",
    "producer.compression.type": "lz4",
}


class DebeziumServer(Server):
    """One Kafka Connect worker on the loopback address."""

    service = Extra.DEBEZIUM
    port_names = ("debezium",)

    def __init__(self, around: Surroundings) -> None:
        """Nothing is looked for or created yet."""
        super().__init__(around)
        self._java = Path()
        self._worker = Path()
        self._plugins: tuple[Path, ...] = ()

    def prepare(self) -> None:
        """Find Java, fetch the jars."""
        if Connections().kafka_security_protocol != "PLAINTEXT":
            raise BadInputError(
                "the embedded Kafka Connect speaks to Kafka without TLS and passwords only",
                "set KAFKA_CONNECT_URL to a Kafka Connect of yours that has Debezium's PostgreSQL connector",
            )
        cache = self._around.tools
        if any(character in str(cache.directory) for character in (",", os.pathsep)):
            raise BadInputError(
                f"Kafka Connect cannot be used with {cache.directory}: it splits the name", "set CRM_REPLAY_CACHE"
            )
        self._java = tools.find_java(cache)
        self._worker = tools.connect_jars(cache, self._java)
        self._plugins = (tools.debezium_jars(cache, self._java), tools.avro_jars(cache, self._java))
        self._root.mkdir(parents=True, exist_ok=True)

    def command(self, ports: Mapping[str, int]) -> Command:
        """Render the worker's configuration for these ports."""
        properties = self._root / "connect.properties"
        properties.write_text(self._render(ports["debezium"]))
        heap_mib = self._around.settings.debezium_heap_mib
        logging_file = _HERE / "connect.log4j2.properties"
        # The first compiler alone: a start takes 4 s of CPU instead of 9, and what it sends is for one machine.
        options = [f"-Xmx{heap_mib}m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true",
                   f"-Dlog4j2.configurationFile={logging_file}"]  # fmt: skip
        return Command(
            [str(self._java), *options, "-cp", f"{self._worker}/*", "org.apache.kafka.connect.cli.ConnectDistributed",
             str(properties)],
            cwd=self._root,
            env=environment(LC_ALL="C.UTF-8"),
        )  # fmt: skip

    def problem(self, ports: Mapping[str, int]) -> str | None:
        """Check its health, which it has once it is in its group, and the connector."""
        if not loopback.accepts(ports["debezium"]):
            return "its port is closed"
        import httpx  # takes a tenth of a second, and a command that only needs addresses sends no request

        try:
            with httpx.Client(base_url=self.url(ports), timeout=5.0) as client:
                health = client.get("/health")
                if health.status_code != httpx.codes.OK:
                    return str(health.json().get("message", health.status_code))
                plugins = {plugin["class"] for plugin in client.get("/connector-plugins").json()}
        except (httpx.HTTPError, ValueError) as error:
            return f"it does not answer ({type(error).__name__})"
        return None if CONNECTOR_CLASS in plugins else "it has no PostgreSQL connector"

    def url(self, ports: Mapping[str, int]) -> str:
        """Return the address of its REST interface."""
        return f"http://{loopback.HOST}:{ports['debezium']}"

    def traces(self) -> list[tuple[str, str]]:
        """Return its class and its configuration."""
        return [("org.apache.kafka.connect.cli.ConnectDistributed", str(self._root / "connect.properties"))]

    def delete_data(self) -> None:
        """Do nothing: its data is in Kafka."""

    def _render(self, port: int) -> str:
        own = f"crm.connect.{self._around.home.short_id}"
        listener = f"http://{loopback.HOST}:{port}"
        values = {
            **SETTINGS,
            "bootstrap.servers": self._around.kafka,
            "group.id": own,
            "config.storage.topic": f"{own}.configs",
            "offset.storage.topic": f"{own}.offsets",
            "status.storage.topic": f"{own}.statuses",
            "listeners": listener,
            "rest.advertised.host.name": loopback.HOST,
            "plugin.path": as_property(",".join(map(str, self._plugins))),
        }
        return "".join(f"{name}={value}\n" for name, value in values.items())
