"""I/O: reads what Prometheus is told of jobs and enrichments. At most every few seconds, however often it asks."""

import threading
import time

from ops.control.backend import Backend
from ops.control.console_state import ConsoleState
from ops.control.dead_letters import State
from ops.control.job_metrics import enrichment_values, job_values
from ops.control.jobs import Job
from schemas.errors import ReplayError
from schemas.metrics import ACCOUNTS_MAX, Value
from schemas.vocabulary import JobStatus
from sink.database import Document
from sink.indexes import ENRICHMENTS

FRESH_S = 2.0
JOBS_READ_MAX = 4 * ACCOUNTS_MAX  # the last started; accounts beyond them have not moved for long
LETTERS_FRESH_S = 30.0  # of an account: its dead letters are read and compared with what became of their rows
LETTERS_ACCOUNTS_MAX = 50  # the last changed
RESTING_LAG_FRESH_S = 30.0


class JobMetrics:
    """The jobs' values as they were a moment ago; safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        """Nothing is read yet."""
        self._backend = backend
        self._state = ConsoleState(backend)
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._values: list[Value] = []
        self._waiting: dict[str, tuple[float, int]] = {}

    def read(self) -> list[Value]:
        """Return the values; raises pymongo's errors. A Kafka that does not answer leaves its values out."""
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH_S:
                self._values = self._look()
                self._read_at = time.monotonic()
            return self._values

    def _look(self) -> list[Value]:
        jobs = [job for job in self._backend.store.jobs(limit=JOBS_READ_MAX) if not job.partial]
        recent: dict[str, Job] = {}
        for job in sorted(jobs, key=lambda job: job.updated_at, reverse=True):
            recent.setdefault(job.company_sso_id, job)
        lags: dict[str, dict[str, int]] = {}
        waiting: dict[str, int] = {}
        for account, job in list(recent.items())[:LETTERS_ACCOUNTS_MAX]:
            running = job.status is JobStatus.IN_PROGRESS
            lag = self._backend.lag.of(account, FRESH_S if running else RESTING_LAG_FRESH_S)
            stages = {"processors": lag.processors, "sink": lag.sink}
            lags[account] = {stage: records for stage, records in stages.items() if records is not None}
            if lag.dead_letters is not None:
                waiting[account] = self._letters_waiting(account) if lag.dead_letters else 0
        return [*job_values(jobs, lags, waiting), *enrichment_values(self._enrichments())]

    def _enrichments(self) -> list[Document]:
        """Return the enrichments that were heard of last; of one that is silent, when that was."""
        found = self._backend.database[ENRICHMENTS].find({}, {"audit_ids": 0, "settings": 0})
        return list(found.sort("updated_at", -1).limit(ACCOUNTS_MAX))

    def _letters_waiting(self, account: str) -> int:
        known = self._waiting.get(account)
        if known is not None and time.monotonic() - known[0] < LETTERS_FRESH_S:
            return known[1]
        try:
            count = self._state.letters_page(account, None, None, 1).states[State.WAITING.value]
        except ReplayError:  # Kafka has gone meanwhile
            return known[1] if known else 0
        self._waiting[account] = (time.monotonic(), count)
        return count
