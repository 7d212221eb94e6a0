"""`crm-replay generate`: fill a database with a CRM."""

import sys
import time
from collections.abc import Iterator
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

from ops.local.generator.history import Plan
from ops.local.generator.tables import Progress as Report
from ops.local.generator.tables import generate_crm
from schemas.connections import Connections

PLAIN_LINE_EVERY_S = 5.0


def generate(
    audits: Annotated[int, typer.Option(min=1, help="rows of audits")] = 100_000,
    seed: Annotated[int, typer.Option(help="the same seed and size give the same rows")] = 1,
    accounts: Annotated[int, typer.Option(min=1, help="tenants; the first has half of the rows")] = 5,
    dsn: Annotated[str, typer.Option(help="a PostgreSQL for test data; CRM_AUDIT_DATABASE_URL if left out")] = "",
    schema: Annotated[str, typer.Option(help="where its tables go")] = "crm",
    shape: Annotated[str, typer.Option(help="crm: rows of all kinds; peer: small flat rows only")] = "crm",
    recreate: Annotated[bool, typer.Option("--recreate", help="make it anew even if it is there")] = False,
) -> None:
    """Generate a CRM with its audit history in PostgreSQL; does nothing if the same one is there."""
    if not dsn:
        connections = Connections()
        connections.require("crm_audit_database_url")
        dsn = connections.crm_audit_database_url
    begun = time.monotonic()
    with reporting(audits) as report:
        made = generate_crm(dsn, Plan(audits, accounts, seed, shape), schema=schema, recreate=recreate, progress=report)
    took = time.monotonic() - begun
    out = Console(soft_wrap=True, highlight=False)
    out.print(
        f"{made.audits:,} audits in {schema}.audits: "
        + (f"made in {took:.1f} s" if made.made else "there already, nothing to do")
    )
    for account, rows in made.accounts.items():
        out.print(f"  {account}  {rows:,}")


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
