"""Loads the sample CRM, all of `ops/local/sample`, into a PostgreSQL database of one's own. Test data only."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import psycopg
from psycopg import sql

from ops.local.sample.database import connected
from ops.local.sample.rows import SAMPLE_JSONB, SAMPLE_YAML, json_lines
from schemas.errors import BadInputError

__all__ = ["SAMPLE_JSONB", "SAMPLE_YAML", "SampleCounts", "load_sample", "mapping_path"]

MAPPINGS = {SAMPLE_YAML: "sample_yaml.yaml", SAMPLE_JSONB: "sample_jsonb.yaml"}

_MARK = "crm-replay sample 1"  # comment on public.audits; raise the number when the rows change
_LOCK_KEY = 0x63726D2D73616D70  # of pg_advisory_xact_lock: two loads at once wait for each other
_TABLES = {
    "users": "public.users",
    "api_clients": "public.api_clients",
    "companies": "public.crm_companies",
    "people": "public.crm_people",
    "deals": "public.crm_deals",
    "tasks": "public.crm_tasks",
    "tickets": "public.crm_tickets",
    "notes": "public.crm_notes",
    "audits_yaml": "public.audits",
    "audits_jsonb": "jsonb_variant.audits",
}
_JOIN_MODELS = {
    "crm_company_people": "Crm::CompanyPerson",
    "crm_deal_companies": "Crm::DealCompany",
    "crm_deal_people": "Crm::DealPerson",
    "crm_task_deals": "Crm::TaskDeal",
    "crm_task_people": "Crm::TaskPerson",
    "crm_ticket_companies": "Crm::TicketCompany",
    "crm_ticket_deals": "Crm::TicketDeal",
    "crm_ticket_people": "Crm::TicketPerson",
}


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """Rows of the sample CRM by table, `schema.table`."""

    rows: Mapping[str, int]
    loaded: bool  # False: they were there before

    @property
    def audits_yaml(self) -> int:
        """Return the rows of `public.audits`."""
        return self.rows["public.audits"]

    @property
    def audits_jsonb(self) -> int:
        """Return the rows of `jsonb_variant.audits`."""
        return self.rows["jsonb_variant.audits"]


def mapping_path(company_sso_id: str) -> Traversable:
    """Return the mapping file of a sample account; raises BadInputError for another account."""
    name = MAPPINGS.get(company_sso_id)
    if name is None:
        raise BadInputError(f"{company_sso_id} is no sample account", f"give one of {', '.join(MAPPINGS)}")
    return files("ops.local").joinpath("mappings", name)


def load_sample(dsn: str) -> SampleCounts:
    """Create the sample CRM's tables with all their rows, and return how many; a second call changes nothing.

    One transaction: either all is there afterwards or nothing. Other schemas of the database are left alone.
    Raises BadInputError if `public.audits` exists and is not the sample's, ServiceUnreachableError for an outage.
    """
    with connected(dsn) as db:
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
        if _is_loaded(db):
            return SampleCounts(_count(db), loaded=False)
        db.execute(files("ops.local.sample").joinpath("schema.sql").read_bytes())
        for name, table in _TABLES.items():
            _copy(db, table, list(json_lines(name)))
        for table, rows in _links().items():
            _copy(db, table, rows)
        db.execute(sql.SQL("COMMENT ON TABLE public.audits IS {}").format(sql.Literal(_MARK)))
        counts = _count(db)
    with connected(dsn, autocommit=True) as db:
        for table in counts:
            db.execute(sql.SQL("ANALYZE {}").format(_name(table)))
    return SampleCounts(counts, loaded=True)


def _is_loaded(db: psycopg.Connection[Any]) -> bool:
    row = db.execute("SELECT obj_description(to_regclass('public.audits')), to_regclass('public.audits')").fetchone()
    assert row is not None
    mark, table = row
    if table is not None and mark != _MARK:
        raise BadInputError(
            "this database has a table public.audits that is not the sample CRM's",
            "give an empty database: nothing is ever written to a CRM",
        )
    return table is not None


def _links() -> dict[str, list[dict[str, Any]]]:
    """Return the join rows by table. Their times are not in links.jsonl; each was made when its create audit was."""
    made_at = {
        (row["auditable_type"], row["auditable_id"]): row["created_at"]
        for name in ("audits_yaml", "audits_jsonb")
        for row in json_lines(name)
        if row["action"] == "create"
    }
    tables: dict[str, list[dict[str, Any]]] = {}
    for link in json_lines("links"):
        table = link.pop("table")
        at = made_at[_JOIN_MODELS[table], link["id"]]
        tables.setdefault(f"public.{table}", []).append({**link, "created_at": at, "updated_at": at})
    return tables


def _copy(db: psycopg.Connection[Any], table: str, rows: list[dict[str, Any]]) -> None:
    """Copy rows into a table, and move its sequence behind them."""
    by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_columns.setdefault(tuple(row), []).append(row)
    with db.cursor() as cursor:
        for columns, alike in by_columns.items():
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(_name(table), names)) as copy:
                for row in alike:
                    copy.write_row(tuple(row.values()))
    db.execute(
        sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), max(id)) FROM {} HAVING max(id) IS NOT NULL").format(
            sql.Literal(table), _name(table)
        )
    )


def _count(db: psycopg.Connection[Any]) -> dict[str, int]:
    """Count the rows of every table of the sample."""
    tables = [*_TABLES.values(), *(f"public.{table}" for table in _JOIN_MODELS), "public.crm_products"]
    counts: dict[str, int] = {}
    for table in tables:
        row = db.execute(sql.SQL("SELECT count(*) FROM {}").format(_name(table))).fetchone()
        assert row is not None
        counts[table] = row[0]
    return counts


def _name(table: str) -> sql.Identifier:
    return sql.Identifier(*table.split("."))
