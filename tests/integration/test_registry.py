"""The codec against a schema registry's HTTP interface (a small server that keeps the registry's promises)."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from processors.feed.change_events import ChangeDecoder
from schemas.codec import schema_of
from schemas.errors import BadInputError, ServiceUnreachableError, UnknownSchemaError
from schemas.process.registry import ANSWER_BYTES_MAX, SchemaLookup, codec_for
from schemas.records import RECORD_TYPES, Referent, User
from schemas.source.mapping import load
from tests.unit.processors.feed.connect_schemas import as_avro


class Registry(BaseHTTPRequestHandler):
    """POST /subjects/<subject>/versions: the same schema gets the same id again. GET /schemas/ids/<id>: its answer."""

    ids: dict[str, int]
    refuses: set[str]
    schemas: dict[int, dict[str, str] | None]  # None: the registry is in trouble
    says: bytes | None  # whatever is asked, if it is no registry

    def do_GET(self) -> None:
        if self.says is not None:
            self.say(self.says)
            return
        found = self.schemas.get(int(self.path.rpartition("/")[2]), {})
        if found:
            self.answer(200, found)
        else:
            self.answer(500 if found is None else 404, {"error_code": 40403, "message": "Schema not found"})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.says is not None:
            self.say(self.says)
            return
        schema = json.loads(sent)["schema"]
        subject = self.path.split("/")[2]
        if subject in self.refuses:
            self.answer(409, {"error_code": 409, "message": "incompatible"})
        else:
            self.answer(200, {"id": self.ids.setdefault(schema, 100 + len(self.ids))})

    def answer(self, status: int, body: object) -> None:
        self.say(json.dumps(body).encode(), status)

    def say(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def registry() -> Iterator[str]:
    Registry.ids, Registry.refuses, Registry.schemas, Registry.says = {}, set(), {}, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_records_are_framed_with_the_registrys_ids(registry: str) -> None:
    codec = codec_for(registry)
    user = User(7, "a@example.com", "A", False)
    data = codec.encode(user)
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") in Registry.ids.values()
    assert codec.decode(data) == user
    assert len(Registry.ids) == len(RECORD_TYPES)


@pytest.mark.parametrize(
    "says",
    [
        b"<html>log in</html>",
        b"[1]",
        b'{"id": "x", "schema": 1}'[:-1],
        b'{"id":"\xff"',
        b"[" * 100_000,
        b" " * (ANSWER_BYTES_MAX + 1),
    ],
)
def test_what_is_no_registry_is_told_so(registry: str, says: Any) -> None:
    Registry.says = says
    for ask in (lambda: codec_for(registry), lambda: SchemaLookup(registry)(5)):
        with pytest.raises(ServiceUnreachableError, match="is no schema registry"):
            ask()


@pytest.mark.parametrize("schema_id", ['"x"', "-1", "4294967296", "null", "1.5", "true"])
def test_an_id_that_no_frame_holds_is_no_registrys(registry: str, schema_id: str) -> None:
    Registry.says = f'{{"id": {schema_id}}}'.encode()
    with pytest.raises(ServiceUnreachableError, match="is no schema registry"):
        codec_for(registry)


def test_an_answer_that_trickles_does_not_hold_up_for_ever(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trickling(Registry):
        def say(self, data: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(40):
                    self.wfile.write(b" ")
                    time.sleep(0.1)

    monkeypatch.setattr(Registry, "say", Trickling.say)
    monkeypatch.setattr("schemas.process.registry.REGISTRY_TIMEOUT_S", 0.5)
    Registry.says = b""
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        codec_for(registry)


def test_a_second_process_reads_what_the_first_wrote(registry: str) -> None:
    record = Referent("Crm::Deal", 7001, "Renewal")
    assert codec_for(registry).decode(codec_for(registry).encode(record)) == record


def test_what_was_written_without_a_registry_is_read_with_one(registry: str) -> None:
    record = Referent("Crm::Deal", 7001, "Renewal")
    assert codec_for(registry).decode(codec_for("").encode(record)) == record


def test_what_was_written_with_ids_that_the_registry_gives_no_more_is_read(registry: str) -> None:
    record = Referent("Crm::Deal", 7001, "Renewal")
    before = codec_for(registry).encode(record)
    (schema_id,) = (number for schema, number in Registry.ids.items() if '"Referent"' in schema)
    Registry.schemas = {schema_id: {"schema": json.dumps(schema_of(Referent))}}
    Registry.ids = {f"other {number}": number for number in range(100, 200)}  # those to come begin behind them
    codec = codec_for(registry)
    assert codec.encode(record) != before
    assert codec.decode(before) == record
    Registry.schemas = {}
    with pytest.raises(UnknownSchemaError, match=f"has no schema {schema_id}"):
        codec_for(registry).decode(before)


def test_a_refused_schema_is_named(registry: str) -> None:
    Registry.refuses = {"crm.audit.replay.User"}
    with pytest.raises(BadInputError, match="refused user"):
        codec_for(registry)


def test_a_registry_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        codec_for("http://127.0.0.1:9")


def test_a_schema_of_others_is_asked_for_once(registry: str) -> None:
    Registry.schemas = {7: {"schema": '{"type": "string"}'}, 8: {"schema": "syntax", "schemaType": "PROTOBUF"}}
    lookup = SchemaLookup(registry)
    assert lookup(7) == '{"type": "string"}'
    assert lookup(8) is None
    assert lookup(9) is None
    Registry.schemas[9] = {"schema": '"long"'}
    assert lookup(9) == '"long"'  # a schema that is not there yet is asked for again
    Registry.schemas = {}
    assert lookup(7) == '{"type": "string"}'
    lookup.close()


def test_a_registry_that_does_not_say_is_an_outage_and_no_answer(registry: str) -> None:
    Registry.schemas = {7: None}
    lookup = SchemaLookup(registry)
    with pytest.raises(ServiceUnreachableError, match="answers 500"):
        lookup(7)
    lookup.close()
    nobody = SchemaLookup("http://127.0.0.1:9")
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        nobody(7)
    nobody.close()


def test_a_change_event_is_read_with_the_registrys_schema(registry: str) -> None:
    recorded = Path(__file__).parents[1] / "golden" / "change_events" / "debezium-3.7.jsonl"
    value = json.loads(recorded.read_text("utf-8").splitlines()[0])["value"].encode()
    schema, framed = as_avro(value, 12)
    Registry.schemas = {12: {"schema": schema}}
    lookup = SchemaLookup(registry)
    decoder = ChangeDecoder(load(None), company_sso_id="acme", schema_of=lookup)
    assert decoder.decode(None, framed) == ChangeDecoder(load(None), company_sso_id="acme").decode(None, value)
    lookup.close()
