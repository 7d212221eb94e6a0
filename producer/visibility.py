"""What a role sees of the tables that a replay reads: rows or columns hidden from it must not be taken for absent.

A session refuses a query that row-level security would hide rows from (`row_security=off`, `producer.audits.connect`).
These checks report it before a job exists, and also if a pooler has dropped the session's options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from producer.audits import AUDIT_COLUMNS, Connection, answering, sql_text
from producer.session import settings_in
from schemas.errors import BadInputError
from schemas.source.mapping import SourceMapping

STATED = "row_security=on"  # in the DSN's options: the operator states that the policies show this role every row

# Relations whose completeness the catalogue does not show, by pg_class.relkind.
SHOWS_A_PART = {
    "v": "is a view",
    "m": "is a materialized view, as old as its last refresh",
    "f": "is a foreign table",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a replay reads, and the columns of it that are read."""

    schema: str
    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        """Return the qualified name."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Visible:
    """What the session's role sees of a table."""

    oid: int
    kind: str  # pg_class.relkind
    row_security: bool  # whether policies apply to this role
    unreadable: tuple[str, ...]  # columns that a replay reads and the role may not
    role: str


def tables_read(mapping: SourceMapping) -> list[Table]:
    """Return every table that a replay reads, each once, the audits first. Names of referents are expressions, whose
    columns only the server knows (`producer.survey.check_references` tries them).
    """
    source, users = mapping.source, mapping.users
    account = () if source.account is None else (source.account.column,)
    read = [
        ((source.schema_name, source.table), (*AUDIT_COLUMNS, *account)),
        ((users.schema_name, users.table), (users.id, users.email, users.full_name, users.deleted_at)),
        # A referent's table is read by account if it has that column; a missing column is no error.
        *(((table.schema_name, table.table), (table.id, *account)) for table in mapping.referents.values()),
    ]
    columns: dict[tuple[str, str], dict[str, None]] = {}
    for name, names in read:
        columns.setdefault(name, {}).update(dict.fromkeys(names))
    return [Table(schema, name, tuple(names)) for (schema, name), names in columns.items()]


def visible(db: Connection, table: Table) -> Visible | None:
    """Return what the role sees of a table; None if there is no such table."""
    values = {"schema": table.schema, "table": table.name, "columns": list(table.columns)}
    with answering(f"reading the privileges on {table}"):
        rows = db.execute(sql.SQL(sql_text("visible")), values).fetchall()
    if not rows:
        return None
    oid, kind, row_security, unreadable, role = rows[0]
    return Visible(oid, kind, row_security, tuple(unreadable), role)


def row_security_stated(dsn: str) -> bool:
    """Return whether the DSN states that the policies in force show its role every row."""
    name, _, value = STATED.partition("=")
    return settings_in(str(conninfo_to_dict(dsn).get("options") or "")).get(name) == value


def why_not_whole(table: Table, seen: Visible, *, stated: bool) -> BadInputError | None:
    """Return the error if the role does not see a whole table; None if it does, as far as is known. Pure."""
    if len(seen.unreadable) == len(table.columns):
        return BadInputError(
            f"permission denied: role {seen.role} may not read {table}",
            f"grant SELECT on it, and USAGE on schema {table.schema}",
        )
    if seen.unreadable:
        return BadInputError(
            f"role {seen.role} may not read {', '.join(seen.unreadable)} of {table}", "grant SELECT on these columns"
        )
    if seen.row_security and not stated:
        return BadInputError(
            f"row-level security hides rows of {table} from role {seen.role}",
            f"ALTER ROLE {seen.role} BYPASSRLS; or, if its policies show it every row, state that in"
            f" CRM_AUDIT_DATABASE_URL with options=-c {STATED}",
        )
    return None


def may_be_part(table: Table, seen: Visible) -> str:
    """Return the note on a table that may show only a part of its rows; "" for any other. Pure."""
    if seen.row_security:
        return f"row-level security is in force on {table}; the DSN states that role {seen.role} sees every row"
    if seen.kind in SHOWS_A_PART:
        return f"{table} {SHOWS_A_PART[seen.kind]}: what it leaves out ends in no bin"
    return ""


def require_whole_tables(db: Connection, dsn: str, tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the notes on tables that may show only a part of their rows.

    Raises BadInputError for the first table of which rows or columns are hidden from the role.
    """
    stated = row_security_stated(dsn)
    notes = []
    for table in tables:
        seen = visible(db, table)
        if seen is None:
            continue
        error = why_not_whole(table, seen, stated=stated)
        if error is not None:
            raise error
        notes.append(may_be_part(table, seen))
    return tuple(filter(None, notes))
