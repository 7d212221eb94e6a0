"""Reads the CRM's audits table, read-only. The only module that uses the `.sql` files beside it.

Every statement is read-only and limited in time by server settings (`producer.session`); every value is a parameter.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple, Protocol, cast

import psycopg
from psycopg import sql

from producer.core import EPOCH_2000_US, YEAR_1_US, YEAR_10000_US, EventMaker
from producer.cursor import EARLIEST, Gap, in_gaps
from producer.cursor import clip as clip_gaps
from producer.messages import Defect, Page
from producer.session import (
    CONNECT_TIMEOUT_S,
    Connection,
    QueryTooSlowError,
    Row,
    answering,
    connect,
    first_line,
    where,
)
from schemas.errors import BadInputError
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import DeadLetterCause

__all__ = [  # with the names of `producer.session` that callers with a source need
    "CONNECT_TIMEOUT_S",
    "AuditReader",
    "AuditSource",
    "Connection",
    "LagUnknownError",
    "Limits",
    "QueryTooSlowError",
    "Reader",
    "RowKind",
    "answering",
    "columns_of",
    "connect",
    "first_line",
    "replica_lag",
    "require_columns",
    "resolve",
    "sql_text",
    "where",
]

logger = logging.getLogger(__name__)

LARGE_ROW_KEPT_CHARS = 16 * 1024
GAPS_A_PAGE_MAX = 500
WINDOW_MIN = 1_000  # ids; if a scan of so few takes too long, a smaller one does not help
QUICK_PAGES_MAX = 64  # consecutive quick pages before a reduced window grows again
PAGE_BYTES_MAX = 16 * 1024 * 1024  # bounds the memory: a larger page ends early
INLINE_BYTES_MAX = 64 * 1024  # of a row within a page; larger ones are fetched one by one
GAPS_WINDOW_IDS = 20_000  # ids of a page that is searched for gaps: every other id may be one, and all are saved

# What psycopg raises for bytes that are not text: by itself (SQL_ASCII), or for the server's error.
UNDECODABLE = (
    UnicodeDecodeError,
    psycopg.errors.UntranslatableCharacter,
    psycopg.errors.CharacterNotInRepertoire,
)
TEXTS_OF_ROW = (2, 4, 6, 8, 9, 10, 12, 13)  # positions of a row's texts in row.sql

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
    """Rows of one type and action; with a column, those whose changes may name it (false positives, no misses)."""

    type: str
    action: str
    column: str = ""


@dataclass(frozen=True, slots=True)
class AuditSource:
    """Where one account's audits are, validated."""

    company_sso_id: str
    schema: str
    relation: str
    scope: tuple[str, ...]
    account_column: str | None  # None: the whole table is this account's
    account: Any
    changes_are_json: bool
    created_at_has_zone: bool  # else it is UTC, as Rails writes it
    kinds: tuple[RowKind, ...] = ()  # the kinds of rows in scope that are read; empty: all
    mapping: SourceMapping | None = None  # only one with aliases of types

    @property
    def types(self) -> tuple[str, ...]:
        """The values of auditable_type of rows in scope."""
        return self.scope if self.mapping is None else self.mapping.stored_types(self.scope)

    def query(self, *names: str, cutoff: datetime | None = None) -> sql.Composed:
        """Return the named `.sql` files concatenated, with the table and the rows' predicates filled in.

        Rows created before `cutoff` are left out, and those without created_at. EARLIEST and None leave out no row:
        without a date range, a row belongs to the history whatever its created_at.
        """
        since = sql.SQL("true" if cutoff is None or cutoff <= EARLIEST else "created_at >= %(cutoff)s")
        predicate: sql.Composable = sql.SQL("true")
        owned: sql.Composable = sql.SQL("true")
        if self.account_column is not None:
            predicate = sql.SQL("{} = %(account)s").format(sql.Identifier(self.account_column))
            owned = sql.SQL("{} = %(account)s").format(sql.Identifier(self.account_column))
        if self.kinds:
            of = self.mapping.stored_types if self.mapping is not None else tuple
            kinds = [kind._replace(type=stored) for kind in self.kinds for stored in of((kind.type,))]
            predicate = sql.SQL("{} AND ({})").format(predicate, _of_kinds(kinds))
        owner = sql.SQL("CASE WHEN {} THEN {} END").format(owned, sql.SQL(str(self.tag)))
        text = "\n".join(sql_text(name) for name in names)
        table = sql.Identifier(self.schema, self.relation)
        return sql.SQL(text).format(table=table, account=predicate, owner=owner, since=since)

    @property
    def tag(self) -> int:
        """The number that each row of this source's statements returns; no other source's statements contain it."""
        about = repr((self.company_sso_id, self.schema, self.relation, self.account_column, self.account, self.kinds))
        return int.from_bytes(sha256(about.encode()).digest()[:4], "big") >> 3 | 2**29  # small: it is in every row

    def moment(self, moment: datetime) -> datetime:
        """Return a time as a parameter that compares with created_at."""
        moment = moment.astimezone(UTC)
        return moment if self.created_at_has_zone else moment.replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one query may read."""

    page_rows: int = 500
    id_window: int = 50_000  # ids one page may scan, of any account
    statement_timeout_s: float = 60.0
    row_bytes_max: int = 900_000  # of a row's changes and comment; more does not fit a record


@cache
def sql_text(name: str) -> str:
    """Return the text of a `.sql` file of this package."""
    return files("producer").joinpath(f"{name}.sql").read_text("utf-8")


def _of_kinds(kinds: Sequence[RowKind]) -> sql.Composable:
    """Return the predicate of rows that are of one of these kinds; the most selective condition comes first."""
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


def columns_of(db: Connection, schema: str, table: str) -> dict[str, str]:
    """Return the type name of each column of a table. Raises BadInputError if there is no such table."""
    with answering(f"table {schema}.{table}"):
        query = sql.SQL(sql_text("columns"))
        columns: dict[str, str] = dict(db.execute(query, {"schema": schema, "table": table}).fetchall())
    if not columns:
        raise BadInputError(
            f"there is no table {schema}.{table} in {db.where}", "name it in the source mapping (--mapping)"
        )
    return columns


def require_columns(columns: dict[str, str], table: str, wanted: Sequence[str]) -> None:
    """Raise BadInputError naming the columns that are missing."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise BadInputError(f"table {table} has no column {', '.join(missing)}", "check the source mapping")


