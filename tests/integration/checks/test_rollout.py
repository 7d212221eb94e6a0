"""The rollout's report from a real platform: jobs, flags and preflights as the processes leave them."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ops.checks.rollout.model import State, rollout
from ops.checks.rollout.read import read_accounts
from ops.jobs import flags, migrations
from ops.jobs.store import JobStore, NewJob
from ops.jobs.tasks import TaskKind, TaskStore
from schemas.vocabulary import JobStatus
from sink.progress import RunTotals

pytestmark = pytest.mark.services
CUTOFF = datetime(2024, 5, 6, tzinfo=UTC)


def job(database: Any, account: str, rows: int) -> Any:
    new = NewJob(account, 1, 10, 1, CUTOFF, records_total=rows)
    return JobStore(database).create(new, begin_offsets=(0,))


def test_every_account_that_anybody_knows_of_is_in_the_report(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    store, tasks = JobStore(mongo_database), TaskStore(mongo_database)
    done = job(mongo_database, "done", 40)
    store.save_totals(done, RunTotals(migrated=30, skipped={"contact_not_found": 8}, failed={"x": 2}))
    store.transition(done.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    halted = job(mongo_database, "halted", 100)
    store.save_totals(halted, RunTotals(migrated=25))
    store.transition(halted.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED, "too many failures")
    job(mongo_database, "waiting", 7)
    flags.write(mongo_database, "flagged", True, "somebody")
    tasks.request("flagged", TaskKind.PREFLIGHT, by="somebody", arguments={})
    task = tasks.claim_next("runner", 60)
    assert task is not None
    checks = [
        {"name": "source_scope", "verdict": "ok", "facts": {"rows": 500}},
        {"name": "mongodb_space", "verdict": "fail", "facts": {}},
    ]
    tasks.finish(task, {"ok": False, "checks": checks})

    now = datetime.now(UTC)  # behind all that was done, or a midnight could lie between
    found = rollout(read_accounts(mongo_database, {"planned": date(2099, 1, 1)}, now), now + timedelta(seconds=1))
    lines = {line.company_sso_id: line for line in found.lines}
    assert {name: line.state for name, line in lines.items()} == {
        "done": State.COMPLETED,
        "flagged": State.BACKLOG,
        "halted": State.PAUSED,
        "planned": State.BACKLOG,
        "waiting": State.AT_RISK,
    }
    assert (lines["done"].rows_done, lines["done"].rows_left) == (40, 0)
    assert (lines["halted"].rows_done, lines["halted"].rows_left, lines["halted"].why) == (
        25,
        75,
        "halted: too many failures",
    )
    assert (lines["flagged"].rows_left, lines["planned"].rows_left) == (500, None)
    gate = lines["flagged"].gate
    assert (gate.name, gate.turn) == ("preflight", "platform")
    assert (found.rows_done, found.rows_left, found.uncounted) == (65, 75 + 500 + 7, 1)
    assert found.burn_up[-1].done == 65
