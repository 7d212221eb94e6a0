"""I/O: the end of a run: its counts compared with the source and the documents, and the verdict."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pymongo
from confluent_kafka import KafkaException
from pymongo.errors import PyMongoError

from ops.jobs import documents, http_documents, validation
from ops.jobs.jobs import Job, Ledger
from ops.jobs.store import LeaseLostError
from ops.progress import RunView
from ops.runner import repairs
from ops.runner.lease import HaltedError, SilentError, halted_by
from ops.runner.options import RunInput
from ops.runner.surroundings import Surroundings
from producer.survey import count_in_scope
from schemas.errors import ReplayError
from schemas.vocabulary import JobStatus
from sink.identity import Identities, ids_of, shift_of, unlike, without
from sink.job_counts import present
from sink.progress import RunTotals

SETTLE_MAX_S = 10.0  # for MongoDB to save the last counts of a run that is ending anyway
VALIDATIONS_MAX = 5  # while other clients send documents by HTTP


def conclude(job: Job, run_input: RunInput, around: Surroundings, view: RunView) -> tuple[Job, Ledger]:
    """Validate, write the verdict into the job document and return both. May be repeated after an outage."""
    store, totals = around.store, around.store.aggregate_progress(job)
    if run_input.published_at and totals.failed_total:
        met = repairs.met_by(job, store.partial_runs(job.company_sso_id), around.row_reader(), around.database)
        job = store.note_met(job, met, totals)
    ledger, ranges, strays = _validated(job, run_input, around, present(totals, job.repaired))
    if strays is not None:
        job = store.note_http_documents(job, strays)
    if ledger.ids_agree is None:
        view.note("an older release has counted part of this run: documents are counted, their ids are not compared")
    job = store.save_totals(
        job,
        totals,
        accuracy_pct=ledger.accuracy_pct,
        documents=ledger.documents,
        source_rows=ledger.source_rows,
    )
    ledger = replace(
        ledger, late=job.records_late, repaired=job.records_repaired, actors_fell_back=job.actors_fell_back
    )
    if run_input.audit_ids is None and dict(job.out_of_scope_by_type) != dict(ledger.out_of_scope):
        job = store.note_out_of_scope(job, ledger.out_of_scope)  # late rows among them
    if job.partial:
        _repair(job, run_input, around, view)
    if ledger.balanced and ledger.documents_agree:
        verdict, reason = JobStatus.COMPLETED, ""
    else:
        verdict = JobStatus.FAILED
        reason = (
            f"{ledger.source_rows} source rows, {ledger.accounted} accounted for; "
            f"{ledger.documents_expected} documents expected, {ledger.documents} found; "
            f"{_of_deleted(ledger)}{_named(job, run_input, around, ranges)}"
            f"crm-replay verify --account {job.company_sso_id} names the rows"
        )
    if job.status is verdict:
        return job, ledger  # written before the outage; only the reply was lost
    return store.transition(job.job_id, JobStatus.IN_PROGRESS, verdict, reason, fence=job.fence), ledger


@contextmanager
def settling(job: Job, run_input: RunInput, around: Surroundings, view: RunView) -> Iterator[None]:
    """Save the sinks' final counts after an error has ended the job's processes, and re-raise it."""
    try:
        yield
    except (SilentError, LeaseLostError):
        raise
    except BaseException as error:
        settled = None
        # The error that ended the run is reported, whatever else fails.
        with suppress(PyMongoError, KafkaException, ReplayError), pymongo.timeout(SETTLE_MAX_S):
            settled = around.store.save_totals(job, around.store.aggregate_progress(job))
            if job.partial:
                _repair(settled, run_input, around, view)
        if settled is not None and isinstance(error, HaltedError):
            raise halted_by(settled) from error
        raise


def _validated(
    job: Job, run_input: RunInput, around: Surroundings, totals: RunTotals
) -> tuple[Ledger, list[int], dict[str, Any] | None]:
    """Return the ledger, the id ranges whose documents do not match their rows, and documents received by HTTP.

    The latter are excluded where no row of the run accounts for them. Documents that arrive meanwhile are recounted.
    """
    store, account, shift = around.store, job.company_sso_id, shift_of(job.top_audit_id)
    expected = store.identities(job)
    for last_try in (*[False] * (VALIDATIONS_MAX - 1), True):
        there = http_documents.count(around.database, account)
        ledger = _ledger(job, run_input, around, totals)
        found = None if expected is None else _identities(job, run_input, around, shift)
        ledger, ranges = _compared(ledger, expected, found)
        if ledger.documents_agree or ledger.documents is None or not there:
            break
        from ops.checks.verify import http_strays  # imports all of verify, and is rarely needed

        strays = http_strays.counted(
            job, run_input.audit_ids, around.database, around.connections, around.mapping, around.codec
        )
        # If none arrived after the documents were counted, those found were counted.
        if last_try or http_documents.count(around.database, account) == there:
            if not strays:
                break
            ids = [stray.audit_id for stray in strays if stray.audit_id is not None]
            apart = None if found is None else without(found, ids, shift)
            ledger, ranges = _compared(replace(ledger, documents=ledger.documents - len(strays)), expected, apart)
            return ledger, ranges, http_strays.as_fields(strays)
    return ledger, ranges, None


def _compared(ledger: Ledger, expected: Identities | None, found: Identities | None) -> tuple[Ledger, list[int]]:
    """Return the ledger with the comparison of documents and rows by id, and the ranges that differ."""
    if expected is None or found is None:
        return ledger, []
    ranges = unlike(expected, found)
    return replace(ledger, ids_agree=not ranges), ranges


def _identities(job: Job, run_input: RunInput, around: Surroundings, shift: int) -> Identities:
    """Return which rows of the run have a document."""
    if run_input.audit_ids is not None:
        return documents.identities_of(around.database, job.company_sso_id, run_input.audit_ids, shift)
    since = None if job.date_range_start is None else job.cutoff
    return documents.identities_since(around.database, job.company_sso_id, since, shift)


def _repair(job: Job, run_input: RunInput, around: Surroundings, view: RunView) -> None:
    """Move the rows that a partial replay has repaired to their new bins in the account's job. May be repeated."""
    repairs.fold(
        job,
        run_input.audit_ids,
        around.store,
        around.row_reader(),
        around.database,
        view,
        lambda whole: _http_strays(whole, around),
    )


