"""I/O: the checks of the customer data platform's MongoDB."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING
from pymongo.errors import OperationFailure

from ops.checks.estimates import Estimate, Rate, rate_of
from ops.checks.model import Check, Verdict, bytes_text, fail, join, ok, warn
from ops.checks.preflight.source import clock_check
from ops.jobs import coverage, migrations
from ops.jobs.guards import COVERAGE_MIN_PCT
from ops.jobs.store import JobStore
from producer.references import find_contacts, named
from schemas.collections import ACTIVITY_LOGS, CONTACTS, ENRICHMENTS, JOBS, PROGRESS
from schemas.process.mongodb import Database
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import JobStatus
from sink.indexes import INDEXES, Index

RUNS_LOOKED_AT = 50
NAMED_MAX = 3  # indexes
SPACE_FACTOR = 1.2
TIMESTAMP, SOURCE_TAG_FIELD = "timestamp", "source_tag"  # of a document
# What the roles of a run do: the sink inserts, the enricher updates, a rollback removes.
ACTIONS = {
    ACTIVITY_LOGS: ("find", "insert", "update", "remove"),
    JOBS: ("find", "insert", "update"),
    PROGRESS: ("find", "insert", "update"),
    ENRICHMENTS: ("find", "insert", "update"),
    CONTACTS: ("find",),
}


def check_reachable(database: Database) -> Check:
    """Return of what version the server is, and whether a write is safe once it is answered."""
    hello = database.command("hello")
    version = database.client.server_info()["version"]
    members = len(hello.get("hosts", ()))
    kind = (
        "sharded cluster"
        if hello.get("msg") == "isdbgrid"
        else f"replica set of {members}"
        if members
        else "standalone"
    )
    concern = database.write_concern.document
    facts = {"version": version, "kind": kind, "write_concern": dict(concern)}
    summary = f"MongoDB {version}, {kind}, write concern {concern.get('w', 1)}"
    if concern.get("w") == 0:
        return fail("mongodb_reachable", f"{summary}: writes are not answered", "take w=0 out of MONGODB_URL", **facts)
    if kind == "standalone":
        return warn(
            "mongodb_reachable", f"{summary}: one copy of everything", "in production a replica set of three", **facts
        )
    if members > 1 and concern.get("w") != "majority":
        return warn(
            "mongodb_reachable",
            f"{summary}: what one member has confirmed can be lost with it",
            "take w out of MONGODB_URL, or set w=majority",
            **facts,
        )
    return ok("mongodb_reachable", summary, **facts)


def check_clock(database: Database) -> Check:
    """Return how far this host's clock and MongoDB's are apart."""
    asked_at = time.time()
    theirs = database.command("serverStatus", metrics=0, tcmalloc=0)["localTime"]
    answered_at = time.time()
    theirs = theirs.replace(tzinfo=UTC) if theirs.tzinfo is None else theirs
    return clock_check("mongodb_clock", "MongoDB", theirs.timestamp(), asked_at, answered_at)


def check_schema(database: Database) -> Check:
    """Return whether the migrations have been applied, and none of a newer release."""
    try:
        migrations.require_current(database)
    except migrations.MigrationRefusedError as error:
        return fail("mongodb_schema", error.what, error.to_do)
    return ok("mongodb_schema", f"schema version {migrations.NEWEST}", version=migrations.NEWEST)


def check_indexes(database: Database) -> Check:
    """Return whether every index exists as defined: one may have been dropped or rebuilt since."""
    wrong = wrong_indexes(database)
    facts = {"wrong": [summary for summary, _ in wrong]}
    if len(wrong) > NAMED_MAX:
        summary = "; ".join(facts["wrong"][:NAMED_MAX])
        return fail(
            "mongodb_indexes", f"{summary}; and {len(wrong) - NAMED_MAX} more", "crm-replay migrate up", **facts
        )
    if wrong:
        to_do = "; ".join(dict.fromkeys(_create_command(index) for _, index in wrong))
        return fail("mongodb_indexes", "; ".join(facts["wrong"]), to_do, **facts)
    summary = f"all {len(INDEXES)} exist"
    return join("mongodb_indexes", _harmful_indexes(database), summary, indexes=[index.name for index in INDEXES])


def _harmful_indexes(database: Database) -> list[tuple[Verdict, str, str]]:
    """Return what the platform's own indexes would do to the documents of a replay."""
    ours = {index.name for index in INDEXES}
    findings: list[tuple[Verdict, str, str]] = []
    for name, index in sorted(database[ACTIVITY_LOGS].index_information().items()):
        keys, partial = [key for key, _ in index["key"]], "partialFilterExpression" in index
        if keys == [TIMESTAMP] and "expireAfterSeconds" in index:
            days, where = index["expireAfterSeconds"] / 86_400, " that its filter takes" if partial else ""
            summary = (
                f"{name} of {ACTIVITY_LOGS} lets documents{where} expire {days:,.1f} days after their {TIMESTAMP}:"
                " MongoDB deletes older history soon after it was written"
            )
            to_do = f"let it pass documents over that have a {SOURCE_TAG_FIELD}, or drop it"
            findings.append((Verdict.WARN if partial else Verdict.FAIL, summary, to_do))
        elif index.get("unique") and name not in ours:
            findings.append(
                (
                    Verdict.WARN,
                    f"{name} of {ACTIVITY_LOGS} is unique, too: rows that it refuses become dead letters",
                    "see that no two logs of a replay can have the same " + ", ".join(keys),
                )
            )
    return findings


