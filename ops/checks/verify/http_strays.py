"""Documents that came by HTTP and that no row of a run accounts for: named, and counted apart from the run's own."""

from collections.abc import Collection, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from ops.checks.verify import copy
from ops.checks.verify.gather import work_without_directory
from ops.checks.verify.model import Finding
from ops.checks.verify.segments import SegmentChecker, Work
from ops.jobs import http_documents
from ops.jobs.jobs import Job
from schemas.codec import Codec
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.source.mapping import SourceMapping

NAMED_MAX = 20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def strays(database: Database, job: Job, work: Work) -> Iterator[Finding]:
    """Yield the account's documents that came by HTTP and that no row up to the job's top accounts for."""
    account = job.company_sso_id
    if not http_documents.count(database, account):
        return
    with closing(SegmentChecker(work)) as checker:
        yield from copy.strays_among(database, account, http_documents.ids_of(account), job.top_audit_id, checker)


def counted(
    job: Job,
    chosen: tuple[int, ...] | None,
    database: Database,
    connections: Connections,
    mapping: SourceMapping,
    codec: Codec,
) -> list[Finding]:
    """Return the documents that came by HTTP, are no row's of the run, and are among those that its validation counts.

    `chosen` are the rows of a partial replay, None for all. A document that did not come by HTTP is not among them: no
    one accounts for it, and the run fails for it.
    """
    rows = None if chosen is None else frozenset(chosen)
    work = work_without_directory(job, connections, mapping, (), codec, NAMED_MAX)
    return [each for each in strays(database, job, work) if _is_counted(each, job, rows)]


def as_fields(found: list[Finding]) -> dict[str, Any]:
    """Return the findings as the job document has them."""
    named = [{"external_id": each.external_id, "why": each.why} for each in found[:NAMED_MAX]]
    return {"without_row": len(found), "named": named}


def _is_counted(finding: Finding, job: Job, chosen: Collection[int] | None) -> bool:
    """Whether the validation of a run over a part of the rows has counted the document."""
    if chosen is not None:
        return finding.audit_id in chosen
    if job.date_range_start is None or finding.at_us is None:
        return True
    return finding.at_us >= (job.cutoff - EPOCH) // timedelta(milliseconds=1) * 1000
