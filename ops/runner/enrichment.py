"""The enrichment of a run: between the last end marker and the validation, which comes last.

So a completed job is an enriched one, and a runner that dies here leaves a job in progress that the next runner claims:
it finds every partition ended and resumes the enrichment from its cursor (ops.enrich.run). An error of the enrichment
never fails the run: after some retries the run is validated without it, and its job has the enrichment as pending, with
the reason. During an outage it waits as the run does.

A run enriches the rows that it covers: all up to its `top`, those from its cutoff on, or the chosen ones of a retry, a
repair or a rerun of rows. Names come from the reference table that the run has published, so they are the names in its
other documents; names missing there are looked up in the source.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo.errors import OperationFailure, PyMongoError

from ops.enrich.run import Enrichment, EnrichOptions, Referents, Run, Scope
from ops.jobs.enrichments import EnrichmentState, counts_of, in_words, view_of
from ops.jobs.jobs import Job
from ops.jobs.store import JobChangedError, JobStore
from ops.progress import RunView
from processors.lookups.tables import ReferenceTables
from producer.cursor import EARLIEST, Gap
from schemas.codec import Codec
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.client_errors import kind_of, server_of
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.process.waiting import Deadline
from schemas.server_state import NOT_LET_IN
from schemas.source.mapping import SourceMapping
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from sink.writer import NotAnsweredError

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # between tries: half a minute, as long as a server takes to restart
SAVE_EVERY_S = 1.0
TABLE_TIMEOUT_S = 60.0
TABLE_ROWS_MAX = 500_000  # kept in memory, about 100 MB; for an account with more, names are read from the source


@dataclass(frozen=True, slots=True)
class Place:
    """What a run's enrichment works with."""

    connections: Connections
    database: Database
    store: JobStore
    mapping: SourceMapping
    codec: Codec


class _StopError(Exception):
    """This runner has to stop, because of its `__cause__`; without one, the job was halted."""


