"""Pure: the one model of a job's counts that every surface shows: command line, HTTP, console, metrics, ledger.

It is made from one read of the job's document, whose counts are written together, so its sums hold at every
moment: `attempted = migrated + skipped + failed`, and `attempted = total` once the run is complete. The other numbers
are of rows that are in those bins already.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ops.jobs.jobs import Job
from sink.job_counts import duplicates


@dataclass(frozen=True, slots=True)
class Counts:
    """The rows of a job's present run. A job that was rolled back has none: its rows are in no bin."""

    total: int  # rows in scope that are known of; of a finished run, as the source was counted at its end
    attempted: int  # rows that have ended in a bin
    migrated: int  # rows whose document this run has written, or a repair of it
    skipped: int  # rows left out on purpose
    duplicate: int  # of the skipped: their documents were in place already, from an earlier run
    failed: int  # rows that could not be understood or stored, and have not been repaired
    repaired: int  # of migrated and skipped: rows that had failed before
    late: int  # of the attempted: rows committed so late that they were found when the gaps were read again
    foreign: int  # dead letters that are no rows of the account; in no bin
    actors_fell_back: int  # of the migrated: logs whose actor is the deleted user
    skips_by_reason: Mapping[str, int]
    failures_by_cause: Mapping[str, int]
    out_of_scope_by_type: Mapping[str, int]  # rows of types that are not read; in no bin
    documents: int | None  # of the account's replay in MongoDB; None: not counted yet
    documents_at: dt.datetime | None  # when they were counted
    progress_pct: float
    accuracy_pct: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the counts by their public names; times are datetimes."""
        return {
            "progress_pct": self.progress_pct,
            **self.records(),
            "skips_by_reason": dict(self.skips_by_reason),
            "failures_by_cause": dict(self.failures_by_cause),
            "actors_fell_back": self.actors_fell_back,
            "out_of_scope_by_type": dict(self.out_of_scope_by_type),
            "documents": self.documents,
            "documents_at": self.documents_at,
            "accuracy_pct": self.accuracy_pct,
        }

    def records(self) -> dict[str, int]:
        """Return the numbers of rows by their public names."""
        return {
            "records_total": self.total,
            "records_attempted": self.attempted,
            "records_migrated": self.migrated,
            "records_skipped": self.skipped,
            "records_duplicate": self.duplicate,
            "records_failed": self.failed,
            "records_repaired": self.repaired,
            "records_late": self.late,
            "records_foreign": self.foreign,
        }


def counts_of(job: Job) -> Counts:
    """Return a job's counts."""
    return Counts(
        total=job.records_total,
        attempted=job.records_migrated + job.records_skipped + job.records_failed,
        migrated=job.records_migrated,
        skipped=job.records_skipped,
        duplicate=duplicates(job.skips_by_reason),
        failed=job.records_failed,
        repaired=job.records_repaired,
        late=job.records_late,
        foreign=job.records_foreign,
        actors_fell_back=job.actors_fell_back,
        skips_by_reason=job.skips_by_reason,
        failures_by_cause=job.failures_by_cause,
        out_of_scope_by_type=job.out_of_scope_by_type,
        documents=job.documents,
        documents_at=job.documents_at,
        progress_pct=job.progress_pct,
        accuracy_pct=job.accuracy_pct,
    )
