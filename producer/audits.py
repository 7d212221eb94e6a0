"""Reads the CRM's audits table, and nothing but reads it. Alone in knowing psycopg and the `.sql` files beside it.

Every session is read-only by the server's own setting, every statement has a time limit, every value is a parameter.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryLoader

from producer.cursor import EARLIEST, Gap, in_gaps
from producer.cursor import clip as clip_gaps
from producer.messages import Defect, Page
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.mapping import SourceMapping
from schemas.records import AuditEvent
from schemas.secrets import about
from schemas.vocabulary import DeadLetterCause

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_S = 5
RECONNECT_FOR_S = 60.0  # how long a lost connection is tried again before the snapshot gives up; its cursor is kept
# PostgreSQL counts microseconds from 2000-01-01, and sends infinity as the largest 64-bit number.
EPOCH_2000_US = 946_684_800_000_000
YEAR_1_US, YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000
LARGE_ROW_KEPT_CHARS = 16 * 1024
GAPS_A_PAGE_MAX = 500
WINDOW_MIN = 1_000  # ids; a scan of so few that takes too long is not cured by scanning fewer
PAGE_BYTES_MAX = 16 * 1024 * 1024  # memory must not follow the rows: a page that gets larger ends early
INLINE_BYTES_MAX = 64 * 1024  # of a row within a page; larger ones are fetched one by one
GAPS_WINDOW_IDS = 20_000  # of a page whose gaps are looked for: every other id may be one, and all are saved

GRANT_IT = "grant SELECT to the reader's role, and BYPASSRLS where row-level security is in force"

INTEGERS = frozenset({"int2", "int4", "int8"})
TEXTS = frozenset({"text", "varchar", "bpchar", "citext"})
JSONS = frozenset({"json", "jsonb"})
TIMES = frozenset({"timestamp", "timestamptz"})
AUDIT_COLUMNS = {
    "id": INTEGERS,
    "auditable_type": TEXTS,
    "auditable_id": INTEGERS,
    "associated_type": TEXTS,
    "associated_id": INTEGERS,
    "user_type": TEXTS,
    "user_id": INTEGERS,
    "username": TEXTS,
    "action": TEXTS,
    "audited_changes": TEXTS | JSONS,
    "version": INTEGERS,
    "comment": TEXTS,
    "request_uuid": TEXTS | {"uuid"},
    "created_at": TIMES,
}


class RowKind(NamedTuple):
    """Rows of one type and action; with a column, those whose changes can name it: never fewer, a few more."""

    type: str
    action: str
    column: str = ""


@dataclass(frozen=True, slots=True)
class AuditSource:
    """One account's audits, found and checked."""

    company_sso_id: str
    schema: str
    relation: str
    scope: tuple[str, ...]
    account_column: str | None  # None: the whole table is this account's
    account: Any
    changes_are_json: bool
    created_at_has_zone: bool  # else it is UTC, as Rails writes it
    kinds: tuple[RowKind, ...] = ()  # of the rows in scope that are wanted; empty: all of them
    mapping: SourceMapping | None = None  # that has aliases of types

    @property
    def types(self) -> tuple[str, ...]:
        """What auditable_type can say of the rows in scope."""
        return self.scope if self.mapping is None else self.mapping.stored_types(self.scope)

    def query(self, *names: str, cutoff: datetime | None = None) -> sql.Composed:
        """Return the named `.sql` files one after the other, with the table and the rows' predicate filled in.

        `cutoff`: rows created before it are left out, and those that have no created_at. EARLIEST and None leave out
        none: without a date range, a row belongs to the history whatever its created_at.
        """
        since = sql.SQL("true" if cutoff is None or cutoff <= EARLIEST else "created_at >= %(cutoff)s")
        predicate: sql.Composable = sql.SQL("true")
        if self.account_column is not None:
            predicate = sql.SQL("{} = %(account)s").format(sql.Identifier(self.account_column))
        if self.kinds:
            of = self.mapping.stored_types if self.mapping is not None else tuple
            kinds = [kind._replace(type=stored) for kind in self.kinds for stored in of((kind.type,))]
            predicate = sql.SQL("{} AND ({})").format(predicate, _of_kinds(kinds))
        text = "\n".join(sql_text(name) for name in names)
        return sql.SQL(text).format(table=sql.Identifier(self.schema, self.relation), account=predicate, since=since)

    def moment(self, moment: datetime) -> datetime:
        """Return a time as a parameter to compare created_at with."""
        moment = moment.astimezone(UTC)
        return moment if self.created_at_has_zone else moment.replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one query may touch."""

    page_rows: int = 500
    id_window: int = 50_000  # ids one page may scan, whoever they belong to
    statement_timeout_s: float = 60.0
    row_bytes_max: int = 900_000  # of a row's changes and comment; more does not fit the topic


@cache
def sql_text(name: str) -> str:
    """Return the text of a `.sql` file of this package."""
    return files("producer").joinpath(f"{name}.sql").read_text("utf-8")


def _of_kinds(kinds: Sequence[RowKind]) -> sql.Composable:
    """Return the predicate of rows that are of one of these kinds; what tells most rows apart comes first."""
    types: dict[tuple[str, str], list[sql.Composable]] = {}
    for kind in kinds:
        types.setdefault((kind.action, kind.column), []).append(_text(kind.type))
    named = sql.SQL(sql_text("can_name"))
    return sql.SQL(" OR ").join(
        sql.SQL("action = {} AND auditable_type IN ({}) AND {}").format(
            _text(action),
            sql.SQL(", ").join(of_kind),
            named.format(column=_text(column)) if column else sql.SQL("true"),
        )
        for (action, column), of_kind in types.items()
    )


def _text(text: str) -> sql.SQL:
    """Return a text as a literal in a statement with parameters."""
    return sql.SQL(sql.Literal(text).as_string().replace("%", "%%"))


def where(dsn: str) -> str:
    """Return what may be shown of a DSN: database, host and port."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        return "PostgreSQL"
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"PostgreSQL database {parts.get('dbname') or 'default'} at {host}:{parts.get('port') or 5432}"


