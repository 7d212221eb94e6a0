"""The resume cursor: one document per job, run and id range in `crm_replay_checkpoints`. Writes no other collection."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from pymongo import UpdateOne, WriteConcern
from pymongo.errors import DuplicateKeyError, PyMongoError

from producer.cursor import Gap, IdRange
from schemas.collections import CHECKPOINTS
from schemas.errors import ReplayError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.process.mongodb import Database, Document
from schemas.process.waiting import Deadline, retrying

logger = logging.getLogger(__name__)

FIRST_FENCE = 1
# More than a process can create: it splits for 64 readers at most, and adds one late range.
NUMBERS_TAKEN = 130


class FencedError(ReplayError):
    """Another runner has taken over the job, and publishes what this process still reads."""


class Saves(Protocol):
    """Where the snapshot keeps its ranges; `Checkpoint` is the real one."""

    def load(self) -> list[IdRange]:
        """Return all ranges of this run, unordered."""
        ...

    def save(self, range_: IdRange) -> None:
        """Return once the range is durable."""
        ...


class Checkpoint:
    """The ranges of one run of one job."""

    def __init__(
        self,
        database: Database,
        job_id: str,
        run: int,
        fence: int = 0,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        outage_max_s: float = 60.0,
    ) -> None:
        """Write concern majority, journaled: a cursor rolled back costs a repetition, but a gap rolled back a row.

        `fence` is the fencing token of this process's runner. After `take_over` with a higher one, nothing is saved
        under this one, so a process that was suspended beyond its runner's lease publishes at most the page whose gaps
        it had saved before.
        """
        self._collection = database.get_collection(CHECKPOINTS, write_concern=WriteConcern(w="majority", j=True))
        self._job_id = job_id
        self._run = run
        self._fence = fence
        self._now = now
        self._outage_max_s = outage_max_s
        self._gaps_saved: dict[int, tuple[Gap, ...]] = {}

    def take_over(self) -> None:
        """Fence the run's ranges before they are loaded: from then on no process of a former runner can save one.

        This includes ranges that a former runner has not created yet: void ranges reserve their numbers until this
        runner creates them. A no-op for a job's first runner.
        """
        if self._fence <= FIRST_FENCE:
            return
        with answering("taking over the cursor"):
            run = {"job_id": self._job_id, "run": self._run}
            there = [int(found["id_range"]) for found in self._collection.find(run, {"id_range": 1})]
            void = {**to_document(IdRange(0, 0, 0, 0, late=True), self._job_id, self._run, self._now()), "void": True}
            updates = []
            for number in range(max(there, default=-1) + 1 + NUMBERS_TAKEN):
                new = {**void, "id_range": number}
                del new["_id"]
                key = {"_id": f"{self._job_id}:{self._run}:{number}"}
                updates.append(UpdateOne(key, {"$max": {"fence": self._fence}, "$setOnInsert": new}, upsert=True))
            self._collection.bulk_write(updates, ordered=False)

    def load(self) -> list[IdRange]:
        """Return all ranges of this run, unordered; empty before the first save."""
        with answering("loading the cursor"):
            run = {"job_id": self._job_id, "run": self._run, "void": {"$ne": True}}
            return [from_document(found) for found in self._collection.find(run)]

    def save(self, range_: IdRange) -> None:
        """Save the range; return once it is durable. Idempotent, so it is retried for `outage_max_s`.

        Raises FencedError if another runner has taken over, ReplayError if the outage lasts or the server refuses.
        """
        document = {**to_document(range_, self._job_id, self._run, self._now()), "fence": self._fence, "void": False}
        if self._gaps_saved.get(range_.id_range) == range_.gaps:
            del document["gaps"]  # they may be thousands, and change seldom
        # With a higher fence stored, nothing matches, and the insert of the upsert violates the `_id` index.
        key = {"_id": document.pop("_id"), "$or": [{"fence": {"$lte": self._fence}}, {"fence": None}]}

        def save() -> None:
            with answering("saving the cursor"):
                self._collection.update_one(key, {"$set": document}, upsert=True)

        def passes(error: ServiceUnreachableError) -> bool:
            logger.warning("%s; trying again", error.what)
            return True

        try:
            retrying(save, ServiceUnreachableError, Deadline(self._outage_max_s), 0.1, 5.0, passes=passes)
        except DuplicateKeyError:
            raise FencedError(
                f"another runner has taken over the job (this is number {self._fence})", "this process ends"
            ) from None
        self._gaps_saved[range_.id_range] = range_.gaps


def to_document(range_: IdRange, job_id: str, run: int, now: datetime) -> Document:
    """Return the range as it is stored."""
    return {
        "_id": f"{job_id}:{run}:{range_.id_range}",
        "job_id": job_id,
        "run": run,
        "id_range": range_.id_range,
        "first": range_.first,
        "cursor": range_.cursor,
        "last": range_.last,
        "rows": range_.rows,
        "reach": range_.reach,
        "gaps": [list(gap) for gap in range_.gaps],
        "gaps_to": range_.gaps_to,
        "late": range_.late,
        "done": range_.done,
        "updated_at": now,
    }


def from_document(document: Document) -> IdRange:
    """Return the range in a document; its numbers as plain int: psycopg refuses lists that mix int and Int64."""
    return IdRange(
        id_range=int(document["id_range"]),
        first=int(document["first"]),
        cursor=int(document["cursor"]),
        last=int(document["last"]),
        rows=int(document["rows"]),
        reach=int(document["reach"]),
        gaps=tuple((int(low), int(high)) for low, high in document["gaps"]),
        gaps_to=int(document["gaps_to"]),
        late=document["late"],
    )


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Turn MongoDB's errors into one line: ServiceUnreachableError for an outage, ReplayError for a refusal."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except PyMongoError as error:
        if kind_of(error) is ServiceUnreachableError:
            code = getattr(error, "code", None)
            raise ServiceUnreachableError(
                f"MongoDB does not answer ({what}{f': code {code}' if code else ''})",
                "check MONGODB_URL, and that every shard has a primary; start again, nothing is lost",
            ) from error
        raise ReplayError(f"MongoDB refused ({what}): {str(error)[:200]}", "see the server's log") from error
