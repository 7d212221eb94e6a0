"""I/O: the checks of the CRM's PostgreSQL. Every session is the reader's own, read-only by the server's setting.

The one exception is the attempt to write: it has to be made without that setting, or it would prove nothing about the
role. It updates no row, in a transaction that is rolled back.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ops.checks.model import Check, Verdict, duration_text, fail, join, ok, warn
from ops.checks.preflight.plan import judge, page_plan
from producer.audits import (
    CONNECT_TIMEOUT_S,
    INLINE_BYTES_MAX,
    AuditReader,
    AuditSource,
    Connection,
    LagUnknownError,
    Limits,
    QueryTooSlowError,
    answering,
    columns_of,
    connect,
    first_line,
    replica_lag,
    resolve,
    sql_text,
    where,
)
from producer.cursor import EARLIEST
from producer.survey import (
    SERVER_VERSION_MIN,
    InScope,
    UnreplayableIdsError,
    check_references,
    count,
    require_ids,
)
from producer.visibility import (
    Table,
    Visible,
    may_be_part,
    row_security_stated,
    tables_read,
    visible,
    why_not_whole,
)
from schemas.source.mapping import SourceMapping
from sink.failure_rate import FAILURE_RATE_MAX

CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 300.0
REPLICA_LAG_WARN_S = 60.0
TRANSACTION_WARN_S = 300.0
LOCK_TIMEOUT_MS = 2_000
WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
AnyConnection = Connection | psycopg.Connection[Any]
SAMPLE_PLACES = 4
SEEN_TIMEOUT_S = 20.0  # for a count of all rows of a table that may show a part only
SEEN_MIN = 0.9  # of the rows in the statistics; ANALYZE reads a sample
TYPES_NAMED_MAX = 10
GRANT = (
    "give a role that may only read: CREATE ROLE crm_replay LOGIN PASSWORD '…'; GRANT USAGE ON SCHEMA {schema} TO"
    " crm_replay; GRANT SELECT ON {tables} TO crm_replay"
)


@dataclass(frozen=True, slots=True)
class Scope:
    """The account's rows in the source."""

    rows: InScope
    top: int
    table_rows: int  # of the whole table, as the last ANALYZE saw it
    refused: UnreplayableIdsError | None = None  # why no run may begin, however the rest is


