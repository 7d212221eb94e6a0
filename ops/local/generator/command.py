"""`crm-replay generate`: fill a database with a CRM."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ops.local import services
from ops.local.generator.history import Plan
from ops.local.generator.tables import Progress as Report
from ops.local.generator.tables import generate_crm
from schemas.process.connections import Connections

PLAIN_LINE_EVERY_S = 5.0


def generate(
    audits: Annotated[int, typer.Option(min=1, help="Rows of audits.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed and size give the same rows.")] = 1,
    accounts: Annotated[int, typer.Option(min=1, help="Tenants; the first has half of the rows.")] = 5,
    dsn: Annotated[str, typer.Option(help="A PostgreSQL for test data; CRM_AUDIT_DATABASE_URL if left out.")] = "",
    schema: Annotated[str, typer.Option(help="Where its tables go.")] = "crm",
    shape: Annotated[str, typer.Option(help="crm: rows of all kinds; peer: small flat rows only.")] = "crm",
    recreate: Annotated[bool, typer.Option("--recreate", help="Make it anew even if it is there.")] = False,
    contacts: Annotated[bool, typer.Option("--contacts", help="Make its persons contacts in MongoDB, too.")] = False,
) -> None:
    """Generate a CRM with its audit history in PostgreSQL; does nothing if the same one is there."""
    connections = services.connections()
    if not dsn:
        connections.require("crm_audit_database_url")
        dsn = connections.crm_audit_database_url
    if contacts:
        connections.require("mongodb_url")
    begun = time.monotonic()
    with reporting(audits) as report:
        made = generate_crm(dsn, Plan(audits, accounts, seed, shape), schema=schema, recreate=recreate, progress=report)
    took = time.monotonic() - begun
    out = Console(soft_wrap=True, highlight=False)
    out.print(
        f"{made.audits:,} audits in {schema}.audits: "
        + (f"made in {took:.1f} s" if made.made else "there already, nothing to do")
    )
    seeded = _seed_contacts(connections, dsn, schema, made.accounts) if contacts else {}
    for account, rows in made.accounts.items():
        out.print(f"  {account}  {rows:,}" + (f", {seeded[account]:,} contacts" if account in seeded else ""))


def _seed_contacts(connections: Connections, dsn: str, schema: str, accounts: Iterable[str]) -> dict[str, int]:
    """Return the number of contacts by account."""
    from ops.local.sample.contacts import seed_contacts  # asks this package for its accounts
    from sink.database import connect

    database = connect(connections, app_name="crm-replay-generate")
    try:
        return {c.company_sso_id: c.contacts for c in seed_contacts(database, dsn, schema, accounts)}
    finally:
        database.client.close()


@contextmanager
def reporting(total: int) -> Iterator[Report]:
    """Give a progress callback: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if sys.stderr.isatty():
        bar = Progress(
            TextColumn("generating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>9,.0f} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        with bar:
            task = bar.add_task("", total=total, rate=0.0)
            begun = time.monotonic()
            yield lambda done, _: bar.update(task, completed=done, rate=done / max(time.monotonic() - begun, 1e-6))
        return
    begun = said = time.monotonic()

    def say(done: int, of: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= PLAIN_LINE_EVERY_S:
            said = now
            rate = done / (now - begun)
            console.print(f"generated {done:,} of {of:,} rows, {rate:,.0f} rows/s, {(of - done) / rate:,.0f} s left")

    yield say
