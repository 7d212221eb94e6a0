"""Prints a run's ledger: every bin, their sum, and whether it equals the source's."""

from rich.console import Console
from rich.markup import escape

from ops.cli.tables import counts_table
from ops.jobs.jobs import Ledger
from schemas.vocabulary import SkipReason


def print_ledger(console: Console, account: str, ledger: Ledger, *, seconds: float | None = None) -> None:
    """Print every bin, their sum, and whether it is the source's."""
    table = counts_table(f"Ledger of {account}")
    table.add_row("source rows", f"{ledger.source_rows:,}", style="bold")
    table.add_row("migrated", f"{ledger.migrated:,}")
    for reason, count in sorted(ledger.skipped.items()):
        in_place = " (in place already)" if reason == SkipReason.DUPLICATE_EXTERNAL_ID else ""
        table.add_row(f"skipped: {reason}{in_place}", f"{count:,}")
    table.add_row("failed", f"{ledger.failed:,}", style="red" if ledger.failed else None)
    for name, count in (("failed and repaired since", ledger.repaired), ("late rows filled", ledger.late)):
        if count:
            table.add_row(f"of them {name}", f"{count:,}")
    if ledger.actors_fell_back:
        table.add_row("actors that fell back", f"{ledger.actors_fell_back:,}")
    if ledger.documents is not None:
        table.add_row("documents in MongoDB", f"{ledger.documents:,}")
    accuracy = "-" if ledger.accuracy_pct is None else f"{ledger.accuracy_pct:.2f} %"
    table.add_row("accuracy_pct", accuracy)
    for name, count in sorted(ledger.out_of_scope.items()):
        table.add_row(escape(f"not in scope, not read: {name or '(no type)'}"), f"{count:,}")
    verdict = "balanced" if ledger.balanced else f"OUT OF BALANCE by {ledger.source_rows - ledger.accounted:,}"
    table.add_row("ledger", verdict, style="bold green" if ledger.balanced else "bold red")
    console.print(table)
    if seconds:
        console.print(
            f"{ledger.accounted:,} rows in {seconds:.1f} s: {ledger.accounted / seconds:,.0f} rows/s", highlight=False
        )
