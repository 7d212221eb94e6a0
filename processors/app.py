"""The Faust app of one account and job: replay topic -> outcomes topic.

A run is transformed and its outcomes are on their way while the confirmations of the run before are awaited; runs are
acknowledged strictly in order, each after its own outcomes are confirmed.

What a replay and a live feed do differently is handed in as `Parts`: `processors.replay` and `processors.feed.worker`
make them, and declare the app's tables.
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
from processors.batching import Run, RunApp, Stretch
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from processors.outcomes import Delivery, Message, OutcomeProducer
from processors.settings import ProcessorSettings
from processors.tables import STORE, ReferenceTable, ReferenceTableManager, TablesFirst
from schemas.codec import Codec
from schemas.process.connections import Connections
from schemas.process.tracing import OFF, UNTRACED, Piece, Traces, Work, pieces_of

log = logging.getLogger(__name__)

RUNS_ON_THEIR_WAY_MAX = 2
RUNS_BUFFERED_MAX = 4  # fetched and waiting: bounds memory, and what a rebalance throws away
FETCH_BYTES_MAX = 2 * 1024 * 1024  # of a partition, as they are on the wire
HEARTBEAT_MAX_S = 1.5  # how soon the others notice that somebody joins or leaves

BeforeAck = Callable[[Run], None]
Prepare = Callable[[Sequence[SourceRecord], Sequence[Any]], Awaitable[Sequence[Any]]]
Batched = Callable[[Sequence[Message]], Sequence[Message]]


def each_alone(outcomes: Sequence[Message]) -> Sequence[Message]:
    """Return outcomes as they are: each is a record."""
    return outcomes


class RecordTransformer(Protocol):
    """What records are, and which outcomes they have. Pure but for the clock that dates dead letters."""

    def decode(self, records: Sequence[SourceRecord]) -> Sequence[Any]:
        """Return what each record is, in order."""

    def outcomes(
        self, records: Sequence[SourceRecord], decoded: Sequence[Any], partition: int, high: HighWater
    ) -> list[Message]:
        """Return key and value of every outcome, in order; `high` has moved on to the end of the run."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop and its parts have in common."""

    app: "ReplayApp"
    settings: ProcessorSettings
    connections: Connections
    codec: Codec
    metrics: ProcessorMetrics


@dataclass(frozen=True, slots=True)
class Parts:
    """What a replay and a live feed do differently."""

    transformer: RecordTransformer
    prepare: Prepare  # has answered what a run's rows will ask and I/O has to fetch; returns what the records then are
    high_water: Callable[[str], HighWater]  # of a partition, from the note at its committed offset
    counts: Callable[[], dict[str, int]]  # what the parts count beside the outcomes
    aclose: Callable[[], Awaitable[None]]
    topic_replaced_to_do: str  # for the operator
    topic_id: str = ""  # Kafka's id of the topic that is meant; "": the one that is there at the start
    begins_traces: bool = False  # a run that came without a trace may begin one
    batched: Batched = each_alone  # returns the records that are sent for a run's outcomes
    fetch_bytes_min: int = 1  # RunApp.fetch_bytes_min


class ReplayApp(RunApp):
    """Keeps what this worker knows of its partitions; ends by itself when told to stop at the end markers."""

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
        **kwargs: Any,
    ) -> None:
        """`kafka` (confluent-kafka's configuration), `codec` and `load_timeout_s` are for the app's tables."""
        self.kafka = kafka
        self.codec = codec
        self.load_timeout_s = load_timeout_s
        super().__init__(*args, store=STORE, GlobalTable=ReferenceTable, TableManager=ReferenceTableManager, **kwargs)
        self.ended = asyncio.Event()
        self.high_waters: dict[Stretch, HighWater] = {}
        self._metrics = metrics
        self._exit_at_end = exit_at_end

    async def on_stop(self) -> None:
        """Stop the tables first of all services, as Faust does where they start last."""
        await super().on_stop()
        await self.tables.stop()

    async def on_stretches(self, stretches: Mapping[Any, Stretch]) -> None:
        """Take up the published high-water of each partition from where it was committed."""
        self.high_waters = {stretch: self.high_water(stretch.begin_note) for stretch in stretches.values()}
        self._metrics.rebalances += 1
        log.info(
            "assigned %s",
            ", ".join(f"{tp.partition} from {stretch.begin}" for tp, stretch in sorted(stretches.items())) or "nothing",
        )
        self.check_end()

    def check_end(self) -> None:
        """Set `ended` if every assigned partition has passed its end marker and only then."""
        # Beyond, for a moment: a run can be handled before the consumer, which handed it over, notes that it has.
        handled = all(stretch.handled >= stretch.delivered for stretch in self.high_waters)
        if self._exit_at_end and self.high_waters and handled and all(h.ended for h in self.high_waters.values()):
            self.ended.set()


