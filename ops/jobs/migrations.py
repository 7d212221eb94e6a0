"""Collections and indexes, created and dropped in numbered steps, recorded in `crm_replay_migrations`.

A step records what it is going to create before it does, so an interrupted one is resumed, and `down` undoes
exactly what `up` did: an index or a collection that existed before stays, and so does every document of the customer.
"""

import contextlib
import datetime as dt
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from schemas.collections import (
    ACTIVITY_LOGS,
    APPLIED_MIGRATIONS,
    AUDIT_LOG,
    CHECKPOINTS,
    CONTACT_ID_MAP,
    CONTACTS,
    COUNTERS,
    ENRICHMENTS,
    FEEDS,
    FLAGS,
    JOBS,
    PROGRESS,
    RETRIES,
    SEALS,
    TASKS,
)
from schemas.errors import BadInputError, ReplayError
from schemas.process.mongodb import Database, Document, Documents
from schemas.process.waiting import Deadline
from schemas.vocabulary import JobStatus
from sink.indexes import (
    AUDIT_LOG_BY_COMPANY,
    AUDIT_LOG_BY_TIME,
    CHECKPOINTS_BY_RUN,
    COMPANY_SOURCE_TAG,
    CONTACT_BY_CRM_ID,
    CONTACT_BY_CUSTOMER,
    CONTACT_ID_MAP_UNIQUE,
    ENRICHMENT_MATCH,
    INDEXES,
    JOBS_BY_COMPANY,
    LEGACY_LOGS,
    ONE_ACTIVE_TASK,
    ONE_FOLLOWS,
    ONE_RUNNING_JOB,
    PROGRESS_BY_RUN,
    RETRIES_BY_COMPANY,
    SEALS_BY_COMPANY,
    TASKS_BY_COMPANY,
    UNIQUE_EXTERNAL_ID,
    UNIQUE_RUN,
    Index,
)

LOCK = "lock"
LOCK_EXPIRY_S = 60.0
NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)  # expiry of a lock that was never held
LOCK_RENEWALS = 3  # within one expiry
LOCK_POLL_S = 0.5  # how often a process that may wait tries the lock
NAMESPACE_EXISTS = 48
NAMESPACE_NOT_FOUND = 26
INDEX_NOT_FOUND = 27
UNAUTHORIZED = 13
DUPLICATE_KEY = 11000


class MigrationRefusedError(BadInputError):
    """The database is not in a state that this step can start from; nothing has been changed by it."""


class MigrationLockedError(ReplayError):
    """Another process is migrating this database."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step. `own` collections hold no data of the customer, so `down` drops them with their documents."""

    version: int
    name: str
    indexes: tuple[Index, ...]
    collections: tuple[str, ...]
    own: frozenset[str] = frozenset()


MIGRATIONS = (
    Migration(
        1, "activity logs: idempotency and provenance", (UNIQUE_EXTERNAL_ID, COMPANY_SOURCE_TAG), (ACTIVITY_LOGS,)
    ),
    Migration(2, "contacts by CRM id", (CONTACT_BY_CRM_ID, CONTACT_ID_MAP_UNIQUE), (CONTACTS, CONTACT_ID_MAP)),
    Migration(3, "jobs", (JOBS_BY_COMPANY, ONE_RUNNING_JOB, UNIQUE_RUN), (JOBS, COUNTERS), frozenset((JOBS, COUNTERS))),
    Migration(4, "replay progress", (PROGRESS_BY_RUN,), (PROGRESS,), frozenset((PROGRESS,))),
    Migration(5, "enrichment match key", (ENRICHMENT_MATCH,), (ACTIVITY_LOGS,)),
    Migration(
        6,
        "cursors and retries",
        (CHECKPOINTS_BY_RUN, RETRIES_BY_COMPANY),
        (CHECKPOINTS, RETRIES),
        frozenset((CHECKPOINTS, RETRIES)),
    ),
    Migration(
        7,
        "flags, tasks and the audit log",
        (ONE_FOLLOWS, ONE_ACTIVE_TASK, TASKS_BY_COMPANY, AUDIT_LOG_BY_COMPANY, AUDIT_LOG_BY_TIME),
        (FLAGS, TASKS, AUDIT_LOG),
        frozenset((FLAGS, TASKS, AUDIT_LOG)),
    ),
    Migration(
        8,
        "live feed: contacts by customer, legacy logs, feeds",
        (CONTACT_BY_CUSTOMER, LEGACY_LOGS),
        (CONTACTS, ACTIVITY_LOGS, FEEDS),
        frozenset((FEEDS,)),
    ),
    Migration(9, "enrichment progress", (), (ENRICHMENTS,), frozenset((ENRICHMENTS,))),
    Migration(10, "what verify has proved", (SEALS_BY_COMPANY,), (SEALS,), frozenset((SEALS,))),
)
NEWEST = MIGRATIONS[-1].version


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """A step and when it was applied; None if it is not, or not completely."""

    version: int
    name: str
    applied_at: dt.datetime | None


