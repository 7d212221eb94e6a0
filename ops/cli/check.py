"""The command line of the nightly check."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ops.checks.model import Verdict
from ops.checks.nightly.model import Results
from ops.cli import host
from ops.progress import view_for
from schemas.errors import BadInputError
from schemas.topics import encode_account
from schemas.vocabulary import ExitCode

MARKS = {Verdict.OK: ("ok  ", "green"), Verdict.WARN: ("warn", "yellow"), Verdict.FAIL: ("FAIL", "bold red")}


def check(
    account: Annotated[
        list[str] | None, typer.Option(help="Only this account; can be repeated.", show_default=False)
    ] = None,
    places: Annotated[int, typer.Option(min=1, max=10_000, help="Segments of each account that are compared.")] = 20,
    rows: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of a segment.")] = 500,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the sample; left out: the day, so each night has other rows.")
    ] = None,
    dead_letters_max: Annotated[int, typer.Option(min=0, help="So many may wait before it is a failure.")] = 0,
    junit: Annotated[str, typer.Option(help="Write the results as JUnit XML into this file.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Check the copy of every account with a finished job: samples, indexes, orphans, dead letters, late rows.

    Exit code 0: no check has failed. 1: one has. 2: the call or its environment is wrong.
    """
    from ops.checks.nightly.run import CheckOptions, check_accounts  # the clients of all packages: not for --help

    if junit and not Path(junit).absolute().parent.is_dir():
        raise BadInputError(f"there is no directory for {junit}", "name a file in an existing one")
    for one in account or ():
        encode_account(one)
    options = CheckOptions(
        places=places,
        rows_a_place=rows,
        seed=datetime.now(UTC).toordinal() if seed is None else seed,
        dead_letters_max=dead_letters_max,
        accounts=tuple(account or ()),
    )
    view = view_for(Console(stderr=True))
    try:
        results = check_accounts(options, host.connections(), view)
    finally:
        view.close()
    if junit:
        Path(junit).write_bytes(results.as_junit())
    if as_json:
        typer.echo(json.dumps(results.as_dict()))
    else:
        print_results(Console(), results)
    if not results.ok:
        raise typer.Exit(ExitCode.FAILED)


def print_results(console: Console, results: Results) -> None:
    """Print a line for each check, and the sum."""
    for result in results.results:
        console.print(f"{result.name}:", style="bold", highlight=False, markup=False)
        for one in result.checks:
            mark, style = MARKS[one.verdict]
            console.print(
                f"  {mark}  {one.name}: {one.found}", style=style, highlight=False, markup=False, soft_wrap=True
            )
            if one.to_do:
                console.print(f"        -> {one.to_do}", highlight=False, markup=False, soft_wrap=True)
    accounts = len(results.results) - 1
    console.print(
        f"{accounts:,} accounts, {results.counted(Verdict.FAIL):,} failures, {results.counted(Verdict.WARN):,} warnings"
        f" in {results.seconds:.1f} s; the same sample again: --seed {results.seed}",
        highlight=False,
        soft_wrap=True,
    )
