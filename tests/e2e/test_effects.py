"""Death before and after, slowness at and failure of every durable effect of every role: the end is always the same.

Roles run one after the other over one job, each killed at every effect in turn and started again; then collection,
ledger and job document are those of an uninterrupted run. `CRM_REPLAY_EFFECTS_UP_TO` says how many occurrences of each
effect are tried (default 1; `make soak` tries more), as far as what is left of the role's work comes to them.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo.database import Database

from ops.jobs import migrations
from ops.jobs.store import JobStore
from ops.local import sandbox
from ops.local.sample.contacts import seed_contacts
from ops.local.sample_crm import SAMPLE_YAML, load_sample
from schemas.vocabulary import JobStatus
from tests.e2e.conftest import Crm, connections_of, mapping_of
from tests.fixtures.effects import EFFECTS, Fault, Stage
from tests.fixtures.faults import Faults

pytestmark = pytest.mark.services
UP_TO = int(os.environ.get("CRM_REPLAY_EFFECTS_UP_TO", "1"))
SMALL = {  # many effects in few rows
    "CRM_REPLAY_PAGE_ROWS": "30",
    "CRM_REPLAY_CHECKPOINT_ROWS": "60",
    "CRM_REPLAY_RUN_RECORDS_MAX": "25",
    "CRM_REPLAY_COMMIT_INTERVAL_S": "0.2",
    "CRM_REPLAY_SINK_BATCH_RECORDS": "30",
    "CRM_REPLAY_SINK_LINGER_MS": "20",
    "CRM_REPLAY_EXIT_AT_END": "1",
}
SAME = ("status", "records_total", "records_migrated", "records_skipped", "records_failed")
SAME_MAPS = ("skips_by_reason", "failures_by_cause", "accuracy_pct")
POISON = 6  # rows that become dead letters


class Replay:
    """One account's job, role by role."""

    def __init__(self, crm: Crm, directory: Path) -> None:
        self.crm = crm
        self.store = JobStore(crm.database)
        self.arguments = (SAMPLE_YAML, mapping_of(SAMPLE_YAML))
        self.stage = Stage(directory, {**os.environ, **crm.environment, "CRM_REPLAY_HOME": str(crm.home), **SMALL})

    def expire_lease(self) -> None:
        """Let the next runner take the job up at once: as if its lease had run out."""
        jobs = self.crm.database["crm_activity_log_migration_jobs"]
        jobs.update_many({"status": "in_progress"}, {"$unset": {"lease_until": 1, "owner": 1}})

    def prepare(self) -> None:
        """Have a runner prepare the job, and die before it starts a process."""
        self.expire_lease()
        assert self.stage.dies("preparation", "after:set_begin_offsets:1", *self.arguments)
        job = self.store.latest(SAMPLE_YAML)
        assert job is not None
        self.stage.environment |= {
            "CRM_REPLAY_JOB": job.replay_job().model_copy(update={"mapping_path": self.arguments[1]}).model_dump_json(),
            "CRM_REPLAY_WORKER": f"faulty-{uuid.uuid4().hex[:6]}",
        }

    def conclude(self) -> None:
        self.expire_lease()
        self.stage.finishes("conclusion", *self.arguments)

    def result(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the collection and what the job document says in the end."""
        job = self.store.latest(SAMPLE_YAML)
        assert job is not None
        said = {name: getattr(job, name) for name in SAME} | {name: getattr(job, name) for name in SAME_MAPS}
        return self.crm.logs(SAMPLE_YAML), said

    def forget(self) -> None:
        """Delete what the last run has written, but not its topics: the next run appends to them."""
        self.crm.database["activity_logs"].delete_many({})
        self.crm.database["crm_activity_log_migration_jobs"].delete_many({})


@pytest.fixture
def replay(
    service_environment: dict[str, str], database_dsn: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> Iterator[Replay]:
    """Give a job on the sample CRM, with some rows that become dead letters."""
    environment = {
        **service_environment,
        "CRM_AUDIT_DATABASE_URL": database_dsn,
        "MONGODB_DATABASE": mongo_database.name,
    }
    migrations.up(mongo_database)
    load_sample(database_dsn)
    seed_contacts(mongo_database, accounts=[SAMPLE_YAML])
    with psycopg.connect(database_dsn) as db:
        db.execute(
            "INSERT INTO audits (id, auditable_id, auditable_type, action, audited_changes, version, created_at)"
            " SELECT (SELECT max(id) FROM audits) + n, 50001 + n %% 3, 'Crm::Person', 'update', '--- [', 1,"
            " '2016-01-01' FROM generate_series(1, %s) AS n",
            (POISON,),
        )
    crm = Crm(environment, mongo_database, tmp_path / "home")
    yield Replay(crm, tmp_path)
    sandbox.forget(connections_of(environment), SAMPLE_YAML)


def chain(replay: Replay, number: int) -> None:
    """Kill every role before and after the `number`-th occurrence of each effect, and run the job to its end."""
    stage = replay.stage
    for effect in [*EFFECTS["preparation"], "commit_offsets:2"]:
        for when in ("before", "after"):
            if (when, effect) == ("after", "set_begin_offsets"):
                continue  # that is how `prepare` ends
            replay.expire_lease()
            fault = f"{when}:{effect}" if ":" in effect else f"{when}:{effect}:1"
            assert stage.dies("preparation", fault, *replay.arguments)
    replay.prepare()
    # A killed member that had a name is back at once; without one its partitions wait for the end of its session.
    stage.environment["CRM_REPLAY_SINK_INSTANCE_ID"] = uuid.uuid4().hex[:6]
    for role in ("producer", "processors", "sink"):
        for effect in EFFECTS[role]:
            for when in ("before", "after"):
                # Not reached: less than that is left. The first occurrences are, and the test asks for them.
                stage.dies(role, f"{when}:{effect}:{number}")
        stage.finishes(role)
    for fault in ("before:save_totals:1", "after:save_totals:1", "before:complete_job:1", "after:complete_job:1"):
        replay.expire_lease()
        assert stage.dies("conclusion", fault, *replay.arguments)


@pytest.mark.timeout(1800)
def test_a_death_at_every_durable_effect_loses_and_doubles_nothing(replay: Replay, record_faults: Faults) -> None:
    replay.prepare()
    for role in ("producer", "processors", "sink"):
        replay.stage.finishes(role)
    replay.conclude()
    logs, said = expected = replay.result()
    assert said["status"] is JobStatus.COMPLETED
    assert said["records_failed"] == POISON
    assert len(logs) == said["records_migrated"] > 150
    replay.stage.met.clear()
    for number in range(1, UP_TO + 1):
        replay.forget()
        chain(replay, number)
        assert replay.result() == expected
    met = set(replay.stage.met)
    for role in ("producer", "processors", "sink"):
        for effect in EFFECTS[role]:
            assert {f"{role} before:{effect}:1", f"{role} after:{effect}:1"} <= met
    record_faults(len(replay.stage.met), "SIGKILL before and after durable effects of every role")


@pytest.mark.timeout(900)
def test_slow_and_failing_effects_lose_and_double_nothing(replay: Replay, record_faults: Faults) -> None:
    replay.prepare()
    for role in ("producer", "processors", "sink"):
        assert replay.stage.run(role, "slow") == 0
    replay.conclude()
    expected = replay.result()
    assert expected[1]["status"] is JobStatus.COMPLETED
    replay.forget()

    failures = 0
    replay.prepare()
    for role in ("producer", "processors", "sink"):
        for _ in range(100):
            if replay.stage.run(role, f"fail::{UP_TO + 1}") == 0:
                break
        else:
            pytest.fail(replay.stage.said(role))
        for effect in EFFECTS[role]:
            failed = list(replay.stage.directory.glob(f"{effect}.*.failed"))
            assert failed, f"{role} has never come to {effect}"
            failures += len(failed)
            for note in failed:
                note.unlink()
    replay.conclude()
    assert replay.result() == expected
    record_faults(failures, "effects of producer, processors and sink that failed, each once")


def test_a_fault_is_injected_as_given(tmp_path: Path) -> None:
    fault = Fault.parse("after:commit:2", tmp_path)
    assert [fault.begin("commit"), fault.begin("deliver"), fault.begin("commit"), fault.begin("commit")] == [
        False,
        False,
        True,
        False,
    ]
    failing, again = Fault.parse("fail::2", tmp_path), Fault.parse("fail::2", tmp_path)
    assert [failing.fails("deliver"), failing.fails("deliver"), again.fails("deliver")] == [True, False, False]
    for each in (True, False):
        failing.end("deliver", False)
        assert failing.fails("deliver") == each
    assert not fault.fails("deliver")