class RunEnrichment:
    """The enrichment of one run by one runner."""

    def __init__(
        self,
        job: Job,
        gaps: Sequence[Gap] | None,
        place: Place,
        view: RunView,
        check: Callable[[], None],
        wait: Callable[[Exception], None],
        answers: Callable[[], None] = lambda: None,
    ) -> None:
        """`gaps` are the chosen rows of a partial replay, None where it covers all from its cutoff to its top.

        `check` raises when this runner has to stop. `wait` is called repeatedly during an outage of MongoDB; it raises
        when that has lasted too long, counted from the first call or the last of `answers`, which is called when the
        enrichment has progressed.
        """
        self._job = job
        self._gaps = None if gaps is None else tuple(gaps)
        self._place = place
        self._view = view
        self._check = check
        self._wait = wait
        self._answers = answers
        self._cursor: int | None = None
        self._saved_at = float("-inf")

    def run(self) -> Job:
        """Enrich, and return the job with the result; if it was halted meanwhile, as halted."""
        if self._gaps == () or (self._job.enrichment or {}).get("state") == EnrichmentState.DONE:
            return self._job  # no rows, or done before a runner died
        failed = 0
        while True:
            try:
                self._note(EnrichmentState.RUNNING, self._job.enrichment or {})
                counts = self._enrich()
                break
            except _StopError as stop:
                if stop.__cause__ is not None:
                    raise stop.__cause__ from None
                return self._job
            except JobChangedError:
                raise
            except Exception as error:  # of any kind: the copy is complete without the enrichment
                if _mongodb_is_away(error):
                    self._wait(error)
                    continue
                if failed >= len(PAUSES_S) or not _may_pass(error):
                    log.warning(
                        "the enrichment is given up (%s)",
                        _text_of(error),
                        exc_info=None if isinstance(error, ReplayError | PyMongoError) else error,
                    )
                    return self._give_up(error)
                self._view.note(f"retrying the enrichment: {_text_of(error)}")
                self._pause(PAUSES_S[failed])
                failed += 1
        return self._finish(EnrichmentState.DONE, counts)

    def off(self) -> Job:
        """Return the job, with the enrichment of its run marked as off."""
        return self._finish(EnrichmentState.OFF, {})

    def _enrich(self) -> dict[str, Any]:
        job, place = self._job, self._place
        scope = Scope(
            run=job.run,
            fence=max(1, job.fence),
            top=job.top_audit_id,
            cutoff=EARLIEST if job.date_range_start is None else job.cutoff,
            gaps=self._gaps,
        )
        with Run(
            job.company_sso_id,
            scope,
            EnrichOptions(),
            place.connections,
            place.database,
            place.mapping,
            self._view,
            table=self._table,
            on_step=self._step,
        ) as run:
            return counts_of(run.enrich())

    def _step(self, state: Enrichment) -> None:
        """Save the progress from time to time; check each time whether this runner may continue."""
        if self._cursor not in (None, state.cursor):
            self._answers()
        self._cursor = state.cursor
        try:
            self._check()
        except Exception as error:
            raise _StopError from error
        if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._note(EnrichmentState.RUNNING, counts_of(state))
            if self._job.status is JobStatus.HALTED:
                raise _StopError

    def _table(self) -> Referents | None:
        """Return the referents that the run has published, None if they are too many for memory."""
        topics = AccountTopics.of(self._job.company_sso_id)
        tables = ReferenceTables(self._place.connections.kafka(), {"referents": topics.referents}, self._place.codec)
        rows = tables.rows["referents"]
        try:
            tables.load(TABLE_TIMEOUT_S, lambda: len(rows) > TABLE_ROWS_MAX)
        finally:
            tables.close()
        return Referents(rows, self._place.codec) if len(rows) <= TABLE_ROWS_MAX else None

    def _give_up(self, error: Exception) -> Job:
        return self._finish(EnrichmentState.PENDING, {**(self._job.enrichment or {}), "error": _text_of(error)})

    def _finish(self, state: EnrichmentState, fields: dict[str, Any]) -> Job:
        while True:
            try:
                self._note(state, fields)
                break
            except PyMongoError as error:
                if not _mongodb_is_away(error):
                    raise
                self._wait(error)
        if state is EnrichmentState.PENDING:
            self._view.note(in_words(view_of(self._job.enrichment), self._job.company_sso_id))
        return self._job

    def _note(self, state: EnrichmentState, fields: Mapping[str, Any]) -> None:
        now = dt.datetime.now(dt.UTC)
        known = {"error": None, **fields, "state": state.value, "updated_at": now}
        self._job = self._place.store.note_enrichment(self._job, known)
        self._saved_at = time.monotonic()

    def _pause(self, seconds: float) -> None:
        deadline = Deadline(seconds)
        while deadline.wait(0.2):
            self._check()


def _mongodb_is_away(error: Exception) -> bool:
    """Whether the error is a transient state of MongoDB, for which the sinks wait too."""
    if isinstance(error, ServiceUnreachableError):
        return isinstance(error.__cause__, PyMongoError)  # as producer.checkpoint raises it
    of_mongodb = server_of(error) == "MongoDB" and kind_of(error) is ServiceUnreachableError
    return isinstance(error, NotAnsweredError) or of_mongodb


def _may_pass(error: Exception) -> bool:
    """Whether a retry can succeed: after an outage, or if another process has taken the account's cursor."""
    if isinstance(error, BadInputError):
        return False
    if isinstance(error, OperationFailure) and error.code in NOT_LET_IN:
        return False
    return isinstance(error, ReplayError | PyMongoError)


def _text_of(error: Exception) -> str:
    """Return an error as text, without that of a library's error, which may contain a row's values."""
    if isinstance(error, OperationFailure):
        return f"MongoDB refuses (code {error.code}): see its log and the runner's rights"
    return str(error) if isinstance(error, ReplayError) else type(error).__name__