def _create_command(index: Index) -> str:
    """Return the command that creates an index in MongoDB's shell; it drops a conflicting one first."""
    keys, options = json.dumps(dict.fromkeys(index.keys, ASCENDING)), json.dumps(index.options())
    return f"db.{index.collection}.createIndex({keys}, {options}), another of its name dropped before"


def wrong_indexes(database: Database) -> list[tuple[str, Index]]:
    """Return what is wrong with the indexes, a phrase and the index; empty if all exist as defined."""
    wrong = []
    for collection in dict.fromkeys(index.collection for index in INDEXES):
        try:
            there = database[collection].index_information()
        except OperationFailure:  # no such collection
            there = {}
        for index in INDEXES:
            if index.collection != collection:
                continue
            found = there.get(index.name)
            if found is None:
                wrong.append((f"{collection} lacks {index.name}", index))
            elif (
                list(found["key"]) != [(key, ASCENDING) for key in index.keys]
                or bool(found.get("unique")) != index.unique
                or dict(found.get("partialFilterExpression", {})) != dict(index.partial)
            ):
                wrong.append((f"{index.name} of {collection} is another index", index))
            elif found.get("hidden"):
                wrong.append((f"{index.name} of {collection} is hidden", index))
    return wrong


def check_permissions(database: Database) -> Check:
    """Return whether the user may do what the roles of a run do, as far as the server reports it."""
    try:
        info = database.command("connectionStatus", showPrivileges=True)["authInfo"]
    except OperationFailure as error:
        return ok("mongodb_permissions", f"the server does not report them (code {error.code})")
    users = [f"{user['user']}@{user['db']}" for user in info.get("authenticatedUsers", ())]
    if not users:
        return warn(
            "mongodb_permissions",
            "the server does not authenticate: every client may do everything",
            "in production a user with readWrite on this database",
            users=[],
        )
    missing = missing_actions(info.get("authenticatedUserPrivileges", ()), database.name)
    if missing:
        return fail(
            "mongodb_permissions",
            f"{', '.join(users)} may not {'; '.join(missing)}",
            f"db.grantRolesToUser(user, [{{role: 'readWrite', db: '{database.name}'}}])",
            users=users,
        )
    return ok("mongodb_permissions", f"{', '.join(users)} may do what a run does", users=users)


def missing_actions(privileges: Any, database: str) -> list[str]:
    """Return which of a run's actions no privilege allows, `action on collection` each. Pure."""
    missing = []
    for collection, actions in ACTIONS.items():
        allowed: set[str] = set()
        for privilege in privileges:
            resource: Mapping[str, Any] = privilege["resource"]
            names_it = resource.get("db") in ("", database) and resource.get("collection") in ("", collection)
            if resource.get("anyResource") or names_it:
                allowed.update(privilege["actions"])
        if "anyAction" not in allowed:
            missing += [f"{action} on {collection}" for action in actions if action not in allowed]
    return missing


