"""I/O: the nightly checks, one function each. A fault of one account's servers or files does not affect another."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from bson.errors import InvalidId
from confluent_kafka import KafkaException
from pymongo.errors import PyMongoError

from ops.checks.model import Check, Verdict, fail, ok, warn
from ops.checks.nightly.model import PLATFORM, AccountResult, Results, segments
from ops.checks.preflight.mongodb import check_indexes, check_schema
from ops.checks.verify import copy, http_strays
from ops.checks.verify.gather import work_of
from ops.checks.verify.model import Kind, Tally
from ops.checks.verify.segments import Chunk, SegmentChecker, Work
from ops.dead_letters.read import read_letters, resolved_rows
from ops.jobs import audit_log, enrichments, http_documents
from ops.jobs.counts import counts_of
from ops.jobs.documents import rows_with_document
from ops.jobs.enrichments import EnrichmentState
from ops.jobs.jobs import Job, accuracy_of
from ops.jobs.letters import State, judge
from ops.jobs.operations import digest
from ops.jobs.store import JobStore
from ops.kafka.rows import Topics
from ops.progress import RunView
from ops.subject.purge import ACTION as PURGE_ACTION
from producer.audits import AuditReader, connect, resolve
from producer.checkpoint import Checkpoint
from producer.cursor import EARLIEST, all_gaps
from producer.survey import first_behind
from schemas.collections import ACTIVITY_LOGS, CONTACTS, JOBS
from schemas.errors import BadInputError, ReplayError
from schemas.identity import SOURCE_TAG, replay_id
from schemas.process import stored
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, Documents
from schemas.process.mongodb import connect as connect_mongodb
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from sink.indexes import COMPANY_SOURCE_TAG, CONTACT_BY_CUSTOMER
from sink.rollback import documents_of

PLACES = 20
ROWS_A_PLACE = 500
JOBS_MAX = 1_000
NAMED_MAX = 10  # ids or accounts that a finding names
CUSTOMERS_A_PLACE = 50
LATE_ROWS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How deep a night looks."""

    places: int = PLACES  # segments of each account
    rows_a_place: int = ROWS_A_PLACE
    seed: int = 0  # of the sample; each night another
    dead_letters_max: int = 0  # so many may wait before it is a failure
    accounts: tuple[str, ...] = ()  # only these; (): every account with a finished job


def check_accounts(options: CheckOptions, connections: Connections, view: RunView) -> Results:
    """Return a night's results. Raises BadInputError only if a server's address is missing or MongoDB is away."""
    began = time.monotonic()
    connections.require("crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url")
    database = connect_mongodb(connections, app_name="crm-replay-check")
    try:
        platform = AccountResult(PLATFORM, [check_schema(database), check_indexes(database)])
        results = [platform]
        if platform.verdict is Verdict.FAIL:
            return Results(results, options.seed, time.monotonic() - began)
        platform.checks.append(_guarded("orphan_accounts", lambda: check_orphan_accounts(database)))
        jobs = [job for account in _accounts(database, options) if (job := _finished(database, account)) is not None]
        unknown = set(options.accounts) - {job.company_sso_id for job in jobs}
        if unknown:
            raise BadInputError(f"no finished job of {', '.join(sorted(unknown))}", "see crm-replay status")
        for number, job in enumerate(jobs, start=1):
            view.note(f"account {job.company_sso_id} ({number} of {len(jobs)})")
            results.append(_check_account(job, options, connections, database, view))
    finally:
        database.client.close()
    return Results(results, options.seed, time.monotonic() - began)


def _accounts(database: Database, options: CheckOptions) -> list[str]:
    if options.accounts:
        return list(options.accounts)
    return sorted(str(account) for account in database[JOBS].distinct("company_sso_id"))


