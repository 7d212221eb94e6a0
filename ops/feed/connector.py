"""`crm-replay cdc`: the Debezium connector that feeds the live topic from the CRM's PostgreSQL.

The connector reads the write-ahead log through a replication slot of its own, so it needs a role with REPLICATION; the
reader's role of the replay has no such right and keeps none. While the connector is away the slot makes PostgreSQL keep
its log: `status` says how much, and `remove` gives the slot back.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import psycopg
import typer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ops.local import services
from ops.local.services.debezium import CONNECTOR_CLASS
from ops.local.services.layout import Extra
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.registry import http_client
from schemas.secrets import about, shown
from schemas.source.mapping import SourceMapping, load
from schemas.topics import LIVE_TOPIC
from schemas.vocabulary import ExitCode

DEFAULT_NAME = "crm_audits"
DATABASE_VARIABLE = "CRM_CDC_DATABASE_URL"
ACCOUNT_HEADER = "company_sso_id"  # processors.feed.change_events reads it
HEARTBEAT_MS = 10_000  # lets PostgreSQL drop its log while other tables change and audits do not
ANSWER_TIMEOUT_S = 30.0
REBALANCING_S = 60.0  # Connect refuses every change while its workers find together
NOT_REGISTERED = "not registered"
STALE_OFFSETS = "no longer available on the server"  # Debezium's words for a place in a slot that is gone
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")  # a replication slot's, and a part of a topic's
_SETTING = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_SSL_MODES = frozenset(("disable", "allow", "prefer", "require", "verify-ca", "verify-full"))


class ConnectRefusedError(BadInputError):
    """Kafka Connect does not take a request."""


class OffsetsKeptError(BadInputError):
    """Kafka Connect cannot forget where a connector was."""


@dataclass(frozen=True, slots=True)
class ConnectorStatus:
    """What is known of the connector."""

    name: str
    state: str  # RUNNING, FAILED, PAUSED, UNASSIGNED, ... or NOT_REGISTERED
    problem: str = ""
    slot_active: bool = False
    wal_kept_bytes: int | None = None  # by PostgreSQL, for what the connector has not confirmed; None: no slot

    @property
    def running(self) -> bool:
        """Whether changes arrive."""
        return self.state == "RUNNING" and self.slot_active


def connector_config(
    mapping: SourceMapping,
    dsn: str,
    *,
    name: str = DEFAULT_NAME,
    topic: str = LIVE_TOPIC,
    account: str = "",
    since: datetime | None = None,
    snapshot: bool = True,
    flatten: bool = False,
    password: str = "",
    partitions: int = 4,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the connector's configuration. Pure.

    `account` is whose the whole table is, if the mapping has no account column. The snapshot has the rows created at
    or after `since`, or all. `password` stands for the DSN's: a reference that Connect's workers resolve. `more` is
    added as it is, and wins. Raises BadInputError for a mapping or an address that no connector can be made from.
    """
    if not _NAME.fullmatch(name):
        raise BadInputError(f"{name!r} is no name of a connector", "give letters a-z, digits and underscores")
    parts = _dsn_parts(dsn)
    table = mapping.source
    column = table.account
    if column is None and not account:
        raise BadInputError(
            "the source mapping has no account column, so nobody knows whose the rows are", "name the --account"
        )
    if column is not None and account:
        raise BadInputError(
            f"the source mapping has the account column {column.column}", "leave out --account: each row says its own"
        )
    if column is not None and not column.is_company_sso_id and column.inverse is None:
        raise BadInputError(
            f"source.account of the mapping does not say whose the rows of a {column.column} are",
            "add inverse: a query that returns that column and company_sso_id of every account",
        )
    if '"' in account or "\\" in account:
        raise BadInputError(
            f"account {account} cannot be sent in a header of Kafka Connect", "use a mapping with an account column"
        )
    relation = f"{table.schema_name}.{table.table}"
    transforms = {
        "route": {
            "type": "org.apache.kafka.connect.transforms.RegexRouter",
            "regex": re.escape(f"{name}.{relation}").replace("\\-", "-"),
            "replacement": topic,
        }
    }
    if account:
        transforms["account"] = {
            "type": "org.apache.kafka.connect.transforms.InsertHeader",
            "header": ACCOUNT_HEADER,
            "value.literal": f'"{account}"',  # in quotes: else an account 007 would travel as the number 7
        }
    if flatten:
        transforms["flatten"] = {
            "type": "io.debezium.transforms.ExtractNewRecordState",
            "add.fields": "op,source.schema,source.table",  # else an update looks like an insert
            "delete.tombstone.handling.mode": "rewrite-with-tombstone",
            "replace.null.with.default": "false",
        }
    config = {
        "connector.class": CONNECTOR_CLASS,
        "tasks.max": "1",
        "database.hostname": parts.get("host") or "localhost",
        "database.port": parts.get("port") or "5432",
        "database.user": parts.get("user") or "postgres",
        "database.password": password or parts.get("password", ""),
        "database.dbname": parts.get("dbname") or parts.get("user") or "postgres",
        "database.sslmode": parts["sslmode"] if parts.get("sslmode") in _SSL_MODES else "prefer",
        "plugin.name": "pgoutput",
        "slot.name": name,
        "publication.name": name,
        "publication.autocreate.mode": "filtered",
        "publish.via.partition.root": "true",  # a partitioned table's rows are its own, not its partitions'
        "topic.prefix": name,
        "schema.include.list": table.schema_name,
        "table.include.list": re.escape(relation).replace("\\-", "-"),
        "snapshot.mode": "initial" if snapshot else "no_data",
        "time.precision.mode": "adaptive",
        "decimal.handling.mode": "string",
        "skipped.operations": "none",  # truncations too: they are refused, and counted
        "heartbeat.interval.ms": str(HEARTBEAT_MS),
        "errors.max.retries": "-1",  # PostgreSQL or Kafka away: it waits for them
        "topic.creation.default.partitions": str(partitions),
        "topic.creation.default.replication.factor": "-1",
        "transforms": ",".join(transforms),
    }
    if parts.get("sslrootcert"):
        config["database.sslrootcert"] = parts["sslrootcert"]
    if since is not None:
        moment = since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        override = "snapshot.select.statement.overrides"
        config |= {
            override: relation,
            # Debezium takes text alone; the names are identifiers, which the mapping has checked.
            f"{override}.{relation}": (
                f'SELECT * FROM "{table.schema_name}"."{table.table}" '  # noqa: S608
                f"WHERE created_at >= '{moment}'"
            ),
        }
    for alias, settings in transforms.items():
        config |= {f"transforms.{alias}.{key}": value for key, value in settings.items()}
    return config | dict(more or {})


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """Return the settings in `NAME=VALUE` words. Raises BadInputError for a word that is none."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not _SETTING.fullmatch(name):
            raise BadInputError(f"{word[:40]!r} is no setting of a connector", "give --set NAME=VALUE")
        found[name] = value
    return found


def _dsn_parts(dsn: str) -> dict[str, str]:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    except psycopg.Error as error:
        raise BadInputError(
            f"{DATABASE_VARIABLE} is not a PostgreSQL address ({about(error, dsn)})",
            "postgresql://user@host/db",
        ) from None


class Connect:
    """Kafka Connect's REST interface, as far as one connector needs it."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet."""
        self._url = shown(url)
        self._client = http_client(Extra.DEBEZIUM.variable, url, ANSWER_TIMEOUT_S)

    def __enter__(self) -> "Connect":
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the connection."""
        self._client.close()

    def put(self, name: str, config: Mapping[str, str]) -> None:
        """Create the connector or change its configuration. Raises ConnectRefusedError with Connect's first reason."""
        self._ask("PUT", f"/connectors/{name}/config", json=dict(config))

    def delete(self, name: str, timeout_s: float = 30.0) -> bool:
        """Remove the connector and where it was in the log; whether there was one.

        Connect keeps the offsets of a connector that is only deleted, and gives them to the next of that name: a place
        in a replication slot that is gone. Raises BadInputError, with the connector deleted, if Connect cannot forget
        them (before 3.6).
        """
        if self.state(name)[0] == NOT_REGISTERED:
            return False
        forgets = self._ask("PUT", f"/connectors/{name}/stop") is not None
        deadline = time.monotonic() + timeout_s
        while forgets and not self._is_stopped(name):
            if time.monotonic() > deadline:
                raise BadInputError(f"connector {name} does not stop", "see the log of Kafka Connect, then try again")
            time.sleep(0.1)
        forgets = forgets and self._ask("DELETE", f"/connectors/{name}/offsets") is not None
        self._ask("DELETE", f"/connectors/{name}")
        if not forgets:
            raise OffsetsKeptError(
                f"this Kafka Connect (before 3.6) keeps the offsets of connector {name}, which is removed",
                "register it under another --name, or delete its offsets from Connect's offset topic",
            )
        return True

    def _is_stopped(self, name: str) -> bool:
        found = self._ask("GET", f"/connectors/{name}/status")
        return found is not None and found["connector"]["state"] == "STOPPED" and not found["tasks"]

    def restart(self, name: str) -> None:
        """Start it again, with its tasks."""
        self._ask("POST", f"/connectors/{name}/restart?includeTasks=true&onlyFailed=true")

    def state(self, name: str) -> tuple[str, str]:
        """Return the worst state of the connector and its task, and the first line of what went wrong."""
        found = self._ask("GET", f"/connectors/{name}/status")
        if found is None:
            return NOT_REGISTERED, ""
        parts = [found["connector"], *found["tasks"]]
        if not found["tasks"]:
            return "STARTING", ""
        worst = next((part for part in parts if part["state"] != "RUNNING"), parts[0])
        return str(worst["state"]), _cause(str(worst.get("trace") or ""))

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        """Return what Connect answers, None if there is no such connector or request; waits while it rebalances."""
        deadline = time.monotonic() + REBALANCING_S
        while True:
            try:
                answer = self._client.request(method, path, **request)
            except httpx.HTTPError as error:
                raise ServiceUnreachableError(
                    f"Kafka Connect at {self._url} does not answer ({type(error).__name__})",
                    "start it: crm-replay services up --with debezium, or set KAFKA_CONNECT_URL to one of yours",
                ) from error
            if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
                return None
            if answer.status_code == httpx.codes.CONFLICT and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            if answer.is_success:
                return answer.json() if answer.content else {}
            raise ConnectRefusedError(f"Kafka Connect refuses the connector: {_said(answer)}", "mend that")


