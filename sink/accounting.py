"""Counts records by bin; counting a batch is idempotent, and counts are saved by compare-and-set.

One algorithm for the replay, which counts by partition, and the live feed, which counts by partition and account. The
differences are passed in: the documents (`Store`), and a record's key and whether it is new (`Rules`).
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from schemas.errors import ReplayError
from schemas.records import DeadLetter
from sink.counting import Advance, PartitionProgress, advance
from sink.decoding import Batch
from sink.documents import BatchOutcome
from sink.effects import Effect, EffectHook
from sink.metrics import SinkMetrics
from sink.records import Decided, Source
from sink.waiting import Waiting

log = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)

SAVE_ATTEMPTS_MAX = 100  # consecutive lost races; with a few sinks two are rare
STATES_MAX = 100_000  # cached; a feed has one for each account and partition


class Store(Protocol[K]):
    """The progress documents."""

    def load(self, keys: Sequence[K]) -> dict[K, PartitionProgress]:
        """Return each progress as stored; a missing one is created empty."""
        ...

    def save(self, progress: Mapping[K, PartitionProgress]) -> bool:
        """Save each progress whose stored version is the preceding one; return whether all were saved."""
        ...


class Rules(Protocol[K]):
    """Pure: the key under which a record is counted, and whether it is new."""

    def by_key(self, decided: Mapping[int, Sequence[Decided]]) -> Mapping[K, Sequence[Decided]]:
        """Return a batch's records, given by partition, by the key under which they are counted."""
        ...

    def partition_of(self, key: K) -> int:
        """Return the key's partition."""
        ...

    def advance(self, progress: PartitionProgress, records: Sequence[Decided]) -> Advance:
        """Return the progress after records in offset order. Idempotent."""
        ...

    def was_counted(self, states: Mapping[K, PartitionProgress], source: Source) -> bool:
        """Return whether a document's record had been counted before the batch."""
        ...


@dataclass(frozen=True, slots=True)
class ByPartition:
    """The replay's rules: a record is new if its audit id is above the highest counted of its id range."""

    id_shift: int  # sink.identity

    def by_key(self, decided: Mapping[int, Sequence[Decided]]) -> Mapping[int, Sequence[Decided]]:
        """Return the records unchanged."""
        return decided

    def partition_of(self, key: int) -> int:
        """Return the key."""
        return key

    def advance(self, progress: PartitionProgress, records: Sequence[Decided]) -> Advance:
        """Return the progress after the records (sink.counting)."""
        return advance(progress, records, self.id_shift)

    def was_counted(self, states: Mapping[int, PartitionProgress], source: Source) -> bool:
        """Return whether the row is not above the highest counted audit id of its id range."""
        record = source.record
        return record.audit_id <= states[source.taken.partition].id_ranges.get(record.id_range, 0)


@dataclass(frozen=True, slots=True)
class Counted(Generic[K]):
    """A batch by key, and each key's progress after it."""

    records: Mapping[K, Sequence[Decided]]
    ahead: Mapping[K, Advance]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The dead letters of new records."""
        return [letter for step in self.ahead.values() for letter in step.dead_letters]


def _nothing(_before: Mapping[K, PartitionProgress], _after: Mapping[K, PartitionProgress]) -> None:
    pass


class Accounting(Generic[K]):
    """The counts of one member of the group."""

    def __init__(
        self,
        store: Store[K],
        rules: Rules[K],
        waiting: Waiting,
        metrics: SinkMetrics,
        hook: EffectHook,
        *,
        on_saved: Callable[[Mapping[K, PartitionProgress], Mapping[K, PartitionProgress]], None] = _nothing,
    ) -> None:
        """`on_saved` is called with the progress before and after a batch, of its keys, once it is stored."""
        self._store = store
        self._rules = rules
        self._waiting = waiting
        self._metrics = metrics
        self._hook = hook
        self._on_saved = on_saved
        self._states: dict[K, PartitionProgress] = {}  # as last stored by this sink, or read

    def count(self, decided: Mapping[int, Sequence[Decided]], batch: Batch, outcome: BatchOutcome) -> Counted[K]:
        """Return the batch's counts, reading the progress that is not cached. Stores nothing."""
        records = self._rules.by_key(decided)
        if len(self._states) > STATES_MAX:
            self._states.clear()
        if unknown := [key for key in records if key not in self._states]:
            self._states.update(self._waiting.until_answered("MongoDB", lambda: self._store.load(unknown)))
        ahead = {key: self._rules.advance(self._states[key], of_key) for key, of_key in records.items()}
        if repeated := sum(step.repeated for step in ahead.values()):
            self._metrics.repeated += repeated
            self._watch_repeats(batch, outcome)
        return Counted(records, ahead)

    def _watch_repeats(self, batch: Batch, outcome: BatchOutcome) -> None:
        """Count documents that were inserted although their row was counted before: two outcomes of one row differ."""
        for at in outcome.inserted:
            if self._rules.was_counted(self._states, batch.sources[at]):
                self._metrics.repeats_inserted += 1
                log.warning("audit %d was counted before and is written only now", batch.sources[at].record.audit_id)

    def save(self, counted: Counted[K]) -> None:
        """Store the counts; after a lost race, read the other sink's progress and add only what is new to it."""
        wanted = {key: step.progress for key, step in counted.ahead.items()}
        for _ in range(SAVE_ATTEMPTS_MAX):
            if self._waiting.until_answered(
                "MongoDB", partial(self._hook, Effect.SAVE_PROGRESS, partial(self._store.save, wanted))
            ):
                self._on_saved(self._states, wanted)
                self._states.update(wanted)
                return
            self._metrics.lost_races += 1
            stored = self._waiting.until_answered("MongoDB", partial(self._store.load, list(wanted)))
            self._states.update(stored)
            # Dead letters of records that are new below were delivered: they were new to the older progress, too.
            wanted = {
                key: self._rules.advance(stored[key], records).progress for key, records in counted.records.items()
            }
        raise ReplayError(f"progress could not be saved in {SAVE_ATTEMPTS_MAX} attempts", "are there too many sinks?")

    def forget(self, partitions: set[int]) -> None:
        """Drop the cached progress of partitions that were assigned or revoked: it is read again."""
        self._states = {
            key: state for key, state in self._states.items() if self._rules.partition_of(key) not in partitions
        }
