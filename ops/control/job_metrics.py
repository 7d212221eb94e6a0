"""Pure: the metrics of all jobs and enrichments, from their documents and the lag on their topics."""

from collections.abc import Iterable, Mapping
from typing import Any

from ops.jobs.counts import counts_of
from ops.jobs.jobs import Job
from schemas.process.metrics import ACCOUNTS_MAX, Value, labelled
from schemas.vocabulary import JobStatus
from sink.match_key import Outcome

BINS = ("total", "migrated", "skipped", "failed", "foreign")  # the others are of rows that are in these


def job_values(
    jobs: Iterable[Job],
    lags: Mapping[str, Mapping[str, int]],
    waiting: Mapping[str, int],
    *,
    accounts_max: int = ACCOUNTS_MAX,
) -> list[Value]:
    """Return the values of each account's last job; accounts beyond `accounts_max`, longest unchanged, are left out.

    `lags` are records that wait by account and stage, `waiting` dead letters by account, both where that is known.
    """
    latest: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: (job.started_at, job.run)):
        if not job.partial:
            latest[job.company_sso_id] = job
    shown = sorted(latest.values(), key=lambda job: (job.status is JobStatus.IN_PROGRESS, job.updated_at), reverse=True)
    found: list[Value] = []
    for job in shown[:accounts_max]:
        account = job.company_sso_id
        found += _of_job(account, job)
        if job.status is JobStatus.IN_PROGRESS:
            found += [
                Value("lag_records", records, {"account": account, "stage": stage})
                for stage, records in lags.get(account, {}).items()
            ]
        if account in waiting:
            found.append(Value("dead_letters_waiting", waiting[account], {"account": account}))
    return found


def _of_job(account: str, job: Job) -> list[Value]:
    here = {"account": account}
    found = [
        *(Value("job_state", float(job.status is status), {**here, "status": status.value}) for status in JobStatus),
        Value("job_progress_ratio", job.progress_pct / 100, here),
        Value("job_updated_timestamp_seconds", job.updated_at.timestamp(), here),
        Value("job_heartbeat_timestamp_seconds", job.heartbeat_at.timestamp(), here),
    ]
    counts = counts_of(job)
    rows = {name.removeprefix("records_"): count for name, count in counts.records().items()}
    found += [Value("job_rows", count, {**here, "bin": name}) for name, count in rows.items() if name in BINS]
    found += [Value("job_rows_of", count, {**here, "what": name}) for name, count in rows.items() if name not in BINS]
    found.append(Value("job_actors_fell_back", counts.actors_fell_back, here))
    found += [
        Value(value.metric, value.value, {**here, **(value.labels or {})})
        for value in (
            *labelled("job_skipped_rows", "reason", job.skips_by_reason),
            *labelled("job_failed_rows", "cause", job.failures_by_cause),
        )
    ]
    if job.accuracy_pct is not None:
        found.append(Value("job_accuracy_ratio", job.accuracy_pct / 100, here))
    if job.documents is not None:
        missing = max(0, counts.migrated + counts.duplicate - job.documents)
        found.append(Value("job_documents_missing", missing, here))
    return found


def enrichment_values(documents: Iterable[Mapping[str, Any]], *, accounts_max: int = ACCOUNTS_MAX) -> list[Value]:
    """Return the values of each account's last enrichment, from its document in `crm_replay_enrichments`.

    Accounts beyond `accounts_max`, those updated longest ago, are left out. `crm-replay enrich` ends, so it cannot be
    scraped; its progress and result stay in the document.
    """
    latest = sorted(documents, key=lambda document: document["updated_at"], reverse=True)
    return [value for document in latest[:accounts_max] for value in _of_enrichment(document)]


def _of_enrichment(document: Mapping[str, Any]) -> list[Value]:
    here = {"account": str(document["_id"])}
    finished, rows, total = document["finished_at"] is not None, document["rows"], document["rows_total"]
    outcomes = document["outcomes"]
    return [
        Value("enrichment_unfinished", float(not finished), here),
        # The rows are counted beside the work: until then, the remainder is unknown.
        Value("enrichment_progress_ratio", 1.0 if finished else min(1.0, rows / total) if total else 0.0, here),
        *(Value("enrichment_rows", outcomes.get(each.value, 0), {**here, "outcome": each.value}) for each in Outcome),
        Value("enrichment_deleted_references", document["deleted_references"], here),
        Value("enrichment_updated_timestamp_seconds", document["updated_at"].timestamp(), here),
    ]
