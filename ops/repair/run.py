"""A repair: wrong documents are deleted, and the rows found by the check are replayed.

Order of effects: delete, then replay. A death in between leaves rows missing, which the next check finds; in the other
order the unique index would take the wrong document for the row's. A repair deletes a small share of an account's
documents at most: if more are wrong, the check was more likely misled by a mapping, a registry or a table.
"""

from dataclasses import dataclass
from typing import Any

from ops.checks.verify import copy
from ops.checks.verify.model import REPAIR_MAX, Kind, Report
from ops.jobs import audit_log
from ops.jobs.jobs import Job, Ledger
from ops.jobs.store import JobStore
from ops.progress import RunView
from schemas.errors import BadInputError
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from schemas.vocabulary import JobStatus, SkipReason
from sink.failure_rate import FAILURE_RATE_MAX

DELETE_MAX_PCT = 1.0  # of the account's documents
DELETE_MIN = 10  # may always be deleted: in a small account, a few are more than a small share
CLOSABLE = (JobStatus.FAILED, JobStatus.HALTED)


@dataclass(frozen=True, slots=True)
class Plan:
    """The effects of a repair, before it is done."""

    documents_to_delete: int
    extra: int  # of these
    rows_to_replay: int
    refused: tuple[str, str] | None = None  # the reason, and what to do instead

    def in_words(self, account: str) -> str:
        """Return it as part of a sentence."""
        different = self.documents_to_delete - self.extra
        return (
            f"delete {self.documents_to_delete:,} documents of {account} ({self.extra:,} extra, {different:,}"
            f" different) and replay {self.rows_to_replay:,} rows"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        shown: dict[str, Any] = {
            "dry_run": True,
            "documents_to_delete": self.documents_to_delete,
            "rows_to_replay": self.rows_to_replay,
        }
        return shown | ({"refused": self.refused[0]} if self.refused else {})


def plan_of(report: Report, delete_max_pct: float) -> Plan:
    """Return the plan of a repair of the account, refused if it exceeds the bounds of a repair."""
    found, account = report.tally.found, report.company_sso_id
    extra = found[Kind.EXTRA.value]
    delete = extra + found[Kind.DIFFERENT.value]
    replay = sum(found.values()) - extra
    delete_max = max(DELETE_MIN, int(report.documents * delete_max_pct / 100))
    refused = None
    if delete > delete_max:
        too_many = f"{delete:,} of the {report.documents:,} documents of {account}, more than {delete_max:,}"
        refused = (
            f"a repair would delete {too_many} ({delete_max_pct:g} %); nothing was changed",
            "list them with --repair --dry-run; if they are really wrong, raise --delete-max-pct",
        )
    elif max(delete, replay) > REPAIR_MAX:
        refused = (
            f"{sum(found.values()):,} rows and documents of {account} are wrong, over {REPAIR_MAX:,}",
            f"replay it as a whole: crm-replay rerun --account {account}",
        )
    return Plan(delete, extra, replay, refused)


def repair(report: Report, plan: Plan, run_options: Any, connections: Connections, view: RunView) -> tuple[int, int]:
    """Delete the extra and different documents, replay the rows; return how many of each.

    Raises BadInputError, with nothing changed, for a plan that is refused.
    """
    if plan.refused is not None:
        raise BadInputError(*plan.refused)
    tally, account = report.tally, report.company_sso_id
    audit_ids = sorted(set(tally.replay))
    deleted = 0
    database = connect(connections, app_name="crm-replay-verify")
    try:
        detail = {"documents_to_delete": plan.documents_to_delete, "rows_to_replay": len(audit_ids)}
        who = audit_log.on_this_host()
        audit_log.append(database, "repair", account, who=who, outcome=audit_log.BEGUN, detail=detail)
        if tally.delete:
            view.note(
                f"deleting {len(tally.delete):,} documents of {account}"
                f" ({plan.extra:,} extra, {plan.documents_to_delete - plan.extra:,} different):"
                " each by its _id, only with this company_sso_id and the replay's source_tag"
            )
            deleted = copy.delete(database, account, tally.delete)
        if audit_ids:
            view.note(f"replaying {len(audit_ids):,} rows of {account}")
            from ops.runner.replay import run_selected

            run_selected(account, audit_ids, run_options, connections, view)
        detail = {"documents_deleted": deleted, "rows_replayed": len(audit_ids)}
        audit_log.append(database, "repair", account, who=who, detail=detail)
    finally:
        database.client.close()
    return deleted, len(audit_ids)


def end_dead(account: str, connections: Connections, view: RunView) -> None:
    """End a repair of the account whose runner has died: this one replaces it."""
    from ops.kafka.rows import Topics
    from ops.runner import repairs
    from ops.runner import replay as runner

    topics = Topics(connections.kafka(), connections.schema_registry_url)
    database = connect(connections, app_name="crm-replay-verify")
    try:
        repairs.end_dead(account, JobStore(database), runner.new_owner(), topics, database, view)
    finally:
        database.client.close()


def is_whole(report: Report) -> bool:
    """Return whether every row has the right result, regardless of the job's counts, and nothing is unhandled."""
    return not (report.tally.found or report.offsets)


def close(report: Report, connections: Connections) -> Job | None:
    """Complete the account's failed or halted job with the counts of the proof; return it, or None.

    `report` is of a complete copy. A job with more dead letters than its run may have stays as it is, which the report
    notes.
    """
    database = connect(connections, app_name="crm-replay-verify")
    try:
        store = JobStore(database)
        job = store.get(report.job_id)
        if job is None or job.run != report.run or job.status not in CLOSABLE:
            return None
        ledger = proved(report, job)
        if ledger.failure_rate > (job.failure_bound or FAILURE_RATE_MAX):
            report.notes.append(
                f"the job stays {job.status}: {ledger.failed + ledger.foreign:,} records failed, more than a run may"
                " have; retry them first (crm-replay dlq retry)"
            )
            return None
        closed = store.complete_proved(job, ledger, dict(report.tally.failed))
        detail = {"job_id": job.job_id, "run": job.run, "was": job.status.value, "error": job.error or ""}
        who = audit_log.on_this_host()
        audit_log.append(database, "complete", job.company_sso_id, who=who, detail=detail)
        return closed
    finally:
        database.client.close()


def proved(report: Report, job: Job) -> Ledger:
    """Return the ledger of a proof. Documents that the run found already written count as its duplicates."""
    tally, duplicate = report.tally, SkipReason.DUPLICATE_EXTERNAL_ID.value
    met = min(job.skips_by_reason.get(duplicate, 0), tally.logs)
    skipped = {reason: count for reason, count in tally.skipped.items() if count}
    return Ledger(
        source_rows=tally.rows,
        migrated=tally.logs - met,
        skipped=skipped | ({duplicate: met} if met else {}),
        failed=tally.failed_total,
        foreign=job.records_foreign,
        documents=tally.logs,
    )
