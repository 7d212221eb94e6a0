"""A directory of logs that cannot be written: one line, before anything is made elsewhere."""

from pathlib import Path

import pytest

from ops.local.sample_crm import SAMPLE_YAML
from tests.e2e.conftest import Crm, mapping_of

pytestmark = [pytest.mark.services, pytest.mark.slow]


@pytest.mark.parametrize(
    "words",
    [("run", "--account", SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML)), ("live",), ("runner", "--until-idle")],
)
def test_an_unwritable_home_is_one_line_before_a_job_is_made(
    sample_crm: Crm, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("no directory, for root may write into any")
    done = sample_crm.call(*words, CRM_REPLAY_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("crm-replay: nothing can be written in ")
    assert "set CRM_REPLAY_HOME" in line
    assert "Traceback" not in done.stderr
    assert sample_crm.database["crm_activity_log_migration_jobs"].count_documents({}) == 0
    assert sample_crm.database["crm_replay_feeds"].count_documents({}) == 0
