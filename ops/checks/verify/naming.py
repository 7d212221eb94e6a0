"""Names the ids of a range in which a run's end has found that documents and rows differ."""

from collections.abc import Iterator, Sequence
from contextlib import closing

from ops.checks.verify import copy
from ops.checks.verify.gather import work_without_directory
from ops.checks.verify.model import Finding, Kind, Tally
from ops.checks.verify.segments import Chunk, SegmentChecker
from ops.jobs.documents import rows_with_document
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore
from schemas.codec import Codec
from schemas.identity import external_id_of
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.source.mapping import SourceMapping

NAMED_MAX = 20  # of each kind; verify names the rest
RANGES_MAX = 4  # that are compared row by row: each may hold a sixty-fourth of the account
JOBS_MAX = 1_000
CHOSEN_MAX = 10_000  # of chosen rows, that are compared one by one


def named(
    job: Job,
    database: Database,
    mapping: SourceMapping,
    codec: Codec,
    connections: Connections,
    ranges: Sequence[tuple[int, int]],
    chosen: Sequence[int] | None = None,
) -> str:
    """Return rows without their document and documents without a row, as the beginning of a list; "" if none is found.

    `ranges` are ids in (low, high]; where only `chosen` rows were replayed, those of them are compared. Raises
    ReplayError, Kafka's or pymongo's errors for an outage.
    """
    account, top = job.company_sso_id, job.top_audit_id
    runs = copy.runs_of(database, [each.job_id for each in JobStore(database).jobs(account, JOBS_MAX)])
    # A document that differs is verify's to name.
    work = work_without_directory(job, connections, mapping, runs, codec, NAMED_MAX)
    tally = Tally()
    with closing(SegmentChecker(work)) as checker:
        if chosen is not None:
            within = [audit_id for audit_id in chosen if any(low < audit_id <= high for low, high in ranges)]
            for finding in _among(database, account, within[:CHOSEN_MAX], checker):
                tally.note(finding, NAMED_MAX)
            return _in_words(tally)
        for low, high in ranges[:RANGES_MAX]:
            tally.add(checker.check(Chunk(low, min(high, top))), NAMED_MAX)
        for finding in copy.strays(database, account, runs, top, checker):
            tally.note(finding, NAMED_MAX)
    return _in_words(tally)


def _among(database: Database, account: str, audit_ids: Sequence[int], checker: SegmentChecker) -> Iterator[Finding]:
    """Yield which of these rows lack their document, or have one that they should not have."""
    there = rows_with_document(database, account, audit_ids, tagged=True)
    expected = checker.rows_of(audit_ids)
    for audit_id in audit_ids:
        if isinstance(expected.get(audit_id), bytes) and audit_id not in there:
            yield Finding(Kind.MISSING, audit_id, None)
        elif audit_id in there and not isinstance(expected.get(audit_id), bytes):
            yield Finding(Kind.EXTRA, audit_id, None, external_id=external_id_of(audit_id))


def _in_words(tally: Tally) -> str:
    """Return what was found, each kind with the number of all that were counted there."""
    summary = ""
    for kind, what in ((Kind.MISSING, "rows without their document"), (Kind.EXTRA, "documents without a row")):
        names = [
            str(finding.audit_id) if kind is Kind.MISSING else finding.external_id or str(finding.document_id)
            for finding in tally.findings
            if finding.kind is kind
        ]
        more = tally.found[kind.value] - len(names)
        if names:
            summary += f"{what}: {', '.join(names)}{f' and {more:,} more' if more else ''}; "
    return summary
