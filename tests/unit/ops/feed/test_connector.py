"""The connector's configuration, and what is made of Kafka Connect's answers."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from ops.feed import connector as cdc
from ops.feed.connector import STALE_OFFSETS, Connect, ConnectRefusedError, OffsetsKeptError, connector_config
from ops.local.services import debezium as embedded
from ops.local.services.layout import Extra
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.source.mapping import SourceMapping, load, parse
from schemas.topics import LIVE_TOPIC

DSN = "postgresql://cdc:secret@db.example:5433/crm?sslmode=verify-full&sslrootcert=/ca.pem"
ACCOUNT_COLUMN = """
source:
  schema: "Crm"
  table: audit_rows
  account: {column: account_id, query: "SELECT id FROM a WHERE company_sso_id = %(company_sso_id)s"INVERSE}
scope: [Crm::Deal]
categories: {Crm::Deal: {category: deal}}
"""


def multi_tenant(inverse: str = ', inverse: "SELECT id, company_sso_id FROM a"') -> SourceMapping:
    return parse(ACCOUNT_COLUMN.replace("INVERSE", inverse), "m.yaml")


def test_the_connector_reads_one_table_and_nothing_else() -> None:
    config = connector_config(multi_tenant(), DSN, name="feed_1")
    assert re.fullmatch(config["table.include.list"], "Crm.audit_rows")
    assert not re.fullmatch(config["table.include.list"], "CrmXaudit_rows")
    assert config["slot.name"] == config["publication.name"] == config["topic.prefix"] == "feed_1"
    assert config["plugin.name"] == "pgoutput"
    assert config["skipped.operations"] == "none"
    of_database = {name: value for name, value in config.items() if name.startswith("database.")}
    assert {name.removeprefix("database."): value for name, value in of_database.items()} == {
        "hostname": "db.example", "port": "5433", "user": "cdc", "password": "secret", "dbname": "crm",
        "sslmode": "verify-full", "sslrootcert": "/ca.pem",
    }  # fmt: skip


def test_its_records_go_to_the_live_topic_and_its_heartbeats_do_not() -> None:
    config = connector_config(multi_tenant(), DSN)
    assert config["transforms"] == "route"
    route = re.compile(config["transforms.route.regex"])
    assert route.fullmatch(f"{cdc.DEFAULT_NAME}.Crm.audit_rows")
    assert not route.fullmatch(f"__debezium-heartbeat.{cdc.DEFAULT_NAME}")
    assert config["transforms.route.replacement"] == LIVE_TOPIC


def test_the_account_of_a_whole_table_travels_as_text() -> None:
    config = connector_config(load(None), DSN, account="007", flatten=True)
    assert config["transforms"] == "route,account,flatten"
    assert config["transforms.account.header"] == "company_sso_id"
    assert config["transforms.account.value.literal"] == '"007"'
    assert "op" in config["transforms.flatten.add.fields"].split(",")


def test_a_password_can_be_a_reference() -> None:
    reference = "${file:/secrets/cdc:password}"
    config = connector_config(multi_tenant(), DSN, password=reference)
    assert config["database.password"] == reference
    assert "secret" not in json.dumps({name: v for name, v in config.items() if name != "database.password"})


def test_a_snapshot_can_begin_later_or_be_left_out() -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    config = connector_config(multi_tenant(), DSN, since=since)
    assert config["snapshot.select.statement.overrides"] == "Crm.audit_rows"
    assert config["snapshot.select.statement.overrides.Crm.audit_rows"] == (
        'SELECT * FROM "Crm"."audit_rows" WHERE created_at >= \'2026-01-02 03:04:05.000000\''
    )
    assert config["snapshot.mode"] == "initial"
    assert connector_config(multi_tenant(), DSN, snapshot=False)["snapshot.mode"] == "no_data"


@pytest.mark.parametrize(
    ("mapping", "more", "message"),
    [
        (load(None), {}, "give --account"),
        (load(None), {"account": 'a"b'}, "cannot be sent in a header"),
        (load(None), {"account": "a", "name": "Feed-1"}, "not a valid name of a connector"),
        (multi_tenant(), {"account": "a"}, "leave out --account"),
        (multi_tenant(""), {}, "add inverse"),
    ],
)
def test_what_no_connector_can_be_made_from_is_refused(
    mapping: SourceMapping, more: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        connector_config(mapping, DSN, **more)  # type: ignore[arg-type]


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(BadInputError, match="is not a PostgreSQL address"):
        connector_config(multi_tenant(), "postgresql://%%%")


def test_a_column_that_is_the_account_needs_no_inverse() -> None:
    assert connector_config(multi_tenant(", is_company_sso_id: true"), DSN)["transforms"] == "route"


@pytest.fixture
def connect() -> Iterator[Connect]:
    with Connect("http://connect.example") as found:
        yield found


def answering(connect: Connect, *answers: httpx.Response | httpx.HTTPError) -> list[str]:
    """Have the requests answered by these, one after the other; return where the requests are noted."""
    asked: list[str] = []
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        found = left.pop(0)
        if isinstance(found, httpx.HTTPError):
            raise found
        return found

    connect._client = httpx.Client(base_url="http://connect.example", transport=httpx.MockTransport(answer))
    return asked


def test_a_rebalancing_connect_is_asked_again(connect: Connect) -> None:
    asked = answering(connect, httpx.Response(409, json={"message": "rebalance"}), httpx.Response(201, json={}))
    connect.put("feed", {})
    assert asked == ["PUT /connectors/feed/config"] * 2


def test_a_refusal_is_one_line_with_its_reason(connect: Connect) -> None:
    text = (
        "Connector configuration is invalid and contains the following 1 error(s):\nUnable to connect: refused\nYou can"
    )
    answering(connect, httpx.Response(400, json={"error_code": 400, "message": text}))
    with pytest.raises(
        ConnectRefusedError, match=r"^Kafka Connect refuses the connector: Unable to connect: refused: "
    ):
        connect.put("feed", {})


def test_a_connect_that_is_not_there_is_one_line(connect: Connect) -> None:
    answering(connect, httpx.ConnectError("refused"))
    with pytest.raises(ServiceUnreachableError, match="services up --with debezium"):
        connect.delete("feed")


def test_the_worst_state_of_connector_and_task_counts(connect: Connect) -> None:
    trace = "java.lang.Exception: outer\n\tat a.b\nCaused by: org.postgresql.PSQLException: no slot is free\n\tat c"
    task = {"id": 0, "state": "FAILED", "trace": trace}
    answering(
        connect,
        httpx.Response(200, json={"connector": {"state": "RUNNING"}, "tasks": [task]}),
        httpx.Response(200, json={"connector": {"state": "RUNNING"}, "tasks": [{"state": "RUNNING"}]}),
        httpx.Response(200, json={"connector": {"state": "RUNNING"}, "tasks": []}),
        httpx.Response(404, json={}),
    )
    assert connect.state("feed") == ("FAILED", "org.postgresql.PSQLException: no slot is free")
    assert [connect.state("feed")[0] for _ in range(3)] == ["RUNNING", "STARTING", "not registered"]


def test_the_connector_is_the_one_that_the_embedded_kafka_connect_has() -> None:
    assert cdc.CONNECTOR_CLASS == embedded.CONNECTOR_CLASS
    assert Extra.DEBEZIUM.variable == cdc.CONNECT_VARIABLE


def test_further_settings_are_added_and_win() -> None:
    more = cdc.parse_settings(["value.converter=a.b.Avro", "errors.max.retries=3", "transforms.x.regex=a=b"])
    assert more["transforms.x.regex"] == "a=b"
    config = connector_config(load(None), DSN, account="acme", more=more)
    assert (config["value.converter"], config["errors.max.retries"]) == ("a.b.Avro", "3")
    for word in ("value.converter", "=x", "no name=1"):
        with pytest.raises(BadInputError, match="is not a setting"):
            cdc.parse_settings([word])


REGISTERED = {"connector": {"state": "RUNNING"}, "tasks": [{"state": "RUNNING"}]}
STOPPED: dict[str, object] = {"connector": {"state": "STOPPED"}, "tasks": []}


def test_a_connector_is_stopped_and_forgotten_before_it_is_deleted(connect: Connect) -> None:
    asked = answering(
        connect,
        httpx.Response(200, json=REGISTERED),
        httpx.Response(202),
        httpx.Response(200, json=REGISTERED),  # it takes a moment
        httpx.Response(200, json=STOPPED),
        httpx.Response(200, json={"message": "reset"}),
        httpx.Response(204),
    )
    assert connect.delete("feed")
    assert [line for line in asked if not line.startswith("GET")] == [
        "PUT /connectors/feed/stop",
        "DELETE /connectors/feed/offsets",
        "DELETE /connectors/feed",
    ]


def test_a_connect_that_cannot_forget_deletes_and_says_what_to_do(connect: Connect) -> None:
    asked = answering(connect, httpx.Response(200, json=REGISTERED), httpx.Response(405), httpx.Response(204))
    with pytest.raises(OffsetsKeptError, match=r"before 3\.6.* under another --name"):
        connect.delete("feed")
    assert asked[-1] == "DELETE /connectors/feed"


def test_what_is_not_registered_is_not_deleted(connect: Connect) -> None:
    answering(connect, httpx.Response(404))
    assert not connect.delete("feed")


def test_offsets_of_an_earlier_connector_are_one_line_that_says_what_to_do(connect: Connect) -> None:
    trace = (
        "org.apache.kafka.connect.errors.ConnectException: x\n\tat y\n"
        f"Caused by: io.debezium.DebeziumException: The connector is trying to read change stream starting at "
        f"{'z' * 400}, but this is {STALE_OFFSETS}. Reconfigure the connector to use a snapshot when needed.\n\tat y\n"
    )
    failed = {"connector": {"state": "RUNNING"}, "tasks": [{"state": "FAILED", "trace": trace}]}
    answering(connect, httpx.Response(200, json=failed))
    assert connect.state("feed") == ("FAILED", STALE_OFFSETS)
