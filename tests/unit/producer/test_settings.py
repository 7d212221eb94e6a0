import pytest

from producer.settings import ProducerSettings, RunSettings
from schemas.errors import BadInputError


def test_the_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_ID_WINDOW", "")
    settings = ProducerSettings.load()
    assert (settings.page_rows, settings.id_ranges, settings.id_window) == (500, 1, 50_000)
    limits = settings.limits(1234)
    assert (limits.page_rows, limits.row_bytes_max, limits.statement_timeout_s) == (500, 1234, 60.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PAGE_ROWS", "0"), ("ID_RANGES", "none"), ("ID_WINDOW", "10"), ("STATEMENT_TIMEOUT_S", "-1")],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CRM_REPLAY_{name}", value)
    with pytest.raises(BadInputError, match=f"^CRM_REPLAY_{name}: "):
        ProducerSettings.load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "CRM_REPLAY_JOB: Field required: crm-replay sets it"),
        ("{", "CRM_REPLAY_JOB: Invalid JSON"),
        ('{"run": 0}', "CRM_REPLAY_JOB, key company_sso_id: Field required"),
    ],
)
def test_a_wrong_job_is_named(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv("CRM_REPLAY_JOB", text)
    with pytest.raises(BadInputError, match=f"^{said}"):
        RunSettings.load()
