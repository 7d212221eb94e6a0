"""Whether `audited_changes` can be read: a sample from the whole history, read as a run reads it."""

from contextlib import closing
from dataclasses import dataclass

from ops.checks.model import Check, fail, ok, warn
from ops.jobs.coverage import id_ranges
from producer.audits import AuditReader, Limits, answering, connect, resolve
from producer.cursor import EARLIEST
from schemas.process.waiting import Deadline
from schemas.source.audited_changes import Unreadable, read
from schemas.source.mapping import SourceMapping

ID_RANGES = 16
PAGE_ROWS = 50
ROWS_MAX = 1_000
READ_MAX_S = 5.0
HALTS_AT = 0.1  # of the rows: a run with more dead letters is halted


@dataclass(slots=True)
class _Sample:
    rows: int = 0
    encrypted: int = 0
    unreadable: int = 0  # for another reason
    example: str = ""  # of a row that is not readable


def check_changes(dsn: str, mapping: SourceMapping, account: str, limits: Limits) -> Check:
    """Return whether rows from the whole history can be read, and whether they are ActiveRecord's ciphertext."""
    sample = _read(dsn, mapping, account, limits)
    facts = {"rows_looked_at": sample.rows, "encrypted": sample.encrypted, "unreadable": sample.unreadable}
    lost = sample.encrypted + sample.unreadable
    if not lost:
        return ok("source_changes", f"audited_changes of {sample.rows:,} rows can be read", **facts)
    if sample.encrypted:
        found = f"audited_changes of {sample.encrypted:,} of {sample.rows:,} rows is encrypted by ActiveRecord"
        to_do = "decrypt the column for the replay (its keys are the application's): such rows become dead letters"
    else:
        found = f"audited_changes of {sample.unreadable:,} of {sample.rows:,} rows cannot be read"
        to_do = "see why: such rows become dead letters"
    verdict = fail if lost > HALTS_AT * sample.rows else warn
    return verdict("source_changes", f"{found} ({sample.example})", to_do, **facts)


def _read(dsn: str, mapping: SourceMapping, account: str, limits: Limits) -> _Sample:
    with connect(dsn, limits.statement_timeout_s) as db:
        source = resolve(db, mapping, account)
        with answering("querying the newest id"):
            smallest, top, _ = db.execute(source.query("horizon")).fetchall()[0]
    sample = _Sample()
    deadline = Deadline(READ_MAX_S)
    left = id_ranges(min(0, smallest - 1), top, ID_RANGES)
    small = Limits(PAGE_ROWS, limits.id_window, limits.statement_timeout_s, limits.row_bytes_max)
    with closing(AuditReader(dsn, source, EARLIEST, small)) as reader:
        while left:
            further = []
            for cursor, last in left:
                if sample.rows >= ROWS_MAX or deadline.passed:
                    return sample
                page = reader.page_after(cursor, last, 0, (), look_for_gaps=False)
                for event in page.events:
                    if event.audit_id in page.defects:
                        continue  # not the whole row
                    sample.rows += 1
                    changes = read(event.audited_changes, event.changes_are_json)
                    if isinstance(changes, Unreadable):
                        sample.encrypted += changes.encrypted
                        sample.unreadable += not changes.encrypted
                        sample.example = sample.example or f"audit {event.audit_id}: {changes.why}"
                if page.end < last:
                    further.append((page.end, last))
            left = further
    return sample
