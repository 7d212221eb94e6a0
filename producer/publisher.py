"""An idempotent Kafka producer: `flush` returns once every delivery is confirmed."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.tracing import Headers

logger = logging.getLogger(__name__)

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
        # Where a topic is made again under its name, its epochs begin anew, and a client remembers the former one's.
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
    )
)
DELIVERY_TIMEOUT_S = 120.0  # without a single confirmation
RECORD_OVERHEAD_BYTES = 1024  # batch header, record header and the Avro frame, generously
MESSAGE_BYTES_LIMIT = (
    32 * 1024 * 1024
)  # whatever the topic allows: MongoDB takes 16 MiB, and memory has to stay bounded

# For what may be repeated and has no order on a partition: a producer that need not ask for an id first.
REPEATABLE: dict[str, Any] = {"enable.idempotence": False, "enable.gapless.guarantee": False}

Keyed = tuple[bytes | None, bytes | None]  # key and value; no value is a tombstone

PRODUCER_CONFIG: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    # The Java client's hash, said out loud: librdkafka's default is another one, and a key must have one partition
    # whoever produces it.
    "partitioner": "murmur2",
    "compression.type": "lz4",
    "linger.ms": 5,
    # A message never expires on its own, and none may be left out: librdkafka would go on with those behind it, and a
    # row published later under the same number lies below the high-water marks and would be dropped as a repetition.
    "delivery.timeout.ms": 0,
    "enable.gapless.guarantee": True,
    "delivery.report.only.error": True,
    "queue.buffering.max.kbytes": 64 * 1024,  # bounds the memory; `produce` waits when it is full
    "log_level": 3,
}


class Publishes(Protocol):
    """What the snapshot publishes with; `Publisher` is the real one."""

    def publish(self, records: Iterable[Keyed], headers: Headers | None = None) -> None:
        """Hand records over for delivery, in this order on every partition, each with these headers."""
        ...

    def flush(self) -> None:
        """Return once everything published so far is confirmed; raise if anything is not."""
        ...


class Publisher:
    """Publishes to one topic."""

    def __init__(self, kafka: Mapping[str, Any], topic: str, message_bytes_max: int = 1_000_000) -> None:
        """`kafka` is a confluent-kafka configuration with at least the servers; does not wait for them."""
        self._topic = topic
        self._failure: KafkaError | None = None
        # A batch may not be larger than what the topic takes of a message: to the broker the batch is the message.
        batch_bytes = min(1_000_000, message_bytes_max)
        self._producer = Producer(
            {**PRODUCER_CONFIG, "message.max.bytes": message_bytes_max, "batch.size": batch_bytes, **kafka},
            logger=logger,
        )
        self._introduced = False

    def publish(self, records: Iterable[Keyed], headers: Headers | None = None) -> None:
        """Hand records over; waits while the queue is full. Raises ReplayError if an earlier delivery has failed."""
        produce, topic, failed = self._producer.produce, self._topic, self._failed
        if not self._introduced:
            introduce(self._producer, topic)
            self._introduced = True
        if headers:
            produce = partial(produce, headers=headers)
        for key, value in records:
            while True:
                try:
                    produce(topic, value, key, on_delivery=failed)
                    break
                except BufferError:
                    self._flush(0.1)
                    self._raise_failure()
                except KafkaException as error:
                    raise self._not_delivered(error.args[0]) from error
        self._flush(0)
        self._raise_failure()

    def flush(self) -> None:
        """Return once every delivery is confirmed. Raises ReplayError with the cause of the first that is not.

        Only failures are reported one by one; that the queue is empty and no failure was reported proves the rest.
        """
        left, moved_at = len(self._producer), time.monotonic()
        while still := self._flush(1.0):
            self._raise_failure()
            if still < left:
                left, moved_at = still, time.monotonic()
            elif time.monotonic() - moved_at > DELIVERY_TIMEOUT_S:
                raise ReplayError(
                    f"Kafka has confirmed nothing for {self._topic} for {DELIVERY_TIMEOUT_S:.0f} s",
                    "start again when the brokers are back; the cursor is kept, nothing is lost",
                )
        self._raise_failure()

    def close(self) -> None:
        """Drop what has not been delivered; what matters was flushed."""
        self._producer.purge()
        self._flush(1.0)

    def _flush(self, timeout_s: float) -> int:
        """Return how many records are still on their way after the time-out, or fewer if all are sooner."""
        try:
            return self._producer.flush(timeout_s)
        except (KafkaException, SystemError):
            # A fatal error surfaces out of whichever call is made next (as a SystemError where a callback ran before).
            # The failed deliveries come with the call after it, with the cause.
            return self._producer.flush(timeout_s)

    def _failed(self, error: KafkaError | None, _: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._not_delivered(self._failure)

    def _not_delivered(self, error: KafkaError) -> ReplayError:
        return ReplayError(
            f"Kafka did not take a record for {self._topic}: {error.str()}",
            "start again when the cause is gone; the cursor is kept, nothing is lost",
        )


def introduce(producer: Producer, topic: str) -> None:
    """Let a new idempotent producer meet its cluster and topic; returns after the time-out where nobody answers.

    One that is given a record before it has its producer id waits for half a second; one that does not know the topic
    yet, for a tenth.
    """
    with contextlib.suppress(KafkaException):  # whoever waits for the delivery hears of it
        producer.list_topics(topic, timeout=CHECK_TIMEOUT_S)


def check_topic(
    kafka: Mapping[str, Any], topic: str, partitions: int | None = None, admin: AdminClient | None = None
) -> int:
    """Return the topic's partition count; asks with `admin` if there is one.

    Raises ServiceUnreachableError if no broker answers in time, BadInputError if there is no such topic or it has
    another number of partitions than `partitions`.
    """
    count = check_topics(kafka, (topic,), admin)[topic]
    if partitions is not None and count != partitions:
        raise BadInputError(
            f"topic {topic} has {count} partitions and the job says {partitions}",
            "keys would move between partitions: start a job with the topic's number",
        )
    return count


def check_topics(kafka: Mapping[str, Any], topics: Collection[str], admin: AdminClient | None = None) -> dict[str, int]:
    """Return each topic's partition count.

    Raises ServiceUnreachableError if no broker answers in time, BadInputError if one of them is not there.
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
            raise BadInputError(f"Kafka at {servers} has no topic {topic}", "the runner makes it: crm-replay run")
    return found


