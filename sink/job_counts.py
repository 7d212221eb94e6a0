"""Pure: what a job's document says of its rows. One set of totals makes all of it, so it adds up at every moment.

Each row is in one bin: migrated, skipped by a reason, or failed by a cause. A row that failed and that a replay of
chosen rows has brought to another end since is in that bin, and counted once more as repaired.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from schemas.vocabulary import SkipReason


@dataclass(frozen=True, slots=True)
class RunTotals:
    """The counts of a run over all partitions. `foreign` are dead letters that are no known source rows."""

    migrated: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    foreign: Mapping[str, int] = field(default_factory=dict)
    partitions_ended: int = 0
    last_audit_id: int = 0  # highest counted
    updated_at: dt.datetime | None = None
    actors_fell_back: int = 0  # migrated logs whose actor is the deleted user

    @property
    def skipped_total(self) -> int:
        """Rows left out on purpose."""
        return sum(self.skipped.values())

    @property
    def failed_total(self) -> int:
        """Source rows that could not be understood or stored."""
        return sum(self.failed.values())

    @property
    def foreign_total(self) -> int:
        """Dead letters that are no known source rows."""
        return sum(self.foreign.values())

    @property
    def accounted(self) -> int:
        """Source rows that have ended in a bin."""
        return self.migrated + self.skipped_total + self.failed_total


class Move(NamedTuple):
    """A row that left the bin `failed`: the cause it had failed by, and where it is now."""

    cause: str
    skipped: str | None = None  # the reason; None: it was migrated
    fell_back: bool = False  # its log's actor is the deleted user


@dataclass(frozen=True, slots=True)
class Repaired:
    """The rows of a run that have left the bin `failed`."""

    failed: Mapping[str, int] = field(default_factory=dict)  # by the cause they had failed by
    migrated: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    actors_fell_back: int = 0

    @property
    def total(self) -> int:
        """Rows that failed and were repaired since."""
        return sum(self.failed.values())

    def as_document(self) -> dict[str, Any]:
        """Return it as the job's document keeps it."""
        return {
            "failed": dict(self.failed),
            "migrated": self.migrated,
            "skipped": dict(self.skipped),
            "actors_fell_back": self.actors_fell_back,
        }


def repaired_in(document: Mapping[str, Any] | None) -> Repaired:
    """Return what the job's document keeps; nothing in that of a job without repairs."""
    return Repaired(**document) if document else Repaired()


def repaired_by(moves: Iterable[Move], totals: RunTotals) -> Repaired:
    """Return the moves in sum. No more rows leave a cause than the run has counted there: letters are at least once."""
    failed: dict[str, int] = {}
    skipped: dict[str, int] = {}
    migrated = fell_back = 0
    for move in moves:
        if failed.get(move.cause, 0) >= totals.failed.get(move.cause, 0):
            continue
        failed[move.cause] = failed.get(move.cause, 0) + 1
        if move.skipped is not None:
            skipped[move.skipped] = skipped.get(move.skipped, 0) + 1
        else:
            migrated += 1
            fell_back += move.fell_back
    return Repaired(failed, migrated, skipped, fell_back)


def has_document(move: Move) -> bool:
    """Return whether the row's repair has ended with a document of it in place."""
    return move.skipped in (None, SkipReason.DUPLICATE_EXTERNAL_ID)


def present(totals: RunTotals, repaired: Repaired) -> RunTotals:
    """Return where the run's rows are now: as the sinks have counted them, repaired ones in their new bins."""
    if not repaired.total:
        return totals
    failed = {cause: count - repaired.failed.get(cause, 0) for cause, count in totals.failed.items()}
    skipped = dict(totals.skipped)
    for reason, count in repaired.skipped.items():
        skipped[reason] = skipped.get(reason, 0) + count
    return replace(
        totals,
        migrated=totals.migrated + repaired.migrated,
        skipped=skipped,
        failed={cause: count for cause, count in failed.items() if count},
        actors_fell_back=totals.actors_fell_back + repaired.actors_fell_back,
    )


def job_fields(totals: RunTotals, repaired: Repaired, records_total: int) -> dict[str, Any]:
    """Return every count of a job's document; `totals` are the sinks', `records_total` is what is known so far.

    A row that was committed after the source had been counted raises the total when it is counted.
    """
    now = present(totals, repaired)
    total = max(records_total, now.accounted)
    return {
        "records_total": total,
        "records_migrated": now.migrated,
        "records_skipped": now.skipped_total,
        "records_failed": now.failed_total,
        "records_foreign": now.foreign_total,
        "records_repaired": repaired.total,
        "skips_by_reason": dict(now.skipped),
        "failures_by_cause": dict(now.failed),
        "actors_fell_back": now.actors_fell_back,
        "last_audit_id": now.last_audit_id,
        "progress_pct": progress_pct(now.accounted, total),
    }


def duplicates(skips_by_reason: Mapping[str, int]) -> int:
    """Return how many rows had their document already, from an earlier run or the live feed."""
    return skips_by_reason.get(SkipReason.DUPLICATE_EXTERNAL_ID, 0)


def percent(part: int, whole: int) -> float:
    """Return part of whole in per cent, cut to two digits so that 100.0 is never said too early."""
    return part * 10_000 // whole / 100


def progress_pct(accounted: int, records_total: int) -> float:
    """Return how far a job is, 0.0 to 100.0; a job without rows is done at once."""
    return min(100.0, percent(accounted, records_total)) if records_total > 0 else 100.0
