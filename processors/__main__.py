import asyncio
import logging
import os
import sys
import threading

from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.answers import TableLookups
from processors.lookups.directory import UserDirectory
from processors.settings import ProcessorSettings, connections
from processors.worker import run_worker
from schemas.codec import Codec
from schemas.errors import ReplayError, worker_exit_code
from schemas.process import logs
from schemas.source import mapping


async def _run() -> None:
    if os.environ.get("CRM_REPLAY_LIVE"):
        from processors.feed.worker import LiveSettings, run_live_worker  # with MongoDB's client: not for a replay

        feed = LiveSettings.load()
        logs.bind(feed=feed.job.feed, run=feed.job.run)
        await run_live_worker(feed, connections())
        return
    settings = ProcessorSettings.load()
    servers = connections()
    job = settings.job
    logs.bind(account=job.company_sso_id, job_id=job.job_id, run=job.run)
    transformer = Transformer(mapping.load(job.mapping_path), job.company_sso_id)

    def rows_with(lookups: TableLookups, codec: Codec) -> RowEncoder:
        return RowEncoder(transformer, lookups, codec, job.run)

    async with UserDirectory(servers.user_directory_url, job.company_sso_id) as directory:

        def counts() -> dict[str, int]:
            of_directory = {f"directory.{name}": count for name, count in directory.counts.as_dict().items()}
            return {**transformer.counts.as_dict(), **of_directory}

        known = directory if servers.user_directory_url else None
        await run_worker(settings, servers, rows_with, documents.encode, known, counts)


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
