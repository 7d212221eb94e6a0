"""Pure: bytes of the outcomes topic -> a batch of documents to write, and each record's bin."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

from schemas.codec import Codec
from schemas.errors import UndecodableRecordError, UnknownSchemaError, UnreadableTopicError
from schemas.identity import ID_BYTES
from schemas.job import ReplayJob
from schemas.process.tracing import UNTRACED, Work
from schemas.records import ActivityLog, DeadLetter, Record, SkippedRecord, SnapshotMarker
from schemas.vocabulary import DeadLetterCause, MarkerEdge, SkipReason, countable
from sink.core import IdMaker, LogReader, fell_back
from sink.counting import NO_OFFSET
from sink.documents import AccountCheck, BatchOutcome, is_whole
from sink.records import Bin, Decided, Source, Taken

_VALUE = itemgetter(Taken._fields.index("value"))


@dataclass
class Batch:
    """The records of one poll. `decided` has every record in offset order; a log counts as migrated until refused."""

    decided: dict[int, list[Decided]] = field(default_factory=dict)  # by partition
    documents: list[bytes] = field(default_factory=list)  # BSON with _id
    sources: list[Source] = field(default_factory=list)  # of the documents, in the same order
    records: int = 0
    bytes: int = 0
    other_runs: int = 0
    undecodable: int = 0
    work: Work = field(default=UNTRACED, compare=False, repr=False)  # its spans

    @property
    def next_offsets(self) -> dict[int, int]:
        """By partition, the offset to commit after all other effects."""
        return {partition: records[-1].offset + 1 for partition, records in self.decided.items()}

    @property
    def next_source_offsets(self) -> dict[int, int]:
        """By partition, the offset after the last record of the replay topic whose outcome is in the batch."""
        last = {partition: records[-1].source_offset for partition, records in self.decided.items()}
        return {partition: offset + 1 for partition, offset in last.items() if offset != NO_OFFSET}


class Decoder:
    """Decodes the outcomes of one run."""

    def __init__(self, job: ReplayJob, codec: Codec, document_bytes_max: int) -> None:
        """`document_bytes_max` is the server's limit of a document with its `_id`."""
        self._run = job.run
        self._audit_id_max = job.audit_id_max
        self._topics = job.topics
        self._codec = codec
        self._document_bytes_max = document_bytes_max
        self._is_ours = AccountCheck(job.company_sso_id)
        self._with_id = IdMaker(job.run)
        self._reader = LogReader(
            codec.frame(ActivityLog),
            job.run,
            job.audit_id_max,
            self._is_ours.begin,
            self._with_id,
            document_bytes_max - ID_BYTES,
        )

    def batch(self, messages: Iterable[Taken], now_us: int) -> Batch:
        """Return the messages as a batch; `now_us` dates the dead letters. No content of a message raises an error.

        Raises ServiceUnreachableError if a frame's schema has to be read from a registry that is down, and
        UnreadableTopicError if the schema of an outcome of this run cannot be looked up.
        """
        batch = Batch()
        outcomes = list(messages)
        batch.records, batch.bytes = len(outcomes), sum(map(len, map(_VALUE, outcomes)))
        other = partial(self._decode, batch, now_us)
        self._reader.read(outcomes, batch.decided, batch.documents, batch.sources, other)
        return batch

    def _decode(self, batch: Batch, now_us: int, taken: Taken, records: list[Decided]) -> None:
        """Append to `records` the bin of a record that the fast path left: not a valid log of this run and frame."""
        try:
            record = self._codec.decode(taken.value)
        except UndecodableRecordError as error:
            self._refuse_what_is_ours(taken, error)
            batch.undecodable += 1
            records.append(self._undecodable(taken, error.what, now_us))
            return
        if not (isinstance(record, ActivityLog) and record.run == self._run and self._has(record.audit_id)):
            records.append(self._other(record, taken, batch, now_us))
            return
        document = record.document
        is_fit = is_whole(document) and len(document) + ID_BYTES <= self._document_bytes_max
        if not (is_fit and self._is_ours(document)):
            records.append(self._unfit(record, taken, now_us))
            return
        batch.sources.append(Source(len(records), record, taken))
        batch.documents.append(self._with_id(record.audit_id, document))
        reason = fell_back(document)
        records.append(
            Decided(taken.offset, record.source_offset, record.audit_id, record.id_range, Bin.MIGRATED, reason)
        )

    def _has(self, audit_id: int) -> bool:
        """Return whether the id can be one of the job's rows."""
        return 0 < audit_id <= self._audit_id_max

    def _other(self, record: Record, taken: Taken, batch: Batch, now_us: int) -> Decided:
        """Return the bin of anything but a log of this run."""
        offset = taken.offset
        if not isinstance(record, ActivityLog | SkippedRecord | DeadLetter | SnapshotMarker):
            batch.undecodable += 1
            return self._undecodable(taken, f"a {type(record).__name__} is no outcome", now_us)
        if record.run != self._run:
            batch.other_runs += 1
            return Decided(offset, NO_OFFSET, 0, 0, Bin.PASSED_OVER)
        if isinstance(record, ActivityLog | SkippedRecord) and not self._has(record.audit_id):
            batch.undecodable += 1
            return self._undecodable(taken, f"audit id {record.audit_id}", now_us)
        if isinstance(record, SkippedRecord):
            reason = countable(record.reason)
            return Decided(offset, record.source_offset, record.audit_id, record.id_range, Bin.SKIPPED, reason)
        if isinstance(record, DeadLetter):
            # An audit id of another account is none of this account's.
            foreign = not self._has(record.audit_id) or record.cause == DeadLetterCause.WRONG_ACCOUNT
            into = Bin.FOREIGN if foreign else Bin.FAILED
            cause = countable(record.cause)
            return Decided(offset, record.source_offset, record.audit_id, record.id_range, into, cause, record)
        if isinstance(record, SnapshotMarker) and record.edge == MarkerEdge.END:
            return Decided(offset, record.source_offset, 0, 0, Bin.ENDED)
        return Decided(offset, record.source_offset, 0, 0, Bin.PASSED_OVER)

    def _unfit(self, record: ActivityLog, taken: Taken, now_us: int) -> Decided:
        """Return the bin of a log whose document is not written."""
        size = len(record.document)
        if not is_whole(record.document):
            return self.failed(record, taken, DeadLetterCause.UNDECODABLE_RECORD, "the document is not BSON", now_us)
        if size + ID_BYTES > self._document_bytes_max:
            detail = f"{size + ID_BYTES} bytes, the server takes {self._document_bytes_max}"
            return self.failed(record, taken, DeadLetterCause.DOCUMENT_TOO_LARGE, detail, now_us)
        return self.failed(
            record, taken, DeadLetterCause.WRONG_ACCOUNT, "the document is not of this topic's account", now_us
        )

    def _refuse_what_is_ours(self, taken: Taken, error: UndecodableRecordError) -> None:
        """Raise UnreadableTopicError for an outcome of this run that is undecodable only because of the settings."""
        if not isinstance(error, UnknownSchemaError):
            return
        value = taken.value
        for record in (self._codec.read_body(ActivityLog, value), self._codec.read_body(SkippedRecord, value)):
            if record is not None and record.run == self._run and record.audit_id > 0:
                raise UnreadableTopicError.at(self._topics.outcomes, taken.partition, taken.offset, error) from error

    def _undecodable(self, taken: Taken, detail: str, now_us: int) -> Decided:
        letter = DeadLetter(
            audit_id=0,
            id_range=0,
            source_topic=self._topics.outcomes,
            source_partition=taken.partition,
            source_offset=taken.offset,
            run=self._run,
            cause=DeadLetterCause.UNDECODABLE_RECORD,
            detail=detail,
            key=taken.key,
            payload=taken.value,
            failed_at=now_us,
        )
        return Decided(taken.offset, NO_OFFSET, 0, 0, Bin.FOREIGN, letter.cause, letter)

    def failed(self, record: ActivityLog, taken: Taken, cause: DeadLetterCause, detail: str, now_us: int) -> Decided:
        """Return a failed log with its dead letter. Its source position is the audit event's, so it can be retried."""
        letter = DeadLetter(
            audit_id=record.audit_id,
            id_range=record.id_range,
            source_topic=self._topics.replay,
            source_partition=taken.partition,
            source_offset=record.source_offset,
            run=record.run,
            cause=cause,
            detail=detail,
            key=taken.key,
            payload=taken.value,
            failed_at=now_us,
        )
        return Decided(taken.offset, record.source_offset, record.audit_id, record.id_range, Bin.FAILED, cause, letter)

    def decide(self, batch: Batch, outcome: BatchOutcome, now_us: int) -> dict[int, list[Decided]]:
        """Return every record of the batch with its final bin, by partition, after the server's answer."""
        decided = batch.decided
        for at in outcome.duplicates:
            position, _, taken = batch.sources[at]
            records = decided[taken.partition]
            records[position] = records[position]._replace(bin=Bin.SKIPPED, reason=SkipReason.DUPLICATE_EXTERNAL_ID)
        for at, refusal in outcome.failed.items():
            position, record, taken = batch.sources[at]
            decided[taken.partition][position] = self.failed(
                record, taken, DeadLetterCause.WRITE_REFUSED, str(refusal), now_us
            )
        return decided
