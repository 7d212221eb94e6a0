"""The command line of the preflight."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.checks.model import Verdict
from ops.checks.preflight.model import Report
from ops.cli import host
from ops.progress import PLAIN_LINE_EVERY_S, view_for
from schemas.vocabulary import ExitCode

STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def preflight(
    account: Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)],
    mapping: Annotated[
        str, typer.Option(help="Source mapping file; left out: the sample CRM's.", show_default=False)
    ] = "",
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Partitions of the account's topics.")] = 4,
    date_range_start: Annotated[
        datetime | None, typer.Option(help="Leave out rows created before this (UTC).", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one check may take.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Check every precondition of a replay: servers, rights, indexes, contacts, disk space. Writes nothing.

    Exit code 0: no check has failed, there may be warnings. 1: one has. 2: the call is wrong.
    """
    from ops.checks.preflight.run import PreflightOptions, preflight_account  # all clients: not for --help

    connections = host.connections()
    start = (
        date_range_start.replace(tzinfo=UTC) if date_range_start and not date_range_start.tzinfo else date_range_start
    )
    options = PreflightOptions(
        mapping_path=mapping,
        partitions=partitions,
        date_range_start=start,
        timeout_s=timeout,
        embedded_source=connections.crm_audit_database_url in host.embedded_addresses().values(),
    )
    view = view_for(Console(stderr=True))
    said_at = time.monotonic()

    def progress(done: int, top: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= PLAIN_LINE_EVERY_S:  # a count of few rows ends before it matters
            said_at = time.monotonic()
            view.note(f"counting the rows in scope: at id {done:,} of {top:,}")

    try:
        report = preflight_account(account, options, connections, progress)
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        print_report(Console(), report)
    sys.stdout.flush()
    if not report.ok:
        raise typer.Exit(ExitCode.FAILED)


def print_report(console: Console, report: Report) -> None:
    """Print a table of the checks, and the verdict on the whole."""
    table = Table(title=escape(f"Preflight of {report.company_sso_id}"), title_justify="left", show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found and what to do", overflow="fold")
    for check in report.checks:
        table.add_row(check.name, f"[{STYLES[check.verdict]}]{check.verdict}[/]", _escaped(check.found))
        if check.to_do:
            table.add_row("", "", f"[bold]-> {_escaped(check.to_do)}[/]")
    console.print(table, highlight=False)
    failed = [check.name for check in report.checks if check.verdict is Verdict.FAIL]
    warned = sum(check.verdict is Verdict.WARN for check in report.checks)
    if failed:
        console.print(f"do not start: {', '.join(failed)}", style="bold red", highlight=False, soft_wrap=True)
    else:
        worth = f"; {warned} warnings need attention" if warned else ""
        console.print(f"ready: no check has failed{worth}", style="bold green", highlight=False, soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
