"""Who may enrich an account: one process at a time, a run before a command, a later runner before an earlier one."""

from typing import Any

import pytest

from ops.enrich.run import Cursor, Enrichment, EnrichmentLostError, Scope
from ops.jobs import migrations
from producer.cursor import EARLIEST
from schemas.collections import ENRICHMENTS
from schemas.errors import BadInputError

pytestmark = pytest.mark.services


@pytest.fixture
def enrichments(mongo_database: Any) -> Any:
    migrations.up(mongo_database)
    return mongo_database[ENRICHMENTS]


def cursor(enrichments: Any, *, run: int = 1, fence: int = 0, **scope: Any) -> Cursor:
    return Cursor(enrichments, Scope(run=run, fence=fence, **scope), 2.0, "mapping")


def fresh() -> Enrichment:
    return Enrichment("a", top=100)


def at(audit_id: int) -> Enrichment:
    return Enrichment("a", top=100, cursor=audit_id, rows=audit_id)


def test_a_command_waits_for_a_process_that_lives_and_a_run_for_no_command(enrichments: Any) -> None:
    command = cursor(enrichments)
    command.begin(fresh())
    with pytest.raises(BadInputError, match="by another process"):
        cursor(enrichments).begin(fresh())
    run = cursor(enrichments, run=2, fence=1)
    assert not run.begin(fresh()).resumed  # the command has not seen what this run has written
    with pytest.raises(EnrichmentLostError):
        command.save(at(50))
    with pytest.raises(BadInputError, match="by another process"):
        cursor(enrichments, run=2).begin(fresh())
    run.save(at(60))
    run.release(at(60))
    taken_up = cursor(enrichments, run=2).begin(fresh())  # what the run could not finish
    assert (taken_up.resumed, taken_up.cursor) == (True, 60)


def test_a_runner_continues_for_one_that_has_died_and_fences_it_off(enrichments: Any) -> None:
    frozen = cursor(enrichments, run=3, fence=1)
    frozen.begin(fresh())
    frozen.save(at(40))
    after = cursor(enrichments, run=3, fence=2)
    taken_over = after.begin(fresh())  # at once: its lease on the job has run out
    assert (taken_over.resumed, taken_over.cursor) == (True, 40)
    with pytest.raises(EnrichmentLostError):
        frozen.save(at(45))
    with pytest.raises(EnrichmentLostError):
        cursor(enrichments, run=3, fence=1).begin(fresh())  # it wakes up before it has begun
    after.save(at(100), finished=True)
    with pytest.raises(EnrichmentLostError):
        cursor(enrichments, run=3, fence=1).begin(fresh())


def test_what_an_earlier_run_has_left_is_not_continued(enrichments: Any) -> None:
    before = cursor(enrichments, run=4, fence=7)
    before.begin(fresh())
    before.save(at(30))
    before.release(at(30))
    assert not cursor(enrichments, run=5, fence=1).begin(fresh()).resumed
    assert cursor(enrichments, run=5, fence=2).begin(fresh()).resumed
    part = EARLIEST.replace(year=2024)
    assert not cursor(enrichments, run=5, fence=3, cutoff=part).begin(fresh()).resumed
