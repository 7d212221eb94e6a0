"""The daemon of a test's own, and how its jobs stand."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ops.jobs import coverage, flags
from schemas.source.mapping import load
from tests.e2e.conftest import Crm, mapping_of
from tests.support.waiting import wait_until

T = TypeVar("T")
PATIENCE_S = 240.0


SLOW = {"CRM_REPLAY_PAGE_ROWS": "10", "CRM_REPLAY_SOURCE_ROWS_PER_S": "25"}  # 326 rows in 13 s


JOBS = "crm_activity_log_migration_jobs"


def wait_for(what: str, condition: Callable[[], T | None]) -> T:
    """Return the condition's first true value."""
    return wait_until(condition, what, PATIENCE_S)


@contextmanager
def daemon(crm: Crm, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Give a running daemon; afterwards it is asked to stop, and what it said is on its `said`."""
    with crm.start("runner", *words, **environment) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            _, process.said = process.communicate(timeout=60)  # type: ignore[attr-defined]


def asked_for(crm: Crm, account: str) -> dict[str, Any]:
    """Ask for the account's migration, with contacts and flag as they have to be; return the answer."""
    persons = coverage.persons_in_scope(crm.dsn, load(mapping_of(account)), account).ids
    known = coverage.known_persons(crm.database, account, persons)
    born = crm.database["contacts"].find_one({"company_sso_id": account, "crm_data.id": {"$exists": True}})
    for person in persons:
        if person not in known:
            contact = {"company_sso_id": account, "customer_id": f"c{person}", "crm_data": {"id": int(person)}}
            crm.database["contacts"].insert_one({**contact, "created_at": born["created_at"]})
    flags.write(crm.database, account, True, "a test")
    answer: dict[str, Any] = crm.json("trigger", "--account", account, "--mapping", mapping_of(account))
    return answer


def job_of(crm: Crm, account: str) -> dict[str, Any]:
    return crm.database[JOBS].find_one({"company_sso_id": account}) or {}


def completed(crm: Crm, account: str) -> dict[str, Any]:
    job: dict[str, Any] = wait_for(f"{account} completed", lambda: over(crm, account))
    assert (job["status"], job["accuracy_pct"]) == ("completed", 100.0), job["error"]
    assert job["records_total"] == job["records_migrated"] + job["records_skipped"] + job["records_failed"] == 326
    there_before = job["skips_by_reason"].get("duplicate_external_id", 0)
    assert len(crm.logs(account)) == job["records_migrated"] + there_before > 200
    return job


def over(crm: Crm, account: str) -> dict[str, Any] | None:
    job = job_of(crm, account)
    return job if job["status"] != "in_progress" else None
