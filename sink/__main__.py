"""Wiring of one sink process: `python -m sink`. Exit codes: 0 done or stopped, 1 defect, 2 bad input, 3 halted,
4 a topic was deleted and created again.
"""

import gc
import logging
import sys
from functools import partial

from schemas.errors import ReplayError, ServiceUnreachableError, worker_exit_code
from schemas.process import logs, tracing
from schemas.process.connections import Connections
from schemas.process.exposition import serving
from schemas.process.mongodb import Database, connect
from schemas.process.registry import codec_for
from schemas.process.waiting import Deadline, retrying, stop_on_signals
from sink.consumer import Sink
from sink.effects import EffectHook, no_hook
from sink.feed import sink as live
from sink.replay import replay_parts
from sink.settings import SinkSettings

CONNECT_EVERY_S = 1.0
GC_THRESHOLD = 50_000  # a batch creates some ten thousand objects, none of them in cycles


def connect_patiently(connections: Connections, patience_s: float) -> Database:
    """Return the database; retried for `patience_s`, as a sink may restart during an outage."""

    def passes(error: ServiceUnreachableError) -> bool:
        logging.getLogger("sink").warning("%s; retrying", error.what)
        return True

    return retrying(
        partial(connect, connections, app_name="crm-replay-sink"),
        ServiceUnreachableError,
        Deadline(patience_s),
        CONNECT_EVERY_S,
        passes=passes,
    )


def main(hook: EffectHook = no_hook) -> int:
    """Run a sink until it ends; return the exit code."""
    try:
        logs.configure("sink")
        settings = (live.LiveSinkSettings if live.is_wanted() else SinkSettings).load()
        job = settings.job
        logs.bind(account=job.company_sso_id, job_id=job.job_id, run=job.run)
        connections = Connections()
        connections.require("kafka_bootstrap_servers", "mongodb_url")
        traces = tracing.start("sink", account=job.company_sso_id, job_id=job.job_id, run=job.run)
        database = connect_patiently(connections, settings.sink_patience_s)
        try:
            kafka, codec = connections.kafka(), codec_for(connections.schema_registry_url)
            parts = (
                partial(live.feed_parts, settings.job) if isinstance(settings, live.LiveSinkSettings) else replay_parts
            )
            sink = Sink(settings, kafka, database, codec, parts, hook=hook, traces=traces)
            gc.freeze()  # objects of the imports are permanent: the collector skips them
            gc.set_threshold(GC_THRESHOLD)
            about = {"account": job.company_sso_id, "job_id": job.job_id, "run": str(job.run)}
            with (
                stop_on_signals(sink.stopping),
                serving("sink", sink.metrics.values, about=about, liveness=sink.liveness),
            ):
                sink.run()
        finally:
            database.client.close()
            traces.close()
    except ReplayError as error:
        logging.getLogger("sink").error("%s", error)
        return worker_exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