def _said(answer: httpx.Response) -> str:
    """Return the first line that says something of an answer."""
    try:
        text = str(answer.json().get("message", ""))
    except ValueError:
        text = answer.text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if "invalid and contains the following" not in line]
    return (useful or lines or [str(answer.status_code)])[0][:300]


def _cause(trace: str) -> str:
    """Return the innermost reason in a Java stack trace, on one line."""
    reasons = [line.removeprefix("Caused by: ").strip() for line in trace.splitlines() if not line.startswith("\t")]
    found = reasons[-1] if reasons else ""
    return STALE_OFFSETS if STALE_OFFSETS in found else found[:300]


def connect_url() -> str:
    """Return where Kafka Connect is: the environment's, else the embedded one's. Raises BadInputError if neither is."""
    given = os.environ.get(Extra.DEBEZIUM.variable)
    if given:
        return given
    found = services.endpoints()
    if found is not None and found.kafka_connect_url:
        return found.kafka_connect_url
    raise BadInputError(
        "no Kafka Connect is running",
        "crm-replay services up --with debezium, or set KAFKA_CONNECT_URL to one of yours",
    )


def database_url(connections: Connections) -> str:
    """Return the DSN for the connector: one with REPLICATION if given, else the reader's."""
    given = os.environ.get(DATABASE_VARIABLE) or connections.crm_audit_database_url
    if not given:
        raise BadInputError(f"{DATABASE_VARIABLE} is not set", "give the CRM's database and a role with REPLICATION")
    return given


