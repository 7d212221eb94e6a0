"""From a batch of records to their outcomes. Pure but for the clock that dates dead letters; every record is counted.

Each record ends in exactly one outcome, except begin markers, markers of other jobs, rows that the snapshot published a
second time (the first one had its outcome), and records behind the run's end marker: they belong to another run.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from processors.encoding.core import Row
from processors.encoding.documents import DOCUMENT_BYTES_MAX
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import Message
from processors.rules.decide import Refused, Skip
from schemas.codec import Codec
from schemas.errors import UndecodableRecordError, UnknownSchemaError, UnreadableTopicError
from schemas.job import ReplayJob
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord, SnapshotMarker
from schemas.vocabulary import DeadLetterCause, MarkerEdge, countable

PAYLOAD_BYTES_MAX = 16 * 1024 * 1024  # of a dead letter; a longer one is cut, so that it can always be delivered
KEY_BYTES_MAX = 64 * 1024
DETAIL_CHARACTERS_MAX = 500


class SourceRecord(Protocol):
    """A record as it came from the topic."""

    @property
    def key(self) -> bytes | None:
        """Return the key."""

    @property
    def value(self) -> bytes | None:
        """Return the value; None is a tombstone."""

    @property
    def offset(self) -> int:
        """Return its offset in its partition."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A record that is neither an audit event nor a marker, and why."""

    detail: str


Transform = Callable[[AuditEvent], Transformed | Skip | Refused]
EncodeDocument = Callable[[Any], bytes]
Decoded = Row | AuditEvent | SnapshotMarker | DeadLetter | Undecodable


class OutcomeEncoder:
    """Makes the outcome of a row or record, encoded and counted; one per process."""

    def __init__(
        self,
        job: ReplayJob,
        codec: Codec,
        transform: Transform,
        encode_document: EncodeDocument,
        metrics: ProcessorMetrics,
    ) -> None:
        """`encode_document` makes BSON of what `transform` returns."""
        self._run = job.run
        self._topic = job.topics.replay
        self._codec = codec
        self._encode_log = codec.encoder(ActivityLog)
        self._transform = transform
        self._encode_document = encode_document
        self._metrics = metrics

    def of_row(self, record: SourceRecord, event: AuditEvent, partition: int) -> bytes:
        """Return the outcome of a row that the record holds, in the plain way: a log, a skip or a dead letter."""
        self._metrics.rows_by_plain_way += 1
        try:
            result = self._transform(event)
        except UnreadableTopicError:
            raise  # of a reference table: not an error of the row
        except Exception:  # retried once: the lookups may have changed
            try:
                result = self._transform(event)
            except Exception as error:  # a defect of a rule costs one record, not the replay
                detail = f"{type(error).__name__} in {_where(error)}"
                return self.dead_letter(record, event, partition, DeadLetterCause.TRANSFORM_FAILED, detail)
        if type(result) is Skip:
            reason = str(result.reason)
            self._metrics.skips[reason] += 1
            return self._codec.encode(SkippedRecord(event.audit_id, event.id_range, record.offset, self._run, reason))
        if type(result) is Refused:
            return self.dead_letter(record, event, partition, result.cause, result.detail)
        assert type(result) is Transformed
        try:
            document = self._encode_document(result.document)
        except Exception as error:  # as above
            detail = f"{type(error).__name__} while encoding the document"
            return self.dead_letter(record, event, partition, DeadLetterCause.TRANSFORM_FAILED, detail)
        return self._log(record, event, partition, document)

    def _log(self, record: SourceRecord, event: AuditEvent, partition: int, document: bytes) -> bytes:
        if len(document) > DOCUMENT_BYTES_MAX:
            detail = f"{len(document)} bytes of BSON, MongoDB takes {DOCUMENT_BYTES_MAX}"
            return self.dead_letter(record, event, partition, DeadLetterCause.DOCUMENT_TOO_LARGE, detail)
        self._metrics.logs += 1
        return self._encode_log((event.audit_id, event.id_range, record.offset, self._run, document))

    def passed_on(self, record: SourceRecord, letter: DeadLetter, partition: int) -> bytes:
        """Return the letter of a row that the snapshot could not publish (too large, ...), with its offset."""
        self._metrics.dead_letters[countable(letter.cause)] += 1
        return self._codec.encode(
            letter._replace(
                source_topic=self._topic, source_partition=partition, source_offset=record.offset, run=self._run
            )
        )

    def dead_letter(
        self, record: SourceRecord, event: AuditEvent | None, partition: int, cause: DeadLetterCause, detail: str
    ) -> bytes:
        """Return the dead letter of a record, with the row that it holds, if any."""
        self._metrics.dead_letters[str(cause)] += 1
        payload = record.value or b""
        detail = detail[:DETAIL_CHARACTERS_MAX]
        if len(payload) > PAYLOAD_BYTES_MAX:
            detail = f"{detail} (payload cut from {len(payload)} to {PAYLOAD_BYTES_MAX} bytes)"
            payload = payload[:PAYLOAD_BYTES_MAX]
        return self._codec.encode(
            DeadLetter(
                audit_id=event.audit_id if event else 0,
                id_range=event.id_range if event else 0,
                source_topic=self._topic,
                source_partition=partition,
                source_offset=record.offset,
                run=self._run,
                cause=str(cause),
                detail=detail,
                key=(record.key or b"")[:KEY_BYTES_MAX],
                payload=payload,
                failed_at=time.time_ns() // 1000,
            )
        )


