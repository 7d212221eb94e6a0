"""The command line's requests: trigger, flag, halt, roll back, and what `--detach` leaves to a runner.

All of them go through `ops.jobs.requests`, as HTTP and the console do, and so into the audit log.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pymongo.errors import PyMongoError
from rich.console import Console

from ops.cli import host
from ops.jobs import audit_log, flags, migrations, requests
from ops.jobs.jobs import Job
from ops.jobs.requests import Control
from ops.progress import view_for
from schemas.errors import BadInputError, ReplayError
from schemas.process.mongodb import connect
from schemas.topics import encode_account
from sink.rollback import documents_of

Account = Annotated[str, typer.Option(help="The account's company_sso_id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]


class Switch(StrEnum):
    """What to do with a flag."""

    ON = "on"
    OFF = "off"
    SHOW = "show"


@contextmanager
def control(mapping: str = "", partitions: int = 4) -> Iterator[Control]:
    """Give the control plane of the configured servers; an outage of MongoDB becomes one line."""
    connections = host.connections()
    database = connect(connections)
    try:
        migrations.require_current(database)
        path = str(Path(mapping).resolve()) if mapping else ""
        yield Control(database, connections, path, partitions)
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "try again when it is back") from error
    finally:
        database.client.close()


def trigger(
    account: Account,
    mapping: Annotated[
        str, typer.Option(help="Source mapping file; left out: the sample CRM's.", show_default=False)
    ] = "",
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Partitions of the account's topics.")] = 4,
    date_range_start: Annotated[
        datetime | None, typer.Option(help="Leave out rows created before this (UTC).", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Request an account's migration, as over HTTP: its flag must be on, its contacts migrated. A runner executes it.

    `crm-replay run` executes it at once on this host, without a flag and without a runner.
    """
    start = date_range_start
    if start is not None and start.tzinfo is None:
        start = start.replace(tzinfo=UTC)
    with control(mapping, partitions) as plane:
        job = requests.trigger(plane, account, date_range_start=start, triggered_by=audit_log.on_this_host())
    print_job(job, "waits for a runner", as_json=as_json)


def flag(
    account: Account,
    state: Annotated[Switch, typer.Argument(help="Turn it on or off, or show it.")] = Switch.SHOW,
    as_json: AsJson = False,
) -> None:
    """Show or change whether the account may be migrated by request; off by default."""
    encode_account(account)
    with control() as plane:
        if state is Switch.SHOW:
            found = flags.read(plane.database, account)
        else:
            found = requests.set_flag(plane, account, state is Switch.ON, by=audit_log.on_this_host())
    if as_json:
        answer = {
            "company_sso_id": account,
            "enabled": found.enabled,
            "changed_at": found.changed_at.isoformat() if found.changed_at else None,
            "changed_by": found.changed_by,
        }
        typer.echo(json.dumps(answer))
        return
    since = f", by {found.changed_by} at {found.changed_at:%Y-%m-%d %H:%M:%S} UTC" if found.changed_at else ""
    typer.echo(f"the migration flag of {account} is {'on' if found.enabled else 'off'}{since}")


def halt(account: Account, reason: Annotated[str, typer.Option(help="Kept in the job document.")] = "") -> None:
    """Stop the account's running job; cursor and offsets are kept for `resume`."""
    with control() as plane:
        job = requests.halt(plane, account, reason=reason or "halted by the operator", by=audit_log.on_this_host())
    typer.echo(f"job {job.job_id} of {account} is halted")


def resume_detached(account: str, *, failure_bound: float | None, reason: str, as_json: bool) -> None:
    """Have a runner continue the account's job."""
    with control() as plane:
        by = audit_log.on_this_host()
        job = requests.resume(plane, account, by=by, reason=reason, failure_bound=failure_bound)
    print_job(job, "waits for a runner", as_json=as_json)


def rerun_detached(account: str, *, as_json: bool) -> None:
    """Have a runner read again what the account's last run has published."""
    with control() as plane:
        job = requests.rerun(plane, account, by=audit_log.on_this_host())
    print_job(job, "waits for a runner", as_json=as_json)


def rollback(
    account: Account,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    reason: Reason = "",
    by: Annotated[str, typer.Option(hidden=True, help="Who has requested it, if not this user.")] = "",
    as_json: AsJson = False,
) -> None:
    """Delete what the replay wrote for the account; documents of others and of the live feed stay as they are."""
    if not yes and typer.prompt("This deletes the account's replayed activity logs. Type the account") != account:
        raise BadInputError("that is not the account", "nothing was deleted")
    view = view_for(Console(stderr=True))
    try:
        with control() as plane:
            there = documents_of(plane.database, account)
            removed = requests.rollback(
                plane,
                account,
                by=by or audit_log.on_this_host(),
                on_batch=lambda count: view.progress(count, there, {}, 0),
                reason=reason,
            )
    finally:
        view.close()
    typer.echo(json.dumps({"records_removed": removed}) if as_json else f"{removed:,} documents removed")


def print_job(job: Job, what: str, *, as_json: bool) -> None:
    """Print a requested job."""
    if as_json:
        typer.echo(json.dumps({"job_id": job.job_id, "company_sso_id": job.company_sso_id, "status": job.status.value}))
    else:
        typer.echo(f"job {job.job_id} of {job.company_sso_id} {what}; see crm-replay status")
