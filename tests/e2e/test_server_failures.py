"""Servers that die, are slow or have no disk left in the middle of a run: the end equals an uninterrupted run's.

The servers are this module's own: they are killed with SIGKILL and started again on the same data and ports.
`CRM_REPLAY_FAILURE_ROUNDS` says how often each server is killed (default 1), each time in another moment.
"""

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from ops.bench.measure import Meter
from ops.kafka import admin as kafka_admin
from ops.local.generator import GENERATED_MAPPING
from ops.local.services import Service
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, generated
from tests.e2e.failures import Servers, SlowProxy, reading, workers_of
from tests.fixtures.faults import Faults
from tests.fixtures.services import private_home
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

ROUNDS = int(os.environ.get("CRM_REPLAY_FAILURE_ROUNDS", "1"))
AUDITS = 36_000  # of all accounts: half of them are the largest one's
RUN_TIMEOUT_S = 200
SAME = ("records_total", "records_migrated", "records_skipped", "records_failed", "skips_by_reason", "accuracy_pct")
STUTTER_S = 14.0
SMALL_BATCH, DELAY_S = 500, 0.1
FETCHED_AHEAD_MIB = 32  # what a sink fetches ahead is 16 MiB, twice while a poll takes it over
WITH_A_MIDDLE = {  # to die in: small pieces, and four seconds between the first and the last of them
    "CRM_REPLAY_PAGE_ROWS": "200",
    "CRM_REPLAY_CHECKPOINT_ROWS": "400",
    "CRM_REPLAY_SOURCE_ROWS_PER_S": "4500",
}


