"""`crm-replay runner`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ops.cli import host
from ops.runner.daemon import Daemon, Limits
from ops.runner.forkserver import WORKERS, forked
from ops.runner.processes import require_writable
from ops.runner.worker_metrics import gathering
from schemas.process.waiting import stop_on_signals
from schemas.source.mapping import load


def runner(
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Accounts replayed at a time on this host.")] = 4,
    tasks: Annotated[int, typer.Option(min=0, max=64, help="Verifications, preflights and the like at a time.")] = 2,
    processors: Annotated[int, typer.Option(min=1, max=64, help="A job's.")] = 1,
    sinks: Annotated[int, typer.Option(min=1, max=64, help="A job's.")] = 1,
    mapping: Annotated[
        str,
        typer.Option(help="Source mapping file on this host; default: the job's.", show_default=False),
    ] = "",
    rows_per_s: Annotated[
        float, typer.Option(min=0, help="Read from the CRM at most, by all jobs of this host; 0: no bound.")
    ] = 0.0,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when no work is left.")] = False,
) -> None:
    """Execute what is requested over HTTP, in the console and by `crm-replay trigger`: claims and runs jobs and tasks.

    Any number of runners on any hosts. SIGTERM releases everything, so that others take over at once. Each job gets
    an equal part of --rows-per-s; it also slows down while a replica lags or pages are slow
    (CRM_REPLAY_SOURCE_REPLICA_LAG_MAX_S, CRM_REPLAY_SOURCE_QUERY_MAX_S).
    """
    if mapping:
        load(mapping)
    if rows_per_s:
        os.environ["CRM_REPLAY_SOURCE_ROWS_PER_S"] = str(rows_per_s / jobs)
    path = str(Path(mapping).resolve()) if mapping else ""
    require_writable(host.home())
    daemon = Daemon(host.connections(), Limits(jobs, tasks, processors, sinks, path, host.home()))
    with (
        forked(("ops.runner.daemon", "ops.runner.replay", "ops.runner.enrichment", *WORKERS)) as daemon.forks,
        stop_on_signals(daemon.stop, second_ends=True),  # children notice our end, and stop
        gathering("runner", daemon.limits.home),
    ):
        daemon.run(until_idle=until_idle)
