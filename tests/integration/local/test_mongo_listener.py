"""The TCP front of the embedded MongoDB engine, on the wire and through the driver."""

import contextlib
import itertools
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import bson
import pymongo
import pytest
from pymongo import WriteConcern
from pymongo.errors import BulkWriteError, PyMongoError

from ops.local import services
from ops.local.services import Service
from ops.local.services.detached import stop
from tests.integration.local.conftest import Stack
from tests.support.waiting import at_once

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("without_urls")]

OP_REPLY, OP_QUERY, OP_COMPRESSED, OP_MSG = 1, 2004, 2012, 2013
MIB = 1 << 20


class Wire:
    """One connection, spoken by hand."""

    def __init__(self, url: str) -> None:
        host, port = pymongo.uri_parser.parse_uri(url)["nodelist"][0]
        self.socket = socket.create_connection((host, port), timeout=60)
        self._ids = itertools.count(1)

    def message(self, command: dict[str, Any], *, flags: int = 0, code: int = OP_MSG) -> bytes:
        """Return a message; its request id is one more than that of the one before."""
        body = struct.pack("<i", flags) + b"\0" + bson.encode({**command, "$db": "admin"})
        return struct.pack("<iiii", 16 + len(body), next(self._ids), 0, code) + body

    def receive(self) -> tuple[int, int, dict[str, Any]]:
        """Return (id of the question, operation, document) of the next answer."""
        length, _id, answers, code = struct.unpack("<iiii", self._exactly(16))
        body = self._exactly(length - 16)
        return answers, code, bson.decode(body[20 if code == OP_REPLY else 5 :])

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self.socket.sendall(self.message(command))
        return self.receive()[2]

    def is_closed(self) -> bool:
        """Whether the other side closes the connection, without another word."""
        with contextlib.suppress(ConnectionError):
            return self.socket.recv(1) == b""
        return True

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self.socket.recv(min(count, MIB))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    connection = Wire(stack.endpoints.mongodb_url)
    yield connection
    connection.socket.close()


@pytest.fixture
def database(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Any]:
    with pymongo.MongoClient[dict[str, Any]](stack.endpoints.mongodb_url) as client:
        name = f"listener_{os.getpid()}_{abs(hash(request.node.name)) % 10**8}"
        yield client[name]
        client.drop_database(name)


def test_hello_promises_only_what_the_engine_keeps(wire: Wire) -> None:
    hello = wire.ask({"hello": 1})
    assert hello["isWritablePrimary"] is True
    assert "logicalSessionTimeoutMinutes" not in hello
    assert hello["maxMessageSizeBytes"] == 30_000_000


def test_the_old_handshake_is_answered_in_its_own_form(wire: Wire) -> None:
    query = struct.pack("<i", 0) + b"admin.$cmd\0" + struct.pack("<ii", 0, -1) + bson.encode({"ismaster": 1})
    wire.socket.sendall(struct.pack("<iiii", 16 + len(query), 41, 0, OP_QUERY) + query)
    answers, code, document = wire.receive()
    assert (answers, code) == (41, OP_REPLY)
    assert document["ismaster"] is True
    assert "logicalSessionTimeoutMinutes" not in document


def test_documents_with_the_names_of_hello_are_not_touched(database: Any) -> None:
    document = {"_id": 1, "logicalSessionTimeoutMinutes": 5, "maxMessageSizeBytes": 7, "hello": 1}
    database.names.insert_one(document)
    assert database.names.find_one() == document


def test_messages_in_pieces_and_in_one_go_are_answered_in_order(wire: Wire) -> None:
    pings = b"".join(wire.message({"ping": 1, "comment": str(number)}) for number in range(20))
    for at in range(0, len(pings), 7):
        wire.socket.sendall(pings[at : at + 7])
    assert [wire.receive()[0] for _ in range(20)] == list(range(1, 21))
    wire.socket.sendall(b"".join(wire.message({"ping": 1}) for _ in range(200)))
    assert [wire.receive()[0] for _ in range(200)] == list(range(21, 221))


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="another protocol"),
        pytest.param(struct.pack("<iiii", 5, 1, 0, OP_MSG), id="shorter than its header"),
        pytest.param(struct.pack("<iiii", 1 << 30, 1, 0, OP_MSG), id="a gigabyte"),
        pytest.param(struct.pack("<iiii", 40, 1, 0, OP_COMPRESSED) + bytes(24), id="compressed"),
    ],
)
def test_nonsense_ends_its_own_connection_only(stack: Stack, wire: Wire, nonsense: bytes) -> None:
    other = Wire(stack.endpoints.mongodb_url)
    assert other.ask({"ping": 1})["ok"] == 1
    wire.socket.sendall(nonsense)
    assert wire.is_closed()
    assert other.ask({"ping": 1})["ok"] == 1
    other.socket.close()


