"""An outcome as it came, and what it ends as: the tuples that a batch consists of."""

from enum import StrEnum
from typing import NamedTuple

from schemas.records import ActivityLog, DeadLetter

FELL_BACK = "fell_back"  # a migrated log whose actor is the deleted user


class Taken(NamedTuple):
    """An outcome as it came from the outcomes topic, alone or in a batch; a null value is taken as empty bytes."""

    partition: int
    offset: int  # of the record, which several may share
    key: bytes
    value: bytes


class Source(NamedTuple):
    """Where a document of a batch came from: its record, and the place of that record in `Batch.decided`."""

    position: int
    record: ActivityLog
    taken: Taken


class Bin(StrEnum):
    """Where a record ends. `foreign`: a dead letter that cannot be told to be a source row of this account."""

    MIGRATED = "migrated"
    SKIPPED = "skipped"
    FAILED = "failed"
    FOREIGN = "foreign"
    ENDED = "ended"  # not a record but the end marker
    PASSED_OVER = "passed_over"  # of another run, or a marker that counts nothing


class Decided(NamedTuple):
    """One record of the outcomes topic and the bin it ends in."""

    offset: int  # on the outcomes topic
    source_offset: int  # on the replay topic; -1 if unknown
    audit_id: int  # 0 if unknown
    id_range: int
    bin: Bin
    reason: str = ""  # of a skip; cause of a failure; of a migrated log FELL_BACK or ""
    dead_letter: DeadLetter | None = None
