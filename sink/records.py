"""The tuples of a batch: an outcome as received, and its bin."""

from enum import StrEnum
from typing import NamedTuple

from schemas.records import ActivityLog, DeadLetter

FELL_BACK = "fell_back"  # a migrated log whose actor is the deleted user


class Taken(NamedTuple):
    """An outcome as received from the outcomes topic, alone or in an outcome batch; empty bytes for a null value."""

    partition: int
    offset: int  # of the record, which several may share
    key: bytes
    value: bytes


class Source(NamedTuple):
    """The source of a batch's document: its record, and that record's position in `Batch.decided`."""

    position: int
    record: ActivityLog
    taken: Taken


class Bin(StrEnum):
    """Where a record ends. `foreign`: a dead letter that is not known to be a source row of this account."""

    MIGRATED = "migrated"
    SKIPPED = "skipped"
    FAILED = "failed"
    FOREIGN = "foreign"
    ENDED = "ended"  # the end marker
    PASSED_OVER = "passed_over"  # of another run, or another marker


class Decided(NamedTuple):
    """One record of the outcomes topic and the bin it ends in."""

    offset: int  # on the outcomes topic
    source_offset: int  # on the replay topic; -1 if unknown
    audit_id: int  # 0 if unknown
    id_range: int
    bin: Bin
    reason: str = ""  # of a skip; cause of a failure; of a migrated log FELL_BACK or ""
    dead_letter: DeadLetter | None = None
