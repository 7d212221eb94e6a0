"""A connection to the CRM's PostgreSQL: read-only, limited in time; interrupted reads are repeated.

The only module that connects with psycopg. Statements are never prepared under a name: behind a pooler, another
client's statement may have that name. A session's settings are queried after connecting. If they are not as requested,
or another server process answers than the one of the connect (a pooler is in between), every statement runs in a
transaction of its own that sets them with SET LOCAL, so that they do not leak to other clients of the pooler.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, ParamSpec, Self, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8BinaryLoader

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.secrets import about

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]
Query = bytes | str | sql.SQL | sql.Composed

CONNECT_TIMEOUT_S = 5
RECONNECT_FOR_S = 60.0  # how long reconnecting is tried before the read fails; its cursor is kept
INTERRUPTIONS_MAX = 20  # of one read, by a standby's recovery or an administrator; each may take the time limit
FETCH_ROWS = 5_000
GRANT_IT = (
    "grant USAGE on the schema and SELECT on its tables to the reader's role, and BYPASSRLS where row-level security is"
    " in force"
)
CURSOR = "crm_replay_rows"
# SQLSTATEs with which a first query, or its connection, can end in a server that stays up; connecting again shows if it
# does. "40" is the class of rollbacks: a standby's recovery causes a 40001 or a 40P01, whose psycopg classes are not
# derived from its TransactionRollback.
ROLLED_BACK = "40"
INTERRUPTIONS = (ROLLED_BACK, "57014", "57P01", "57P02")  # query_canceled, admin_shutdown, crash_shutdown
# PgBouncer's messages; it has no translations, and one code for every refusal.
REFUSES_OPTIONS = "startup parameter"
REFUSES_TRANSACTIONS = "statement pooling"


class QueryTooSlowError(ReplayError):
    """PostgreSQL stopped a query at the time limit."""


class InterruptedQueryError(psycopg.OperationalError):
    """A query was cancelled before its time limit: by a standby's recovery, or by an administrator."""


class Answer:
    """The rows of one statement, complete."""

    def __init__(self, rows: list[Row]) -> None:
        """Wrap the rows of a statement."""
        self._rows = rows

    def fetchall(self) -> list[Row]:
        """Return all rows."""
        return self._rows

    def fetchone(self) -> Row | None:
        """Return the first row; None if there is none."""
        return self._rows[0] if self._rows else None

    def fetchmany(self, size: int) -> list[Row]:
        """Return the first rows, `size` at most."""
        return self._rows[:size]


