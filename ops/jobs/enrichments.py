"""The enrichment of a run in its job document, and how it is shown. Counts of rows do not change."""

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol

from pydantic import BaseModel, Field

from ops.jobs.jobs import Job
from schemas.collections import JOBS
from schemas.process.mongodb import Database, Documents
from schemas.vocabulary import JobStatus
from sink.match_key import Outcome


class EnrichmentState(StrEnum):
    """How far the enrichment of a run is. Stored: add values, never rename one."""

    OFF = "off"  # the source mapping turns it off
    RUNNING = "running"  # or its runner has died: the runner that takes over continues it
    DONE = "done"
    PENDING = "pending"  # the run has given it up; `crm-replay enrich` finishes it


class EnrichmentView(BaseModel):
    """The enrichment of a run, as every surface shows it. Every association row is in one of the outcomes."""

    state: EnrichmentState
    association_rows: int = Field(0, description="rows that link or unlink records, or win, resolve or complete one")
    patched: int = 0
    already_complete: int = 0
    ambiguous: int = Field(0, description="several documents match the row, none is patched")
    referent_gone: int = Field(0, description="rows that name a record which the CRM no longer has")
    outcomes: dict[str, int] = Field(default_factory=dict, description="association rows by outcome")
    audit_ids: dict[str, list[int]] = Field(
        default_factory=dict, description="the first rows of each outcome that needs attention"
    )
    error: str | None = Field(None, description="why it is pending")


class Counts(Protocol):
    """What an enrichment has counted."""

    outcomes: Any
    deleted_references: int
    audit_ids: dict[str, list[int]]


def counts_of(done: Counts) -> dict[str, Any]:
    """Return an enrichment's counts as the job document keeps them."""
    return {
        "outcomes": dict(done.outcomes),
        "deleted_references": done.deleted_references,
        "audit_ids": done.audit_ids,
    }


def view_of(enrichment: Mapping[str, Any] | None) -> EnrichmentView | None:
    """Return the job document's enrichment, as it is shown; None if its run has not reached it."""
    if enrichment is None:
        return None
    outcomes = {outcome.value: int(enrichment.get("outcomes", {}).get(outcome.value, 0)) for outcome in Outcome}
    return EnrichmentView(
        state=EnrichmentState(enrichment["state"]),
        association_rows=sum(outcomes.values()),
        patched=outcomes[Outcome.PATCHED],
        already_complete=outcomes[Outcome.COMPLETE],
        ambiguous=outcomes[Outcome.ENRICH_AMBIGUOUS],
        referent_gone=int(enrichment.get("deleted_references", 0)),
        outcomes=outcomes if enrichment["state"] != EnrichmentState.OFF else {},
        audit_ids={name: list(ids) for name, ids in enrichment.get("audit_ids", {}).items()},
        error=enrichment.get("error"),
    )


def in_words(view: EnrichmentView | None, company_sso_id: str) -> str:
    """Return it in one line; "" if there is nothing to report."""
    if view is None or view.state is EnrichmentState.OFF:
        return ""
    if view.state is not EnrichmentState.DONE:
        why = f" ({view.error})" if view.error else ""
        return f"enrichment {view.state.value}{why}; crm-replay enrich --account {company_sso_id} finishes it"
    text = f"association logs: {view.patched:,} enriched, {view.already_complete:,} complete already"
    text += f", {view.ambiguous:,} ambiguous" if view.ambiguous else ""
    return text + (f"; {view.referent_gone:,} name a deleted record" if view.referent_gone else "")


def finish_pending(database: Database, job: Job, counts: Mapping[str, Any]) -> None:
    """Record that a command has finished what the job's run had given up; no effect if it is at another run."""
    jobs: Documents = database[JOBS]
    unfinished = [EnrichmentState.PENDING.value, EnrichmentState.RUNNING.value]
    jobs.update_one(
        {
            "_id": job.job_id,
            "run": job.run,
            "status": {"$nin": [JobStatus.IN_PROGRESS.value, JobStatus.ROLLED_BACK.value]},
            "enrichment.state": {"$in": unfinished},
        },
        {
            "$set": {
                "enrichment": {
                    "state": EnrichmentState.DONE.value,
                    "error": None,
                    "updated_at": dt.datetime.now(dt.UTC),
                    **counts,
                }
            }
        },
    )
