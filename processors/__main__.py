import asyncio
import logging
import os
import sys
import threading

from processors import documents
from processors.directory import UserDirectory
from processors.lookups import TableLookups
from processors.settings import ProcessorSettings, connections
from processors.transform import Transformer
from processors.worker import Transform, run_worker
from schemas import mapping
from schemas.errors import ReplayError

NOISY = ("aiokafka", "faust", "mode", "httpx")


async def _run() -> None:
    settings = ProcessorSettings.load()
    level = logging.getLevelNamesMapping()[settings.log_level]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if level > logging.DEBUG:
        for name in NOISY:
            logging.getLogger(name).setLevel(max(level, logging.WARNING))
    servers = connections()
    job = settings.job
    transformer = Transformer(mapping.load(job.mapping_path), job.company_sso_id)

    def transform_with(lookups: TableLookups) -> Transform:
        return lambda event: transformer.transform(event, lookups)

    async with UserDirectory(servers.user_directory_url, job.company_sso_id) as directory:

        def counts() -> dict[str, int]:
            of_directory = {f"directory.{name}": count for name, count in directory.counts.as_dict().items()}
            return {**transformer.counts.as_dict(), **of_directory}

        known = directory if servers.user_directory_url else None
        await run_worker(settings, servers, transform_with, documents.encode, known, counts)


def main() -> int:
    try:
        asyncio.run(_run())
    except ReplayError as error:
        print(f"processors: {error}", file=sys.stderr)  # noqa: T201 - the one line an operator reads
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        os._exit(code)  # a thread of Faust's that could not be stopped must not keep the process
    sys.exit(code)
