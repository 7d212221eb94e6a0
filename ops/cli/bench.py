"""`crm-replay demo` and `bench`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ops.cli.options import Partitions, Workers
from ops.local.services.layout import Home
from ops.runner.forkserver import forked


def demo(
    audits: Annotated[int, typer.Option(min=1, help="Audits of the generated CRM, over all its accounts.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same CRM.")] = 1,
) -> None:
    """Load two CRMs into real servers, replay, show what came of it, and leave nothing running."""
    from ops.cli.demo import demo as show

    show(Console(), audits=audits, seed=seed)


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
        bool, typer.Option("--my-servers", help="Make databases and topics on the servers that the environment names.")
    ] = False,
) -> None:
    """Measure each stage alone and the whole; a JSON line each on standard output, a table on standard error."""
    from ops.bench.stages import bench as measure
    from ops.runner.options import RunOptions

    with forked() as forks:  # as `run` does it, though once for all repeats
        options = RunOptions(
            partitions=partitions, processors=processors, sinks=sinks, home=Home.at(None).path, forks=forks
        )
        measure(
            Console(stderr=True),
            rows=rows,
            contacts=contacts,
            stages=stage or (),
            versus=versus,
            repeats=repeats,
            shape=shape,
            options=options,
            accounts=accounts,
            of_environment=my_servers,
        )
