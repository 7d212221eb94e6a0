"""What keeps a run's enrichment from its end, and what then becomes of the run: no server, the enrichment is a fake."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, OperationFailure

from ops.enrich.run import Enrichment, EnrichmentLostError
from ops.jobs.store import LeaseLostError
from ops.progress import PlainView
from ops.runner import enrichment
from ops.runner.enrichment import Place, RunEnrichment
from ops.runner.lease import InterruptedRunError
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.vocabulary import JobStatus
from sink.writer import ServerStateError

AWAY = ServiceUnreachableError("PostgreSQL is away", "start it")


def job(**known: Any) -> Any:
    fields = {"company_sso_id": "a", "run": 7, "fence": 2, "top_audit_id": 100, "date_range_start": None}
    return SimpleNamespace(**{**fields, "status": JobStatus.IN_PROGRESS, "enrichment": None, **known})


@dataclass
class Stage:
    """A run at its enrichment: what each try comes to, and what was done about it."""

    tries: list[Any] = field(default_factory=list)  # an exception, or something to call with `on_step`, a try each
    status: JobStatus = JobStatus.IN_PROGRESS
    check_raises: Exception | None = None
    noted: list[dict[str, Any]] = field(default_factory=list)
    waited_for: list[Exception] = field(default_factory=list)
    scopes: list[Any] = field(default_factory=list)

    def note_enrichment(self, job: Any, fields: dict[str, Any]) -> Any:
        self.noted.append(fields)
        return SimpleNamespace(**{**vars(job), "enrichment": fields, "status": self.status})

    def check(self) -> None:
        if self.check_raises is not None:
            raise self.check_raises

    def enriching(self, before: Any, gaps: Any = None) -> RunEnrichment:
        place = Place(None, None, self, None, None)  # type: ignore[arg-type]
        return RunEnrichment(before, gaps, place, PlainView(), self.check, self.waited_for.append)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()

    class FakeRun:
        def __init__(self, _account: str, scope: Any, *_: Any, on_step: Callable[[Enrichment], None], **__: Any):
            stage.scopes.append(scope)
            self._on_step = on_step

        def __enter__(self) -> "FakeRun":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def enrich(self) -> Enrichment:
            happens = stage.tries.pop(0) if stage.tries else None
            if isinstance(happens, Exception):
                raise happens
            state = Enrichment("a", 100, outcomes=Counter(patched=3), deleted_references=1)
            if happens is not None:
                happens()
            self._on_step(state)
            return state

    monkeypatch.setattr(enrichment, "Run", FakeRun)
    monkeypatch.setattr(enrichment, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(enrichment, "SAVE_EVERY_S", 0.0)
    yield stage
    assert not stage.tries


def test_its_counts_are_in_the_job_and_its_scope_is_the_runs(stage: Stage) -> None:
    done = stage.enriching(job()).run()
    assert (done.enrichment["state"], done.enrichment["outcomes"]) == ("done", {"patched": 3})
    assert [noted["state"] for noted in stage.noted] == ["running", "running", "done"]
    (scope,) = stage.scopes
    assert (scope.run, scope.fence, scope.top, scope.gaps) == (7, 2, 100, None)
    stage.enriching(job(), [(3, 4)]).run()
    assert stage.scopes[-1].gaps == ((3, 4),)


def test_what_is_in_words_is_logged_in_words_and_the_rest_with_its_trace(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.tries = [BadInputError("no such column", "correct the mapping"), OperationFailure("no", 13), KeyError("x")]
    for _ in range(3):
        stage.enriching(job()).run()
    traced = {record.getMessage(): bool(record.exc_info) for record in caplog.records}
    assert traced == {
        "the enrichment is given up (no such column: correct the mapping)": False,
        "the enrichment is given up (MongoDB refuses (code 13): see its log and the runner's rights)": False,
        "the enrichment is given up (KeyError)": True,
    }


def test_what_may_pass_is_tried_again(stage: Stage) -> None:
    stage.tries = [AWAY, OperationFailure("stepped down")]
    assert stage.enriching(job()).run().enrichment["state"] == "done"


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([AWAY] * 3, "PostgreSQL is away: start it"),
        ([ReplayError("Kafka does not answer")] * 3, "Kafka does not answer"),
        ([EnrichmentLostError("taken over")] * 3, "taken over"),
        ([BadInputError("no such column", "correct the mapping")], "no such column: correct the mapping"),
        (
            [OperationFailure("not authorized on cdp", 13)],
            "MongoDB refuses (code 13): see its log and the runner's rights",
        ),
        ([ValueError("budi@example.com")], "ValueError"),  # its text may hold a row's values
    ],
)
def test_what_lasts_costs_the_run_nothing_and_is_told(stage: Stage, errors: list[Exception], said: str) -> None:
    stage.tries = list(errors)
    given_up = stage.enriching(job()).run()
    assert (given_up.enrichment["state"], given_up.enrichment["error"]) == ("pending", said)


def test_a_mongodb_that_is_away_is_waited_for_as_in_the_rest_of_the_run(stage: Stage) -> None:
    in_words = ServiceUnreachableError("MongoDB does not answer (reading the contacts)", "start it")
    in_words.__cause__ = AutoReconnect("closed")
    for away in (
        AutoReconnect("closed"),
        in_words,
        ServerStateError("MongoDB does not accept writes at present (code 133)"),
        OperationFailure("no primary", 133),
    ):
        stage.tries, stage.waited_for = [away for _ in range(9)], []
        assert stage.enriching(job()).run().enrichment["state"] == "done"
        assert len(stage.waited_for) == 9


def test_an_outage_is_over_when_the_enrichment_has_got_on(stage: Stage) -> None:
    answers: list[int] = []
    enriching = RunEnrichment(
        job(), None, Place(None, None, stage, None, None),  # type: ignore[arg-type]
        PlainView(), stage.check, stage.waited_for.append, lambda: answers.append(1),
    )  # fmt: skip
    for cursor in (5, 5, 8, 8, 9):
        enriching._step(Enrichment("a", 100, cursor=cursor))
    assert len(answers) == 2


@pytest.mark.parametrize("stop", [InterruptedRunError("interrupted"), LeaseLostError("another's", "let go")])
def test_a_runner_that_has_to_stop_stops_in_the_middle(stage: Stage, stop: Exception) -> None:
    def stop_now() -> None:
        stage.check_raises = stop

    stage.tries = [stop_now]
    with pytest.raises(type(stop)):
        stage.enriching(job()).run()
    assert [noted["state"] for noted in stage.noted] == ["running"]


def test_a_job_that_is_halted_meanwhile_is_handed_back_as_that(stage: Stage) -> None:
    def halt() -> None:
        stage.status = JobStatus.HALTED

    stage.tries = [halt]
    assert stage.enriching(job()).run().status is JobStatus.HALTED
    assert stage.noted[-1]["state"] == "running"


def test_a_runner_that_takes_over_repeats_no_enrichment_that_was_done(stage: Stage) -> None:
    before = job(enrichment={"state": "done"})
    assert stage.enriching(before).run() is before
    assert stage.enriching(job(), []).run().enrichment is None  # no rows were chosen
    assert stage.scopes == []
    assert stage.enriching(job(enrichment={"state": "pending", "error": "x"})).run().enrichment["error"] is None


def test_a_run_that_does_not_enrich_says_so(stage: Stage) -> None:
    assert stage.enriching(job()).off().enrichment["state"] == "off"
    assert stage.scopes == []
