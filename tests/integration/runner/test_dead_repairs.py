"""A replay of chosen rows whose runner has died is ended by the next command or by a runner, on a real MongoDB."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId

from ops.jobs import migrations
from ops.jobs.letters import Letter
from ops.jobs.store import JobStore, NewJob
from ops.runner import daemon, repairs
from producer.cursor import EARLIEST
from schemas.identity import replay_id
from schemas.process.connections import Connections
from schemas.vocabulary import JobStatus
from sink.counting import PartitionProgress
from sink.progress import Progress

pytestmark = pytest.mark.services
NEW = NewJob("a", partitions=1, top_audit_id=100, snapshot_xmax=1, cutoff=EARLIEST, records_total=3)


@pytest.mark.parametrize("by_a_runner", [False, True])
def test_what_it_has_repaired_is_counted_and_it_has_failed(
    mongo_database: Any, monkeypatch: pytest.MonkeyPatch, by_a_runner: bool
) -> None:
    migrations.up(mongo_database)
    store = JobStore(mongo_database)
    whole = store.create(NEW)
    progress = Progress(mongo_database["crm_replay_progress"], whole.job_id, whole.run)
    progress.load([0])
    assert progress.save({0: PartitionProgress(1, migrated=1, failed={"write_refused": 2}, ended=True)})
    store.save_totals(whole, store.aggregate_progress(whole))
    store.transition(whole.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    dead = store.create(replace(NEW, partial=True), owner="dead")
    logs = mongo_database["activity_logs"]
    for audit_id, run in ((1, whole.run), (2, dead.run)):
        ours = {"company_sso_id": "a", "external_id": f"crm_audit:{audit_id}", "source_tag": "crm_migration"}
        logs.insert_one({"_id": ObjectId(replay_id(run, audit_id)), **ours})
    letters = [Letter(0, audit_id, "write_refused", "", 0, whole.run, "", -1, -1, 0) for audit_id in (2, 3)]
    monkeypatch.setattr(repairs, "records", lambda *_: [(0, 0, letter) for letter in letters])
    monkeypatch.setattr(repairs, "letter_of", lambda _offset, value, _codec: value)
    topics: Any = SimpleNamespace(kafka={}, codec=None, find=lambda *_: [])

    def end_dead() -> bool:
        return repairs.end_dead("a", store, "next", topics, mongo_database, view=SimpleNamespace())

    assert not end_dead()  # its lease has not run out
    store.release(dead)
    if by_a_runner:
        claimed = store.claim_next("runner")
        assert claimed is not None
        monkeypatch.setattr(daemon, "Topics", lambda *_: topics)
        daemon._end_partial(claimed, Connections(), mongo_database, view=daemon._EventView("a"))
    else:
        assert end_dead()
    assert not end_dead()
    ended, now = store.get(dead.job_id), store.latest("a")
    assert (ended.status, ended.error, ended.owner) == (JobStatus.FAILED, repairs.RUNNER_DIED, None)
    assert (now.records_migrated, now.records_failed, now.records_repaired, now.documents) == (2, 1, 1, 2)
