"""What may be asked of an account in which state, and how many of its persons have to be contacts."""

import itertools

import pytest

from ops.jobs.guards import HTTP_STATUS, Action, Coverage, RespCode, contacts_refusal, why_not
from ops.jobs.jobs import TRANSITIONS
from schemas.vocabulary import JobStatus

STATES: tuple[JobStatus | None, ...] = (None, *JobStatus)
# Every pair of action and state that is refused, by the code of the refusal; what is not named is allowed.
REFUSED: dict[RespCode, set[tuple[Action, str | None]]] = {
    RespCode.JOB_NOT_FOUND: {
        (Action.HALT, None), (Action.RESUME, None), (Action.RERUN, None), (Action.ROLLBACK, None),
        (Action.VERIFY, None), (Action.DLQ_RETRY, None),
    },
    RespCode.JOB_ALREADY_RUNNING: {
        (Action.TRIGGER, "in_progress"), (Action.RESUME, "in_progress"), (Action.RERUN, "in_progress"),
        (Action.ROLLBACK, "in_progress"), (Action.VERIFY, "in_progress"), (Action.DLQ_RETRY, "in_progress"),
    },
    RespCode.ALREADY_COMPLETED: {(Action.TRIGGER, "completed")},
    RespCode.ILLEGAL_TRANSITION: {
        (Action.TRIGGER, "halted"), (Action.TRIGGER, "failed"),
        (Action.HALT, "halted"), (Action.HALT, "completed"), (Action.HALT, "failed"), (Action.HALT, "rolled_back"),
        (Action.RESUME, "completed"), (Action.RESUME, "rolled_back"),
        (Action.RERUN, "halted"), (Action.RERUN, "rolled_back"),
        (Action.VERIFY, "rolled_back"), (Action.DLQ_RETRY, "rolled_back"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("action", "status"), list(itertools.product(Action, STATES)))
def test_every_action_in_every_state_is_allowed_or_refused_with_its_code(
    action: Action, status: JobStatus | None
) -> None:
    expected = next((code for code, pairs in REFUSED.items() if (action, status) in pairs), None)
    refused = why_not(action, "a", status, flag_enabled=True)
    if expected is None:
        assert refused is None
    else:
        assert (refused.resp_code, bool(refused.what), bool(refused.to_do)) == (expected, True, True)


def test_an_action_that_is_allowed_is_a_transition_of_the_table() -> None:
    targets = {Action.HALT: "halted", Action.RESUME: "in_progress", Action.RERUN: "in_progress"}
    for action, status in itertools.product(targets, JobStatus):
        if why_not(action, "a", status, flag_enabled=True) is None:
            assert targets[action] in TRANSITIONS[status]


@pytest.mark.parametrize("status", STATES)
def test_without_the_flag_nothing_is_triggered_and_everything_else_goes_on(status: JobStatus | None) -> None:
    refused = why_not(Action.TRIGGER, "a", status, flag_enabled=False)
    assert refused.resp_code is RespCode.FLAG_DISABLED
    for action in set(Action) - {Action.TRIGGER}:
        assert why_not(action, "a", status, flag_enabled=False) == why_not(action, "a", status, flag_enabled=True)


def test_every_refusal_has_an_http_status() -> None:
    assert set(HTTP_STATUS) == set(RespCode)
    assert HTTP_STATUS[RespCode.FLAG_DISABLED] == 403
    assert HTTP_STATUS[RespCode.CONTACTS_NOT_MIGRATED] == 422


@pytest.mark.parametrize(
    ("persons", "found", "pct", "enough"),
    [
        (0, 0, 100.0, True),
        (100, 99, 99.0, True),
        (10_000, 9_899, 98.99, False),
        (10_000, 9_900, 99.0, True),
        (1, 0, 0.0, False),
        (99, 98, 98.98, False),
    ],
)
def test_ninety_nine_of_a_hundred_persons_have_to_be_contacts(
    persons: int, found: int, pct: float, enough: bool
) -> None:
    coverage = Coverage(1_000, persons, found, complete=True, missing=("7",) if found < persons else ())
    assert (coverage.pct, coverage.enough) == (pct, enough)
    refused = contacts_refusal("a", coverage)
    assert (refused is None) == enough
    if refused is not None:
        assert f"{pct:.2f} %" in refused.what
        assert "7" in refused.what


def test_a_refusal_says_whether_it_has_seen_all_rows() -> None:
    for complete, says in ((True, "from all: 30 rows"), (False, "from a sample: 30 rows")):
        refused = contacts_refusal("a", Coverage(30, 10, 1, complete=complete))
        assert says in refused.what