def _finished(database: Database, account: str) -> Job | None:
    """Return the account's last job, if it has ended and has left a copy."""
    job = JobStore(database).latest(account)
    return job if job is not None and job.status in (JobStatus.COMPLETED, JobStatus.FAILED) else None


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Return the check's result; any error on the way is a failed check, and does not prevent the next one."""
    try:
        return check()
    except ReplayError as error:
        return fail(name, error.what, error.to_do)
    except PyMongoError as error:
        return fail(name, f"MongoDB does not answer ({type(error).__name__})", "check again when it is back")
    except KafkaException as error:
        return fail(name, f"Kafka does not answer ({error.args[0].str()})", "check again when it is back")


def _check_account(
    job: Job, options: CheckOptions, connections: Connections, database: Database, view: RunView
) -> AccountResult:
    began = time.monotonic()
    result = AccountResult(job.company_sso_id)
    result.checks.append(_guarded("job", lambda: check_job(job, database)))
    result.checks.append(
        _guarded("dead_letters", lambda: check_dead_letters(job, options, connections, database, view))
    )
    work: list[Work] = []

    def sample() -> Check:
        work.append(_work(job, connections, database))
        return check_sample(job, work[0], options, connections)

    result.checks.append(_guarded("sample", sample))
    result.checks.append(_guarded("late_rows", lambda: check_late_rows(job, work, database)))
    result.checks.append(_guarded("orphan_documents", lambda: check_orphan_documents(job, options, database)))
    result.checks.append(_guarded("enrichment", lambda: check_enrichment(job)))
    result.checks.append(_guarded("http_documents", lambda: check_http_documents(job, work, database)))
    result.seconds = time.monotonic() - began
    return result


def check_job(job: Job, database: Database) -> Check:
    """Return whether the job has ended well, and whether the documents that it has left still exist."""
    summary = f"run {job.run} is {job.status}"
    if job.status is not JobStatus.COMPLETED:
        to_do = f"crm-replay verify --account {job.company_sso_id}"
        return fail("job", f"{summary}: {job.error or 'no reason given'}", to_do, status=job.status.value)
    by_http = http_documents.count(database, job.company_sso_id)
    documents = documents_of(database, job.company_sso_id) - by_http  # no run has written those
    facts: dict[str, Any] = {
        "status": job.status.value,
        "documents": documents,
        "accuracy_pct": job.accuracy_pct,
        "by_http": by_http,
    }
    counts = counts_of(job)
    in_place = counts.migrated + counts.duplicate
    # Failed rows count in the accuracy, too; the check of the dead letters has the limit of those that wait.
    but_for_failed = accuracy_of(in_place, in_place + counts.failed)
    if job.accuracy_pct is not None and but_for_failed is not None and job.accuracy_pct < but_for_failed:
        return fail(
            "job", f"{summary} with an accuracy of {job.accuracy_pct} %", "crm-replay verify names the rows", **facts
        )
    wrote, purged = JobStore(database).aggregate_progress(job).migrated, _purged_since(job, database)
    facts |= {"written": wrote, "purged": purged}
    on_purpose = f", {purged:,} purged since" if purged else ""
    if documents < wrote - purged:
        return fail(
            "job",
            f"{summary}; it wrote {wrote:,} documents{on_purpose}, {documents:,} are left",
            f"crm-replay verify --account {job.company_sso_id} names the rows",
            **facts,
        )
    return ok("job", f"{summary}, {documents:,} documents{on_purpose}", **facts)


def _purged_since(job: Job, database: Database) -> int:
    """Return how many documents of the replay were removed for single persons since the run began."""
    return sum(
        int(entry.detail.get("removed", {}).get("documents_of_the_replay", 0))
        for entry in audit_log.entries(database, job.company_sso_id, audit_log.ENTRIES_MAX)
        if entry.action == PURGE_ACTION and entry.outcome == audit_log.OK and entry.at >= job.started_at
    )


