"""Pure: when too many records of a job have failed, and the messages for the operator."""

from sink.job_counts import RunTotals

FAILURE_RATE_MAX = 0.10
SEEN_MIN = 500  # one page: with fewer, a handful of failures would exceed the rate


def seen_of(totals: RunTotals) -> int:
    """Return how many records have ended in a bin, including those of no known source row."""
    return totals.accounted + totals.foreign_total


def failed_of(totals: RunTotals) -> int:
    """Return how many records became dead letters."""
    return totals.failed_total + totals.foreign_total


def failure_rate(totals: RunTotals) -> float:
    """Return failed / (migrated + skipped + failed) over the whole run; 0.0 before the first record."""
    seen = seen_of(totals)
    return failed_of(totals) / seen if seen > 0 else 0.0


def too_many_failed(totals: RunTotals, bound: float | None = None) -> bool:
    """Return whether the job has to halt; `bound` is an operator's, if one is set.

    `totals` have repaired rows in their new bins (`job_counts.present`).
    """
    return seen_of(totals) >= SEEN_MIN and failure_rate(totals) > (bound or FAILURE_RATE_MAX)


def halt_reason(totals: RunTotals, bound: float | None = None) -> str:
    """Return why a job is halted for failed records; the numbers are those of its document."""
    failed, limit = f"{failed_of(totals)} of {seen_of(totals)} records", f"{(bound or FAILURE_RATE_MAX) * 100:g}%"
    if too_many_failed(totals, bound):
        return f"{failed} failed, more than {limit}"
    return f"{failed} are failed, no more than {limit} since others were repaired: crm-replay resume continues"


def what_to_do(company_sso_id: str = "ACCOUNT") -> str:
    """Return how to continue a job that was halted because too many records failed."""
    return (
        f"see crm-replay dlq list; when the cause is gone, crm-replay dlq retry, then crm-replay resume --account"
        f" {company_sso_id} (or resume with --failure-bound and --reason)"
    )
