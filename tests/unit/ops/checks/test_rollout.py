"""The pure part of the rollout's report: states, gates, burn-up, forecast, and the plan's file."""

import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.checks.rollout.model import Account, Day, Forecast, Preflight, Run, State, burn_up, forecast, rollout, state_of
from ops.checks.rollout.read import read_plan
from ops.checks.rollout.render import chart, forecast_text, markdown, short
from schemas.errors import BadInputError
from schemas.vocabulary import JobStatus

NOW = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)


def running(hours: float, total: int, done: int, due: date | None = None) -> Account:
    return Account("a", run=Run(JobStatus.IN_PROGRESS, NOW - timedelta(hours=hours), NOW, None, total, done), due=due)


@pytest.mark.parametrize(
    ("account", "state"),
    [
        (running(10, 100, 50), State.ON_TRACK),  # over after 20 of the 24 hours
        (running(10, 100, 40), State.AT_RISK),  # 25 hours
        (running(10, 100, 30), State.OFF_TRACK),  # 33 hours
        (running(10, 100, 30, due=date(2026, 3, 20)), State.ON_TRACK),
        (running(0.01, 100, 1), State.ON_TRACK),  # too early to tell
        (running(0.1, 100, 0), State.ON_TRACK),
    ],
)
def test_a_run_is_held_against_its_due_time(account: Account, state: State) -> None:
    assert state_of(account, NOW)[0] is state


def hours_ago(least: int, most: int) -> st.SearchStrategy[datetime]:
    return st.integers(least * 3600, most * 3600).map(lambda seconds: NOW - timedelta(seconds=seconds))


statuses = st.sampled_from(list(JobStatus))
preflights = st.builds(Preflight, at=st.just(NOW), failed=st.tuples(), rows=st.none() | st.integers(0, 99))
runs = st.builds(
    Run,
    status=statuses,
    started_at=hours_ago(24, 1_000),
    updated_at=hours_ago(0, 23),
    finished_at=st.none() | hours_ago(0, 23),
    rows_total=st.integers(0, 10**8),
    rows_done=st.integers(0, 10**8),
    has_runner=st.booleans(),
)
accounts = st.builds(
    Account,
    company_sso_id=st.text(min_size=1, max_size=5),
    flag=st.booleans(),
    run=st.none() | runs,
    preflight=st.none()
    | st.builds(Preflight, at=st.just(NOW), failed=st.tuples(), rows=st.none() | st.integers(0, 99)),
    due=st.none() | st.dates(date(2026, 1, 1), date(2026, 12, 31)),
)


@given(st.lists(accounts, max_size=8))
def test_every_account_is_in_one_state_and_has_a_gate_until_it_is_completed(found: list[Account]) -> None:
    report = rollout(found, NOW)
    assert sum(report.counts.values()) == len(found)
    for line in report.lines:
        assert (line.gate is None) == (line.state is State.COMPLETED)
    days = report.burn_up
    assert all(before.done <= after.done for before, after in itertools.pairwise(days))
    assert not days or days[-1].day == NOW.date()
    assert markdown(report).count("\n") > len(found)
    forecast_text(report)


def test_rows_count_on_the_day_their_run_ended_and_those_of_a_rolled_back_run_never() -> None:
    day = timedelta(days=1)
    ended = Run(JobStatus.COMPLETED, NOW - 3 * day, NOW, NOW - 2 * day, 100, 100)
    back = Run(JobStatus.ROLLED_BACK, NOW - 5 * day, NOW, NOW, 70, 70)
    found = burn_up([Account("a", run=ended), Account("b", run=back), running(2, 50, 20)], NOW)
    assert [(one.day.day, one.done, one.known) for one in found] == [
        (7, 0, 100),
        (8, 100, 100),
        (9, 100, 100),
        (10, 120, 150),
    ]


def test_a_forecast_goes_by_the_last_days_and_says_so() -> None:
    first = date(2026, 2, 1)
    days = [Day(first + timedelta(days=number), 100 * number, 10_000) for number in range(38)]
    found = forecast(days, 1_000, NOW)
    assert (found.day, found.rows_per_day) == (date(2026, 3, 20), 100)
    assert found.basis == "1,400 rows in the last 14 days, idle ones included"
    idle = [Day(day.day, 100, 10_000) for day in days]
    assert forecast(idle, 1_000, NOW).day is None
    assert forecast([], 5, NOW).basis == "no run has ended yet, so the pace is unknown"
    assert forecast(days, 0, NOW).day == NOW.date()


def test_a_pace_that_would_take_a_lifetime_has_no_day_and_says_so() -> None:
    days = [Day(date(2026, 3, 9), 0, 10**8), Day(date(2026, 3, 10), 1, 10**8)]
    assert forecast(days, 10**8, NOW) == (
        Forecast(None, 0.5, "1 rows in the last 2 days, idle ones included: at this pace not within 10 years")
    )
    crawling = Run(JobStatus.IN_PROGRESS, NOW - timedelta(hours=40), NOW, None, 10**8, 1)
    assert state_of(Account("a", run=crawling), NOW) == (
        State.OFF_TRACK, "0 % done, not over within 10 years at this pace", None,
    )  # fmt: skip


def test_a_plan_is_read_and_what_is_wrong_in_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plan.csv"
    file.write_text("company_sso_id,due\nacme,2026-03-31\n\nbeta,\ngamma\n")
    assert read_plan(str(file)) == {"acme": date(2026, 3, 31), "beta": None, "gamma": None}
    file.write_text("acme,soon\n")
    with pytest.raises(BadInputError, match="line 1"):
        read_plan(str(file))
    with pytest.raises(BadInputError, match="readable CSV"):
        read_plan(str(tmp_path / "none.csv"))


def test_a_chart_of_one_day_and_of_none() -> None:
    assert chart([]) == ""
    assert "polyline" in chart([Day(NOW.date(), 0, 0)])
    assert [short(rows) for rows in (7, 1_500, 2_000_000, 1_250_000_000)] == ["7", "1.5 k", "2 M", "1.2 G"]