def connect(dsn: str, statement_timeout_s: float = 60.0) -> Connection:
    """Return a read-only connection in autocommit mode, which is therefore never idle in a transaction.

    Raises BadInputError for a DSN that is none, ServiceUnreachableError for a server that does not let us in.
    """
    if not dsn:
        raise BadInputError("CRM_AUDIT_DATABASE_URL is not set", "give the CRM's PostgreSQL database")
    try:
        given = conninfo_to_dict(dsn)
        if not re.fullmatch(r"[0-9,]*", str(given.get("port") or "")):  # more likely a part of a password
            raise psycopg.ProgrammingError("what stands for its port is no number")
        defaults: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "crm-replay",
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
        }
        session = (
            f"-c default_transaction_read_only=on -c statement_timeout={int(statement_timeout_s * 1000)}"
            " -c timezone=UTC -c client_encoding=UTF8"
        )
        # With row_security=off a query that a policy would hide rows from fails, whenever the policy has come.
        options = f"-c row_security=off {given.get('options') or ''} {session}"
        db = psycopg.connect(make_conninfo(**{**defaults, **given, "options": options}), autocommit=True)
    except psycopg.OperationalError as error:
        raise ServiceUnreachableError(
            f"{where(dsn)} does not let us in ({first_line(error)})", "check CRM_AUDIT_DATABASE_URL"
        ) from error
    except psycopg.Error as error:
        raise BadInputError(
            f"CRM_AUDIT_DATABASE_URL is not a PostgreSQL address ({about(error, dsn)})", "postgresql://user@host/db"
        ) from None
    db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # of explicit transactions
    # A timestamp's eight bytes are read as the number they are: a datetime per row would cost more than the rest of it.
    db.adapters.register_loader("timestamp", Int8BinaryLoader)
    db.adapters.register_loader("timestamptz", Int8BinaryLoader)
    return db


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class QueryTooSlowError(ReplayError):
    """PostgreSQL stopped a query at the time limit."""


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Turn what PostgreSQL says against a query into one line: BadInputError, or ReplayError for an outage."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise BadInputError(f"{what}: {first_line(error)}", GRANT_IT) from error
    except psycopg.errors.QueryCanceled as error:
        raise QueryTooSlowError(
            f"{what}: {first_line(error)}",
            "raise CRM_REPLAY_STATEMENT_TIMEOUT_S, or see why the CRM's database is slow",
        ) from error
    except psycopg.OperationalError as error:
        raise ReplayError(
            f"{what}: {first_line(error)}", "start again when the server is back; nothing is lost"
        ) from error
    except psycopg.Error as error:
        raise BadInputError(f"{what}: {first_line(error)}", "mend the source mapping") from error


def columns_of(db: Connection, schema: str, table: str) -> dict[str, str]:
    """Return a table's columns with their types' names. Raises BadInputError if there is no such table."""
    with answering(f"table {schema}.{table}"):
        query = sql.SQL(sql_text("columns"))
        columns: dict[str, str] = dict(db.execute(query, {"schema": schema, "table": table}).fetchall())
    if not columns:
        raise BadInputError(
            f"there is no table {schema}.{table} in {where(db.info.dsn)}", "name it in the source mapping (--mapping)"
        )
    return columns


