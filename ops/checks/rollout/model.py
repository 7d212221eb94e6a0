"""Pure: a rollout's report, from jobs, flags, preflights and the plan. The time arrives as `now`."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from shlex import quote

from schemas.vocabulary import JobStatus

RUN_TIME_MAX = timedelta(hours=24)  # the contract's, for the largest account; the due time of a run without a plan
LATE_SHARE = 0.25  # of the time it was given: so much later is at risk, more is off track
STALLED_AFTER = timedelta(minutes=15)  # without a row more, or a sign of a runner
TOO_EARLY = timedelta(minutes=2)  # a run's first minutes are start-up, and do not show its rate
HORIZON = timedelta(days=3650)  # what would be over later has no date: something has to change first
FORECAST_DAYS = 14  # the rate of the last days with progress, within this many days


class State(StrEnum):
    """The state of an account in the rollout. Printed and stored: add values, never rename one."""

    BACKLOG = "backlog"  # no run yet, or rolled back
    ON_TRACK = "on_track"
    AT_RISK = "at_risk"
    OFF_TRACK = "off_track"
    PAUSED = "paused"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Run:
    """An account's last job, partial replays left out. Times are aware UTC."""

    status: JobStatus
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    rows_total: int
    rows_done: int
    has_runner: bool = True
    error: str = ""


@dataclass(frozen=True, slots=True)
class Preflight:
    """An account's last preflight: the checks that failed (none: it may start), and the rows it counted."""

    at: datetime
    failed: tuple[str, ...]
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """All that is known of an account."""

    company_sso_id: str
    flag: bool = False
    run: Run | None = None
    preflight: Preflight | None = None
    due: date | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """What blocks an account's next step, and the team that has to act."""

    name: str
    turn: str
    what: str


@dataclass(frozen=True, slots=True)
class Line:
    """One account in the report."""

    company_sso_id: str
    state: State
    why: str
    rows_total: int | None  # None: not counted yet
    rows_done: int
    due: date | None
    ends_at: datetime | None  # of a run: when it will be, or was, over
    gate: Gate | None

    @property
    def rows_left(self) -> int | None:
        """Rows that have no bin yet; None if they have not been counted."""
        return None if self.rows_total is None else max(0, self.rows_total - self.rows_done)


@dataclass(frozen=True, slots=True)
class Day:
    """The end of a day: rows done and rows known of, both since the beginning."""

    day: date
    done: int
    known: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """When the known rows will be done, with the basis; `day` None: unknown."""

    day: date | None
    rows_per_day: float
    basis: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole report."""

    at: datetime
    lines: tuple[Line, ...]
    burn_up: tuple[Day, ...]
    forecast: Forecast
    counts: Mapping[State, int] = field(default_factory=dict)

    @property
    def rows_done(self) -> int:
        """Rows that have a bin, over all accounts."""
        return sum(line.rows_done for line in self.lines)

    @property
    def rows_left(self) -> int:
        """Rows left, of the accounts whose rows have been counted."""
        return sum(line.rows_left or 0 for line in self.lines)

    @property
    def uncounted(self) -> int:
        """Accounts whose rows have not been counted yet."""
        return sum(line.rows_total is None for line in self.lines)


def rollout(accounts: Iterable[Account], now: datetime) -> Rollout:
    """Return the report as of `now` (aware UTC)."""
    known = sorted(accounts, key=lambda account: account.company_sso_id)
    lines = tuple(line_of(account, now) for account in known)
    days = burn_up(known, now)
    left = sum(line.rows_left or 0 for line in lines)
    counted = Counter(line.state for line in lines)
    return Rollout(now, lines, days, forecast(days, left, now), {state: counted[state] for state in State})


def line_of(account: Account, now: datetime) -> Line:
    """Return an account's line."""
    state, why, ends_at = state_of(account, now)
    run, seen = account.run, account.preflight
    counts = run is not None and run.status is not JobStatus.ROLLED_BACK
    total = run.rows_total if run is not None and counts else seen.rows if seen is not None else None
    done = run.rows_done if run is not None and counts else 0
    gate = None if state is State.COMPLETED else gate_of(account, state)
    return Line(account.company_sso_id, state, why, total, done, account.due, ends_at, gate)


def state_of(account: Account, now: datetime) -> tuple[State, str, datetime | None]:
    """Return the account's state, why, and the end of its run, estimated or actual."""
    run = account.run
    overdue = account.due is not None and now.date() > account.due
    if run is None or run.status is JobStatus.ROLLED_BACK:
        before = "rolled back" if run is not None else "not started"
        if overdue:
            return State.OFF_TRACK, f"{before}, and due {account.due}", None
        return State.BACKLOG, before, None
    if run.status is JobStatus.COMPLETED:
        return State.COMPLETED, "completed", run.finished_at
    if run.status is JobStatus.HALTED:
        return State.PAUSED, f"halted: {run.error or 'no reason given'}", None
    if run.status is JobStatus.FAILED:
        return State.OFF_TRACK, f"failed: {run.error or 'no reason given'}", None
    return _running(account, run, now)


