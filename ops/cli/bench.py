"""`crm-replay bench`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ops.cli import host
from ops.cli.options import Partitions, Workers
from ops.local.services import Service
from ops.runner.forkserver import forked
from schemas.compiled import hot_paths

if TYPE_CHECKING:
    from ops.bench.stages import Measured


def bench(
    rows: Annotated[int, typer.Option(min=1, help="Rows to replay.")] = 200_000,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; can be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each stage is measured.")] = 1,
    shape: Annotated[
        str, typer.Option(help="Rows of the generator: crm (realistic mix) or peer (small, flat).")
    ] = "crm",
    contacts: Annotated[int, typer.Option(min=1, help="Entries of the stage table_load.")] = 200_000,
    accounts: Annotated[
        int, typer.Option(min=2, help="Small accounts of the stage accounts, which has to be named.")
    ] = 20,
    partitions: Partitions = 4,
    processors: Workers = 1,
    sinks: Workers = 1,
    versus: Annotated[
        Path | None,
        typer.Option(envvar="CRM_REPLAY_BENCH_VERSUS", help="Directory of another pipeline, to be measured as well."),
    ] = None,
    my_servers: Annotated[
        bool, typer.Option("--my-servers", help="Create databases and topics on the servers from the environment.")
    ] = False,
) -> None:
    """Measure each stage alone and the whole; a JSON line each on standard output, a table on standard error."""
    from ops.bench import stages  # the clients of all packages: not for --help
    from ops.bench.versus import Peer
    from ops.runner.options import RunOptions

    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, style="dim")

    say(f"hot paths: {hot_paths()}")
    wanted = stages.require_stages(stage or ())
    with forked() as forks:  # as `run` does it, though once for all repeats
        options = RunOptions(partitions=partitions, processors=processors, sinks=sinks, home=host.home(), forks=forks)
        if versus is not None:
            print_comparison(
                console,
                stages.versus(
                    say, Peer(versus), rows=rows, repeats=repeats, options=options, of_environment=my_servers
                ),
            )
            return
        measured = stages.bench(
            say,
            rows=rows,
            contacts=contacts,
            wanted=wanted,
            repeats=repeats,
            shape=shape,
            options=options,
            accounts=accounts,
            of_environment=my_servers,
        )
    print_rates(console, measured)


def print_comparison(console: Console, lines: Iterable[Mapping[str, Any]]) -> None:
    """Print how many times as fast this is as the peer."""
    table = Table(title="rows/s, min / median / max, on the same rows")
    for column in ("the peer writes by", "the peer", "this", "times as fast"):
        table.add_column(column, justify="left" if column == "the peer writes by" else "right")
    for line in lines:
        rates = [" / ".join(f"{rate:,}" for rate in line[name]) for name in ("peer_rows_per_s", "our_rows_per_s")]
        table.add_row(line["peer"], *rates, str(line["ratio"]))
    console.print(table)


def print_rates(console: Console, measured: "Sequence[Measured]") -> None:
    """Print a line for each stage, over its repeats; no line if no stage has a rate."""
    if not measured:
        return
    table = Table(title="rows/s, min / median / max")
    for column in ("stage", "rows", "rows/s", "steady", "CPU µs/row", "peak MiB", "growth MiB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in dict.fromkeys(result.stage for result in measured):
        same = [result for result in measured if result.stage == stage]
        rates = [result.rows_per_s for result in same]
        steady = [result.steady_rows_per_s for result in same if result.steady_rows_per_s]
        cpu = median(result.as_dict()["cpu_us_per_row"] for result in same)
        peak = max(cost.peak_mib for result in same for cost in result.costs.values())
        servers = [str(service) for service in Service]
        growth = [mib for result in same for name, mib in result.growth_mib.items() if name not in servers]
        table.add_row(
            stage,
            f"{same[0].rows:,}",
            f"{min(rates):,.0f} / {median(rates):,.0f} / {max(rates):,.0f}",
            f"{median(steady):,.0f}" if steady else "-",
            f"{cpu:.0f}",
            f"{peak:.0f}",
            f"{max(growth):+.0f}" if growth else "-",
        )
    console.print(table)
