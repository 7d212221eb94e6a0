"""Pure: which actions an account allows now, why not, and how many of its CRM persons have to be contacts."""

from dataclasses import dataclass
from enum import StrEnum

from ops.jobs.jobs import refusal
from schemas.errors import BadInputError
from schemas.vocabulary import JobStatus
from sink.failure_rate import FAILURE_RATE_MAX
from sink.job_counts import percent

COVERAGE_MIN_PCT = 99


class RespCode(StrEnum):
    """Why a request is refused. Answered over HTTP and kept in the audit log: add values, never rename one."""

    FLAG_DISABLED = "FLAG_DISABLED"
    CONTACTS_NOT_MIGRATED = "contacts_not_migrated"
    JOB_ALREADY_RUNNING = "JOB_ALREADY_RUNNING"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    ILLEGAL_TRANSITION = "ILLEGAL_TRANSITION"
    NOTHING_TO_REPLAY = "NOTHING_TO_REPLAY"  # Kafka no longer has what a rerun would read again
    TASK_ALREADY_QUEUED = "TASK_ALREADY_QUEUED"
    ROLLBACK_FAILED = "ROLLBACK_FAILED"


HTTP_STATUS = {
    RespCode.FLAG_DISABLED: 403,
    RespCode.CONTACTS_NOT_MIGRATED: 422,
    RespCode.JOB_ALREADY_RUNNING: 409,
    RespCode.ALREADY_COMPLETED: 409,
    RespCode.JOB_NOT_FOUND: 404,
    RespCode.ILLEGAL_TRANSITION: 409,
    RespCode.NOTHING_TO_REPLAY: 409,
    RespCode.TASK_ALREADY_QUEUED: 409,
    RespCode.ROLLBACK_FAILED: 500,
}


class Action(StrEnum):
    """An action on an account."""

    TRIGGER = "trigger"
    HALT = "halt"
    RESUME = "resume"
    RERUN = "rerun"
    ROLLBACK = "rollback"
    VERIFY = "verify"
    PREFLIGHT = "preflight"
    DLQ_RETRY = "dlq-retry"


