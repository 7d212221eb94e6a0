"""`python -m producer`: the snapshot of one run, from its saved cursors to its end markers.

Environment: CRM_REPLAY_JOB, `schemas.process.connections.Connections`, `producer.settings.ProducerSettings`.
Exit codes: 0 done; 1 an outage or a defect, start again; 2 bad input; 5 stopped on request (SIGTERM, SIGINT). After any
end, SIGKILL included, a restart continues from the saved cursors.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing

from producer import markers
from producer.audits import AuditReader, connect, resolve
from producer.checkpoint import Checkpoint
from producer.core import RecordKeys
from producer.cursor import next_number, share_out
from producer.messages import Encoder
from producer.parallel import end_with_parent, ranges_of_run, read_in_children, split_for
from producer.publisher import Publisher
from producer.session import INTERRUPTIONS_MAX
from producer.settings import RunSettings
from producer.snapshot import Bounds, Snapshot
from producer.throttle import Pacer, Throttle
from producer.topics import check_topic, message_bytes_max
from schemas.errors import ReplayError, worker_exit_code
from schemas.process import logs, tracing
from schemas.process.connections import Connections
from schemas.process.exposition import PORT_VARIABLE, serving
from schemas.process.liveness import Liveness, Watchdog
from schemas.process.mongodb import open_database
from schemas.process.registry import codec_for
from schemas.process.waiting import StoppedError, stop_on_signals
from schemas.source.mapping import load
from schemas.vocabulary import ExitCode

logger = logging.getLogger("producer")

GC_THRESHOLD = 100_000  # allocations minus deallocations; a page of 500 rows has about 2,000 objects


def run(only: frozenset[int], stop: threading.Event) -> None:
    """Read the whole run and publish its end markers; or read `only` these id ranges, in a child process."""
    settings = RunSettings.load()
    job = settings.job
    # One read is repeated where recovery interrupts it, and each attempt may take the time limit.
    longest_read_s = (INTERRUPTIONS_MAX + 1) * settings.statement_timeout_s
    liveness = Liveness(max(settings.stalled_after_s, longest_read_s))
    stalled: list[ReplayError] = []

    def stopping() -> bool:
        """Return whether to stop; polled between pages, and in every wait."""
        liveness.turned()
        if stalled:
            raise stalled[0]
        return stop.is_set()

    logs.bind(account=job.company_sso_id, job_id=job.job_id, run=job.run)
    connections = Connections()
    connections.require("crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url")
    traces = tracing.start("producer", account=job.company_sso_id, job_id=job.job_id, run=job.run)
    kafka, topic = connections.kafka(), job.topics.replay
    check_topic(kafka, topic, job.partitions)
    record_bytes = message_bytes_max(kafka, topic)
    codec = codec_for(connections.schema_registry_url)
    mapping = load(job.mapping_path)
    with connect(connections.crm_audit_database_url, settings.statement_timeout_s) as db:
        source = resolve(db, mapping, job.company_sso_id)
    database = open_database(connections, app_name="crm-replay producer")
    with (
        ExitStack() as open_,
        database.client,
        closing(
            AuditReader(
                connections.crm_audit_database_url, source, job.cutoff, settings.limits(record_bytes), job.writers
            )
        ) as reader,
        closing(Publisher(kafka, topic, record_bytes)) as publisher,
    ):
        open_.callback(traces.close)
        open_.callback(Watchdog((liveness.check,), stalled.append).start().close)
        checkpoint = Checkpoint(database, job.job_id, job.run, job.fence)
        if not only:
            checkpoint.take_over()
        snapshot = Snapshot(
            reader,
            Encoder(codec, RecordKeys(mapping.person).key, topic, job.run, record_bytes),
            publisher,
            checkpoint,
            Bounds(job.top_audit_id, job.snapshot_xmax, settings.horizon_wait_s, settings.checkpoint_rows),
            stop=stopping,
            liveness=liveness,
            pause=Pacer(
                Throttle(settings.throttle()),
                reader.replica_lag,
                time.monotonic,
                time.sleep,
                logger.info,
                stop=stopping,
            ).after_page,
            traces=traces,
        )
        snapshot.counters.top_audit_id = job.top_audit_id
        # A child takes any free port and a name of its own: the environment has its parent's.
        environ: Mapping[str, str] = os.environ
        if only and os.environ.get(PORT_VARIABLE):
            name = f"{os.environ.get('CRM_REPLAY_WORKER') or 'producer'}-{min(only)}"
            environ = {**os.environ, PORT_VARIABLE: "0", "CRM_REPLAY_WORKER": name}
        about = {"account": job.company_sso_id, "job_id": job.job_id, "run": str(job.run)}
        open_.enter_context(
            serving("producer", snapshot.counters.values, about=about, liveness=liveness, environ=environ)
        )
        ranges = ranges_of_run(checkpoint, 0, job.top_audit_id)  # the survey has refused ids below 1
        if only:
            for range_ in ranges:
                if range_.id_range in only:
                    snapshot.read(range_)
            return
        ranges = split_for(settings.id_ranges, ranges, next_number(checkpoint.load()), checkpoint, reader.spread)
        lots = share_out(ranges, settings.id_ranges)
        if len(lots) > 1:
            # The readers share the rate limit: each child reads its part of it from this variable.
            os.environ["CRM_REPLAY_SOURCE_ROWS_PER_S"] = str(settings.throttle(len(lots)).rows_per_s)
            read_in_children(lots, stop=stopping)
        else:
            for range_ in ranges:
                snapshot.read(range_)
        snapshot.read_late_rows(checkpoint.load())
        markers.end(kafka, topic, job.partitions, job_id=job.job_id, run=job.run, codec=codec)
        logger.info("done: %s", snapshot.counters)


def main() -> int:
    """Return the exit code."""
    try:
        logs.configure("producer")
    except ReplayError as error:
        logger.error("%s", error)
        return error.exit_code
    only = frozenset(int(number) for number in sys.argv[1:])
    if only:
        end_with_parent()
    # Rows are freed by reference counting; with the default thresholds the collector would scan them several times a
    # page, which takes a fifth of the time.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        with stop_on_signals() as stop:
            run(only, stop)
    except StoppedError:
        logger.info("stopped on request; a restart continues from the saved cursor")
        return ExitCode.STOPPED
    except ReplayError as error:
        logger.error("%s", error)
        return worker_exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
