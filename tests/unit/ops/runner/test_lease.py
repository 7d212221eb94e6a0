"""On what terms a job is released after an error."""

from dataclasses import replace

import pytest

from ops.jobs.jobs import NEVER, IllegalTransitionError, Job
from ops.jobs.store import JobChangedError, LeaseLostError
from ops.runner.lease import (
    ATTEMPTS_MAX,
    PAUSE_MAX_S,
    HaltedError,
    InterruptedRunError,
    OutageError,
    Terms,
    terms_after,
)
from producer.survey import UnreplayableIdsError
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.vocabulary import JobStatus

JOB = Job(
    "j", "a", JobStatus.IN_PROGRESS, 1, 4, 9, 9, NEVER, "", "", "", False, None, (), 10, 0, 0, 0, 0, {}, {}, 0, 0.0,
    None, NEVER, NEVER, NEVER, None, NEVER, None, owner="o", fence=1,
)  # fmt: skip
OUTAGES = (ServiceUnreachableError("Kafka is away"), OutageError("MongoDB is away"))
DEFECTS = (BadInputError("there is no table"), ReplayError("a process gave up"), ValueError("a defect"))


@pytest.mark.parametrize(
    "error",
    [HaltedError("x"), LeaseLostError("x"), JobChangedError("x"), IllegalTransitionError("x")],
)
def test_what_the_jobs_document_says_already_is_left_as_it_is(error: BaseException) -> None:
    assert terms_after(error, JOB, JOB) is None
    assert terms_after(error, replace(JOB, partial=True), JOB) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InterruptedRunError("interrupted", "again"), "interrupted: again"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
        (SystemExit(1), "ended by SystemExit"),
    ],
)
def test_what_was_asked_for_is_no_attempt_that_failed_and_yet_is_said(error: BaseException, said: str) -> None:
    assert terms_after(error, JOB, replace(JOB, attempts=2)) == Terms(attempts=2, error=said)


@pytest.mark.parametrize("error", [InterruptedRunError("x"), OutageError("x"), ReplayError("x"), KeyError("x")])
def test_a_replay_of_chosen_rows_fails_at_once_for_no_other_runner_knows_them(error: Exception) -> None:
    terms = terms_after(error, replace(JOB, partial=True), JOB)
    assert terms.fail
    assert terms.error


@pytest.mark.parametrize("error", OUTAGES)
def test_an_outage_is_waited_for_however_long_with_growing_pauses(error: Exception) -> None:
    job, pauses = JOB, []
    for _ in range(100):
        terms = terms_after(error, job, job)
        assert not terms.fail
        assert terms.error == str(error)
        pauses.append(terms.pause_s)
        job = replace(job, attempts=terms.attempts)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == PAUSE_MAX_S


@pytest.mark.parametrize("error", DEFECTS)
def test_anything_else_is_tried_again_a_few_times_and_then_the_job_has_failed(error: Exception) -> None:
    job = JOB
    for attempt in range(1, ATTEMPTS_MAX + 1):
        terms = terms_after(error, job, job)
        assert (terms.attempts, terms.fail) == (attempt, attempt == ATTEMPTS_MAX)
        assert terms.error == (str(error) if isinstance(error, ReplayError) else "ended by ValueError")
        job = replace(job, attempts=attempt)


def test_ids_that_no_replay_can_hold_fail_the_job_at_once() -> None:
    error = UnreplayableIdsError("1 audit row in scope has an id below 1 (-5)", "leave it out")
    terms = terms_after(error, JOB, JOB)
    assert terms == Terms(attempts=1, error=str(error), fail=True)


def test_a_runner_that_got_on_with_the_job_begins_a_new_row_of_attempts() -> None:
    before = replace(JOB, attempts=ATTEMPTS_MAX - 1, records_migrated=5)
    for now in (replace(before, records_skipped=1), replace(before, run=2)):
        terms = terms_after(ReplayError("x"), before, now)
        assert (terms.attempts, terms.fail) == (1, False)
