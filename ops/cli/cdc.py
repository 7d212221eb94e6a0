"""`crm-replay cdc`: register, show and remove the Debezium connector that feeds the live topic."""

import json
import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from ops.cli import host
from ops.cli.options import AsJson
from ops.feed.connector import (
    CONNECT_VARIABLE,
    DEFAULT_NAME,
    Connect,
    ConnectorStatus,
    connector_config,
    database_url,
    parse_settings,
    remove,
    require_logical,
    status,
    wait_running,
)
from schemas.errors import BadInputError
from schemas.source.mapping import load
from schemas.topics import LIVE_TOPIC
from schemas.vocabulary import ExitCode

app = typer.Typer(help="The Debezium connector that feeds the live topic.", no_args_is_help=True)
Name = Annotated[str, typer.Option(help="Of the connector, its replication slot and its publication.")]


def connect_url() -> str:
    """Return where Kafka Connect is: the environment's, else the embedded one's. Raises BadInputError if neither is."""
    found = os.environ.get(CONNECT_VARIABLE) or host.embedded_addresses().get(CONNECT_VARIABLE)
    if not found:
        raise BadInputError(
            "no Kafka Connect is running",
            "crm-replay services up --with debezium, or set KAFKA_CONNECT_URL to one of yours",
        )
    return found


@app.command("register")
def register_command(
    mapping: Annotated[str, typer.Option(help="Source mapping file; left out: the sample CRM's.")] = "",
    account: Annotated[str, typer.Option(help="The table's account, if it has no account column.")] = "",
    name: Name = DEFAULT_NAME,
    topic: Annotated[str, typer.Option(help="Topic of the change events.")] = LIVE_TOPIC,
    since: Annotated[
        datetime | None, typer.Option(help="The snapshot begins with rows created then (UTC).", show_default=False)
    ] = None,
    snapshot: Annotated[bool, typer.Option(help="Read existing rows before following changes.")] = True,
    flatten: Annotated[bool, typer.Option("--flatten", help="Send the row alone, without the envelope.")] = False,
    password_reference: Annotated[
        str, typer.Option(help="Instead of the password, e.g. ${file:/secrets/cdc:password}; Connect resolves it.")
    ] = "",
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Of the topic, if it does not exist yet.")] = 4,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A further setting, e.g. a converter's. Can be repeated."),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds until it has to run.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Create the connector, or change it, and return once changes arrive. Needs wal_level=logical in PostgreSQL."""
    connections = host.connections()
    dsn = database_url(connections)
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    config = connector_config(
        load(mapping or None),
        dsn,
        name=name,
        topic=topic,
        account=account,
        since=since,
        snapshot=snapshot,
        flatten=flatten,
        password=password_reference,
        partitions=partitions,
        more=parse_settings(settings or ()),
    )
    with Connect(connect_url()) as connect:
        require_logical(dsn)
        connect.put(name, config)
        found = wait_running(connect, dsn, name, wait)
    _print(found, as_json=as_json)


@app.command("status")
def status_command(name: Name = DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Show whether changes arrive, and how much log PostgreSQL keeps. Exit code 0: they do; 1: they do not."""
    dsn = database_url(host.connections())
    with Connect(connect_url()) as connect:
        found = status(connect, dsn, name)
    _print(found, as_json=as_json)
    if not found.running:
        raise typer.Exit(ExitCode.FAILED)


@app.command("remove")
def remove_command(name: Name = DEFAULT_NAME) -> None:
    """Remove the connector, its offsets, its replication slot and its publication; what it has sent stays."""
    dsn = database_url(host.connections())
    with Connect(connect_url()) as connect:
        was_there = remove(connect, dsn, name)
    typer.echo(f"connector {name} is removed" if was_there else f"there was no connector {name}")


def _print(found: ConnectorStatus, *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "name": found.name,
                    "state": found.state,
                    "running": found.running,
                    "problem": found.problem,
                    "wal_kept_bytes": found.wal_kept_bytes,
                }
            )
        )
        return
    kept = "no replication slot" if found.wal_kept_bytes is None else f"{found.wal_kept_bytes:,} bytes of log are kept"
    typer.echo("  ".join(part for part in (found.name, found.state, kept, found.problem) if part))
