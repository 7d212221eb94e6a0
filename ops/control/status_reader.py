"""What is said of an account's job, to services, to the customer's browser, and to operators."""

import datetime as dt
from typing import Any

from pydantic import BaseModel, Field

from ops.control import enrichments
from ops.control.console_models import JobView
from ops.control.enrichments import EnrichmentView
from ops.control.jobs import Job
from schemas.vocabulary import JobStatus

NOT_STARTED = "not_started"


class PublicStatus(BaseModel):
    """An account's import as its customers may see it; of one that has not started there is only `status`."""

    status: str = Field(description=f"{NOT_STARTED}, {', '.join(JobStatus)}")
    progress_pct: float | None = Field(None, ge=0, le=100)
    records_total: int | None = None
    records_migrated: int | None = None
    records_skipped: int | None = None
    records_failed: int | None = None


class Status(PublicStatus):
    """An account's import."""

    accuracy_pct: float | None = Field(
        None, description="documents per row that should have become one; once the run has been validated"
    )
    enrichment: EnrichmentView | None = Field(None, description="of association logs; once the run has come to it")


def status_of(job: Job | None, *, public: bool = False) -> dict[str, Any]:
    """Return the answer as JSON takes it; `public` leaves out what customers do not see."""
    if job is None:
        return {"status": NOT_STARTED}
    answer: dict[str, Any] = {
        "status": job.status.value,
        "progress_pct": job.progress_pct,
        "records_total": job.records_total,
        "records_migrated": job.records_migrated,
        "records_skipped": job.records_skipped,
        "records_failed": job.records_failed,
    }
    if job.accuracy_pct is not None and not public:
        answer["accuracy_pct"] = job.accuracy_pct
    if not public and (enriched := enrichments.view_of(job.enrichment)) is not None:
        answer["enrichment"] = enriched.model_dump(mode="json")
    return answer


def view_of(job: Job, now: dt.datetime) -> JobView:
    """Return the job as the console shows it."""
    known = {name: getattr(job, name) for name in JobView.model_fields if hasattr(Job, name) and name != "waiting"}
    known |= {"enrichment": enrichments.view_of(job.enrichment)}
    known |= {"skips_by_reason": dict(job.skips_by_reason), "failures_by_cause": dict(job.failures_by_cause)}
    return JobView(**known, waiting=job.waiting(now))