def resolve(db: Connection, mapping: SourceMapping, company_sso_id: str) -> AuditSource:
    """Return where this account's audits are, after validating table, columns, their types and the account.

    Raises BadInputError, in one line, for the first difference from the mapping.
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
    with answering(f"table {name}"):  # fails early without SELECT, or if account value and column do not compare
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
        raise BadInputError(f"the CRM has several accounts {company_sso_id}", "fix the source mapping's account query")
    return values.pop()


class LagUnknownError(Exception):
    """A replica whose lag cannot be queried: Aurora's refuse the functions for it (0A000)."""


def replica_lag(db: Connection) -> float | None:
    """Return this replica's lag in seconds; None on a primary.

    A replica that has replayed all it received has no lag, however old the primary's last transaction is. Raises
    LagUnknownError, ReplayError for an outage.
    """
    with answering("reading the replica's lag"):
        try:
            lag = db.rows(sql_text("replica_lag"), {})[0][0]
        except (psycopg.NotSupportedError, psycopg.ProgrammingError) as error:
            raise LagUnknownError(first_line(error)) from error
    return None if lag is None else float(lag)


class Reader(Protocol):
    """What the snapshot reads from; `AuditReader` is the real one."""

    def page_after(
        self, cursor: int, last: int, id_range: int, gaps_known: Sequence[Gap], *, look_for_gaps: bool
    ) -> Page:
        """Return the next page of (cursor, last]; rows in `gaps_known` are left out: they are late."""
        ...

    def late_page_after(self, cursor: int, gaps: Sequence[Gap], id_range: int) -> Page:
        """Return the next page of the rows that have been committed in `gaps` since."""
        ...

    def horizon_passed(self, xmax: int) -> bool:
        """Return whether every transaction below `xmax` has ended."""
        ...

    def oldest_transactions(self) -> str:
        """Return, in words for the operator, which transactions hold the horizon back."""
        ...


