"""The progress of a run: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ops.rate import RateMeter

PLAIN_LINE_EVERY_S = 5.0
RATE_WINDOW_S = 10.0  # the rate shown is that of the last seconds: it follows a stall at once


def eta_text(rows_left: int, rate: float) -> str:
    """Return the time left as `1:02:03`, or `-` while there is no rate yet."""
    if rate <= 0:
        return "-"
    seconds = round(rows_left / rate)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class RunView(Protocol):
    """Where a run reports to."""

    def note(self, text: str) -> None:
        """Print one line."""

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        """Show the progress; called a few times a second."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainView:
    """Plain lines, for logs and pipes."""

    def __init__(self, now: float | None = None) -> None:
        """Lines go to standard error, so that standard output stays the result's."""
        self._meter = RateMeter(RATE_WINDOW_S)
        self._said_at = now if now is not None else time.monotonic()

    def note(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        """Print a line every few seconds."""
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
        self._meter = RateMeter(RATE_WINDOW_S)
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
        """Print one line above the bar."""
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


@contextmanager
def generating(total: int) -> Iterator[Callable[[int, int], None]]:
    """Give a callback (done, of) for rows being generated: a bar on a terminal, a line every few seconds elsewhere."""
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
