"""The Faust app of one account and job: replay topic -> outcomes topic.

A batch is transformed and its outcomes are sent while the confirmations of the previous batch are awaited; batches are
acknowledged strictly in order, each after its own outcomes are confirmed.

What a replay and a live feed do differently is passed in as `Parts`: `processors.replay` and `processors.feed.worker`
build them, and declare the app's tables.
"""

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import faust
import mode

from processors.batches import SourceRecord
from processors.batching import Assignment, Batch, BatchApp
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import Delivery, Message, OutcomeProducer
from processors.settings import ProcessorSettings
from processors.tables import STORE, ReferenceTable, ReferenceTableManager, TablesFirst
from schemas.codec import Codec
from schemas.process.connections import Connections
from schemas.process.liveness import Liveness
from schemas.process.tracing import OFF, UNTRACED, Piece, Traces, Work, pieces_of

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT_MAX = 2
BATCHES_BUFFERED_MAX = 4  # fetched and waiting: bounds memory, and what a rebalance discards
FETCH_BYTES_MAX = 2 * 1024 * 1024  # of a partition, on the wire
HEARTBEAT_MAX_S = 1.5  # how soon the others notice that a member joins or leaves

BeforeAck = Callable[[Batch], None]
Prepare = Callable[[Sequence[SourceRecord], Sequence[Any]], Awaitable[Sequence[Any]]]
Batched = Callable[[Sequence[Message]], Sequence[Message]]


def each_alone(outcomes: Sequence[Message]) -> Sequence[Message]:
    """Return outcomes as they are: each is a record."""
    return outcomes


class RecordTransformer(Protocol):
    """Decodes records and makes their outcomes. Pure but for the clock that dates dead letters."""

    def decode(self, records: Sequence[SourceRecord]) -> Sequence[Any]:
        """Return what each record is, in order."""

    def outcomes(
        self, records: Sequence[SourceRecord], decoded: Sequence[Any], partition: int, high: HighWater
    ) -> list[Message]:
        """Return key and value of every outcome, in order; `high` has advanced to the end of the batch."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop and its parts share."""

    app: "ReplayApp"
    settings: ProcessorSettings
    connections: Connections
    codec: Codec
    metrics: ProcessorMetrics


@dataclass(frozen=True, slots=True)
class Parts:
    """What a replay and a live feed do differently."""

    transformer: RecordTransformer
    prepare: Prepare  # fetches by I/O what the rules will look up for a batch's rows; returns the decoded records
    high_water: Callable[[str], HighWater]  # of a partition, from the note at its committed offset
    counts: Callable[[], dict[str, int]]  # what the parts count in addition to the outcomes
    aclose: Callable[[], Awaitable[None]]
    topic_replaced_to_do: str  # for the operator
    topic_id: str = ""  # Kafka's id of the topic to read; "": of the one present at the start
    begins_traces: bool = False  # a batch without a trace context may begin a trace
    batched: Batched = each_alone  # returns the records that are sent for a batch's outcomes
    fetch_bytes_min: int = 1  # BatchApp.fetch_bytes_min


class ReplayApp(BatchApp):
    """Keeps the state of this worker's partitions; ends by itself if it is to stop at the end markers."""

    BootStrategy = TablesFirst
    high_water: Callable[[str], HighWater]  # of the parts

    def __init__(
        self,
        *args: Any,
        metrics: ProcessorMetrics,
        exit_at_end: bool,
        kafka: Mapping[str, Any],
        codec: Codec,
        load_timeout_s: float,
        liveness: Liveness,
        **kwargs: Any,
    ) -> None:
        """`kafka` (confluent-kafka's configuration), `codec` and `load_timeout_s` are for the app's tables."""
        self.kafka = kafka
        self.codec = codec
        self.load_timeout_s = load_timeout_s
        self.liveness = liveness
        super().__init__(*args, store=STORE, GlobalTable=ReferenceTable, TableManager=ReferenceTableManager, **kwargs)
        self.ended = asyncio.Event()
        self.high_waters: dict[Assignment, HighWater] = {}
        self._metrics = metrics
        self._exit_at_end = exit_at_end

    async def on_stop(self) -> None:
        """Stop the tables before all other services, as Faust does where they start last."""
        await super().on_stop()
        await self.tables.stop()

    async def on_assignments(self, assignments: Mapping[Any, Assignment]) -> None:
        """Restore the published high-water mark of each partition from its committed offset."""
        self.high_waters = {assignment: self.high_water(assignment.begin_note) for assignment in assignments.values()}
        self._metrics.rebalances += 1
        log.info(
            "assigned %s",
            ", ".join(f"{tp.partition} from {assignment.begin}" for tp, assignment in sorted(assignments.items()))
            or "nothing",
        )
        self.check_end()

    def check_end(self) -> None:
        """Set `ended` if every assigned partition has passed its end marker, and only then."""
        # Beyond, for a moment: a batch can be handled before the consumer has noted that it was delivered.
        handled = all(assignment.handled >= assignment.delivered for assignment in self.high_waters)
        if self._exit_at_end and self.high_waters and handled and all(h.ended for h in self.high_waters.values()):
            self.ended.set()


