"""All checks of one account: a lane for each server, then the checks that need results of several."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from ops.checks.estimates import Estimate, Rate, estimate, rate_of
from ops.checks.model import Check, Verdict, fail, ok, warn
from ops.checks.preflight import changes, directory, kafka, mongodb, source
from ops.checks.preflight.lanes import Lane, Step, run_lanes
from ops.checks.preflight.model import Report
from ops.jobs import coverage
from producer.settings import ProducerSettings
from producer.topics import MESSAGE_BYTES_LIMIT
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, connect
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics

TIMEOUT_S = 30.0
COUNT_TIMEOUT_S = 1_800.0  # 15 million rows take about a minute; a source that is busy takes its time
DAY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PreflightOptions:
    """How the checks are made."""

    mapping_path: str = ""
    partitions: int = 4
    date_range_start: datetime | None = None
    timeout_s: float = TIMEOUT_S  # of one check; a count of the rows has `count_timeout_s`
    count_timeout_s: float = COUNT_TIMEOUT_S
    embedded_source: bool = False  # the source is the embedded server, whose only user may do everything


@dataclass(slots=True)
class _Found:
    """What the lanes find out for the checks after them; None where it could not be."""

    scope: source.Scope | None = None
    row_bytes: float | None = None
    rate: Rate | None = None


def preflight_account(
    account: str,
    options: PreflightOptions,
    connections: Connections,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> Report:
    """Return every check of the account. Writes nothing, and never takes longer than its time-outs.

    Raises BadInputError only for what makes every check pointless: an illegal account, a mapping file that is none, a
    setting that is wrong.
    """
    began = time.monotonic()
    AccountTopics.of(account)
    mapping = load(options.mapping_path or None)
    limits = ProducerSettings.load().limits(MESSAGE_BYTES_LIMIT)
    found = _Found()
    checks = run_lanes(
        [
            _source_lane(account, mapping, limits, options, connections, found, progress),
            _kafka_lane(account, options, connections),
            _mongodb_lane(account, options, connections, found),
            _directory_lane(account, mapping, options, connections),
        ]
    )
    expected = _estimate(found)
    lost = {check.name: check.found for check in checks if check.verdict is Verdict.FAIL}

    def late(server: str, name: str, needs: Sequence[str], check: Callable[[], Check], timeout_s: float) -> Lane:
        """Return the lane of a check that needs what others have found; skipped if one of those has failed."""
        why = next((lost[needed] for needed in needs if needed in lost), None)
        guarded = check if why is None else lambda: fail(name, f"not checked: {why}", "")
        return Lane(server, [Step(name, guarded, timeout_s)])

    checks += run_lanes(
        [
            late(
                "source and MongoDB",
                "contacts_coverage",
                ("source_reachable", "source_mapping", "mongodb_reachable"),
                lambda: _with_database(
                    connections,
                    lambda db: mongodb.check_coverage(
                        db, connections.crm_audit_database_url, mapping, account, options.date_range_start
                    ),
                ),
                options.timeout_s + coverage.READ_MAX_S,
            ),
            late("estimate", "estimate", (), lambda: check_estimate(expected), options.timeout_s),
            late(
                "Kafka",
                "kafka_retention",
                ("kafka_reachable",),
                lambda: kafka.check_retention(connections.kafka(), account, expected),
                options.timeout_s,
            ),
            late(
                "MongoDB",
                "mongodb_space",
                ("mongodb_reachable",),
                lambda: _with_database(connections, lambda db: mongodb.check_space(db, expected)),
                options.timeout_s,
            ),
        ]
    )
    return Report(account, tuple(checks), time.monotonic() - began)


def _source_lane(
    account: str,
    mapping: SourceMapping,
    limits: Any,
    options: PreflightOptions,
    connections: Connections,
    found: _Found,
    progress: Callable[[int, int], None],
) -> Lane:
    dsn, start, timeout_s = connections.crm_audit_database_url, options.date_range_start, options.timeout_s

    def scope() -> Check:
        found.scope = source.read_scope(dsn, mapping, account, start, progress)
        return source.check_scope(found.scope, start)

    def page_query() -> Check:
        if found.scope is None:
            return fail("source_page_query", "the rows could not be counted, so no page can be tried", "")
        found.row_bytes = source.row_bytes(dsn, mapping, account, found.scope, limits)
        return source.check_page_query(dsn, mapping, account, found.scope, limits, start)

    return Lane(
        "the source",
        [
            Step("source_reachable", lambda: source.check_reachable(dsn), timeout_s, essential=True),
            Step(
                "source_read_only",
                lambda: source.check_read_only(dsn, mapping, is_ours=options.embedded_source),
                timeout_s,
            ),
            Step("source_clock", lambda: source.check_clock(dsn), timeout_s),
            Step("source_encoding", lambda: source.check_encoding(dsn), timeout_s),
            Step("source_replica", lambda: source.check_replica(dsn), timeout_s),
            Step("source_transactions", lambda: source.check_transactions(dsn), timeout_s),
            Step("source_visibility", lambda: source.check_visibility(dsn, mapping), options.count_timeout_s),
            Step("source_mapping", lambda: source.check_mapping(dsn, mapping, account), timeout_s, essential=True),
            Step(
                "source_changes",
                lambda: changes.check_changes(dsn, mapping, account, limits),
                timeout_s + changes.READ_MAX_S,
            ),
            Step("source_late_commits", lambda: source.check_late_commits(dsn, mapping, account), timeout_s),
            Step("source_scope", scope, options.count_timeout_s),
            Step("source_page_query", page_query, timeout_s + limits.statement_timeout_s),
        ],
    )


def _kafka_lane(account: str, options: PreflightOptions, connections: Connections) -> Lane:
    timeout_s, partitions = options.timeout_s, options.partitions

    def reachable() -> Check:
        connections.require("kafka_bootstrap_servers")
        return kafka.check_reachable(connections.kafka())

    copies = connections.kafka_replication_factor
    return Lane(
        "Kafka",
        [
            Step("kafka_reachable", reachable, timeout_s, essential=True),
            Step("kafka_names", lambda: kafka.check_names(connections.kafka(), account), timeout_s),
            Step(
                "kafka_topics", lambda: kafka.check_topics(connections.kafka(), account, partitions, copies), timeout_s
            ),
            Step(
                "kafka_permissions",
                lambda: kafka.check_permissions(connections.kafka(), account, partitions, copies),
                timeout_s,
            ),
        ],
    )


def _mongodb_lane(account: str, options: PreflightOptions, connections: Connections, found: _Found) -> Lane:
    timeout_s = options.timeout_s

    def asked(ask: Callable[[Database], Check]) -> Callable[[], Check]:
        return lambda: _with_database(connections, ask)

    def schema(database: Database) -> Check:
        found.rate = mongodb.rate_of_runs(database)
        return mongodb.check_schema(database)

    return Lane(
        "MongoDB",
        [
            Step("mongodb_reachable", asked(mongodb.check_reachable), timeout_s, essential=True),
            Step("mongodb_clock", asked(mongodb.check_clock), timeout_s),
            Step("mongodb_schema", asked(schema), timeout_s),
            Step("mongodb_indexes", asked(mongodb.check_indexes), timeout_s),
            Step("mongodb_permissions", asked(mongodb.check_permissions), timeout_s),
            Step("job", asked(lambda database: mongodb.check_job(database, account)), timeout_s),
            Step(
                "contacts", asked(lambda database: mongodb.check_contacts(database, account)), options.count_timeout_s
            ),
        ],
    )


def _directory_lane(account: str, mapping: SourceMapping, options: PreflightOptions, connections: Connections) -> Lane:
    url, dsn = connections.user_directory_url, connections.crm_audit_database_url

    def users() -> Check:
        active: list[str] = []
        deleted: list[str] = []
        if url:
            active = directory.sample_emails(dsn, mapping, deleted=False)
            deleted = directory.sample_emails(dsn, mapping, deleted=True)
        try:
            return directory.check_directory(url, account, active, deleted)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            return directory.outage(error)

    return Lane(
        "the user directory",
        [
            Step(
                "schema_registry", lambda: directory.check_registry(connections.schema_registry_url), options.timeout_s
            ),
            Step("user_directory", users, options.timeout_s),
        ],
    )


def _estimate(found: _Found) -> Estimate | None:
    if found.scope is None or found.row_bytes is None:
        return None
    return estimate(found.scope.rows.rows, found.row_bytes, found.rate or rate_of(()))


def check_estimate(expected: Estimate | None) -> Check:
    """Return how long the replay takes and how much it writes; pure."""
    if expected is None:
        return warn("estimate", "not known how many rows there will be", "fix what keeps the rows from being counted")
    if expected.seconds > DAY_S:
        return warn(
            "estimate",
            expected.text(),
            "read more id ranges at once, with more processors and sinks",
            **expected.facts(),
        )
    return ok("estimate", expected.text(), **expected.facts())


def _with_database(connections: Connections, ask: Callable[[Database], Check]) -> Check:
    database = connect(connections, app_name="crm-replay-preflight")
    try:
        return ask(database)
    finally:
        database.client.close()