def check_reachable(dsn: str) -> Check:
    """Return whether the server accepts the connection, and its version."""
    with connect(dsn) as db:
        version = db.info.server_version
        encrypted = _one(db, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") or False
        pooled = ", through a connection pooler" if db.pooled else ""
    summary = f"{where(dsn)}, version {version // 10_000}.{version % 10_000}{pooled}"
    summary += "" if encrypted else ", not encrypted"
    if version < SERVER_VERSION_MIN:
        return fail("source_reachable", summary, "PostgreSQL 13 or newer is needed")
    if not encrypted and not _is_local(dsn):
        return warn(
            "source_reachable", summary, "personal data crosses the network: add sslmode=verify-full to the DSN"
        )
    return ok("source_reachable", summary, version=version, encrypted=bool(encrypted))


def check_read_only(dsn: str, mapping: SourceMapping, *, is_ours: bool = False) -> Check:
    """Return whether this DSN can write: its privileges are queried, and a write is attempted.

    `is_ours`: it is the embedded server, whose only user may do everything.
    """
    name = "source_read_only"
    tables = tables_of(mapping)
    audits = (mapping.source.schema_name, mapping.source.table)
    with psycopg.connect(_bare(dsn), autocommit=False, prepare_threshold=None) as db:
        role, is_super, standby = _row(
            db,
            "SELECT current_user::text, COALESCE((SELECT rolsuper FROM pg_roles WHERE rolname = current_user), false),"
            " pg_is_in_recovery()",
        )
        granted = {table: rights for table in tables if (rights := _writes_allowed(db, table))}
        refused = _try_to_write(db, audits)
        db.rollback()
    facts: dict[str, Any] = {
        "role": role,
        "superuser": is_super,
        "standby": standby,
        "write": refused or "was let through",
    }
    facts |= {"may_write": sorted(".".join(table) for table in granted)}
    all_rights = ", ".join(f"{', '.join(rights)} on {'.'.join(table)}" for table, rights in granted.items())
    to_do = GRANT.format(schema=audits[0], tables=", ".join(".".join(table) for table in tables))
    if refused is None:
        found = f"role {role} may write: an UPDATE of {'.'.join(audits)} was let through"
        if is_ours:
            return warn(name, f"{found} (the embedded server's only user)", f"in production {to_do}", **facts)
        return fail(name, found, to_do, **facts)
    if standby:
        return ok(name, f"a standby: it accepts no writes ({refused})", **facts)
    if is_super or granted:
        could = "is a superuser" if is_super else f"has {all_rights}"
        return warn(name, f"writes are refused ({refused}), but role {role} {could}", to_do, **facts)
    return ok(name, f"writes are refused ({refused}), and role {role} has no right to any", **facts)


def _writes_allowed(db: AnyConnection, table: tuple[str, str]) -> list[str]:
    """Return which kinds of write the role has been granted on a table."""
    relation = _one(db, "SELECT to_regclass(%(name)s)::oid", {"name": f'"{table[0]}"."{table[1]}"'})
    if relation is None:
        return []
    return [
        right
        for right in WRITES
        if _one(db, "SELECT has_table_privilege(%(table)s::oid, %(right)s)", {"table": relation, "right": right})
    ]


def _try_to_write(db: psycopg.Connection[Any], table: tuple[str, str]) -> str | None:
    """Return why a write was refused; None if it was let through. No row is touched, and nothing is committed."""
    db.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
    try:
        db.execute(sql.SQL("UPDATE {} SET id = id WHERE false").format(sql.Identifier(*table)))
    except psycopg.Error as error:
        return first_line(error)
    finally:
        db.rollback()
    return None


def check_mapping(dsn: str, mapping: SourceMapping, account: str) -> Check:
    """Return whether tables, columns, their types and the account match the source mapping."""
    with connect(dsn) as db:
        resolve(db, mapping, account)
        check_references(db, mapping)
        audits = (mapping.source.schema_name, mapping.source.table)
        shape = columns_of(db, *audits)["audited_changes"]
        types = _common_types(db, audits)
    unset = sorted(
        {
            rule.status.id_set
            for rule in mapping.categories.values()
            if rule.status is not None and not mapping.id_sets.get(rule.status.id_set)
        }
    )
    unread = [name for name in types if name not in mapping.stored_types(mapping.scope)]
    unmapped = [
        name
        for name in mapping.scope
        if name not in mapping.categories and name not in mapping.join_models and name in types
    ]
    findings: list[tuple[Verdict, str, str]] = []
    if unset:
        findings.append(
            (
                Verdict.WARN,
                f"no ids for {', '.join(unset)}: such changes stay updates",
                "list the status ids under id_sets in the source mapping",
            )
        )
    if unread:
        findings.append(
            (
                Verdict.WARN,
                f"types in the table that are not in scope, so never read: {', '.join(unread[:10])}",
                "add them to scope, if their history counts",
            )
        )
    facts = {"tables": [".".join(t) for t in tables_of(mapping)], "audited_changes": shape}
    facts |= {"types_not_in_scope": unread, "types_without_category": unmapped, "id_sets_missing": unset}
    summary = f"{len(mapping.scope)} types in scope; tables and columns exist; audited_changes is {shape}"
    return join("source_mapping", findings, summary, **facts)


def check_visibility(dsn: str, mapping: SourceMapping) -> Check:
    """Return whether the role sees all rows and columns of the tables that are read, as far as it can be known."""
    findings: list[tuple[Verdict, str, str]] = []
    facts: dict[str, Any] = {}
    stated = row_security_stated(dsn)
    with connect(dsn, SEEN_TIMEOUT_S) as db:
        for table in tables_read(mapping):
            seen = visible(db, table)
            if seen is None:
                findings.append((Verdict.WARN, f"{table} does not exist, so its visibility is unknown", ""))
                continue
            facts[str(table)] = {
                "kind": seen.kind,
                "row_security": seen.row_security,
                "unreadable_columns": list(seen.unreadable),
            }
            hidden = why_not_whole(table, seen, stated=stated)
            if hidden is not None:
                findings.append((Verdict.FAIL, hidden.what, hidden.to_do))
            elif may_be_part(table, seen):
                rows, known = _seen_and_known(db, table, seen)
                facts[str(table)] |= {"rows_seen": rows, "rows_known": known}
                findings.append(_of_a_part(table, seen, rows, known))
    return join("source_visibility", findings, "no row and no column that is read is hidden from the role", **facts)


def _of_a_part(table: Table, seen: Visible, rows: int | None, known: int | None) -> tuple[Verdict, str, str]:
    """Return the finding on a table that may show a part of its rows only. Pure."""
    if rows is None or known is None:
        compared, fewer = "how many rows that hides cannot be known", False
    else:
        fewer = rows < SEEN_MIN * known
        compared = f"it shows {rows:,} rows, the statistics of the tables behind it have about {known:,}"
    summary = f"{may_be_part(table, seen)}; {compared}"
    if seen.row_security:
        to_do = "have the policies checked; better a role with BYPASSRLS"
        return Verdict.FAIL if fewer else Verdict.WARN, summary, to_do
    return Verdict.WARN, summary, "make sure that it shows every row of the account, or name the table itself"


def _seen_and_known(db: Connection, table: Table, seen: Visible) -> tuple[int | None, int | None]:
    """Return how many rows the role sees of a table, and how many the statistics of the tables behind it know of.

    None where that is unknown: a count that takes too long, tables without statistics. Of a view's tables the largest
    counts; partitions and children count with their parent.
    """
    known = _one(
        db,
        "WITH RECURSIVE behind (oid, kind) AS ("
        " SELECT class.oid, class.relkind FROM pg_class AS class WHERE class.oid = %(oid)s::oid"
        " UNION SELECT class.oid, class.relkind FROM behind"
        "  JOIN pg_rewrite AS rule ON rule.ev_class = behind.oid AND behind.kind IN ('v', 'm')"
        "  JOIN pg_depend AS depend ON depend.classid = 'pg_rewrite'::regclass AND depend.objid = rule.oid"
        "   AND depend.refclassid = 'pg_class'::regclass"
        "  JOIN pg_class AS class ON class.oid = depend.refobjid"
        "), tree (root, oid) AS ("
        " SELECT oid, oid FROM behind WHERE kind IN ('r', 'p')"
        " UNION SELECT tree.root, child.inhrelid FROM tree JOIN pg_inherits AS child ON child.inhparent = tree.oid"
        "), tables AS ("
        " SELECT root, class.reltuples, pg_stat_get_live_tuples(class.oid) AS live FROM tree"
        "  JOIN pg_class AS class ON class.oid = tree.oid AND class.relkind = 'r'"
        ") SELECT sum(CASE WHEN reltuples > 0 AND live > 0 THEN LEAST(reltuples, live)"
        "  ELSE GREATEST(reltuples, live, 0) END)::bigint AS known"
        " FROM tables GROUP BY root ORDER BY known DESC LIMIT 1",
        {"oid": seen.oid},
    )
    try:
        rows = _one(db, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.schema, table.name)))
    except QueryTooSlowError:
        rows = None
    return rows, known or None  # no statistics yet: 0