def status(database: Database) -> list[MigrationStatus]:
    """Return every step in order, those of a newer release included."""
    records = _records(database)
    known = {migration.version: migration.name for migration in MIGRATIONS}
    names = {**{version: str(record.get("name", "")) for version, record in records.items()}, **known}
    return [
        MigrationStatus(version, names[version], (records.get(version) or {}).get("applied_at"))
        for version in sorted(names)
    ]


def require_current(database: Database, *, older_will_do: bool = False) -> None:
    """Return if this release and the database's schema match; changes nothing.

    Raises MigrationRefusedError for an older schema (unless that will do, as for a command that only looks at what is
    there), for one that a migration has left half-way, for a newer one, and for a collection that mixes up accounts or
    loses documents, with what to do.
    """
    records = _not_newer(database)
    if not older_will_do:
        _refuse_unfit(database)
    missing = [m for m in MIGRATIONS if not _is_applied(records.get(m.version))]
    if missing and not older_will_do:
        raise MigrationRefusedError(
            f"MongoDB lacks {', '.join(m.name for m in missing)}"
            f" (it is at schema version {missing[0].version - 1}, this release needs {NEWEST})",
            "make its collections and indexes: crm-replay migrate up",
        )


def up(database: Database, to: int | None = None, *, wait_s: float = 0.0) -> list[int]:
    """Apply what is missing up to version `to` (None: all) and return the versions applied now.

    `wait_s`: how long to wait for another process that is migrating. Raises MigrationRefusedError for a newer schema, a
    collection that mixes up accounts or loses documents, a clashing index, or documents that break a unique index;
    MigrationLockedError if another process is at it.
    """
    target = _checked(to, NEWEST)
    applied = []
    with _locked(database, wait_s) as lock:
        records = _not_newer(database)
        _refuse_unfit(database)
        pending = [m for m in MIGRATIONS if m.version <= target and not _is_applied(records.get(m.version))]
        for migration in pending:
            for index in migration.indexes:
                _refuse_clash(database, index)  # all of them before the first change
        for migration in pending:
            lock.check()
            _apply(database, migration, records.get(migration.version))
            applied.append(migration.version)
    return applied


def down(database: Database, to: int = 0, *, wait_s: float = 0.0) -> list[int]:
    """Undo every step above version `to`, the newest first, and return the versions undone.

    Drops what `up` made: its indexes; our own collections with their documents; a customer's collection only if it is
    empty. Refused while a job is in progress.
    """
    target = _checked(to, 0)
    undone = []
    with _locked(database, wait_s) as lock:
        records = _not_newer(database)
        doomed = [m for m in reversed(MIGRATIONS) if m.version > target and m.version in records]
        if doomed and database[JOBS].find_one({"status": JobStatus.IN_PROGRESS.value}) is not None:
            raise MigrationRefusedError("a job is in progress", "halt it first: crm-replay halt")
        for migration in doomed:
            lock.check()
            _revert(database, migration, records[migration.version])
            undone.append(migration.version)
    return undone


def _checked(version: int | None, default: int) -> int:
    if version is None:
        return default
    if not 0 <= version <= NEWEST:
        raise BadInputError(f"there is no schema version {version}", f"give one from 0 to {NEWEST}")
    return version


def _records(database: Database) -> dict[int, Document]:
    return {r["_id"]: r for r in database[APPLIED_MIGRATIONS].find({"_id": {"$type": "number"}})}


def _not_newer(database: Database) -> dict[int, Document]:
    """Return the records of applied steps; raises MigrationRefusedError if this release does not know one of them."""
    records = _records(database)
    newest = max(records, default=0)
    if newest > NEWEST:
        raise MigrationRefusedError(
            f"the database is at schema version {newest}, this release knows {NEWEST}", "use the newer release"
        )
    return records


def _is_applied(record: Mapping[str, Any] | None) -> bool:
    return record is not None and record.get("state") == "applied"


