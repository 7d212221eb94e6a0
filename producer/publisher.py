"""An idempotent Kafka producer: `flush` returns once every delivery is confirmed."""

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from producer.topics import CHECK_TIMEOUT_S
from schemas.errors import ReplayError, ServiceUnreachableError
from schemas.process.tracing import Headers

logger = logging.getLogger(__name__)

DELIVERY_TIMEOUT_S = 120.0  # without a single confirmation

# For records that may be repeated in any order: a producer that needs no producer id.
REPEATABLE: dict[str, Any] = {"enable.idempotence": False, "enable.gapless.guarantee": False}

Keyed = tuple[bytes | None, bytes | None]  # key and value; without a value, a tombstone

PRODUCER_CONFIG: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    # The Java client's hash, explicitly: librdkafka's default differs, and a key must have one partition with every
    # client.
    "partitioner": "murmur2",
    "compression.type": "lz4",
    "linger.ms": 5,
    # A message never expires, and none may be skipped: librdkafka would continue with the following ones, and a row
    # published later under the same number is below the high-water mark and would be dropped as a repetition.
    "delivery.timeout.ms": 0,
    "enable.gapless.guarantee": True,
    "delivery.report.only.error": True,
    "queue.buffering.max.kbytes": 64 * 1024,  # bounds the memory; `publish` waits while it is full
    "log_level": 3,
}


class Publishes(Protocol):
    """What the snapshot publishes with; `Publisher` is the real one."""

    def publish(self, records: Iterable[Keyed], headers: Headers | None = None) -> None:
        """Queue records for delivery, in this order on every partition, each with these headers."""
        ...

    def flush(self) -> None:
        """Return once everything published so far is confirmed; raise if a delivery fails."""
        ...


class Confirmations:
    """How long a producer's queue has not become shorter."""

    def __init__(self, topic: str, left: int) -> None:
        """`left` is how many records are queued or in flight."""
        self._topic = topic
        self._left = left
        self._moved_at = time.monotonic()

    def require(self, left: int) -> None:
        """Raise ServiceUnreachableError if nothing has been confirmed for DELIVERY_TIMEOUT_S; `left` as above."""
        if left < self._left:
            self._moved_at = time.monotonic()
        elif time.monotonic() - self._moved_at > DELIVERY_TIMEOUT_S:
            raise ServiceUnreachableError(
                f"Kafka has confirmed nothing for {self._topic} for {DELIVERY_TIMEOUT_S:.0f} s",
                "start again when the brokers are back; nothing is lost",
            )
        self._left = left


class Publisher:
    """Publishes to one topic."""

    def __init__(self, kafka: Mapping[str, Any], topic: str, message_bytes_max: int = 1_000_000) -> None:
        """`kafka` is a confluent-kafka configuration with at least the servers; does not connect yet."""
        self._topic = topic
        self._failure: KafkaError | None = None
        # The broker applies the topic's message limit to the whole batch.
        batch_bytes = min(1_000_000, message_bytes_max)
        self._producer = Producer(
            {**PRODUCER_CONFIG, "message.max.bytes": message_bytes_max, "batch.size": batch_bytes, **kafka},
            logger=logger,
        )
        self._has_metadata = False

    def publish(self, records: Iterable[Keyed], headers: Headers | None = None) -> None:
        """Queue records; waits while the queue is full. Raises ReplayError like `flush`."""
        produce, topic, failed = self._producer.produce, self._topic, self._failed
        if not self._has_metadata:
            fetch_metadata(self._producer, topic)
            self._has_metadata = True
        if headers:
            produce = partial(produce, headers=headers)
        for key, value in records:
            full: Confirmations | None = None
            while True:
                try:
                    produce(topic, value, key, on_delivery=failed)
                    break
                except BufferError:
                    full = full or Confirmations(topic, len(self._producer))
                    full.require(self._flush(0.1))
                    self._raise_failure()
                except KafkaException as error:
                    raise self._not_delivered(error.args[0]) from error
        self._flush(0)
        self._raise_failure()

    def flush(self) -> None:
        """Return once every delivery is confirmed. Raises ReplayError with the cause of the first failure.

        ServiceUnreachableError if nothing is confirmed for DELIVERY_TIMEOUT_S.
        Only failures have delivery reports: an empty queue without a reported failure confirms all records.
        """
        confirmations = Confirmations(self._topic, len(self._producer))
        while left := self._flush(1.0):
            self._raise_failure()
            confirmations.require(left)
        self._raise_failure()

    def close(self) -> None:
        """Drop what has not been delivered; callers flush what has to be."""
        self._producer.purge()
        self._flush(1.0)

    def _flush(self, timeout_s: float) -> int:
        """Wait until nothing is queued or in flight, `timeout_s` at most; return how many records are left."""
        try:
            return self._producer.flush(timeout_s)
        except (KafkaException, SystemError):
            # A fatal error is raised by the next call of any kind (as a SystemError if a callback ran before). The call
            # after it delivers the reports of failure, with the cause.
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
            "start again when the cause is removed; the cursor is kept, nothing is lost",
        )


def fetch_metadata(producer: Producer, topic: str) -> None:
    """Connect a new idempotent producer and fetch the topic's metadata; return after the time-out during an outage.

    A first record delays delivery by half a second without a producer id, and by a tenth without the metadata.
    """
    with contextlib.suppress(KafkaException):  # the delivery reports it
        producer.list_topics(topic, timeout=CHECK_TIMEOUT_S)


def now_us() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000