def check_contacts(database: Database, account: str) -> Check:
    """Return how many CRM persons the account's contacts represent, and their defects."""
    found = find_contacts(database, account)
    facts = {
        "persons": len(found.by_person),
        "by_id_map": found.mapped,
        "doubled": found.doubled,
        "without_created_at": found.unusable,
        "mapped_to_nobody": found.mapped_missing,
        "undecodable": found.undecodable,
        "odd_ids": found.odd_ids,
    }
    findings: list[tuple[Verdict, str, str]] = []
    if not found.by_person:
        return fail(
            "contacts", "the account has no contact with a CRM person id", "migrate the contacts first", **facts
        )
    if found.undecodable:
        findings.append(
            (
                Verdict.WARN,
                f"{named(found.undecodable, found.undecodable_named)} cannot be decoded: their history is skipped",
                "repair their texts: customer_id, company_sso_id and crm_data.id have to be UTF-8",
            )
        )
    if found.odd_ids:
        findings.append(
            (
                Verdict.WARN,
                f"{named(found.odd_ids, found.odd_ids_named)} have a crm_data.id that is no plain number: no history",
                'rewrite it as a number, or as its digits alone: 5 or "5", and not " 5 ", "05", "5.0"',
            )
        )
    if found.unusable:
        findings.append(
            (
                Verdict.WARN,
                f"{found.unusable:,} contacts have no created_at that is a date: their history is skipped",
                "give them one: it is the watermark between replay and live feed",
            )
        )
    if found.doubled:
        findings.append(
            (
                Verdict.WARN,
                f"{found.doubled:,} contacts share a CRM person id with an older one, which gets the history",
                "merge them first, if that is not meant",
            )
        )
    if found.mapped_missing:
        findings.append(
            (
                Verdict.WARN,
                f"{found.mapped_missing:,} entries of crm_contact_id_map name a customer who is no contact",
                "check those customers",
            )
        )
    by_map = f", {found.mapped:,} of them by crm_contact_id_map" if found.mapped else ""
    summary = f"contacts represent {len(found.by_person):,} CRM persons{by_map}"
    if findings:
        findings.append((Verdict.OK, summary, ""))
    return join("contacts", findings, summary, **facts)


def check_coverage(database: Database, dsn: str, mapping: SourceMapping, account: str, start: datetime | None) -> Check:
    """Return how many of the CRM persons in scope are contacts: by the very guard that a trigger has to pass."""
    try:
        found = coverage.measure(database, dsn, mapping, account, date_range_start=start)
    except OperationFailure as error:  # it queries by index only
        return fail("contacts_coverage", f"its indexes are missing (code {error.code})", "crm-replay migrate up")
    rows = f"{'all' if found.complete else 'a sample of'} {found.rows:,} rows"
    summary = f"{found.found:,} of {found.persons:,} CRM persons ({found.pct:.2f} %) in {rows} are contacts"
    facts = found.as_dict()
    if found.enough:
        return ok("contacts_coverage", summary, **facts)
    return fail(
        "contacts_coverage",
        f"{summary}; {COVERAGE_MIN_PCT} % are needed",
        f"migrate the contacts first, for instance CRM person {', '.join(found.missing)}",
        **facts,
    )


def check_job(database: Database, account: str) -> Check:
    """Return what the account's last job allows."""
    job = JobStore(database).latest(account)
    if job is None:
        return ok("job", "the account has never been replayed", status="not_started")
    summary = f"run {job.run} of {job.started_at:%Y-%m-%d %H:%M} UTC is {job.status}"
    facts = {"status": job.status.value, "run": job.run, "job_id": job.job_id}
    if job.status is JobStatus.IN_PROGRESS:
        return fail("job", summary, f"wait for it, or crm-replay halt --account {account}", **facts)
    if job.status in (JobStatus.HALTED, JobStatus.FAILED):
        return warn(
            "job", f"{summary} ({job.error or 'no reason given'})", f"crm-replay resume --account {account}", **facts
        )
    if job.status is JobStatus.COMPLETED:
        return warn("job", f"{summary}: existing documents will be skipped as duplicates", "", **facts)
    return ok("job", summary, **facts)


def rate_of_runs(database: Database) -> Rate:
    """Return how fast the newest finished run of any account was, or the assumed rate."""
    jobs = JobStore(database).jobs(limit=RUNS_LOOKED_AT)
    return rate_of(
        (job.records_total, job.started_at, job.finished_at) for job in jobs if job.status is JobStatus.COMPLETED
    )


def check_space(database: Database, estimate: Estimate | None) -> Check:
    """Return whether what the replay writes fits the disk that MongoDB is on."""
    if estimate is None:
        return warn(
            "mongodb_space", "not known how many rows there will be", "fix what keeps the rows from being counted"
        )
    stats = database.command("dbStats")
    total, used = stats.get("fsTotalSize"), stats.get("fsUsedSize")
    facts = {"documents_bytes": estimate.documents_bytes, "disk_bytes": total, "disk_used_bytes": used}
    needed = bytes_text(estimate.documents_bytes)
    if not total or used is None:
        return ok("mongodb_space", f"up to {needed}; the server does not report free space", **facts)
    free = total - used
    if estimate.documents_bytes * SPACE_FACTOR > free:
        return warn(
            "mongodb_space",
            f"up to {needed} before compression, {bytes_text(free)} are free",
            "make room, or watch it while the first account runs",
            **facts,
        )
    return ok("mongodb_space", f"up to {needed} before compression, {bytes_text(free)} are free", **facts)
