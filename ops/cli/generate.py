"""`crm-replay generate`: generate a CRM in a database."""

import time
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

from ops.cli import host
from ops.local.generator import Plan, generate_crm
from ops.local.sample.contacts import seed_contacts
from ops.progress import generating
from schemas.process.connections import Connections
from schemas.process.mongodb import connect


def generate(
    audits: Annotated[int, typer.Option(min=1, help="Rows of audits.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed and size give the same rows.")] = 1,
    accounts: Annotated[int, typer.Option(min=1, help="Tenants; the first has half of the rows.")] = 5,
    dsn: Annotated[str, typer.Option(help="A PostgreSQL for test data; CRM_AUDIT_DATABASE_URL if left out.")] = "",
    schema: Annotated[str, typer.Option(help="Where its tables go.")] = "crm",
    shape: Annotated[str, typer.Option(help="crm: rows of all kinds; peer: small flat rows only.")] = "crm",
    recreate: Annotated[bool, typer.Option("--recreate", help="Recreate it even if it exists.")] = False,
    contacts: Annotated[bool, typer.Option("--contacts", help="Make its persons contacts in MongoDB, too.")] = False,
) -> None:
    """Generate a CRM with its audit history in PostgreSQL; does nothing if the same one exists."""
    connections = host.connections()
    if not dsn:
        connections.require("crm_audit_database_url")
        dsn = connections.crm_audit_database_url
    if contacts:
        connections.require("mongodb_url")
    begun = time.monotonic()
    with generating(audits) as report:
        made = generate_crm(dsn, Plan(audits, accounts, seed, shape), schema=schema, recreate=recreate, progress=report)
    took = time.monotonic() - begun
    out = Console(soft_wrap=True, highlight=False)
    out.print(
        f"{made.audits:,} audits in {schema}.audits: "
        + (f"made in {took:.1f} s" if made.made else "exists already, nothing to do")
    )
    seeded = _seed_contacts(connections, dsn, schema, made.accounts) if contacts else {}
    for account, rows in made.accounts.items():
        out.print(f"  {account}  {rows:,}" + (f", {seeded[account]:,} contacts" if account in seeded else ""))


def _seed_contacts(connections: Connections, dsn: str, schema: str, accounts: Iterable[str]) -> dict[str, int]:
    """Return the number of contacts by account."""
    database = connect(connections, app_name="crm-replay-generate")
    try:
        return {c.company_sso_id: c.contacts for c in seed_contacts(database, dsn, schema, accounts)}
    finally:
        database.client.close()