# Where an action takes the job.
TARGETS = {
    Action.HALT: JobStatus.HALTED,
    Action.RESUME: JobStatus.IN_PROGRESS,
    Action.RERUN: JobStatus.IN_PROGRESS,
    Action.ROLLBACK: JobStatus.ROLLED_BACK,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an action is refused: its code, what is the matter, and what to do about it."""

    resp_code: RespCode
    what: str
    to_do: str = ""


def require_bound(failure_bound: float | None, reason: str) -> None:
    """Raise BadInputError for a failure rate that no resume takes, or one that is raised without a reason."""
    if failure_bound is None:
        return
    if not FAILURE_RATE_MAX < failure_bound <= 1:
        raise BadInputError(
            f"a failure bound of {failure_bound:g}",
            f"give one above {FAILURE_RATE_MAX:g}, 1 at most: 0.25 is a quarter",
        )
    if not reason.strip():
        raise BadInputError("the failure bound is raised without a reason", "give one: it is kept in the audit log")


def why_not(action: Action, company_sso_id: str, status: JobStatus | None, *, flag_enabled: bool) -> Refusal | None:
    """Return why the action is refused, by status and flag, or None. `status` None: there is no job.

    The contact coverage, and whether Kafka still has what a rerun reads, are checked when the action is executed.
    """
    if action is Action.PREFLIGHT:
        return None
    if action is Action.TRIGGER:
        return _why_not_trigger(company_sso_id, status, flag_enabled)
    if status is None:
        return Refusal(
            RespCode.JOB_NOT_FOUND, f"{company_sso_id} has no job", f"crm-replay trigger --account {company_sso_id}"
        )
    if action in TARGETS:
        return _why_not_change(action, company_sso_id, status)
    if status is JobStatus.IN_PROGRESS:
        return Refusal(
            RespCode.JOB_ALREADY_RUNNING, f"a run of {company_sso_id} is in progress", "try again when it has ended"
        )
    if status is JobStatus.ROLLED_BACK:
        return Refusal(
            RespCode.ILLEGAL_TRANSITION, f"{company_sso_id} has been rolled back", "there is nothing to check"
        )
    return None


def _why_not_trigger(company_sso_id: str, status: JobStatus | None, flag_enabled: bool) -> Refusal | None:
    if not flag_enabled:
        return Refusal(
            RespCode.FLAG_DISABLED,
            f"the migration flag of {company_sso_id} is off",
            f"crm-replay flag --account {company_sso_id} on",
        )
    if status is JobStatus.IN_PROGRESS:
        return Refusal(RespCode.JOB_ALREADY_RUNNING, f"a run of {company_sso_id} is in progress", "wait for it")
    if status is JobStatus.COMPLETED:
        return Refusal(
            RespCode.ALREADY_COMPLETED, f"{company_sso_id} has been migrated", "rerun it, or roll back first"
        )
    if status in (JobStatus.HALTED, JobStatus.FAILED):
        return Refusal(
            RespCode.ILLEGAL_TRANSITION, f"the job of {company_sso_id} is {status}", "resume it, or roll back first"
        )
    return None


def _why_not_change(action: Action, company_sso_id: str, status: JobStatus) -> Refusal | None:
    if action is Action.ROLLBACK and status is JobStatus.ROLLED_BACK:
        return None  # a repetition removes what is left, and at last 0
    what = f"the job of {company_sso_id} is {status}"
    if action is Action.RESUME and status is JobStatus.COMPLETED:
        return Refusal(RespCode.ILLEGAL_TRANSITION, what, "there is nothing to resume; rerun it instead")
    if action is Action.RERUN and status is JobStatus.HALTED:
        return Refusal(RespCode.ILLEGAL_TRANSITION, what, "resume it: the run it would repeat is not over")
    why = refusal(status, TARGETS[action])
    if why is None:
        return None
    code = RespCode.ILLEGAL_TRANSITION
    if status is JobStatus.IN_PROGRESS and action is not Action.HALT:
        code = RespCode.JOB_ALREADY_RUNNING
    return Refusal(code, what, why)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the distinct CRM persons in the source's scope the platform knows.

    From a sample of `rows` rows where the source has more than are read; `complete`: these were all of them.
    """

    rows: int  # read
    persons: int  # distinct, named by these rows
    found: int  # of the persons: contacts of the account, or in its id map
    complete: bool
    missing: tuple[str, ...] = ()  # the first few CRM person ids that are not known

    @property
    def pct(self) -> float:
        """Persons found in per cent, cut to two digits; 100.0 if the rows name no person."""
        return percent(self.found, self.persons) if self.persons else 100.0

    @property
    def enough(self) -> bool:
        """Whether a replay may begin."""
        return self.found * 100 >= COVERAGE_MIN_PCT * self.persons

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON takes it."""
        return {
            "coverage_pct": self.pct,
            "persons": self.persons,
            "found": self.found,
            "rows_looked_at": self.rows,
            "sampled": not self.complete,
            "missing": list(self.missing),
        }


def contacts_refusal(company_sso_id: str, coverage: Coverage) -> Refusal | None:
    """Return why the account's contacts do not suffice, or None."""
    if coverage.enough:
        return None
    how = "all" if coverage.complete else "a sample"
    missing = f", among those missing {', '.join(coverage.missing)}" if coverage.missing else ""
    return Refusal(
        RespCode.CONTACTS_NOT_MIGRATED,
        f"{coverage.found:,} of {coverage.persons:,} CRM persons of {company_sso_id} ({coverage.pct:.2f} %, from {how}:"
        f" {coverage.rows:,} rows) are contacts{missing}; {COVERAGE_MIN_PCT} % are needed",
        "migrate the contacts first",
    )
