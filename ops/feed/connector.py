"""The Debezium connector that feeds the live topic from the CRM's PostgreSQL.

The connector reads the write-ahead log through a replication slot of its own, so it needs a role with REPLICATION; the
reader's role of the replay has no such right and does not get it. While the connector is stopped, the slot makes
PostgreSQL keep its log: `status` reports how much, and `remove` drops the slot.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.registry import http_client
from schemas.process.waiting import Deadline, retrying
from schemas.secrets import about, shown
from schemas.source.mapping import SourceMapping
from schemas.topics import LIVE_TOPIC

CONNECT_VARIABLE = "KAFKA_CONNECT_URL"
CONNECTOR_CLASS = "io.debezium.connector.postgresql.PostgresConnector"
DEFAULT_NAME = "crm_audits"
DATABASE_VARIABLE = "CRM_CDC_DATABASE_URL"
ACCOUNT_HEADER = "company_sso_id"  # processors.feed.change_events reads it
HEARTBEAT_MS = 10_000  # lets PostgreSQL drop its log while other tables change and audits do not
ANSWER_TIMEOUT_S = 30.0
REBALANCING_S = 60.0  # Connect refuses every change while its workers rebalance
POLL_S = 0.1
NOT_REGISTERED = "not registered"
STALE_OFFSETS = "no longer available on the server"  # in Debezium's message about a position in a slot that is gone
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")  # also of the replication slot, and part of a topic's name
_SETTING = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_SSL_MODES = frozenset(("disable", "allow", "prefer", "require", "verify-ca", "verify-full"))


class ConnectRefusedError(BadInputError):
    """Kafka Connect refuses a request."""


class OffsetsKeptError(BadInputError):
    """Kafka Connect cannot delete the offsets of a connector."""


@dataclass(frozen=True, slots=True)
class ConnectorStatus:
    """The state of the connector and of its replication slot."""

    name: str
    state: str  # RUNNING, FAILED, PAUSED, UNASSIGNED, ... or NOT_REGISTERED
    problem: str = ""
    slot_active: bool = False
    wal_kept_bytes: int | None = None  # by PostgreSQL, until the connector confirms them; None: no slot

    @property
    def running(self) -> bool:
        """Whether change events arrive."""
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

    `account` owns the whole table, if the mapping has no account column. The snapshot has the rows created at or after
    `since`, or all. `password` replaces the DSN's: a reference that Connect's workers resolve. `more` is added
    unchanged, and overrides. Raises BadInputError for an unsuitable mapping or address.
    """
    if not _NAME.fullmatch(name):
        raise BadInputError(f"{name!r} is not a valid name of a connector", "use letters a-z, digits and underscores")
    parts = _dsn_parts(dsn)
    table = mapping.source
    column = table.account
    if column is None and not account:
        raise BadInputError(
            "the source mapping has no account column, so the account of the rows is unknown", "give --account"
        )
    if column is not None and account:
        raise BadInputError(
            f"the source mapping has the account column {column.column}", "leave out --account: each row has its own"
        )
    if column is not None and not column.is_company_sso_id and column.inverse is None:
        raise BadInputError(
            f"source.account of the mapping does not resolve {column.column} to an account",
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
            "value.literal": f'"{account}"',  # in quotes: otherwise account 007 would become the number 7
        }
    if flatten:
        transforms["flatten"] = {
            "type": "io.debezium.transforms.ExtractNewRecordState",
            "add.fields": "op,source.schema,source.table",  # otherwise an update looks like an insert
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
        "publish.via.partition.root": "true",  # a partitioned table's rows have its name, not a partition's
        "topic.prefix": name,
        "schema.include.list": table.schema_name,
        "table.include.list": re.escape(relation).replace("\\-", "-"),
        "snapshot.mode": "initial" if snapshot else "no_data",
        "time.precision.mode": "adaptive",
        "decimal.handling.mode": "string",
        "skipped.operations": "none",  # truncations too: they are refused, and counted
        "heartbeat.interval.ms": str(HEARTBEAT_MS),
        "errors.max.retries": "-1",  # waits indefinitely during an outage of PostgreSQL or Kafka
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
            # Debezium accepts only text here; the names are identifiers that the mapping has validated.
            f"{override}.{relation}": (
                f'SELECT * FROM "{table.schema_name}"."{table.table}" '  # noqa: S608
                f"WHERE created_at >= '{moment}'"
            ),
        }
    for alias, settings in transforms.items():
        config |= {f"transforms.{alias}.{key}": value for key, value in settings.items()}
    return config | dict(more or {})


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """Return the settings in `NAME=VALUE` words. Raises BadInputError for any other word."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not _SETTING.fullmatch(name):
            raise BadInputError(f"{word[:40]!r} is not a setting of a connector", "give --set NAME=VALUE")
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
        """Sends no request yet."""
        self._url = shown(url)
        self._client = http_client(CONNECT_VARIABLE, url, ANSWER_TIMEOUT_S)

    def __enter__(self) -> "Connect":
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the connection."""
        self._client.close()

    def put(self, name: str, config: Mapping[str, str]) -> None:
        """Create the connector or change its configuration. Raises ConnectRefusedError with Connect's first reason."""
        self._request("PUT", f"/connectors/{name}/config", json=dict(config))

    def delete(self, name: str, timeout_s: float = 30.0) -> bool:
        """Remove the connector and its offsets; return whether there was one.

        Connect keeps the offsets of a connector that is only deleted, and gives them to the next one of that name: a
        position in a replication slot that is gone. Raises OffsetsKeptError, with the connector deleted, if Connect
        cannot delete them (before 3.6).
        """
        if self.state(name)[0] == NOT_REGISTERED:
            return False
        can_reset = self._request("PUT", f"/connectors/{name}/stop") is not None
        deadline = Deadline(timeout_s)
        while can_reset and not self._is_stopped(name):
            if not deadline.wait(POLL_S):
                raise BadInputError(f"connector {name} does not stop", "see the log of Kafka Connect, then try again")
        was_reset = can_reset and self._request("DELETE", f"/connectors/{name}/offsets") is not None
        self._request("DELETE", f"/connectors/{name}")
        if not was_reset:
            raise OffsetsKeptError(
                f"this Kafka Connect (before 3.6) keeps the offsets of connector {name}, which is removed",
                "register it under another --name, or delete its offsets from Connect's offset topic",
            )
        return True

    def _is_stopped(self, name: str) -> bool:
        found = self._request("GET", f"/connectors/{name}/status")
        return found is not None and found["connector"]["state"] == "STOPPED" and not found["tasks"]

    def state(self, name: str) -> tuple[str, str]:
        """Return the worst state of the connector and its task, and the cause of a failure in one line."""
        found = self._request("GET", f"/connectors/{name}/status")
        if found is None:
            return NOT_REGISTERED, ""
        parts = [found["connector"], *found["tasks"]]
        if not found["tasks"]:
            return "STARTING", ""
        worst = next((part for part in parts if part["state"] != "RUNNING"), parts[0])
        return str(worst["state"]), _cause(str(worst.get("trace") or ""))

    def _request(self, method: str, path: str, **request: Any) -> Any:
        """Return Connect's response, None if it has no such connector or endpoint; waits while it rebalances."""
        deadline = Deadline(REBALANCING_S)
        while True:
            try:
                answer = self._client.request(method, path, **request)
            except httpx.HTTPError as error:
                raise ServiceUnreachableError(
                    f"Kafka Connect at {self._url} does not answer ({type(error).__name__})",
                    "start it: crm-replay services up --with debezium, or set KAFKA_CONNECT_URL to your own",
                ) from error
            if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
                return None
            if answer.status_code == httpx.codes.CONFLICT and deadline.wait(POLL_S):
                continue
            if answer.is_success:
                return answer.json() if answer.content else {}
            raise ConnectRefusedError(f"Kafka Connect refuses the connector: {_reason(answer)}", "fix the cause")


