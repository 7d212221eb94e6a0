"""What one part counts is what another takes it for: failed rows in the accuracy, documents by HTTP among repairs."""

from typing import Any

import pytest
from bson import ObjectId

from ops.checks.model import Verdict
from ops.checks.nightly.run import check_job
from ops.jobs import http_documents
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore, NewJob
from ops.runner.repairs import _written
from producer.cursor import EARLIEST
from schemas.collections import ACTIVITY_LOGS, PROGRESS
from schemas.identity import SOURCE_TAG, replay_id
from schemas.vocabulary import JobStatus
from sink.counting import PartitionProgress
from sink.job_counts import Move
from sink.progress import Progress

pytestmark = pytest.mark.services

ACCOUNT = "acme"


def completed(database: Any, migrated: int, failed: int, documents: int) -> Job:
    """Return a job that has been validated, with so many documents in place."""
    store = JobStore(database)
    new = NewJob(ACCOUNT, 1, top_audit_id=100, snapshot_xmax=1, cutoff=EARLIEST, records_total=migrated + failed)
    job = store.create(new)
    progress = Progress(database[PROGRESS], job.job_id, job.run)
    (before,) = progress.load([0]).values()
    counted = PartitionProgress(version=before.version + 1, migrated=migrated, failed={"x": failed})
    assert progress.save({0: counted})
    database[ACTIVITY_LOGS].insert_many([document(ObjectId(replay_id(job.run, n)), n) for n in range(1, documents + 1)])
    rows = migrated + failed
    job = store.save_totals(
        job, store.aggregate_progress(job), accuracy_pct=documents * 10_000 // rows / 100, documents=documents
    )
    return store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)


def document(document_id: Any, audit_id: int) -> dict[str, Any]:
    tagged = {"company_sso_id": ACCOUNT, "source_tag": SOURCE_TAG, "external_id": f"crm_audit:{audit_id}"}
    return {"_id": document_id, **tagged}


def test_failed_rows_alone_are_no_fault_of_a_completed_job(database: Any) -> None:
    job = completed(database, migrated=47, failed=3, documents=47)
    assert job.accuracy_pct == 94.0
    assert check_job(job, database).verdict is Verdict.OK


def test_a_document_that_is_gone_is_one_beside_failed_rows_too(database: Any) -> None:
    found = check_job(completed(database, migrated=47, failed=3, documents=46), database)
    assert found.verdict is Verdict.FAIL
    assert "accuracy of 92.0 %" in found.found


def test_a_failed_row_whose_document_came_by_http_had_it_already(database: Any) -> None:
    job = completed(database, migrated=2, failed=3, documents=2)
    mine, others = ObjectId(replay_id(job.run + 1, 11)), ObjectId(replay_id(job.run - 1, 12))
    by_http = http_documents.new_id(ACCOUNT)
    ids = {11: mine, 12: others, 13: by_http}
    database[ACTIVITY_LOGS].insert_many([document(each, audit_id) for audit_id, each in ids.items()])
    assert _written(dict.fromkeys(ids, "x"), job, database) == {
        11: Move("x"),
        12: Move("x", "duplicate_external_id"),
        13: Move("x", "duplicate_external_id"),
    }
