"""A trace, and spans that stay in the test's process."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from schemas.process.spans import Recorded
from schemas.process.tracing import TracingSettings

PAGE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Kept(SpanExporter):
    """Keeps what was to be sent."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Here:
    """The traces of a process, and what they were."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._kept = Kept()
        about = {"crm_replay.account": "acme"}
        self.traces = Recorded("sink", TracingSettings(sample_ratio=ratio), about, self._kept)

    def spans(self) -> list[ReadableSpan]:
        """Return all spans, sent: nothing can be recorded after this."""
        self.traces.close()
        return self._kept.spans


def context(trace: int, span: int) -> bytes:
    return f"00-{trace:032x}-{span:016x}-01".encode()
