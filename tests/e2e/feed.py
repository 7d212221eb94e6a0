"""A live feed of a test's own: its topic, `crm-replay live` as a user starts it, and rows onto the topic."""

import contextlib
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from ops.feed.feed import LiveOptions, LiveStatus, feed_of, prepare, status_of
from ops.kafka import admin as kafka_admin
from schemas.codec import Codec
from schemas.job import LiveFeed
from schemas.records import AuditEvent
from schemas.source.mapping import load
from schemas.source.person import record_key
from tests.e2e.conftest import Crm
from tests.e2e.failures import reading
from tests.support import factories
from tests.support.waiting import wait_until

DRAINED_WITHIN_S = 240.0
STARTED_WITHIN_S = 180.0
Headers = list[tuple[str, str | bytes | None]] | None


@dataclass
class Feed:
    """A feed that was prepared; nothing of it runs yet."""

    crm: Crm
    feed: LiveFeed
    mapping_path: str
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open the producer; what it sends keeps its order."""
        self.codec = Codec()
        self.published = 0
        self._person = load(self.mapping_path or None).person
        self._producer = Producer({**self.crm.connections.kafka(), "enable.idempotence": True, "linger.ms": 2})

    def publish(self, events: Iterable[AuditEvent]) -> None:
        """Put audit events of our own schema onto the topic, keyed by person; returns once they are there."""
        for event in events:
            key = record_key(event, self._person).encode()
            self._producer.produce(self.feed.topic, self.codec.encode(event), key)
            self.published += 1
        self._producer.flush(30)

    def publish_raw(self, value: bytes | None, key: bytes | None = None, headers: Headers = None) -> None:
        """Put anything onto the topic."""
        self._producer.produce(self.feed.topic, value, key, 0, headers=headers or [])
        self._producer.flush(30)

    @contextlib.contextmanager
    def running(self, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Give `crm-replay live` running; it is asked to stop in the end, and must then end well."""
        command = ("live", "--feed", self.feed.feed, "--topic", self.feed.topic, "--mapping", self.mapping_path)
        delay = ("--visibility-delay", str(self.feed.visibility_delay_s))
        with self.crm.start(*command, *delay, *words, **environment) as process, reading(process.stderr) as said:
            self.said = said
            try:
                wait_until(
                    lambda: any(line.startswith("feed ") for line in said) or process.poll() is not None,
                    "the feed to begin",
                    STARTED_WITHIN_S,
                )
                assert process.poll() is None, said
                yield process
            except BaseException:
                process.kill()
                raise
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, said

    def status(self) -> LiveStatus:
        """Return the feed's counts and lag, as stored."""
        return status_of(feed_of(self.crm.database, self.feed.feed), self.crm.connections, self.crm.database)

    def counts(self, account: str) -> dict[str, Any]:
        """Return the counts of an account."""
        found = self.status().as_dict()["accounts"]
        return dict(found.get(account, {"migrated": 0, "skipped": {}, "failed": {}, "foreign": {}}))

    def counted(self) -> int:
        """Return how many records have ended in a bin."""
        totals = self.status().accounts.values()
        return sum(each.accounted + each.foreign_total for each in totals)

    def wait_drained(self) -> None:
        """Return once everything on the topic has been handled by both groups."""

        def drained() -> bool:
            assert not any(line.startswith("crm-replay: ") for line in self.said), self.said
            status = self.status()
            return status.processors_lag == 0 and status.sink_lag == 0

        wait_until(drained, f"the feed to be drained ({self.logs()[-2000:]})", DRAINED_WITHIN_S)

    def logs(self) -> str:
        """Return what the workers have said."""
        files = sorted((self.crm.home / "logs").glob(f"feed-{self.feed.feed}/run-*/*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)

    def drop(self) -> None:
        """Delete the feed's topics and groups."""
        topics = self.feed.topics
        admin = kafka_admin.client(self.crm.connections.kafka())
        names = [topics.replay, topics.outcomes, topics.dead_letters, *topics.references]
        for future in admin.delete_topics(names, operation_timeout=30).values():
            with contextlib.suppress(KafkaException):
                future.result(30)
        for future in admin.delete_consumer_groups([topics.processors_group, topics.sink_group]).values():
            with contextlib.suppress(KafkaException):
                future.result(30)


@contextlib.contextmanager
def feed_on(crm: Crm, mapping_path: str, *, partitions: int = 2, visibility_delay_s: float = 1.0) -> Iterator[Feed]:
    """Give a feed with names of its own; afterwards its topics are gone."""
    name = f"t{uuid.uuid4().hex[:8]}"
    options = LiveOptions(
        feed=name,
        topic=f"test.{name}.audits",
        mapping_path=mapping_path,
        partitions=partitions,
        visibility_delay_s=visibility_delay_s,
        home=Path(crm.home),
    )
    feed = Feed(crm, prepare(options, crm.connections, crm.database), mapping_path)
    try:
        yield feed
    finally:
        feed.drop()


def dead_letters_of(feed: Feed) -> list[Any]:
    """Return the records of the feed's dead-letter topic."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    topic = feed.feed.topics.dead_letters
    config = {**feed.crm.connections.kafka(), "group.id": f"{topic}.read", "enable.partition.eof": True}
    consumer = Consumer(config)
    letters: list[Any] = []
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        while True:
            message = consumer.poll(30)
            assert message is not None
            if message.error() is not None:
                return letters
            letters.append(feed.codec.decode(message.value() or b""))
    finally:
        consumer.close()


def as_json(text: str) -> Any:
    """Return what a command has answered."""
    return json.loads(text)


ONE, OTHER = "acme-1", "acme-2"


SYNCED = datetime(2024, 1, 1, 12, 0, tzinfo=UTC)


def us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def now_us() -> int:
    return time.time_ns() // 1000


def row(audit_id: int, account: str, person: int, created_at: int, **values: Any) -> AuditEvent:
    """Return a person's update."""
    of = {"audit_id": audit_id, "company_sso_id": account, "auditable_id": person, "created_at": created_at}
    update = {"auditable_type": "Crm::Person", "audited_changes": "---\nfirst_name:\n- A\n- B\n", "version": 2}
    return factories.event(**{**of, **update, **values})


def change(operation: str, audit_id: int, person: int, created_at: int) -> bytes:
    """Return a change event as Debezium writes it, in JSON without schemas."""
    values = row(audit_id, "", person, created_at)._asdict()
    columns = {
        name: values[name] or None for name in values if name not in ("audit_id", "id_range", "changes_are_json")
    }
    audit = {**columns, "id": audit_id, "created_at": created_at, "remote_address": None}
    before = audit if operation == "u" else None
    source = {"schema": "public", "table": "audits"}
    return json.dumps({"op": operation, "before": before, "after": audit, "source": source, "ts_ms": 1}).encode()


def add_contact(crm: Crm, account: str, person: int, created_at: datetime) -> str:
    customer = f"cus-{account}-{person}"
    crm.database["contacts"].insert_one(
        {"company_sso_id": account, "customer_id": customer, "crm_data": {"id": person}, "created_at": created_at}
    )
    return customer


def made_again(crm: Crm, topic: str, partitions: int) -> None:
    """Delete a topic and make it again, with other records to come."""
    admin = kafka_admin.client(crm.connections.kafka())
    admin.delete_topics([topic], operation_timeout=30)[topic].result(30)

    def create() -> bool:
        with contextlib.suppress(KafkaException):
            admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])[topic].result(30)
            return True
        return False

    wait_until(create, "the topic to be deleted, and made again")


def records_on(bootstrap: str, topic: str) -> list[tuple[bytes | None, bytes | None, Any]]:
    """Return key, value and headers of everything that is on a topic by now; nothing if it does not exist."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.partition.eof": True})
    with closing(consumer):
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        left = set(partitions)
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        found = []
        while left:
            message = consumer.poll(30)
            assert message is not None
            if message.error() is not None:
                left.discard(message.partition())
            else:
                found.append((message.key(), message.value(), message.headers()))
        return found
