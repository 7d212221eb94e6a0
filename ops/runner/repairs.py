"""I/O: which failed rows of the account's job a replay of chosen rows has repaired.

A row had failed in a run if that run has a dead letter of it; Kafka keeps those for 30 days, and a repair can be
counted for as long. A row is repaired if it has a document now, or if the replay has skipped it.
"""

from collections.abc import Callable, Collection
from typing import Any

from ops.jobs.documents import count_since, of_rows
from ops.jobs.jobs import Job
from ops.jobs.letters import letter_of
from ops.jobs.store import RUN_MAX, JobStore
from ops.kafka.rows import Topics
from ops.kafka.topics import records
from ops.progress import RunView
from schemas.identity import SOURCE_TAG, run_in
from schemas.process.mongodb import Database
from schemas.records import SkippedRecord
from schemas.topics import AccountTopics
from schemas.vocabulary import ActorKind, JobStatus, SkipReason
from sink.job_counts import Move
from sink.rollback import documents_of

RUNNER_DIED = "its runner died; ask for the same rows again"


def moves_of(
    partial: Job, whole: Job, audit_ids: Collection[int] | None, topics: Topics, database: Database, view: RunView
) -> dict[int, Move]:
    """Return the rows that failed in the account's job but not in the partial one, by audit id.

    `audit_ids` are those of the partial job; None: any. May be repeated, also half-way.
    """
    names = AccountTopics.of(partial.company_sso_id)
    chosen = None if audit_ids is None else set(audit_ids)
    counted_to = _counted_to(whole)
    causes: dict[int, str] = {}
    failed_again: set[int] = set()
    for _, offset, value in records(topics.kafka, names.dead_letters):
        letter = letter_of(offset, value, topics.codec)
        if letter.row is None or not (chosen is None or letter.row in chosen):
            continue
        if whole.run <= letter.run <= counted_to:
            causes[letter.row] = letter.cause  # of several the last, as in a proof
        elif letter.run == partial.run:
            failed_again.add(letter.row)
    wanted = {audit_id: cause for audit_id, cause in causes.items() if audit_id not in failed_again}
    moves = _written(wanted, whole, database)
    if left := wanted.keys() - moves.keys():
        begin = dict(enumerate(partial.planned_outcomes))
        for found in topics.find(names.outcomes, left, view, begin):
            record = found.record
            if isinstance(record, SkippedRecord) and record.run == partial.run:
                moves[record.audit_id] = Move(wanted[record.audit_id], record.reason)
    return moves


def fold(
    partial: Job,
    audit_ids: Collection[int] | None,
    store: JobStore,
    topics: Topics,
    database: Database,
    view: RunView,
    strays: Callable[[Job], int] = lambda whole: 0,  # noqa: ARG005
) -> None:
    """Move the rows that a partial replay has repaired to their new bins in the account's job. May be repeated.

    `strays` returns how many documents belong to no row of that job, and are not counted with it.
    """
    whole = store.latest_whole(partial.company_sso_id)
    if whole is None or whole.run > partial.run or whole.status is JobStatus.ROLLED_BACK:
        return
    if store.aggregate_progress(whole).failed_total:
        store.note_repairs(partial, whole, moves_of(partial, whole, audit_ids, topics, database, view))
    store.fold_repairs(partial.company_sso_id, documents(database, whole) - strays(whole))


def documents(database: Database, job: Job) -> int:
    """Return how many documents in MongoDB belong to rows of the job."""
    if job.date_range_start is None:
        return documents_of(database, job.company_sso_id)
    return count_since(database, job.company_sso_id, job.cutoff)


def end_dead(
    company_sso_id: str, store: JobStore, owner: str, topics: Topics, database: Database, view: RunView
) -> bool:
    """End the account's replay of chosen rows whose runner has died, and count what it has repaired.

    Only its caller knows which rows are left, and requests them again. Returns whether there was one.
    """
    latest = store.latest(company_sso_id)
    if latest is None or not latest.partial or latest.status is not JobStatus.IN_PROGRESS:
        return False
    claimed = store.claim(latest.job_id, owner)
    if claimed is None:
        return False  # its runner is alive
    end_claimed(claimed, store, topics, database, view)
    return True


def end_claimed(claimed: Job, store: JobStore, topics: Topics, database: Database, view: RunView) -> None:
    """End a claimed replay of chosen rows whose runner has died, as `end_dead` does. May be repeated."""
    fold(claimed, None, store, topics, database, view)
    store.transition(claimed.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED, RUNNER_DIED, fence=claimed.fence)
    store.release(claimed)


def met_by(rerun: Job, repaired_by: Collection[int], topics: Topics, database: Database) -> dict[int, Move]:
    """Return the rows that failed in a rerun, and whose documents the runs `repaired_by` of chosen rows have written.

    A rerun reads what was published before the cause was fixed; such a row ends as a duplicate, like its document.
    """
    causes: dict[int, str] = {}
    for _, offset, value in records(topics.kafka, AccountTopics.of(rerun.company_sso_id).dead_letters):
        letter = letter_of(offset, value, topics.codec)
        if letter.row is not None and letter.run == rerun.run:
            causes[letter.row] = letter.cause
    return _written(causes, rerun, database, repaired_by)


def _counted_to(whole: Job) -> int:
    """Return the last run whose dead letters are in the job's counts: its own, or the last before its proof."""
    return whole.run if whole.proof is None else max(whole.run, int(whole.proof.get("run", 0)))


def _written(
    causes: dict[int, str], whole: Job, database: Database, runs: Collection[int] | None = None
) -> dict[int, Move]:
    """Return the rows that have a document: as migrated, or as duplicates if it was written before the run.

    If `runs` is given, only documents that one of them has written.
    """
    moves: dict[int, Move] = {}
    for audit_id, document in of_rows(database, whole.company_sso_id, causes, ("_id", "source_tag", "actor.type")):
        run = _run_of(document["_id"])
        if runs is not None and run not in runs:
            continue
        if whole.proof is not None and whole.run <= run <= _counted_to(whole):
            continue  # the proof has counted it
        since = document.get("source_tag") == SOURCE_TAG and whole.run <= run <= RUN_MAX
        fell_back = (document.get("actor") or {}).get("type") == ActorKind.DELETED_USER
        skipped = None if since else SkipReason.DUPLICATE_EXTERNAL_ID.value
        moves[audit_id] = Move(causes[audit_id], skipped, since and fell_back)
    return moves


def _run_of(document_id: Any) -> int:
    """Return the run in one of this product's `_id`s, above RUN_MAX for a document received by HTTP; 0 for others."""
    binary = getattr(document_id, "binary", b"")
    return run_in(binary)
