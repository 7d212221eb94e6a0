"""`crm-replay migrate`."""

import json
from typing import Annotated

import typer

from ops.cli.opened import Opened
from ops.cli.options import AsJson
from ops.jobs import migrations

app = typer.Typer(help="Collections and indexes in MongoDB, versioned, up and down.", no_args_is_help=True)
Version = Annotated[int | None, typer.Option(help="Schema version to go to.", show_default=False)]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for another process that is migrating.")]


@app.command("up")
def migrate_up(to: Version = None, wait: Wait = 0.0) -> None:
    """Make the collections and indexes that are missing."""
    with Opened(any_schema=True) as database:
        applied = migrations.up(database, to, wait_s=wait)
    typer.echo(f"applied: {', '.join(map(str, applied))}" if applied else "nothing to do")


@app.command("down")
def migrate_down(to: Annotated[int, typer.Option(help="Schema version to go back to.")] = 0, wait: Wait = 0.0) -> None:
    """Undo migrations, the newest first; documents that were there before stay as they are."""
    with Opened(any_schema=True) as database:
        undone = migrations.down(database, to, wait_s=wait)
    typer.echo(f"undone: {', '.join(map(str, undone))}" if undone else "nothing to do")


@app.command("status")
def migrate_status(as_json: AsJson = False) -> None:
    """Show which migrations have been applied, and when."""
    with Opened(any_schema=True) as database:
        steps = migrations.status(database)
    if as_json:
        rows = [
            {"version": s.version, "name": s.name, "applied_at": s.applied_at and s.applied_at.isoformat()}
            for s in steps
        ]
        typer.echo(json.dumps(rows))
        return
    for step in steps:
        applied = f"{step.applied_at:%Y-%m-%d %H:%M:%S} UTC" if step.applied_at else "not applied"
        typer.echo(f"{step.version:>3}  {applied:<23}  {step.name}")