@dataclass(slots=True)
class Window:
    """How many ids a page may scan: fewer after a page that reached the time limit, more once pages are quick."""

    ids_max: int
    ids: int = 0
    quick: int = 0  # consecutive quick pages
    quick_wanted: int = 1  # of them before it grows; doubles after each page that was too slow

    def __post_init__(self) -> None:
        """Start at the maximum."""
        self.ids = self.ids or self.ids_max

    def too_slow(self) -> bool:
        """Shrink after a page that reached the time limit; return False if it is at its minimum."""
        if self.ids <= WINDOW_MIN:
            return False
        self.ids = max(WINDOW_MIN, self.ids // 4)
        self.quick, self.quick_wanted = 0, min(QUICK_PAGES_MAX, self.quick_wanted * 2)
        return True

    def answered(self, seconds: float, limit_s: float) -> None:
        """Grow after enough pages that took a quarter of the limit at most."""
        if self.ids >= self.ids_max:
            return
        self.quick = self.quick + 1 if seconds * 4 <= limit_s else 0
        if self.quick >= self.quick_wanted:
            self.ids, self.quick = min(self.ids_max, self.ids * 2), 0


class RowQuery:
    """A query for rows, as text; and as bytes, for rows that cannot be decoded as text."""

    def __init__(self, source: AuditSource, raw: str, *names: str, cutoff: datetime | None = None) -> None:
        """`names` are the `.sql` files of the query, `raw` is the one that wraps it."""
        self.texts = source.query(*names, cutoff=cutoff).as_bytes(None)
        self.raw = sql_text(raw).encode().replace(b"{rows}", self.texts)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a page."""

    rows: list[Row]
    end: int
    gaps: tuple[Gap, ...] = ()
    raw: bool = False  # the rows' texts are bytes


class AuditReader:
    """Reads pages of one account's audits on one connection, and reconnects when it is lost."""

    def __init__(
        self, dsn: str, source: AuditSource, cutoff: datetime, limits: Limits, writers: Sequence[str] = ()
    ) -> None:
        """Connect at once, with retries: `source` shows that the server has answered before.

        With a cutoff of EARLIEST no row is left out. `writers` are the job's: see `horizon_passed`. Raises ReplayError.
        """
        self._source = source
        self._tag = source.tag
        self._limits = limits
        self._writers = list(writers)
        self._page_rows = limits.page_rows
        self._window = Window(limits.id_window)
        self._lag_unknown = False
        self._values = {
            "scope": list(source.types),
            "account": source.account,
            "cutoff": source.moment(cutoff),
            "size_max": min(INLINE_BYTES_MAX, limits.row_bytes_max),
        }
        self._page = RowQuery(source, "raw_row", "page", "row", cutoff=cutoff)
        self._gap_page = RowQuery(source, "raw_row", "gap_page", "row", cutoff=cutoff)
        self._gaps = source.query("gaps").as_bytes(None)
        self._next_id = source.query("next_id").as_bytes(None)
        self._large_row = RowQuery(source, "raw_large_row", "large_row")
        self._rows = source.query("rows", cutoff=cutoff).as_bytes(None)
        self._db = connect(dsn, limits.statement_timeout_s, patient=True)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def page_after(
        self, cursor: int, last: int, id_range: int, gaps_known: Sequence[Gap], *, look_for_gaps: bool
    ) -> Page:
        """Return the next page of (cursor, last]; it ends above `cursor`, and has no row beyond the window.

        If a page exceeds the time limit, the window shrinks. Raises ReplayError for an outage, BadInputError for a row
        of another account.
        """
        while True:
            began = time.monotonic()
            try:
                with answering("reading a page"):
                    read = self._decodable(self._read_page, cursor, last, look_for_gaps)
            except QueryTooSlowError:
                if not self._window.too_slow():
                    raise
                continue
            self._window.answered(time.monotonic() - began, self._limits.statement_timeout_s)
            if gaps_known:
                read = replace(read, rows=[row for row in read.rows if not in_gaps(gaps_known, row[0])])
            with answering("reading a page"):
                return self._db.read(self._to_page, read, cursor, id_range)

    def late_page_after(self, cursor: int, gaps: Sequence[Gap], id_range: int) -> Page:
        """Return the next page of the rows that have been committed in `gaps`, which are in ascending order."""
        ahead = clip_gaps(gaps, cursor, gaps[-1][1])[:GAPS_A_PAGE_MAX]
        with answering("reading the gaps again"):
            read = self._decodable(self._read_gaps, ahead)
            return self._db.read(self._to_page, read, cursor, id_range)

    def fingerprint(self, low: int, high: int) -> str | None:
        """Return the SHA-256 of the rows of (low, high] as PostgreSQL sends them, in hex.

        None if it takes too long, or if the rows cannot be sent.
        """
        with suppress(QueryTooSlowError), answering("computing the fingerprint of rows"), suppress(*UNDECODABLE):
            return self._db.read(self._fingerprint, low, high)
        return None

    def spread(self) -> list[int]:
        """Return ids with about the same number of rows between any two neighbours; empty without statistics."""
        with answering("reading the distribution of the ids"):
            rows = self._db.rows(
                self._source.query("spread"), {"schema": self._source.schema, "relation": self._source.relation}
            )
        return [int(id_) for id_ in rows[0][0]] if rows and rows[0][0] else []

    def replica_lag(self) -> float | None:
        """Return this replica's lag in seconds; None on a primary, or if it is unknown (logged once)."""
        if self._lag_unknown:
            return None
        try:
            return replica_lag(self._db)
        except LagUnknownError as error:
            self._lag_unknown = True
            logger.warning("the replica's lag is unknown (%s), reading without it", error)
            return None

    def horizon_passed(self, xmax: int) -> bool:
        """Return whether all transactions that may commit a row of the job have ended.

        They are those below `xmax`, and the `writers` (virtual transaction ids) that had no transaction id yet when the
        job started.
        """
        with answering("reading the oldest open transaction"):
            passed = bool(self._db.rows(sql_text("horizon_passed"), {"xmax": xmax})[0][0])
            if passed and self._writers:
                passed = not self._db.rows(sql_text("writers_left"), {"writers": self._writers})[0][0]
        return passed

    def oldest_transactions(self) -> str:
        """Return, in words for the operator, which transactions hold the horizon back, as far as the role sees them."""
        query = (
            "SELECT 'pid ' || pid, usename::text, extract(epoch FROM now() - xact_start)::bigint AS age"
            " FROM pg_stat_activity WHERE xact_start IS NOT NULL AND (backend_xid IS NOT NULL OR pid IN"
            " (SELECT pid FROM pg_locks WHERE virtualtransaction = ANY(%(writers)s::text[])))"
            " UNION ALL SELECT 'prepared transaction ' || gid, owner, extract(epoch FROM now() - prepared)::bigint"
            " FROM pg_prepared_xacts ORDER BY age DESC LIMIT 3"
        )
        with answering("reading the oldest open transactions"):
            rows = self._db.rows(query, {"writers": self._writers})
        seen = [f"{who} of {user}, open for {age} s" for who, user, age in rows]
        return "; ".join(seen) or "this role may not see which (grant it pg_read_all_stats)"

    def _decodable(self, read: Callable[..., _Rows], *args: Any) -> _Rows:
        """Return what `read` reads: as texts, or as bytes if a row cannot be decoded."""
        try:
            return self._db.read(read, *args, raw=False)
        except UNDECODABLE:
            return self._db.read(read, *args, raw=True)

    def _read_page(self, cursor: int, last: int, look_for_gaps: bool, *, raw: bool) -> _Rows:
        """Return the rows of a page, its end, and its gaps; rows and gaps are read in one database snapshot."""
        if not look_for_gaps:
            return self._read_rows(cursor, last, self._window.ids, raw)
        with self._db.transaction():
            read = self._read_rows(cursor, last, min(self._window.ids, GAPS_WINDOW_IDS), raw)
            gaps = self._query(self._gaps, {"cursor": cursor, "scanned_to": read.end})
        return replace(read, gaps=tuple(cast("list[Gap]", gaps)))

    def _read_rows(self, cursor: int, last: int, window: int, raw: bool) -> _Rows:
        window_end = min(cursor + window, last)
        page_rows = self._page_rows
        query = self._page.raw if raw else self._page.texts
        rows = self._query(query, {"cursor": cursor, "window_end": window_end, "page_rows": page_rows})
        if len(rows) >= page_rows:
            return _Rows(rows, cast("int", rows[-1][0]), raw=raw)
        if rows or window_end == last:
            return _Rows(rows, window_end, raw=raw)
        # An empty window: skip to the next row, of any account.
        following = self._query(self._next_id, {"window_end": window_end, "last": last})
        return _Rows(rows, cast("int", following[0][0]) - 1 if following else last)

    def _read_gaps(self, gaps: Sequence[Gap], *, raw: bool) -> _Rows:
        """Return the rows that are in these gaps now."""
        lows, highs = [low for low, _ in gaps], [high for _, high in gaps]
        page_rows = self._page_rows
        query = self._gap_page.raw if raw else self._gap_page.texts
        rows = self._query(query, {"lows": lows, "highs": highs, "page_rows": page_rows})
        return _Rows(rows, cast("int", rows[-1][0]) if len(rows) >= page_rows else highs[-1], raw=raw)

    def _to_page(self, read: _Rows, cursor: int, id_range: int) -> Page:
        source, end = self._source, read.end
        defects: dict[int, Defect] = {}
        rows = self._texts(read.rows, defects) if read.raw else read.rows
        unusual = partial(self._normalized, defects)
        events, size, are_all = EventMaker(source.company_sso_id, self._tag, source.changes_are_json, unusual).events(
            rows, id_range
        )
        if not are_all:
            end = events[-1].audit_id
        if source.mapping is not None:
            events = [*map(source.mapping.named_now, events)]
        self._page_rows = next_page_rows(self._page_rows, self._limits.page_rows, size)
        defects = {id_: defect for id_, defect in defects.items() if id_ <= end}
        return Page(tuple(events), end, tuple(clip_gaps(read.gaps, cursor, end)), defects)

    def _normalized(self, defects: dict[int, Defect], row: Row, size: int) -> Row | None:
        """Return a row that is large or has no valid created_at as a common one; its defects go to `defects`.

        None if a page that has `size` characters has no room for it. Raises BadInputError for another account's row.
        """
        id_, at, changes, comment = row[0], row[1], row[10], row[12]
        if row[14] != self._tag:
            raise _foreign_row(id_, self._source.company_sso_id)
        if changes is None:
            if size > PAGE_BYTES_MAX:
                return None
            changes, comment, defect = self._large(id_)
            if defect is not None:
                defects[id_] = defect
        if not YEAR_1_US <= at + EPOCH_2000_US < YEAR_10000_US:
            at = max(YEAR_1_US, min(at + EPOCH_2000_US, YEAR_10000_US - 1)) - EPOCH_2000_US
            detail = "created_at is NULL, infinite or outside of the years 1 to 9999"
            defects[id_] = Defect(DeadLetterCause.UNDECODABLE_RECORD, detail)
        return (id_, at, *row[2:10], changes, row[11], comment, *row[13:])

    def _texts(self, rows: Sequence[Row], defects: dict[int, Defect]) -> Iterator[Row]:
        """Yield rows of bytes as rows of texts; what cannot be decoded is replaced and recorded as a defect."""
        for row in rows:
            raw = [row[at] or b"" for at in TEXTS_OF_ROW]
            if all(text.isascii() for text in raw):
                yield _with_texts(row, "ascii")
                continue
            try:
                if self._db.server_encoding == "SQL_ASCII":
                    yield _with_texts(row, "utf-8")
                    continue
                # Only the server knows its encoding; read alone, the row makes no other one fail.
                alone = self._read_gaps([(row[0], row[0])], raw=False).rows
            except UNDECODABLE:
                defects[row[0]] = _no_text(self._db.server_encoding)
                yield _with_texts(row, "utf-8", "replace")
                continue
            yield from alone

    def _large(self, audit_id: int) -> tuple[str, str, Defect | None]:
        """Return a large row's changes and comment; with a defect if they are too large for a record, or not text.

        What is too large is truncated.
        """
        size_max, defect = self._limits.row_bytes_max, None
        values = {"id": audit_id, "size_max": size_max, "kept": LARGE_ROW_KEPT_CHARS}
        try:
            rows = self._query(self._large_row.texts, values)
        except UNDECODABLE:
            rows = [_with_texts(row, "utf-8", "replace") for row in self._query(self._large_row.raw, values)]
            defect = _no_text(self._db.server_encoding)
        if not rows:
            return "", "", None
        changes, comment, changes_bytes, comment_bytes, owner = rows[0]
        if owner != self._tag:
            raise _foreign_row(audit_id, self._source.company_sso_id)
        if changes_bytes + comment_bytes > size_max:
            detail = (
                f"audited_changes has {changes_bytes} bytes and comment {comment_bytes}; the replay topic takes"
                f" {size_max}, so the first {LARGE_ROW_KEPT_CHARS} characters of each are kept"
            )
            defect = Defect(DeadLetterCause.ROW_TOO_LARGE, detail)
        return changes, comment, defect

    def _fingerprint(self, low: int, high: int) -> str:
        digest = sha256()
        for row in self._db.copied(self._rows, {**self._values, "cursor": low, "last": high}):
            digest.update(row)
        return digest.hexdigest()

    def _query(self, query: bytes, values: Mapping[str, Any]) -> list[Row]:
        return self._db.read(self._db.rows, query, {**self._values, **values})


def _with_texts(row: Row, encoding: str, errors: str = "strict") -> Row:
    """Return a row of bytes as one of texts."""
    return tuple(value.decode(encoding, errors) if type(value) is bytes else value for value in row)


def _no_text(encoding: str) -> Defect:
    detail = f"the row has bytes that are no text in the database's encoding, {encoding}"
    return Defect(DeadLetterCause.UNDECODABLE_RECORD, detail)


def _foreign_row(audit_id: int, company_sso_id: str) -> BadInputError:
    """Return the error for a row of another account: nothing of its page is used."""
    return BadInputError(
        f"PostgreSQL answered a query for account {company_sso_id} with row {audit_id}, which is not that account's",
        "a pooler or proxy has mixed up two clients: connect to PostgreSQL itself",
    )


def next_page_rows(page_rows: int, page_rows_max: int, page_bytes: int) -> int:
    """Return the row limit of the next page: lower after a page of large rows, as memory is bounded."""
    if page_bytes > PAGE_BYTES_MAX:
        return max(1, page_rows // 4)
    if page_bytes * 4 < PAGE_BYTES_MAX:
        return min(page_rows_max, page_rows * 2)
    return page_rows
