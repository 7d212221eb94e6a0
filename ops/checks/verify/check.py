"""The check, from its first query to its report. It saves seals, and changes nothing else.

The order follows from forking: no client with threads of its own may be open when the workers are forked. Dead letters
and tables are read before and their clients closed, MongoDB's client that is kept is opened after. The connection to
PostgreSQL has no threads; workers open their own.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pymongo.errors import PyMongoError

from ops.checks.verify import copy, topics
from ops.checks.verify.gather import work_of
from ops.checks.verify.model import NAMED_MAX, Counted, Kind, Report, Tally, count_mismatches
from ops.checks.verify.seals import Seal, SealStore, basis_of
from ops.checks.verify.segments import Chunk, SegmentChecker, Work
from ops.checks.verify.workers import check_all
from ops.jobs import migrations
from ops.jobs.jobs import Job
from ops.jobs.operations import digest
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.progress import RunView
from producer.audits import AuditSource, Connection, connect, resolve
from producer.survey import first_behind, require_ids
from schemas.codec import Codec
from schemas.collections import SEALS
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.process.mongodb import connect as connect_mongodb
from schemas.process.registry import codec_for
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus, SkipReason
from sink.progress import RunTotals
from sink.rollback import documents_of

CHUNK_IDS_MIN, CHUNK_IDS_MAX = 2_000, 256_000
CHUNKS_MAX = 200  # of an account that is not huge: keeps the progress moving, and the last chunk short
JOBS_MAX = 1_000  # of an account; documents of older ones are found one by one


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How a check is done."""

    workers: int = 0  # 0: one a core
    named_max: int = NAMED_MAX
    mapping_path: str = ""  # "": that of the job
    from_scratch: bool = False  # no seal is used; proved chunks are sealed as usual


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is known before any row is read."""

    job: Job
    mapping: SourceMapping
    counted: Counted  # by the last run over the whole history
    since: Counted | None  # by replays of chosen rows after it; None: there were none
    accounted: int
    runs: tuple[int, ...]
    seals: dict[int, Seal]

    def is_part(self, rows: int) -> bool:
        """Whether the run was over another number of rows than there are, so that its counts do not apply to them."""
        return rows not in (self.job.records_total, self.accounted)


def verify_account(account: str, options: VerifyOptions, connections: Connections, view: RunView) -> Report:
    """Return how the account's documents compare with its source rows up to the job's top.

    Raises BadInputError if there is nothing to compare or a server or the mapping is wrong, ReplayError
    for an outage. Changes nothing but the seals of what has been proved.
    """
    began = time.monotonic()
    AccountTopics.of(account)  # refuses an id that can name no topics, before any server is queried
    connections.require("crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url")
    kafka = connections.kafka()
    kafka_admin.client(kafka)
    codec = codec_for(connections.schema_registry_url)
    with connect(connections.crm_audit_database_url) as db:
        known = _known(account, options, connections)
        source = resolve(db, known.mapping, account)
        job, workers = known.job, options.workers or os.cpu_count() or 1
        require_ids(db, source, job.reads_from)  # of rows that have come since: no `_id` could be theirs
        work = work_of(job, connections, known.mapping, source, known.runs, codec, options.named_max)
        work = _sealed(work, known.seals)
        tally = Tally()
        for _, part in check_all(work, _chunks(db, source, job.top_audit_id), workers):
            tally.add(part, options.named_max)
            view.progress(tally.rows, max(job.records_total, tally.rows), dict(tally.found), tally.failed_total)
    database = connect_mongodb(connections, app_name="crm-replay-verify")
    try:
        report = Report(account, job.job_id, job.run, job.top_audit_id, tally, documents_of(database, account))
        report.mapping_path = options.mapping_path or job.mapping_path
        SealStore(database, account).drop_others(work.basis)
        if tally.unsealed:
            report.notes.append(
                f"MongoDB refuses to write {SEALS}: the next verify transforms {tally.unsealed:,} unchanged rows again"
            )
        if job.status is not JobStatus.COMPLETED:
            report.notes.append(f"the job was {job.status}: rows that it did not reach are missing")
        if report.documents != tally.tagged:
            view.note(
                f"{report.documents - tally.tagged:,} documents of the account belong to no row: looking for them"
            )
            _add_strays(report, work, database, options.named_max)
        _name_owners(report, database)
        _check_counts(report, known)
        report.offsets = topics.unhandled(kafka, job, codec)
        _locate(report, known, connections, codec, view)
    except PyMongoError as error:
        raise ReplayError(
            f"MongoDB does not answer ({type(error).__name__})", "verify again when it is back"
        ) from error
    finally:
        database.client.close()
    tally.findings.sort(key=lambda finding: (finding.kind.value, finding.audit_id or 0))
    tally.failures.sort(key=lambda failed: failed.audit_id)
    report.seconds = time.monotonic() - began
    return report


def _known(account: str, options: VerifyOptions, connections: Connections) -> _Checked:
    """Return the account's latest job and what the sinks counted; the connection is closed again."""
    database = connect_mongodb(connections, app_name="crm-replay-verify")
    try:
        migrations.require_current(database)
        store = JobStore(database)
        job = store.latest(account)
        if job is None or job.status is JobStatus.ROLLED_BACK:
            state = "has never been replayed" if job is None else "has been rolled back"
            raise BadInputError(f"{account} {state}, there is no copy to verify", f"crm-replay run --account {account}")
        if job.status is JobStatus.IN_PROGRESS:
            raise BadInputError(f"a run of {account} is in progress", "verify when it has ended")
        mapping = load(options.mapping_path or job.mapping_path or None)
        if job.mapping_sha256 and digest(mapping) != job.mapping_sha256:
            raise BadInputError(
                f"the source mapping {options.mapping_path or job.mapping_path or '(default)'} is not the one that"
                f" {account} was replayed with",
                "name that one with --mapping, or replay the account with the new one",
            )
        copy.require_indexes(database)
        totals = store.aggregate_progress(job)
        later = [
            store.aggregate_progress(each)
            for each in store.jobs(account, JOBS_MAX)
            if each.partial and each.run > job.run
        ]
        return _Checked(
            job,
            mapping,
            _counted([totals]),
            _counted(later) if later else None,
            totals.accounted,
            copy.runs_of(database, [each.job_id for each in store.jobs(account, JOBS_MAX)]),
            {} if options.from_scratch else SealStore(database, account).load(),
        )
    finally:
        database.client.close()


