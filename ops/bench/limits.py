"""`crm-replay bench --stage limits`: the maximum rates of servers and clients, on the rows just replayed.

Without transformation, keys, counts and idempotence: the upper bounds of the stages.

- `copy_to_stdout`: PostgreSQL's COPY of the account's rows;
- `bare_consume`, `bare_produce`: the replay topic's records, read by one client, and written again to another topic;
- `bare_insert_many`: the documents, by one writer into an empty collection that has the unique index.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
import psycopg
from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS, RawBSONDocument
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from psycopg import sql

from ops.kafka import admin as kafka_admin
from producer.publisher import PRODUCER_CONFIG
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.topics import AccountTopics
from sink.indexes import UNIQUE_EXTERNAL_ID

HELD_MAX = 100_000  # records or documents in memory at once
TOPIC = "crm.bench.limits"
COLLECTION = "bench_limits"
INSERTED_TOGETHER = 2_000
IDLE_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit, measured once."""

    name: str
    rows: int
    seconds: float
    client_cpu_s: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON line's object."""
        return {
            "stage": self.name,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows / self.seconds),
            "client_cpu_us_per_row": round(self.client_cpu_s / self.rows * 1e6, 1),
        }


class _Watch:
    """Wall and CPU time of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def limit(self, name: str, rows: int) -> Limit:
        return Limit(name, rows, time.perf_counter() - self._wall, time.process_time() - self._cpu)


def measure(connections: Connections, database: Database, account: str, partitions: int, table: str) -> Iterator[Limit]:
    """Yield every limit. The account has been replayed; `table` is its audits', with the schema.

    Raises ReplayError if the topic or the collection does not hold the account's rows.
    """
    yield copy_to_stdout(connections.crm_audit_database_url, table)
    kafka = connections.kafka()
    watch = _Watch()
    records = _records(kafka, AccountTopics.of(account).replay, partitions)
    yield watch.limit("bare_consume", len(records))
    yield produce(kafka, records, partitions)
    batches: Any = database[ACTIVITY_LOGS].find_raw_batches({"company_sso_id": account}, limit=HELD_MAX)
    documents = [document for batch in batches for document in bson.decode_all(batch, DEFAULT_RAW_BSON_OPTIONS)]
    if not documents:
        raise ReplayError(f"{account} has no documents to insert again", "measure end_to_end in the same run")
    yield insert(database, documents)


def copy_to_stdout(dsn: str, table: str) -> Limit:
    """Return how fast PostgreSQL copies the table's rows out."""
    name = sql.SQL(".").join(map(sql.Identifier, table.split(".")))
    watch = _Watch()
    with psycopg.connect(dsn) as db, db.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY {} TO STDOUT").format(name)) as copy:
            for _ in copy:
                pass
        return watch.limit("copy_to_stdout", cursor.rowcount)


def produce(kafka: Mapping[str, Any], records: Sequence[tuple[bytes | None, bytes | None]], partitions: int) -> Limit:
    """Return how fast one client writes the records to a new topic, all of them confirmed."""
    admin = kafka_admin.client(kafka)
    admin.create_topics([NewTopic(TOPIC, partitions, 1)])[TOPIC].result(kafka_admin.ANSWER_TIMEOUT_S)
    try:
        producer = Producer({**PRODUCER_CONFIG, **kafka, "queue.buffering.max.messages": len(records) + 1})
        watch = _Watch()
        for key, value in records:
            producer.produce(TOPIC, value, key)
        if producer.flush(IDLE_MAX_S):
            raise ReplayError(f"Kafka has not confirmed every record of {TOPIC}")
        return watch.limit("bare_produce", len(records))
    finally:
        admin.delete_topics([TOPIC])[TOPIC].result(kafka_admin.ANSWER_TIMEOUT_S)


def insert(database: Database, documents: Sequence[RawBSONDocument]) -> Limit:
    """Return how fast one writer inserts the documents into an empty collection with the unique index."""
    logs = database[COLLECTION]
    logs.drop()
    logs.create_index([(key, 1) for key in UNIQUE_EXTERNAL_ID.keys], **UNIQUE_EXTERNAL_ID.options())
    try:
        watch = _Watch()
        for at in range(0, len(documents), INSERTED_TOGETHER):
            logs.insert_many(documents[at : at + INSERTED_TOGETHER], ordered=False)
        return watch.limit("bare_insert_many", len(documents))
    finally:
        logs.drop()


def _records(kafka: Mapping[str, Any], topic: str, partitions: int) -> list[tuple[bytes | None, bytes | None]]:
    """Return up to HELD_MAX of the records that a topic holds now, by the bare client: this is what is measured."""
    ends = kafka_admin.end_offsets(kafka, topic, partitions)
    wanted = min(HELD_MAX, sum(ends))
    consumer = Consumer({**kafka, "group.id": "crm-replay-bench", "enable.auto.commit": False})
    records: list[tuple[bytes | None, bytes | None]] = []
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        while len(records) < wanted:
            messages = consumer.consume(min(10_000, wanted - len(records)), IDLE_MAX_S)
            if not messages:
                raise ReplayError(f"{topic} gave {len(records):,} of {wanted:,} records")
            records += [(message.key(), message.value()) for message in messages]
    finally:
        consumer.close()
    return records
