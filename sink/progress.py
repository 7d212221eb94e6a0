"""I/O: one progress document per job, run and partition, saved by compare-and-set."""

import contextlib
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

from schemas.process.mongodb import Document, Documents
from sink.counting import DUPLICATE, NO_OFFSET, PartitionProgress
from sink.identity import Identities, added
from sink.job_counts import RunTotals as RunTotals


class Progress:
    """The progress documents of one run."""

    def __init__(self, collection: Documents, job_id: str, run: int) -> None:
        """`collection` is `crm_replay_progress`."""
        self._collection = collection
        self._job_id = job_id
        self._run = run

    def _key(self, partition: int) -> str:
        return f"{self._job_id}/{self._run}/{partition}"

    def load(self, partitions: Sequence[int]) -> dict[int, PartitionProgress]:
        """Return each partition's progress as stored; a missing one is created empty."""
        found = self._find(partitions)
        for partition in partitions:
            if partition not in found:
                self._create(partition)
        if len(found) < len(set(partitions)):
            found = self._find(partitions)
        return found

    def _find(self, partitions: Sequence[int]) -> dict[int, PartitionProgress]:
        keys = [self._key(partition) for partition in partitions]
        return {d["partition"]: from_document(d) for d in self._collection.find({"_id": {"$in": keys}})}

    def _create(self, partition: int) -> None:
        empty = PartitionProgress()
        key = {"_id": self._key(partition), "job_id": self._job_id, "run": self._run, "partition": partition}
        with contextlib.suppress(DuplicateKeyError):  # another sink was first
            self._collection.insert_one({**key, **to_fields(empty), "updated_at": _now()})

    def save(self, progress: Mapping[int, PartitionProgress]) -> bool:
        """Save each partition's progress whose stored version is the preceding one; return whether all were saved.

        One atomic update per partition, all in one command. After False, load again and recompute: for a partition that
        was saved the batch then has nothing new.
        """
        now = _now()
        updates: list[UpdateOne] = [
            UpdateOne(
                {"_id": self._key(partition), "version": state.version - 1},
                {"$set": {**to_fields(state), "updated_at": now}},
            )
            for partition, state in progress.items()
        ]
        return self._collection.bulk_write(updates, ordered=False).matched_count == len(updates)

    def totals(self) -> RunTotals:
        """Return the sums over all partitions, as stored."""
        return totals_of(self._collection, self._job_id, self._run)


def totals_of(collection: Documents, job_id: str, run: int) -> RunTotals:
    """Return the sums over all partitions of a run, as stored."""
    names = ("migrated", "skipped", "failed", "foreign", "ended", "id_ranges", "updated_at", "actors_fell_back")
    return sums_of(collection.find({"job_id": job_id, "run": run}, dict.fromkeys(names, 1)))


def sums_of(documents: Iterable[Mapping[str, Any]]) -> RunTotals:
    """Return the sums over progress documents."""
    migrated = ended = last = fell_back = 0
    skipped: dict[str, int] = {}
    failed: dict[str, int] = {}
    foreign: dict[str, int] = {}
    updated_at: dt.datetime | None = None
    for document in documents:
        migrated += document["migrated"]
        fell_back += document.get("actors_fell_back", 0)
        ended += bool(document["ended"])
        last = max(last, *document["id_ranges"].values(), 0)
        for counts, name in ((skipped, "skipped"), (failed, "failed"), (foreign, "foreign")):
            for reason, count in document[name].items():
                counts[reason] = counts.get(reason, 0) + count
        if updated_at is None or document["updated_at"] > updated_at:
            updated_at = document["updated_at"]
    return RunTotals(migrated, skipped, failed, foreign, ended, last, updated_at, fell_back)


def to_fields(progress: PartitionProgress) -> Document:
    """Return the progress as the fields of its document."""
    return {
        "version": progress.version,
        "outcomes_offset": progress.outcomes_offset,
        "source_offset": progress.source_offset,
        "id_ranges": {str(id_range): audit_id for id_range, audit_id in progress.id_ranges.items()},
        "migrated": progress.migrated,
        "skipped": dict(progress.skipped),
        "failed": dict(progress.failed),
        "foreign": dict(progress.foreign),
        "ended": progress.ended,
        "actors_fell_back": progress.actors_fell_back,
        "with_document": None
        if progress.with_document is None
        else {str(id_range): list(figure) for id_range, figure in progress.with_document.items()},
    }


def from_document(document: Mapping[str, Any]) -> PartitionProgress:
    """Return the progress in a stored document."""
    return PartitionProgress(
        version=document["version"],
        outcomes_offset=document.get("outcomes_offset", NO_OFFSET),
        source_offset=document.get("source_offset", NO_OFFSET),
        id_ranges={int(id_range): audit_id for id_range, audit_id in document["id_ranges"].items()},
        migrated=document["migrated"],
        skipped=document["skipped"],
        failed=document["failed"],
        foreign=document["foreign"],
        ended=document["ended"],
        actors_fell_back=document.get("actors_fell_back", 0),
        with_document=_figures(document),
    )


def identities_of(collection: Documents, job_id: str, run: int) -> Identities | None:
    """Return the figures of a run's rows with a document, over all partitions; None if an old release counted some."""
    found = collection.find({"job_id": job_id, "run": run}, {"with_document": 1, "migrated": 1, "skipped": 1})
    parts = [_figures(document) for document in found]
    known = [part for part in parts if part is not None]
    return added(known) if len(known) == len(parts) else None


def _figures(document: Mapping[str, Any]) -> Identities | None:
    """Return the figures in a stored document; None if a sink of an older release has counted without them."""
    stored = document.get("with_document")
    if stored is None:
        return None
    figures = {int(id_range): (count, checksum) for id_range, (count, checksum) in stored.items()}
    counted = document["migrated"] + document["skipped"].get(DUPLICATE, 0)
    return figures if sum(count for count, _ in figures.values()) == counted else None


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
