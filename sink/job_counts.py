"""Pure: the counts in a job's document. All come from one set of totals, so they add up at any time.

Each row is in one bin: migrated, skipped by a reason, or failed by a cause. A failed row that a retry has moved to
another bin is counted in that bin, and also as repaired.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from schemas.vocabulary import SkipReason


@dataclass(frozen=True, slots=True)
class RunTotals:
    """The counts of a run over all partitions. `foreign` are dead letters of no known source row."""

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
        """Dead letters of no known source row."""
        return sum(self.foreign.values())

    @property
    def accounted(self) -> int:
        """Source rows that have ended in a bin."""
        return self.migrated + self.skipped_total + self.failed_total


class Move(NamedTuple):
    """A row that left the bin `failed`: its former cause, and its new bin."""

    cause: str
    skipped: str | None = None  # the reason; None: it was migrated
    fell_back: bool = False  # its log's actor is the deleted user


@dataclass(frozen=True, slots=True)
class Repaired:
    """The rows of a run that have left the bin `failed`."""

    failed: Mapping[str, int] = field(default_factory=dict)  # by former cause
    migrated: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    actors_fell_back: int = 0

    @property
    def total(self) -> int:
        """Rows that failed and were repaired since."""
        return sum(self.failed.values())

    def as_document(self) -> dict[str, Any]:
        """Return it as stored in the job's document."""
        return {
            "failed": dict(self.failed),
            "migrated": self.migrated,
            "skipped": dict(self.skipped),
            "actors_fell_back": self.actors_fell_back,
        }


def repaired_in(document: Mapping[str, Any] | None) -> Repaired:
    """Return the repaired rows in a job's document; empty for a job without repairs."""
    return Repaired(**document) if document else Repaired()


def repaired_by(moves: Iterable[Move], totals: RunTotals) -> Repaired:
    """Return the sum of the moves. At most as many rows leave a cause as it has: dead letters are at least once."""
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
    """Return whether the repaired row has a document."""
    return move.skipped in (None, SkipReason.DUPLICATE_EXTERNAL_ID)


def present(totals: RunTotals, repaired: Repaired) -> RunTotals:
    """Return the run's rows by present bin: as the sinks have counted them, repaired ones in their new bins."""
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
    """Return every count of a job's document; `totals` are the sinks', `records_total` is the stored total.

    A row that was committed after the survey raises the total when it is counted.
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
    """Return part of whole in per cent, truncated to two digits: 100.0 only when complete."""
    return part * 10_000 // whole / 100


def progress_pct(accounted: int, records_total: int) -> float:
    """Return a job's progress, 0.0 to 100.0; 100.0 for a job without rows."""
    return min(100.0, percent(accounted, records_total)) if records_total > 0 else 100.0
