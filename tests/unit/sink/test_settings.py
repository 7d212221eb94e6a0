"""The environment of a sink."""

import pytest

from schemas.errors import BadInputError
from sink.settings import SinkSettings

JOB = (
    '{"company_sso_id": "a", "job_id": "j", "run": 1, "partitions": 1, "top_audit_id": 1, "snapshot_xmax": 1,'
    ' "cutoff": "2020-01-01T00:00:00Z", "mapping_path": ""}'
)


def test_the_job_is_read_from_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", JOB)
    monkeypatch.setenv("CRM_REPLAY_EXIT_AT_END", "1")
    settings = SinkSettings.load()
    assert settings.job.topics.outcomes == "crm.outcomes.a"
    assert settings.exit_at_end
    assert settings.sink_batch_records == 2000


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("CRM_REPLAY_JOB", "{", "^CRM_REPLAY_JOB: Invalid JSON"),
        ("CRM_REPLAY_JOB", JOB.replace('"run": 1', '"run": 0'), "^CRM_REPLAY_JOB, key run: "),
        ("CRM_REPLAY_SINK_BATCH_RECORDS", "0", "CRM_REPLAY_SINK_BATCH_RECORDS"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, what: str) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", JOB)
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInputError, match=what) as error:
        SinkSettings.load()
    assert "\n" not in str(error.value)


def test_a_sink_without_a_job_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRM_REPLAY_JOB", raising=False)
    with pytest.raises(BadInputError, match="CRM_REPLAY_JOB"):
        SinkSettings.load()
