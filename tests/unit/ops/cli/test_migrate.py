"""What `crm-replay migrate status` prints."""

import datetime as dt
from typing import Any

import pytest

from ops.cli import migrate
from ops.jobs import migrations
from ops.jobs.migrations import MigrationStatus


def test_the_status_has_dates_and_what_is_not_applied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    applied = dt.datetime(2026, 3, 2, 3, 14, 7, 123000, tzinfo=dt.UTC)

    class Opened:
        def __init__(self, **_: Any) -> None:
            pass

        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

    steps = [MigrationStatus(1, "first", applied), MigrationStatus(2, "second", None)]
    monkeypatch.setattr(migrate, "Opened", Opened)
    monkeypatch.setattr(migrations, "status", lambda _: steps)
    migrate.migrate_status()
    assert capsys.readouterr().out.splitlines() == [
        "  1  2026-03-02 03:14:07 UTC  first",
        "  2  not applied              second",
    ]
