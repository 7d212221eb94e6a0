"""Traces: the path of one page of rows, from its read to the bulk write, across the processes.

Off unless CRM_REPLAY_TRACING_SAMPLE_RATIO is set: a process then has `OFF`, whose work is not traced, and OpenTelemetry
is not imported; `schemas.process.spans` records. The producer samples pages, and only the records of a sampled page
have the W3C header `traceparent`; processors and sinks continue its trace and pass it on.
"""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from schemas.errors import BadInputError
from schemas.process.environment import EnvironmentSettings

TRACEPARENT = "traceparent"
TRACES_PATH = "/v1/traces"
SPANS_MAX = 64  # of one piece of work: further pages of a batch are not traced in it
Headers = list[tuple[str, str | bytes | None]]  # the type in Kafka's clients
Attribute = str | int | float | bool


class TracingSettings(EnvironmentSettings):
    """Whether and where a process exports its spans; the same for all processes of a replay."""

    model_config = SettingsConfigDict(env_prefix="CRM_REPLAY_TRACING_")

    sample_ratio: float = Field(
        0.0, ge=0, le=1, description="part of the pages that are traced, 0 to 1; 0: tracing is off in this process"
    )
    endpoint: str = Field(
        "",
        description="OTLP over HTTP: http://collector:4318; empty: OTEL_EXPORTER_OTLP_ENDPOINT, else localhost",
    )
    headers: SecretStr = Field(
        SecretStr(""), description="sent with it: name=value[,name=value...]; besides OTEL_EXPORTER_OTLP_HEADERS"
    )

    @model_validator(mode="after")
    def _over_http(self) -> Self:
        if self.endpoint and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise BadInputError(
                "CRM_REPLAY_TRACING_ENDPOINT is not an HTTP URL",
                "like http://collector:4318; OTLP over gRPC is not supported",
            )
        return self

    @property
    def url(self) -> str | None:
        """Return the URL to which spans are posted; None: from OpenTelemetry's own variables."""
        base = self.endpoint.rstrip("/")
        return None if not base else base if base.endswith(TRACES_PATH) else base + TRACES_PATH


class Work:
    """A piece of work that is not traced; `schemas.process.spans.Followed` is one that is."""

    __slots__ = ()
    followed = False

    @property
    def headers(self) -> Headers | None:
        """The headers for the records that the work produces."""
        return None

    def step(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context for a part of the work; an exception that leaves it ends the work."""
        return _NO_STEP

    def headers_after(self, context: bytes) -> Headers | None:  # noqa: ARG002
        """Return the headers for output from records with this `traceparent`."""
        return None

    def end(self, **attributes: Attribute) -> None:
        """End the work."""


class Traces:
    """The traces that a process begins or continues; this one has none."""

    on = False

    def begin(self, name: str, **attributes: Attribute) -> Work:  # noqa: ARG002
        """Return work that begins a trace, if it is sampled."""
        return UNTRACED

    def follow(self, name: str, contexts: Collection[bytes], **attributes: Attribute) -> Work:  # noqa: ARG002
        """Return work that continues each trace among these `traceparent`s, SPANS_MAX at most."""
        return UNTRACED

    def close(self) -> None:
        """Export the remaining spans and stop; takes two seconds at most."""


_NO_STEP: AbstractContextManager[None] = nullcontext()
UNTRACED = Work()
OFF = Traces()


def start(process: str, **about: str | int) -> Traces:
    """Return the traces of this process; `about` (account, job_id, run) become attributes of each span.

    Raises BadInputError for invalid settings.
    """
    settings = TracingSettings.load()
    if not settings.sample_ratio:
        return OFF
    from schemas.process.spans import Recorded  # imports OpenTelemetry

    return Recorded(process, settings, {f"crm_replay.{name}": value for name, value in about.items() if value != ""})


class Piece(NamedTuple):
    """Consecutive records with the same trace context, b"" for none."""

    begin: int
    end: int
    context: bytes


def context_of(headers: Iterable[tuple[str, Any]] | None) -> bytes:
    """Return the `traceparent` among a record's headers, b"" if there is none."""
    for name, value in headers or ():
        if name == TRACEPARENT and isinstance(value, bytes):
            return value
    return b""


def pieces_of(headers: Iterable[Iterable[tuple[str, Any]] | None]) -> list[Piece]:
    """Return the pieces of records, given by their headers, in order."""
    pieces: list[Piece] = []
    begin, at, before = 0, 0, b""
    for at, of_record in enumerate(headers, 1):
        context = context_of(of_record)
        if at > 1 and context != before:
            pieces.append(Piece(begin, at - 1, before))
            begin = at - 1
        before = context
    return [*pieces, Piece(begin, at, before)] if at else []