def _common_types(db: Connection, table: tuple[str, str]) -> list[str]:
    """Return the auditable types that the last ANALYZE saw most; empty without statistics."""
    query = (
        "SELECT most_common_vals::text::text[] FROM pg_stats"
        " WHERE schemaname = %(schema)s AND tablename = %(table)s AND attname = 'auditable_type'"
    )
    return list(_one(db, query, {"schema": table[0], "table": table[1]}) or [])


def read_scope(
    dsn: str, mapping: SourceMapping, account: str, start: datetime | None, progress: Callable[[int, int], None]
) -> Scope:
    """Return the account's rows in scope, counted window by window."""
    with connect(dsn) as db:
        source = resolve(db, mapping, account)
        with answering("querying the newest id"):
            _, top, _ = db.execute(source.query("horizon")).fetchall()[0]
        table_rows = _one(
            db,
            "SELECT GREATEST(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass(%(name)s)",
            {"name": f'"{source.schema}"."{source.relation}"'},
        )
        refused = None
        try:
            require_ids(db, source, start)
        except UnreplayableIdsError as error:
            refused = error
        return Scope(count(db, source, top, start, progress), top, table_rows or 0, refused)


def check_scope(scope: Scope, start: datetime | None) -> Check:
    """Return MIN, MAX and COUNT in scope, and the rows out of it; pure."""
    rows = scope.rows
    others = dict(sorted(rows.out_of_scope_by_type.items(), key=lambda item: (-item[1], item[0])))
    facts = {
        "rows": rows.rows,
        "min_id": rows.min_id,
        "max_id": rows.max_id,
        "earliest": rows.earliest.isoformat() if rows.earliest else None,
        "date_range_start": start.isoformat() if start else None,
        "rows_without_created_at": rows.rows_without_created_at,
        "rows_outside_calendar": rows.rows_outside_calendar,
        "out_of_scope_by_type": others,
        "newest_id_of_the_table": scope.top,
    }
    findings: list[tuple[Verdict, str, str]] = []
    if scope.refused is not None:
        findings.append((Verdict.FAIL, scope.refused.what, scope.refused.to_do))
    since = f", created from {rows.earliest:%Y-%m-%d}" if rows.earliest else ""
    summary = f"{rows.rows:,} rows in scope, ids {rows.min_id:,} to {rows.max_id:,}{since}"
    if rows.rows == 0:
        summary = "no row of the account is in scope"
        findings.append((Verdict.WARN, "is it the right account?", "check scope, account and date range"))
    if rows.rows_without_created_at and start is not None:
        findings.append(
            (
                Verdict.WARN,
                f"{rows.rows_without_created_at:,} rows without created_at are in no date range, so not read",
                "set created_at in the CRM, or leave out --date-range-start",
            )
        )
    odd = max(rows.rows_outside_calendar, 0 if start is not None else rows.rows_without_created_at)
    if odd:
        halts = ", enough to halt the job" if rows.rows_outside_calendar > FAILURE_RATE_MAX * rows.rows else ""
        findings.append(
            (
                Verdict.FAIL if halts else Verdict.WARN,
                f"{odd:,} rows end as dead letters{halts}: created_at NULL, infinite or not of the years 1 to 9999",
                "correct created_at in the CRM, or leave them out with --date-range-start",
            )
        )
    if others:
        named = ", ".join(f"{name or '(no type)'} ({count:,})" for name, count in [*others.items()][:TYPES_NAMED_MAX])
        more = f" and {len(others) - TYPES_NAMED_MAX:,} more" if len(others) > TYPES_NAMED_MAX else ""
        findings.append(
            (
                Verdict.WARN,
                f"{sum(others.values()):,} rows are of types that are not in scope, so not read: {named}{more}",
                "add them to scope, if their history counts",
            )
        )
    check = join("source_scope", findings, summary, **facts)
    return replace(check, found=f"{summary}; {check.found}") if findings else check


