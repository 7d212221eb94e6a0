"""What Prometheus is told of jobs while Kafka is slow or away: the jobs, whatever becomes of the rest."""

import datetime as dt
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ops.control import job_exposition as module
from ops.control.backend import Backend
from ops.control.job_exposition import KAFKA_AWAY_S, KAFKA_BUDGET_S, KAFKA_KNOWN_S, RESTING_LAG_FRESH_S, JobMetrics
from ops.kafka.lag import ANSWER_TIMEOUT_S, Lag
from schemas.collections import ENRICHMENTS
from schemas.process.metrics import Value
from schemas.vocabulary import JobStatus
from tests.support.jobs import found, job


class Collection:
    """A collection, as far as it is asked."""

    def __init__(self) -> None:
        self.documents: list[Any] = []

    def find(self, *_: Any) -> "Collection":
        return self

    def sort(self, *_: Any) -> "Collection":
        return self

    def limit(self, _: int) -> list[Any]:
        return self.documents


class World:
    """Jobs, a Kafka that takes its time, and the clock that it takes it from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *running: str, resting: int = 0) -> None:
        self.now = 1_000.0
        self.answer_s = 0.01
        self.answer = Lag(processors=5, sink=3, dead_letters=0)
        self.asked: list[str] = []
        done = [job(f"r{n}", status=JobStatus.COMPLETED, minutes=n) for n in range(resting)]
        self.jobs = [*(job(account) for account in running), *done]
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "ConsoleState", lambda _: None)
        store = SimpleNamespace(jobs=lambda limit: self.jobs[:limit])
        self.enrichments = Collection()
        database = {ENRICHMENTS: self.enrichments}
        backend = SimpleNamespace(store=store, lag=SimpleNamespace(of=self._lag), database=database)
        self._metrics = JobMetrics(cast("Backend", backend))

    def _lag(self, account: str) -> Lag:
        self.asked.append(account)
        self.now += self.answer_s
        return self.answer

    def scrape(self, after_s: float = 15.0) -> list[Value]:
        """Return what is told after so long; `asked` is who Kafka was asked about for it."""
        self.asked.clear()
        self.now += after_s
        return self._metrics.read()


def test_a_kafka_that_is_away_costs_one_question_and_the_jobs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a", "b", resting=3)
    assert found(world.scrape(), "lag_records", account="a", stage="sink") == [3]
    world.answer, world.answer_s = Lag(), 2 * ANSWER_TIMEOUT_S
    values = world.scrape()
    assert len(world.asked) == 1
    assert len(found(values, "job_state", status="in_progress")) == 5
    assert found(values, "lag_records") == []
    values = world.scrape(KAFKA_AWAY_S - 1)  # it is left alone for a while
    assert world.asked == []
    assert found(values, "job_state", account="a", status="in_progress") == [1]
    world.answer, world.answer_s = Lag(processors=9, sink=1, dead_letters=0), 0.01
    assert found(world.scrape(), "lag_records", account="b", stage="processors") == [9]


def test_a_slow_kafka_is_asked_within_a_budget_and_everybody_has_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a", resting=9)
    world.answer_s = 0.9
    seen: set[str] = set()
    for _ in range(4):
        began = world.now
        values = world.scrape(after_s=3.0)
        assert world.now - began - 3.0 <= KAFKA_BUDGET_S + world.answer_s
        assert found(values, "lag_records", account="a") in ([], [5, 3])
        seen.update(world.asked)
    assert seen == {job.company_sso_id for job in world.jobs}


def test_an_account_at_rest_is_asked_about_seldom_and_one_that_runs_at_every_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, "a", resting=2)
    world.scrape()
    assert sorted(world.asked) == ["a", "r0", "r1"]
    world.scrape(after_s=RESTING_LAG_FRESH_S / 2)
    assert world.asked == ["a"]
    assert found(world.scrape(after_s=RESTING_LAG_FRESH_S), "dead_letters_waiting") == [0, 0, 0]
    assert sorted(world.asked) == ["a", "r0", "r1"]


def test_what_was_known_long_ago_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a", "b")
    world.scrape()
    world.answer_s = KAFKA_BUDGET_S + 1  # an answer, but only one a look
    values = world.scrape(after_s=KAFKA_KNOWN_S + 1)
    assert len(world.asked) == 1
    assert len(found(values, "lag_records", stage="sink")) == 1


def test_two_scrapes_at_once_cost_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, "a")
    first = world.scrape()
    assert world.scrape(after_s=0.5) is first
    assert world.asked == []


@pytest.mark.parametrize(("minutes", "told"), [(-1, []), (0, []), (1, [1])])
def test_an_enrichment_is_told_until_its_account_is_rolled_back(
    monkeypatch: pytest.MonkeyPatch, minutes: int, told: list[int]
) -> None:
    world = World(monkeypatch)
    gone = job("a", status=JobStatus.ROLLED_BACK)
    world.jobs = [gone]
    at = gone.updated_at + dt.timedelta(minutes=minutes)
    done = {"finished_at": at, "updated_at": at, "rows": 5, "rows_total": 5, "outcomes": {}, "deleted_references": 0}
    world.enrichments.documents = [{"_id": "a", **done}, {"_id": "b", **done}]
    values = world.scrape()
    assert found(values, "enrichment_progress_ratio", account="a") == told
    assert found(values, "enrichment_progress_ratio", account="b") == [1]
