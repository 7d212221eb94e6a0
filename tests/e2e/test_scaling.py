"""Workers that join a running job from anywhere and leave it again: by SIGTERM, and by SIGKILL.

How long the partitions took to move is printed (`pytest -s`); no test fails for a slow machine. That a worker which
leaves is not waited for shows in its session: it would last longer than the test waits.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.local.generator import GENERATED_MAPPING
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, generated
from tests.e2e.failures import workers_of
from tests.fixtures.faults import Faults
from tests.support.programs import Program
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

PARTITIONS = 6
AUDITS = 16_000  # of all accounts: half of them are the largest one's
SLOWLY = {"CRM_REPLAY_PAGE_ROWS": "100", "CRM_REPLAY_SOURCE_ROWS_PER_S": "1000"}  # so that it can be held in time
LEAVES = {"CRM_REPLAY_SESSION_TIMEOUT_S": "80", "CRM_REPLAY_SINK_SESSION_TIMEOUT_MS": "80000"}
LEFT_WITHIN_S = 50.0  # below that session
PATIENCE_S = 240.0  # for a condition; nothing is slept through


class Group:
    """What the broker knows of a consumer group."""

    def __init__(self, admin: AdminClient, name: str) -> None:
        self._admin = admin
        self._name = name

    def shares(self) -> list[int]:
        """Return how many partitions each member has, most first; nothing while the group rebalances."""
        found = self._admin.describe_consumer_groups([self._name])[self._name].result(30)
        if found.state is not ConsumerGroupState.STABLE:
            return []
        return sorted((len(member.assignment.topic_partitions) for member in found.members), reverse=True)

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in it."""
        found = self._admin.describe_consumer_groups([self._name])[self._name].result(30)
        return bool(found.state is ConsumerGroupState.EMPTY)

    def is_shared_by(self, members: int) -> bool:
        """Whether so many members have all the partitions between them, each some."""
        shares = self.shares()
        return len(shares) == members and sum(shares) == PARTITIONS and all(shares)


def moved(groups: dict[str, Group], members: int, what: str, timeout_s: float) -> dict[str, float]:
    """Return after how many seconds each group was shared by so many members."""
    began = time.monotonic()
    took: dict[str, float] = {}
    rebalancing_since: dict[str, float] = {}
    last_rebalance: dict[str, float] = {}

    def all_moved() -> bool:
        for name, group in groups.items():
            if name in took:
                continue
            if not group.shares():
                rebalancing_since.setdefault(name, time.monotonic())
            else:
                since = rebalancing_since.pop(name, time.monotonic())
                last_rebalance[name] = time.monotonic() - since
            if group.is_shared_by(members):
                took[name] = time.monotonic() - began
        return len(took) == len(groups)

    wait_until(all_moved, f"{what}: {took}", timeout_s)
    figures = (f"{name} {took[name]:.1f} s (last rebalance {last_rebalance.get(name, 0):.1f} s)" for name in took)
    print(f"\n{what}: {', '.join(figures)}")  # noqa: T201
    return took


class Throttle:
    """Lets the producer go on and holds it, so that the run does not end before everybody has come and gone."""

    def __init__(self, pid: int, published: Callable[[], int]) -> None:
        self._pid = pid
        self._published = published

    def hold(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def let_go(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def until(self, count: int) -> None:
        """Let it publish up to about `count` records."""
        self.let_go()
        wait_until(lambda: self._published() >= count, f"{count} records published", PATIENCE_S)
        self.hold()


def test_workers_join_and_leave_a_run_and_nothing_is_lost(crm: Crm, record_faults: Faults) -> None:
    account = generated(crm, AUDITS)
    topics = AccountTopics.of(account)
    kafka = crm.connections.kafka()
    admin = kafka_admin.client(kafka)
    groups = {"processors": Group(admin, topics.processors_group), "sinks": Group(admin, topics.sink_group)}
    written = crm.database["activity_logs"].estimated_document_count
    words = ("run", "--account", account, "--mapping", GENERATED_MAPPING, "--json", "--partitions", str(PARTITIONS))
    joined: list[Program] = []

    def join(**environment: str) -> list[Program]:
        """Start a processor and a sink, as on another host."""
        both = [crm.start(role, "--account", account, **environment) for role in ("process", "sink")]
        joined.extend(both)
        return both

    def published() -> int:
        return sum(kafka_admin.end_offsets(kafka, topics.replay, PARTITIONS))

    with crm.start(*words, **SLOWLY) as runner:
        try:
            wait_until(lambda: "producer" in workers_of(runner).values() or runner.poll() is not None, "the producer")
            assert runner.poll() is None, runner.communicate()[1]
            [producer] = [pid for pid, role in workers_of(runner).items() if role == "producer"]
            throttle = Throttle(producer, published)
            throttle.until(500)
            job = JobStore(crm.database).latest(account)
            total = job.records_total
            moved(groups, 1, "the run's own workers", PATIENCE_S)

            leaving, dying, staying = join(**LEAVES), join(), join()
            moved(groups, 4, "three of each join (with their start)", PATIENCE_S)
            throttle.until(total // 3)

            for process in leaving:
                process.send_signal(signal.SIGTERM)
            moved(groups, 3, "one of each leaves (SIGTERM)", LEFT_WITHIN_S)
            for process in leaving:
                assert process.wait(30) == 0, process.communicate()[1]
            seen = written()
            throttle.until(2 * total // 3)
            assert published() < total, "the producer was held too late: the run can end before anybody dies"
            wait_until(lambda: written() > seen, "those who are left go on", PATIENCE_S)

            for process in dying:
                process.kill()
            moved(groups, 2, "one of each dies (SIGKILL), its session has to end", PATIENCE_S)
            throttle.let_go()
            out, err = runner.communicate(timeout=PATIENCE_S)
            assert runner.returncode == 0, err
            for process in staying:  # they end with the run
                assert process.wait(60) == 0, process.communicate()[1]
        finally:
            for process in (runner, *joined):
                if process.poll() is None:
                    process.kill()
                process.communicate()
    replayed: dict[str, Any] = json.loads(out)
    bins = ("records_migrated", "records_skipped", "records_failed")
    assert replayed["status"] == "completed"
    assert sum(replayed[name] for name in bins) == replayed["records_total"] == total
    assert crm.database["activity_logs"].count_documents({}) == replayed["records_migrated"]
    # Nobody who joined has stayed: the next run sets the offsets of these groups, which have to be empty for that.
    wait_until(lambda: all(group.is_empty for group in groups.values()), "the groups to be empty")
    record_faults(4, "workers that joined a run and left or died")
