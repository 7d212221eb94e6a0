"""Markers: the first (`begin`) and last (`end`) record of a run on every partition of the replay topic."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from producer.publisher import PRODUCER_CONFIG, REPEATABLE, Confirmations, fetch_metadata
from producer.topics import check_topic
from schemas.codec import Codec
from schemas.errors import ReplayError
from schemas.records import SnapshotMarker
from schemas.vocabulary import MarkerEdge


def begin(
    kafka: Mapping[str, Any], topic: str, partitions: int, *, job_id: str, run: int, codec: Codec
) -> tuple[int, ...]:
    """Publish a begin marker on every partition; return their offsets, by partition.

    Raises ServiceUnreachableError, BadInputError for a topic that is missing or has another number of partitions,
    ReplayError if a marker was not delivered. Idempotent: consumers ignore a second begin marker.
    """
    return _publish(kafka, topic, partitions, SnapshotMarker(MarkerEdge.BEGIN.value, job_id, -1, run), codec)


def end(
    kafka: Mapping[str, Any], topic: str, partitions: int, *, job_id: str, run: int, codec: Codec
) -> tuple[int, ...]:
    """Publish an end marker on every partition, once all rows are confirmed; return their offsets.

    Idempotent: the first end marker of a run counts. Raises like `begin`.
    """
    return _publish(kafka, topic, partitions, SnapshotMarker(MarkerEdge.END.value, job_id, -1, run), codec)


def _publish(
    kafka: Mapping[str, Any], topic: str, partitions: int, marker: SnapshotMarker, codec: Codec
) -> tuple[int, ...]:
    check_topic(kafka, topic, partitions)
    offsets: dict[int, int] = {}
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if error is not None:
            failures.append(error)
        elif partition is not None and offset is not None:
            offsets[partition] = offset

    producer = Producer({**PRODUCER_CONFIG, **REPEATABLE, **kafka, "delivery.report.only.error": False})
    value = codec.encode(marker)
    fetch_metadata(producer, topic)
    try:
        for partition in range(partitions):
            producer.produce(topic, value, partition=partition, on_delivery=delivered)
        confirmations = Confirmations(topic, partitions)
        while (left := producer.flush(1.0)) and not failures:
            confirmations.require(left)
    except KafkaException as error:
        failures.append(error.args[0])
    if failures or len(offsets) != partitions:
        cause = failures[0].str() if failures else "the broker returned no offset"
        raise ReplayError(f"Kafka did not take the {marker.edge} markers for {topic}: {cause}", "start again")
    return tuple(offsets[partition] for partition in range(partitions))
