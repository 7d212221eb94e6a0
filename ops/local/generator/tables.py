"""The generated CRM in PostgreSQL: its tables, and the stream of rows into them by COPY.

Everything happens in one transaction: all of it exists afterwards, or nothing. A comment on the audits table has
what was generated, so that the same call does nothing the next time, and that the tables are ours to replace.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from ops.local.generator.history import GONE, HISTORY_BEGIN, History, Plan, Records
from ops.local.generator.pieces import Pieces, copy_text
from ops.local.generator.plain import PlainHistory
from ops.local.sample.database import connected
from schemas.errors import BadInputError

VERSION = 1  # raise when the rows change: what an older version made is then replaced
MARK = "crm-replay generated"  # how the comment on our audits tables begins
SHAPES = ("crm", "peer")
ACCOUNTS_MAX = 1_000
AUDITS_MAX = 1_000_000_000
CHUNK_BYTES = 1 << 18
Progress = Callable[[int, int], None]  # rows so far, rows in all

AUDIT_COLUMNS = (
    "id, auditable_id, auditable_type, associated_id, associated_type, user_id, user_type, username, action,"
    " audited_changes, version, comment, remote_address, request_uuid, created_at, account_id"
)
TABLES = """
CREATE SCHEMA IF NOT EXISTS {schema};
DROP TABLE IF EXISTS {schema}.audits, {schema}.accounts, {schema}.users, {schema}.crm_people, {schema}.crm_companies,
  {schema}.crm_deals, {schema}.crm_tasks, {schema}.crm_tickets, {schema}.crm_deleted_people;