class BatchHandler:
    """Handles batches one after the other, with the confirmations of the latest ones outstanding."""

    def __init__(
        self,
        app: ReplayApp,
        parts: Parts,
        producer: OutcomeProducer,
        metrics: ProcessorMetrics,
        before_ack: BeforeAck | None = None,
        traces: Traces = OFF,
    ) -> None:
        """`before_ack` sees each batch after its outcomes are confirmed and before it is acknowledged (tests)."""
        self._app = app
        self._parts = parts
        self._transformer = parts.transformer
        self._producer = producer
        self._metrics = metrics
        self._before_ack = before_ack
        self._traces = traces
        self._settling: deque[asyncio.Task[None]] = deque()

    async def handle(self, event: Any) -> None:
        """Transform a batch and send its outcomes; it is acknowledged in the background, after the earlier ones.

        Raises the error of this batch or of an earlier one: then the worker has to end, and nothing was acknowledged.
        """
        began = time.perf_counter()
        self._metrics.first_batch_at = self._metrics.first_batch_at or began
        while len(self._settling) >= BATCHES_IN_FLIGHT_MAX or (self._settling and self._settling[0].done()):
            await self._settling[0]
            self._settling.popleft()
        self._metrics.deliver_s += time.perf_counter() - began
        batch: Batch = event.value
        high = self._app.high_waters.get(batch.assignment)
        if high is None:
            event.ack()  # of a former assignment: not handled, so this advances nothing; its new owner receives it
            return
        self._app.tables.check()
        pieces, work = self._traced(batch) if self._traces.on else ((), UNTRACED)
        began = time.perf_counter()
        with work.step("decode"):
            decoded = self._transformer.decode(batch.records)
        self._metrics.transform_s += time.perf_counter() - began
        with work.step("look up"):
            decoded = await self._parts.prepare(batch.records, decoded)
        began = time.perf_counter()
        with work.step("transform"):
            if work.followed:
                deliveries = [self._send_piece(batch, decoded, piece, high, work) for piece in pieces]
            else:
                outcomes = self._transformer.outcomes(batch.records, decoded, batch.partition, high)
                messages = self._parts.batched(outcomes)
                deliveries = [self._producer.send(messages, len(messages), batch.partition)]
        self._metrics.transform_s += time.perf_counter() - began
        self._metrics.batches += 1
        before = self._settling[-1] if self._settling else None
        task = asyncio.create_task(self._settle(event, deliveries, high.note(), before, work))
        task.add_done_callback(self._end_on_failure)
        self._settling.append(task)

    def _traced(self, batch: Batch) -> tuple[Sequence[Piece], Work]:
        """Return the batch's records by the trace context they came with, and the work that continues it."""
        pieces = pieces_of(record.headers for record in batch.records)
        work = self._traces.follow("run", [piece.context for piece in pieces], **of_batch(batch))
        if not work.followed and self._parts.begins_traces:
            work = self._traces.begin("run", **of_batch(batch))
        return pieces, work

    def _send_piece(self, batch: Batch, decoded: Sequence[Any], piece: Piece, high: HighWater, work: Work) -> Delivery:
        """Send the outcomes of a batch's records that came with the same trace context, which they continue."""
        part = slice(piece.begin, piece.end)
        outcomes = self._transformer.outcomes(batch.records[part], decoded[part], batch.partition, high)
        messages = self._parts.batched(outcomes)
        return self._producer.send(messages, len(messages), batch.partition, work.headers_after(piece.context))

    async def _settle(
        self, event: Any, deliveries: Sequence[Delivery], note: str, before: asyncio.Task[None] | None, work: Work
    ) -> None:
        with work.step("confirm"):
            if before is not None:
                await before
            for delivery in deliveries:
                await self._producer.confirmed(delivery)
        work.end()
        batch: Batch = event.value
        if self._before_ack is not None:
            self._before_ack(batch)
        batch.set_handled(note)
        self._metrics.last_ack_at = time.perf_counter()
        self._app.liveness.progressed()
        event.ack()  # dying before this line repeats the batch; the sink absorbs the repetition
        self._app.check_end()

    def _end_on_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._app.loop.create_task(self._app.crash(error))