def _reason(answer: httpx.Response) -> str:
    """Return the first informative line of a response."""
    try:
        text = str(answer.json().get("message", ""))
    except ValueError:
        text = answer.text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if "invalid and contains the following" not in line]
    return (useful or lines or [str(answer.status_code)])[0][:300]


def _cause(trace: str) -> str:
    """Return the root cause in a Java stack trace, on one line."""
    reasons = [line.removeprefix("Caused by: ").strip() for line in trace.splitlines() if not line.startswith("\t")]
    found = reasons[-1] if reasons else ""
    return STALE_OFFSETS if STALE_OFFSETS in found else found[:300]


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
    """Return once change events arrive. Raises ReplayError with the cause on a failure or a time-out."""
    deadline = Deadline(timeout_s)
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
            raise ReplayError(f"connector {name} has failed: {found.problem}", "fix the cause and register it again")
        if not deadline.wait(POLL_S):
            raise ReplayError(
                f"connector {name} is not running after {timeout_s:.0f} s ({found.state}, replication slot "
                f"{'in use' if found.slot_active else 'not in use'})",
                "see the log of Kafka Connect: crm-replay services status",
            )


def remove(connect: Connect, dsn: str, name: str, timeout_s: float = 30.0) -> bool:
    """Remove the connector, its offsets, its replication slot and its publication; return whether any existed.

    Raises OffsetsKeptError after the rest is done, if Connect cannot delete the offsets.
    """
    kept: OffsetsKeptError | None = None
    try:
        existed = connect.delete(name)
    except OffsetsKeptError as error:
        existed, kept = True, error
    with _database(dsn) as db:

        def drop() -> bool:
            """Return whether the slot existed."""
            return bool(
                db.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
                ).fetchall()
            )

        try:
            existed |= retrying(drop, psycopg.errors.ObjectInUse, Deadline(timeout_s), POLL_S)
        except psycopg.errors.ObjectInUse:
            raise BadInputError(
                f"replication slot {name} is still in use", "is another Kafka Connect running this connector?"
            ) from None
        db.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
    if kept is not None:
        raise kept
    return existed


def require_logical(dsn: str) -> None:
    """Raise BadInputError unless PostgreSQL's wal_level is logical, which change events need."""
    with _database(dsn) as db:
        row = db.execute("SHOW wal_level").fetchone()
    if row is None or row[0] != "logical":
        raise BadInputError(
            f"PostgreSQL's wal_level is {row[0] if row else 'unknown'}, but change events need logical",
            "ALTER SYSTEM SET wal_level = logical, and restart PostgreSQL",
        )


def _database(dsn: str) -> "psycopg.Connection[tuple[Any, ...]]":
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="crm-replay-cdc")
    except psycopg.Error as error:
        raise ServiceUnreachableError(
            f"cannot connect to PostgreSQL ({str(error).splitlines()[0]})", f"check {DATABASE_VARIABLE}"
        ) from error
