"""What a log line looks like, and what never gets into one."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from schemas.errors import BadInputError, ReplayError
from schemas.process import logs


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Give the stream that is logged to at DEBUG; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    levels = {name: logging.getLogger(name).level for name in (*logs.CHATTY, *logs.NEVER_BELOW_INFO)}
    monkeypatch.setattr(logs, "_bound", {})
    monkeypatch.setattr("threading.excepthook", None)
    found = io.StringIO()
    logs.configure("sink", stream=found, environ={logs.LEVEL_VARIABLE: "DEBUG", "CRM_REPLAY_WORKER": "host-sink-0"})
    yield found
    logging.captureWarnings(capture=False)
    root.handlers[:], sys.excepthook = handlers, hook
    root.setLevel(level)
    for name, of_logger in levels.items():
        logging.getLogger(name).setLevel(of_logger)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_event_and_what_was_bound(stream: io.StringIO) -> None:
    logs.bind(account="acme", job_id="j1", run=7)
    logging.getLogger("sink").info("batch of %d written", 2000, extra={"seconds": 0.5})
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "batch of 2000 written",
        "process": "sink",
        "worker": "host-sink-0",
        "account": "acme",
        "job_id": "j1",
        "run": 7,
        "logger": "sink",
        "seconds": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no user siti.rahma+crm@contoh.co.id here", "no user [email] here"),
        ("called +62 812-3456-7890 twice", "called [phone] twice"),
        ("called 081234567890 twice", "called [phone] twice"),
        ("mongodb://crm:hunter2@m:27017/ is down", "mongodb://[credentials]@m:27017/ is down"),
        ("password=hunter2 host=db", "password=[secret] host=db"),
        ('{"token": "abc def"}', '{"token": [secret]}'),
        ("Key (email)=(a b) already exists.", "Key (email)=([value]) already exists."),
        ('E11000 dup key: { name: "Budi" }', "E11000 dup key: {[value]}"),
        ("bad row\nDETAIL: Failing row contains (Budi)", "bad row\nDETAIL: [withheld]"),
        ("GET /private/users?emails=a.b%40contoh.id%2Cc%40d.id HTTP/1.1", "GET /private/users?[query] HTTP/1.1"),
        ("'http://d/users?x=1&emails=a%2540b.id'", "'http://d/users?[query]'"),
        ("no user siti%2Bcrm%40contoh.co.id here", "no user [email] here"),
        ("no user siti%2540contoh.co.id here", "no user [email] here"),
        ("called %2B62%20812-3456-7890 twice", "called [phone] twice"),
        ("called %2b6281234567890 twice", "called [phone] twice"),
        ("password: hunter2", "password: [secret]"),
        ("https://u:a/b@registry:8081/ is down", "https://[credentials]@registry:8081/ is down"),
        # What an operator needs is still there.
        ("150%4 of 0%, 50% at 40", "150%4 of 0%, 50% at 40"),
        ("assigned 0 from 1200008, 1 from 4294967296", "assigned 0 from 1200008, 1 from 4294967296"),
        ("crm.audits.replay.acme[3]@1700000000123", "crm.audits.replay.acme[3]@1700000000123"),
        ("2026-11-21T12:00:00.123456Z 10.0.0.1:9092", "2026-11-21T12:00:00.123456Z 10.0.0.1:9092"),
        ("run 0 of 12, 0.25 s, id 0", "run 0 of 12, 0.25 s, id 0"),
    ],
)
def test_addresses_numbers_credentials_and_values_are_taken_out_and_nothing_else(text: str, shown: str) -> None:
    assert logs.scrub(text) == shown


def test_fields_that_hold_a_row_are_withheld_however_deep(stream: io.StringIO) -> None:
    extra = {"payload": {"a": "Budi"}, "row": {"audited_changes": "Budi", "id": 5, "list": [{"email": "Budi"}]}}
    logging.getLogger("x").info("a row", extra=extra)
    assert "Budi" not in stream.getvalue()
    assert lines(stream)[0]["row"]["id"] == 5


def test_an_exception_is_its_type_and_places_and_its_text_only_if_that_cannot_be_a_value(stream: io.StringIO) -> None:
    try:
        try:
            int("Budi Santoso")
        except ValueError as error:
            raise ReplayError("page 7 cannot be read", "see the log") from error
    except ReplayError:
        logging.getLogger("x").exception("failed")
    (line,) = lines(stream)
    assert line["error"] == "ReplayError: page 7 cannot be read: see the log"
    assert line["cause"] == "ValueError: [withheld]"
    assert line["where"][-1].endswith(
        "test_an_exception_is_its_type_and_places_and_its_text_only_if_that_cannot_be_a_value"
    )
    assert "Budi" not in stream.getvalue()


def test_what_nobody_caught_is_logged_without_its_text(stream: io.StringIO) -> None:
    error = KeyError("Budi")
    sys.excepthook(KeyError, error, None)
    assert lines(stream)[0]["event"] == "ended by KeyError: [withheld]"
    sys.excepthook(psycopg.OperationalError, psycopg.OperationalError("no route, password=hunter2"), None)
    assert "hunter2" not in stream.getvalue()
    assert "no route" in stream.getvalue()


def test_libraries_that_log_whole_messages_do_not_do_so_at_debug_either(stream: io.StringIO) -> None:
    for name in ("pymongo.command", "aiokafka.conn", "faust.transport", "httpx"):
        logging.getLogger(name).debug("Budi")
    assert stream.getvalue() == ""


LIBRARIES = (
    *logs.CHATTY, *logs.NEVER_BELOW_INFO, "aiokafka.conn", "aiokafka.consumer.fetcher", "confluent_kafka", "faust.app",
    "faust.transport.drivers.aiokafka", "h11", "httpcore.http11", "kafka", "mode.services", "opentelemetry.exporter",
    "psycopg.pool", "pymongo.command", "pymongo.connection", "requests", "rdkafka", "sink.consumer",
    "urllib3.connectionpool", "uvicorn.access", "uvicorn.error",
)  # fmt: skip
PEOPLE = (
    "siti.rahma@contoh.co.id", "siti.rahma%40contoh.co.id", "siti.rahma%2540contoh.co.id", "+62 812-3456-7890",
    "%2B6281234567890", "081234567890",
)  # fmt: skip


def test_no_library_says_anything_of_a_person_at_any_level(stream: io.StringIO) -> None:
    for name in LIBRARIES:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            for person in PEOPLE:
                logging.getLogger(name).log(level, "GET http://u:hunter2@d/users?q=%s for %s", person, person)
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"data": []}))) as client:
        client.get("http://directory/private/users", params={"emails": ",".join(PEOPLE), "name": "Siti Rahma"})
    text = stream.getvalue()
    assert "directory/private/users" in text  # httpx has logged its request
    assert not [part for part in ("siti", "Siti", "812-3456", "81234567890", "hunter2") if part in text]


def test_a_long_text_is_cut(stream: io.StringIO) -> None:
    logging.getLogger("x").info("%s", "y" * 100_000)
    assert len(stream.getvalue()) < 2_500


def test_text_is_for_people_and_another_format_or_level_is_refused() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    try:
        logs.configure("sink", stream=out, environ={logs.FORMAT_VARIABLE: "text"})
        logging.getLogger("x").warning("waiting for %s", "Kafka")
    finally:
        root.handlers[:], sys.excepthook = handlers, hook
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    assert "warning waiting for Kafka  process=sink" in out.getvalue()
    for environ, says in (
        ({logs.FORMAT_VARIABLE: "xml"}, "CRM_REPLAY_LOG_FORMAT=xml: one of json, text"),
        ({logs.LEVEL_VARIABLE: "LOUD"}, "CRM_REPLAY_LOG_LEVEL=LOUD: one of DEBUG"),
    ):
        with pytest.raises(BadInputError) as refused:
            logs.configure("sink", environ=environ)
        assert says in str(refused.value)


def test_the_last_line_of_a_log_is_read_back_whatever_its_format() -> None:
    assert logs.last_event('{"event": "gave up", "level": "error"}') == "gave up"
    assert logs.last_event("plain words") == "plain words"
    assert logs.last_event("{not JSON") == "{not JSON"
