"""Traces: what became of one page of rows, from its read to the bulk write, across the processes.

Off unless CRM_REPLAY_TRACING_SAMPLE_RATIO says otherwise: then a process holds `OFF`, whose work nobody follows, and
nothing of OpenTelemetry is imported; what is recorded is in `schemas.process.spans`. The producer draws lots for each
page, and only the records of a page that was drawn carry a header, the W3C's `traceparent`; processors and sinks go on
with what they find there, and hand it on.
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
SPANS_MAX = 64  # of one piece of work: of a run or batch with records of more pages than that the rest is left out
Headers = list[tuple[str, str | bytes | None]]  # as Kafka's clients have it
Attribute = str | int | float | bool


class TracingSettings(EnvironmentSettings):
    """Whether and where a process reports its part of the traces; the same for all processes of a replay."""

    model_config = SettingsConfigDict(env_prefix="CRM_REPLAY_TRACING_")

    sample_ratio: float = Field(
        0.0, ge=0, le=1, description="part of the pages that are traced, 0 to 1; 0: tracing is off in this process"
    )
    endpoint: str = Field(
        "",
        description="OTLP over HTTP: http://collector:4318; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says, else localhost",
    )
    headers: SecretStr = Field(
        SecretStr(""), description="sent with it: name=value[,name=value...]; besides OTEL_EXPORTER_OTLP_HEADERS"
    )

    @model_validator(mode="after")
    def _over_http(self) -> Self:
        if self.endpoint and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise BadInputError(
                "CRM_REPLAY_TRACING_ENDPOINT is no URL of HTTP",
                "like http://collector:4318; OTLP over gRPC is not spoken",
            )
        return self

    @property
    def url(self) -> str | None:
        """Return where spans are posted; None: OpenTelemetry's own variables say so."""
        base = self.endpoint.rstrip("/")
        return None if not base else base if base.endswith(TRACES_PATH) else base + TRACES_PATH


class Work:
    """A piece of work that nobody follows; `schemas.process.spans` has the one that is recorded."""

    __slots__ = ()
    followed = False

    @property
    def headers(self) -> Headers | None:
        """The headers for the records that the work makes."""
        return None

    def step(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context for a part of the work; an exception that leaves it is the end of the work."""
        return _NO_STEP

    def headers_after(self, context: bytes) -> Headers | None:  # noqa: ARG002
        """Return the headers for what is made of records that came with this `traceparent`."""
        return None

    def end(self, **attributes: Attribute) -> None:
        """Say that it is done."""


class Traces:
    """What a process can begin or go on with; this one does neither."""

    on = False

    def begin(self, name: str, **attributes: Attribute) -> Work:  # noqa: ARG002
        """Return work that begins a trace, if the lot falls on it."""
        return UNTRACED

    def follow(self, name: str, contexts: Collection[bytes], **attributes: Attribute) -> Work:  # noqa: ARG002
        """Return work that goes on with each trace among these `traceparent`s; more than SPANS_MAX it leaves out."""
        return UNTRACED

    def close(self) -> None:
        """Report what is left to report, and stop; takes two seconds at most."""


_NO_STEP: AbstractContextManager[None] = nullcontext()
UNTRACED = Work()
OFF = Traces()


def start(process: str, **about: str | int) -> Traces:
    """Return the traces of this process; `about` (account, job_id, run) become attributes of each span.

    Raises BadInputError for settings that cannot be used.
    """
    settings = TracingSettings.load()
    if not settings.sample_ratio:
        return OFF
    from schemas.process.spans import Recorded  # OpenTelemetry: only for who wants it

    return Recorded(process, settings, {f"crm_replay.{name}": value for name, value in about.items() if value != ""})


class Piece(NamedTuple):
    """Neighbours among records that have the same trace context, b"" for none."""

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
    """Return records, given by their headers, as pieces in their order."""
    pieces: list[Piece] = []
    begin, at, before = 0, 0, b""
    for at, of_record in enumerate(headers, 1):
        context = context_of(of_record)
        if at > 1 and context != before:
            pieces.append(Piece(begin, at - 1, before))
            begin = at - 1
        before = context
    return [*pieces, Piece(begin, at, before)] if at else []
