"""I/O: finds single rows on the account's topics, which have no index. Plain consumers, no group, no commits.

A row's id is the first field of every record about it, so its bytes are compared before anything is decoded: a scan
costs little more than reading.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition

from ops.kafka import admin as kafka_admin
from ops.kafka.topics import Read, Span, records, spans
from ops.progress import RunView
from schemas.codec import Codec, header_bytes
from schemas.errors import ReplayError, UndecodableRecordError, UnknownSchemaError, UnreadableTopicError
from schemas.process.registry import codec_for
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord

ANSWER_TIMEOUT_S = 10.0
PROGRESS_EVERY_RECORDS = 20_000
NOTE_RECORDS_MIN = 200_000  # a scan of a second or more is announced
AboutRow = AuditEvent | ActivityLog | SkippedRecord | DeadLetter


class Found(NamedTuple):
    """A record about one of the wanted rows, with its offset; of an outcome in a batch, with the batch's offset."""

    partition: int
    offset: int
    record: AboutRow


class Topics:
    """Reads single rows from the topics of a cluster."""

    def __init__(self, kafka: Mapping[str, Any], schema_registry_url: str = "") -> None:
        """`kafka` is the connection's configuration. Raises BadInputError if a configured registry is unreachable."""
        self.kafka = kafka
        self.codec: Codec = codec_for(schema_registry_url)

    def spans(self, topic: str) -> dict[int, Span]:
        """Return the offsets that each partition holds; empty if there is no such topic."""
        return spans(self.kafka, topic)

    def offsets_at(self, topic: str, since: datetime) -> dict[int, int]:
        """Return the offset of each partition's first record at or after a time; its end if there is none."""
        held = self.spans(topic)
        if not held:
            return {}
        wanted = [TopicPartition(topic, partition, int(since.timestamp() * 1000)) for partition in held]
        try:
            with kafka_admin.speaking_for(self.kafka, f"{topic}.read") as consumer:
                answer = consumer.offsets_for_times(wanted, timeout=ANSWER_TIMEOUT_S)
        except KafkaException as error:
            raise ReplayError(f"cannot read {topic}: {error.args[0].str()}", "try again when Kafka is back") from error
        return {tp.partition: held[tp.partition].end if tp.offset in (OFFSET_END, -1) else tp.offset for tp in answer}

    def find(
        self,
        topic: str,
        audit_ids: Collection[int],
        view: RunView,
        begin: Mapping[int, int] | None = None,
        partitions: Collection[int] | None = None,
    ) -> Iterator[Found]:
        """Yield the records about these rows, from the `begin` offsets on, on all partitions or on some.

        Ends at the end offsets at the time of the call. Raises ReplayError if Kafka stops answering,
        UnreadableTopicError for a record that may be about one of them and whose schema cannot be looked up.
        """
        held = self.spans(topic)
        starts = {
            partition: max(span.low, (begin or {}).get(partition, 0))
            if partitions is None or partition in partitions
            else span.end
            for partition, span in held.items()
        }
        total = sum(max(0, span.end - starts[partition]) for partition, span in held.items())
        if not total or not audit_ids:
            return
        if total >= NOTE_RECORDS_MIN:
            view.note(f"scanning {total:,} records of {topic}")
        read = records(self.kafka, topic, starts)
        if total >= NOTE_RECORDS_MIN:
            read = _with_progress(read, total, view)
        yield from about_rows(read, topic, audit_ids, self.codec)


def about_rows(read: Iterable[Read], topic: str, audit_ids: Iterable[int], codec: Codec) -> Iterator[Found]:
    """Yield those of a topic's records that are about one of the rows; without a row nothing is read.

    Raises UnreadableTopicError for a record that may be about one of them and whose schema cannot be looked up.
    """
    wanted = {zigzag(audit_id): audit_id for audit_id in audit_ids}
    lengths = sorted({len(encoded) for encoded in wanted})
    outcomes = ((p, offset, each) for p, offset, value in read for _, each in codec.outcomes(None, value))
    for partition, offset, value in outcomes if wanted else ():
        at = header_bytes(value)
        for length in lengths:
            audit_id = wanted.get(value[at : at + length])
            if audit_id is None:
                continue
            try:
                record = codec.decode(value)
            except UnknownSchemaError as error:
                raise UnreadableTopicError.at(topic, partition, offset, error) from error
            except UndecodableRecordError:
                continue
            if isinstance(record, AboutRow) and record.audit_id == audit_id:
                yield Found(partition, offset, record)


def _with_progress(read: Iterator[Read], total: int, view: RunView) -> Iterator[Read]:
    for number, record in enumerate(read, start=1):
        yield record
        if number % PROGRESS_EVERY_RECORDS == 0:
            view.progress(number, total, {}, 0)


def zigzag(number: int) -> bytes:
    """Return the Avro encoding of a long."""
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def murmur2(key: bytes) -> int:
    """Return the hash by which Kafka's Java client partitions keys, as an unsigned 32-bit number."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(key[at : at + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        hashed = (hashed * multiplier & mask) ^ word
    if rest := key[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * multiplier & mask
    hashed = (hashed ^ hashed >> 13) * multiplier & mask
    return hashed ^ hashed >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition on which the producer puts a record with this key (librdkafka's `murmur2`)."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
