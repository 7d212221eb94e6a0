"""I/O: reads the metrics of jobs and enrichments. At most every few seconds, however often Prometheus scrapes.

The jobs' states have to be exposed when Kafka is away or slow, too: that is when they are needed. So the queries to
Kafka have a budget, within which accounts take turns, and a Kafka that does not respond is not queried for a while.
"""

import datetime as dt
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from ops.control.backend import Backend
from ops.control.console_state import ConsoleState
from ops.control.job_metrics import enrichment_values, job_values
from ops.jobs.jobs import Job
from ops.jobs.letters import State
from ops.kafka.lag import Lag
from schemas.collections import ENRICHMENTS
from schemas.errors import ReplayError
from schemas.process.metrics import ACCOUNTS_MAX, Value
from schemas.process.mongodb import Document
from schemas.vocabulary import JobStatus

FRESH_S = 2.0
JOBS_READ_MAX = 4 * ACCOUNTS_MAX  # the last started; accounts beyond them have not moved for long
LETTERS_FRESH_S = 30.0  # of an account: its dead letters are read and compared with the state of their rows
LETTERS_ACCOUNTS_MAX = 50  # the last changed
RESTING_LAG_FRESH_S = 30.0  # of a job that is not in progress
KAFKA_BUDGET_S = 2.0  # of one scrape; with the query in flight, it stays below the time-out of a scrape
KAFKA_SLOW_S = 1.5  # of one account: then Kafka does not answer
KAFKA_AWAY_S = 15.0
KAFKA_KNOWN_S = 120.0  # how long an account's values are used while it is not its turn


class _Seen(NamedTuple):
    """Kafka's values of an account, and when they were queried."""

    at: float
    lags: Mapping[str, int]  # by stage
    waiting: int | None  # dead letters; None: not known


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
        self._seen: dict[str, _Seen] = {}  # by account: Kafka's values
        self._away_until = float("-inf")

    @property
    def known(self) -> list[Value]:
        """The values that were read last; none before the first read."""
        return self._values

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
        self._query_kafka(dict(list(recent.items())[:LETTERS_ACCOUNTS_MAX]))
        lags = {account: seen.lags for account, seen in self._seen.items()}
        waiting = {account: seen.waiting for account, seen in self._seen.items() if seen.waiting is not None}
        gone = {account: job.updated_at for account, job in recent.items() if job.status is JobStatus.ROLLED_BACK}
        enrichments = [each for each in self._enrichments() if not _is_over(each, gone)]
        return [*job_values(jobs, lags, waiting), *enrichment_values(enrichments)]

    def _query_kafka(self, accounts: Mapping[str, Job]) -> None:
        """Query the accounts whose turn it is, as many as the budget allows; keep the known values of the others."""
        began = time.monotonic()
        self._seen = {
            account: seen
            for account, seen in self._seen.items()
            if account in accounts and began - seen.at < KAFKA_KNOWN_S
        }
        if began < self._away_until:
            return
        due: dict[str, float] = {}
        for account, job in accounts.items():
            known = self._seen.get(account)
            fresh_s = FRESH_S if job.status is JobStatus.IN_PROGRESS else RESTING_LAG_FRESH_S
            due[account] = known.at + fresh_s if known else float("-inf")
        for account in sorted((account for account, at in due.items() if at <= began), key=due.__getitem__):
            queried_at = time.monotonic()
            if queried_at - began > KAFKA_BUDGET_S:
                return
            lag = self._backend.lag.of(account)
            if lag == Lag() and time.monotonic() - queried_at > KAFKA_SLOW_S:
                self._seen, self._away_until = {}, time.monotonic() + KAFKA_AWAY_S
                return
            stages = {"processors": lag.processors, "sink": lag.sink}
            lags = {stage: records for stage, records in stages.items() if records is not None}
            waiting = self._letters_waiting(account) if lag.dead_letters else lag.dead_letters
            self._seen[account] = _Seen(queried_at, lags, waiting)

    def _enrichments(self) -> list[Document]:
        """Return the enrichments that were updated last."""
        found = self._backend.database[ENRICHMENTS].find({}, {"audit_ids": 0, "settings": 0})
        return list(found.sort("updated_at", -1).limit(ACCOUNTS_MAX))

    def _letters_waiting(self, account: str) -> int:
        known = self._waiting.get(account)
        if known is not None and time.monotonic() - known[0] < LETTERS_FRESH_S:
            return known[1]
        try:
            count = self._state.letters_page(account, None, None, 1).states[State.WAITING.value]
        except ReplayError:  # Kafka has become unavailable
            return known[1] if known else 0
        self._waiting[account] = (time.monotonic(), count)
        return count


def _is_over(enrichment: Document, rolled_back_at: Mapping[str, dt.datetime]) -> bool:
    """Whether the account has been rolled back since, and with it the documents that were enriched."""
    updated_at: dt.datetime = enrichment["updated_at"]
    aware = updated_at if updated_at.tzinfo else updated_at.replace(tzinfo=dt.UTC)
    return (gone := rolled_back_at.get(str(enrichment["_id"]))) is not None and aware <= gone