CREATE TABLE {schema}.accounts (
    id integer NOT NULL, company_sso_id character varying NOT NULL, audits bigint NOT NULL,
    first_audit_at timestamp without time zone NOT NULL, last_audit_at timestamp without time zone NOT NULL
);
CREATE TABLE {schema}.audits (
    id bigint NOT NULL, auditable_id integer, auditable_type character varying, associated_id integer,
    associated_type character varying, user_id integer, user_type character varying, username character varying,
    action character varying, audited_changes text, version integer DEFAULT 0, comment character varying,
    remote_address character varying, request_uuid character varying, created_at timestamp without time zone,
    account_id integer
);
CREATE TABLE {schema}.users (
    id bigint NOT NULL, account_id integer, email character varying, full_name character varying,
    deleted_at timestamp without time zone
);
CREATE TABLE {schema}.crm_people (
    id bigint NOT NULL, account_id integer, first_name character varying, last_name character varying,
    email character varying
);
CREATE TABLE {schema}.crm_companies (id bigint NOT NULL, account_id integer, name character varying);
CREATE TABLE {schema}.crm_deals (id bigint NOT NULL, account_id integer, name character varying);
CREATE TABLE {schema}.crm_tasks (id bigint NOT NULL, account_id integer, title character varying);
CREATE TABLE {schema}.crm_tickets (id bigint NOT NULL, account_id integer, name character varying);
CREATE TABLE {schema}.crm_deleted_people (id bigint NOT NULL, account_id integer, merged_into_id bigint);
"""
KEYS = """
ALTER TABLE {schema}.audits ADD CONSTRAINT audits_pkey PRIMARY KEY (id);
CREATE INDEX index_audits_on_account_id_and_id ON {schema}.audits (account_id, id);
ALTER TABLE {schema}.accounts ADD PRIMARY KEY (id), ADD UNIQUE (company_sso_id);
ALTER TABLE {schema}.users ADD PRIMARY KEY (id);
ALTER TABLE {schema}.crm_people ADD PRIMARY KEY (id);
CREATE INDEX index_crm_people_on_account_id_and_id ON {schema}.crm_people (account_id, id);
ALTER TABLE {schema}.crm_companies ADD PRIMARY KEY (id);
ALTER TABLE {schema}.crm_deals ADD PRIMARY KEY (id);
ALTER TABLE {schema}.crm_tasks ADD PRIMARY KEY (id);
ALTER TABLE {schema}.crm_tickets ADD PRIMARY KEY (id);
ALTER TABLE {schema}.crm_deleted_people ADD PRIMARY KEY (id);
"""


@dataclass(frozen=True, slots=True)
class Generated:
    """The generated CRM as it is in the database now."""

    schema: str
    audits: int
    accounts: Mapping[str, int]  # company_sso_id -> rows, the largest first
    made: bool  # False: the same data was there before


def generate_crm(
    dsn: str, plan: Plan, *, schema: str = "crm", recreate: bool = False, progress: Progress | None = None
) -> Generated:
    """Make the tables of `schema` hold this plan's rows; does nothing if they do. `recreate`: make them anyway.

    Memory is bounded by the CRM's records (about 30 bytes a record), not by its audits. Raises BadInputError for a plan
    that makes no sense and for a schema with other audits, ServiceUnreachableError if PostgreSQL does not respond.
    """
    _check(plan)
    mark = f"{MARK} version {VERSION} shape {plan.shape} audits {plan.audits} accounts {plan.accounts} seed {plan.seed}"
    with connected(dsn) as db:
        db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"crm-replay generate {schema}",))
        there = _mark_of(db, schema)
        if there == mark and not recreate:
            return Generated(schema, plan.audits, dict(accounts_of(db, schema)), made=False)
        db.execute(_named(TABLES, schema))
        history = PlainHistory(plan) if plan.shape == "peer" else History(plan)
        _copy(db, schema, "audits", AUDIT_COLUMNS, history.chunks(), plan.audits, progress)
        for table, columns, lines in crm_tables(history):
            _copy(db, schema, table, columns, _in_chunks(lines))
        db.execute(_named(KEYS, schema))
        db.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(schema, "audits"), sql.Literal(mark)))
        made = dict(accounts_of(db, schema))
    with connected(dsn, autocommit=True) as after:
        after.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(schema, "audits")))
        for table in ("accounts", "users", "crm_people", "crm_deals", "crm_tasks", "crm_tickets", "crm_companies"):
            after.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))
    return Generated(schema, plan.audits, made, made=True)


def accounts(dsn: str, schema: str = "crm") -> list[tuple[str, int]]:
    """Return (company_sso_id, rows) of the generated CRM's accounts, the largest first.

    Raises BadInputError if there is no generated CRM in this schema.
    """
    with connected(dsn) as db:
        if _mark_of(db, schema) is None:
            raise BadInputError(
                f"there is no generated CRM in the schema {schema}", "make one: crm-replay generate --schema NAME"
            )
        return accounts_of(db, schema)


def accounts_of(db: psycopg.Connection[Any], schema: str) -> list[tuple[str, int]]:
    """Return (company_sso_id, rows), the largest first."""
    query = sql.SQL("SELECT company_sso_id, audits FROM {} ORDER BY audits DESC, id")
    return db.execute(query.format(sql.Identifier(schema, "accounts"))).fetchall()


def mapping_path() -> Traversable:
    """Return the mapping file of the generated CRM in the schema `crm`."""
    return files("ops.local").joinpath("mappings", "generated.yaml")


def mapping_text(schema: str) -> str:
    """Return the mapping file's text for a CRM generated into another schema; its name is a plain identifier."""
    text = mapping_path().read_text("utf-8")
    return text.replace("schema: crm", f"schema: {schema}").replace("FROM crm.accounts", f"FROM {schema}.accounts")


def _check(plan: Plan) -> None:
    if not 1 <= plan.accounts <= ACCOUNTS_MAX:
        raise BadInputError(f"{plan.accounts} accounts cannot be generated", f"give 1 to {ACCOUNTS_MAX}")
    if not plan.accounts <= plan.audits <= AUDITS_MAX:
        raise BadInputError(
            f"{plan.audits} audits cannot be generated", f"give one an account ({plan.accounts}) to {AUDITS_MAX}"
        )
    if plan.shape not in SHAPES:
        raise BadInputError(f"{plan.shape} is no shape of rows", f"give {' or '.join(SHAPES)}")


def _mark_of(db: psycopg.Connection[Any], schema: str) -> str | None:
    """Return our comment on the schema's audits table, None if there is no such table."""
    name = f"{_quoted(schema)}.audits"
    row = db.execute("SELECT to_regclass(%s) IS NOT NULL, obj_description(to_regclass(%s))", (name, name)).fetchone()
    assert row is not None
    there, mark = row
    if there and not (mark or "").startswith(MARK):
        raise BadInputError(
            f"the table {schema}.audits was not generated", "give another schema with --schema, or another database"
        )
    if not there:
        _refuse_other_tables(db, schema)
    return mark if there else None


