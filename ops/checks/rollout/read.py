"""I/O: jobs, flags and preflights of all accounts from the platform, and the plan from a file."""

import csv
from datetime import date, datetime
from pathlib import Path

from ops.checks.rollout.model import Account, Preflight, Run
from ops.jobs import flags
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore
from ops.jobs.tasks import Task, TaskKind, TaskStatus, TaskStore
from schemas.collections import JOBS
from schemas.errors import BadInputError
from schemas.process.mongodb import Database
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from sink.progress import RunTotals

TASKS_LOOKED_AT = 50


def read_accounts(database: Database, plan: dict[str, date | None], now: datetime) -> list[Account]:
    """Return every account that has a job, a flag that was ever set, or a place in the plan."""
    set_flags = {flag.company_sso_id: flag for flag in flags.read_all(database)}
    with_jobs = {str(account) for account in database[JOBS].distinct("company_sso_id")}
    store, tasks = JobStore(database), TaskStore(database)
    found = []
    for account in sorted(with_jobs | set_flags.keys() | plan.keys()):
        job = store.latest(account) if account in with_jobs else None
        found.append(
            Account(
                account,
                flag=account in set_flags and set_flags[account].enabled,
                run=run_of(job, store.aggregate_progress(job), now) if job is not None else None,
                preflight=_last_preflight(tasks.tasks(account, TASKS_LOOKED_AT)),
                due=plan.get(account),
            )
        )
    return found


def run_of(job: Job, totals: RunTotals, now: datetime) -> Run:
    """Return what the report wants to know of a job, from its document and its sinks' counts; pure.

    A runner's heartbeat moves the job document whatever its sinks do, so a run has moved when a sink has counted.
    """
    running = job.status is JobStatus.IN_PROGRESS
    done = totals.accounted if running else job.records_migrated + job.records_skipped + job.records_failed
    return Run(
        status=job.status,
        started_at=job.started_at,
        updated_at=(totals.updated_at or job.started_at) if running else job.updated_at,
        finished_at=job.finished_at,
        rows_total=job.records_total,
        rows_done=done,
        has_runner=not job.waiting(now),
        error=job.error or "",
    )


def _last_preflight(tasks: list[Task]) -> Preflight | None:
    """Return the last finished preflight; pure."""
    for task in tasks:
        if task.kind is TaskKind.PREFLIGHT and task.status is TaskStatus.DONE and task.result and task.finished_at:
            checks = task.result.get("checks", ())
            failed = tuple(str(check["name"]) for check in checks if check.get("verdict") == "fail")
            scope = [check.get("facts", {}).get("rows") for check in checks if check.get("name") == "source_scope"]
            rows = scope[0] if scope and isinstance(scope[0], int) else None
            return Preflight(task.finished_at, failed, rows)
    return None


def read_plan(path: str) -> dict[str, date | None]:
    """Return the accounts of a plan with their due days: CSV, `company_sso_id,due`, the day may be left out.

    Raises BadInputError naming the line that is wrong.
    """
    plan: dict[str, date | None] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if not row or not row[0].strip() or (number == 1 and row[0].strip() == "company_sso_id"):
                    continue
                try:
                    AccountTopics.of(row[0].strip())
                    due = date.fromisoformat(row[1].strip()) if len(row) > 1 and row[1].strip() else None
                except (ValueError, BadInputError) as error:
                    raise BadInputError(f"{path}, line {number}: {error}", "write it like: acme,2026-03-31") from error
                plan[row[0].strip()] = due
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: {error}", "name a readable CSV file with --plan") from error
    return plan
