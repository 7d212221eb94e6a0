"""Outcomes to documents and to counts: the loops over a batch's records.

Pure, and compiled if a C compiler is available. The fast path of valid logs of the run; other records are left to the
caller. Equivalent to `Codec` and `AccountCheck`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from librt.strings import BytesWriter, read_i32_le, write_i32_le, write_i64_be
from mypy_extensions import i64

from schemas.avro import Reader
from schemas.identity import OBJECT_ID_FIELD, RUN_BYTES, replay_id
from schemas.records import ActivityLog, DeadLetter
from schemas.vocabulary import ActorKind
from sink.records import FELL_BACK, Bin, Decided, Source, Taken

LENGTH_BYTES: Final = 4
BSON_BYTES_MIN: Final = 5  # an empty document
AUDIT_ID_BYTES: Final = 8

# How the actor «[Deleted CRM User]» is encoded: a document `actor` that begins with the text `type`.
ACTOR: Final = b"\x03actor\x00"
TYPE_AT: Final = len(ACTOR) + LENGTH_BYTES
_DELETED_USER = ActorKind.DELETED_USER.encode() + b"\x00"
TYPE_DELETED_USER: Final = b"\x02type\x00" + len(_DELETED_USER).to_bytes(4, "little") + _DELETED_USER


def fell_back(document: bytes) -> str:
    """Return FELL_BACK if the document's actor is the deleted user, else ""."""
    # No field before the actor is a document: they are account, customer, category and action.
    at = document.find(ACTOR) + TYPE_AT
    return FELL_BACK if document[at : at + len(TYPE_DELETED_USER)] == TYPE_DELETED_USER else ""


def taken_from(partition: int, offset: int, outcomes: Sequence[tuple[bytes, bytes]], taken: list[Taken]) -> int:
    """Add a record's outcomes to `taken`; return the bytes of their values."""
    new = tuple.__new__
    size: i64 = 0
    for key, value in outcomes:
        size += len(value)
        taken.append(new(Taken, (partition, offset, key, value)))
    return size


class IdMaker:
    """Prepends the `_id`s of one run to documents."""

    def __init__(self, run: int) -> None:
        """`run` is the first half of every `_id`."""
        self._begin = OBJECT_ID_FIELD + replay_id(run, 0)[:RUN_BYTES]

    def __call__(self, audit_id: int, document: bytes) -> bytes:
        """Return the BSON document with its `_id` first; the rest is copied, never decoded."""
        out = BytesWriter()
        write_i32_le(out, len(document) + len(self._begin) + AUDIT_ID_BYTES)
        out.write(self._begin)
        write_i64_be(out, audit_id)
        out.write(document[LENGTH_BYTES:])
        return out.getvalue()


class LogReader:
    """Decodes the activity logs of one run and account to documents."""

    def __init__(
        self,
        header: bytes,
        run: int,
        audit_id_max: int,
        account_begin: bytes,
        with_id: IdMaker,
        document_bytes_max: int,
    ) -> None:
        """`header` precedes a log's fields, `account_begin` follows the length of its document.

        `document_bytes_max` is without the `_id`.
        """
        self._header = header
        self._run = run
        self._audit_id_max = audit_id_max
        self._account_begin = account_begin
        self._with_id = with_id
        self._document_bytes_max = document_bytes_max

    def read(
        self,
        outcomes: Sequence[Taken],
        decided: dict[int, list[Decided]],
        documents: list[bytes],
        sources: list[Source],
        other: Callable[[Taken, list[Decided]], None],
    ) -> None:
        """Append each outcome's bin to its partition's; a log's document and its source to `documents` and `sources`.

        `other` is called for anything but a valid log of the run, with the outcome and its partition's records.
        """
        migrated = Bin.MIGRATED
        new = tuple.__new__
        for taken in outcomes:
            partition: int = taken[0]
            records = decided.get(partition)
            if records is None:
                records = decided[partition] = []
            value: bytes = taken[3]
            log = self._log(value)
            if log is None:
                other(taken, records)
                continue
            document: bytes = log[4]
            sources.append(new(Source, (len(records), new(ActivityLog, log), taken)))
            documents.append(self._with_id(log[0], document))
            records.append(new(Decided, (taken[1], log[2], log[0], log[1], migrated, fell_back(document), None)))

    def _log(self, value: bytes) -> tuple[int, int, int, int, bytes] | None:
        """Return the fields of a valid log: complete, of run and account, and not too large; None for any other."""
        if not value.startswith(self._header):
            return None
        reader = Reader(value, len(self._header))
        try:
            audit_id = reader.number()
            id_range = reader.number()
            source_offset = reader.number()
            run = reader.number()
            document = reader.raw()
        except (EOFError, IndexError, ValueError):
            return None
        size: i64 = len(document)
        if reader.at != len(value) or run != self._run or not 0 < audit_id <= self._audit_id_max:
            return None
        if size < BSON_BYTES_MIN or size > self._document_bytes_max or read_i32_le(document, 0) != size:
            return None
        if document[size - 1] != 0:
            return None
        begin = self._account_begin
        if document[LENGTH_BYTES : LENGTH_BYTES + len(begin)] != begin:
            return None
        return audit_id, id_range, source_offset, run, document


class Tally:
    """Counts records in offset order; those at or below the high-water mark of their id range are repetitions."""

    def __init__(
        self,
        ranges: dict[int, int],
        source_offset: int,
        outcomes_offset: int,
        bins: Mapping[Bin, dict[str, int]],
        duplicate: str,
    ) -> None:
        """Continue from these values; modifies `ranges` and `bins`. `duplicate`: reason of skips with a document."""
        self.ranges = ranges
        self.source_offset = source_offset
        self.outcomes_offset = outcomes_offset
        self.bins = bins
        self.duplicate = duplicate
        self.migrated = 0
        self.fell_back = 0
        self.repeated = 0
        self.ended = False
        self.dead_letters: list[DeadLetter] = []
        self.with_document: list[int] = []

    def add(self, records: Sequence[Decided]) -> None:
        """Count records."""
        ranges = self.ranges
        before: i64 = self.outcomes_offset
        outcomes_offset: i64 = before
        source_offset: i64 = self.source_offset
        migrated_bin, foreign_bin = Bin.MIGRATED, Bin.FOREIGN
        for record in records:
            offset: i64 = record[0]
            from_offset: i64 = record[1]
            audit_id: int = record[2]
            into = record[4]
            if offset > outcomes_offset:
                outcomes_offset = offset
            if into is Bin.PASSED_OVER:
                continue
            if into is Bin.ENDED:
                self.ended = True
                continue
            if into is not foreign_bin:
                id_range: int = record[3]
                is_new = audit_id > ranges.get(id_range, 0)
                if is_new:
                    ranges[id_range] = audit_id
            # Its audit id, if it has one, is not this account's and must not move a range's high-water mark.
            elif from_offset >= 0:
                is_new = from_offset > source_offset
            else:
                is_new = offset > before  # shared by all outcomes of a record
            if from_offset > source_offset:
                source_offset = from_offset
            if not is_new:
                self.repeated += 1
                continue
            reason: str = record[5]
            if into is migrated_bin:
                self.migrated += 1
                if reason:
                    self.fell_back += 1
                self.with_document.append(audit_id)
                continue
            if into is Bin.SKIPPED and reason == self.duplicate:
                self.with_document.append(audit_id)
            counts = self.bins[into]
            counts[reason] = counts.get(reason, 0) + 1
            dead_letter = record[6]
            if dead_letter is not None:
                self.dead_letters.append(dead_letter)
        self.outcomes_offset = outcomes_offset
        self.source_offset = source_offset
