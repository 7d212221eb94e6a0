"""The endpoints' resources: the database, Kafka's lag, and threads for blocking calls to servers.

pymongo and confluent-kafka block, so they are called in threads. Four pools, so that slow calls do not
delay quick ones: status reads and small writes; requests that also query the source or Kafka (a trigger counts contacts
for seconds); reads of the console's live events; roll backs, which take minutes. Each queue is bounded: an unavailable
server fills none of them for long.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pymongo.errors import PyMongoError, ServerSelectionTimeoutError, WaitQueueTimeoutError

from ops.control.envelope import ApiError, RespCode
from ops.control.settings import ControlSettings
from ops.jobs.requests import Control, RequestRefusedError
from ops.jobs.store import JobStore
from ops.kafka.lag import LagReader
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.process.connections import Connections
from schemas.process.mongodb import open_database
from sink.writer import NotAnsweredError

T = TypeVar("T")

WAITING_MAX = 32  # calls a thread that wait for one; what is behind them would be answered too late to be of use
WATCHING_THREADS = 8
READ_MAX_S = 10.0
DOWN_S = 1.0  # after a server was found unavailable, other requests fail at once
RETRY_AFTER = {"retry-after": "5"}


class Pool:
    """Threads for calls that block, and a bound on how many wait for one."""

    def __init__(self, name: str, threads: int, *, waiting_max: int = WAITING_MAX) -> None:
        """`waiting_max` is per thread."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._calls_max = threads * (1 + waiting_max)
        self._calls = 0
        self._lock = threading.Lock()

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the function returns, or raise what it raises. ApiError 503 if too many wait already."""
        if self._calls >= self._calls_max:
            raise unavailable("too many requests wait")
        with self._lock:
            self._calls += 1
        future = self._threads.submit(function, *args, **kwargs)
        future.add_done_callback(self._ended)  # of the thread's own future: the thread is busy until then
        return await asyncio.wrap_future(future)

    def _ended(self, _future: object) -> None:
        with self._lock:
            self._calls -= 1

    def close(self) -> None:
        """Refuse new calls; running ones finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Backend:
    """One process's connections and threads."""

    def __init__(self, settings: ControlSettings, connections: Connections) -> None:
        """Connects to nothing yet: the control plane starts while MongoDB is away, and reports it at /readyz."""
        self.settings = settings
        self.connections = connections
        self.database = open_database(connections, app_name="crm-replay-control")
        self.control = Control(
            self.database, connections, mapping_path=settings.mapping_path, partitions=settings.partitions
        )
        self.store = JobStore(self.database)
        self.lag = LagReader(connections.kafka())
        self.quick = Pool("control-quick", settings.threads)
        self.slow = Pool("control-slow", settings.threads)
        self.watching = Pool("control-watch", WATCHING_THREADS)
        self.rollbacks = Pool("control-rollback", settings.rollbacks_max)
        self.stopping = threading.Event()
        self._down_until = 0.0

    async def read(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something quick that queries MongoDB only; raises ApiError for an error, or a server that hangs."""
        try:
            return await asyncio.wait_for(self._call(self.quick, function, *args, **kwargs), READ_MAX_S)
        except TimeoutError:
            raise unavailable("MongoDB does not answer in time") from None

    async def query(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something that may take seconds; raises ApiError for an error."""
        return await self._call(self.slow, function, *args, **kwargs)

    async def look(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a read of the live events; raises ApiError for an error."""
        return await self._call(self.watching, function, *args, **kwargs)

    async def _call(self, pool: Pool, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if time.monotonic() < self._down_until:
            raise unavailable("MongoDB does not answer")
        try:
            return await pool.call(function, *args, **kwargs)
        except (PyMongoError, ReplayError) as error:
            if isinstance(error, ServerSelectionTimeoutError) and not isinstance(error, WaitQueueTimeoutError):
                self._down_until = time.monotonic() + DOWN_S
            answer = answer_to(error)
            if answer is None:
                raise
            raise answer from error

    def close(self) -> None:
        """Release everything; roll backs stop after their present batch."""
        self.stopping.set()
        for pool in (self.quick, self.slow, self.watching, self.rollbacks):
            pool.close()
        self.database.client.close()


def unavailable(why: str) -> ApiError:
    """Return the answer to a request that can be repeated a little later."""
    return ApiError(503, RespCode.SERVICE_UNAVAILABLE, f"{why}; try again in a few seconds", headers=RETRY_AFTER)


def answer_to(error: Exception) -> ApiError | None:
    """Return the answer to an error, or None for a defect of ours or an unforeseen state."""
    if isinstance(error, RequestRefusedError):
        return ApiError(error.http_status, error.resp_code, str(error), meta=error.meta)
    if isinstance(error, ServiceUnreachableError):
        return unavailable(error.what)
    if isinstance(error, NotAnsweredError) or kind_of(error) is ServiceUnreachableError:
        return unavailable("MongoDB does not answer")
    if isinstance(error, BadInputError):
        return ApiError(400, RespCode.VALIDATION_ERROR, str(error))
    return None
