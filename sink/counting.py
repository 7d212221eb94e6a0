"""Pure: which records of a batch are new, and what a partition's counts are after it.

A record can come again: the producer publishes a page twice, a processor is killed before it acknowledged, the sink is
killed before it committed. For one partition and id range the audit ids rise at their first occurrence, so the highest
id counted per range says of any record whether it is new. Where no audit id can be told, the offset does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from schemas.records import DeadLetter
from schemas.vocabulary import SkipReason
from sink.identity import ALL_IN_ONE, Identities, with_ids

NO_OFFSET = -1  # before the first offset of a partition
FELL_BACK = "fell_back"  # a migrated log whose actor is the deleted user
DUPLICATE = SkipReason.DUPLICATE_EXTERNAL_ID.value


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


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """What one run has counted of one partition. `version` rises with every save; the rest never falls."""

    version: int = 0
    outcomes_offset: int = NO_OFFSET
    source_offset: int = NO_OFFSET
    id_ranges: Mapping[int, int] = field(default_factory=dict)  # range -> highest audit id counted
    migrated: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    foreign: Mapping[str, int] = field(default_factory=dict)
    ended: bool = False
    actors_fell_back: int = 0  # of the migrated
    with_document: Identities | None = field(default_factory=dict)  # None: an older release has begun to count


class Advance(NamedTuple):
    """A partition's progress after a batch, and the dead letters of those records that were new."""

    progress: PartitionProgress
    dead_letters: tuple[DeadLetter, ...]
    repeated: int  # records that had been counted before


def advance(progress: PartitionProgress, batch: Sequence[Decided], id_shift: int = ALL_IN_ONE) -> Advance:
    """Return the progress after the batch, whose records come in offset order. To count it again changes nothing.

    `id_shift` makes the ranges by which the rows with a document are told apart (sink.identity).
    """
    ranges = dict(progress.id_ranges)
    source_offset, outcomes_offset = progress.source_offset, progress.outcomes_offset
    migrated, repeated, ended = progress.migrated, 0, progress.ended
    fell_back = progress.actors_fell_back
    bins = {
        Bin.SKIPPED: dict(progress.skipped),
        Bin.FAILED: dict(progress.failed),
        Bin.FOREIGN: dict(progress.foreign),
    }
    dead_letters: list[DeadLetter] = []
    with_document: list[int] = []
    for record in batch:
        offset, from_offset, audit_id, id_range, into, reason, dead_letter = record
        outcomes_offset = max(outcomes_offset, offset)
        if into is Bin.PASSED_OVER:
            continue
        if into is Bin.ENDED:
            ended = True
            continue
        if into is not Bin.FOREIGN:
            is_new = audit_id > ranges.get(id_range, 0)
            if is_new:
                ranges[id_range] = audit_id
        # Its audit id, if it has one, belongs to somebody else and must not move a range's high-water.
        elif from_offset >= 0:
            is_new = from_offset > source_offset
        else:
            is_new = offset > progress.outcomes_offset  # which all outcomes of a record have in common
        if from_offset > source_offset:
            source_offset = from_offset
        if not is_new:
            repeated += 1
            continue
        if into is Bin.MIGRATED:
            migrated += 1
            if reason:
                fell_back += 1
            with_document.append(audit_id)
            continue
        if reason == DUPLICATE and into is Bin.SKIPPED:
            with_document.append(audit_id)
        counts = bins[into]
        counts[reason] = counts.get(reason, 0) + 1
        if dead_letter is not None:
            dead_letters.append(dead_letter)
    after = PartitionProgress(
        version=progress.version + 1,
        outcomes_offset=outcomes_offset,
        source_offset=source_offset,
        id_ranges=ranges,
        migrated=migrated,
        skipped=bins[Bin.SKIPPED],
        failed=bins[Bin.FAILED],
        foreign=bins[Bin.FOREIGN],
        ended=ended,
        actors_fell_back=fell_back,
        with_document=None
        if progress.with_document is None
        else with_ids(progress.with_document, with_document, id_shift),
    )
    return Advance(after, tuple(dead_letters), repeated)