def _apply(database: Database, migration: Migration, begun: Mapping[str, Any] | None) -> None:
    """Create what the step needs. `begun` is the record of an interrupted attempt: what it lists counts as ours."""
    records: Documents = database[APPLIED_MIGRATIONS]
    existing = set(database.list_collection_names())
    noted_collections = set((begun or {}).get("collections", ()))
    noted_indexes = {tuple(pair) for pair in (begun or {}).get("indexes", ())}
    collections = [c for c in migration.collections if c not in existing or c in noted_collections]
    indexes = [
        index
        for index in migration.indexes
        if _find_index(database, index) is None or (index.collection, index.name) in noted_indexes
    ]
    record: Document = {
        "_id": migration.version,
        "name": migration.name,
        "state": "applying",
        "collections": collections,
        "indexes": [[index.collection, index.name] for index in indexes],
        "applied_at": None,
    }
    # Dying after this line: the next `up` finds what it was about to create and continues.
    records.replace_one({"_id": migration.version}, record, upsert=True)
    try:
        for collection in collections:
            _create_collection(database, collection)
        for index in indexes:
            keys = [(key, ASCENDING) for key in index.keys]
            database[index.collection].create_index(keys, **index.options())
    except OperationFailure as error:
        _undo(database, migration, record)
        records.delete_one({"_id": migration.version})
        raise _why(error, migration) from error
    applied = {"state": "applied", "applied_at": dt.datetime.now(dt.UTC)}
    records.update_one({"_id": migration.version}, {"$set": applied})


def _why(error: OperationFailure, migration: Migration) -> ReplayError:
    if error.code == DUPLICATE_KEY:
        names = ", ".join(f"{index.name} of {index.collection}" for index in migration.indexes if index.unique)
        return MigrationRefusedError(
            f"existing documents violate a unique index ({names})",
            "remove the duplicates, then migrate again",
        )
    return MigrationRefusedError(
        f"step {migration.version} ({migration.name}) was refused with code {error.code}", "see the server's log"
    )


def _revert(database: Database, migration: Migration, record: Mapping[str, Any]) -> None:
    records: Documents = database[APPLIED_MIGRATIONS]
    # Dying after this line: the step no longer counts as applied, and its record still has what is left to undo.
    records.update_one({"_id": migration.version}, {"$set": {"state": "reverting", "applied_at": None}})
    _undo(database, migration, record)
    records.delete_one({"_id": migration.version})


def _undo(database: Database, migration: Migration, record: Mapping[str, Any]) -> None:
    """Drop the indexes and collections that the record has as ours."""
    for collection, name in record.get("indexes", ()):
        with _ignoring(INDEX_NOT_FOUND, NAMESPACE_NOT_FOUND):
            database[collection].drop_index(name)
    for collection in record.get("collections", ()):
        if collection in migration.own or database[collection].find_one({}, {"_id": 1}) is None:
            database.drop_collection(collection)


def _create_collection(database: Database, name: str) -> None:
    with _ignoring(NAMESPACE_EXISTS):
        database.command("create", name)


@contextlib.contextmanager
def _ignoring(*codes: int) -> Iterator[None]:
    try:
        yield
    except OperationFailure as error:
        if error.code not in codes:
            raise


def _find_index(database: Database, index: Index) -> Mapping[str, Any] | None:
    """Return the index of this name as the server has it, or None."""
    for found in _list_indexes(database, index.collection):
        if found["name"] == index.name:
            return found
    return None


def _list_indexes(database: Database, collection: str) -> Sequence[Mapping[str, Any]]:
    try:
        return list(database[collection].list_indexes())
    except OperationFailure as error:
        if error.code != NAMESPACE_NOT_FOUND:
            raise
        return []


def _refuse_unfit(database: Database) -> None:
    """Raise MigrationRefusedError for a collection that an account's documents are not safe in.

    A query without a collation, and an index made without one, take the collection's: where that ignores case, one
    account's documents are another's, to the unique index as to a roll back.
    """
    names = sorted({index.collection for index in INDEXES})
    try:
        found = list(database.list_collections(filter={"name": {"$in": names}}))
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:  # a role with no right but those on the documents
            raise
        return
    for collection in sorted(found, key=lambda collection: str(collection["name"])):
        name, options = collection["name"], collection.get("options", {})
        kind = collection.get("type", "collection")
        if kind != "collection":
            raise MigrationRefusedError(f"{name} is a {kind}, not a collection", "name another database")
        if options.get("collation"):
            raise MigrationRefusedError(
                f"{name} has a collation ({options['collation'].get('locale')}), by which different account ids"
                " can be equal",
                "copy its documents into a collection without a collation, and give that its name",
            )
        if options.get("capped"):
            raise MigrationRefusedError(
                f"{name} is capped: it drops its oldest documents",
                "copy its documents into a collection that is not, and give that its name",
            )


