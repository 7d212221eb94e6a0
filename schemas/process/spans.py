"""Spans, recorded and exported over OTLP. The only module that uses OpenTelemetry; imported only if tracing is on.

One page may become many batches, and one batch or bulk write may have records of many pages: so a piece of work is a
span in each of its traces, as a child of the preceding work there. Work that does not end is not exported, so a page
that is read ahead and dropped has no trace. Spans have counts, positions and the type of an error; never its message,
and no content of a row. An unavailable collector costs its spans and one log line a minute; no work waits for it.
"""

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.re import parse_env_headers

from schemas.process.tracing import SPANS_MAX, TRACEPARENT, UNTRACED, Attribute, Headers, Traces, TracingSettings, Work

TRACEPARENT_CHARACTERS = 55
CLOSE_S = 2.0
LOG_EVERY_S = 60.0

_propagator = TraceContextTextMapPropagator()


class Step:
    """A part of the work: its times and attributes."""

    __slots__ = ("attributes", "began_ns", "ended_ns", "error", "name")

    def __init__(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Start now."""
        self.name = name
        self.attributes = attributes
        self.began_ns = time.time_ns()
        self.ended_ns = 0
        self.error = ""


class Followed(Work):
    """A piece of work that is a span in each of its traces. Steps may run in any thread, one after the other."""

    __slots__ = ("_after", "_ended", "_spans", "_steps", "_tracer")
    followed = True

    def __init__(self, tracer: trace.Tracer, spans: Mapping[int, Span], after: Mapping[bytes, int]) -> None:
        """`spans` are by trace id, `after` maps each `traceparent` that the work continues to its trace id."""
        self._tracer = tracer
        self._spans = spans
        self._after = after
        self._steps: list[Step] = []
        self._ended = False

    @property
    def headers(self) -> Headers:
        """The headers for the records that the work produces, if it belongs to one trace."""
        return _headers(next(iter(self._spans.values())))

    def headers_after(self, context: bytes) -> Headers | None:
        """Return the headers for output from records with this `traceparent`; None if it is not traced."""
        trace_id = self._after.get(context)
        return None if trace_id is None else _headers(self._spans[trace_id])

    def step(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:
        """Return a context for a part of the work: log lines in it have the (first) trace's id."""
        return self._step(name, attributes)

    @contextmanager
    def _step(self, name: str, attributes: Mapping[str, Attribute]) -> Iterator[None]:
        step = Step(name, attributes)
        with structlog.contextvars.bound_contextvars(trace_id=trace.format_trace_id(next(iter(self._spans)))):
            try:
                yield
            except BaseException as error:
                step.error = type(error).__name__
                raise
            finally:
                step.ended_ns = time.time_ns()
                self._steps.append(step)
                if step.error:
                    self._end(step.error)

    def end(self, **attributes: Attribute) -> None:
        """End the spans, with attributes of the result."""
        if not self._ended:
            for span in self._spans.values():
                span.set_attributes(attributes)
            self._end()

    def _end(self, error: str = "") -> None:
        self._ended = True
        for span in self._spans.values():
            below = trace.set_span_in_context(span)
            for step in self._steps:
                part = self._tracer.start_span(
                    step.name, below, attributes=step.attributes, start_time=step.began_ns, record_exception=False
                )
                _fail(part, step.error)
                part.end(step.ended_ns)
            _fail(span, error)
            span.end()


class Recorded(Traces):
    """The traces that a process exports."""

    on = True

    def __init__(
        self,
        process: str,
        settings: TracingSettings,
        about: Mapping[str, Attribute],
        exporter: SpanExporter | None = None,
    ) -> None:
        """Export as configured, or to `exporter`; sends nothing yet. `about` is part of every span."""
        self._about = dict(about)
        name = os.environ.get("OTEL_SERVICE_NAME") or f"crm-replay-{process}"
        worker = os.environ.get("CRM_REPLAY_WORKER")
        resource = {SERVICE_NAME: name, "crm_replay.process": process}
        if worker:
            resource["service.instance.id"] = worker
        self._provider = TracerProvider(
            ParentBased(TraceIdRatioBased(settings.sample_ratio)), Resource.create(resource), shutdown_on_exit=False
        )
        if exporter is None:
            headers = parse_env_headers(settings.headers.get_secret_value(), liberal=True)
            exporter = OTLPSpanExporter(settings.url, headers=headers)
            logging.getLogger(OTLPSpanExporter.__module__).addFilter(_RateLimit())  # a filter is not inherited
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("crm_replay")

    def begin(self, name: str, **attributes: Attribute) -> Work:
        """Return work that begins a trace, if it is sampled."""
        span = self._tracer.start_span(
            name, Context(), SpanKind.PRODUCER, {**self._about, **attributes}, record_exception=False
        )
        if not span.is_recording():
            return UNTRACED
        trace_id = span.get_span_context().trace_id
        return Followed(self._tracer, {trace_id: span}, {b"": trace_id})

    def follow(self, name: str, contexts: Collection[bytes], **attributes: Attribute) -> Work:
        """Return work that continues each trace among these `traceparent`s, UNTRACED if there is none."""
        by_trace: dict[int, list[SpanContext]] = {}
        after: dict[bytes, int] = {}
        for context in dict.fromkeys(contexts):
            before = _parse(context)
            if before is None or (before.trace_id not in by_trace and len(by_trace) >= SPANS_MAX):
                continue
            by_trace.setdefault(before.trace_id, []).append(before)
            after[context] = before.trace_id
        spans = {
            trace_id: self._tracer.start_span(
                name,
                trace.set_span_in_context(trace.NonRecordingSpan(before[0]), Context()),
                SpanKind.CONSUMER,
                {**self._about, **attributes},
                [Link(context) for context in before[1:]],
                record_exception=False,
            )
            for trace_id, before in by_trace.items()
        }
        if not any(span.is_recording() for span in spans.values()):  # OTEL_SDK_DISABLED
            return UNTRACED
        return Followed(self._tracer, spans, after)

    def close(self) -> None:
        """Export the remaining spans and stop; waits two seconds for the collector at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True, name="close-tracing")
        closing.start()
        closing.join(CLOSE_S)


def _parse(context: bytes) -> SpanContext | None:
    """Return the context in a `traceparent`; None if it is invalid, or not sampled."""
    if len(context) != TRACEPARENT_CHARACTERS:
        return None
    carrier = {TRACEPARENT: context.decode("ascii", "replace")}
    found = trace.get_current_span(_propagator.extract(carrier, Context())).get_span_context()
    return found if found.is_valid and found.trace_flags.sampled else None


def _headers(span: Span) -> Headers:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return [(TRACEPARENT, carrier[TRACEPARENT].encode())]


def _fail(span: Span, error: str) -> None:
    if error:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)


class _RateLimit(logging.Filter):
    """Passes one line a minute: an unavailable collector would fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        now = time.monotonic()
        if now - self._last < LOG_EVERY_S:
            return False
        self._last = now
        return True