def test_an_unreadable_body_is_refused_and_others_go_on(stack: Stack, wire: Wire) -> None:
    body = struct.pack("<i", 0) + b"\0" + struct.pack("<i", 500) + b"\x10not bson"
    wire.socket.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, OP_MSG) + body)
    with contextlib.suppress(EOFError):
        assert wire.receive()[2]["ok"] == 0
    other = Wire(stack.endpoints.mongodb_url)
    assert other.ask({"ping": 1})["ok"] == 1
    other.socket.close()


def test_a_client_that_leaves_in_the_middle_of_a_message_harms_nobody(stack: Stack, wire: Wire) -> None:
    leaving = Wire(stack.endpoints.mongodb_url)
    leaving.socket.sendall(leaving.message({"ping": 1})[:-3])
    leaving.socket.close()
    assert wire.ask({"ping": 1})["ok"] == 1


def test_large_documents_and_batches_go_through(database: Any) -> None:
    documents = [{"_id": number, "body": bytes([number]) * (15 * MIB)} for number in range(4)]
    database.large.insert_many(documents, ordered=False)
    assert [(d["_id"], len(d["body"]), d["body"][-1]) for d in database.large.find().sort("_id")] == [
        (number, 15 * MIB, number) for number in range(4)
    ]


def test_a_message_the_engine_cannot_take_is_an_error_and_the_connection_stays(wire: Wire) -> None:
    too_large = {"insert": "x", "documents": [{"body": bytes(15 * MIB)} for _ in range(3)]}
    answer = wire.ask(too_large)
    assert (answer["ok"], answer["codeName"]) == (0.0, "BSONObjectTooLarge")
    assert wire.ask({"ping": 1})["ok"] == 1


def test_duplicates_of_a_batch_are_told_one_by_one(database: Any) -> None:
    database.once.create_index("key", unique=True, partialFilterExpression={"key": {"$exists": True}})
    database.once.insert_many([{"key": number} for number in range(5)])
    with pytest.raises(BulkWriteError) as caught:
        database.once.insert_many([{"key": number} for number in range(10)], ordered=False)
    assert [(error["index"], error["code"]) for error in caught.value.details["writeErrors"]] == [
        (number, 11000) for number in range(5)
    ]
    assert caught.value.details["nInserted"] == 5


def test_unacknowledged_writes_get_no_answer_and_arrive(database: Any) -> None:
    quiet = database.get_collection("quiet", write_concern=WriteConcern(w=0))
    for number in range(500):
        quiet.insert_one({"_id": number})
    assert database.quiet.count_documents({}) == 500  # on the same connection, hence after them


def test_many_connections_at_once(stack: Stack, database: Any) -> None:
    problems: list[PyMongoError] = []

    def write(number: int) -> None:
        try:
            with pymongo.MongoClient[dict[str, Any]](stack.endpoints.mongodb_url) as client:
                for first in range(number * 100, number * 100 + 100, 20):
                    client[database.name].many.insert_many([{"_id": first + at} for at in range(20)])
        except PyMongoError as error:
            problems.append(error)

    at_once(60, write)
    assert problems == []
    assert database.many.count_documents({}) == 60 * 100


def test_a_client_that_does_not_read_delays_nobody(stack: Stack, database: Any, wire: Wire) -> None:
    database.slow.insert_one({"_id": 1, "body": bytes(8 * MIB)})
    question = struct.pack("<i", 0) + b"\0" + bson.encode({"find": "slow", "$db": database.name})
    asked = [struct.pack("<iiii", 16 + len(question), number, 0, OP_MSG) + question for number in range(10)]
    wire.socket.sendall(b"".join(asked))  # 80 MiB of answers, more than any socket buffer
    for _ in range(50):
        assert database.slow.find_one({}, {"_id": 1}) == {"_id": 1}
    assert [wire.receive()[0] for _ in asked] == list(range(10))


def test_no_acknowledged_write_is_lost_by_a_kill(stack: Stack) -> None:
    """With the URL as `up` gives it: it asks for the journal. Without that, writes of the last 100 ms are lost."""
    acknowledged = 0
    enough = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        with (
            contextlib.suppress(PyMongoError),
            pymongo.MongoClient[dict[str, Any]](stack.endpoints.mongodb_url) as client,
        ):
            client.drop_database("killed")
            for batch in itertools.count():
                ids = range(batch * 100, batch * 100 + 100)
                client.killed.rows.insert_many([{"_id": number, "text": "x" * 300} for number in ids], ordered=False)
                acknowledged = ids.stop
                if acknowledged >= 5_000:
                    enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(60)
    process = stack.process(Service.MONGODB)
    assert process is not None
    stop(process, number=signal.SIGKILL, timeout_s=10)
    writer.join()
    assert services.up(stack.home) == stack.endpoints
    with pymongo.MongoClient[dict[str, Any]](stack.endpoints.mongodb_url) as client:
        assert client.killed.rows.count_documents({"_id": {"$lt": acknowledged}}) == acknowledged
        client.drop_database("killed")
