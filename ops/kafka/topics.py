"""I/O: what a topic holds now, read by plain consumers that join no group and commit nothing."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from producer.topics import offsets_held
from schemas.errors import ReplayError

ANSWER_TIMEOUT_S = 10.0
READ_IDLE_S = 30.0
BATCH_RECORDS = 10_000
POLL_S = 0.1
PARTITION_EOF = KafkaError._PARTITION_EOF  # noqa: SLF001 - confluent-kafka's name for it


class Read(NamedTuple):
    """A record as it came."""

    partition: int
    offset: int
    value: bytes


class Span(NamedTuple):
    """The offsets that a partition holds: from `low` up to, but not with, `end`."""

    low: int
    end: int


def spans(kafka: Mapping[str, Any], topic: str) -> dict[int, Span]:
    """Return what each partition of a topic holds; empty if there is no such topic. Raises ReplayError."""
    consumer = _consumer(kafka, topic)
    try:
        found = consumer.list_topics(topic, timeout=ANSWER_TIMEOUT_S).topics[topic]
        if found.error is not None:
            return {}
        held = offsets_held(consumer, topic, len(found.partitions))
        return {partition: Span(low, end) for partition, (low, end) in enumerate(held)}
    except KafkaException as error:
        raise _unanswered(topic, error) from error
    finally:
        consumer.close()


def records(kafka: Mapping[str, Any], topic: str, begin: Mapping[int, int] | None = None) -> Iterator[Read]:
    """Yield the records that a topic holds now, from the `begin` offsets where given; tombstones are left out.

    Raises ReplayError if Kafka stops answering.
    """
    held = spans(kafka, topic)
    starts = {p: max(span.low, (begin or {}).get(p, 0)) for p, span in held.items()}
    unread = {p for p, span in held.items() if starts[p] < span.end}
    if not unread:
        return
    consumer = _consumer(kafka, topic)
    try:
        consumer.assign([TopicPartition(topic, p, starts[p]) for p in sorted(unread)])
        idle_s = 0.0
        while unread:
            messages = consumer.consume(BATCH_RECORDS, POLL_S)
            idle_s = 0.0 if messages else idle_s + POLL_S
            if idle_s > READ_IDLE_S:
                raise ReplayError(f"Kafka sends nothing of {topic}", "try again when it is back")
            for message in messages:
                partition, offset, error = message.partition(), message.offset(), message.error()
                if error is not None:
                    if error.code() != PARTITION_EOF:
                        raise KafkaException(error)
                    unread.discard(partition or 0)
                    continue
                assert partition is not None
                assert offset is not None
                if offset >= held[partition].end:
                    unread.discard(partition)
                    continue
                value = message.value()
                if value is not None:
                    yield Read(partition, offset, value if isinstance(value, bytes) else value.encode())
                if offset + 1 >= held[partition].end:
                    unread.discard(partition)
    except KafkaException as error:
        raise _unanswered(topic, error) from error
    finally:
        consumer.close()


def _consumer(kafka: Mapping[str, Any], topic: str) -> Consumer:
    return Consumer(
        {
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 64 * 1024,
            "log_level": 0,
            **kafka,
            "group.id": f"{topic}.verify",  # never joined or committed to; the client wants a name
        }
    )


def _unanswered(topic: str, error: KafkaException) -> ReplayError:
    return ReplayError(f"cannot read {topic}: {error.args[0].str()}", "try again when Kafka is back")