class RunHandler:
    """Handles runs one after the other, with the confirmations of the last ones outstanding."""

    def __init__(
        self,
        app: ReplayApp,
        parts: Parts,
        producer: OutcomeProducer,
        metrics: ProcessorMetrics,
        before_ack: BeforeAck | None = None,
        traces: Traces = OFF,
    ) -> None:
        """`before_ack` sees each run after its outcomes are confirmed and before it is acknowledged (tests)."""
        self._app = app
        self._parts = parts
        self._transformer = parts.transformer
        self._producer = producer
        self._metrics = metrics
        self._before_ack = before_ack
        self._traces = traces
        self._settling: deque[asyncio.Task[None]] = deque()

    async def handle(self, event: Any) -> None:
        """Transform a run and send its outcomes; it is acknowledged in the background, after the runs before it.

        Raises whatever made this run or one before it fail: then the worker has to end, and nothing was acknowledged.
        """
        began = time.perf_counter()
        self._metrics.first_run_at = self._metrics.first_run_at or began
        while len(self._settling) >= RUNS_ON_THEIR_WAY_MAX or (self._settling and self._settling[0].done()):
            await self._settling[0]
            self._settling.popleft()
        self._metrics.deliver_s += time.perf_counter() - began
        run: Run = event.value
        high = self._app.high_waters.get(run.stretch)
        if high is None:
            event.ack()  # of a former assignment: not handled, so this moves nothing; its new owner gets it again
            return
        self._app.tables.check()
        pieces, work = self._traced(run) if self._traces.on else ((), UNTRACED)
        began = time.perf_counter()
        with work.step("decode"):
            decoded = self._transformer.decode(run.records)
        self._metrics.transform_s += time.perf_counter() - began
        with work.step("look up"):
            decoded = await self._parts.prepare(run.records, decoded)
        began = time.perf_counter()
        with work.step("transform"):
            if work.followed:
                deliveries = [self._send_piece(run, decoded, piece, high, work) for piece in pieces]
            else:
                outcomes = self._transformer.outcomes(run.records, decoded, run.partition, high)
                messages = self._parts.batched(outcomes)
                deliveries = [self._producer.send(messages, len(messages), run.partition)]
        self._metrics.transform_s += time.perf_counter() - began
        self._metrics.runs += 1
        before = self._settling[-1] if self._settling else None
        task = asyncio.create_task(self._settle(event, deliveries, high.note(), before, work))
        task.add_done_callback(self._end_on_failure)
        self._settling.append(task)

    def _traced(self, run: Run) -> tuple[Sequence[Piece], Work]:
        """Return the run's records by the trace context they came with, and the work that goes on with it."""
        pieces = pieces_of(record.headers for record in run.records)
        work = self._traces.follow("run", [piece.context for piece in pieces], **of_run(run))
        if not work.followed and self._parts.begins_traces:
            work = self._traces.begin("run", **of_run(run))
        return pieces, work

    def _send_piece(self, run: Run, decoded: Sequence[Any], piece: Piece, high: HighWater, work: Work) -> Delivery:
        """Send the outcomes of a traced run's records that came with the same trace context; it goes on with them."""
        part = slice(piece.begin, piece.end)
        outcomes = self._transformer.outcomes(run.records[part], decoded[part], run.partition, high)
        messages = self._parts.batched(outcomes)
        return self._producer.send(messages, len(messages), run.partition, work.headers_after(piece.context))

    async def _settle(
        self, event: Any, deliveries: Sequence[Delivery], note: str, before: asyncio.Task[None] | None, work: Work
    ) -> None:
        with work.step("confirm"):
            if before is not None:
                await before
            for delivery in deliveries:
                await self._producer.confirmed(delivery)
        work.end()
        run: Run = event.value
        if self._before_ack is not None:
            self._before_ack(run)
        run.set_handled(note)
        self._metrics.last_ack_at = time.perf_counter()
        event.ack()  # dying before this line repeats the run; the sink absorbs what it has already
        self._app.check_end()

    def _end_on_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._app.loop.create_task(self._app.crash(error))


def of_run(run: Run) -> dict[str, str | int]:
    """Return what a run's span says of it: where it was read, and how many records it has of whatever page."""
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": run.topic,
        "messaging.destination.partition.id": str(run.partition),
        "messaging.batch.message_count": len(run.records),
        "crm_replay.offset": run.begin,
    }


def kafka_url(bootstrap_servers: str) -> list[str]:
    """Return Faust's broker URLs for a list of `host:port`."""
    return [f"kafka://{server.strip()}" for server in bootstrap_servers.split(",") if server.strip()]


def credentials(connections: Connections) -> "faust.auth.Credentials | None":
    """Return how Faust logs in to Kafka: what `Connections.kafka()` says to confluent-kafka, in its own words."""
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
        run_records_max=settings.run_records_max,
        run_bytes_max=settings.run_bytes_max,
        broker=kafka_url(connections.kafka_bootstrap_servers),
        broker_credentials=credentials(connections),
        consumer_group_instance_id=settings.worker,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=min(HEARTBEAT_MAX_S, settings.session_timeout_s / 4),
        broker_commit_interval=settings.commit_interval_s,
        broker_max_poll_records=settings.run_records_max * RUNS_BUFFERED_MAX,
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        stream_buffer_maxsize=RUNS_BUFFERED_MAX,
        agent_supervisor=mode.CrashingSupervisor,
    )


def add_agent(app: ReplayApp, topic: str, handler: RunHandler) -> None:
    """Have `handler` handle the runs of `topic`."""

    async def transform_audit_runs(runs: "faust.StreamT[Run]") -> None:
        async for event in runs.noack().events():  # acks are ours alone: Faust's own would come with any exception
            try:
                await handler.handle(event)
            except Exception as error:
                await app.crash(error)  # the worker ends; what was not acknowledged is delivered again
                raise

    app.agent(app.run_topic(topic), concurrency=1, name="processors.transform_audit_runs")(transform_audit_runs)