def check_dead_letters(
    job: Job, options: CheckOptions, connections: Connections, database: Database, view: RunView
) -> Check:
    """Return how many dead letters wait for another try."""
    account = job.company_sso_id
    reader = Topics(connections.kafka(), connections.schema_registry_url)
    letters = read_letters(reader, AccountTopics.of(account))
    listed = judge(letters, resolved_rows(letters, account, reader, database, view)) if letters else []
    states = Counter(each.state for each in listed)
    waiting, no_row = states[State.WAITING], states[State.NO_ROW]
    facts = {"waiting": waiting, "no_row": no_row, "resolved": states[State.RESOLVED]}
    if waiting > options.dead_letters_max:
        return fail("dead_letters", f"{waiting:,} wait", f"crm-replay dlq list --account {account}", **facts)
    if waiting or no_row:
        summary = f"{waiting:,} wait, {no_row:,} name no row of the account"
        return warn("dead_letters", summary, f"crm-replay dlq list --account {account}", **facts)
    return ok("dead_letters", "none waits", **facts)


def _work(job: Job, connections: Connections, database: Database) -> Work:
    """Return what a segment's check has to know; the tables are those that the account's run was made with."""
    account, kafka = job.company_sso_id, connections.kafka()
    mapping = _mapping_of(job)
    with connect(connections.crm_audit_database_url) as db:
        source = resolve(db, mapping, account)
    runs = copy.runs_of(database, [each.job_id for each in JobStore(database).jobs(account, JOBS_MAX)])
    codec = Topics(kafka, connections.schema_registry_url).codec
    return work_of(job, connections, mapping, source, runs, codec, NAMED_MAX)


def _mapping_of(job: Job) -> SourceMapping:
    mapping = load(job.mapping_path or None)
    if job.mapping_sha256 and digest(mapping) != job.mapping_sha256:
        raise BadInputError(
            f"the source mapping {job.mapping_path or '(default)'} is not the one the account was replayed with",
            "put that one back, or replay the account with the new one",
        )
    return mapping


def check_sample(job: Job, work: Work, options: CheckOptions, connections: Connections) -> Check:
    """Return how the documents of some id segments compare with what their source rows become now."""
    with connect(connections.crm_audit_database_url) as db:
        low = first_behind(db, work.source, 0, job.top_audit_id) - 1
    with closing(AuditReader(connections.crm_audit_database_url, work.source, EARLIEST, work.limits)) as reader:
        spread = reader.spread()
    chosen = segments(
        low,
        job.top_audit_id,
        job.records_total,
        places=options.places,
        rows_a_place=options.rows_a_place,
        seed=options.seed,
        spread=spread,
    )
    tally = Tally()
    with closing(SegmentChecker(work)) as checker:
        for begin, end in chosen:
            tally.add(checker.check(Chunk(begin, end)), NAMED_MAX)
    facts = {
        "segments": len(chosen),
        "rows": tally.rows,
        "documents_equal": tally.matched,
        **{kind.value: tally.found[kind.value] for kind in Kind},
        "audit_ids": [finding.audit_id for finding in tally.findings][:NAMED_MAX],
    }
    summary = f"{tally.rows:,} rows in {len(chosen)} segments, {tally.matched:,} documents are as they should be"
    if tally.found:
        wrong = ", ".join(f"{count:,} {kind}" for kind, count in sorted(tally.found.items()) if count)
        named = ", ".join(str(finding.audit_id) for finding in tally.findings if finding.audit_id)
        return fail(
            "sample",
            f"{wrong} among {tally.rows:,} rows (rows {named})",
            f"crm-replay verify --account {job.company_sso_id}, then --repair",
            **facts,
        )
    return ok("sample", summary, **facts)


