"""Who is traced, what goes into a header, what a span says; and that none of it is there while tracing is off."""

import logging
import subprocess
import sys
import threading
from itertools import pairwise
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan

from schemas.errors import BadInputError
from schemas.process import logs, spans, tracing
from schemas.process.tracing import OFF, SPANS_MAX, UNTRACED, Headers, TracingSettings, context_of, pieces_of
from tests.fixtures.otlp import receiver
from tests.support.sources import IMPORTS
from tests.support.tracing import PAGE, Here, context
from tests.support.waiting import wait_until

PREFIX = "CRM_REPLAY_TRACING_"
NOT_DRAWN = PAGE[:-1] + b"0"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setenv("CRM_REPLAY_WORKER", "host-sink-0")
    return Here()


def the_context(headers: Headers | None) -> bytes:
    assert headers is not None
    assert [name for name, _ in headers] == ["traceparent"]
    return context_of(headers)


def parent_of(span: ReadableSpan) -> str:
    return f"{span.parent.span_id:016x}" if span.parent else ""


# ---- off -------------------------------------------------------------------------------------------------------------


def test_tracing_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert tracing.start("sink", account="acme") is OFF
    monkeypatch.setenv(f"{PREFIX}SAMPLE_RATIO", "0")
    assert tracing.start("sink", account="acme") is OFF
    work = OFF.begin("page")
    assert work is OFF.follow("run", [PAGE]) is UNTRACED
    assert (work.headers, work.headers_after(PAGE), work.followed) == (None, None, False)
    assert work.step("read") is work.step("publish", rows=1)
    with work.step("read"):
        work.end(rows=1)
    OFF.close()


