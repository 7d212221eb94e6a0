"""The status of an account's job, for services, for the customer's browser, and for operators."""

import datetime as dt
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from ops.control.console_models import JobView
from ops.jobs import enrichments
from ops.jobs.counts import counts_of
from ops.jobs.enrichments import EnrichmentView
from ops.jobs.jobs import Job
from schemas.vocabulary import JobStatus

NOT_STARTED = "not_started"


class PublicStatus(BaseModel):
    """An account's import as its customers may see it; of one that has not started there is only `status`."""

    status: str = Field(description=f"{NOT_STARTED}, {', '.join(JobStatus)}")
    progress_pct: float | None = Field(None, ge=0, le=100)
    records_total: int | None = Field(None, description="rows in scope")
    records_migrated: int | None = Field(None, description="rows whose log this run has written")
    records_skipped: int | None = Field(None, description="rows left out on purpose, duplicates among them")
    records_duplicate: int | None = Field(None, description="of the skipped: logs in place from earlier runs")
    records_failed: int | None = Field(None, description="rows that failed and have not been repaired")


class Status(PublicStatus):
    """An account's import."""

    records_attempted: int | None = Field(None, description="migrated, skipped and failed")
    records_repaired: int | None = Field(None, description="of migrated and skipped: rows that had failed before")
    records_late: int | None = Field(None, description="of the attempted: found when the gaps were read again")
    records_foreign: int | None = Field(None, description="dead letters that are no rows of the account; in no bin")
    skips_by_reason: dict[str, int] | None = None
    failures_by_cause: dict[str, int] | None = None
    actors_fell_back: int | None = Field(None, description="of the migrated: logs whose actor is the deleted user")
    out_of_scope_by_type: dict[str, int] | None = Field(None, description="rows of types that are not read; in no bin")
    documents: int | None = Field(None, description="of the replay in MongoDB, when they were counted last")
    documents_at: AwareDatetime | None = Field(None, description="when that was")
    accuracy_pct: float | None = Field(
        None,
        description="documents per row that should have become one, failed rows among them; of a validated run",
    )
    enrichment: EnrichmentView | None = Field(None, description="of association logs; once the run has reached it")
    failure_bound: float | None = Field(None, description="of the failure rate, where an operator has raised it")


def status_of(job: Job | None, *, public: bool = False) -> dict[str, Any]:
    """Return the answer as JSON takes it; `public` leaves out what customers do not see."""
    if job is None:
        return {"status": NOT_STARTED}
    enriched = enrichments.view_of(job.enrichment)
    known = {
        "status": job.status.value,
        **counts_of(job).as_dict(),
        "enrichment": enriched.model_dump(mode="json") if enriched else None,
        "failure_bound": job.failure_bound,
    }
    shown = (PublicStatus if public else Status).model_fields
    return {name: value for name, value in known.items() if name in shown and value is not None}


def view_of(job: Job, now: dt.datetime) -> JobView:
    """Return the job as the console shows it."""
    known = {name: getattr(job, name) for name in JobView.model_fields if hasattr(Job, name) and name != "waiting"}
    known |= counts_of(job).as_dict() | {"enrichment": enrichments.view_of(job.enrichment)}
    return JobView(**known, waiting=job.waiting(now))