def check_late_rows(job: Job, work: list[Work], database: Database) -> Check:
    """Return whether there are rows now at ids that had none when the run last read them, and lack their documents."""
    if not work:
        raise ReplayError("the source or the topics could not be read", "see the check of the sample")
    known = work[0]
    ranges = Checkpoint(database, job.job_id, job.run).load()
    gaps = all_gaps(range_ for range_ in ranges if not range_.late)
    if not gaps:
        return ok("late_rows", "the run met no id without a row", gaps=0)
    appeared = list(_rows_in(gaps, known))
    with closing(SegmentChecker(known)) as checker:
        expected = checker.rows_of(appeared) if appeared else {}
    due = sorted(audit_id for audit_id, end in expected.items() if isinstance(end, bytes))
    due = [audit_id for audit_id in due if audit_id not in known.dead_letters]
    there = rows_with_document(database, job.company_sso_id, due)
    lost = [audit_id for audit_id in due if audit_id not in there]
    holes = sum(high - low + 1 for low, high in gaps)
    facts = {"gaps": len(gaps), "ids": holes, "rows_appeared": len(appeared), "without_document": len(lost)}
    summary = f"{holes:,} ids had no row; {len(appeared):,} have one now"
    if lost:
        ids = ",".join(map(str, lost[:NAMED_MAX]))
        return fail(
            "late_rows",
            f"{summary}, of which {len(lost):,} lack their document",
            f"crm-replay rerun --account {job.company_sso_id} --audit-ids {ids}",
            **facts,
        )
    return ok("late_rows", f"{summary}, none lacks its document", **facts)


def _rows_in(gaps: list[tuple[int, int]], work: Work) -> Iterator[int]:
    """Yield the ids in scope that are in the gaps now, `LATE_ROWS_MAX` at most."""
    seen = 0
    cursor = gaps[0][0] - 1
    with closing(AuditReader(work.connections.crm_audit_database_url, work.source, EARLIEST, work.limits)) as reader:
        while cursor < gaps[-1][1] and seen < LATE_ROWS_MAX:
            page = reader.late_page_after(cursor, gaps, 0)
            for event in page.events:
                if event.created_at >= work.cutoff_us:
                    seen += 1
                    yield event.audit_id
            cursor = page.end


def check_orphan_accounts(database: Database) -> Check:
    """Return which accounts have documents of the replay but no job that accounts for them; one index step each."""
    logs: Documents = database[ACTIVITY_LOGS]
    with_jobs = set(database[JOBS].distinct("company_sso_id", {"status": {"$ne": JobStatus.ROLLED_BACK.value}}))
    orphans = []
    accounts = 0
    query: dict[str, Any] = {"source_tag": SOURCE_TAG}
    while True:
        found = logs.find_one(query, {"company_sso_id": 1}, sort=[("company_sso_id", 1)], hint=COMPANY_SOURCE_TAG.name)
        if found is None or "company_sso_id" not in found:
            break
        account = found["company_sso_id"]
        accounts += 1
        if account not in with_jobs:
            orphans.append(str(account))
        query = {"company_sso_id": {"$gt": account}, "source_tag": SOURCE_TAG}
    # Theirs all came by HTTP: no job has to account for them, and a roll back removes them.
    by_http = [each for each in orphans if http_documents.count(database, each) == documents_of(database, each)]
    orphans = [each for each in orphans if each not in by_http]
    facts = {"accounts": accounts, "orphans": orphans, "by_http": by_http}
    if orphans:
        named = ", ".join(orphans[:NAMED_MAX])
        return fail(
            "orphan_accounts",
            f"documents of the replay without a job that accounts for them: {named}",
            "repeat an interrupted roll back: it continues",
            **facts,
        )
    if by_http:
        return warn(
            "orphan_accounts",
            f"documents that came by HTTP, of accounts without a job: {', '.join(by_http[:NAMED_MAX])}",
            "replay these accounts, or crm-replay rollback --account",
            **facts,
        )
    return ok("orphan_accounts", f"all documents of {accounts:,} accounts belong to a job", **facts)


def check_enrichment(job: Job) -> Check:
    """Return whether the run's association logs have been enriched, or that is left to a command on purpose."""
    view = enrichments.view_of(job.enrichment)
    if view is None or view.state in (EnrichmentState.DONE, EnrichmentState.OFF):
        state = "not a part of the run" if view is None or view.state is EnrichmentState.OFF else "done"
        return ok("enrichment", state)
    return warn(
        "enrichment",
        f"{view.state.value}: {view.error or 'its runner has ended'}",
        f"crm-replay enrich --account {job.company_sso_id} finishes it",
        state=view.state.value,
    )


