"""Two workers, killed, stopped and started again at random: nothing may be committed that nobody has handled.

Every worker notes the offsets of a run before it acknowledges it. While the workers come and go, each committed offset
is compared with what has been noted; at the end the notes have no hole and the outcomes topic has every row.

A long soak: `CRM_REPLAY_SOAK_RUNS=100 pytest tests/integration/processors/test_rebalance.py -k random`.
"""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from schemas.records import ActivityLog, SnapshotMarker
from tests.fixtures.faults import Faults
from tests.integration.processors.harness import JobOnKafka, Worker, event
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

SOAK_RUNS = int(os.environ.get("CRM_REPLAY_SOAK_RUNS", "2"))
ROWS = 30_000
PARTITIONS = 4
SETTINGS = {"CRM_REPLAY_RUN_RECORDS_MAX": "100", "CRM_REPLAY_COMMIT_INTERVAL_S": "0.2", "SLOW_S": "0.01"}
LONG_SESSION = {"CRM_REPLAY_SESSION_TIMEOUT_S": "80"}  # who waits for it to expire fails the test
RUN_TIMEOUT_S = 150.0
ENDED_WELL = (0, -signal.SIGTERM)  # the latter: the signal came while Python was still importing


def assert_nothing_is_lost(job: JobOnKafka, rows: int) -> None:
    ends = job.ends()
    assert job.handled_up_to() == ends
    assert job.committed() == ends
    outcomes = [outcome for _, _, outcome in job.outcomes()]
    assert {o.audit_id for o in outcomes if isinstance(o, ActivityLog)} == set(range(1, rows + 1))
    assert sum(isinstance(o, SnapshotMarker) for o in outcomes) >= job.partitions


def assert_committed_is_handled(job: JobOnKafka) -> list[int]:
    committed = job.committed()  # first: what is noted meanwhile may only be more
    handled = job.handled_up_to()
    assert all(c <= h for c, h in zip(committed, handled, strict=True)), (committed, handled)
    return committed


@pytest.mark.parametrize("seed", range(SOAK_RUNS))
def test_random_kills_and_restarts_lose_nothing(
    new_job: Callable[[int], JobOnKafka], seed: int, record_faults: Faults
) -> None:
    chance = random.Random(seed)
    job = new_job(PARTITIONS)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, ROWS + 1))
    job.begin()
    ends = job.ends()
    workers: dict[str, Worker] = {name: job.start(name, **SETTINGS) for name in ("a", "b")}
    deadline = time.monotonic() + RUN_TIMEOUT_S
    kills = 0
    while assert_committed_is_handled(job) != ends:
        assert time.monotonic() < deadline, "\n".join(worker.output()[-2000:] for worker in workers.values())
        time.sleep(chance.uniform(0.1, 1.0))  # when chance strikes, not for anything to happen
        name = chance.choice(("a", "b"))
        worker = workers[name]
        if not worker.running:
            assert worker.process.returncode in (*ENDED_WELL, -signal.SIGKILL), worker.output()[-3000:]
            workers[name] = job.start(name, **SETTINGS)
        elif kills < 8 and (blow := chance.random()) < 0.6:
            kills += 1
            if blow < 0.1:
                job.visit()
            elif blow < 0.2:
                assert worker.leave() in ENDED_WELL, worker.output()[-3000:]
            else:
                worker.kill()
                if blow < 0.4:
                    workers[name] = job.start(name, **SETTINGS)
    for worker in workers.values():
        if worker.running:
            assert worker.leave() in ENDED_WELL, worker.output()[-3000:]
    assert kills
    assert_nothing_is_lost(job, ROWS)
    record_faults(kills, "workers killed, told to leave, or joined by another")


def test_members_that_come_and_go_while_runs_are_handled_lose_nothing(new_job: Callable[[int], JobOnKafka]) -> None:
    job = new_job(PARTITIONS)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, ROWS + 1))
    job.begin()
    ends = job.ends()
    workers = [job.start(name, **{**SETTINGS, "SLOW_S": "0.05"}) for name in ("a", "b")]
    wait_until(lambda: sum(job.committed()) > 1000, "the workers commit", 60)
    visits = 0
    while assert_committed_is_handled(job) != ends:
        assert all(worker.running for worker in workers), "\n".join(worker.output()[-3000:] for worker in workers)
        if visits < 6:
            job.visit()
            visits += 1
        else:
            wait_until(lambda: assert_committed_is_handled(job) == ends, "the workers get to the end", 60)
    assert visits >= 3
    for worker in workers:
        assert worker.leave() == 0, worker.output()[-3000:]
    assert_nothing_is_lost(job, ROWS)


def test_a_worker_that_slept_through_its_session_commits_nothing_of_it(new_job: Callable[[int], JobOnKafka]) -> None:
    job = new_job(PARTITIONS)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, ROWS + 1))
    job.begin()
    ends = job.ends()
    sleeper = job.start("sleeper", **SETTINGS)
    wait_until(lambda: sum(job.committed()) > 2000, "the first worker commits", 60)
    sleeper.process.send_signal(signal.SIGSTOP)
    other = job.start("other", **SETTINGS)
    wait_until(lambda: other.handled.exists() and other.handled.stat().st_size > 0, "the other one takes over", 60)
    sleeper.process.send_signal(signal.SIGCONT)
    wait_until(lambda: assert_committed_is_handled(job) == ends, "both get to the end", 90)
    for worker in (sleeper, other):
        assert worker.leave() == 0, worker.output()[-3000:]
    assert_nothing_is_lost(job, ROWS)


def test_a_killed_worker_that_is_restarted_does_not_wait_for_its_session_to_expire(
    new_job: Callable[[int], JobOnKafka],
) -> None:
    job = new_job(PARTITIONS)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, ROWS + 1))
    job.begin()
    worker = job.start("a", **SETTINGS, **LONG_SESSION)
    wait_until(lambda: sum(job.committed()) > 2000, "the worker commits", 60)
    worker.kill()
    noted = worker.handled.stat().st_size
    again = job.start("a", **SETTINGS, **LONG_SESSION)
    wait_until(lambda: again.handled.stat().st_size > noted, "the restarted worker handles something", 60)
    assert again.leave() == 0


def test_a_worker_that_leaves_hands_its_partitions_over_at_once(new_job: Callable[[int], JobOnKafka]) -> None:
    job = new_job(PARTITIONS)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, ROWS + 1))
    job.begin()
    ends = job.ends()
    first, second = (job.start(name, **SETTINGS, **LONG_SESSION) for name in ("a", "b"))
    wait_until(lambda: all(w.handled.exists() and w.handled.stat().st_size > 0 for w in (first, second)), "both work")
    assert first.leave() == 0
    wait_until(lambda: assert_committed_is_handled(job) == ends, "the other one does all that is left", 60)
    assert second.leave() == 0
    assert_nothing_is_lost(job, ROWS)
