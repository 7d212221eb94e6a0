"""Records as most tests need them: a test names the fields it is about."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from schemas.job import ReplayJob
from schemas.records import AuditEvent

EMPTY = AuditEvent(1, 0, 0, "Crm::Deal", 7, "", 0, "", 0, "", "update", "", False, 1, "", "")


def event(**fields: Any) -> AuditEvent:
    """Return an update of a deal that nobody made, with these fields."""
    return EMPTY._replace(**fields)


def replay_job(**given: Any) -> ReplayJob:
    """Return a job of 2 partitions; the fields that are not given are of no account."""
    fields = {"company_sso_id": "account-1", "job_id": "job-1", "run": 9, "partitions": 2, "top_audit_id": 10**9,
              "snapshot_xmax": 1, "cutoff": datetime(2020, 1, 1, tzinfo=UTC), "mapping_path": ""}  # fmt: skip
    return ReplayJob(**{**fields, **given})


JOB = replay_job()


class Consumed(NamedTuple):
    """A record as a consumer delivers it."""

    key: bytes | None
    value: bytes | None
    offset: int = 40
