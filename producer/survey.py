"""The survey of the source before a job exists: whether it is readable, what is in scope, where it ends."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
from psycopg import sql

from producer.audits import (
    AuditSource,
    Connection,
    answering,
    columns_of,
    connect,
    require_columns,
    resolve,
    sql_text,
)
from producer.core import EPOCH_2000_US
from producer.cursor import EARLIEST, cutoff
from producer.visibility import require_whole_tables, tables_read
from schemas.errors import BadInputError
from schemas.source.mapping import SourceMapping

logger = logging.getLogger(__name__)

COUNT_WINDOW_IDS = 500_000  # a count is many short queries instead of a long one
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SERVER_VERSION_MIN = 130_000  # pg_current_snapshot
IDS_NAMED_MAX = 5
OTHER_TYPES_MAX = 100  # out of scope, counted by name; usual are some dozens
REMAINING_TYPES = "(other types)"

Progress = Callable[[int, int], None]  # id scanned up to, newest id


class UnreplayableIdsError(BadInputError):
    """Rows in scope have ids that do not identify them in a replay.

    Ids below 1: high-water marks and `_id`s cannot hold them (DECISIONS.md, decision 50). Or one id for several rows.
    """


@dataclass(frozen=True, slots=True)
class Survey:
    """The source as it is when a job starts."""

    rows: int  # in scope and in the date range; without one, all in scope
    rows_without_created_at: int  # of the account and of types in scope; in no date range
    rows_outside_calendar: int  # of `rows`: created_at is NULL, infinite or outside of the years 1 to 9999
    min_id: int  # of the account's rows of types in scope; 0 if there are none
    max_id: int
    top_audit_id: int  # newest id of the whole table
    snapshot_xmax: int  # transactions below it, if they have an id already, may still commit ids up to top
    writers: tuple[str, ...]  # virtual ids of transactions that may, too, and had no transaction id yet
    cutoff: datetime  # aware UTC; start of the date range or else of the account's history
    out_of_scope_by_type: Mapping[str, int]  # rows of the account and the date range that are not read
    account: Any  # the mapped account column's value; None if the whole table is this account's
    changes_are_json: bool
    created_at_has_zone: bool
    notes: tuple[str, ...] = ()  # on tables that may show only a part of their rows: a view, policies


@dataclass(frozen=True, slots=True)
class InScope:
    """A count of the rows in scope up to an id, and of those out of scope. Fields as in `Survey`."""

    rows: int
    rows_without_created_at: int
    min_id: int
    max_id: int
    earliest: datetime | None  # created_at
    rows_outside_calendar: int = 0
    out_of_scope_by_type: Mapping[str, int] = field(default_factory=dict)


def survey(
    dsn: str,
    mapping: SourceMapping,
    company_sso_id: str,
    *,
    date_range_start: datetime | None = None,
    statement_timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> Survey:
    """Return the survey of an account's source; read-only.

    Raises BadInputError in one line for a missing table or column, one of another type, an invalid name expression, an
    unknown account, rows or columns that are hidden from the role; UnreplayableIdsError for ids below 1 or of several
    rows; ServiceUnreachableError if the connection fails.
    """
    with connect(dsn, statement_timeout_s) as db:
        if db.info.server_version < SERVER_VERSION_MIN:
            raise BadInputError(f"PostgreSQL {db.info.server_version // 10_000} is too old", "13 or newer is needed")
        notes = require_whole_tables(db, dsn, tables_read(mapping))
        source = resolve(db, mapping, company_sso_id)
        check_references(db, mapping)
        require_ids(db, source, date_range_start)
        with answering("reading the newest id"):
            _, top, xmax = db.execute(source.query("horizon")).fetchall()[0]
        # After the newest id: a transaction that drew an id up to it is among these, or has ended and is visible.
        writers = writers_of(db, source)
        top = max(top, 0)  # another account's ids may all be below 1
        found = count(db, source, top, date_range_start, progress)
        with answering("reading the server's time"):
            now = db.execute("SELECT extract(epoch FROM now())::float8").fetchall()[0][0]
    return Survey(
        rows=found.rows,
        rows_without_created_at=found.rows_without_created_at,
        rows_outside_calendar=found.rows_outside_calendar,
        min_id=found.min_id,
        max_id=found.max_id,
        top_audit_id=top,
        snapshot_xmax=xmax,
        writers=writers,
        cutoff=cutoff(date_range_start, found.earliest, datetime.fromtimestamp(now, UTC)),
        out_of_scope_by_type=found.out_of_scope_by_type,
        account=source.account,
        changes_are_json=source.changes_are_json,
        created_at_has_zone=source.created_at_has_zone,
        notes=notes,
    )


def count_in_scope(
    dsn: str,
    mapping: SourceMapping,
    company_sso_id: str,
    *,
    top_audit_id: int,
    cutoff: datetime,
    statement_timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> InScope:
    """Return the count of the rows a job reads, late ones included: the total of the ledger.

    A cutoff of EARLIEST leaves out no row.
    """
    with connect(dsn, statement_timeout_s, patient=True) as db:  # at the end of a run, an outage is retried
        return count(db, resolve(db, mapping, company_sso_id), top_audit_id, cutoff, progress)


def count(db: Connection, source: AuditSource, top: int, start: datetime | None, progress: Progress | None) -> InScope:
    """Return the count of the rows in scope up to `top`, window by window; empty id ranges are skipped."""
    rows = without = outside = min_id = max_id = 0
    others: Counter[str] = Counter()
    earliest: datetime | None = None
    query = source.query("count", cutoff=start)
    now: Mapping[str, str] = {} if source.mapping is None else source.mapping.aliases
    cursor = first_behind(db, source, -(2**63), top) - 1
    while cursor < top:
        window_end = min(cursor + COUNT_WINDOW_IDS, top)
        values = {
            "cursor": cursor,
            "window_end": window_end,
            "scope": list(source.types),
            "account": source.account,
            "cutoff": None if start is None else source.moment(start),
        }
        with answering("counting the rows in scope"):
            answers = db.execute(query, values, binary=True).fetchall()
        lows, highs = [], []
        for in_scope, type_name, found, undated, odd, low, high, oldest in answers:
            if not in_scope:
                others[now.get(type_name, type_name)] += found  # under the present name, as in a scope
                continue
            rows += found
            without += undated
            outside += odd
            lows.append(low)
            highs.append(high)
            if oldest is not None:
                moment = _moment(oldest)
                earliest = moment if earliest is None else min(earliest, moment)
        if lows:
            min_id = min_id or min(lows)
            max_id = max(highs)
        if len(others) > 2 * OTHER_TYPES_MAX:
            others = _most_frequent(others)
        if progress is not None:
            progress(window_end, top)
        cursor = first_behind(db, source, window_end, top) - 1
    others = _most_frequent(+others)
    return InScope(rows, without, min_id, max_id, earliest, outside, dict(others))


def _most_frequent(types: "Counter[str]") -> "Counter[str]":
    """Return the counts of the most frequent types, and the sum of the others as REMAINING_TYPES."""
    remaining = types.pop(REMAINING_TYPES, 0)
    kept = Counter(dict(types.most_common(OTHER_TYPES_MAX)))
    remaining += types.total() - kept.total()
    return kept + Counter({REMAINING_TYPES: remaining})


def require_ids(db: Connection, source: AuditSource, date_range_start: datetime | None) -> None:
    """Raise UnreplayableIdsError, with the first of them, if rows in scope have ids below 1 or share one."""
    values = {
        "scope": list(source.types),
        "account": source.account,
        "cutoff": None if date_range_start is None else source.moment(date_range_start),
        "named_max": IDS_NAMED_MAX,
    }
    _require_positive(db, source, date_range_start, values)
    with answering("checking whether ids are unique"):
        named = {"schema": source.schema, "relation": source.relation}
        unique = db.execute(sql_text("unique_ids"), named).fetchall()[0][0]
    if not unique:
        _require_unique(db, source, date_range_start, values)


def _require_unique(db: Connection, source: AuditSource, start: datetime | None, values: Mapping[str, Any]) -> None:
    query, newest = source.query("repeated_ids", cutoff=start), 2**63 - 1
    first: list[int] = []
    count = 0
    cursor = first_behind(db, source, 0, newest) - 1
    while cursor < newest:
        window_end = min(cursor + COUNT_WINDOW_IDS, newest)
        with answering("searching for ids of several rows"):
            found = db.execute(query, {**values, "cursor": cursor, "window_end": window_end}).fetchall()
        if found:
            first += [audit_id for audit_id, _ in found]
            count += found[0][1]
        cursor = first_behind(db, source, window_end, newest) - 1
    if not count:
        return
    named = ", ".join(map(str, first[:IDS_NAMED_MAX]))
    have = "id belongs" if count == 1 else "ids belong"
    raise UnreplayableIdsError(
        f"in {source.schema}.{source.relation} {count:,} {have} to more than one audit row in scope"
        f" ({named}{', and more' if count > IDS_NAMED_MAX else ''}), so they do not identify a row",
        "name a table or a view in the source mapping that has each id once",
    )


def _require_positive(
    db: Connection, source: AuditSource, date_range_start: datetime | None, values: Mapping[str, Any]
) -> None:
    with answering("searching for ids below 1"):
        found = db.execute(source.query("ids_below_1", cutoff=date_range_start), values).fetchall()
    if not found:
        return
    count = found[0][1]
    named = ", ".join(str(audit_id) for audit_id, _ in found)
    have = "audit row in scope has an id" if count == 1 else "audit rows in scope have ids"
    raise UnreplayableIdsError(
        f"{count:,} {have} below 1 ({named}{', and more' if count > len(found) else ''}), which cannot be replayed",
        "give these rows free ids above 0 in a copy of the table and name that in the source mapping, or leave them out"
        " with a date range",
    )


def writers_of(db: Connection, source: AuditSource) -> tuple[str, ...]:
    """Return the virtual ids of the transactions that may have drawn an audit id and not yet committed it.

    Empty on a standby, where they are not visible, and for a role that may not read pg_locks (every role may, unless
    that was revoked).
    """
    values = {"schema": source.schema, "relation": source.relation}
    try:
        return tuple(row[0] for row in db.execute(sql_text("writers"), values).fetchall())
    except psycopg.errors.InsufficientPrivilege as error:
        logger.warning("open transactions without a transaction id are unknown: %s", error)
        return ()
    except psycopg.Error:
        with answering("reading open transactions"):
            raise


def first_behind(db: Connection, source: AuditSource, audit_id: int, top: int) -> int:
    """Return the first id above `audit_id` that has a row, of any account; `top + 1` if there is none."""
    with answering("reading the next id"):
        found = db.execute(source.query("next_id"), {"window_end": audit_id, "last": top}).fetchall()
    return cast("int", found[0][0]) if found else top + 1


def _moment(since_2000_us: int) -> datetime:
    """Return PostgreSQL's binary timestamp as aware UTC, years before 1 as EARLIEST."""
    try:
        return EPOCH + timedelta(microseconds=since_2000_us + EPOCH_2000_US)
    except OverflowError:
        return EARLIEST


def check_references(db: Connection, mapping: SourceMapping) -> None:
    """Raise BadInputError if the tables of users and referents differ from the mapping."""
    users = mapping.users
    columns = columns_of(db, users.schema_name, users.table)
    wanted = (users.id, users.email, users.full_name, users.deleted_at)
    require_columns(columns, f"{users.schema_name}.{users.table}", wanted)
    with answering(f"table {users.schema_name}.{users.table}"):
        db.execute(
            sql.SQL("SELECT {columns} FROM {table} LIMIT 0").format(
                columns=sql.SQL(", ").join(map(sql.Identifier, wanted)),
                table=sql.Identifier(users.schema_name, users.table),
            )
        )
    for type_name, table in mapping.referents.items():
        name = f"{table.schema_name}.{table.table}"
        require_columns(columns_of(db, table.schema_name, table.table), name, (table.id,))
        query = sql.SQL("SELECT {id}, ({name})::text FROM {table} LIMIT 0").format(
            id=sql.Identifier(table.id),
            name=sql.SQL(table.name),
            table=sql.Identifier(table.schema_name, table.table),
        )
        with answering(f"the source mapping's referents.{type_name} (table {name}, name {table.name})"):
            db.execute(query)
