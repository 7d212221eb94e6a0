import pytest

from producer.settings import job_from, settings_from_environment
from schemas.errors import BadInputError


def test_the_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_ID_WINDOW", "")
    settings = settings_from_environment()
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
        settings_from_environment()


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "is not set"), ("", "is not set"), ("{", "CRM_REPLAY_JOB, key"), ('{"run": 0}', "key company_sso_id")],
)
def test_a_wrong_job_is_named(text: str | None, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        job_from(text)
