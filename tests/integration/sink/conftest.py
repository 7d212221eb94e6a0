"""One account on real servers: topics, a migrated database, a way to publish outcomes and to run sinks."""

import datetime as dt
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ops.jobs import migrations
from schemas.codec import Codec
from schemas.job import ReplayJob
from schemas.records import ActivityLog, DeadLetter, OutcomeBatch, Record, SkippedRecord, SnapshotMarker
from schemas.vocabulary import MarkerEdge
from sink.consumer import Sink
from sink.effects import EffectHook, no_hook
from sink.progress import RunTotals, totals_of
from sink.replay import replay_parts
from sink.settings import SinkSettings
from tests.support.programs import Program

ROOT = Path(__file__).resolve().parents[3]
CODEC = Codec()


@dataclass
class Account:
    """One account's run."""

    kafka: dict[str, Any]
    database: Any
    mongodb_url: str
    job: ReplayJob
    processes: list[Program] = field(default_factory=list)

    @property
    def logs(self) -> Any:
        return self.database["activity_logs"]

    def document(self, audit_id: int, **more: Any) -> dict[str, Any]:
        return {
            "company_sso_id": self.job.company_sso_id,
            "customer_id": f"customer-{audit_id % 7}",
            "category": "contact",
            "action": "update",
            "actor": {"type": "system", "id": None, "name": "Qontak System"},
            "changes": [{"field": "name", "label": "Name", "from": "a", "to": str(audit_id)}],
            "timestamp": dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=audit_id),
            "external_id": f"crm_audit:{audit_id}",
            "source_tag": "crm_migration",
            **more,
        }

    def log(self, audit_id: int, offset: int | None = None, *, id_range: int = 0, **more: Any) -> ActivityLog:
        document = bson.encode(self.document(audit_id, **more))
        return ActivityLog(audit_id, id_range, audit_id if offset is None else offset, self.job.run, document)

    def skip(self, audit_id: int, reason: str = "contact_not_found", *, id_range: int = 0) -> SkippedRecord:
        return SkippedRecord(audit_id, id_range, audit_id, self.job.run, reason)

    def dead_letter(self, audit_id: int, offset: int | None = None, cause: str = "undecodable_changes") -> DeadLetter:
        offset = audit_id if offset is None else offset
        return DeadLetter(
            audit_id, 0, self.job.topics.replay, 0, offset, self.job.run, cause, "a test", b"k", b"payload", 1
        )

    def end(self) -> SnapshotMarker:
        return SnapshotMarker(MarkerEdge.END, self.job.job_id, 10_000_000, self.job.run)

    def publish(self, records: Sequence[Record | bytes], partition: int = 0, *, together: int = 1) -> None:
        """Produce records of the outcomes topic; `together` outcomes, or what is left of them, are a record."""
        values = [record if isinstance(record, bytes) else CODEC.encode(record) for record in records]
        parts = [values[at : at + together] for at in range(0, len(values), together)]
        batches = [CODEC.encode(OutcomeBatch(tuple((b"key", value) for value in part))) for part in parts]
        producer = Producer({**self.kafka, "linger.ms": 5, "message.max.bytes": 20_000_000})
        failures: list[Any] = []
        for value in values if together == 1 else batches:
            producer.produce(
                self.job.topics.outcomes,
                value,
                b"key",
                partition,
                on_delivery=lambda error, _message: failures.append(error) if error else None,
            )
            producer.poll(0)
        assert producer.flush(30) == 0
        assert failures == []

    def end_all(self) -> None:
        for partition in range(self.job.partitions):
            self.publish([self.end()], partition)

    def settings(self, **more: Any) -> SinkSettings:
        return SinkSettings(
            job=self.job.model_dump_json(), exit_at_end=True, **{"sink_session_timeout_ms": 6000, **more}
        )

    def sink(self, hook: EffectHook = no_hook, **more: Any) -> Sink:
        return Sink(self.settings(**more), self.kafka, self.database, CODEC, replay_parts, hook=hook)

    def run_sink(self, hook: EffectHook = no_hook, **more: Any) -> Sink:
        """Run a sink in this process until the run has ended; return it."""
        sink = self.sink(hook, **more)
        sink.run()
        return sink

    def start_process(self, fault: str = "", **env: str) -> Program:
        """Start a real sink process; `fault` is where it kills itself: `before:write_logs:3`."""
        environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka["bootstrap.servers"],
            "MONGODB_URL": self.mongodb_url,
            "MONGODB_DATABASE": self.database.name,
            "CRM_REPLAY_JOB": self.job.model_dump_json(),
            "CRM_REPLAY_EXIT_AT_END": "1",
            "CRM_REPLAY_SINK_SESSION_TIMEOUT_MS": "6000",
            **env,
        }
        module = ["tests.integration.sink.faulty_sink", fault] if fault else ["sink"]
        process = Program(*module, env=environment)
        self.processes.append(process)
        return process

    @property
    def totals(self) -> RunTotals:
        return totals_of(self.database["crm_replay_progress"], self.job.job_id, self.job.run)

    def external_ids(self) -> list[str]:
        return sorted(d["external_id"] for d in self.logs.find({}, {"external_id": 1}))

    def dead_letters(self) -> list[DeadLetter]:
        """Return everything on the dead-letter topic."""
        consumer = Consumer({**self.kafka, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
        try:
            partition = TopicPartition(self.job.topics.dead_letters, 0, 0)
            end = consumer.get_watermark_offsets(partition, timeout=10)[1]
            consumer.assign([partition])
            found: list[DeadLetter] = []
            while len(found) < end:
                for message in consumer.consume(end - len(found), 5):
                    assert message.error() is None
                    found.append(CODEC.decode_as(DeadLetter, message.value() or b""))
            return found
        finally:
            consumer.close()

    def committed(self) -> dict[int, int]:
        consumer = Consumer({**self.kafka, "group.id": self.job.topics.sink_group, "enable.auto.commit": False})
        try:
            asked = [TopicPartition(self.job.topics.outcomes, p) for p in range(self.job.partitions)]
            return {p.partition: p.offset for p in consumer.committed(asked, timeout=10)}
        finally:
            consumer.close()


@pytest.fixture
def make_account(kafka_bootstrap: str, mongodb_url: str, mongo_database: Any) -> Iterator[Callable[..., Account]]:
    """Make an account with empty topics and a migrated database."""
    kafka = {"bootstrap.servers": kafka_bootstrap}
    admin = AdminClient({**kafka})
    made: list[Account] = []

    def make(partitions: int = 1, run: int = 7) -> Account:
        job = ReplayJob(
            company_sso_id=f"test-{uuid.uuid4().hex[:10]}",
            job_id=uuid.uuid4().hex,
            run=run,
            partitions=partitions,
            top_audit_id=10**9,
            snapshot_xmax=0,
            cutoff=dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
            mapping_path="",
        )
        size = {"max.message.bytes": str(20 * 1024 * 1024)}
        wanted = [
            NewTopic(job.topics.outcomes, num_partitions=partitions, replication_factor=1, config=size),
            NewTopic(job.topics.dead_letters, num_partitions=1, replication_factor=1, config=size),
        ]
        for future in admin.create_topics(wanted).values():
            future.result(20)
        migrations.up(mongo_database)
        account = Account(kafka, mongo_database, mongodb_url, job)
        made.append(account)
        return account

    yield make
    for account in made:
        for process in account.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        topics = [account.job.topics.outcomes, account.job.topics.dead_letters]
        for future in admin.delete_topics(topics).values():
            future.result(20)


@pytest.fixture
def account(make_account: Callable[..., Account]) -> Account:
    return make_account()
