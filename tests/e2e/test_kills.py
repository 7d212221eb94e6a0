"""SIGKILL of real workers at random moments: the end must equal that of an uninterrupted run.

`CRM_REPLAY_KILL_ROUNDS` says how many runs are tortured (default 1), `CRM_REPLAY_KILL_SEED` where the dice begin.
"""

import json
import os
import random
import signal
import time

import pytest

from ops.local.generator import GENERATED_MAPPING
from tests.e2e.conftest import Crm, generated
from tests.e2e.failures import workers_of
from tests.fixtures.faults import Faults

ROUNDS = int(os.environ.get("CRM_REPLAY_KILL_ROUNDS", "1"))
SEED = int(os.environ.get("CRM_REPLAY_KILL_SEED", "1"))
AUDITS = 42_000  # of all accounts: half of them are the largest one's
KILLS = 6
SMALL = {"CRM_REPLAY_PAGE_ROWS": "200", "CRM_REPLAY_CHECKPOINT_ROWS": "400"}


def tortured_run(crm: Crm, account: str, dice: random.Random) -> tuple[dict[str, object], list[str]]:
    """Run the account while workers are killed; return the job's JSON and what was killed."""
    killed: list[str] = []
    words = ("run", "--account", account, "--mapping", GENERATED_MAPPING, "--json")
    with crm.start(*words, "--processors", "2", "--sinks", "2", **SMALL) as runner:
        logs = crm.database["activity_logs"]
        deadline = time.monotonic() + 200
        while len(killed) < KILLS and runner.poll() is None:
            assert time.monotonic() < deadline
            seen = logs.estimated_document_count()
            while runner.poll() is None and logs.estimated_document_count() == seen and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(dice.uniform(0.0, 0.4))
            if workers := workers_of(runner):
                pid = dice.choice(sorted(workers))
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(workers[pid])
        out, err = runner.communicate(timeout=200)
    assert runner.returncode == 0, err
    job: dict[str, object] = json.loads(out)
    return job, killed


@pytest.mark.slow
@pytest.mark.timeout(300 + 200 * ROUNDS)
def test_runs_whose_workers_are_killed_end_like_an_uninterrupted_one(crm: Crm, record_faults: Faults) -> None:
    account = generated(crm, AUDITS)
    uninterrupted = crm.run(account, "--mapping", GENERATED_MAPPING)
    expected = crm.logs(account)
    same = ("records_total", "records_migrated", "records_skipped", "records_failed", "skips_by_reason", "accuracy_pct")
    kills = 0
    for number in range(ROUNDS):
        assert crm.call("rollback", "--account", account, "--yes").returncode == 0
        job, killed = tortured_run(crm, account, random.Random(SEED + number))
        kills += len(killed)
        assert {key: job[key] for key in same} == {key: uninterrupted[key] for key in same}, killed
        assert crm.logs(account) == expected, killed
    assert kills >= ROUNDS  # or nothing was tested
    record_faults(kills, f"workers killed in {ROUNDS} runs")
