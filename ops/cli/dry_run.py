"""The command line of the dry run."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ops.checks.dry_run.model import Report
from ops.cli import host
from ops.cli.tables import counts_table
from ops.jobs.letters import printable
from ops.progress import view_for
from schemas.vocabulary import ExitCode


def dry_run(
    account: Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)],
    mapping: Annotated[
        str, typer.Option(help="Source mapping file; left out: the sample CRM's.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Sample so many rows, spread over all ids; 0: every row.")] = 0,
    date_range_start: Annotated[
        datetime | None, typer.Option(help="Leave out rows created before this (UTC).", show_default=False)
    ] = None,
    examples: Annotated[int, typer.Option(min=0, max=100, help="How many rows of each kind are shown.")] = 1,
    show_values: Annotated[
        bool, typer.Option("--show-values", help="Show values as they are: personal data of the CRM.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Read and transform the account's rows as a replay would, without writing, and report the outcomes.

    Exit code 0. 1: so many rows fail that a job would halt. 2: the call or its environment is wrong.
    """
    from ops.checks.dry_run.run import DryRunOptions, dry_run_account  # all clients: not for --help

    start = date_range_start
    if start is not None and start.tzinfo is None:
        start = start.replace(tzinfo=UTC)
    view = view_for(Console(stderr=True))
    try:
        report = dry_run_account(
            account, DryRunOptions(mapping, limit, start, examples, show_values), host.connections(), view
        )
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps(report.as_dict(), default=str))
    else:
        print_report(Console(), report)
    if report.would_halt:
        raise typer.Exit(ExitCode.FAILED)


def print_report(console: Console, report: Report) -> None:
    """Print the counts, an example of each kind, the estimate, and what else is to be known."""
    tally = report.tally
    table = counts_table(f"Dry run of {report.company_sso_id}")
    table.add_row("rows in scope", f"{report.rows_in_scope:,}", style="bold")
    if report.sampled:
        table.add_row("rows read", f"{tally.rows:,}")
    table.add_row("would become logs", f"{tally.logs_total:,}")
    for name, count in sorted(tally.logs.items()):
        table.add_row(f"  {name}", f"{count:,}")
    for reason, count in sorted(tally.skipped.items()):
        table.add_row(f"skipped: {reason}", f"{count:,}")
    for cause, count in sorted(tally.failed.items()):
        table.add_row(f"failed: {cause}", f"{count:,}", style="red")
    for name, count in sorted(report.out_of_scope_by_type.items()):
        table.add_row(escape(f"not in scope, not read: {name or '(no type)'}"), f"{count:,}")
    for name, count in report.counts.items():
        if count:
            table.add_row(name.replace("_", " "), f"{count:,}")
    console.print(table)
    for kind, found in (
        ("log", report.examples.logs),
        ("skipped", report.examples.skipped),
        ("failed", report.examples.failed),
    ):
        for name, rows in sorted(found.items()):
            for row in rows:
                console.print(_line(kind, name, row), highlight=False, markup=False, soft_wrap=True)
    console.print(report.estimate_text(), highlight=False, soft_wrap=True)
    for note in report.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if report.would_halt:
        console.print(
            f"{100 * tally.failure_rate:.1f} % of the rows fail: a job would halt", style="bold red", soft_wrap=True
        )


def _line(kind: str, name: str, row: dict[str, Any]) -> str:
    """Return an example in one line."""
    rest = {key: value for key, value in row.items() if key not in ("audit_id", "auditable_type", "action")}
    summary = json.dumps(rest.get("document", rest), default=str, ensure_ascii=False)
    return printable(f"{kind} {name}: row {row['audit_id']}, {row['auditable_type']} {row['action']}: {summary}")