class Connection:
    """Reads with retries: a lost connection is opened again, an interrupted statement repeated.

    Not thread-safe.
    """

    def __init__(self, dsn: str, statement_timeout_s: float = 60.0, *, patient: bool = False) -> None:
        """Connect at once, with retries only if `patient`. Raises like `connect`."""
        if not dsn:
            raise BadInputError("CRM_AUDIT_DATABASE_URL is not set", "give the CRM's PostgreSQL database")
        self.where = where(dsn)
        self.statement_timeout_s = statement_timeout_s
        self.pooled = False  # a pooler is in between: no setting outlives a transaction
        self._dsn = dsn
        self._reading = False
        self._in_transaction = False
        self._begin = b""
        self._db = self._open_patiently() if patient else self._open()

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """Psycopg's information about the session."""
        return self._db.info

    @property
    def server_encoding(self) -> str:
        """The database's encoding, as PostgreSQL names it."""
        return self._db.info.parameter_status("server_encoding") or ""

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # ---- reading

    def execute(self, query: Query, values: Mapping[str, Any] | None = None, *, binary: bool = False) -> Answer:
        """Return the answer to one statement. Raises psycopg's errors, ReplayError for an outage."""
        return Answer(self.read(self._rows, query, values, binary))

    def rows(self, query: Query, values: Mapping[str, Any]) -> list[Row]:
        """Return a statement's rows, sent in binary."""
        return self.read(self._rows, query, values, True)

    def read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `read` returns; it is called again after an interruption, as reading is idempotent.

        Of nested calls the outermost is repeated. Raises ReplayError if the outage lasts.
        """
        if self._reading:
            return read(*args, **kwargs)
        patience = _Patience(self.where)
        self._reading = True
        try:
            while True:
                try:
                    self._open_again()
                    return read(*args, **kwargs)
                except (psycopg.Error, ServiceUnreachableError) as error:
                    self._wait(patience, error)
        finally:
            self._reading = False

    def ordered(self, query: Query, values: Mapping[str, Any]) -> Iterator[Row]:
        """Yield a query's rows without holding them all, from a server-side cursor in a transaction of its own.

        The rows have to be in ascending order of their first column, an integer, and above `%(after)s`, from which an
        interrupted query resumes.
        """
        after = resumed_behind = -(2**63)
        patience = _Patience(self.where)
        while True:
            try:
                self._open_again()
                with self.transaction(), self._db.cursor(name=CURSOR) as cursor:
                    with self._limited():
                        cursor.execute(query, {**values, "after": after})
                    while rows := self._fetch(cursor):
                        for row in rows:
                            yield row
                            after = row[0]
                return
            except (psycopg.Error, ServiceUnreachableError) as error:
                if after > resumed_behind:
                    patience, resumed_behind = _Patience(self.where), after
                self._wait(patience, error)

    def copied(self, query: Query, values: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what a COPY TO STDOUT sends. Only within `read`: it cannot be resumed."""
        with self._settings(), self._limited(), self._db.cursor() as cursor, cursor.copy(query, values) as copy:
            for data in copy:
                yield bytes(data)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block's statements in one transaction: repeatable read, read-only, with the session's settings."""
        try:
            self._db.execute(self._begin)  # in a pooled session two statements, of which the second may fail
            self._in_transaction = True
            yield
        except BaseException:
            with suppress(psycopg.Error):
                self._db.rollback()
            raise
        else:
            self._db.execute("COMMIT")
        finally:
            self._in_transaction = False

    def _rows(self, query: Query, values: Mapping[str, Any] | None, binary: bool) -> list[Row]:
        with self._settings(), self._limited():
            return self._db.execute(query, values, binary=binary).fetchall()

    def _fetch(self, cursor: "psycopg.ServerCursor[Row]") -> list[Row]:
        with self._limited():
            return cursor.fetchmany(FETCH_ROWS)

    def _settings(self) -> Any:
        """Return the context in which a statement has the session's settings."""
        return self.transaction() if self.pooled and not self._in_transaction else nullcontext()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Raise InterruptedQueryError for a statement that was cancelled before its time limit: the code is the same.

        Decided by the elapsed time, as the server's message depends on its language.
        """
        began = time.monotonic()
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            if time.monotonic() - began >= self.statement_timeout_s:
                raise
            raise InterruptedQueryError(first_line(error)) from error

    def _wait(self, patience: "_Patience", error: Exception) -> None:
        """Return when the read may be retried; raise the error if it is permanent, ReplayError after too long."""
        lost = self._db.closed or isinstance(error, ServiceUnreachableError)
        if not (lost or kind_of(error) is ServiceUnreachableError):
            raise error
        interrupted = not lost and (isinstance(error, InterruptedQueryError) or _is_one_of(error, ROLLED_BACK))
        if not interrupted:
            self._db.close()
        patience.wait(error, interrupted=interrupted)

    # ---- connecting

    def _open_again(self) -> None:
        if self._db.closed:
            self._db = self._open()

    def _open_patiently(self) -> psycopg.Connection[Row]:
        patience = _Patience(self.where)
        while True:
            try:
                return self._open()
            except ServiceUnreachableError as error:
                patience.wait(error, interrupted=False)

    def _open(self) -> psycopg.Connection[Row]:
        """Return a new connection. Retries only an interrupted first query. Raises like `connect`."""
        patience = _Patience(self.where)
        while True:
            db, settings = self._connect()
            try:
                self._check_session(db, settings)
            except psycopg.Error as error:
                db.close()
                if _is_one_of(error, *INTERRUPTIONS):
                    patience.wait(error, interrupted=True)
                    continue
                if REFUSES_TRANSACTIONS in str(error):
                    raise BadInputError(
                        f"{self.where} is reached through a connection pooler that does not support transactions"
                        f" ({first_line(error)})",
                        "set its pool_mode to transaction or session, or connect to PostgreSQL itself",
                    ) from error
                raise ServiceUnreachableError(
                    f"{self.where} does not answer ({first_line(error)})", "check CRM_AUDIT_DATABASE_URL"
                ) from error
            except BaseException:
                db.close()
                raise
            else:
                return db

    def _connect(self) -> tuple[psycopg.Connection[Row], dict[str, str]]:
        """Return a new connection, and the settings that it was made with."""
        try:
            given = conninfo_to_dict(self._dsn)
            if not re.fullmatch(r"[0-9,]*", str(given.get("port") or "")):  # more likely a part of a password
                raise psycopg.ProgrammingError("the port is not a number")
            # With row_security=off a query that a policy would hide rows from fails, also if the policy is added during
            # a run; the operator may override this in the DSN (producer.visibility).
            stated = settings_in(str(given.pop("options", None) or ""))
            settings = {"row_security": "off", **stated, **self._wanted()}
            options = " ".join(f"-c {name}={_escaped(value)}" for name, value in settings.items())
            try:
                db = _connect({**given, "options": options})
            except psycopg.OperationalError as error:
                if REFUSES_OPTIONS not in str(error):
                    raise
                db = _connect(given)
        except psycopg.OperationalError as error:
            raise ServiceUnreachableError(
                f"cannot connect to {self.where} ({first_line(error)})", "check CRM_AUDIT_DATABASE_URL"
            ) from error
        except psycopg.Error as error:
            raise BadInputError(
                f"CRM_AUDIT_DATABASE_URL is not a PostgreSQL address ({about(error, self._dsn)})",
                "postgresql://user@host/db",
            ) from None
        db.prepare_threshold = None
        # Timestamps are loaded as their 64-bit integer: a datetime per row would cost more than the rest.
        db.adapters.register_loader("timestamp", Int8BinaryLoader)
        db.adapters.register_loader("timestamptz", Int8BinaryLoader)
        return db, settings

    def _wanted(self) -> dict[str, str]:
        """Return the settings that every statement needs, as pg_settings shows them."""
        return {
            "default_transaction_read_only": "on",
            "statement_timeout": str(max(1, int(self.statement_timeout_s * 1000))),
            "TimeZone": "UTC",
            "client_encoding": "UTF8",
        }

    def _check_session(self, db: psycopg.Connection[Row], settings: Mapping[str, str]) -> None:
        """Check whether the session keeps its settings, else whether a transaction does. Raises BadInputError."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        self._begin = begin.encode()
        pid, wrong = self._differing(db)
        self.pooled = pid != db.info.backend_pid or bool(wrong)
        if not self.pooled:
            return
        made = sql.SQL(", ").join(
            sql.SQL("set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
            for name, value in settings.items()
        )
        self._begin = sql.SQL("{}; SELECT {}").format(sql.SQL(begin), made).as_bytes(None)
        db.execute(self._begin)
        _, wrong = self._differing(db)
        db.execute("COMMIT")
        if wrong:
            raise BadInputError(
                f"{self.where} is reached through a connection pooler that does not keep {', '.join(wrong)} within a"
                " transaction",
                "connect to PostgreSQL itself",
            )

    def _differing(self, db: psycopg.Connection[Row]) -> tuple[int, list[str]]:
        """Return the id of the server process, and which of the settings differ from the wanted ones."""
        wanted = self._wanted()
        found = db.execute(
            "SELECT pg_backend_pid(), name, setting FROM pg_settings WHERE name = ANY(%s)", [list(wanted)]
        ).fetchall()
        settings = {name: setting for _, name, setting in found}
        return found[0][0] if found else 0, [name for name, value in wanted.items() if settings.get(name) != value]


def _is_one_of(error: Exception, *sqlstates: str) -> bool:
    """Return whether the error has one of the SQLSTATEs, or is in one of these SQLSTATE classes."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(sqlstates)


class _Patience:
    """The retries of one read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._give_up_at: float | None = None
        self._interruptions = 0
        self._pause_s = 0.1

    def wait(self, error: Exception, *, interrupted: bool) -> None:
        """Log the error and wait. Raises ReplayError after too long or too many interruptions."""
        now = time.monotonic()
        if interrupted:
            self._interruptions += 1
            if self._interruptions > INTERRUPTIONS_MAX:
                raise ReplayError(
                    f"{self._name} has interrupted a query {self._interruptions} times ({first_line(error)})",
                    "on a standby set hot_standby_feedback = on, or raise max_standby_streaming_delay; start again",
                ) from error
            logger.warning("PostgreSQL has interrupted a query (%s), retrying", first_line(error))
        else:
            if self._give_up_at is None:
                self._give_up_at = now + RECONNECT_FOR_S
            if now > self._give_up_at:
                raise ReplayError(
                    f"{self._name} has been unavailable for a minute ({first_line(error)})",
                    "start again when it is back",
                ) from error
            logger.warning("the connection to PostgreSQL is lost (%s), retrying", first_line(error))
        time.sleep(self._pause_s)
        self._pause_s = min(5.0, self._pause_s * 2)


def connect(dsn: str, statement_timeout_s: float = 60.0, *, patient: bool = False) -> Connection:
    """Return a read-only connection that is never idle in a transaction.

    Raises BadInputError for an invalid DSN and for a pooler that keeps no settings, ServiceUnreachableError if the
    connection fails. `patient`: retried for a minute, as it has succeeded before; then ReplayError.
    """
    return Connection(dsn, statement_timeout_s, patient=patient)


def _connect(given: Mapping[str, Any]) -> psycopg.Connection[Row]:
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "crm-replay",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    # Besides `options`, as a parameter of its own: poolers keep this one for each client.
    return psycopg.connect(make_conninfo(**{**defaults, **given, "client_encoding": "UTF8"}), autocommit=True)


def settings_in(options: str) -> dict[str, str]:
    """Return the settings in libpq's `options`. Raises BadInputError for any other switch."""
    words: list[str] = []
    word, escaped = "", False
    for letter in options:
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = True
        elif letter.isspace():
            words, word = [*words, word], ""
        else:
            word += letter
    words = [each for each in [*words, word] if each]
    settings: dict[str, str] = {}
    while words:
        first = words.pop(0)
        text = words.pop(0) if first == "-c" and words else first.removeprefix("-c").removeprefix("--")
        name, equals, value = text.partition("=")
        if not equals or not name or name.startswith("-"):
            raise BadInputError(
                f"CRM_AUDIT_DATABASE_URL, options: {first} is no setting", "write -c name=value for each of them"
            )
        settings[name.replace("-", "_")] = value
    return settings


def _escaped(value: str) -> str:
    return "".join(f"\\{letter}" if letter == "\\" or letter.isspace() else letter for letter in value)


def where(dsn: str) -> str:
    """Return a DSN's database, host and port: the parts that may be shown."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        return "PostgreSQL"
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"PostgreSQL database {parts.get('dbname') or 'default'} at {host}:{parts.get('port') or 5432}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Turn PostgreSQL's error for a query into one line: BadInputError, or ReplayError for an outage."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise BadInputError(f"{what}: {first_line(error)}", GRANT_IT) from error
    except psycopg.errors.QueryCanceled as error:
        raise QueryTooSlowError(
            f"{what}: {first_line(error)}",
            "raise CRM_REPLAY_STATEMENT_TIMEOUT_S, or find out why the CRM's database is slow",
        ) from error
    except psycopg.Error as error:
        if kind_of(error) is ServiceUnreachableError:
            raise ReplayError(
                f"{what}: {first_line(error)}", "start again when the server is back; nothing is lost"
            ) from error
        raise BadInputError(f"{what}: {first_line(error)}", "fix the source mapping") from error
