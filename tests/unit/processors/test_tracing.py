"""A batch with records of several pages: each outcome continues the trace of its record, or without any."""

from collections.abc import Sequence
from typing import Any, cast

from processors.app import BatchHandler
from processors.batching import Batch
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import Delivery, OutcomeProducer
from schemas.process.tracing import Headers, context_of
from tests.support.bench import TP, Bench, Event, parts
from tests.support.tracing import PAGE, Here, context
from tests.support.waiting import in_loop

FIRST, SECOND = context(1, 11), context(2, 21)


class Record:
    def __init__(self, number: int, headers: Sequence[tuple[str, bytes]]) -> None:
        self.number = number
        self.headers = headers


class OneToOne:
    """Every record has an outcome with its number, but those that were published before."""

    def decode(self, records: Sequence[Record]) -> list[int]:
        return [record.number for record in records]

    def outcomes(self, records: Sequence[Record], decoded: Sequence[int], _: int, high: HighWater) -> list[Any]:
        assert [record.number for record in records] == decoded
        return [(b"", b"%d" % number) for number in decoded if not high.is_republished(0, number)]


class Sent:
    def __init__(self) -> None:
        self.outcomes: list[tuple[int, bytes]] = []

    def send(self, messages: Any, count: int, partition: int, headers: Headers | None = None) -> Delivery:
        assert (count, partition) == (len(messages), 0)
        self.outcomes += [(int(value), context_of(headers)) for _, value in messages]
        return Delivery(0)

    async def confirmed(self, delivery: Delivery) -> None:
        assert delivery.done


@in_loop
async def handled(here: Here, records: Sequence[Record]) -> list[tuple[int, bytes]]:
    bench = Bench()
    sent = Sent()
    app, producer = cast("Any", bench.app), cast("OutcomeProducer", sent)
    handler = BatchHandler(app, parts(OneToOne()), producer, ProcessorMetrics(), None, here.traces)
    event = Event(Batch(TP, records, 1, 1 + len(records), bench.assignment), bench.acked)
    await handler.handle(event)
    await bench.settle()
    assert bench.acked == [1]
    return sent.outcomes


def test_each_outcome_goes_on_with_the_trace_of_its_record() -> None:
    here = Here()
    drawn, other = [("traceparent", FIRST)], [("traceparent", SECOND), ("else", b"x")]
    headers = [drawn, [], drawn, other, other, [("traceparent", PAGE[:-1] + b"0")], drawn]
    outcomes = handled(here, [Record(number, each) for number, each in enumerate(headers, 1)])
    runs = {
        f"{span.context.trace_id:032x}": f"{span.context.span_id:016x}"
        for span in here.spans()
        if span.name == "run" and span.context
    }
    assert set(runs) == {f"{1:032x}", f"{2:032x}"}
    first, second = (f"00-{trace}-{span}-01".encode() for trace, span in sorted(runs.items()))
    assert outcomes == [(1, first), (2, b""), (3, first), (4, second), (5, second), (6, b""), (7, first)]


def test_a_run_without_a_drawn_page_is_sent_as_ever() -> None:
    here = Here()
    assert handled(here, [Record(1, []), Record(2, [])]) == [(1, b""), (2, b"")]
    assert here.spans() == []


def test_a_republished_row_does_not_move_the_trace_of_those_behind_it() -> None:
    here = Here()
    outcomes = handled(here, [Record(5, []), Record(5, [("traceparent", FIRST)]), Record(6, [("traceparent", FIRST)])])
    assert [(number, bool(of)) for number, of in outcomes] == [(5, False), (6, True)]
    assert len([span for span in here.spans() if span.name == "run"]) == 1


def test_a_feeds_run_goes_on_with_the_trace_it_came_with_or_begins_one() -> None:
    here = Here()
    nothing: Any = None
    of_a_feed = parts(nothing, begins_traces=True)
    handler = BatchHandler(nothing, of_a_feed, nothing, ProcessorMetrics(), None, here.traces)
    assignment = Bench().assignment

    def traced(*headers: Sequence[tuple[str, bytes]]) -> bytes:
        records = [Record(number, each) for number, each in enumerate(headers)]
        pieces, work = handler._traced(Batch(TP, records, 1, 2, assignment))
        contexts = {context_of(work.headers_after(piece.context)) for piece in pieces}
        work.end()
        return b" ".join(sorted(contexts))

    assert traced([("traceparent", FIRST)]).startswith(FIRST[:36])
    begun, again = traced([("__debezium", b"x")], []), traced([])
    assert len(begun) == len(again) == len(FIRST)
    assert begun[:36] != again[:36]
    assert {span.parent is None for span in here.spans()} == {True, False}
    rarely = Here(ratio=1e-9)
    handler._traces = rarely.traces
    assert traced([]) == b""