@dataclass
class Replayed:
    """An account whose uninterrupted run is known, on servers that may be killed."""

    crm: Crm
    servers: Servers
    account: str
    job: dict[str, Any] = field(default_factory=dict)
    logs: list[dict[str, Any]] = field(default_factory=list)
    peak_mib: dict[str, float] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        return ("run", "--account", self.account, "--mapping", GENERATED_MAPPING, "--json")

    @property
    def kafka(self) -> dict[str, str]:
        return {"bootstrap.servers": self.crm.environment["KAFKA_BOOTSTRAP_SERVERS"]}

    @property
    def topics(self) -> AccountTopics:
        return AccountTopics.of(self.account)

    def written(self) -> int:
        return self.crm.database["activity_logs"].estimated_document_count()

    def read(self) -> int:
        """How many rows the snapshot of the present run has read."""
        newest = self.crm.database["crm_replay_checkpoints"].find_one(sort=[("updated_at", pymongo.DESCENDING)])
        return int(newest["rows"]) if newest and newest["run"] == self.run_number() else 0

    def run_number(self) -> int:
        job = self.crm.database["crm_activity_log_migration_jobs"].find_one({"status": "in_progress"})
        return int(job["run"]) if job else 0

    def log_of(self, worker: str) -> str:
        """What a worker of the present or last run has said."""
        found = sorted((self.crm.home / "logs").glob(f"*/run-*/{worker}.log"), key=lambda file: file.stat().st_mtime)
        return found[-1].read_text() if found else ""

    def was_felt(self, service: Service, said: list[str]) -> bool:
        """Whether those who need this server have met its outage."""
        return {
            Service.KAFKA: "Connection refused" in self.log_of("sink-0") + self.log_of("processors-0"),
            Service.MONGODB: any("MongoDB does not answer" in line for line in said),
            Service.POSTGRES: "the connection to PostgreSQL is lost" in self.log_of("producer-0"),
        }[service]

    @contextmanager
    def fresh_run(self, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """Roll back, and give a run that has begun, with the lines it says."""
        if self.job:
            assert self.crm.call("rollback", "--account", self.account, "--yes").returncode == 0
        with self.crm.start(*self.words, **{**WITH_A_MIDDLE, **environment}) as runner, reading(runner.stderr) as said:
            try:
                yield runner, said
            finally:
                runner.terminate()

    def finish(self, runner: subprocess.Popen[str], said: list[str]) -> tuple[dict[str, Any], int]:
        """Return the job once it is completed, and how often it had to be taken up again."""
        out, taken_up = runner.stdout.read(), 0
        if runner.wait(RUN_TIMEOUT_S) != 0:
            # A run may give up, if it says so in one line and the same command goes on.
            wait_until(lambda: bool(said) and said[-1].startswith("crm-replay: "), f"one clear line: {said}", 5)
            assert not any("Traceback" in line for line in said), said
            taken_up = 1
            again = self.crm.call(*self.words)
            assert again.returncode == 0, (said, again.stderr)
            out = again.stdout
        job: dict[str, Any] = json.loads(out)
        return job, taken_up

    def measured_run(self, **environment: str) -> tuple[dict[str, Any], dict[str, float]]:
        """Run without a fault, in small batches; return the job and the peak memory of each role in MiB."""
        small_batches = {"CRM_REPLAY_SINK_BATCH_RECORDS": str(SMALL_BATCH), "CRM_REPLAY_PAGE_ROWS": "2000"}
        at_full_speed = {"CRM_REPLAY_SOURCE_ROWS_PER_S": "0"}
        with self.fresh_run(**small_batches, **at_full_speed, **environment) as (runner, said):
            meter = Meter(lambda: {role: pid for pid, role in workers_of(runner).items()}).start()
            job, taken_up = self.finish(runner, said)
            meter.stop()
        assert taken_up == 0, said
        return job, {role: cost.peak_mib for role, cost in meter.costs().items()}

    def require_same(self, job: dict[str, Any], said: list[str]) -> None:
        assert {key: job[key] for key in SAME} == {key: self.job[key] for key in SAME}, said
        assert self.crm.logs(self.account) == self.logs, said


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    """Give servers of our own with a generated CRM, and what its largest account becomes."""
    with pytest.MonkeyPatch.context() as patch, private_home() as place:
        for service in Service:
            patch.delenv(service.variable, raising=False)
        servers = Servers(place)
        found = servers.up()
        environment = {**found.environment(), "MONGODB_DATABASE": "failures"}
        client: Any = pymongo.MongoClient(found.mongodb_url, tz_aware=True)
        try:
            crm = Crm(environment, client["failures"], tmp_path_factory.mktemp("home"))
            assert crm.call("migrate", "up").returncode == 0
            account = generated(crm, AUDITS)
            uninterrupted = Replayed(crm, servers, account)
            job, peak_mib = uninterrupted.measured_run()
            yield Replayed(crm, servers, account, job, crm.logs(account), peak_mib)
        finally:
            client.close()


def when_written(run: Replayed, part: float) -> None:
    """Wait until this part of the documents is there."""
    wait_until(lambda: run.written() > len(run.logs) * part, "documents to be written")


def when_read(run: Replayed, part: float) -> None:
    """Wait until this part of the rows is published."""
    wait_until(lambda: run.read() > run.job["records_total"] * part, "rows to be read")


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize(
    ("service", "middle"),
    [(Service.KAFKA, when_written), (Service.MONGODB, when_written), (Service.POSTGRES, when_read)],
    ids=["kafka", "mongodb", "postgres"],
)
def test_a_server_that_is_killed_in_the_middle_and_comes_back_changes_nothing(
    replayed: Replayed, service: Service, middle: Callable[[Replayed, float], None], number: int, record_faults: Faults
) -> None:
    with replayed.fresh_run() as (runner, said):
        middle(replayed, random.Random(number).uniform(0.02, 0.3))  # later, and the workers may be done when it comes
        replayed.servers.kill(service)
        wait_until(lambda: replayed.was_felt(service, said), "a worker to meet the outage")
        assert runner.poll() is None, said
        replayed.servers.up()
        job, taken_up = replayed.finish(runner, said)
    replayed.require_same(job, said)
    record_faults(1, f"{service.value} killed; {job['seconds']} s, taken up by hand {taken_up} times")


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize(
    ("service", "frozen_s", "running_s"),
    [
        (Service.KAFKA, 0.9, 0.06),
        (Service.KAFKA, 6.5, 0.3),
        (Service.MONGODB, 0.9, 0.06),
        (Service.POSTGRES, 0.9, 0.06),
    ],
)
def test_a_run_through_a_server_that_stutters_ends_by_itself_and_changes_nothing(
    replayed: Replayed, service: Service, frozen_s: float, running_s: float, number: int, record_faults: Faults
) -> None:
    """Frozen for less or more than a session time-out, and running too shortly for a whole rebalance."""
    with replayed.fresh_run() as (runner, said):
        when_read(replayed, random.Random(number).uniform(0.01, 0.3))
        times = replayed.servers.stutter(service, frozen_s, running_s, STUTTER_S)
        job, taken_up = replayed.finish(runner, said)
    assert taken_up == 0, said
    replayed.require_same(job, said)
    record_faults(times, f"times {service.value} was frozen for {frozen_s} s; {job['seconds']} s")


def test_a_slow_mongodb_makes_the_run_slower_and_not_bigger(replayed: Replayed, record_faults: Faults) -> None:
    url = replayed.crm.environment["MONGODB_URL"]
    host, port = url.removeprefix("mongodb://").split("/")[0].split(":")
    with SlowProxy((host, int(port)), delay_s=DELAY_S) as proxy:
        slow, peak_mib = replayed.measured_run(MONGODB_URL=url.replace(f":{port}", f":{proxy.port}"))
        assert proxy.held > 50
    replayed.require_same(slow, [])
    before, after = replayed.job["seconds"], slow["seconds"]
    held = f"{proxy.held} answers of MongoDB held back for {DELAY_S} s"
    record_faults(1, f"{held}; {before} s became {after} s, MiB {replayed.peak_mib} became {peak_mib}")
    # Batches are accounted for one after the other, each with one answer at least. Wall time alone proves nothing here.
    assert after > replayed.job["records_total"] / SMALL_BATCH * DELAY_S
    for role in ("sink", "processors"):
        assert peak_mib[role] < replayed.peak_mib[role] + FETCHED_AHEAD_MIB


def set_message_bytes_max(run: Replayed, topic: str, bytes_max: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(bytes_max), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({**run.kafka})  # to be kept until it has answered
    admin.incremental_alter_configs([resource])[resource].result(10)


def test_outcomes_that_the_broker_refuses_are_never_acknowledged_and_come_once_it_takes_them(
    replayed: Replayed, record_faults: Faults
) -> None:
    topics = replayed.topics

    def ends() -> list[str]:
        """The last line of each worker that has ended: what an operator reads."""
        lines = [json.loads(line) for line in replayed.log_of("processors-0").splitlines() if line.startswith("{")]
        return [line["event"] for line in lines if (line["logger"], line["level"]) == ("processors", "error")]

    def acknowledged() -> list[int]:
        return kafka_admin.committed_offsets(replayed.kafka, topics.processors_group, topics.replay, 4)

    def delivered() -> list[int]:
        return kafka_admin.end_offsets(replayed.kafka, topics.outcomes, 4)

    with replayed.fresh_run() as (runner, said):
        when_written(replayed, 0.02)  # early: most outcomes are still to come
        set_message_bytes_max(replayed, topics.outcomes, 100)
        try:
            wait_until(lambda: len(ends()) >= 1, "the worker to end")
            before = acknowledged(), delivered()
            wait_until(lambda: len(ends()) >= 2, "the worker that was started again to end")
            assert (acknowledged(), delivered()) == before
        finally:
            set_message_bytes_max(replayed, topics.outcomes, kafka_admin.RECORD_BYTES_MAX)
        refused = ends()
        for line in refused:
            assert "Kafka did not take an outcome" in line
            assert "Message size too large" in line
        job, _ = replayed.finish(runner, said)
    replayed.require_same(job, said)
    record_faults(len(refused), "workers ended by outcomes that the broker refused")


def test_a_broker_whose_disk_is_full_dies_and_the_run_goes_on_once_there_is_room(
    replayed: Replayed, record_faults: Faults
) -> None:
    with replayed.fresh_run() as (runner, said):
        when_written(replayed, 0.02)  # early: most outcomes are still to come
        logs = Path(replayed.servers.home).glob(f"kafka/data/{replayed.topics.outcomes}-*/*.log")
        replayed.servers.limit_files(Service.KAFKA, max(log.stat().st_size for log in logs) + 4096)
        wait_until(lambda: replayed.servers.is_gone(Service.KAFKA), "the broker to end")
        replayed.servers.up()
        job, taken_up = replayed.finish(runner, said)
    replayed.require_same(job, said)
    record_faults(1, f"broker without disk; {job['seconds']} s, taken up by hand {taken_up} times")