def status(connect: Connect, dsn: str, name: str) -> ConnectorStatus:
    """Return the connector's state and its slot's."""
    state, problem = connect.state(name)
    with _database(dsn) as db:
        row = db.execute(
            "SELECT active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint "
            "FROM pg_replication_slots WHERE slot_name = %s",
            (name,),
        ).fetchone()
    return ConnectorStatus(name, state, problem, bool(row and row[0]), int(row[1] or 0) if row else None)


def wait_running(connect: Connect, dsn: str, name: str, timeout_s: float) -> ConnectorStatus:
    """Return once changes arrive. Raises ReplayError with the cause if it fails, or is not there in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = status(connect, dsn, name)
        if found.running:
            return found
        if found.state == "FAILED" and STALE_OFFSETS in found.problem:
            raise ReplayError(
                f"Kafka Connect gave connector {name} the offsets of an earlier one, whose replication slot is gone",
                "crm-replay cdc remove, then register it again",
            )
        if found.state == "FAILED":
            raise ReplayError(f"connector {name} has failed: {found.problem}", "mend that and register it again")
        if time.monotonic() > deadline:
            raise ReplayError(
                f"connector {name} does not run after {timeout_s:.0f} s ({found.state}, replication slot "
                f"{'in use' if found.slot_active else 'not in use'})",
                "see the log of Kafka Connect: crm-replay services status",
            )
        time.sleep(0.1)


def remove(connect: Connect, dsn: str, name: str, timeout_s: float = 30.0) -> bool:
    """Remove the connector, its offsets, its replication slot and its publication; whether any of them was there.

    Raises OffsetsKeptError once the rest is done, if Connect cannot forget the offsets.
    """
    kept: OffsetsKeptError | None = None
    try:
        was_there = connect.delete(name)
    except OffsetsKeptError as error:
        was_there, kept = True, error
    deadline = time.monotonic() + timeout_s
    with _database(dsn) as db:
        while True:
            row = db.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchone()
            if row is None:
                break
            try:
                db.execute("SELECT pg_drop_replication_slot(%s)", (name,))
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > deadline:
                    raise BadInputError(
                        f"replication slot {name} is still in use", "is another Kafka Connect running this connector?"
                    ) from None
                time.sleep(0.1)
            else:
                was_there = True
        db.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
    if kept is not None:
        raise kept
    return was_there


def _database(dsn: str) -> "psycopg.Connection[tuple[Any, ...]]":
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="crm-replay-cdc")
    except psycopg.Error as error:
        raise ServiceUnreachableError(
            f"PostgreSQL does not let us in ({str(error).splitlines()[0]})", f"check {DATABASE_VARIABLE}"
        ) from error


app = typer.Typer(help="The Debezium connector that feeds the live topic.", no_args_is_help=True)
Name = Annotated[str, typer.Option(help="Of the connector, its replication slot and its publication.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@app.command("register")
def register_command(
    mapping: Annotated[str, typer.Option(help="Source mapping file; left out: the sample CRM's.")] = "",
    account: Annotated[str, typer.Option(help="Whose the table is, if it has no account column.")] = "",
    name: Name = DEFAULT_NAME,
    topic: Annotated[str, typer.Option(help="Where the change events go.")] = LIVE_TOPIC,
    since: Annotated[
        datetime | None, typer.Option(help="The snapshot begins with rows created then (UTC).", show_default=False)
    ] = None,
    snapshot: Annotated[bool, typer.Option(help="Read what is there before following what comes.")] = True,
    flatten: Annotated[bool, typer.Option("--flatten", help="Send the row alone, without the envelope.")] = False,
    password_reference: Annotated[
        str, typer.Option(help="Instead of the password, e.g. ${file:/secrets/cdc:password}; Connect resolves it.")
    ] = "",
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Of the topic, if it is not there yet.")] = 4,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A further setting, e.g. a converter's. Can be repeated."),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds until it has to run.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Create the connector, or change it, and return once changes arrive. Needs wal_level=logical in PostgreSQL."""
    connections = services.connections()
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
        _require_logical(dsn)
        connect.put(name, config)
        found = wait_running(connect, dsn, name, wait)
    _print(found, as_json=as_json)


@app.command("status")
def status_command(name: Name = DEFAULT_NAME, as_json: AsJson = False) -> None:
    """Show whether changes arrive, and how much log PostgreSQL keeps. Exit code 0: they do; 1: they do not."""
    dsn = database_url(services.connections())
    with Connect(connect_url()) as connect:
        found = status(connect, dsn, name)
    _print(found, as_json=as_json)
    if not found.running:
        raise typer.Exit(ExitCode.FAILED)


@app.command("remove")
def remove_command(name: Name = DEFAULT_NAME) -> None:
    """Remove the connector, its offsets, its replication slot and its publication; what it has sent stays."""
    dsn = database_url(services.connections())
    with Connect(connect_url()) as connect:
        was_there = remove(connect, dsn, name)
    typer.echo(f"connector {name} is removed" if was_there else f"there was no connector {name}")


def _require_logical(dsn: str) -> None:
    with _database(dsn) as db:
        row = db.execute("SHOW wal_level").fetchone()
    if row is None or row[0] != "logical":
        raise BadInputError(
            f"PostgreSQL's wal_level is {row[0] if row else 'unknown'}, change events need logical",
            "ALTER SYSTEM SET wal_level = logical, and restart PostgreSQL",
        )


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
