"""A job on real Kafka and its workers as real processes: start, kill, and compare what was handled and sent."""

import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from ops.kafka import admin as kafka_admin
from schemas.codec import Codec
from schemas.job import ReplayJob
from schemas.records import AuditEvent, Outcome, Record, SnapshotMarker
from tests.support import factories
from tests.support.programs import Program
from tests.support.waiting import wait_until

JOB_ID = "job-1"
CODEC = Codec()
START_TIMEOUT_S = 60.0
Value = bytes | None


def event(audit_id: int, **changes: Any) -> AuditEvent:
    """Return an audit event of about 150 bytes."""
    person = {"auditable_type": "Crm::Person", "auditable_id": audit_id % 500 + 1, "version": 3}
    made = {"created_at": 1_700_000_000_000_000 + audit_id, "request_uuid": "8f14e45f-ceea-467f-a8f5-5f1a3f0c7a10"}
    text = "---\nfirst_name:\n- Ada\n- Grace\n"
    return factories.event(**{**person, **made, "audit_id": audit_id, "audited_changes": text, **changes})


@dataclass
class Worker:
    """One worker process; its files are those of every process that had its name."""

    name: str
    handled: Path
    log: Path
    process: Program

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(10)

    def leave(self, timeout_s: float = 20) -> int:
        """SIGTERM, wait, and return the exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text("utf-8")


@dataclass
class JobOnKafka:
    """Topics, group and workers of one account."""

    bootstrap: str
    directory: Path
    account: str
    partitions: int
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config: dict[str, Any] = {"bootstrap.servers": self.bootstrap}
        self.admin = kafka_admin.client(self.config)
        self.job = ReplayJob(
            company_sso_id=self.account,
            job_id=JOB_ID,
            run=7,
            partitions=self.partitions,
            top_audit_id=2**62,
            snapshot_xmax=1,
            cutoff=datetime(2020, 1, 1, tzinfo=UTC),
            mapping_path="",
        )
        self.topics = self.job.topics
        kafka_admin.ensure_topics(self.admin, self.topics, self.partitions)

    # -- before a worker starts

    def publish(self, topic: str, messages: Iterable[tuple[bytes | None, Value, int]], **config: Any) -> None:
        """Produce (key, value, partition) and wait for all of them."""
        producer = Producer({**self.config, "linger.ms": 20, "enable.idempotence": True, **config})
        for key, value, partition in messages:
            while True:
                try:
                    producer.produce(topic, value, key, partition)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0

    def publish_transactions(
        self, topic: str, transactions: Iterable[tuple[Sequence[tuple[bytes, bytes, int]], bool]]
    ) -> None:
        """Produce each list of (key, value, partition) in a transaction of its own; False aborts it."""
        producer = Producer({**self.config, "transactional.id": self.account})
        producer.init_transactions(30)
        for messages, commit in transactions:
            producer.begin_transaction()
            for key, value, partition in messages:
                producer.produce(topic, value, key, partition)
            producer.flush(30)
            if commit:
                producer.commit_transaction(30)
            else:
                producer.abort_transaction(30)

    def markers(self, edge: str, job_id: str = JOB_ID, run: int = 1) -> list[tuple[bytes, bytes, int]]:
        """Return a marker for every partition, as messages."""
        marker = CODEC.encode(SnapshotMarker(edge, job_id, -1, run))
        return [(b"", marker, partition) for partition in range(self.partitions)]

    def publish_snapshot(self, events: Iterable[AuditEvent]) -> None:
        """Produce begin markers, the events round robin over the partitions, and end markers."""
        messages = (
            (str(e.auditable_id).encode(), CODEC.encode(e), index % self.partitions) for index, e in enumerate(events)
        )
        self.publish(self.topics.replay, self.markers("begin"))
        self.publish(self.topics.replay, messages)
        self.publish(self.topics.replay, self.markers("end"))

    def publish_references(self, topic: str, rows: Iterable[tuple[str, Record | None]]) -> None:
        """Produce rows of a reference topic; None is a tombstone."""
        self.publish(topic, ((key.encode(), CODEC.encode(row) if row is not None else None, -1) for key, row in rows))

    def begin(self, offsets: Sequence[int] | None = None) -> None:
        """Commit where the group begins; by default after the begin markers at offset 0."""
        kafka_admin.commit_offsets(
            self.config, self.topics.processors_group, self.topics.replay, offsets or [1] * self.partitions
        )

    # -- workers

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """Return what a worker of this job finds in its environment."""
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "CRM_REPLAY_JOB": self.job.model_dump_json(),
            "CRM_REPLAY_WORKER": name,
            **more,
        }

    def start(self, name: str, **environment: str) -> Worker:
        """Start a worker process."""
        log = self.directory / f"{name}.log"
        handled = self.directory / f"{name}.handled"
        with log.open("ab") as output:
            process = Program(
                "tests.integration.processors.worker",
                env=self.environment(name, HANDLED_FILE=str(handled), **environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        worker = Worker(name, handled, log, process)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End every worker and remove what is on Kafka."""
        for worker in self.workers:
            if worker.running:
                worker.kill()
        topics = [self.topics.replay, self.topics.outcomes, self.topics.dead_letters, *self.topics.references]
        for future in self.admin.delete_topics(topics).values():
            future.result(10)
        for future in self.admin.delete_consumer_groups([self.topics.processors_group]).values():
            if future.exception(10) is not None:
                break  # a killed member may still be in it; the broker drops an empty group by itself

    def visit(self) -> int:
        """Join the workers' group, get partitions, do nothing with them and leave: two rebalances. Return how many."""
        visitor = Consumer(
            {
                **self.config,
                "group.id": self.topics.processors_group,
                "partition.assignment.strategy": "roundrobin",
                "enable.auto.commit": False,
                "session.timeout.ms": 6000,
            }
        )
        got: list[int] = []
        visitor.subscribe([self.topics.replay], on_assign=lambda _, partitions: got.append(len(partitions)))
        wait_until(lambda: visitor.poll(0.1) is not None or bool(got), "the visitor gets its partitions", 30)
        visitor.close()
        return got[0] if got else 0

    # -- afterwards

    def ends(self) -> list[int]:
        """Return the offset after the last record of each partition of the replay topic."""
        return kafka_admin.end_offsets(self.config, self.topics.replay, self.partitions)

    def committed(self) -> list[int]:
        """Return the group's committed offsets."""
        return kafka_admin.committed_offsets(
            self.config, self.topics.processors_group, self.topics.replay, self.partitions
        )

    def handled(self) -> dict[int, list[tuple[int, int]]]:
        """Return, by partition, the offset ranges that workers noted before they acknowledged them."""
        ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for path in self.directory.glob("*.handled"):
            for line in path.read_text("ascii").splitlines(keepends=True):
                if line.endswith("\n"):  # a SIGKILL may have cut the last one short
                    partition, begin, end, _ = map(int, line.split())
                    ranges[partition].append((begin, end))
        return ranges

    def handled_up_to(self, begin: int = 1) -> list[int]:
        """Return, by partition, the offset up to which the handled ranges have no hole."""
        reached = []
        for partition in range(self.partitions):
            position = begin
            for start, end in sorted(self.handled()[partition]):
                if start > position:
                    break
                position = max(position, end)
            reached.append(position)
        return reached

    def outcomes(self) -> list[tuple[int, bytes, Outcome | SnapshotMarker]]:
        """Return partition, key and record of every outcome and end marker on the outcomes topic."""
        return [
            (partition, key, CODEC.decode(value))  # type: ignore[misc]
            for partition, of_record, data in self.read(self.topics.outcomes)
            for key, value in CODEC.outcomes(of_record or b"", data or b"")
        ]

    def read(self, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
        """Return partition, key and value of every committed record of a topic."""
        consumer = Consumer(
            {**self.config, "group.id": "none", "enable.partition.eof": True, "enable.auto.commit": False}
        )
        partitions = list(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        left = set(partitions)
        found = []
        while left:
            for message in consumer.consume(10_000, 1.0):
                error = message.error()
                if error is None:
                    found.append((message.partition() or 0, message.key(), message.value()))
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition() or 0)
                else:
                    raise AssertionError(error)
        consumer.close()
        return found
