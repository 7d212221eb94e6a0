"""Every answer and request of the console API (`console_api.py` has the routes), as pydantic models.

Times are RFC 3339 in UTC. `null` means «not known», never zero. Counts are of source rows unless their name differs.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from ops.control.activity_logs import AccountId, Moment
from ops.jobs.enrichments import EnrichmentView
from schemas.topics import ACCOUNT_LENGTH_MAX
from schemas.vocabulary import JobStatus
from sink.failure_rate import FAILURE_RATE_MAX

AUDIT_IDS_MAX = 10_000  # of one retry from the console; more with the command line
EXACT_MAX = 2**53 - 1  # a JSON number is exact up to here (RFC 7493), in the browser for certain
REASON_LENGTH_MAX = 500
NOT_STARTED = "not_started"


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):  # a text of digits is no number in JSON
        raise ValueError("an audit id is a number")
    return value


AuditId = Annotated[int, Field(ge=1, le=EXACT_MAX), BeforeValidator(_number)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


# ---- what is shown ---------------------------------------------------------------------------------------------------


class Session(_Answer):
    """Who is signed in."""

    user: str
    version: str = Field(description="of the control plane")
    now: AwareDatetime = Field(description="the server's clock; ages are shown against it")


class JobView(_Answer):
    """A job as the operator sees it."""

    job_id: str
    company_sso_id: str
    status: JobStatus
    run: int
    partial: bool = Field(description="replays chosen rows of a history that another job has replayed")
    waiting: bool = Field(description="in progress, but no runner owns it (yet, or any more)")
    progress_pct: float = Field(ge=0, le=100)
    records_total: int
    records_migrated: int
    records_skipped: int
    records_failed: int
    records_foreign: int = Field(description="dead letters that are no rows of the account")
    records_attempted: int = Field(0, description="migrated, skipped and failed")
    records_duplicate: int = Field(0, description="of the skipped: logs in place from earlier runs")
    records_repaired: int = Field(0, description="of migrated and skipped: rows that had failed before")
    records_late: int = Field(0, description="of the attempted: found when the gaps were read again")
    actors_fell_back: int = Field(0, description="of the migrated: logs whose actor is the deleted user")
    documents: int | None = Field(None, description="of the replay in MongoDB, when they were counted last")
    documents_at: AwareDatetime | None = None
    skips_by_reason: dict[str, int]
    failures_by_cause: dict[str, int]
    accuracy_pct: float | None
    enrichment: EnrichmentView | None = Field(None, description="of association logs; null: not reached yet")
    partitions: int
    last_audit_id: int
    top_audit_id: int
    date_range_start: AwareDatetime | None
    triggered_by: str
    created_at: AwareDatetime
    started_at: AwareDatetime
    updated_at: AwareDatetime
    finished_at: AwareDatetime | None
    heartbeat_at: AwareDatetime | None = Field(description="last sign of life of a runner")
    error: str | None
    failure_bound: float | None = Field(None, description="of the failure rate, where an operator has raised it")
    failure_halt: bool = Field(False, description="halted because too many records failed")


class Flag(_Answer):
    """The account's migration flag; off by default."""

    enabled: bool
    changed_at: AwareDatetime | None
    changed_by: str | None


class AccountRow(_Answer):
    """A line in the list of accounts."""

    company_sso_id: str
    flag_enabled: bool
    status: Literal["not_started"] | JobStatus
    job: JobView | None = Field(description="the one in progress, else the one that started last")


class AccountList(_Answer):
    """Accounts that have a job or a flag, in the order of their ids."""

    accounts: list[AccountRow]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page; null on the last one")


class Pace(_Answer):
    """How fast the job in progress goes."""

    rows_per_s: float | None = Field(description="over the last half minute or so")
    rows_per_s_average: float | None = Field(description="since the run began")
    eta_s: float | None = Field(description="seconds left at the present rate")


class StageName(StrEnum):
    """The places where rows can be, in their order."""

    PRODUCER = "producer"
    PROCESSORS = "processors"
    SINK = "sink"
    DEAD_LETTERS = "dead_letters"


class Stage(_Answer):
    """A box in the picture of the flow: how much it has done, and how much waits in front of it.

    producer: rows read from the source of `total`, without lag. processors: records of the replay topic. sink:
    records of the outcomes topic. dead_letters: `done` is null, `waiting` the letters that the topic holds, resolved
    ones among them.
    """

    name: StageName
    topic: str | None = Field(description="what the stage reads from; null: the source database")
    done: int | None
    total: int | None
    waiting: int | None = Field(description="the lag; null: not known, e.g. Kafka does not answer")


class Action(_Answer):
    """An action on the account and whether it is allowed now; `why_not` is shown for a disabled button."""

    name: Literal["trigger", "halt", "resume", "rerun", "rollback", "verify", "preflight", "dlq-retry"]
    allowed: bool
    why_not: str | None


