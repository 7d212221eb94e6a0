"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and the ledger at the end."""

import sys
import time
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ops.jobs.jobs import Ledger
from schemas.vocabulary import SkipReason

PLAIN_LINE_EVERY_S = 5.0
RATE_WINDOW_S = 10.0  # the rate shown is that of the last seconds: it follows a stall at once


@dataclass
class RateMeter:
    """Rows per second over the last `RATE_WINDOW_S`, from (time, rows) samples."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    def add(self, now_s: float, rows: int) -> float:
        """Return the rate now; 0.0 before there are two samples."""
        self.samples.append((now_s, rows))
        while len(self.samples) > 2 and now_s - self.samples[1][0] >= RATE_WINDOW_S:
            self.samples.pop(0)
        (first_s, first), (last_s, last) = self.samples[0], self.samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def eta_text(rows_left: int, rate: float) -> str:
    """Return the time left as `1:02:03`, or `-` while there is no rate to tell it from."""
    if rate <= 0:
        return "-"
    seconds = round(rows_left / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class RunView(Protocol):
    """Where a run reports to."""

    def note(self, text: str) -> None:
        """Say one line."""

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        """Show how far it is; called a few times a second."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainView:
    """Plain lines, for logs and pipes."""

    def __init__(self, now: float | None = None) -> None:
        """Lines go to standard error, so that standard output stays the result's."""
        self._meter = RateMeter()
        self._said_at = now if now is not None else time.monotonic()

    def note(self, text: str) -> None:
        """Say one line."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        """Say a line every few seconds."""
        now = time.monotonic()
        rate = self._meter.add(now, done)
        if now - self._said_at >= PLAIN_LINE_EVERY_S or (done >= total > 0 and self._said_at < now - 0.5):
            self._said_at = now
            self.note(
                f"{done:,} of {total:,} rows, {rate:,.0f}/s, ETA {eta_text(total - done, rate)}"
                f"{_skips_text(skipped, failed)}"
            )

    def close(self) -> None:
        """Nothing to do."""


class TerminalView:
    """A progress bar with rate, ETA and skips by reason."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._console = console
        self._meter = RateMeter()
        self._task: TaskID | None = None
        self._bar = Progress(
            SpinnerColumn("line" if console.options.ascii_only else "dots"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
        )

    def note(self, text: str) -> None:
        """Say one line above the bar."""
        self._console.print(text, highlight=False, markup=False)  # it may name anything: a path, an _id

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        """Move the bar."""
        rate = self._meter.add(time.monotonic(), done)
        if self._task is None:
            self._task = self._bar.add_task("rows", total=total, rate="", detail="")
            self._bar.start()
        self._bar.update(
            self._task,
            completed=done,
            total=total,
            rate=f"{rate:,.0f}/s, ETA {eta_text(total - done, rate)}",
            detail=_skips_text(skipped, failed).removeprefix(", "),
        )

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def _skips_text(skipped: dict[str, int], failed: int) -> str:
    parts = [f"{reason} {count:,}" for reason, count in sorted(skipped.items()) if count]
    if failed:
        parts.append(f"failed {failed:,}")
    return ", " + ", ".join(parts) if parts else ""


def view_for(console: Console) -> RunView:
    """Return the view that fits the console: a bar on a terminal, lines elsewhere."""
    return TerminalView(console) if console.is_terminal else PlainView()


def print_ledger(console: Console, account: str, ledger: Ledger, *, seconds: float | None = None) -> None:
    """Print every bin, their sum, and whether it is the source's."""
    table = Table(title=escape(f"Ledger of {account}"), show_header=False, title_justify="left", min_width=44)
    table.add_column()
    table.add_column(justify="right")
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
