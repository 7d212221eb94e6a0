"""Pure: which records of a batch are new, and a partition's counts after it.

Records can be repeated: the producer publishes a page twice, a processor is killed before it acknowledges, the sink is
killed before it commits. For one partition and id range the audit ids rise at their first occurrence, so a record is
new if its id is above the high-water mark of its range; a record without an audit id, by its offset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.records import DeadLetter
from schemas.vocabulary import SkipReason
from sink.core import Tally
from sink.identity import ALL_IN_ONE, Identities, with_ids
from sink.records import Bin, Decided

NO_OFFSET = -1  # before the first offset of a partition
DUPLICATE = SkipReason.DUPLICATE_EXTERNAL_ID.value


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """The counts of one partition in one run. `version` rises with every save; no value ever falls."""

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
    with_document: Identities | None = field(default_factory=dict)  # None: counted by an older release


class Advance(NamedTuple):
    """A partition's progress after a batch, and the dead letters of new records."""

    progress: PartitionProgress
    dead_letters: tuple[DeadLetter, ...]
    repeated: int  # records that had been counted before


def advance(progress: PartitionProgress, batch: Sequence[Decided], id_shift: int = ALL_IN_ONE) -> Advance:
    """Return the progress after the batch, whose records are in offset order. Idempotent.

    `id_shift` defines the id ranges of the rows with a document (sink.identity).
    """
    bins = {
        Bin.SKIPPED: dict(progress.skipped),
        Bin.FAILED: dict(progress.failed),
        Bin.FOREIGN: dict(progress.foreign),
    }
    tally = Tally(dict(progress.id_ranges), progress.source_offset, progress.outcomes_offset, bins, DUPLICATE)
    tally.add(batch)
    after = PartitionProgress(
        version=progress.version + 1,
        outcomes_offset=tally.outcomes_offset,
        source_offset=tally.source_offset,
        id_ranges=tally.ranges,
        migrated=progress.migrated + tally.migrated,
        skipped=bins[Bin.SKIPPED],
        failed=bins[Bin.FAILED],
        foreign=bins[Bin.FOREIGN],
        ended=progress.ended or tally.ended,
        actors_fell_back=progress.actors_fell_back + tally.fell_back,
        with_document=None
        if progress.with_document is None
        else with_ids(progress.with_document, tally.with_document, id_shift),
    )
    return Advance(after, tuple(tally.dead_letters), tally.repeated)
