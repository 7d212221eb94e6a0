"""The counts of a live feed: one document per account and partition, deduplicated by source offset."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError

from schemas.process.mongodb import Document, Documents
from schemas.records import DeadLetter
from sink.counting import Advance, PartitionProgress
from sink.documents import DUPLICATE_KEY
from sink.feed.decoding import LiveDecoder
from sink.progress import RunTotals, from_document, sums_of, to_fields
from sink.records import Bin, Decided, Source

Key = tuple[int, str]  # partition and account; "" for records of no known account


def advance(progress: PartitionProgress, batch: Sequence[Decided]) -> Advance:
    """Return the progress of one account in one partition after its part of a batch, in offset order.

    A record is new if its source offset is above the highest counted; one without a source offset, by the outcome's
    offset. Idempotent.
    """
    source_offset, outcomes_offset = progress.source_offset, progress.outcomes_offset
    migrated, repeated = progress.migrated, 0
    bins = {
        Bin.SKIPPED: dict(progress.skipped),
        Bin.FAILED: dict(progress.failed),
        Bin.FOREIGN: dict(progress.foreign),
    }
    dead_letters: list[DeadLetter] = []
    for record in batch:
        before, outcomes_offset = outcomes_offset, max(outcomes_offset, record.offset)
        if record.bin in (Bin.PASSED_OVER, Bin.ENDED):
            continue
        is_new = record.source_offset > source_offset if record.source_offset >= 0 else record.offset > before
        source_offset = max(source_offset, record.source_offset)
        if not is_new:
            repeated += 1
        elif record.bin is Bin.MIGRATED:
            migrated += 1
        else:
            counts = bins[record.bin]
            counts[record.reason] = counts.get(record.reason, 0) + 1
            if record.dead_letter is not None:
                dead_letters.append(record.dead_letter)
    after = PartitionProgress(
        version=progress.version + 1,
        outcomes_offset=outcomes_offset,
        source_offset=source_offset,
        migrated=migrated,
        skipped=bins[Bin.SKIPPED],
        failed=bins[Bin.FAILED],
        foreign=bins[Bin.FOREIGN],
    )
    return Advance(after, tuple(dead_letters), repeated)


@dataclass(frozen=True, slots=True)
class ByAccount:
    """The feed's rules: records are counted by partition and account; new ones are above the highest source offset."""

    decoder: LiveDecoder

    def by_key(self, decided: Mapping[int, Sequence[Decided]]) -> dict[Key, list[Decided]]:
        """Return the records by partition and account; those of no known account under ""."""
        by_key: dict[Key, list[Decided]] = {}
        for partition, records in decided.items():
            for record in records:
                account = self.decoder.take_account(partition, record.offset)
                key = (partition, "" if record.bin in (Bin.FOREIGN, Bin.PASSED_OVER) else account)
                by_key.setdefault(key, []).append(record)
        return by_key

    def partition_of(self, key: Key) -> int:
        """Return the partition."""
        return key[0]

    def advance(self, progress: PartitionProgress, records: Sequence[Decided]) -> Advance:
        """Return the progress after the records."""
        return advance(progress, records)

    def was_counted(self, states: Mapping[Key, PartitionProgress], source: Source) -> bool:
        """Return whether the record is not above its account's highest counted source offset."""
        state = states.get((source.taken.partition, source.taken.key.decode("utf-8", "replace")))
        return state is not None and source.record.source_offset <= state.source_offset


def progress_job(feed: str, account: str) -> str:
    """Return the `job_id` of an account's progress documents in a feed."""
    return f"live:{feed}:{account}"


class LiveProgress:
    """The progress documents of one run of a feed: one per account and partition."""

    def __init__(self, collection: Documents, feed: str, run: int) -> None:
        """`collection` is `crm_replay_progress`."""
        self._collection = collection
        self._feed = feed
        self._run = run

    def _id(self, key: Key) -> str:
        return f"{progress_job(self._feed, key[1])}/{self._run}/{key[0]}"

    def load(self, keys: Sequence[Key]) -> dict[Key, PartitionProgress]:
        """Return each progress as stored; a missing one is created empty."""
        found = self._find(keys)
        if missing := [key for key in keys if key not in found]:
            self._create(missing)
            found |= self._find(missing)
        return found

    def _find(self, keys: Sequence[Key]) -> dict[Key, PartitionProgress]:
        by_id = {self._id(key): key for key in keys}
        return {by_id[d["_id"]]: from_document(d) for d in self._collection.find({"_id": {"$in": list(by_id)}})}

    def _create(self, keys: Sequence[Key]) -> None:
        empty, now = to_fields(PartitionProgress()), _now()
        new = [
            InsertOne(
                {
                    "_id": self._id(key),
                    "job_id": progress_job(self._feed, key[1]),
                    "run": self._run,
                    "partition": key[0],
                    "feed": self._feed,
                    "company_sso_id": key[1],
                    **empty,
                    "updated_at": now,
                }
            )
            for key in keys
        ]
        try:
            self._collection.bulk_write(new, ordered=False)
        except BulkWriteError as error:
            if any(refusal.get("code") != DUPLICATE_KEY for refusal in error.details["writeErrors"]):
                raise  # else another sink was first

    def save(self, progress: Mapping[Key, PartitionProgress]) -> bool:
        """Save each progress whose stored version is the preceding one; return whether all were saved."""
        now = _now()
        updates: list[UpdateOne] = [
            UpdateOne(
                {"_id": self._id(key), "version": state.version - 1}, {"$set": {**to_fields(state), "updated_at": now}}
            )
            for key, state in progress.items()
        ]
        return self._collection.bulk_write(updates, ordered=False).matched_count == len(updates)


def totals_by_account(collection: Documents, feed: str, run: int | None = None) -> dict[str, RunTotals]:
    """Return the counts of a feed by account, as stored; of all its runs, or one."""
    query: Document = {"job_id": {"$gte": progress_job(feed, ""), "$lt": f"live:{feed};"}}  # `;` follows `:`
    if run is not None:
        query["run"] = run
    found: dict[str, list[Document]] = {}
    for document in collection.find(query):
        found.setdefault(document["company_sso_id"], []).append(document)
    return {account: sums_of(documents) for account, documents in sorted(found.items())}


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
