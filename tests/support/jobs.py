"""A job as the control plane stores it, and the samples that a page of metrics has."""

import datetime as dt
from dataclasses import MISSING, fields
from typing import Any

from ops.jobs.jobs import Job
from schemas.process.metrics import Value
from schemas.vocabulary import JobStatus

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


EMPTY = {"int": 0, "float": 0.0, "str": "", "bool": False, "tuple": (), "Mapping": {}, "datetime": NOW}


def job(account: str, *, status: JobStatus = JobStatus.IN_PROGRESS, minutes: int = 0, **known: Any) -> Job:
    """Return a job with these fields; all others are empty."""
    at = NOW + dt.timedelta(minutes=minutes)
    empty = {
        field.name: EMPTY.get(getattr(field.type, "__name__", ""))
        for field in fields(Job)
        if field.default is MISSING and field.default_factory is MISSING
    }
    times = dict.fromkeys(("started_at", "updated_at", "heartbeat_at"), at)
    given = {"company_sso_id": account, "job_id": f"{account}-{minutes}", "status": status}
    return Job(**{**empty, **times, **given, **known})


def found(values: list[Value], metric: str, **labels: str) -> list[float]:
    return [
        value.value for value in values if value.metric == metric and labels.items() <= dict(value.labels or {}).items()
    ]