def _counted(runs: Sequence[RunTotals]) -> Counted:
    skipped: Counter[str] = Counter()
    for totals in runs:
        skipped.update(totals.skipped)
    there_before = skipped.pop(SkipReason.DUPLICATE_EXTERNAL_ID.value, 0)
    return Counted(
        sum(totals.migrated for totals in runs) + there_before, skipped, sum(totals.failed_total for totals in runs)
    )


def _sealed(work: Work, seals: Mapping[int, Seal]) -> Work:
    """Return the work with the seals that there are, and with what all of them have to be based on."""
    settings = {
        "cutoff_us": work.cutoff_us,
        "row_bytes_max": work.limits.row_bytes_max,
        "dead_letters_expired": work.dead_letters_expired,
    }
    return replace(work, basis=basis_of(work.company_sso_id, work.mapping, work.tables, settings), seals=seals)


def _chunks(db: Connection, source: AuditSource, top: int) -> Iterator[Chunk]:
    """Yield the ids up to `top` in chunks without a gap between them; where no row is, a chunk reaches on.

    They end where they ended the last time while the rows are the same: so their seals are found again.
    """
    first = first_behind(db, source, 0, top)
    ids = chunk_ids(top - first)
    low, at = 0, first - 1
    while low < top:
        following = first_behind(db, source, min((at // ids + 1) * ids, top), top) - 1
        yield Chunk(low, following)
        low = at = following


def chunk_ids(span: int) -> int:
    """Return how many ids a chunk has where an account's ids span so many; the same until they are twice as many."""
    ids = CHUNK_IDS_MIN
    while ids < CHUNK_IDS_MAX and span > ids * CHUNKS_MAX:
        ids *= 2
    return ids


def _add_strays(report: Report, work: Work, database: Database, named_max: int) -> None:
    checker = SegmentChecker(work)
    try:
        for finding in copy.strays(database, work.company_sso_id, work.runs, report.top_audit_id, checker):
            report.tally.note(finding, named_max)
    finally:
        checker.close()


def _name_owners(report: Report, database: Database) -> None:
    """Add to the named documents whose customers they belong to, where those are not the account's own."""
    named = [finding for finding in report.tally.findings if finding.customer_id]
    owners = copy.owners_of(database, report.company_sso_id, {finding.customer_id for finding in named})
    for finding in named:
        if (owner := owners.get(finding.customer_id)) is not None:
            finding.why = f"{finding.why}; {owner}"


def _check_counts(report: Report, known: _Checked) -> None:
    """Compare the sinks' counts and the job document's with the rows."""
    job, tally = known.job, report.tally
    if known.is_part(tally.rows):
        report.notes.append(
            f"the last run was over {job.records_total:,} of {tally.rows:,} rows, so its counts are not compared"
        )
        return
    wrong = count_mismatches(tally, known.counted, known.since)
    if known.since is None:
        report.counts = wrong
    elif wrong:
        # Rows of it that were lost and have been replayed since may have been skips, which no repair can name.
        summary = ", ".join(f"{count.name} {count.job:,} of {count.truth:,}" for count in wrong)
        report.notes.append(f"the run itself counted {summary}; rows have been replayed since")


def _locate(report: Report, known: _Checked, connections: Connections, codec: Codec, view: RunView) -> None:
    """Add to the named rows without a document how far they came."""
    named = [f for f in report.tally.findings if f.kind in (Kind.MISSING, Kind.DEAD_LETTER_LOST) and f.audit_id]
    lookup = topics.RowLookup(
        connections.kafka(),
        known.job,
        codec,
        whole_topic=known.is_part(report.tally.rows),
    )
    seen = lookup.find([finding.audit_id for finding in named if finding.audit_id], view.note)
    for finding in named:
        finding.why = "; ".join(filter(None, (finding.why, seen.get(finding.audit_id or 0))))
