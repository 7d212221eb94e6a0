"""Which unfinished jobs a proof completes, on a real MongoDB; and what is said of one that was halted on the way."""

from collections import Counter
from typing import Any

import pytest

from ops.checks.verify.model import Report, Tally
from ops.jobs import migrations
from ops.jobs.store import JobStore, NewJob
from ops.repair import run as repair
from ops.runner import lease
from producer.cursor import EARLIEST
from schemas.process.connections import Connections
from schemas.vocabulary import JobStatus

pytestmark = pytest.mark.services
NEW = NewJob("a", partitions=1, top_audit_id=100, snapshot_xmax=1, cutoff=EARLIEST, records_total=10)


def test_a_proof_completes_a_job_up_to_the_failure_rate_that_was_allowed_and_says_why_not(
    mongo_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations.up(mongo_database)
    monkeypatch.setattr(repair, "connect", lambda *_, **__: mongo_database)
    monkeypatch.setattr(mongo_database.client, "close", lambda: None)
    store = JobStore(mongo_database)
    job = store.create(NEW)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED)

    def closed() -> tuple[bool, list[str]]:
        tally = Tally(rows=10, logs=7, failed=Counter({"write_refused": 3}))
        report = Report("a", job.job_id, job.run, 100, tally, 7)
        return repair.close(report, Connections()) is not None, report.notes

    done, notes = closed()
    assert (done, len(notes), "stays failed: 3 records failed" in notes[0]) == (False, 1, True)
    store.transition(job.job_id, JobStatus.FAILED, JobStatus.IN_PROGRESS, failure_bound=0.5)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED, "by the operator")
    assert closed() == (True, [])


def test_a_halted_replay_of_chosen_rows_is_not_said_to_be_continued_by_a_resume(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    store = JobStore(mongo_database)
    whole = store.create(NEW)
    assert "crm-replay resume" in lease.halted_by(whole).to_do
    store.transition(whole.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    partial = store.create(NewJob("a", 1, 100, 1, EARLIEST, partial=True))
    assert "request them again" in lease.halted_by(partial).to_do