def of_batch(batch: Batch) -> dict[str, str | int]:
    """Return the attributes of a batch's span: where it was read, and its number of records, of any page."""
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": batch.topic,
        "messaging.destination.partition.id": str(batch.partition),
        "messaging.batch.message_count": len(batch.records),
        "crm_replay.offset": batch.begin,
    }


def kafka_url(bootstrap_servers: str) -> list[str]:
    """Return Faust's broker URLs for a list of `host:port`."""
    return [f"kafka://{server.strip()}" for server in bootstrap_servers.split(",") if server.strip()]


def credentials(connections: Connections) -> "faust.auth.Credentials | None":
    """Return how Faust logs in to Kafka: Faust's form of what `Connections.kafka()` is for confluent-kafka."""
    context = None
    if connections.kafka_tls:
        context = ssl.create_default_context(cafile=connections.kafka_ssl_ca_file or None)
        if connections.kafka_ssl_certificate_file:
            context.load_cert_chain(
                connections.kafka_ssl_certificate_file,
                connections.kafka_ssl_key_file,
                connections.kafka_ssl_key_password.get_secret_value() or None,
            )
    if connections.kafka_sasl:
        return faust.SASLCredentials(
            username=connections.kafka_sasl_username,
            password=connections.kafka_sasl_password.get_secret_value(),
            mechanism=connections.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def build_app(
    settings: ProcessorSettings, connections: Connections, codec: Codec, metrics: ProcessorMetrics
) -> ReplayApp:
    """Return the account's app without its tables and agent; inside a running event loop."""
    return ReplayApp(
        settings.job.topics.processors_group,
        metrics=metrics,
        exit_at_end=settings.exit_at_end,
        kafka=connections.kafka(),
        codec=codec,
        load_timeout_s=settings.load_timeout_s,
        liveness=Liveness(settings.stalled_after_s),
        batch_records_max=settings.run_records_max,
        batch_bytes_max=settings.run_bytes_max,
        broker=kafka_url(connections.kafka_bootstrap_servers),
        broker_credentials=credentials(connections),
        consumer_group_instance_id=settings.worker,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=min(HEARTBEAT_MAX_S, settings.session_timeout_s / 4),
        broker_commit_interval=settings.commit_interval_s,
        broker_max_poll_records=settings.run_records_max * BATCHES_BUFFERED_MAX,
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        stream_buffer_maxsize=BATCHES_BUFFERED_MAX,
        agent_supervisor=mode.CrashingSupervisor,
    )


def add_agent(app: ReplayApp, topic: str, handler: BatchHandler) -> None:
    """Register `handler` for the batches of `topic`."""

    async def transform_audit_batches(batches: "faust.StreamT[Batch]") -> None:
        async for event in batches.noack().events():  # the handler acks: Faust's own ack would come with any exception
            try:
                await handler.handle(event)
            except Exception as error:
                await app.crash(error)  # the worker ends; what was not acknowledged is delivered again
                raise

    app.agent(app.batch_topic(topic), concurrency=1, name="processors.transform_audit_batches")(transform_audit_batches)
