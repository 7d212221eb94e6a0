"""A topic of a replay that is deleted and made again in the middle: the run ends in one line, and can be made whole."""

import pytest

from ops.local.sample_crm import SAMPLE_YAML
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, mapping_of
from tests.e2e.failures import reading
from tests.e2e.feed import made_again
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

WORDS = ("--account", SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
SLOWLY = {"CRM_REPLAY_SOURCE_ROWS_PER_S": "10", "CRM_REPLAY_PAGE_ROWS": "10"}


def test_a_run_whose_outcomes_were_made_again_ends_with_the_cause(sample_crm: Crm) -> None:
    crm, topic = sample_crm, AccountTopics.of(SAMPLE_YAML).outcomes
    logs = crm.home / "logs"
    with crm.start("run", *WORDS, "--json", **SLOWLY) as run, reading(run.stderr) as said:
        try:
            written = crm.database["activity_logs"].estimated_document_count
            wait_until(lambda: written() > 0, "the first documents")
            begun = written()
            # By then each watch has seen the topic: rows come one a tenth of a second, checks every five seconds.
            wait_until(lambda: written() > begun + 60, f"more of them: {said}")
            made_again(crm, topic, 4)
            assert run.wait(60) == 1, said
        finally:
            run.kill()
    assert f"topic {topic} was deleted and created again" in said[-1]
    assert "run it again" in said[-1]
    assert list(logs.rglob("sink-0.log"))
    assert crm.call("halt", "--account", SAMPLE_YAML).returncode == 0
    assert crm.call("rollback", "--account", SAMPLE_YAML, "--yes").returncode == 0
    job = crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    assert job["status"] == "completed"
