import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import partial

from processors.app import Parts, Surroundings
from processors.replay import replay_parts
from processors.settings import ProcessorSettings, connections
from processors.worker import run_worker
from schemas.errors import ReplayError, worker_exit_code
from schemas.process import logs, tracing


async def _run() -> None:
    settings: ProcessorSettings
    parts: Callable[[Surroundings], Parts]
    about: dict[str, str | int]
    if os.environ.get("CRM_REPLAY_LIVE"):
        from processors.feed.worker import LiveSettings, feed_parts  # with MongoDB's client: not for a replay

        settings = LiveSettings.load()
        parts = partial(feed_parts, settings.job)
        about = {"feed": settings.job.feed, "run": settings.job.run}
    else:
        settings = ProcessorSettings.load()
        parts = replay_parts
        job = settings.job
        about = {"account": job.company_sso_id, "job_id": job.job_id, "run": job.run}
    servers = connections()
    logs.bind(**about)
    traces = tracing.start("processors", **about)
    try:
        await run_worker(settings, servers, parts, traces=traces)
    finally:
        await asyncio.to_thread(traces.close)


def main() -> int:
    try:
        logs.configure("processors")
        asyncio.run(_run())
    except ReplayError as error:
        logging.getLogger("processors").error("%s", error)  # the one line an operator reads
        return worker_exit_code(error)
    return 0


if __name__ == "__main__":
    code = main()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        os._exit(code)  # a thread of Faust's that could not be stopped must not keep the process
    sys.exit(code)
