"""`crm-replay live`: the live feed on this host, and its counts."""

import json
from typing import Annotated

import typer
from confluent_kafka import KafkaException
from rich.console import Console
from rich.table import Table

from ops.cli import host
from ops.cli.options import Mapping
from ops.feed.feed import LiveOptions, feed_of, line_of, run_feed, status_of
from ops.progress import view_for
from ops.runner.worker_metrics import gathering
from schemas.errors import ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from schemas.topics import LIVE_FEED, LIVE_TOPIC


def live(
    feed: Annotated[str, typer.Option(help="The feed's name: one for each CRM database.")] = LIVE_FEED,
    topic: Annotated[str, typer.Option(help="Where the changes of audits arrive.")] = LIVE_TOPIC,
    mapping: Mapping = "",
    account: Annotated[
        str,
        typer.Option(help="The audits table's account, if the mapping names no account column.", show_default=False),
    ] = "",
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Of the topic, if it does not exist yet.")] = 4,
    processors: Annotated[int, typer.Option(min=0, max=64)] = 1,
    sinks: Annotated[int, typer.Option(min=0, max=64)] = 1,
    visibility_delay: Annotated[
        float, typer.Option(min=0, max=120, help="Seconds after its created_at that a contact can surely be read.")
    ] = 10.0,
    refresh: Annotated[
        float, typer.Option(min=0, help="Seconds between publications of users and names; 0: only at the start.")
    ] = 60.0,
    names: Annotated[bool, typer.Option(help="Publish the names of deals, companies, ... for the rules.")] = True,
    status: Annotated[bool, typer.Option("--status", help="Only show the feed's counts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: answer in JSON.")] = False,
) -> None:
    """Run the live feed: the replay's topology over the live topic, until it is stopped (Ctrl-C, SIGTERM)."""
    connections = host.connections()
    if status:
        _show_status(feed, connections, as_json=as_json)
        return
    options = LiveOptions(
        feed=feed,
        topic=topic,
        mapping_path=mapping,
        partitions=partitions,
        processors=processors,
        sinks=sinks,
        table_account=account,
        visibility_delay_s=visibility_delay,
        refresh_s=refresh,
        with_referents=names,
        home=host.home(),
    )
    view = view_for(Console(stderr=True))
    try:
        with gathering("live", options.home):
            run_feed(options, connections, view)
    finally:
        view.close()


def _show_status(name: str, connections: Connections, *, as_json: bool) -> None:
    database = connect(connections, app_name="crm-replay-live")
    try:
        status = status_of(feed_of(database, name), connections, database)
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"Kafka does not answer ({error.args[0].str()})", "check KAFKA_BOOTSTRAP_SERVERS"
        ) from error
    finally:
        database.client.close()
    if as_json:
        typer.echo(json.dumps(status.as_dict()))
        return
    table = Table(title=line_of(status), title_justify="left")
    for heading in ("account", "logs", "skipped", "dead letters", "last"):
        table.add_column(heading)
    for account, totals in status.accounts.items():
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(totals.skipped.items()))
        dead = ", ".join(f"{n:,} {cause}" for cause, n in sorted({**totals.failed, **totals.foreign}.items()))
        last = f"{totals.updated_at:%Y-%m-%d %H:%M:%S}" if totals.updated_at else ""
        table.add_row(account or "(no account)", f"{totals.migrated:,}", skipped, dead, last)
    Console().print(table)