def _refuse_other_tables(db: psycopg.Connection[Any], schema: str) -> None:
    """Raise BadInputError if the schema holds a table of a name that we would drop."""
    row = db.execute(
        "SELECT min(tablename) FROM pg_tables WHERE schemaname = %s AND (tablename LIKE 'crm\\_%%'"
        " OR tablename IN ('accounts', 'users'))",
        (schema,),
    ).fetchone()
    if row is not None and row[0] is not None:
        raise BadInputError(
            f"the table {schema}.{row[0]} was not generated", "give another schema with --schema, or another database"
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _named(statements: LiteralString, schema: str) -> sql.Composed:
    return sql.SQL(statements).format(schema=sql.Identifier(schema))


def _copy(
    db: psycopg.Connection[Any],
    schema: str,
    table: str,
    columns: str,
    chunks: Iterable[tuple[bytes, int]],
    total: int = 0,
    progress: Progress | None = None,
) -> None:
    """Stream chunks of COPY text into a table made in this transaction; FREEZE spares the vacuum a second pass."""
    rows = 0
    statement = sql.SQL("COPY {} ({}) FROM STDIN WITH (FREEZE)").format(
        sql.Identifier(schema, table),
        sql.SQL(", ").join(sql.Identifier(column.strip()) for column in columns.split(",")),
    )
    with db.cursor() as cursor, cursor.copy(statement) as copy:
        for text, count in chunks:
            copy.write(text)
            rows += count
            if progress is not None:
                progress(rows, total)


def _in_chunks(lines: Iterable[str]) -> Iterator[tuple[bytes, int]]:
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield "".join(held).encode(), len(held)
            held.clear()
            size = 0
    yield "".join(held).encode(), len(held)


def crm_tables(history: History) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield (table, columns, lines of COPY text) of all other tables; call it after the history's last row."""
    pieces = history.names
    people = [f"{copy_text(a)}\t{copy_text(b)}\t{copy_text(c)}" for a, b, c in _people_names(pieces)]
    yield "accounts", "id, company_sso_id, audits, first_audit_at, last_audit_at", _accounts(history)
    yield "users", "id, account_id, email, full_name, deleted_at", _users(history)
    yield "crm_people", "id, account_id, first_name, last_name, email", _named_rows(history.people, people)
    for table, column, records, names in (
        ("crm_companies", "name", history.companies, pieces.company_names),
        ("crm_deals", "name", history.deals, pieces.deal_names),
        ("crm_tasks", "title", history.tasks, pieces.task_names),
        ("crm_tickets", "name", history.tickets, pieces.ticket_names),
    ):
        yield table, f"id, account_id, {column}", _named_rows(records, [copy_text(name) for name in names])
    yield "crm_deleted_people", "id, account_id, merged_into_id", _deleted(history)


def _people_names(pieces: Pieces) -> Iterator[tuple[str, str, str]]:
    return zip(pieces.first_names, pieces.last_names, pieces.emails, strict=True)


def _named_rows(records: Records, names: list[str]) -> Iterator[str]:
    for record_id, account, name in zip(records.ids, records.accounts, records.names, strict=True):
        if name != GONE:
            yield f"{record_id}\t{account}\t{names[name]}\n"


def _accounts(history: History) -> Iterator[str]:
    for account in history.accounts:
        first, last = (HISTORY_BEGIN + timedelta(microseconds=us) for us in (account.first_us, account.last_us))
        yield f"{account.number}\t{account.company_sso_id}\t{account.audits}\t{first:%F %T.%f}\t{last:%F %T.%f}\n"


def _users(history: History) -> Iterator[str]:
    for user in history.users:
        deleted_at = f"{HISTORY_BEGIN + timedelta(days=400 + user.id):%F %T}" if user.deleted else "\\N"
        yield f"{user.id}\t{user.account}\t{user.email}\t{copy_text(user.full_name)}\t{deleted_at}\n"


def _deleted(history: History) -> Iterator[str]:
    people = history.people
    for place, name in enumerate(people.names):
        if name == GONE:
            into = history.survivor(place)
            merged = "\\N" if into is None else str(people.ids[into])
            yield f"{people.ids[place]}\t{people.accounts[place]}\t{merged}\n"
