"""I/O: the lag on the topics of an account. Queries Kafka once a second at most, for any number of readers."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from ops.kafka import admin as kafka_admin
from schemas.topics import AccountTopics

ANSWER_TIMEOUT_S = 2.0
FRESH_S = 1.0
ACCOUNTS_MAX = 1_000  # cached
DEAD_LETTER_PARTITION = 0
EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Lag:
    """The backlog of each stage; None where Kafka has not answered."""

    processors: int | None = None  # records of the replay topic: rows and markers
    sink: int | None = None  # of those, with outcomes that are not counted yet
    dead_letters: int | None = None  # that the topic holds


class Committed(NamedTuple):
    """What a group has committed for a partition."""

    offset: int
    metadata: str


def rows_waiting(records: int, sink: Committed, processors: Committed | None) -> int:
    """Return how many rows are in the records of a partition that wait for the sink: a record can hold many.

    Computed from the sink's metadata (sink.group), up to the processors' last commit, at most a second ago; without
    metadata, as of an older release, a record counts as a row.
    """
    if not records or processors is None or not (sink.metadata.isascii() and sink.metadata.isdigit()):
        return records
    return max(records, processors.offset - int(sink.metadata))


class LagReader:
    """Sums of offsets; safe to use from several threads."""

    def __init__(self, kafka: Mapping[str, Any]) -> None:
        """`kafka` is the connection's configuration; does not connect yet. Empty: every lag is unknown."""
        self._kafka = dict(kafka)
        self._admin: AdminClient | None = None
        self._known: dict[str, tuple[float, Lag]] = {}
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}

    def of(self, account: str, fresh_s: float = FRESH_S) -> Lag:
        """Return the account's lag, at most `fresh_s` old. Never raises for a Kafka that does not answer."""
        if not self._kafka.get("bootstrap.servers"):
            return Lag()
        with self._lock:
            found = self._known.get(account)
            if found is not None and time.monotonic() - found[0] < fresh_s:
                return found[1]
            asking = self._asking.setdefault(account, threading.Lock())
        with asking:  # concurrent callers wait for this answer instead of querying too
            found = self._known.get(account)
            if found is not None and time.monotonic() - found[0] < fresh_s:
                return found[1]
            lag = self._query(AccountTopics.of(account))
            with self._lock:
                self._known.pop(account, None)
                self._known[account] = (time.monotonic(), lag)
                while len(self._known) > ACCOUNTS_MAX:
                    oldest = next(iter(self._known))
                    del self._known[oldest]
                    self._asking.pop(oldest, None)
            return lag

    def _query(self, topics: AccountTopics) -> Lag:
        if self._admin is None:
            self._admin = AdminClient({**self._kafka, "log_level": 0})
        letters = TopicPartition(topics.dead_letters, DEAD_LETTER_PARTITION)
        first = self._admin.list_offsets({letters: EARLIEST}, request_timeout=ANSWER_TIMEOUT_S)
        groups = {topics.processors_group: topics.replay, topics.sink_group: topics.outcomes}
        with ThreadPoolExecutor(len(groups), thread_name_prefix="lag") as both:  # in an outage both take long
            answers = zip(groups.values(), both.map(self._committed, groups, groups.values()), strict=True)
            committed = {topic: found for topic, found in answers if found is not None}
        wanted = [TopicPartition(topic, partition) for topic, found in committed.items() for partition in found]
        ends = self._admin.list_offsets(dict.fromkeys((*wanted, letters), LATEST), request_timeout=ANSWER_TIMEOUT_S)
        waiting: dict[str, int | None] = {}
        handled = committed.get(topics.replay, {})
        for topic, found in committed.items():
            records = {
                p: max(0, end - of.offset) for p, of in found.items() if (end := _offset(ends, topic, p)) is not None
            }
            if topic == topics.outcomes:
                records = {p: rows_waiting(count, found[p], handled.get(p)) for p, count in records.items()}
            waiting[topic] = sum(records.values()) if found and len(records) == len(found) else None
        low, high = _first_offset(first), _offset(ends, letters.topic, letters.partition)
        return Lag(
            waiting.get(topics.replay),
            waiting.get(topics.outcomes),
            None if low is None or high is None else max(0, high - low),
        )

    def _committed(self, group: str, topic: str) -> dict[int, Committed] | None:
        """Return the committed offsets by partition, without those that have none; None if Kafka does not answer.

        Queried by a consumer that does not join the group: librdkafka's admin client ends the process with a
        segmentation fault if a broker answers `list_consumer_group_offsets` with "not coordinator", as a new cluster
        does at first, and any cluster whose brokers change (librdkafka issue 5040, still open in 2.16).
        """
        try:
            with kafka_admin.speaking_for(self._kafka, group) as consumer:
                described = consumer.list_topics(topic, timeout=ANSWER_TIMEOUT_S).topics[topic]
                if described.error is not None:
                    return None
                wanted = [TopicPartition(topic, partition) for partition in described.partitions]
                answers = consumer.committed(wanted, timeout=ANSWER_TIMEOUT_S)
        except KafkaException:
            return None
        return {
            tp.partition: Committed(tp.offset, _metadata(tp)) for tp in answers if tp.error is None and tp.offset >= 0
        }


def _metadata(tp: TopicPartition) -> str:
    """Return the metadata of a commit, "" where the client cannot give it.

    It takes the bytes for a text that ends with a NUL, and reads on behind one that does not.
    """
    try:
        return tp.metadata or ""
    except UnicodeDecodeError:
        return ""


def _offset(futures: Mapping[TopicPartition, Any], topic: str, partition: int) -> int | None:
    future = futures.get(TopicPartition(topic, partition))
    if future is None:
        return None
    try:
        return int(kafka_admin.answer(future).offset)
    except KafkaException:  # no such topic yet, or no answer
        return None


def _first_offset(futures: Mapping[TopicPartition, Any]) -> int | None:
    (tp,) = futures
    return _offset(futures, tp.topic, tp.partition)