def require_columns(columns: dict[str, str], table: str, wanted: Sequence[str]) -> None:
    """Raise BadInputError naming the columns that are missing."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise BadInputError(f"table {table} has no column {', '.join(missing)}", "check the source mapping")


def resolve(db: Connection, mapping: SourceMapping, company_sso_id: str) -> AuditSource:
    """Return where this account's audits are, after checking table, columns, their types and the account itself.

    Raises BadInputError with one line for whatever is not as the mapping says.
    """
    table = mapping.source
    name = f"{table.schema_name}.{table.table}"
    columns = columns_of(db, table.schema_name, table.table)
    require_columns(columns, name, tuple(AUDIT_COLUMNS))
    for column, types in AUDIT_COLUMNS.items():
        if columns[column] not in types:
            raise BadInputError(
                f"column {name}.{column} is of type {columns[column]}",
                f"this version reads {', '.join(sorted(types))} there",
            )
    account = None
    if table.account is not None:
        require_columns(columns, name, (table.account.column,))
        account = _account_value(db, table.account.query, company_sso_id)
    source = AuditSource(
        company_sso_id=company_sso_id,
        schema=table.schema_name,
        relation=table.table,
        scope=mapping.scope,
        account_column=table.account.column if table.account else None,
        account=account,
        changes_are_json=columns["audited_changes"] in JSONS,
        created_at_has_zone=columns["created_at"] == "timestamptz",
        mapping=mapping if mapping.aliases else None,
    )
    with answering(f"table {name}"):  # shows early that we may read it, and that account value and column compare
        db.execute(
            source.query("count"),
            {"cursor": 0, "window_end": 0, "scope": [], "account": account},
        )
    return source


def _account_value(db: Connection, query: str, company_sso_id: str) -> Any:
    with answering("the source mapping's query for the account"):
        rows = db.execute(sql.SQL(query), {"company_sso_id": company_sso_id}).fetchmany(2)
    values = {row[0] for row in rows} - {None}
    if not values:
        raise BadInputError(f"the CRM has no account {company_sso_id}", "check the company_sso_id")
    if len(values) > 1:
        raise BadInputError(f"the CRM has several accounts {company_sso_id}", "mend the source mapping's account query")
    return values.pop()


class Reader(Protocol):
    """What the snapshot reads from; `AuditReader` is the real one."""

    def page_after(
        self, cursor: int, last: int, id_range: int, gaps_known: Sequence[Gap], *, look_for_gaps: bool
    ) -> Page:
        """Return the next page of (cursor, last]; rows in `gaps_known` are left out: they are late."""
        ...

    def late_page_after(self, cursor: int, gaps: Sequence[Gap], id_range: int) -> Page:
        """Return the next page of the rows that have appeared in `gaps` since."""
        ...

    def horizon_passed(self, xmax: int) -> bool:
        """Return whether every transaction below `xmax` has ended."""
        ...

    def oldest_transactions(self) -> str:
        """Return a phrase for the operator: who holds the horizon back."""
        ...


class AuditReader:
    """One connection to the audits of one account; reads pages. A lost connection is opened again."""

    def __init__(self, dsn: str, source: AuditSource, cutoff: datetime, limits: Limits) -> None:
        """Connects at once; raises ServiceUnreachableError. With a cutoff of EARLIEST no row is left out."""
        self._dsn = dsn
        self._source = source
        self._limits = limits
        self._page_rows = limits.page_rows
        self._window = limits.id_window
        self._values = {
            "scope": list(source.types),
            "account": source.account,
            "cutoff": source.moment(cutoff),
            "size_max": min(INLINE_BYTES_MAX, limits.row_bytes_max),
        }
        self._page = source.query("page", "row", cutoff=cutoff)
        self._gap_page = source.query("gap_page", "row", cutoff=cutoff)
        self._gaps = source.query("gaps")
        self._next_id = source.query("next_id")
        self._large_row = source.query("large_row")
        self._rows = source.query("rows", cutoff=cutoff)
        self._db = connect(dsn, limits.statement_timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def page_after(
        self, cursor: int, last: int, id_range: int, gaps_known: Sequence[Gap], *, look_for_gaps: bool
    ) -> Page:
        """Return the next page of (cursor, last]; it ends above `cursor`, and holds no row beyond the window.

        Where a page takes longer than the time limit, the window shrinks. Raises ReplayError for an outage.
        """
        while True:
            try:
                with answering("reading a page"):
                    rows, end, gaps = self._retry(self._read_page, cursor, last, look_for_gaps)
                    rows = [row for row in rows if not in_gaps(gaps_known, row[0])] if gaps_known else rows
                    return self._retry(self._to_page, rows, cursor, end, id_range, gaps)
            except QueryTooSlowError:
                if self._window <= WINDOW_MIN:
                    raise
                self._window = max(WINDOW_MIN, self._window // 4)

    def late_page_after(self, cursor: int, gaps: Sequence[Gap], id_range: int) -> Page:
        """Return the next page of the rows that have appeared in `gaps`, which are in rising order."""
        ahead = clip_gaps(gaps, cursor, gaps[-1][1])[:GAPS_A_PAGE_MAX]
        lows, highs = [low for low, _ in ahead], [high for _, high in ahead]
        page_rows = self._page_rows
        with answering("reading the gaps again"):
            rows = self._retry(self._query, self._gap_page, {"lows": lows, "highs": highs, "page_rows": page_rows})
            end = cast("int", rows[-1][0]) if len(rows) >= page_rows else highs[-1]
            return self._retry(self._to_page, rows, cursor, end, id_range, ())

    def fingerprint(self, low: int, high: int) -> str | None:
        """Return the SHA-256 of the rows of (low, high] as PostgreSQL sends them, in hex; None if it takes too long."""
        try:
            with answering("taking the fingerprint of rows"):
                return self._retry(self._fingerprint, low, high)
        except QueryTooSlowError:
            return None

    def spread(self) -> list[int]:
        """Return ids with about the same number of rows between any two neighbours; empty if nobody has counted."""
        with answering("asking for the spread of the ids"):
            rows = self._retry(
                self._query,
                self._source.query("spread"),
                {"schema": self._source.schema, "relation": self._source.relation},
            )
        return [int(id_) for id_ in rows[0][0]] if rows and rows[0][0] else []

    def replica_lag(self) -> float | None:
        """Return how many seconds this replica is behind its primary; None if it is no replica.

        One that has replayed all it has received is not behind, however long ago the primary's last transaction was.
        """
        query = sql.SQL(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN NULL"
            " WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0::float8"
            " ELSE COALESCE(extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8, 0::float8) END"
        )
        with answering("asking how far the replica is behind"):
            lag = self._retry(self._query, query, {})[0][0]
        return None if lag is None else float(lag)

    def horizon_passed(self, xmax: int) -> bool:
        """Return whether every transaction below `xmax` has ended."""
        query = sql.SQL("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= %(xmax)s")
        with answering("asking for the oldest open transaction"):
            return bool(self._retry(self._query, query, {"xmax": xmax})[0][0])

    def oldest_transactions(self) -> str:
        """Return a phrase for the operator: who holds the horizon back, as far as we may see it."""
        query = sql.SQL(
            "SELECT 'pid ' || pid, usename::text, extract(epoch FROM now() - xact_start)::bigint AS age"
            " FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start IS NOT NULL"
            " UNION ALL SELECT 'prepared transaction ' || gid, owner, extract(epoch FROM now() - prepared)::bigint"
            " FROM pg_prepared_xacts ORDER BY age DESC LIMIT 3"
        )
        with answering("looking for the oldest open transaction"):
            rows = self._retry(self._query, query, {})
        seen = [f"{who} of {user}, open for {age} s" for who, user, age in rows]
        return "; ".join(seen) or "this role may not see whose (pg_read_all_stats would let it)"

    def _read_page(
        self, cursor: int, last: int, look_for_gaps: bool
    ) -> tuple[list[tuple[Any, ...]], int, tuple[Gap, ...]]:
        """Return the rows of a page, where it ends, and the gaps in it: rows and gaps of one and the same snapshot."""
        if not look_for_gaps:
            return (*self._read_rows(cursor, last, self._window), ())
        with self._db.transaction():  # repeatable read
            rows, end = self._read_rows(cursor, last, min(self._window, GAPS_WINDOW_IDS))
            gaps = self._query(self._gaps, {"cursor": cursor, "scanned_to": end})
        return rows, end, tuple(cast("list[Gap]", gaps))

    def _read_rows(self, cursor: int, last: int, window: int) -> tuple[list[tuple[Any, ...]], int]:
        window_end = min(cursor + window, last)
        page_rows = self._page_rows
        rows = self._query(self._page, {"cursor": cursor, "window_end": window_end, "page_rows": page_rows})
        if len(rows) >= page_rows:
            return rows, cast("int", rows[-1][0])
        if rows or window_end == last:
            return rows, window_end
        # An empty window: jump to where there is a row again, of whatever account.
        following = self._query(self._next_id, {"window_end": window_end, "last": last})
        return rows, cast("int", following[0][0]) - 1 if following else last

    def _to_page(
        self, rows: list[tuple[Any, ...]], cursor: int, end: int, id_range: int, gaps: tuple[Gap, ...]
    ) -> Page:
        events: list[AuditEvent] = []
        defects: dict[int, Defect] = {}
        changes_are_json, company = self._source.changes_are_json, self._source.company_sso_id
        size = 0
        for (
            id_, at, auditable_type, auditable_id, associated_type, associated_id, user_type, user_id, username, action,
            changes, version, comment, request_uuid,
        ) in rows:  # fmt: skip
            at_us = at + EPOCH_2000_US
            if changes is None:
                if size > PAGE_BYTES_MAX:
                    end = events[-1].audit_id
                    break
                changes, comment, defect = self._large(id_)
                if defect is not None:
                    defects[id_] = defect
            if not YEAR_1_US <= at_us < YEAR_10000_US:
                at_us = max(YEAR_1_US, min(at_us, YEAR_10000_US - 1))
                detail = "created_at is NULL, infinite or outside of the years 1 to 9999"
                defects[id_] = Defect(DeadLetterCause.UNDECODABLE_RECORD, detail)
            size += len(changes) + len(comment)
            events.append(
                AuditEvent(
                    id_, id_range, at_us, auditable_type, auditable_id, associated_type, associated_id, user_type,
                    user_id, username, action, changes, changes_are_json, version, comment, request_uuid, company,
                )
            )  # fmt: skip
        if self._source.mapping is not None:
            events = [*map(self._source.mapping.named_now, events)]
        self._page_rows = next_page_rows(self._page_rows, self._limits.page_rows, size)
        return Page(tuple(events), end, tuple(clip_gaps(gaps, cursor, end)), defects)

    def _large(self, audit_id: int) -> tuple[str, str, Defect | None]:
        """Return a large row's changes and comment, cut short and with a defect if the topic does not take them."""
        size_max = self._limits.row_bytes_max
        rows = self._query(self._large_row, {"id": audit_id, "size_max": size_max, "kept": LARGE_ROW_KEPT_CHARS})
        changes, comment, changes_bytes, comment_bytes = rows[0] if rows else ("", "", 0, 0)
        if changes_bytes + comment_bytes <= size_max:
            return changes, comment, None
        detail = (
            f"audited_changes has {changes_bytes} bytes and comment {comment_bytes}; the replay topic takes {size_max},"
            f" so the first {LARGE_ROW_KEPT_CHARS} characters of each are kept"
        )
        return changes, comment, Defect(DeadLetterCause.ROW_TOO_LARGE, detail)

    def _fingerprint(self, low: int, high: int) -> str:
        digest = sha256()
        with (
            self._db.cursor() as cursor,
            cursor.copy(self._rows, {**self._values, "cursor": low, "last": high}) as rows,
        ):
            for row in rows:
                digest.update(row)
        return digest.hexdigest()

    def _query(self, query: sql.SQL | sql.Composed, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._db.execute(query, {**self._values, **values}, binary=True).fetchall()
        return rows

    def _retry(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `read` returns, over a new connection if the old one was lost: reading again is always safe."""
        give_up_at = time.monotonic() + RECONNECT_FOR_S
        pause_s = 0.1
        while True:
            try:
                if self._db.closed:
                    self._db = connect(self._dsn, self._limits.statement_timeout_s)
                return read(*args, **kwargs)
            except (psycopg.OperationalError, ServiceUnreachableError) as error:
                if isinstance(error, psycopg.errors.QueryCanceled):
                    raise
                if time.monotonic() > give_up_at:
                    raise ReplayError(
                        f"{where(self._dsn)} has been away for a minute", "start again when it is back"
                    ) from error
                self._db.close()
                logger.warning("the connection to PostgreSQL is lost (%s), trying again", first_line(error))
                time.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)


def next_page_rows(page_rows: int, page_rows_max: int, page_bytes: int) -> int:
    """Return how many rows the next page asks for: fewer after a page of large rows, as memory is bounded."""
    if page_bytes > PAGE_BYTES_MAX:
        return max(1, page_rows // 4)
    if page_bytes * 4 < PAGE_BYTES_MAX:
        return min(page_rows_max, page_rows * 2)
    return page_rows