def partitions_of(admin: AdminClient, topics: Collection[str]) -> dict[str, int]:
    """Return the partition count of those of the topics that are there; asks for no others, of which there may be many.

    Raises KafkaException if no broker answers.
    """
    answers = admin.describe_topics(TopicCollection([*topics]), request_timeout=CHECK_TIMEOUT_S)
    found = {}
    for topic, answer in answers.items():
        try:
            found[topic] = len(answer.result().partitions)
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER:  # not yet, or not at all
                raise
    return found


def offsets_held(consumer: Consumer, topic: str, partitions: int) -> list[tuple[int, int]]:
    """Return, by partition, the offset of the first record that Kafka has and the one behind the last.

    Waits for a leader where a topic has just been made. Raises KafkaException if there is none in time.
    """
    deadline = time.monotonic() + LEADER_TIMEOUT_S
    while True:
        try:
            return [
                consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CHECK_TIMEOUT_S)
                for partition in range(partitions)
            ]
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER or time.monotonic() > deadline:
                raise
            time.sleep(LEADER_POLL_S)


def offsets_held_by(admin: AdminClient, partitions: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """Return `offsets_held` of several topics, of which `partitions` are the numbers, in two questions.

    Waits for leaders where a topic has just been made. Raises ServiceUnreachableError if there are none in time.
    """
    every = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]
    deadline = time.monotonic() + LEADER_TIMEOUT_S
    while True:
        try:
            first, end = (
                {
                    (part.topic, part.partition): future.result().offset
                    for part, future in admin.list_offsets(
                        dict.fromkeys(every, spec), request_timeout=CHECK_TIMEOUT_S
                    ).items()
                }
                for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
            )
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER or time.monotonic() > deadline:
                raise ServiceUnreachableError(
                    f"Kafka does not tell the offsets of {every[0].topic} ({error.args[0].str()})",
                    "check KAFKA_BOOTSTRAP_SERVERS",
                ) from error
            time.sleep(LEADER_POLL_S)
        else:
            return {
                topic: [(first[topic, number], end[topic, number]) for number in range(count)]
                for topic, count in partitions.items()
            }


def message_bytes_max(kafka: Mapping[str, Any], topic: str, admin: AdminClient | None = None) -> int:
    """Return how many bytes of key and value a record of this topic may have. Raises ServiceUnreachableError."""
    admin = admin or AdminClient({**kafka, "log_level": 0})
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        answer = admin.describe_configs([resource], request_timeout=CHECK_TIMEOUT_S)[resource].result()
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"Kafka does not tell the configuration of {topic} ({error.args[0].str()})", "check KAFKA_BOOTSTRAP_SERVERS"
        ) from error
    limit = int(answer["max.message.bytes"].value)
    return max(RECORD_OVERHEAD_BYTES, min(limit, MESSAGE_BYTES_LIMIT) - RECORD_OVERHEAD_BYTES)


def now_us() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000