def _http_strays(whole: Job, around: Surroundings) -> int:
    """Return how many documents came by HTTP and belong to no row of the job; its validation excludes them."""
    if not http_documents.count(around.database, whole.company_sso_id):
        return 0
    from ops.checks.verify import http_strays  # imports all of verify, and is rarely needed

    return len(http_strays.counted(whole, None, around.database, around.connections, around.mapping, around.codec))


def _ledger(job: Job, run_input: RunInput, around: Surroundings, totals: RunTotals) -> Ledger:
    account, database = job.company_sso_id, around.database
    if run_input.audit_ids is not None:
        ledger = validation.validate(database, account, totals, len(run_input.audit_ids))
        return replace(ledger, documents=documents.count_of(database, account, run_input.audit_ids))
    source = count_in_scope(
        around.connections.crm_audit_database_url,
        around.mapping,
        account,
        top_audit_id=job.top_audit_id,
        cutoff=job.reads_from,
    )
    ledger = validation.validate(database, account, totals, source.rows)
    ledger = replace(ledger, out_of_scope=source.out_of_scope_by_type)
    return ledger if job.date_range_start is None else replace(ledger, documents=repairs.documents(database, job))


def _of_deleted(ledger: Ledger) -> str:
    """Return a phrase about rows that the CRM deleted after they were read; empty if there are none."""
    if not ledger.deleted:
        return ""
    return (
        f"{ledger.deleted:,} more rows were read than the source has now: some were deleted meanwhile (the gem's"
        " max_audits does that), and crm-replay verify --repair removes their documents; "
    )


def _named(job: Job, run_input: RunInput, around: Surroundings, ranges: Sequence[int]) -> str:
    """Return the known differing ids of ranges whose documents do not match their rows, as the beginning of a list."""
    if not ranges:
        return ""
    from ops.checks.verify.naming import named  # not needed by a correct run

    shift = shift_of(job.top_audit_id)
    within = [ids_of(id_range, shift) for id_range in ranges]
    try:
        return named(
            job, around.database, around.mapping, around.codec, around.connections, within, run_input.audit_ids
        )
    except (ReplayError, KafkaException) as error:
        return (
            f"the differing ids could not be determined ({error.what if isinstance(error, ReplayError) else error}); "
        )
