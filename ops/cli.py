"""`crm-replay`: start anything, look at anything. Wiring only; each command lives with what it runs."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table

from ops.control import migrations
from ops.control.jobs import Job
from ops.control.store import JobStore
from ops.local import ask, services
from ops.local.cdc import app as cdc_app
from ops.local.check import check
from ops.local.daemon import runner as run_daemon
from ops.local.dlq import app as dlq_app
from ops.local.dry_run import dry_run
from ops.local.enrich import enrich
from ops.local.explain import explain
from ops.local.generator import generate
from ops.local.live import join as join_feed
from ops.local.live import live as follow_changes
from ops.local.preflight import preflight
from ops.local.processes import child_environment, python_module
from ops.local.seam.command import seam
from ops.local.report import report
from ops.local.services.cli import app as services_app
from ops.local.services.layout import Home
from ops.local.subject import app as subject_app
from ops.local.transform_rows import transform_rows
from ops.local.verify.command import verify
from ops.local.view import RunView, print_ledger, view_for
from schemas.connections import Connections
from schemas.errors import BadInputError, ReplayError
from schemas.topics import LIVE_FEED
from schemas.vocabulary import JobStatus
from sink.database import connect

app = typer.Typer(
    name="crm-replay",
    help="Replay a CRM's audit history, account by account, into a customer data platform's activity logs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
migrate_app = typer.Typer(help="Collections and indexes in MongoDB, versioned, up and down.", no_args_is_help=True)
app.add_typer(services_app, name="services")
app.add_typer(migrate_app, name="migrate")
app.add_typer(dlq_app, name="dlq")
app.add_typer(subject_app, name="subject")
app.add_typer(cdc_app, name="cdc")

AUDIT_IDS_MAX = 100_000  # named by hand or by `verify`; they travel in one document

Account = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
AnyAccount = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
Live = Annotated[bool, typer.Option("--live", help="Of a live feed, not of an account's job.")]
Feed = Annotated[str, typer.Option(help="With --live: the feed's name.")]
Mapping = Annotated[str, typer.Option(help="Source mapping file; left out: the sample CRM's.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Partitions = Annotated[int, typer.Option(min=1, max=1024, help="Partitions of the account's topics.")]
Workers = Annotated[int, typer.Option(min=1, max=64)]
Detach = Annotated[bool, typer.Option("--detach", help="Leave it to a runner (crm-replay runner), and return.")]
DateRangeStart = Annotated[
    datetime | None, typer.Option(help="Leave out rows created before this (UTC).", show_default=False)
]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what the operator has to act on is one line on standard error, and the exit code says whose it is.

    0 done, 1 the work went wrong (halted, out of balance), 2 the call or its surroundings are wrong, 130 interrupted.
    """
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except ReplayError as error:
        Console(stderr=True, soft_wrap=True).print(f"crm-replay: {error}", style="red", highlight=False, markup=False)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        Console(stderr=True).print("crm-replay: interrupted", style="red")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@app.command()
