"""I/O: reads a topic to its present end: the one reader of the tools. It joins no group and commits nothing.

Two others read topics to an end and stay separate: `processors.lookups.tables`, whose consumer follows the topics
after it has loaded them, and `ops.bench.limits`, which measures the bare client. `producer.references` reads the keys
of its topics with the same loop, `producer.topics.messages_held`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from confluent_kafka import KafkaException

from ops.kafka import admin as kafka_admin
from producer.topics import messages_held, offsets_held
from schemas.errors import ReplayError

ANSWER_TIMEOUT_S = 10.0


class Read(NamedTuple):
    """A record that has a value."""

    partition: int
    offset: int
    value: bytes


class KeyedRead(NamedTuple):
    """A record with its key and time; without a value it is a tombstone."""

    partition: int
    offset: int
    at: datetime  # aware UTC, Kafka's timestamp
    key: bytes | None
    value: bytes | None


class Span(NamedTuple):
    """The offsets that a partition holds: from `low` up to, but excluding, `end`."""

    low: int
    end: int


def spans(kafka: Mapping[str, Any], topic: str) -> dict[int, Span]:
    """Return the offsets that each partition holds; empty if there is no such topic. Raises ReplayError."""
    try:
        with kafka_admin.speaking_for(kafka, f"{topic}.read") as consumer:
            found = consumer.list_topics(topic, timeout=ANSWER_TIMEOUT_S).topics[topic]
            if found.error is not None:
                return {}
            held = offsets_held(consumer, topic, len(found.partitions))
            return {partition: Span(low, end) for partition, (low, end) in enumerate(held)}
    except KafkaException as error:
        raise ReplayError(f"cannot read {topic}: {error.args[0].str()}", "try again when Kafka is back") from error


def records(kafka: Mapping[str, Any], topic: str, begin: Mapping[int, int] | None = None) -> Iterator[Read]:
    """Yield the records that a topic holds now, from the `begin` offsets where given, without tombstones.

    Raises ReplayError if Kafka stops answering.
    """
    starts = begin or {}
    held = {p: (max(span.low, starts.get(p, 0)), span.end) for p, span in spans(kafka, topic).items()}
    for message in messages_held(kafka, topic, held):
        if (value := _bytes(message.value())) is not None:
            yield Read(cast("int", message.partition()), cast("int", message.offset()), value)


def keyed_records(kafka: Mapping[str, Any], topic: str) -> Iterator[KeyedRead]:
    """Yield the records that a topic holds now with their keys, tombstones included.

    Raises ReplayError if Kafka stops answering.
    """
    for message in messages_held(kafka, topic, spans(kafka, topic)):
        at = datetime.fromtimestamp(max(0, message.timestamp()[1]) / 1000, UTC)
        place = cast("int", message.partition()), cast("int", message.offset())
        yield KeyedRead(*place, at, _bytes(message.key()), _bytes(message.value()))


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
