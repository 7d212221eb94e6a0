"""`crm-replay services`: up, status, env, down."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ops.local.services.layout import Extra, Service, ServiceSettings
from ops.local.services.stack import Endpoints, ServiceStatus, from_environment, status
from ops.local.services.stack import down as stop_servers
from ops.local.services.stack import up as start_servers
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.waiting import stop_on_signals
from schemas.vocabulary import ExitCode

app = typer.Typer(
    help="Real PostgreSQL, Kafka and MongoDB on this machine, without Docker.",
    no_args_is_help=True,
    add_completion=False,
)

Home = Annotated[
    Path | None,
    typer.Option(help="Directory of data and logs [CRM_REPLAY_HOME, default .crm-replay]", show_default=False),
]
Only = Annotated[list[Service] | None, typer.Option(help="Only this one; can be repeated.", show_default=False)]
With = Annotated[
    list[Extra] | None,
    typer.Option(
        "--with",
        help="Also this one: Kafka Connect with Debezium, a schema registry. Can be repeated.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default=False)]


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """End the command with one line and its exit code for what the operator has to act on."""
    try:
        yield
    except ReplayError as error:
        typer.echo(f"crm-replay: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _addresses(home: Path | None) -> dict[str, str]:
    """Return variable -> address of every server that the next command would use; of the environment's as shown."""
    return {found.service.variable: found.url for found in status(home) if found.state in ("running", "environment")}


@app.command()
def up(
    home: Home = None,
    only: Only = None,
    extras: With = None,
    kafka_port: Port = None,
    postgres_port: Port = None,
    mongodb_port: Port = None,
    debezium_port: Port = None,
    registry_port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Start the servers that do not run yet and print the addresses, once each has answered.

    A server whose address is in the environment is not started. The first time, what this machine lacks is fetched.
    Exit code 0: all of them answer; 2: one could not be started, and those this command had started were stopped.
    """
    with _one_line(), stop_on_signals() as cancel:
        settings = ServiceSettings.load(
            kafka_port=kafka_port,
            postgres_port=postgres_port,
            mongodb_port=mongodb_port,
            debezium_port=debezium_port,
            registry_port=registry_port,
        )
        found = start_servers(home, only=only or (), extras=extras or (), settings=settings, say=_say, cancel=cancel)
        _print_addresses(found, home, as_json=as_json)


def _print_addresses(found: Endpoints, home: Path | None, *, as_json: bool) -> None:
    addresses = {**_addresses(home), **found.environment()}
    if as_json:
        typer.echo(json.dumps({name.lower(): url for name, url in addresses.items()}))
    else:
        for name, url in addresses.items():
            typer.echo(f"{name}={url}")


def _as_dict(found: ServiceStatus) -> dict[str, object]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(found).items()}


@app.command(name="status")
def status_command(home: Home = None, as_json: AsJson = False) -> None:
    """Check each server. Exit code 0: all respond (one of the environment is not checked); 1: not all."""
    with _one_line():
        found = status(home)
    if as_json:
        typer.echo(json.dumps([_as_dict(one) for one in found]))
    else:
        for one in found:
            process = f"process {one.pid}" if one.pid else ""
            parts = (f"{one.service.value:<9}{one.state:<15}", one.url, process, one.problem, str(one.log or ""))
            typer.echo("  ".join(part for part in parts if part).rstrip())
    if any(one.state not in ("running", "environment") for one in found):
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def env(home: Home = None) -> None:
    """Print the addresses as shell exports: eval "$(crm-replay services env)". Exit code 1 if none is known."""
    with _one_line():
        given = {service.variable: str(getattr(Connections(), service.setting)) for service in from_environment()}
        addresses = {**_addresses(home), **given}  # what the shell has already, as it is: this is for a program
    for name, url in addresses.items():
        typer.echo(f"export {name}={shlex.quote(url)}")
    if not addresses:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def down(
    home: Home = None,
    delete_data: Annotated[bool, typer.Option(help="Remove databases, topics and logs as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the servers; their data stays. Exit code 0, also if none was running."""
    with _one_line():
        stopped = stop_servers(home, say=_say, delete_data=delete_data)
    names = [service.value for service in stopped]
    if as_json:
        typer.echo(json.dumps({"stopped": names, "data_deleted": delete_data}))
    else:
        typer.echo(f"stopped: {', '.join(names)}" if names else "none was running")
