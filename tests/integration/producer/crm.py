"""A CRM in PostgreSQL, topics and jobs, for the producer's tests."""

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from producer.audits import AuditSource, resolve
from producer.session import connect
from schemas.codec import Codec
from schemas.errors import ReplayError
from schemas.job import ReplayJob
from schemas.records import AuditEvent, DeadLetter, Record, SnapshotMarker
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics
from tests.support.programs import Program
from tests.support.waiting import wait_until

SAMPLE = files("ops.local").joinpath("sample")
YAML_ROWS, JSONB_ROWS = 326, 202
CUTOFF = datetime(2000, 1, 1, tzinfo=UTC)


def mapping_with(**source: Any) -> SourceMapping:
    """Return the default mapping without referents, with these keys of its source."""
    mapping = load(None).model_dump(by_alias=True) | {"referents": {}}
    mapping["source"] |= source
    return SourceMapping.model_validate(mapping)


def source_of(dsn: str, company_sso_id: str = "a", **source: Any) -> AuditSource:
    """Return the account's audits as this mapping finds them."""
    with connect(dsn) as db:
        return resolve(db, mapping_with(**source), company_sso_id)


def sample_rows(name: str) -> list[dict[str, Any]]:
    text = SAMPLE.joinpath(f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]  # splitlines would split at U+2028, too


def load_sample(dsn: str) -> None:
    """Make the sample CRM: all tables, all rows."""
    with psycopg.connect(dsn) as db:
        db.execute(SAMPLE.joinpath("schema.sql").read_text("utf-8"))
        insert(db, "public", "audits", sample_rows("audits_yaml"))
        insert(db, "jsonb_variant", "audits", sample_rows("audits_jsonb"))
        insert(db, "public", "users", sample_rows("users"))
        for name in ("people", "companies", "deals", "tasks", "tickets", "notes"):
            insert(db, "public", f"crm_{name}", sample_rows(name))


def make_audits(dsn: str, *, extra: str = "", json_type: str = "text", time_type: str = "timestamp") -> None:
    """Make an empty audits table; `extra` adds columns."""
    with psycopg.connect(dsn) as db:
        db.execute(
            f"CREATE TABLE audits (id bigserial PRIMARY KEY, auditable_id int, auditable_type varchar,"
            f" associated_id int, associated_type varchar, user_id int, user_type varchar, username varchar,"
            f" action varchar, audited_changes {json_type}, version int DEFAULT 0, comment varchar,"
            f" remote_address varchar, request_uuid varchar, created_at {time_type}{extra})"
        )
        db.execute("CREATE TABLE users (id int PRIMARY KEY, email text, full_name text, deleted_at timestamp)")


def add_audits(dsn: str, ids: Iterable[int], **columns: Any) -> None:
    """Add simple rows under these ids."""
    with psycopg.connect(dsn) as db:
        insert(db, "public", "audits", [audit(id_, **columns) for id_ in ids])


def audit(id_: int, **columns: Any) -> dict[str, Any]:
    row = {
        "id": id_,
        "auditable_id": id_ % 97 + 1,
        "auditable_type": "Crm::Person",
        "action": "update",
        "audited_changes": f"---\nname:\n- a\n- b{id_}\n",
        "version": 1,
        "created_at": "2023-01-02T03:04:05.678901",
    }
    return row | columns


def insert(db: psycopg.Connection[Any], schema: str, table: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(rows[0])
    query = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(schema, table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with db.cursor() as cursor, cursor.copy(query) as copy:
        for row in rows:
            copy.write_row([plain(row[column]) for column in columns])


def plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Surroundings:
    """One job and where it runs."""

    dsn: str
    kafka: str
    mongodb_url: str
    mongodb_database: str
    job: ReplayJob

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            **os.environ,
            "CRM_AUDIT_DATABASE_URL": self.dsn,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "MONGODB_URL": self.mongodb_url,
            "MONGODB_DATABASE": self.mongodb_database,
            "CRM_REPLAY_JOB": self.job.model_dump_json(),
            **settings,
        }

    def with_job(self, **changes: Any) -> "Surroundings":
        return replace(self, job=self.job.model_copy(update=changes))

    def start(self, **settings: str) -> Program:
        return Program(
            "producer",
            env=self.environment(**settings),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(self, **settings: str) -> tuple[int, str]:
        """Run the producer to its end; return its exit code and what it said."""
        process = self.start(**settings)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    def records(self) -> list[tuple[int, bytes | None, Record]]:
        """Return partition, key and record of everything on the replay topic, each partition in its order."""
        codec = Codec()
        return [
            (partition, key, codec.decode(value))
            for partition, key, value in everything_on(self.kafka, self.job.topics.replay)
            if value is not None
        ]

    def events(self) -> list[AuditEvent]:
        return [record for _, _, record in self.records() if isinstance(record, AuditEvent)]

    def markers(self) -> list[SnapshotMarker]:
        return [record for _, _, record in self.records() if isinstance(record, SnapshotMarker)]

    def dead_letters(self) -> list[DeadLetter]:
        return [record for _, _, record in self.records() if isinstance(record, DeadLetter)]

    def events_counted_once(self) -> list[AuditEvent]:
        """Return what is left when everybody downstream drops repetitions the way they do: by high-water marks."""
        high: dict[tuple[int, int], int] = {}
        kept = []
        for partition, _, record in self.records():
            if isinstance(record, AuditEvent) and record.audit_id > high.get((partition, record.id_range), -(2**63)):
                high[partition, record.id_range] = record.audit_id
                kept.append(record)
        return kept


def make_topics(bootstrap: str, topics: AccountTopics, partitions: int, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(topics.replay, partitions, 1, config=config)]
    wanted += [NewTopic(name, partitions, 1, config={"cleanup.policy": "compact"}) for name in topics.references]
    for future in admin.create_topics(wanted).values():
        future.result()


def drop_topics(bootstrap: str, topics: AccountTopics) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.delete_topics([topics.replay, *topics.references]).values():
        future.result()


def everything_on(bootstrap: str, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "enable.partition.eof": True})
    found: list[tuple[int, bytes | None, bytes | None]] = []
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        unread = set(partitions)
        while unread:
            for message in consumer.consume(10_000, timeout=0.2):
                if message.error():
                    unread.discard(message.partition())
                else:
                    found.append((message.partition() or 0, message.key(), message.value()))
    finally:
        consumer.close()
    return found


def dsn_on_standby(dsn: str, standby_dsn: str, table: str) -> str:
    """Return the DSN of a database on the standby, once its table has arrived there."""
    there = make_conninfo(standby_dsn, dbname=conninfo_to_dict(dsn)["dbname"])

    def is_there() -> bool:
        try:
            with connect(there) as db:
                return bool(db.execute("SELECT to_regclass(%(table)s) IS NOT NULL", {"table": table}).fetchall()[0][0])
        except ReplayError:  # the database has not arrived yet
            return False

    wait_until(is_there, "the database is on the standby")
    return there