class TaskStatus(StrEnum):
    """State of a task that a runner does for the console."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class TaskView(_Answer):
    """A preflight, a verification, a retry or a roll back that a runner does on request."""

    task_id: str
    company_sso_id: str
    kind: str = Field(description="preflight, verify, dlq_retry, rollback")
    status: TaskStatus
    requested_by: str
    requested_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    progress: dict[str, Any] = Field(description="done, total, text: its progress while it runs; else {}")
    result: dict[str, Any] | None = Field(
        description=(
            "when done, what the command prints with --json. preflight: {ok, checks: [{name, verdict, found, to_do}]}; "
            "verify: {equal, rows, found: {kind: count}, …}"
        )
    )
    error: str | None


class Rollback(_Answer):
    """A roll back that is deleting documents now."""

    removed: int
    remaining: int | None
    started_at: AwareDatetime
    by: str
    stalled: bool = Field(description="no progress for half a minute: roll back again, it continues")


class AccountDetail(_Answer):
    """All that the account's page shows; also the data of each `account` event."""

    company_sso_id: str
    status: Literal["not_started"] | JobStatus
    flag: Flag
    job: JobView | None
    history: list[JobView] = Field(description="all jobs, the last started first, 20 at most")
    pace: Pace | None = Field(description="null unless a job is in progress")
    stages: list[Stage] = Field(description="one of each name, in the order of the flow; [] if there never was a job")
    preflight: TaskView | None = Field(description="the last finished one")
    verification: TaskView | None = Field(description="the last finished one")
    tasks: list[TaskView] = Field(description="queued or running")
    rollback: Rollback | None
    actions: list[Action]


class AccountsChanged(_Answer):
    """The data of an `accounts` event: all accounts after connecting, later those that have changed."""

    complete: bool = Field(description="whether these are all accounts, so that what the page shows is to be replaced")
    accounts: list[AccountRow]


class AuditEntry(_Answer):
    """An entry of the audit log: who, what, when, and the result."""

    at: AwareDatetime
    who: str
    action: str
    company_sso_id: str
    outcome: str = Field(description="ok, or the resp_code of the refusal")
    detail: dict[str, Any]


class AuditEntries(_Answer):
    """The newest first."""

    entries: list[AuditEntry]


# ---- dead letters ----------------------------------------------------------------------------------------------------


class LetterSource(_Answer):
    """Where the record was read."""

    topic: str
    partition: int
    offset: int


class LetterView(_Answer):
    """A dead letter without its payload; holds no personal data."""

    offset: int = Field(description="on the dead-letter topic; names the letter")
    audit_id: int | None
    cause: str
    detail: str
    failed_at: AwareDatetime
    run: int
    source: LetterSource
    payload_bytes: int
    failures: int = Field(description="how often the row has failed, this time included")
    repeats: int
    state: Literal["waiting", "resolved", "no_row"]
    why: str = Field(description="of the state, where it is resolved")


class LetterPage(_Answer):
    """Dead letters, the newest first. `total`, `states` and `causes` are of those that are read."""

    company_sso_id: str
    total: int = Field(description="of this cause, or of all without a cause")
    states: dict[str, int] = Field(description="how many of `total` are in each state")
    causes: dict[str, int] = Field(description="of all letters, of any cause")
    letters: list[LetterView]
    next_cursor: str | None
    truncated: bool = Field(description="the topic holds more than is read here; see crm-replay dlq list")


class LetterDetail(LetterView):
    """A dead letter with its payload, which is personal data of the CRM: reading one goes to the audit log."""

    key: str
    payload: dict[str, Any] = Field(description="`kind`, `bytes`, and `fields` or `hex`")


# ---- requests --------------------------------------------------------------------------------------------------------


class TriggerRequest(_Request):
    """Start the account's migration."""

    company_sso_id: AccountId
    date_range_start: Moment | None = Field(None, description="leave out rows created before this")


class AccountRequest(_Request):
    """halt, resume, rerun, verify, preflight."""

    company_sso_id: AccountId
    reason: str = Field("", max_length=REASON_LENGTH_MAX, description="kept in the audit log; of a halt in the job too")


class ResumeRequest(AccountRequest):
    """Continue a job that was halted or has failed."""

    # The validator's rule, as a client reads it: no raised bound, or a reason that is not blank.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"failure_bound": {"type": "null"}}},
                {"required": ["reason"], "properties": {"reason": {"type": "string", "pattern": r"\S"}}},
            ]
        }
    )

    failure_bound: float | None = Field(
        None,
        gt=FAILURE_RATE_MAX,
        le=1,
        description="of the failure rate, until the next resume; needs a reason",
    )

    @model_validator(mode="after")
    def _with_reason(self) -> "ResumeRequest":
        if self.failure_bound is not None and not self.reason.strip():
            raise ValueError("a raised failure_bound needs a reason")
        return self


class RollbackRequest(_Request):
    """Delete what the replay has written for the account."""

    company_sso_id: AccountId
    confirm: str = Field(max_length=ACCOUNT_LENGTH_MAX, description="the company_sso_id, typed again")
    reason: str = Field("", max_length=REASON_LENGTH_MAX)


class RetryRequest(_Request):
    """Replay the rows of dead letters; without `audit_ids` all that wait, of one cause or of any."""

    company_sso_id: AccountId
    cause: str | None = Field(None, max_length=100)
    audit_ids: list[AuditId] | None = Field(None, min_length=1, max_length=AUDIT_IDS_MAX)
    force: StrictBool = Field(False, description="rows too that have been retried in vain three times")


class FlagRequest(_Request):
    """Turn the account's migration flag on or off."""

    company_sso_id: AccountId
    enabled: StrictBool


# ---- what has been done ----------------------------------------------------------------------------------------------


class ActionDone(_Answer):
    """What a POST has done: the job as it is now, or the task that was queued."""

    company_sso_id: str
    action: str
    job: JobView | None = None
    task: TaskView | None = None


class RollbackDone(_Answer):
    """All documents are deleted."""

    company_sso_id: str
    records_removed: int