def run(
    account: Account,
    mapping: Mapping = "",
    partitions: Partitions = 4,
    processors: Workers = 1,
    sinks: Workers = 1,
    date_range_start: DateRangeStart = None,
    enrich_after: Annotated[
        bool, typer.Option("--enrich", help="Then enrich its association logs; with --json, a second line.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replay one account: every role of its job on this host, until the ledger is closed. Also goes on after a kill.

    Done on an operator's word: the account's migration flag and its contacts' coverage are not asked for, as they are
    by `crm-replay trigger` and over HTTP.
    """
    from ops.local.runner import RunOptions

    options = RunOptions(mapping, partitions, processors, sinks, _utc(date_range_start), home=Home.at(None).path)
    _run(account, options, as_json=as_json)
    if enrich_after:
        enrich(account, mapping=mapping, as_json=as_json)


@app.command()
def resume(
    account: Account,
    mapping: Mapping = "",
    processors: Workers = 1,
    sinks: Workers = 1,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a job that was halted or has failed, when the cause is gone: here, or with --detach by a runner."""
    if detach:
        ask.resume_detached(account, as_json=as_json)
        return
    from ops.local.runner import RunOptions

    options = RunOptions(mapping, processors=processors, sinks=sinks, resume_halted=True, home=Home.at(None).path)
    _run(account, options, as_json=as_json)


@app.command()
def rerun(
    account: Account,
    since: Annotated[
        datetime | None, typer.Option("--from", help="Only rows created at or after this (UTC).", show_default=False)
    ] = None,
    audit_ids: Annotated[
        str, typer.Option(help="Only these: 17,18,20-25, or @FILE with one or more a line.", show_default=False)
    ] = "",
    mapping: Mapping = "",
    processors: Workers = 1,
    sinks: Workers = 1,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Replay again: what was published, by offset reset; or a part of the source. Inserts what is missing."""
    if detach:
        if since is not None or audit_ids:
            raise BadInputError("a part of the source is replayed here and now", "leave out --detach")
        ask.rerun_detached(account, as_json=as_json)
        return
    from ops.local import runner

    options = runner.RunOptions(mapping, processors=processors, sinks=sinks, home=Home.at(None).path)
    if since is not None and audit_ids:
        raise BadInputError("--from and --audit-ids exclude each other", "give one of them")
    if audit_ids:
        chosen = parse_audit_ids(audit_ids)
        _finish(lambda c, view: runner.run_selected(account, chosen, options, c, view), account, as_json=as_json)
    elif since is not None:
        start = _utc(since)
        assert start is not None
        _finish(lambda c, view: runner.run_since(account, start, options, c, view), account, as_json=as_json)
    else:
        _finish(lambda c, view: runner.rerun_account(account, options, c, view), account, as_json=as_json)


def parse_audit_ids(text: str) -> list[int]:
    """Return the ids in `17,18,20-25`, or in the file that `@FILE` names. Raises BadInputError naming what is wrong."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{text[1:]} cannot be read ({error})", "name a file with audit ids") from error
    ids: list[int] = []
    for word in text.replace(",", " ").split():
        first, dash, last = word.partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise BadInputError(f"{word} is no audit id", "give numbers like 17,18,20-25")
        low, high = int(first), int(last or first)
        if high < low or high - low >= AUDIT_IDS_MAX or len(ids) >= AUDIT_IDS_MAX:
            raise BadInputError(
                f"{word} is too much, or backwards", f"at most {AUDIT_IDS_MAX:,} ids; use --from for more"
            )
        ids.extend(range(low, high + 1))
    return ids


def _run(account: str, options: Any, *, as_json: bool) -> None:
    from ops.local.runner import run_account  # the clients of all three packages: not for `crm-replay --help`

    _finish(lambda connections, view: run_account(account, options, connections, view), account, as_json=as_json)


def _finish(replay: Callable[[Connections, RunView], Any], account: str, *, as_json: bool) -> None:
    """Run a replay, show its ledger, and raise ReplayError if that is out of balance."""
    view = view_for(Console(stderr=True))
    try:
        result = replay(services.connections(), view)
    finally:
        view.close()
    if as_json:
        typer.echo(json.dumps({**_job_summary(result.job), "seconds": round(result.seconds, 3)}))
    else:
        print_ledger(Console(), account, result.ledger, seconds=result.seconds)
    if not (result.ledger.balanced and result.ledger.documents_agree):
        raise ReplayError(f"the ledger of {account} is out of balance", result.job.error or "")


@app.command()
def status(account: Account, as_json: AsJson = False) -> None:
    """Show the account's job: status, progress, and where its rows have ended so far."""
    with _database() as database:
        job = JobStore(database).latest(account)
    summary = {"company_sso_id": account, "status": "not_started"} if job is None else _job_summary(job)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    table = Table(show_header=False)
    for name, value in summary.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    Console().print(table)


def _job_summary(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "company_sso_id": job.company_sso_id,
        "status": job.status.value,
        "run": job.run,
        "progress_pct": job.progress_pct,
        "records_total": job.records_total,
        "records_migrated": job.records_migrated,
        "records_skipped": job.records_skipped,
        "records_failed": job.records_failed,
        "skips_by_reason": dict(job.skips_by_reason),
        "failures_by_cause": dict(job.failures_by_cause),
        "accuracy_pct": job.accuracy_pct,
        "started_at": job.started_at.isoformat(),
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
        "error": job.error,
    }


@app.command()
def produce(account: Account) -> None:
    """Run the snapshot of the account's job in progress; it goes on from its saved cursor."""
    _join(account, "producer")


@app.command()
def process(account: AnyAccount = "", live: Live = False, feed: Feed = LIVE_FEED) -> None:
    """Run one more processor for the account's job in progress, or for a live feed; it joins the consumer group."""
    _join(account, "processors", feed if live else "")


@app.command()
def sink(account: AnyAccount = "", live: Live = False, feed: Feed = LIVE_FEED) -> None:
    """Run one more sink for the account's job in progress, or for a live feed; it joins the consumer group."""
    _join(account, "sink", feed if live else "")


def _join(account: str, module: str, feed: str = "") -> None:
    """Become a worker of the account's job in progress, or of a live feed."""
    if bool(account) == bool(feed):
        raise BadInputError("--account or --live", "give one of them")
    if feed:
        join_feed(module, feed)
    connections = services.connections()
    with _database(connections) as database:
        job = JobStore(database).latest(account)
    if job is None or job.status is not JobStatus.IN_PROGRESS or not job.begin_offsets:
        state = "not started" if job is None else job.status.value
        raise BadInputError(f"no job of {account} is in progress ({state})", f"crm-replay run --account {account}")
    addresses = connections.environment()
    # It ends with the run: the next one sets its groups' offsets, and must find nobody in them.
    environment = child_environment(
        **addresses, CRM_REPLAY_JOB=job.replay_job().model_dump_json(), CRM_REPLAY_EXIT_AT_END="true"
    )
    command = python_module(module)
    os.execve(command[0], command, environment)  # noqa: S606 - our own module takes this process's place


class _database:  # noqa: N801 - reads as the function it is
    """Opens the customer data platform's database and closes it again."""

    def __init__(self, connections: Connections | None = None, *, any_schema: bool = False) -> None:
        self._connections = connections or services.connections()
        self._any_schema = any_schema

    def __enter__(self) -> Any:
        self._database = connect(self._connections)
        if not self._any_schema:
            try:
                migrations.require_current(self._database)
            except BaseException:
                self._database.client.close()
                raise
        return self._database

    def __exit__(self, *_exc: object) -> None:
        self._database.client.close()


@app.command()
def control(
    host: Annotated[
        str, typer.Option(help="Address to listen on [CRM_CONTROL_HOST, 127.0.0.1].", show_default=False)
    ] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one [CRM_CONTROL_PORT, 8090].", show_default=False)
    ] = None,
) -> None:
    """Serve jobs, status and roll back over HTTP, and the operator's console; needs CRM_CONTROL_BASIC_CREDENTIALS."""
    from ops.control.server import serve

    serve(services.connections(), host, port)


Version = Annotated[int | None, typer.Option(help="Schema version to go to.", show_default=False)]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for another process that is migrating.")]


@migrate_app.command("up")
def migrate_up(to: Version = None, wait: Wait = 0.0) -> None:
    """Make the collections and indexes that are missing."""
    with _database(any_schema=True) as database:
        applied = migrations.up(database, to, wait_s=wait)
    typer.echo(f"applied: {', '.join(map(str, applied))}" if applied else "nothing to do")


@migrate_app.command("down")
def migrate_down(to: Annotated[int, typer.Option(help="Schema version to go back to.")] = 0, wait: Wait = 0.0) -> None:
    """Undo migrations, the newest first; documents that were there before stay as they are."""
    with _database(any_schema=True) as database:
        undone = migrations.down(database, to, wait_s=wait)
    typer.echo(f"undone: {', '.join(map(str, undone))}" if undone else "nothing to do")


@migrate_app.command("status")
def migrate_status(as_json: AsJson = False) -> None:
    """Show which migrations have been applied, and when."""
    with _database(any_schema=True) as database:
        steps = migrations.status(database)
    if as_json:
        rows = [
            {"version": s.version, "name": s.name, "applied_at": s.applied_at and s.applied_at.isoformat()}
            for s in steps
        ]
        typer.echo(json.dumps(rows))
        return
    for step in steps:
        typer.echo(f"{step.version:>3}  {step.applied_at or 'not applied':<32}  {step.name}")


app.command()(generate)
app.command("transform")(transform_rows)
app.command()(preflight)
app.command()(dry_run)
app.command()(check)
app.command()(report)
app.command()(ask.trigger)
app.command()(ask.flag)
app.command()(ask.halt)
app.command()(ask.rollback)
app.command("runner")(run_daemon)
app.command()(verify)
app.command()(enrich)
app.command()(explain)
app.command("live")(follow_changes)
app.command()(seam)


@app.command()
def demo(
    audits: Annotated[int, typer.Option(min=1, help="Audits of the generated CRM, over all its accounts.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same CRM.")] = 1,
) -> None:
    """Load two CRMs into real servers, replay, show what came of it, and leave nothing running."""
    from ops.local.demo import demo as show

    show(Console(), audits=audits, seed=seed)


@app.command()
def bench(
    rows: Annotated[int, typer.Option(min=1, help="Rows to replay.")] = 200_000,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; can be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each stage is measured.")] = 1,
    shape: Annotated[
        str, typer.Option(help="Rows of the generator: crm (realistic mix) or peer (small, flat).")
    ] = "crm",
    contacts: Annotated[int, typer.Option(min=1, help="Entries of the stage table_load.")] = 200_000,
    partitions: Partitions = 4,
    processors: Workers = 1,
    sinks: Workers = 1,
    versus: Annotated[
        Path | None,
        typer.Option(envvar="CRM_REPLAY_BENCH_VERSUS", help="Directory of another pipeline, to be measured as well."),
    ] = None,
) -> None:
    """Measure each stage alone and the whole; a JSON line each on standard output, a table on standard error."""
    from ops.local.bench import bench as measure
    from ops.local.runner import RunOptions

    options = RunOptions(partitions=partitions, processors=processors, sinks=sinks, home=Home.at(None).path)
    measure(
        Console(stderr=True),
        rows=rows,
        contacts=contacts,
        stages=stage or (),
        versus=versus,
        repeats=repeats,
        shape=shape,
        options=options,
    )