class BatchTransformer:
    """Turns batches of a replay into outcomes; one per process."""

    def __init__(
        self,
        job: ReplayJob,
        codec: Codec,
        transform: Transform,
        encode_document: EncodeDocument,
        metrics: ProcessorMetrics,
        rows: RowEncoder | None = None,
    ) -> None:
        """`transform` and `encode_document` are `OutcomeEncoder`'s, for the rows that `rows` does not handle."""
        self._job = job
        self._topic = job.topics.replay
        self._accounts = ("", job.company_sso_id)  # the topic is one account's, so a row need not name it
        self._codec = codec
        self._encoder = OutcomeEncoder(job, codec, transform, encode_document, metrics)
        self._metrics = metrics
        self._rows = rows

    def decode(self, records: Sequence[SourceRecord]) -> list[Decoded]:
        """Return what each record is, in order. Raises UnreadableTopicError for a row that lacks its schema."""
        return [self._decode(record) for record in records]

    def _decode(self, record: SourceRecord) -> Decoded:
        if record.value is None:
            return Undecodable("a tombstone: the record has no value")
        if self._rows is not None and record.key is not None and (row := self._rows.row(record.value)) is not None:
            return row
        try:
            decoded = self._codec.decode(record.value)
        except UnknownSchemaError as error:
            event = self._codec.read_body(AuditEvent, record.value)
            if event is not None and event.audit_id > 0 and event.company_sso_id in self._accounts:
                # It is a row: the settings prevent its decoding, and that of every other row.
                what = f"{self._topic}, offset {record.offset} cannot be decoded: {error.what}"
                raise UnreadableTopicError(what, error.to_do) from error
            return Undecodable(error.what)
        except UndecodableRecordError as error:
            return Undecodable(error.what)
        if isinstance(decoded, AuditEvent):
            return decoded if record.key is not None else Undecodable(f"audit {decoded.audit_id} has no key")
        if isinstance(decoded, SnapshotMarker | DeadLetter):
            return decoded  # neither needs a key
        return Undecodable(f"a {type(decoded).__name__} stands where an AuditEvent belongs")

    def outcomes(
        self, records: Sequence[SourceRecord], decoded: Sequence[Decoded], partition: int, high: HighWater
    ) -> list[Message]:
        """Return key and value of every outcome, in order; `high` has advanced to the end of the batch."""
        metrics, encoder, audit_id_max = self._metrics, self._encoder, self._job.audit_id_max
        messages: list[Message] = []
        for record, what in zip(records, decoded, strict=True):
            if high.ended and not isinstance(what, SnapshotMarker):
                metrics.beyond_end += 1  # of a later run, in a rerun from the beginning
                continue
            if isinstance(what, Row | AuditEvent | DeadLetter) and not 0 < what.audit_id <= audit_id_max:
                # Before the high-water, which such an id would raise above rows that are still to come.
                detail = f"audit id {what.audit_id} is none of the job's, 1 to {audit_id_max}"
                value = encoder.dead_letter(record, None, partition, DeadLetterCause.UNDECODABLE_RECORD, detail)
            elif isinstance(what, Row):
                if high.is_republished(what.id_range, what.audit_id):
                    metrics.republished += 1
                    continue
                value = self._of_row(record, what, partition)
            elif isinstance(what, AuditEvent):
                if what.company_sso_id not in self._accounts:
                    # Before the high-water mark: another account's id must not make a row look published twice.
                    detail = "the row is another account's"
                    value = encoder.dead_letter(record, what, partition, DeadLetterCause.WRONG_ACCOUNT, detail)
                elif high.is_republished(what.id_range, what.audit_id):
                    metrics.republished += 1
                    continue
                else:
                    value = encoder.of_row(record, what, partition)
            elif isinstance(what, SnapshotMarker):
                metrics.markers += 1
                if what.job_id != self._job.job_id or what.edge != MarkerEdge.END:
                    continue
                if high.ended:
                    continue  # the snapshot was started again after its end
                high.ended = True
                value = self._codec.encode(what._replace(source_offset=record.offset, run=self._job.run))
            elif isinstance(what, DeadLetter):
                if high.is_republished(what.id_range, what.audit_id):
                    metrics.republished += 1
                    continue
                value = encoder.passed_on(record, what, partition)
            else:
                value = encoder.dead_letter(record, None, partition, DeadLetterCause.UNDECODABLE_RECORD, what.detail)
            messages.append(((record.key or b"")[:KEY_BYTES_MAX], value))
        metrics.records_in += len(records)
        return messages

    def _of_row(self, record: SourceRecord, row: Row, partition: int) -> bytes:
        rows = self._rows
        assert rows is not None
        try:
            value = rows.outcome(row, record.offset)
        except UnreadableTopicError:
            raise  # of a reference table: not an error of the row
        except Exception:  # the plain way reports the error
            value = None
        if value is None:
            event = self._codec.decode_as(AuditEvent, record.value or b"")
            return self._encoder.of_row(record, event, partition)
        if (reason := rows.skip) is None:
            self._metrics.logs += 1
        else:
            self._metrics.skips[str(reason)] += 1
        return value


def acting_users(decoded: Iterable[Decoded]) -> set[int]:
    """Return the ids of the CRM users who made changes in a batch."""
    return {what.user_id for what in decoded if isinstance(what, Row | AuditEvent) and what.user_id}


def _where(error: BaseException) -> str:
    """Return function and line in which it was raised: no text of the error, which can hold personal data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}" if trace is not None else "an unknown place"