def test_with_tracing_off_the_processes_do_not_import_opentelemetry() -> None:
    code = """
import sys
import producer.__main__, processors.__main__, processors.feed.worker, sink.__main__
import ops.runner.daemon, ops.runner.replay, ops.runner.forkserver  # what a worker is forked from
from schemas.process import tracing
assert tracing.start("sink") is tracing.OFF
assert not [name for name in sys.modules if name.split(".")[0] == "opentelemetry"], "off is not off"
import os
os.environ["CRM_REPLAY_TRACING_SAMPLE_RATIO"] = "0.5"
assert tracing.start("sink").on
assert "opentelemetry.sdk.trace" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_one_module_knows_opentelemetry() -> None:
    assert [module for module, names in IMPORTS.items() if any(n.startswith("opentelemetry") for n in names)] == [
        "schemas.process.spans"
    ]
    assert [module for module, names in IMPORTS.items() if "schemas.process.spans" in names] == [
        "schemas.process.tracing"
    ]


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SAMPLE_RATIO", "2", "less than or equal to 1"),
        ("SAMPLE_RATIO", "much", "valid number"),
        ("ENDPOINT", "collector:4317", "not an HTTP URL"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(BadInputError, match=says) as caught:
        tracing.start("sink")
    assert PREFIX + name in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("", None),
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://gate.example/otlp/v1/traces", "https://gate.example/otlp/v1/traces"),
    ],
)
def test_the_endpoint_is_a_base_address(endpoint: str, url: str | None) -> None:
    assert TracingSettings(endpoint=endpoint).url == url


def test_opentelemetrys_own_variables_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as collector:
        monkeypatch.setenv(f"{PREFIX}SAMPLE_RATIO", "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-one=1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=blue")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "import")
        monkeypatch.setenv(f"{PREFIX}HEADERS", "x-two=2,x-three=3")
        traces = tracing.start("producer", account="acme", job_id="", run=3)
        traces.begin("page").end()
        traces.close()
    ((path, headers),) = collector.requests
    assert path == "/v1/traces"
    assert {name: headers[name] for name in ("x-one", "x-two", "x-three", "content-encoding")} == {
        "x-one": "1",
        "x-two": "2",
        "x-three": "3",
        "content-encoding": "gzip",
    }
    (span,) = collector.spans
    assert span.attributes == {"crm_replay.account": "acme", "crm_replay.run": 3}
    assert span.resource["service.name"] == "import"
    assert span.resource["deployment.environment.name"] == "blue"
    assert span.process == "producer"


def test_a_collector_that_is_away_costs_its_spans_and_a_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spans, "CLOSE_S", 0.5)
    monkeypatch.setenv(f"{PREFIX}SAMPLE_RATIO", "1")
    monkeypatch.setenv(f"{PREFIX}ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    threads = {*threading.enumerate()}
    with caplog.at_level(logging.WARNING):
        traces = tracing.start("producer")
        for _ in range(20):
            work = traces.begin("page")
            assert work.headers is not None
            work.end()
        traces.close()
        said = wait_until(lambda: [r for r in caplog.records if r.name.startswith("opentelemetry")], "it is logged")
    assert len(said) == 1
    # What it leaves behind draws lots for its pauses: hypothesis, in a test after this, would take them for its own.
    for thread in {*threading.enumerate()} - threads:
        thread.join(60)
        assert not thread.is_alive(), thread


# ---- who is traced ---------------------------------------------------------------------------------------------------


def test_the_lot_falls_on_about_as_many_pages_as_were_asked_for() -> None:
    here = Here(ratio=0.25)
    works = [here.traces.begin("page") for _ in range(2_000)]
    drawn = [work for work in works if work.followed]
    assert 350 < len(drawn) < 650  # eight standard deviations
    assert all(work is UNTRACED for work in works if not work.followed)
    for work in drawn:
        work.end()
    assert len({span.context.trace_id for span in here.spans() if span.context}) == len(drawn)


def test_what_follows_a_drawn_page_is_followed_whatever_this_processs_own_ratio(here: Here) -> None:
    rarely = Here(ratio=1e-9)
    assert rarely.traces.begin("page") is UNTRACED
    work = rarely.traces.follow("run", [PAGE])
    assert the_context(work.headers_after(PAGE)).startswith(PAGE[:36])
    work.end()
    (span,) = rarely.spans()
    assert (parent_of(span), span.attributes) == ("b7ad6b7169203331", {"crm_replay.account": "acme"})
    assert span.resource.attributes["service.instance.id"] == "host-sink-0"


@pytest.mark.parametrize(
    "nothing",
    [
        b"",
        NOT_DRAWN,
        PAGE[:-1],
        PAGE + b"-more",
        PAGE.replace(b"b7ad6b7169203331", b"0000000000000000"),
        PAGE.replace(b"0af7651916cd43dd8448eb211c80319c", b"0" * 32),
        b"zz" + PAGE[2:],
        b"\xff" * 55,
    ],
)
def test_a_context_that_says_nothing_is_not_followed(here: Here, nothing: Any) -> None:
    assert here.traces.follow("run", [nothing]) is UNTRACED
    work = here.traces.follow("run", [nothing, PAGE])
    assert work.headers_after(nothing) is None
    work.end()
    assert len(here.spans()) == 1


def test_work_for_several_pages_is_a_span_in_each_of_their_traces(here: Here) -> None:
    work = here.traces.follow("batch", [context(1, 11), context(2, 21), context(1, 12), context(1, 11)], rows=7)
    with work.step("bulk write", collection="activity_logs"):
        pass
    work.end(inserted=5)
    found = here.spans()
    batches = {span.context.trace_id: span for span in found if span.name == "batch" and span.context}
    assert {trace: parent_of(span) for trace, span in batches.items()} == {1: f"{11:016x}", 2: f"{21:016x}"}
    assert {trace: [link.context.span_id for link in span.links] for trace, span in batches.items()} == {1: [12], 2: []}
    assert all(span.attributes == {"crm_replay.account": "acme", "rows": 7, "inserted": 5} for span in batches.values())
    writes = [span for span in found if span.name == "bulk write"]
    assert {parent_of(span) for span in writes} == {
        f"{span.context.span_id:016x}" for span in batches.values() if span.context
    }
    for span in writes:
        assert span.attributes == {"collection": "activity_logs"}


def test_work_for_more_pages_than_spans_max_leaves_out_the_rest(here: Here) -> None:
    contexts = [context(number, number) for number in range(1, SPANS_MAX + 3)]
    work = here.traces.follow("batch", contexts)
    assert [work.headers_after(each) is None for each in contexts] == [False] * SPANS_MAX + [True] * 2
    work.end()
    assert len(here.spans()) == SPANS_MAX


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_what_ends_in_an_error_says_which_kind_and_nothing_more(here: Here) -> None:
    work = here.traces.begin("page")
    with pytest.raises(ValueError, match="siti"), work.step("encode"):
        raise ValueError("siti@contoh.co.id is no address")
    work.end(rows=1)  # too late, and no matter
    found = here.spans()
    assert {(span.name, span.status.is_ok) for span in found} == {("page", False), ("encode", False)}
    assert all((span.attributes or {})["error.type"] == "ValueError" for span in found)
    assert not any(span.events or span.status.description or "rows" in (span.attributes or {}) for span in found)


def test_work_that_does_not_end_is_not_sent(here: Here) -> None:
    with here.traces.begin("page").step("read"):
        pass
    assert here.spans() == []


def test_steps_lie_within_their_work_in_their_order(here: Here) -> None:
    work = here.traces.begin("page")
    for name in ("read", "encode", "publish"):
        with work.step(name):
            pass
    work.end()
    times = {span.name: (span.start_time or 0, span.end_time or 0) for span in here.spans()}
    assert list(times) == ["read", "encode", "publish", "page"]
    inner = [times[name] for name in ("read", "encode", "publish")]
    assert times["page"][0] <= inner[0][0]
    assert all(begin <= end for begin, end in inner)
    assert all(before[1] <= after[0] for before, after in pairwise(inner))
    assert inner[-1][1] <= times["page"][1]


def test_what_is_logged_in_a_step_has_the_traces_id(here: Here) -> None:
    handler = logging.getLogger("schemas.test_tracing")
    work = here.traces.follow("run", [PAGE])
    said: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event = {"event": record.getMessage()}
            said.append(dict(logs._clean(None, "", structlog.contextvars.merge_contextvars(None, "", event))))

    handler.addHandler(there := Handler())
    try:
        handler.warning("before")
        with work.step("transform"):
            handler.warning("within")
        handler.warning("after")
    finally:
        handler.removeHandler(there)
        here.traces.close()
    assert [(line["event"], line.get("trace_id")) for line in said] == [
        ("before", None),
        ("within", "0af7651916cd43dd8448eb211c80319c"),
        ("after", None),
    ]


# ---- pieces ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([b"", PAGE, NOT_DRAWN])))
def test_pieces_are_all_records_in_their_order_and_neighbours_differ(contexts: list[bytes]) -> None:
    headers = [[("other", b"1"), ("traceparent", each)] if each else None for each in contexts]
    pieces = pieces_of(headers)
    assert [piece.context for piece in pieces for _ in range(piece.begin, piece.end)] == contexts
    assert all(piece.begin < piece.end for piece in pieces)
    assert all(before.end == after.begin and before.context != after.context for before, after in pairwise(pieces))
