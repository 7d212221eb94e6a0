"""Whatever ends a run after its job was made is in the job's document: it is never a bare `in_progress`."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from ops.jobs import audit_log, operations
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from ops.runner import replay
from ops.runner.options import RunOptions
from schemas.errors import BadInputError, MappingError, ReplayError
from schemas.vocabulary import JobStatus
from tests.e2e.conftest import Crm, mapping_of

MAPPING = mapping_of(SAMPLE_YAML)


def interrupt(*_args: Any, **_kwargs: Any) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 4


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return fail


FAULTS: list[tuple[str, Callable[..., Any], str]] = [
    ("a defect", raising(KeyError("budi@contoh.co.id")), "ended by KeyError at test_job_states.py, line"),
    ("the disk", raising(OSError(28, "No space left on device", "/x")), "No space left on device (/x)"),
    ("the mapping", raising(MappingError("mapping.yaml, scope", "write it")), "mapping.yaml, scope: write it"),
    ("MongoDB", raising(AutoReconnect("gone")), "MongoDB does not answer (AutoReconnect)"),
    ("SIGTERM", interrupt, "interrupted"),
    ("Ctrl-C in a thread", raising(KeyboardInterrupt()), "ended by KeyboardInterrupt"),
    ("a process", raising(ReplayError("producer-0 ended", "see its log")), "producer-0 ended: see its log"),
]


@pytest.fixture
def options(sample_crm: Crm) -> RunOptions:
    return RunOptions(MAPPING, home=sample_crm.home)


def last(crm: Crm) -> Job:
    return JobStore(crm.database).jobs(SAMPLE_YAML)[0]


def test_what_ends_a_run_is_in_its_job_and_another_runner_can_continue_it(
    sample_crm: Crm, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what, fault, said in FAULTS:
        monkeypatch.setattr(kafka_admin, "ensure_topics", fault)
        with pytest.raises(BaseException, match=r".*") as ended:
            replay.run_account(SAMPLE_YAML, options, sample_crm.connections, PlainView())
        job = last(sample_crm)
        assert (job.status, job.owner, job.partial) == (JobStatus.IN_PROGRESS, None, False), (what, ended.value)
        assert (job.error or "").startswith(said), what
        sample_crm.database["crm_activity_log_migration_jobs"].update_one(
            {"_id": job.job_id}, {"$set": {"attempts": 0}}
        )
    assert JobStore(sample_crm.database).jobs(SAMPLE_YAML)[1:] == []
    # The audit log comes after the job, too.
    sample_crm.database["crm_activity_log_migration_jobs"].delete_many({})
    monkeypatch.setattr(audit_log, "append", raising(AutoReconnect("gone")))
    with pytest.raises(ReplayError):
        replay.run_account(SAMPLE_YAML, options, sample_crm.connections, PlainView())
    assert (last(sample_crm).owner, last(sample_crm).error is not None) == (None, True)


def test_what_ends_a_replay_of_chosen_rows_or_a_rerun_is_in_its_job(
    sample_crm: Crm, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    since, connections, view = datetime(2020, 1, 1, tzinfo=UTC), sample_crm.connections, PlainView()
    for what, fault, said in FAULTS:
        monkeypatch.setattr(kafka_admin, "ensure_topics", fault)
        for partial in (
            lambda: replay.run_selected(SAMPLE_YAML, [1200008], options, connections, view),
            lambda: replay.run_since(SAMPLE_YAML, since, options, connections, view),
        ):
            with pytest.raises(BaseException, match=r".*"):
                partial()
            job = last(sample_crm)
            assert (job.status, job.owner, job.partial) == (JobStatus.FAILED, None, True), what
            assert (job.error or "").startswith(said), what

    store = JobStore(sample_crm.database)
    monkeypatch.setattr(operations, "why_no_rerun", lambda *_: None)
    monkeypatch.setattr(kafka_admin, "ensure_topics", raising(KeyError("x")))
    with pytest.raises(KeyError):
        replay.run_account(SAMPLE_YAML, options, connections, view)
    whole = store.latest(SAMPLE_YAML)
    assert whole is not None
    whole = store.set_begin_offsets(whole, [0, 0, 0, 0])
    store.transition(whole.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    with pytest.raises(KeyError):
        replay.rerun_account(SAMPLE_YAML, options, connections, view)
    again = store.latest(SAMPLE_YAML)
    assert again.run > whole.run
    assert (again.owner, (again.error or "").startswith("ended by KeyError")) == (None, True)


def test_a_home_that_cannot_be_written_is_refused_before_there_is_a_job(
    sample_crm: Crm, options: RunOptions, tmp_path: Path
) -> None:
    home = tmp_path / "a-file"
    home.write_text("")
    with pytest.raises(BadInputError, match=r"nothing can be written.*CRM_REPLAY_HOME"):
        replay.run_account(SAMPLE_YAML, replace(options, home=home / "x"), sample_crm.connections, PlainView())
    assert JobStore(sample_crm.database).jobs(SAMPLE_YAML) == []


def test_a_resumed_job_of_which_too_much_has_failed_halts_at_once_and_says_what_to_do(sample_crm: Crm) -> None:
    store = JobStore(sample_crm.database)
    progress = sample_crm.database["crm_replay_progress"]
    refused = sample_crm.call("resume", "--account", SAMPLE_YAML, "--failure-bound", "0.5")
    assert (refused.returncode, "reason" in refused.stderr) == (2, True)
    job = sample_crm.run(SAMPLE_YAML, "--mapping", MAPPING)
    sample_crm.database["crm_activity_log_migration_jobs"].update_one(
        {"_id": job["job_id"]}, {"$set": {"status": "halted", "failure_halt": True, "error": "x"}}
    )
    progress.update_one(
        {"job_id": job["job_id"], "run": job["run"]}, {"$inc": {"failed.write_refused": 600, "version": 1}}
    )
    halted = sample_crm.call("resume", "--account", SAMPLE_YAML, "--mapping", MAPPING)
    assert halted.returncode == 1
    line = halted.stderr.strip().splitlines()[-1]
    assert "records failed, more than 10%" in line
    assert "crm-replay dlq retry" in line
    assert "--failure-bound" in line
    present = store.get(job["job_id"])
    assert (present.status, present.failures_by_cause["write_refused"]) == (JobStatus.HALTED, 600)
    assert f"{present.records_failed} of {present.records_migrated + present.records_skipped + 600}" in line
