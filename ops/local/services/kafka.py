"""Apache Kafka in KRaft mode: broker and controller in one process, from its jars.

If it is killed, what was acknowledged is in the page cache of the system and is read again at the next start; a power
cut can lose the last seconds. Nothing is replicated.
"""

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ops.local.services import ports as loopback
from ops.local.services import tools
from ops.local.services.detached import Command
from ops.local.services.layout import Service
from ops.local.services.server import DataDirectory, Server, Surroundings, environment
from schemas.errors import BadInputError

_HERE = Path(__file__).parent
_MIB = 1 << 20
_QUIET = logging.getLogger("ops.local.services.kafka.probe")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False  # a broker that is still starting refuses connections: that is what the probe is for

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    # After a kill the controller waits this long for the broker of before, which is this one (the default: 9 s).
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "num.network.threads": "3",
    "num.io.threads": "4",
    "num.partitions": "1",
    "auto.create.topics.enable": "false",  # a misspelt topic is an error, not a new topic
    # One broker: internal topics cannot have a second replica, and few partitions open quickly.
    "default.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "offsets.topic.replication.factor": "1",
    "offsets.retention.minutes": str(60 * 24 * 30),  # a halted job is resumed from its offsets, weeks later too
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",  # a group of one need not wait for others
    "group.min.session.timeout.ms": "1000",  # tests want to see a dead worker soon
    "message.max.bytes": str(24 * _MIB),  # an audit row may hold a document as large as MongoDB's 16 MiB, and framing
    "replica.fetch.max.bytes": str(24 * _MIB),
    "log.retention.hours": str(24 * 7),
    "log.segment.delete.delay.ms": "1000",  # the disk of a deleted topic is wanted back now
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": str(64 * _MIB),  # half of the default, which is a sixth of the heap
}


class KafkaServer(Server):
    """One broker on the loopback address."""

    service = Service.KAFKA
    port_names = ("kafka", "kafka_controller")
    stop_timeout_s = 120.0  # thousands of new partitions have been seen to take more than thirty seconds

    def __init__(self, around: Surroundings) -> None:
        """Nothing is looked for or created yet."""
        super().__init__(around)
        self._data = DataDirectory(self._root / "data", self._root / "data.json")
        self._java = Path()
        self._jars = Path()

    def prepare(self) -> None:
        """Find Java, fetch the jars."""
        self._refuse_unusable_paths()
        self._java = tools.find_java(self._around.tools)
        self._jars = tools.kafka_jars(self._around.tools, self._java)
        self._root.mkdir(parents=True, exist_ok=True)

    def command(self, ports: Mapping[str, int]) -> Command:
        """Render the configuration for these ports, format the data directory if it is not complete."""
        properties = self._root / "server.properties"
        properties.write_text(render(ports["kafka"], ports["kafka_controller"], self._data.path))
        if self._data.made_by() is None:
            self._format(properties)
        heap_mib = self._around.settings.kafka_heap_mib
        # An embedded broker lives for minutes and shares the cores with all of its clients. The second compiler takes
        # half of its CPU time in the first million records and gains nothing by then (docs/performance-log.md).
        options = [f"-Xms{min(512, heap_mib)}m", f"-Xmx{heap_mib}m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
                   "-Djava.awt.headless=true"]  # fmt: skip
        return Command(
            [*self._run(options), "kafka.Kafka", str(properties)], cwd=self._root, env=environment(LC_ALL="C.UTF-8")
        )

    def problem(self, ports: Mapping[str, int]) -> str | None:
        """Check the cluster's brokers, and that it is the cluster of our data directory."""
        if not loopback.accepts(ports["kafka"]):
            return "its port is closed"
        admin = AdminClient({"bootstrap.servers": self.url(ports), "socket.timeout.ms": 3000},
                            logger=_QUIET)  # fmt: skip
        try:
            cluster = admin.list_topics(timeout=3)
        except KafkaException as error:
            return f"{error.args[0].str()}"
        if not cluster.brokers:
            return "no broker has registered yet"
        return None if cluster.cluster_id == self._cluster_id() else "another Kafka answers on its port"

    def url(self, ports: Mapping[str, int]) -> str:
        """Return the bootstrap server."""
        return f"{loopback.HOST}:{ports['kafka']}"

    def traces(self) -> list[tuple[str, str]]:
        """Return its class and its configuration."""
        return [("kafka.Kafka", str(self._root / "server.properties"))]

    def delete_data(self) -> None:
        """Remove topics, offsets and configuration."""
        self._data.wipe()

    def _refuse_unusable_paths(self) -> None:
        """Raise BadInputError for directories that Kafka and Java cannot take: they split at these characters."""
        for path, character, variable in (
            (self._data.path, ",", "CRM_REPLAY_HOME"),
            (self._around.tools.directory, os.pathsep, "CRM_REPLAY_CACHE"),
        ):
            if character in str(path):
                raise BadInputError(
                    f"Kafka cannot be used with {path}: its name has a {character!r}", f"set {variable} to another one"
                )

    def _run(self, options: list[str]) -> list[str]:
        logging_file = _HERE / "kafka.log4j2.properties"
        return [str(self._java), *options, f"-Dlog4j2.configurationFile={logging_file}", "-cp", f"{self._jars}/*"]

    def _format(self, properties: Path) -> None:
        self._data.wipe()
        light = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        cluster_id = "crm-" + os.urandom(9).hex()  # any text will do; it only has to be another one each time
        answer = subprocess.run(  # noqa: S603 - Java and our own arguments
            [*self._run(light), "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)],
            env=environment(LC_ALL="C.UTF-8"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if answer.returncode != 0:
            summary = " | ".join((answer.stdout + answer.stderr).strip().splitlines()[-3:])
            raise BadInputError(
                f"Kafka could not format {self._data.path}: {summary}", "see that the disk can be written"
            )
        self._data.complete(self._jars.name)

    def _cluster_id(self) -> str | None:
        try:
            text = (self._data.path / "meta.properties").read_text()
        except OSError:
            return None
        found = re.search(r"(?m)^cluster\.id=(.*)$", text)
        return found[1].strip() if found else None


def render(port: int, controller_port: int, data: Path) -> str:
    """Return the broker's configuration. Rendered at each start: the ports may be others than last time."""
    host = loopback.HOST
    return "".join(
        f"{name}={value}\n"
        for name, value in {
            **SETTINGS,
            "controller.quorum.voters": f"1@{host}:{controller_port}",
            "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{host}:{port}",
            "log.dirs": as_property(str(data)),
        }.items()
    )


def as_property(text: str) -> str:
    """Return `text` as a properties file has it: such a file is Latin-1, with everything else as `\\uXXXX`."""
    units = text.encode("utf-16-be")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    plain = range(ord(" "), 127)
    return "".join(chr(code) if code in plain and code != ord("\\") else f"\\u{code:04x}" for code in codes)
