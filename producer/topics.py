"""I/O: queries about Kafka topics: partition counts, offsets, the largest record, the present records."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.waiting import Deadline, retrying

T = TypeVar("T")

CHECK_TIMEOUT_S = 5.0
LEADER_TIMEOUT_S = 15.0
LEADER_POLL_S = 0.1
NO_LEADER = frozenset(
    (
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001  librdkafka's public names begin with an underscore
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        # A topic created again under its name restarts its epochs, while a client caches the former one's.
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
    )
)
PARTITION_EOF = KafkaError._PARTITION_EOF  # noqa: SLF001  not an error, the end
READ_IDLE_S = 30.0  # without a record before the end of a topic: the broker is unavailable
READ_BATCH_RECORDS = 10_000
READ_POLL_S = 0.02  # a poll takes this long unless the batch is full, also after the last record
RECORD_OVERHEAD_BYTES = 1024  # batch header, record header and the Avro frame, generously
# An upper bound for the topic's own limit: MongoDB's is 16 MiB, and memory has to stay bounded.
MESSAGE_BYTES_LIMIT = 32 * 1024 * 1024


def check_topic(
    kafka: Mapping[str, Any], topic: str, partitions: int | None = None, admin: AdminClient | None = None
) -> int:
    """Return the topic's partition count; uses `admin` if given.

    Raises ServiceUnreachableError if no broker answers in time, BadInputError if there is no such topic or it has
    another number of partitions than `partitions`.
    """
    count = check_topics(kafka, (topic,), admin)[topic]
    if partitions is not None and count != partitions:
        raise BadInputError(
            f"topic {topic} has {count} partitions and the job has {partitions}",
            "keys would move between partitions: start a job with the topic's number",
        )
    return count


def check_topics(kafka: Mapping[str, Any], topics: Collection[str], admin: AdminClient | None = None) -> dict[str, int]:
    """Return each topic's partition count.

    Raises ServiceUnreachableError if no broker answers in time, BadInputError if one of them does not exist.
    """
    servers = kafka.get("bootstrap.servers", "")
    try:
        found = partitions_of(admin or AdminClient({**kafka, "log_level": 0}), topics)
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"Kafka at {servers or '(no address)'} does not answer ({error.args[0].str()})",
            "check KAFKA_BOOTSTRAP_SERVERS",
        ) from error
    for topic in topics:
        if topic not in found:
            raise BadInputError(f"Kafka at {servers} has no topic {topic}", "the runner creates it: crm-replay run")
    return found


def partitions_of(admin: AdminClient, topics: Collection[str]) -> dict[str, int]:
    """Return the partition count of those of the topics that exist; queries no others, as a cluster may have many.

    Raises KafkaException if no broker answers.
    """
    answers = admin.describe_topics(TopicCollection([*topics]), request_timeout=CHECK_TIMEOUT_S)
    found = {}
    for topic, answer in answers.items():
        try:
            found[topic] = len(answer.result().partitions)
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER:  # else it does not exist, or not yet
                raise
    return found


def offsets_held(consumer: Consumer, topic: str, partitions: int) -> list[tuple[int, int]]:
    """Return, by partition, the first offset and the end offset.

    Waits for the leader of a topic that was just created. Raises KafkaException if there is none in time.
    """

    def query() -> list[tuple[int, int]]:
        return [
            consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CHECK_TIMEOUT_S)
            for partition in range(partitions)
        ]

    return _with_leader(query)


def offsets_held_by(admin: AdminClient, partitions: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """Return `offsets_held` of several topics with two queries; `partitions` are their partition counts.

    Waits for the leaders of topics that were just created. Raises ServiceUnreachableError if there are none in time.
    """
    every = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]

    def query(spec: OffsetSpec) -> dict[tuple[str, int], int]:
        answers = admin.list_offsets(dict.fromkeys(every, spec), request_timeout=CHECK_TIMEOUT_S)
        return {(part.topic, part.partition): future.result().offset for part, future in answers.items()}

    try:
        first = _with_leader(lambda: query(OffsetSpec.earliest()))  # type: ignore[no-untyped-call]
        end = _with_leader(lambda: query(OffsetSpec.latest()))  # type: ignore[no-untyped-call]
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"cannot read the offsets of {every[0].topic} from Kafka ({error.args[0].str()})",
            "check KAFKA_BOOTSTRAP_SERVERS",
        ) from error
    return {
        topic: [(first[topic, number], end[topic, number]) for number in range(count)]
        for topic, count in partitions.items()
    }


def _with_leader(query: Callable[[], T]) -> T:
    """Return the query's answer; retried, as partitions of a topic just created have no leader at first."""
    return retrying(
        query,
        KafkaException,
        Deadline(LEADER_TIMEOUT_S),
        LEADER_POLL_S,
        passes=lambda error: error.args[0].code() in NO_LEADER,
    )


def messages_held(
    kafka: Mapping[str, Any], topic: str, held: Mapping[int, tuple[int, int]], *, idle_max_s: float = READ_IDLE_S
) -> Iterator[Message]:
    """Yield the messages of a topic from the first offset of each partition to its end, tombstones among them.

    `held` has, by partition, the first offset and the end offset, as `offsets_held` returns them: later messages are
    left out. Messages of one partition come in order. Joins no group and commits nothing. Raises ReplayError if Kafka
    sends nothing for `idle_max_s` before the end, or refuses.
    """
    # Only known offsets and partitions that are not empty: others cost the client half a second.
    parts = [TopicPartition(topic, number, low) for number, (low, end) in sorted(held.items()) if low < end]
    if not parts:
        return
    consumer = Consumer(
        {
            "enable.auto.commit": False,
            "enable.partition.eof": True,  # the offset before the end may have no record: compaction leaves holes
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": 64 * 1024,
            "log_level": 0,
            **kafka,
            "group.id": f"{topic}.read",  # never joined or committed to; the client requires a name
        }
    )
    unread = {part.partition for part in parts}
    try:
        consumer.assign(parts)
        received_at = time.monotonic()
        while unread:
            messages = consumer.consume(READ_BATCH_RECORDS, READ_POLL_S)
            if not messages and time.monotonic() - received_at > idle_max_s:
                raise ReplayError(f"Kafka sends nothing of {topic}", "try again when it is back")
            for message in messages:
                partition, error = cast("int", message.partition()), message.error()
                if error is not None:
                    if error.code() != PARTITION_EOF:
                        raise KafkaException(error)
                    unread.discard(partition)
                    continue
                offset, end = cast("int", message.offset()), held[partition][1]
                if offset < end:
                    yield message
                if offset + 1 >= end:
                    unread.discard(partition)
            if messages:
                received_at = time.monotonic()  # after the caller has processed them: its time does not count
    except KafkaException as error:
        raise ReplayError(f"cannot read {topic}: {error.args[0].str()}", "try again when Kafka is back") from error
    finally:
        consumer.close()


def message_bytes_max(kafka: Mapping[str, Any], topic: str, admin: AdminClient | None = None) -> int:
    """Return the maximum bytes of key and value of a record of this topic. Raises ServiceUnreachableError."""
    admin = admin or AdminClient({**kafka, "log_level": 0})
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        answer = admin.describe_configs([resource], request_timeout=CHECK_TIMEOUT_S)[resource].result()
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"cannot read the configuration of {topic} from Kafka ({error.args[0].str()})",
            "check KAFKA_BOOTSTRAP_SERVERS",
        ) from error
    limit = int(answer["max.message.bytes"].value)
    return max(RECORD_OVERHEAD_BYTES, min(limit, MESSAGE_BYTES_LIMIT) - RECORD_OVERHEAD_BYTES)
