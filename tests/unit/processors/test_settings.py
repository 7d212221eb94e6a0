"""A worker's environment: what is missing or wrong is named."""

import json

import pytest

from processors.settings import ProcessorSettings, connections
from schemas.errors import BadInputError

JOB = {
    "company_sso_id": "account-1",
    "job_id": "job-1",
    "run": 1,
    "partitions": 2,
    "top_audit_id": 1,
    "snapshot_xmax": 1,
    "cutoff": "2020-01-01T00:00:00Z",
    "mapping_path": "",
}


def test_the_job_and_the_bounds_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", json.dumps(JOB))
    monkeypatch.setenv("CRM_REPLAY_WORKER", "processor-3")
    monkeypatch.setenv("CRM_REPLAY_EXIT_AT_END", "1")
    monkeypatch.setenv("CRM_REPLAY_RUN_RECORDS_MAX", "20")
    settings = ProcessorSettings.load()
    assert settings.job.company_sso_id == "account-1"
    assert (settings.worker, settings.exit_at_end, settings.run_records_max) == ("processor-3", True, 20)


def test_workers_without_a_name_have_one_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", json.dumps(JOB))
    monkeypatch.delenv("CRM_REPLAY_WORKER", raising=False)
    assert ProcessorSettings.load().worker


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CRM_REPLAY_JOB", "", "CRM_REPLAY_JOB: Field required"),
        ("CRM_REPLAY_JOB", json.dumps({**JOB, "run": 0}), "CRM_REPLAY_JOB, key run: "),
        ("CRM_REPLAY_RUN_RECORDS_MAX", "0", "CRM_REPLAY_RUN_RECORDS_MAX"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", json.dumps(JOB))
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInputError) as error:
        ProcessorSettings.load()
    assert said in str(error.value)


def test_a_job_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", "{")
    with pytest.raises(BadInputError, match=r"^CRM_REPLAY_JOB: Invalid JSON"):
        ProcessorSettings.load()


def test_kafka_has_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    with pytest.raises(BadInputError, match="KAFKA_BOOTSTRAP_SERVERS is not set"):
        connections()
