"""Definitions of the indexes; ops.jobs.migrations creates them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.collections import (
    ACTIVITY_LOGS,
    AUDIT_LOG,
    CHECKPOINTS,
    CONTACT_ID_MAP,
    CONTACTS,
    JOBS,
    PROGRESS,
    RETRIES,
    SEALS,
    TASKS,
)

# The only logs that lack names when they are written, so the only ones that the enricher searches.
ENRICHED_ACTIONS = ("link", "unlink", "won", "resolved", "completed")
ENRICHED_CATEGORIES = ("deal", "company", "ticket", "task")


@dataclass(frozen=True, slots=True)
class Index:
    """One index; `keys` all ascend, `partial` is its filter."""

    collection: str
    name: str
    keys: tuple[str, ...]
    unique: bool = False
    partial: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of pymongo's `create_index`, besides the keys."""
        options: dict[str, Any] = {"name": self.name}
        if self.unique:
            options["unique"] = True
        if self.partial:
            options["partialFilterExpression"] = dict(self.partial)
        return options


# Detects duplicates. Documents of other origins need no external_id and are not in it.
UNIQUE_EXTERNAL_ID = Index(
    ACTIVITY_LOGS,
    "uniq_company_external_id",
    ("company_sso_id", "external_id"),
    unique=True,
    partial={"external_id": {"$exists": True}},
)
# Counts and rolls back an account's migrated documents without touching others (3 us an insert, measured).
COMPANY_SOURCE_TAG = Index(
    ACTIVITY_LOGS,
    "idx_company_source_tag",
    ("company_sso_id", "source_tag"),
    partial={"source_tag": {"$exists": True}},
)
# The enricher's match key. Partial, because a replay of millions of updates would pay for an index it never needs.
ENRICHMENT_MATCH = Index(
    ACTIVITY_LOGS,
    "idx_enrichment_match",
    ("company_sso_id", "customer_id", "category", "action", "timestamp"),
    partial={"action": {"$in": list(ENRICHED_ACTIONS)}},
)
CONTACT_BY_CRM_ID = Index(CONTACTS, "idx_company_crm_data_id", ("company_sso_id", "crm_data.id"))
CONTACT_ID_MAP_UNIQUE = Index(
    CONTACT_ID_MAP, "uniq_company_crm_person_id", ("company_sso_id", "crm_person_id"), unique=True
)
# For the live feed, which queries the contacts of a few persons at a time: those that only the id map names.
CONTACT_BY_CUSTOMER = Index(CONTACTS, "idx_company_customer_id", ("company_sso_id", "customer_id"))
# What the live feed wrote before it had external ids, by customer and time: for the report about the handover.
# `external_id: null` also matches a missing field, so no document of ours is in this index.
LEGACY_LOGS = Index(
    ACTIVITY_LOGS,
    "idx_legacy_customer_time",
    ("company_sso_id", "customer_id", "timestamp"),
    partial={"external_id": None},
)
JOBS_BY_COMPANY = Index(JOBS, "idx_company_sso_id", ("company_sso_id",))
# The database itself refuses a second running job of an account.
ONE_RUNNING_JOB = Index(
    JOBS, "idx_company_status", ("company_sso_id", "status"), unique=True, partial={"status": "in_progress"}
)
UNIQUE_RUN = Index(JOBS, "uniq_run", ("run",), unique=True, partial={"run": {"$exists": True}})
PROGRESS_BY_RUN = Index(PROGRESS, "uniq_job_run_partition", ("job_id", "run", "partition"), unique=True)
CHECKPOINTS_BY_RUN = Index(CHECKPOINTS, "idx_job_run", ("job_id", "run"))
RETRIES_BY_COMPANY = Index(RETRIES, "idx_company_started_at", ("company_sso_id", "started_at"))
# Of several requests that have read the same last job (or none), one creates the next.
ONE_FOLLOWS = Index(
    JOBS, "uniq_company_follows", ("company_sso_id", "follows"), unique=True, partial={"follows": {"$exists": True}}
)
# At most one task of a kind and account is queued or running; also for the runners' queries.
ONE_ACTIVE_TASK = Index(
    TASKS, "uniq_active_company_kind", ("company_sso_id", "kind"), unique=True, partial={"active": True}
)
TASKS_BY_COMPANY = Index(TASKS, "idx_company_requested", ("company_sso_id", "requested_at"))
AUDIT_LOG_BY_COMPANY = Index(AUDIT_LOG, "idx_company_at", ("company_sso_id", "at"))
AUDIT_LOG_BY_TIME = Index(AUDIT_LOG, "idx_at", ("at",))
SEALS_BY_COMPANY = Index(SEALS, "idx_company_sso_id", ("company_sso_id",))

INDEXES = (
    UNIQUE_EXTERNAL_ID,
    COMPANY_SOURCE_TAG,
    ENRICHMENT_MATCH,
    CONTACT_BY_CRM_ID,
    CONTACT_ID_MAP_UNIQUE,
    JOBS_BY_COMPANY,
    ONE_RUNNING_JOB,
    UNIQUE_RUN,
    PROGRESS_BY_RUN,
    CHECKPOINTS_BY_RUN,
    RETRIES_BY_COMPANY,
    ONE_FOLLOWS,
    ONE_ACTIVE_TASK,
    TASKS_BY_COMPANY,
    AUDIT_LOG_BY_COMPANY,
    AUDIT_LOG_BY_TIME,
    CONTACT_BY_CUSTOMER,
    LEGACY_LOGS,
    SEALS_BY_COMPANY,
)
