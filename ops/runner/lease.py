"""I/O: the lease under which a runner holds a job, the errors that end a run, and the terms of release after each."""

import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pymongo
from pymongo.errors import PyMongoError

from ops.jobs.jobs import LEASE_S, IllegalTransitionError, Job
from ops.jobs.migrations import MigrationRefusedError
from ops.jobs.store import JobChangedError, JobStore, LeaseLostError
from producer.survey import UnreplayableIdsError
from schemas.errors import ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.mongodb import open_database
from schemas.vocabulary import ExitCode, JobStatus
from sink.failure_rate import what_to_do

RENEW_EVERY_S = 1.0
ANSWER_MAX_S = 3.0  # of MongoDB while workers run: a longer wait would outlast the lease
QUICK_STOP_S = 2.0
# Without a renewal for so long the processes are stopped: noticing and stopping has to fit into the rest of the lease.
SILENCE_MAX_S = LEASE_S - ANSWER_MAX_S - QUICK_STOP_S - 1.0
ATTEMPTS_MAX = 5  # of runners, in a row, that made no progress with a job
PAUSE_MAX_S = 60.0  # between them


class InterruptedRunError(ReplayError):
    """The run was interrupted; it can be resumed."""

    exit_code = ExitCode.INTERRUPTED


class HaltedError(ReplayError):
    """Too many records failed."""


class OutageError(ReplayError):
    """A server was away for too long; the job can be resumed."""


class SilentError(Exception):
    """The lease has not been renewed for too long; whether it is still held is known once the database answers."""


def halted_by(job: Job) -> HaltedError:
    """Return the error of a halted job, with the operator's next step."""
    to_do = f"crm-replay resume --account {job.company_sso_id} continues it"
    if job.partial:  # a resume is of the account's own job
        to_do = "no other run contains its rows: request them again once the cause is fixed"
    elif job.failure_halt:
        to_do = what_to_do(job.company_sso_id)
    return HaltedError(f"the job is halted: {job.error}", to_do)


def interrupted() -> InterruptedRunError:
    """Return the error of an interrupted run."""
    return InterruptedRunError("interrupted", "the same command resumes from here")


@dataclass(frozen=True, slots=True)
class Terms:
    """How an unfinished job is released: after which pause it may be claimed again, or that it has failed."""

    pause_s: float = 0.0
    attempts: int = 0
    error: str | None = None
    fail: bool = False

    def in_words(self) -> str:
        """Return it as the end of a sentence."""
        if self.fail:
            return "the job has failed; resume it once the cause is fixed"
        return f"again in {self.pause_s:.0f} s" if self.pause_s else "the job is free"


def terms_after(error: BaseException, before: Job, now: Job) -> Terms | None:
    """Return the terms on which a job is released after an error; None if its document is complete already.

    An outage is retried indefinitely. Anything else is retried up to ATTEMPTS_MAX times in a row without progress;
    then the job has failed, with the error. A replay of chosen rows fails at once: only the caller knows which rows,
    so no other runner can continue it.
    """
    if isinstance(error, (HaltedError, JobChangedError, IllegalTransitionError)):
        return None
    if isinstance(error, UnreplayableIdsError):  # a retry would find the same ids
        return Terms(attempts=now.attempts + 1, error=str(error), fail=True)
    if before.partial:
        return Terms(attempts=now.attempts, error=_in_words(error), fail=True)
    if isinstance(error, InterruptedRunError) or not isinstance(error, Exception):
        return Terms(attempts=now.attempts, error=_in_words(error))
    progressed = (now.run, now.records_migrated + now.records_skipped + now.records_failed) != (
        before.run,
        before.records_migrated + before.records_skipped + before.records_failed,
    )
    attempts = 1 if progressed else now.attempts + 1
    text = _in_words(error)
    outage = isinstance(error, (ServiceUnreachableError, OutageError, MigrationRefusedError))
    if attempts >= ATTEMPTS_MAX and not outage:
        return Terms(attempts=attempts, error=text, fail=True)
    return Terms(min(PAUSE_MAX_S, 2.0 ** (attempts - 1)), attempts, text)


def _in_words(error: BaseException) -> str:
    """Return an error as the job's document keeps it: of a defect, whose text may be personal, only its location."""
    if isinstance(error, ReplayError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(where[-1].filename).name}, line {where[-1].lineno}" if where else ""
    return f"ended by {type(error).__name__}{place}"


def release(store: JobStore, job: Job, terms: Terms) -> None:
    """Release a job on these terms; do nothing if another runner owns it, or if it is no longer in progress."""
    try:
        if terms.fail:
            store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED, terms.error or "", fence=job.fence)
    except JobChangedError:
        terms = Terms()
    store.release(job, pause_s=terms.pause_s, attempts=terms.attempts, error=terms.error)


class Lease:
    """Renews the job's lease every second, over a connection of its own; releases the job at the end."""

    def __init__(
        self,
        connections: Connections,
        job: Job,
        *,
        renew_every_s: float = RENEW_EVERY_S,
        silence_max_s: float = SILENCE_MAX_S,
    ) -> None:
        """Renewal begins with the `with`. After an error the job is released on the terms of `terms_after`.

        After `silence_max_s` without a renewal the run's processes have to be stopped.
        """
        self.job = job
        self.silence_max_s = silence_max_s
        self._renew_every_s = renew_every_s
        self._database = open_database(connections, app_name="crm-replay-lease")
        self._store = JobStore(self._database)
        self._over = threading.Event()
        self._lost: LeaseLostError | None = None
        self._renewed_at = _uptime()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Begin to renew."""
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        """Stop renewing and release the job. Raises nothing: the caller reports the error that ended the run."""
        self._over.set()
        self._thread.join()
        # If MongoDB does not answer, the job can be claimed once the lease has run out.
        with suppress(PyMongoError, JobChangedError), pymongo.timeout(ANSWER_MAX_S):
            self._release(error)
        self._database.client.close()

    def _release(self, error: BaseException | None) -> None:
        now = self._store.get(self.job.job_id) if error is not None else None
        terms = terms_after(error, self.job, now) if error is not None and now is not None else None
        release(self._store, self.job, terms or Terms())

    @property
    def renewed_lately(self) -> bool:
        """Whether the lease holds for long enough to stop every process within it."""
        return _uptime() - self._renewed_at < self.silence_max_s

    @property
    def lost(self) -> bool:
        """Whether another runner has taken the job over."""
        return self._lost is not None

    def check(self, stop: threading.Event) -> None:
        """Raise LeaseLostError if another runner has taken the job over, InterruptedRunError if `stop` is set."""
        if self._lost is not None:
            raise self._lost
        if stop.is_set():
            raise interrupted()

    def _renew(self) -> None:
        while not self._over.wait(self._renew_every_s):
            asked_at = _uptime()
            try:
                with pymongo.timeout(ANSWER_MAX_S):
                    self._store.renew(self.job)
                self._renewed_at = asked_at
            except LeaseLostError as error:
                self._lost = error
                return
            except PyMongoError:  # an outage: the next renewal may succeed, the main thread reports
                continue


def _uptime() -> float:
    """Return seconds that pass while the machine sleeps, too, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
