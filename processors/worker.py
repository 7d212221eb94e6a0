"""One worker from its start to its end: the app with its tables, until a signal, the end markers, or a failure."""

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Mapping

from processors.app import BatchHandler, BeforeAck, Parts, ReplayApp, Surroundings, add_agent, build_app
from processors.metrics import ProcessorMetrics
from processors.outcomes import OutcomeProducer
from processors.settings import ProcessorSettings
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.exposition import serving
from schemas.process.liveness import Liveness, Watchdog
from schemas.process.metrics import Value
from schemas.process.registry import codec_for
from schemas.process.topic_watch import KafkaQuestions, TopicWatch
from schemas.process.tracing import OFF, Traces

log = logging.getLogger(__name__)

GC_THRESHOLD = 50_000  # a batch makes some thousand objects, none of them in cycles
STOP_TIMEOUT_S = 9.0  # with the steps after it, well below the 15 s after which the supervisor kills
FLUSH_TIMEOUT_S = 2.0
TURN_EVERY_S = 1.0


class WorkerFailedError(ReplayError):
    """The worker cannot continue; what it had not acknowledged is delivered again, to the next owner."""


async def run_worker(
    settings: ProcessorSettings,
    connections: Connections,
    parts: Callable[[Surroundings], Parts],
    before_ack: BeforeAck | None = None,
    traces: Traces = OFF,
) -> None:
    """Return after SIGTERM, SIGINT or (if the settings say so) the last end marker, with everything committed.

    Raises ReplayError for everything that keeps the worker from continuing.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    job = settings.job
    metrics = ProcessorMetrics()
    codec = codec_for(connections.schema_registry_url)
    app = build_app(settings, connections, codec, metrics)
    made = parts(Surroundings(app, settings, connections, codec, metrics))
    app.high_water = made.high_water
    app.fetch_bytes_min = made.fetch_bytes_min
    producer = OutcomeProducer(connections.kafka(), job.topics.outcomes, settings.delivery_timeout_s)
    add_agent(app, job.topics.replay, BatchHandler(app, made, producer, metrics, before_ack, traces))
    watch = TopicWatch(
        KafkaQuestions(connections.kafka()),
        job.topics.replay,
        (job.topics.outcomes, *(table.changelog_topic_name for table in app.tables.values())),
        group=job.topics.processors_group,
        topic_id=made.topic_id,
        to_do=made.topic_replaced_to_do,
        positions=lambda: app.resting_positions() if app.liveness.ready else None,
    )

    def gather() -> None:
        metrics.table_load_s = app.tables.load_s
        metrics.table_entries = {name: len(table) for name, table in app.tables.items()}
        metrics.table_rejects = sum(table.rejects for table in app.tables.values())
        metrics.transformation = made.counts()

    try:
        if made.topic_id:
            await asyncio.to_thread(watch.check_now)  # before the offsets of a replaced topic are used
        gc.collect()
        gc.freeze()  # present objects stay: the collector need not visit them again
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        about = {"account": job.company_sso_id, "job_id": job.job_id, "run": str(job.run)}
        await serve_measured(app, stop, metrics, gather, settings.metrics_interval_s, about, watch)
    finally:
        await asyncio.to_thread(producer.close, FLUSH_TIMEOUT_S)
        await made.aclose()


async def serve_measured(
    app: ReplayApp,
    stop: asyncio.Event,
    metrics: ProcessorMetrics,
    gather: Callable[[], None],
    interval_s: float,
    about: Mapping[str, str],
    watch: TopicWatch,
) -> None:
    """Run the app as `serve` does, with its metrics logged at every interval, at the end, and served to Prometheus.

    `gather` updates `metrics` with the counts of other parts; `about` are the labels of the process. A replaced topic
    found by `watch` ends it.
    """

    def values() -> list[Value]:
        gather()
        return metrics.values()

    tasks = [asyncio.create_task(report(metrics, gather, interval_s)), asyncio.create_task(turning(app.liveness))]
    loop = asyncio.get_running_loop()

    def end_with(error: ReplayError) -> None:
        loop.call_soon_threadsafe(lambda: loop.create_task(app.crash(error)))

    watchdog = Watchdog((app.liveness.check, watch.check_now), end_with).start()
    try:
        with serving("processors", values, about=about, liveness=app.liveness):
            await serve(app, stop)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(watchdog.close)
        gather()
        metrics.report()


async def turning(liveness: Liveness) -> None:
    """Note that the event loop turns, until cancelled."""
    while True:
        liveness.turned()
        await asyncio.sleep(TURN_EVERY_S)


async def serve(app: ReplayApp, stop: asyncio.Event) -> None:
    """Run the app until `stop`, its end, or its failure; then leave the group."""
    app.finalize()
    began = time.monotonic()
    crashed = asyncio.create_task(app.crashed_event().wait())
    ends = [crashed, asyncio.create_task(stop.wait()), asyncio.create_task(app.ended.wait())]
    starting = asyncio.create_task(app.start())
    try:
        await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            _raise_clearly(starting.exception())
            app.liveness.ready = True
            log.info("worker of group %s started in %.1f s", app.conf.id, time.monotonic() - began)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        failed = crashed.done()
        app.leaving = not failed
        for end in ends:
            end.cancel()
        starting.cancel()
        stopped = await _stop(app)
    if failed:
        _raise_clearly(app.crash_reason or RuntimeError("unknown reason"))
    if not stopped:
        raise WorkerFailedError(
            f"the worker did not stop within {STOP_TIMEOUT_S:.0f} s", "what it had not committed is handled again"
        )


def _raise_clearly(error: BaseException | None) -> None:
    """Raise the error, if there is one, as a ReplayError."""
    if error is None:
        return
    if isinstance(error, ReplayError):
        raise error
    raise WorkerFailedError(f"the worker failed ({type(error).__name__}: {error})", "") from error


async def _stop(app: ReplayApp) -> bool:
    """Stop the app; False if that takes too long: the process ends anyway."""
    stopping = asyncio.create_task(app.stop())
    done, _ = await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    if stopping in done and not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.warning("while stopping: %s: %s", type(error).__name__, error)
    return bool(done)


async def report(metrics: ProcessorMetrics, update: Callable[[], None], interval_s: float) -> None:
    """Log the metrics at every interval, until cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        update()
        metrics.report()