def check_page_query(
    dsn: str, mapping: SourceMapping, account: str, scope: Scope, limits: Limits, start: datetime | None
) -> Check:
    """Return how pages at the beginning, the middle and the end of the account's ids are read; the worst counts."""
    low, high = scope.rows.min_id, scope.rows.max_id
    cursors = sorted({max(low - 1, 0), (low + high) // 2, max(low - 1, high - limits.id_window, 0)})
    judged = []
    with connect(dsn, limits.statement_timeout_s) as db:
        source = resolve(db, mapping, account)
        table = f"{source.schema}.{source.relation}"
        for cursor in cursors:
            plan = page_plan(_explain(db, source, cursor, min(cursor + limits.id_window, scope.top), limits, start))
            verdict, found, to_do = judge(
                plan,
                table=table,
                table_rows=scope.table_rows,
                account_column=source.account_column,
                page_rows=limits.page_rows,
            )
            judged.append((verdict, found, to_do, {"cursor": cursor, **plan.facts()}))
    rank = list(Verdict)
    verdict, found, to_do, _ = max(judged, key=lambda one: (rank.index(one[0]), one[3]["execution_ms"]))
    return Check("source_page_query", verdict, found, to_do, {"pages": [one[3] for one in judged]})


def _explain(
    db: Connection, source: AuditSource, cursor: int, window_end: int, limits: Limits, start: datetime | None
) -> Sequence[dict[str, Any]]:
    query = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}").format(source.query("page", "row", cutoff=start))
    values = {
        "cursor": cursor,
        "window_end": window_end,
        "scope": list(source.types),
        "account": source.account,
        "cutoff": source.moment(start or EARLIEST),
        "page_rows": limits.page_rows,
        "size_max": INLINE_BYTES_MAX,
    }
    with answering("explaining the page query"):
        answer: Sequence[dict[str, Any]] = db.execute(query, values).fetchall()[0][0]
    return answer


def row_bytes(dsn: str, mapping: SourceMapping, account: str, scope: Scope, limits: Limits) -> float:
    """Return the mean size of a row's changes and comment, from pages at several places; 0.0 without a row."""
    low, high = scope.rows.min_id - 1, scope.rows.max_id
    step = max(1, (high - low) // SAMPLE_PLACES)
    with connect(dsn) as db:
        source = resolve(db, mapping, account)
    size = rows = 0
    with closing(AuditReader(dsn, source, EARLIEST, limits)) as reader:
        for cursor in range(low, high, step):
            page = reader.page_after(cursor, high, 0, (), look_for_gaps=False)
            size += sum(len(event.audited_changes.encode()) + len(event.comment.encode()) for event in page.events)
            rows += len(page.events)
    return size / rows if rows else 0.0


def check_replica(dsn: str) -> Check:
    """Return how far behind its primary the source is; a primary is never behind."""
    query = (
        "SELECT pg_is_in_recovery(), current_setting('hot_standby_feedback', true),"
        " current_setting('max_standby_streaming_delay', true)"
    )
    with connect(dsn) as db:
        standby, feedback, delay = _row(db, query)
        if not standby:
            return ok("source_replica", "the primary itself: no lag", standby=False)
        facts = {"standby": True, "hot_standby_feedback": feedback, "max_standby_streaming_delay": delay}
        try:
            lag_s = replica_lag(db)
        except LagUnknownError as error:
            return ok("source_replica", f"a replica; this server does not report its lag ({error})", **facts)
    facts["lag_s"] = lag_s
    if lag_s is None or lag_s > REPLICA_LAG_WARN_S:
        behind = "an unknown time" if lag_s is None else duration_text(lag_s)
        return warn(
            "source_replica",
            f"the replica is {behind} behind its primary",
            "rows that have not arrived yet belong to the live feed or to a later run; wait until it has caught up",
            **facts,
        )
    summary = f"a replica, {lag_s:.0f} s behind; hot_standby_feedback {feedback}, queries wait up to {delay}"
    if feedback == "off":
        return warn(
            "source_replica",
            summary,
            "a vacuum of the primary can cancel a page; it is read again, but slowly: SET hot_standby_feedback = on",
            **facts,
        )
    return ok("source_replica", summary, **facts)


def check_transactions(dsn: str) -> Check:
    """Return how old the oldest open transaction is: the run's end waits for those that began before it."""
    query = (
        "SELECT what, age_s FROM ("
        " SELECT 'pid ' || pid || COALESCE(' of ' || usename, '') || COALESCE(', ' || state, '') AS what,"
        "  extract(epoch FROM now() - xact_start)::float8 AS age_s FROM pg_stat_activity"
        "  WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        "  AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) AND backend_type = 'client backend'"
        " UNION ALL SELECT 'prepared transaction ' || gid, extract(epoch FROM now() - prepared)::float8"
        "  FROM pg_prepared_xacts) AS open ORDER BY age_s DESC LIMIT 3"
    )
    with connect(dsn) as db:
        rows = db.execute(query).fetchall()
        sees_all = bool(
            _one(
                db,
                "SELECT pg_has_role('pg_read_all_stats', 'member') OR rolsuper FROM pg_roles"
                " WHERE rolname = current_user",
            )
        )
        behind = _one(
            db,
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
            " - pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
        )
    facts = {
        "oldest": [{"who": who, "age_s": round(age)} for who, age in rows],
        "sees_all": sees_all,
        "transactions_behind": behind,
    }
    if rows and rows[0][1] > TRANSACTION_WARN_S:
        return warn(
            "source_transactions",
            f"{rows[0][0]} has been in a transaction for {duration_text(rows[0][1])}",
            "end it before the run, or the run's last step waits for it (CRM_REPLAY_HORIZON_WAIT_S)",
            **facts,
        )
    if not sees_all and behind and behind > 1:
        return warn(
            "source_transactions",
            f"{behind:,} transactions are open or newer than an open one; this role may not see whose",
            "GRANT pg_read_all_stats TO it, or see pg_stat_activity",
            **facts,
        )
    summary = f"the oldest is {duration_text(rows[0][1])} old" if rows else "none is open"
    return ok("source_transactions", f"open transactions: {summary}", **facts)


def check_late_commits(dsn: str, mapping: SourceMapping, account: str) -> Check:
    """Return whether a run sees all transactions that may commit an id below its newest after it has started."""
    caches = (
        "SELECT sequence.oid::regclass::text, seqcache FROM pg_sequence JOIN pg_class AS sequence"
        " ON sequence.oid = seqrelid JOIN pg_depend AS depend ON depend.objid = sequence.oid"
        " WHERE depend.refobjid = to_regclass(%(name)s) AND depend.classid = 'pg_class'::regclass AND seqcache > 1"
    )
    with connect(dsn) as db:
        source = resolve(db, mapping, account)
        role, standby = _row(db, "SELECT current_user::text, pg_is_in_recovery()")
        try:
            db.execute(sql_text("writers"), {"schema": source.schema, "relation": source.relation})
            sees_locks = True
        except psycopg.errors.InsufficientPrivilege:
            sees_locks = False
        name = sql.Identifier(source.schema, source.relation).as_string(None)
        cached = db.execute(caches, {"name": name}).fetchall()
    findings: list[tuple[Verdict, str, str]] = []
    if not sees_locks:
        found = "open transactions that have drawn an id, and have no transaction id yet, are not seen"
        findings.append((Verdict.WARN, found, f"GRANT SELECT ON pg_catalog.pg_locks TO {role}"))
    for sequence, ids in cached:
        findings.append(
            (
                Verdict.WARN,
                f"{sequence} hands out {ids} ids at once, of which a session may commit some much later",
                f"ALTER SEQUENCE {sequence} CACHE 1, or let the nightly check look for late rows",
            )
        )
    seen = "all but those that have no transaction id yet: a standby" if standby else "all are seen"
    facts = {"standby": standby, "sees_locks": sees_locks, "caches": dict(cached)}
    return join("source_late_commits", findings, f"open transactions that may still commit older ids: {seen}", **facts)


def check_clock(dsn: str) -> Check:
    """Return how far this host's clock and the source's are apart, to the precision of the round trip."""
    with connect(dsn) as db:
        _one(db, "SELECT 1")
        asked_at = time.time()
        theirs = float(_one(db, "SELECT extract(epoch FROM clock_timestamp())::float8") or 0.0)
        answered_at = time.time()
    return clock_check("source_clock", "the source", theirs, asked_at, answered_at)


def clock_check(name: str, server: str, theirs: float, asked_at: float, answered_at: float) -> Check:
    """Return the verdict on a server's clock, all in seconds since 1970; pure."""
    # Somewhere between question and answer it was `theirs`: only what lies outside of that is a difference for sure.
    ahead = theirs - answered_at if theirs > answered_at else min(0.0, theirs - asked_at)
    facts = {"ahead_s": round(ahead, 3), "round_trip_s": round(answered_at - asked_at, 3)}
    at = datetime.fromtimestamp(theirs, UTC)
    if abs(ahead) <= CLOCK_WARN_S:
        return ok(name, f"{server}'s clock and this host's agree ({at:%H:%M:%S} UTC)", **facts)
    summary = f"{server}'s clock is {duration_text(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this host's"
    to_do = "synchronise both with NTP: watermarks, run numbers and leases are times"
    return (fail if abs(ahead) > CLOCK_FAIL_S else warn)(name, summary, to_do, **facts)


def check_encoding(dsn: str) -> Check:
    """Return encoding and collation of the source's database."""
    query = (
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()"
    )
    with connect(dsn) as db:
        encoding, collate, ctype = _row(db, query)
    facts = {"encoding": encoding, "collate": collate, "ctype": ctype}
    summary = f"encoding {encoding}, collation {collate}"
    if encoding == "SQL_ASCII":
        return warn(
            "source_encoding",
            f"{summary}: the server does not know what its bytes mean",
            "rows that are not UTF-8 become dead letters; find them with convert_from(column::bytea, 'UTF8')",
            **facts,
        )
    if encoding != "UTF8":
        return ok("source_encoding", f"{summary}, converted to UTF-8 by the server", **facts)
    return ok("source_encoding", summary, **facts)


def tables_of(mapping: SourceMapping) -> list[tuple[str, str]]:
    """Return schema and name of every table that the replay reads, each once, the audits first."""
    tables = [(mapping.source.schema_name, mapping.source.table), (mapping.users.schema_name, mapping.users.table)]
    tables += [(table.schema_name, table.table) for table in mapping.referents.values()]
    return list(dict.fromkeys(tables))


def _bare(dsn: str) -> str:
    """Return the DSN without the options that make the session read-only."""
    defaults = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "crm-replay preflight"}
    parts: dict[str, Any] = {**defaults, **conninfo_to_dict(dsn)}
    return make_conninfo(**parts)


def _is_local(dsn: str) -> bool:
    host = str(conninfo_to_dict(dsn).get("host") or "")
    return not host or host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")


def _row(db: AnyConnection, query: Any, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
    with answering("querying the source"):
        return db.execute(query, values).fetchall()[0]


def _one(db: AnyConnection, query: Any, values: dict[str, Any] | None = None) -> Any:
    with answering("querying the source"):
        rows = db.execute(query, values).fetchall()
    return rows[0][0] if rows else None