def check_http_documents(job: Job, work: list[Work], database: Database) -> Check:
    """Return which of the account's documents came by HTTP and belong to no row."""
    there = http_documents.count(database, job.company_sso_id)
    if not there:
        return ok("http_documents", "none came by HTTP", documents=0)
    if not work:
        raise ReplayError("the source or the topics could not be read", "see the check of the sample")
    found = list(http_strays.strays(database, job, work[0]))
    facts = {"documents": there, "without_row": len(found), "external_ids": [e.external_id for e in found[:NAMED_MAX]]}
    if found:
        named = ", ".join(f"{each.external_id} ({each.why})" for each in found[:NAMED_MAX])
        return warn(
            "http_documents",
            f"{len(found):,} of {there:,} documents that came by HTTP belong to no row: {named}",
            f"crm-replay verify --account {job.company_sso_id} --repair deletes them",
            **facts,
        )
    return ok("http_documents", f"{there:,} came by HTTP, each belongs to a row", **facts)


def check_orphan_documents(job: Job, options: CheckOptions, database: Database) -> Check:
    """Return whether the customers of some documents are still contacts of the account."""
    customers = _sampled_customers(job, options, database)
    known = _known_customers(database, job.company_sso_id, customers)
    gone = sum(count for customer, count in customers.items() if customer not in known)
    facts = {"documents": customers.total(), "customers": len(customers), "without_contact": gone}
    summary = f"{customers.total():,} documents of {len(customers):,} customers"
    if gone:
        return warn(
            "orphan_documents",
            f"{gone:,} of {summary} have no contact any more",
            "if the person was erased, crm-replay subject purge removes the history too",
            **facts,
        )
    return ok("orphan_documents", f"{summary}, all are contacts", **facts)


def _sampled_customers(job: Job, options: CheckOptions, database: Database) -> "Counter[str]":
    """Return the customers of some documents of the run, with how many documents each has among them."""
    logs: Documents = database[ACTIVITY_LOGS]
    customers: Counter[str] = Counter()
    places = segments(
        0,
        job.top_audit_id,
        max(job.records_total, 1),
        places=options.places,
        rows_a_place=CUSTOMERS_A_PLACE,
        seed=options.seed,
    )
    for begin, _ in places:
        span = {"$gte": ObjectId(replay_id(job.run, begin)), "$lte": ObjectId(replay_id(job.run, job.top_audit_id))}
        limit = CUSTOMERS_A_PLACE if len(places) > 1 else CUSTOMERS_A_PLACE * options.places
        query = {"_id": span, "company_sso_id": job.company_sso_id}
        found = logs.find(query, {"_id": 0, "customer_id": 1}, hint="_id_").limit(limit)
        customers.update(str(document["customer_id"]) for document in found)
    return customers


def _known_customers(database: Database, account: str, customers: Iterable[str]) -> set[str]:
    """Return those of the customers that are contacts of the account, by customer_id or by _id."""
    wanted = set(customers)
    forms = [form for customer in wanted for form in _forms(customer)]
    contacts: Documents = database[CONTACTS]
    found = stored.find(
        contacts,
        {"company_sso_id": account, "customer_id": {"$in": forms}},
        {"_id": 0, "customer_id": 1},
        stored.leave_out,
        hint=CONTACT_BY_CUSTOMER.name,
    )
    known = {str(contact["customer_id"]) for contact in found}
    left = [form for customer in wanted - known for form in _forms(customer)]
    by_id = contacts.find({"_id": {"$in": left}, "company_sso_id": account}, {"_id": 1}, hint="_id_")
    return known | {str(contact["_id"]) for contact in by_id}


def _forms(customer: str) -> list[Any]:
    """Return how a customer's id may be stored."""
    forms: list[Any] = [customer]
    if customer.isascii() and customer.isdigit() and len(customer) < 19:
        forms.append(int(customer))
    try:
        forms.append(ObjectId(customer))
    except (InvalidId, TypeError):
        return forms
    return forms