def _refuse_clash(database: Database, index: Index) -> None:
    """Raise MigrationRefusedError if another index has this name or the same keys."""
    keys = [(key, ASCENDING) for key in index.keys]
    for found in _list_indexes(database, index.collection):
        same_keys = list(found["key"].items()) == keys
        same_rules = bool(found.get("unique")) == index.unique and dict(
            found.get("partialFilterExpression", {})
        ) == dict(index.partial)
        if found["name"] == index.name:
            if not (same_keys and same_rules):
                raise MigrationRefusedError(
                    f"{index.collection} has another index named {index.name}", "rename or drop it, then migrate again"
                )
        elif same_keys and same_rules:
            raise MigrationRefusedError(
                f"{index.collection} has the index {index.name} under the name {found['name']}",
                f"drop {found['name']}, then migrate again",
            )


class _Lock:
    """A lock document with an expiry by the server's clock, renewed by a thread while index builds take their time."""

    def __init__(self, records: Documents, owner: str) -> None:
        self._records = records
        self._owner = owner
        self._released = threading.Event()
        self._lost = False
        self._renewer = threading.Thread(target=self._renew, name="migration-lock", daemon=True)

    def acquire(self, wait_s: float) -> None:
        """Take the lock, that of a dead owner once it has expired, or raise MigrationLockedError."""
        deadline = Deadline(wait_s)
        while not self._take():
            if not deadline.wait(LOCK_POLL_S):
                raise MigrationLockedError(
                    f"another process is migrating this database{self._held_by()}",
                    f"wait; a dead one's lock expires in {LOCK_EXPIRY_S:.0f} s",
                )
        self._renewer.start()

    def _take(self) -> bool:
        with contextlib.suppress(DuplicateKeyError):  # another process made it in this very moment
            self._records.update_one({"_id": LOCK}, {"$setOnInsert": {"expires_at": NEVER}}, upsert=True)
        free = {"_id": LOCK, "$expr": {"$lt": ["$expires_at", "$$NOW"]}}
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": "$$NOW"}
        claim: list[Document] = [{"$set": {**self._claim()[0]["$set"], **who}}]
        return bool(self._records.update_one(free, claim).matched_count)

    def _held_by(self) -> str:
        """Return a phrase for the operator; empty if the lock has gone meanwhile."""
        held = self._records.find_one({"_id": LOCK}) or {}
        if "pid" not in held:
            return ""
        return f" (pid {held['pid']} on {held['host']}, since {held['since']:%H:%M:%S} UTC)"

    def _claim(self) -> list[Document]:
        expires_at = {"$add": ["$$NOW", int(LOCK_EXPIRY_S * 1000)]}
        return [{"$set": {"owner": self._owner, "expires_at": expires_at}}]

    def _renew(self) -> None:
        while not self._released.wait(LOCK_EXPIRY_S / LOCK_RENEWALS):
            with contextlib.suppress(PyMongoError):  # the next renewal may succeed; an expired lock shows in `check`
                if not self._records.update_one({"_id": LOCK, "owner": self._owner}, self._claim()).matched_count:
                    self._lost = True
                    return

    def check(self) -> None:
        """Raise MigrationLockedError if the lock has gone to another process."""
        if self._lost or self._records.find_one({"_id": LOCK, "owner": self._owner}) is None:
            raise MigrationLockedError("the migration lock was lost to another process", "check its result first")

    def release(self) -> None:
        """Give the lock back; the last trace of a database without any step applied goes with it."""
        self._released.set()
        if self._renewer.is_alive():
            self._renewer.join()
        mine = {"_id": LOCK, "owner": self._owner}
        if self._records.find_one({"_id": {"$ne": LOCK}}) is None and self._records.find_one(mine) is not None:
            self._records.drop()
        else:
            self._records.delete_one(mine)


@contextlib.contextmanager
def _locked(database: Database, wait_s: float) -> Iterator[_Lock]:
    lock = _Lock(database[APPLIED_MIGRATIONS], uuid.uuid4().hex)
    lock.acquire(wait_s)
    try:
        yield lock
    finally:
        lock.release()