def _running(account: Account, run: Run, now: datetime) -> tuple[State, str, datetime | None]:
    due = (
        datetime.combine(account.due, datetime.max.time(), now.tzinfo) if account.due else run.started_at + RUN_TIME_MAX
    )
    if not run.has_runner:
        return State.AT_RISK, "waits for a runner", None
    if now - run.updated_at > STALLED_AFTER:
        return State.OFF_TRACK, f"no progress since {run.updated_at:%Y-%m-%d %H:%M} UTC", None
    elapsed = now - run.started_at
    if run.rows_done <= 0 or elapsed < TOO_EARLY:
        return State.ON_TRACK, "has just begun", None
    done = f"{100 * run.rows_done // max(run.rows_total, 1)} % done"
    left = max(0, run.rows_total - run.rows_done)
    left_s = elapsed.total_seconds() * left / run.rows_done
    if left_s > HORIZON.total_seconds():
        return State.OFF_TRACK, f"{done}, not over within {HORIZON.days // 365} years at this pace", None
    ends_at = now + timedelta(seconds=left_s)
    late = ends_at - due
    summary = f"{done}, over by {ends_at:%Y-%m-%d %H:%M} UTC"
    if late <= timedelta(0):
        return State.ON_TRACK, summary, ends_at
    given = max(due - run.started_at, timedelta(hours=1))
    return (
        (State.AT_RISK if late <= LATE_SHARE * given else State.OFF_TRACK),
        f"{summary}, due {due:%Y-%m-%d %H:%M}",
        ends_at,
    )


# The team that fixes a preflight's finding, by the beginning of the check's name; the first that fits.
TURNS = (
    ("contacts", "contact migration"),
    ("source", "CRM database"),
    ("user_directory", "identity"),
    ("kafka", "platform"),
    ("schema_registry", "platform"),
    ("mongodb", "platform"),
)
OPERATIONS, PRODUCT, NOBODY = "operations", "product", "nobody"


def gate_of(account: Account, state: State) -> Gate:
    """Return what an account that is not completed waits for, and the team that is next."""
    run, name = account.run, quote(account.company_sso_id)
    if run is not None and run.status is JobStatus.IN_PROGRESS:
        if not run.has_runner:
            return Gate("runner", OPERATIONS, "start a runner: crm-replay runner")
        if state is State.OFF_TRACK:
            return Gate("pace", OPERATIONS, f"see why it is late: crm-replay status --account {name}")
        return Gate("run", NOBODY, "the run is in progress")
    if run is not None and run.status is JobStatus.HALTED:
        return Gate("halted", OPERATIONS, f"see the cause, then crm-replay resume --account {name}")
    if run is not None and run.status is JobStatus.FAILED:
        return Gate("failed", OPERATIONS, f"crm-replay verify --account {name} names the rows")
    if account.preflight is None:
        return Gate("preflight", OPERATIONS, f"crm-replay preflight --account {name}")
    if account.preflight.failed:
        turns = dict.fromkeys(turn_of(check) for check in account.preflight.failed)
        return Gate("preflight", ", ".join(turns), f"fix {', '.join(account.preflight.failed)}, then preflight again")
    if not account.flag:
        return Gate("flag", PRODUCT, f"crm-replay flag --account {name} on")
    return Gate("trigger", OPERATIONS, f"crm-replay trigger --account {name}")


def turn_of(check: str) -> str:
    """Return the team that fixes a failed check of the preflight."""
    return next((turn for prefix, turn in TURNS if check.startswith(prefix)), OPERATIONS)


def burn_up(accounts: Sequence[Account], now: datetime) -> tuple[Day, ...]:
    """Return the rows done and known of at the end of each day, from the first job's day to today.

    A run's rows count on the day on which it ended; those of one in progress, today; known from its first day.
    """
    done: Counter[date] = Counter()
    known: Counter[date] = Counter()
    for account in accounts:
        run = account.run
        if run is None or run.status is JobStatus.ROLLED_BACK:
            continue
        ended = (run.finished_at or run.updated_at).date() if run.status is not JobStatus.IN_PROGRESS else now.date()
        done[ended] += run.rows_done
        known[run.started_at.date()] += run.rows_total
    if not known:
        return ()
    first = min((*known, *done))
    days = (now.date() - first).days
    found = []
    done_so_far = known_so_far = 0
    for number in range(days + 1):
        day = first + timedelta(days=number)
        done_so_far += done[day]
        known_so_far += known[day]
        found.append(Day(day, done_so_far, known_so_far))
    return tuple(found)


def forecast(days: Sequence[Day], rows_left: int, now: datetime) -> Forecast:
    """Return when the rows that are left will be done, at the pace of the last days."""
    if rows_left == 0:
        return Forecast(now.date() if days else None, 0.0, "every row that has been counted is done")
    window = days[-FORECAST_DAYS:]
    if not window or window[-1].done == 0:
        return Forecast(None, 0.0, "no run has ended yet, so the pace is unknown")
    before = days[-FORECAST_DAYS - 1].done if len(days) > FORECAST_DAYS else 0
    rows = window[-1].done - before
    if rows <= 0:
        return Forecast(None, 0.0, f"no row was done in the last {len(window)} days")
    a_day = rows / len(window)
    basis = f"{rows:,} rows in the last {len(window)} day{'s' if len(window) > 1 else ''}, idle ones included"
    days_left = math.ceil(rows_left / a_day)
    if days_left > HORIZON.days:
        return Forecast(None, a_day, f"{basis}: at this pace not within {HORIZON.days // 365} years")
    return Forecast(now.date() + timedelta(days=days_left), a_day, basis)
