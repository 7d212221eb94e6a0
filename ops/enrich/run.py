"""Adds to association logs what they lacked when they were written: a step of every run, and `crm-replay enrich`.

The rows come from PostgreSQL and not from the outcomes topic: the source keeps them indefinitely, and only it has the
rows of the live feed's documents, which a replay skips (DECISIONS.md, decision 21). Every row that the account's
association logs come from is read once, upwards; in batches, a few of them at a time, its names are looked up and its
document is patched (sink.enricher). Its progress is in `crm_replay_enrichments`, saved after each batch in their
order. After a death between a patch and the save, the batches in flight are repeated, and their rows found complete.
The rows of a run, and when it gives up: ops.runner.enrichment.
"""

import datetime as dt
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import starmap
from threading import Event, Lock
from typing import Any, TypeVar

from pymongo.errors import DuplicateKeyError, PyMongoError

from ops.jobs import enrichments, migrations
from ops.jobs.jobs import Job
from ops.jobs.operations import digest
from ops.jobs.store import JobStore
from ops.progress import RunView
from processors.rules.associations import TYPE_KEY
from processors.rules.decide import Refused, Skip
from processors.rules.enrichment import AssociationFinder, AssociationLog, Name
from producer.audits import AuditReader, AuditSource, Connection, Limits, RowKind, answering, connect, resolve
from producer.cursor import EARLIEST, Gap
from producer.messages import Page
from producer.references import NameReader, find_contacts
from producer.settings import ProducerSettings
from producer.survey import count
from producer.throttle import Pacer, Throttle
from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS, ENRICHMENTS
from schemas.errors import BadInputError, ReplayError, UndecodableRecordError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, Document, Documents
from schemas.process.mongodb import connect as connect_mongodb
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.source.mapping import WINDOW_S_MAX, SourceMapping, load
from schemas.vocabulary import JobStatus
from sink.enricher import Enricher
from sink.indexes import ENRICHED_ACTIONS, ENRICHED_CATEGORIES
from sink.match_key import DELETED_REFERENCE, Association, Outcome

BATCH_ROWS = 500  # association rows of a batch
IN_FLIGHT = 3  # batches: enough that neither the server nor this process waits for the other
PAGE_ROWS = 5_000
SAVE_EVERY_S = 2.0  # also without anything to patch: an account may have few association rows
SILENT_S = 30.0  # an enrichment that has not saved for so long is dead; a slow page may take as long
NAMES_MAX = 100_000  # kept; rows of one record come close together
NAMED_MAX = 20  # rows of an outcome that are named
WAIT_S = 0.5  # for a page or a batch, between two checks for a stop request
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
NAMED = (Outcome.ENRICH_AMBIGUOUS, Outcome.CONFLICT, Outcome.REFUSED, Outcome.UNREADABLE)


T = TypeVar("T")


class EnrichmentLostError(ReplayError):
    """Another process has taken the account's enrichment up."""


@dataclass(frozen=True, slots=True)
class EnrichOptions:
    """How an account is enriched."""

    mapping_path: str = ""
    window_s: float | None = None  # by which a live log's time may differ from its row's; None: as in the mapping
    dry_run: bool = False
    batch_rows: int = BATCH_ROWS


@dataclass(frozen=True, slots=True)
class Scope:
    """Which of the account's rows an enrichment goes through."""

    run: int = 0  # the account's last; one that has died before it has not seen what that run has written
    fence: int = 0  # of the runner; 0: a command, which leaves an enrichment alone that lives
    top: int | None = None  # None: the newest row there is
    cutoff: dt.datetime = EARLIEST
    gaps: tuple[Gap, ...] | None = None  # chosen rows; how far these are is kept nowhere


@dataclass(slots=True)
class Enrichment:
    """How far an enrichment is; every association row up to `cursor` is in exactly one of `outcomes`."""

    company_sso_id: str
    top: int  # audit id up to which it goes
    cursor: int = 0
    rows: int = 0  # read: those that can be association rows, as far as the source can select them
    rows_total: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    deleted_references: int = 0  # rows with the name of a deleted record
    audit_ids: dict[str, list[int]] = field(default_factory=dict)  # the first rows of outcomes that need attention
    dry_run: bool = False
    resumed: bool = False
    seconds: float = 0.0  # of this process

    @property
    def associations(self) -> int:
        """How many association rows have been handled."""
        return self.outcomes.total()

    def add(self, rows: Iterable[tuple[int, Outcome]]) -> None:
        """Count rows by outcome, and name the first ones that need attention."""
        for audit_id, outcome in rows:
            self.outcomes[outcome.value] += 1
            if outcome in NAMED and len(named := self.audit_ids.setdefault(outcome.value, [])) < NAMED_MAX:
                named.append(audit_id)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "company_sso_id": self.company_sso_id,
            "dry_run": self.dry_run,
            "resumed": self.resumed,
            "top_audit_id": self.top,
            "rows_read": self.rows,
            "association_rows": self.associations,
            "outcomes": {outcome.value: self.outcomes[outcome.value] for outcome in Outcome},
            "deleted_references": self.deleted_references,
            "audit_ids": self.audit_ids,
            "seconds": round(self.seconds, 3),
        }


class Contacts:
    """The account's contacts, for the rules; actors and names of records are not looked up here."""

    def __init__(self, company_sso_id: str, by_person: Mapping[str, tuple[int, str]]) -> None:
        """`by_person` has created_at in microseconds and customer_id by CRM person id."""
        self._company_sso_id = company_sso_id
        self._by_person = by_person

    def contact(self, person_id: str) -> Contact | None:
        """Return the person's contact."""
        if (found := self._by_person.get(person_id)) is None:
            return None
        created_at, customer_id = found
        return Contact(self._company_sso_id, person_id, customer_id, created_at)

    def user(self, user_id: int) -> User | None:  # noqa: ARG002 - Lookups' shape
        """Return None: a log's actor is never patched."""
        return None

    def sso_id(self, email: str) -> str | None:  # noqa: ARG002
        """Return None, for the same reason."""
        return None

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:  # noqa: ARG002
        """Return None: names are looked up in batches, after the rules."""
        return None


@dataclass(frozen=True, slots=True)
class Referents:
    """The account's reference table as its topic has it; what it lacks may be in the source all the same."""

    rows: Mapping[bytes, bytes]
    codec: Codec

    def name_of(self, type_name: str, record_id: int) -> str | None:
        """Return what the record is called, "" for one without a name; None if the table does not have it."""
        value = self.rows.get(f"{type_name}:{record_id}".encode())
        if value is None:
            return None
        try:
            return self.codec.decode_as(Referent, value).name
        except UndecodableRecordError:
            return None


class Names:
    """Names of CRM records: from the reference table, else from the source, queried in batches by primary key."""

    def __init__(
        self, db: Connection, mapping: SourceMapping, account: Any, table: Callable[[], Referents | None]
    ) -> None:
        """`account` is the value of the mapped account column; `table` is called when the first name is wanted."""
        self._reader = NameReader(db, mapping, account)
        self._types = frozenset(mapping.referents)
        self._known: dict[tuple[str, int], str] = {}
        self._read_table = table
        self._table: Referents | None = None
        self._table_read = False

    def learn(self, names: Iterable[Name]) -> None:
        """Fetch the names that are not known yet: for those that the table lacks, one query a type."""
        wanted: dict[str, set[int]] = {}
        for name in names:
            if name.type_name in self._types and (name.type_name, name.record_id) not in self._known:
                wanted.setdefault(name.type_name, set()).add(name.record_id)
        if wanted and len(self._known) > NAMES_MAX:
            self._known.clear()
            self.learn(names)
            return
        if wanted and not self._table_read:
            self._table, self._table_read = self._read_table(), True
        for type_name, ids in wanted.items():
            if self._table is not None:
                of_table = {(type_name, id_): self._table.name_of(type_name, id_) for id_ in ids}
                self._known.update({key: name for key, name in of_table.items() if name is not None})
                ids = {id_ for id_ in ids if (type_name, id_) not in self._known}
            found = self._reader.names_of(type_name, ids) if ids else {}
            self._known.update({(type_name, id_): found.get(id_, DELETED_REFERENCE) for id_ in ids})

    def get(self, name: Name) -> str:
        """Return a name that has been learnt; "" if the record has none, or its type no table of names."""
        return self._known.get((name.type_name, name.record_id), "")


class Cursor:
    """The account's document in `crm_replay_enrichments`; only the process that began last may write it."""

    def __init__(self, collection: Documents, scope: Scope, window_s: float, mapping_sha256: str) -> None:
        """Nothing is read yet."""
        self._collection = collection
        self._run = uuid.uuid4().hex
        self._fence = scope.fence
        self._settings = {
            "window_s": window_s,
            "mapping_sha256": mapping_sha256,
            "run": scope.run,
            "from": scope.cutoff.isoformat(),
        }

    def begin(self, fresh: Enrichment) -> Enrichment:
        """Return where to begin: at the beginning, or where an enrichment with the same settings has died.

        A run waits for no other process: it holds the account's job, so what it finds is a command's, or that of the
        runner before it. Raises BadInputError to a command while another process enriches the account,
        EnrichmentLostError to a runner that another has taken the job over from.
        """
        account = fresh.company_sso_id
        since = {"$subtract": ["$$NOW", round(SILENT_S * 1000)]}  # by the server's clock
        before = self._collection.find_one({"_id": account})
        begun = fresh
        if before is not None and before["settings"] == self._settings and before.get("fence", 0) > self._fence > 0:
            raise self._lost(account)
        if before is not None and before["finished_at"] is None:
            heard_of = {"_id": account, "run": before["run"], "$expr": {"$gt": ["$updated_at", since]}}
            if not self._fence and self._collection.find_one(heard_of, {"_id": 1}) is not None:
                raise BadInputError(
                    f"{account} is being enriched by another process",
                    f"wait for it; a dead one can be resumed {SILENT_S:.0f} s after its last update",
                )
            if before["settings"] == self._settings:
                begun = Enrichment(
                    account,
                    before["top"],
                    before["cursor"],
                    before["rows"],
                    before["rows_total"],
                    Counter(before["outcomes"]),
                    before["deleted_references"],
                    {name: list(ids) for name, ids in before["audit_ids"].items()},
                    resumed=True,
                )
        now = dt.datetime.now(dt.UTC)
        document = {
            "_id": account,
            "run": self._run,
            "fence": self._fence,
            "settings": self._settings,
            **self._fields(begun),
            "started_at": now,
            "updated_at": now,  # until it is saved a moment later, by the server's clock
            "finished_at": None,
        }
        try:
            if before is None:
                self._collection.insert_one(document)
                taken = 1
            else:
                unchanged = {"_id": account, "run": before["run"]}
                taken = self._collection.replace_one(unchanged, document).matched_count
        except DuplicateKeyError:
            taken = 0
        if not taken and self._fence:
            raise self._lost(account)
        if not taken:
            raise BadInputError(f"{account} is being enriched by another process", "wait for it")
        self.save(begun)
        return begun

    def save(self, state: Enrichment, *, finished: bool = False) -> None:
        """Save the progress. Raises EnrichmentLostError if another process has begun since."""
        times: Document = {"updated_at": True, **({"finished_at": True} if finished else {})}
        update = {"$set": self._fields(state), "$currentDate": times}
        mine = {"_id": state.company_sso_id, "run": self._run}
        if not self._collection.update_one(mine, update).matched_count:
            raise self._lost(state.company_sso_id)

    def release(self, state: Enrichment) -> None:
        """Let the next process resume it at once."""
        mine = {"_id": state.company_sso_id, "run": self._run, "finished_at": None}
        self._collection.update_one(mine, {"$set": {"updated_at": EPOCH}})

    @staticmethod
    def _lost(account: str) -> EnrichmentLostError:
        return EnrichmentLostError(f"the enrichment of {account} was taken over by another process")

    @staticmethod
    def _fields(state: Enrichment) -> Document:
        return {
            "top": state.top,
            "cursor": state.cursor,
            "rows": state.rows,
            "rows_total": state.rows_total,
            "outcomes": dict(state.outcomes),
            "deleted_references": state.deleted_references,
            "audit_ids": state.audit_ids,
        }


@dataclass(slots=True)
class _Batch:
    """Rows that have been read and not yet patched, and the source's position after them."""

    logs: list[tuple[int, AssociationLog]] = field(default_factory=list)
    without: list[tuple[int, Outcome]] = field(default_factory=list)
    rows: int = 0
    end: int = 0


def enrich_account(account: str, options: EnrichOptions, connections: Connections, view: RunView) -> Enrichment:
    """Enrich the account's association logs and return the result.

    Resumes an interrupted enrichment. Raises BadInputError before anything is changed, ReplayError for an outage:
    the same command resumes.
    """
    if options.window_s is not None and not 0 <= options.window_s <= WINDOW_S_MAX:
        raise BadInputError(f"a window of {options.window_s} s", f"give 0 to {WINDOW_S_MAX:.0f} seconds")
    connections.require("crm_audit_database_url", "mongodb_url")
    database = connect_mongodb(connections, app_name="crm-replay-enrich")
    try:
        migrations.require_current(database)
        store = JobStore(database)
        job = store.latest(account)
        mapping = _mapping_of(account, options, job)
        scope = Scope(run=job.run if job else 0)
        with Run(account, scope, options, connections, database, mapping, view) as run:
            done = run.enrich()
        if job is not None and not options.dry_run:
            enrichments.finish_pending(database, job, enrichments.counts_of(done))
        return done
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "the same command resumes") from error
    finally:
        database.client.close()


def _mapping_of(account: str, options: EnrichOptions, job: Job | None) -> SourceMapping:
    """Return the source mapping: that of the account's job, if it has one. The live feed's accounts may have none."""
    mapping = load(options.mapping_path or (job.mapping_path if job else "") or None)
    if job is None:
        return mapping
    if job.status is JobStatus.IN_PROGRESS:
        raise BadInputError(f"a run of {account} is in progress", "enrich when it has ended")
    if job.mapping_sha256 and job.mapping_sha256 != digest(mapping):
        raise BadInputError(
            f"the source mapping {options.mapping_path or job.mapping_path or '(default)'} is not the one that"
            f" {account} was replayed with",
            "name that one with --mapping",
        )
    return mapping


def _lag_of(reader: AuditReader) -> float | None:
    """Return the replica's lag; None for a primary, and for a server that does not report it."""
    try:
        return reader.replica_lag()
    except ReplayError:
        return None


class _OverError(Exception):
    """The count is no longer needed."""


class Run:
    """One enrichment: this thread decides and saves, others read ahead and patch, up to `IN_FLIGHT` batches at once.

    Batches are counted and saved in their order, each when it and all before it are written: so the cursor is never
    ahead of a document, and after any failure at most the batches in flight are repeated.
    """

    def __init__(
        self,
        account: str,
        scope: Scope,
        options: EnrichOptions,
        connections: Connections,
        database: Database,
        mapping: SourceMapping,
        view: RunView,
        *,
        table: Callable[[], Referents | None] = lambda: None,
        on_step: Callable[[Enrichment], None] | None = None,
    ) -> None:
        """`table` gives the account's referents, called at the first name that is wanted.

        `on_step` is called twice a second and after each batch; what it raises ends the enrichment. With it the rows
        are not counted beforehand: who calls shows no progress bar.
        """
        self._account = account
        self._scope = scope
        self._options = options
        self._dsn = connections.crm_audit_database_url
        self._database = database
        self._db = connect(self._dsn)
        self._mapping = mapping
        self._view = view
        self._table = table
        self._on_step = on_step
        self._finder = AssociationFinder(mapping, account, ENRICHED_CATEGORIES, ENRICHED_ACTIONS)
        self._contacts = Contacts(account, {})
        window_s = mapping.enrichment.window_s if options.window_s is None else options.window_s
        self._enricher = Enricher(
            database[ACTIVITY_LOGS], account, window_ms=round(window_s * 1000), dry_run=options.dry_run
        )
        self._cursor = (
            None
            if options.dry_run or scope.gaps is not None
            else Cursor(database[ENRICHMENTS], scope, window_s, digest(mapping))
        )
        self._pacer: Pacer | None = None
        self._state = Enrichment(account, 0)
        self._in_flight: deque[tuple[_Batch, Future[tuple[list[Outcome], int]]]] = deque()
        self._naming = Lock()  # of the names, and of the connection that they come by
        self._over = Event()  # no thread waits for the count any more

    def __enter__(self) -> "Run":  # noqa: D105
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self._db.close()

    def enrich(self) -> Enrichment:
        """Return the whole enrichment."""
        began = time.monotonic()
        found = resolve(self._db, self._mapping, self._account)
        source = replace(found, scope=self._finder.types, kinds=tuple(starmap(RowKind, self._finder.kinds)))
        self._names = Names(self._db, self._mapping, found.account, self._table)
        state = self._begin(source)
        try:
            with (
                closing(AuditReader(self._dsn, source, self._scope.cutoff, Limits(page_rows=PAGE_ROWS))) as reader,
                ThreadPoolExecutor(IN_FLIGHT + 2, "enrich") as self._threads,  # besides, the next page and the count
            ):
                self._pacer = Pacer(
                    Throttle(ProducerSettings.load().throttle()),
                    lambda: _lag_of(reader),
                    time.monotonic,
                    time.sleep,
                    self._view.note,
                    self._over.is_set,
                )
                pages = self._pages(reader)
                if not state.rows_total and self._on_step is None:
                    self._threads.submit(self._count, source)
                try:
                    contacts = find_contacts(self._database, self._account)
                    self._contacts = Contacts(self._account, contacts.by_person)
                    self._patch_pages(pages)
                finally:
                    self._over.set()
        except BaseException:
            if self._cursor is not None:
                with suppress(PyMongoError):
                    self._cursor.release(state)
            raise
        state.rows_total = state.rows
        if self._cursor is not None:
            self._cursor.save(state, finished=True)
        state.seconds = time.monotonic() - began
        return state

    def _begin(self, source: AuditSource) -> Enrichment:
        if self._scope.gaps is not None:
            first, top = self._scope.gaps[0][0], self._scope.gaps[-1][1]
        else:
            with answering("querying the newest id"):
                first, top, _ = self._db.execute(source.query("horizon")).fetchall()[0]
            top = top if self._scope.top is None else self._scope.top
        state = Enrichment(self._account, top, cursor=min(first - 1, top), dry_run=self._options.dry_run)
        if self._cursor is not None:
            state = self._cursor.begin(state)
        if state.resumed:
            self._view.note(f"resuming the enrichment of {self._account} behind audit id {state.cursor}")
        self._state = state
        return state

    def _step(self) -> None:
        if self._on_step is not None:
            self._on_step(self._state)

    def _result(self, future: "Future[T]") -> T:
        """Return a thread's result; meanwhile the caller decides whether to continue."""
        while True:
            try:
                return future.result(WAIT_S)
            except FutureTimeoutError:
                if future.done():
                    raise
                self._step()

    def _count(self, source: AuditSource) -> None:
        """Count the rows there are, for who watches; meanwhile the first of them are patched."""

        def go_on(_scanned: int, _top: int) -> None:
            if self._over.is_set():
                raise _OverError

        with suppress(ReplayError, _OverError), closing(connect(self._dsn)) as db:
            self._state.rows_total = count(db, source, self._state.top, None, go_on).rows

    def _patch_pages(self, pages: Iterator[Page]) -> None:
        """Have the rows of pages patched batch by batch."""
        batch, handed_at = _Batch(), time.monotonic()
        for page in pages:
            for event in page.events:
                self._take(event, page, batch)
                if len(batch.logs) >= self._options.batch_rows:
                    batch.end = event.audit_id
                    self._hand_over(batch)
                    batch, handed_at = _Batch(), time.monotonic()
            batch.end = page.end
            if time.monotonic() - handed_at > SAVE_EVERY_S:
                self._hand_over(batch)
                batch, handed_at = _Batch(), time.monotonic()
        batch.end = self._state.top
        self._hand_over(batch)
        while self._in_flight:
            self._settle()

    def _pages(self, reader: AuditReader) -> Iterator[Page]:
        """Return the pages behind the cursor. The next one is always being read, the first one from now on."""

        def read(cursor: int) -> Page:
            began = time.monotonic()
            if (gaps := self._scope.gaps) is not None:
                page = reader.late_page_after(cursor, gaps, 0)
            else:
                page = reader.page_after(cursor, self._state.top, 0, (), look_for_gaps=False)
            if self._pacer is not None:
                self._pacer.after_page(len(page.events), time.monotonic() - began)
            return page

        def ahead(cursor: int) -> Future[Page] | None:
            if cursor >= self._state.top:
                return None
            return self._threads.submit(read, cursor)

        def pages(following: Future[Page] | None) -> Iterator[Page]:
            while following is not None:
                page = self._result(following)
                following = ahead(page.end)
                yield page

        return pages(ahead(self._state.cursor))

    def _hand_over(self, batch: _Batch) -> None:
        """Have a batch patched; waits while as many are in flight as may be."""
        if len(self._in_flight) >= IN_FLIGHT:
            self._settle()
        before = self._in_flight[-1][1].result if self._in_flight else None
        self._in_flight.append((batch, self._threads.submit(self._patch, batch, before)))

    def _settle(self) -> None:
        """Wait for the oldest batch in flight, then count its rows and save how far that is, in one update."""
        batch, patched = self._in_flight.popleft()
        outcomes, deleted_references = self._result(patched)
        state = self._state
        state.add(batch.without)
        state.add(zip((audit_id for audit_id, _ in batch.logs), outcomes, strict=True))
        state.deleted_references += deleted_references
        state.rows += batch.rows
        state.cursor = batch.end
        if self._cursor is not None:
            self._cursor.save(state)
        self._step()
        if state.rows_total and self._on_step is None:
            shown = {outcome: n for outcome, n in state.outcomes.items() if outcome != Outcome.COMPLETE}
            self._view.progress(state.rows, state.rows_total, shown, 0)

    def _take(self, event: AuditEvent, page: Page, batch: _Batch) -> None:
        """Add a row to the batch, if it is an association row."""
        batch.rows += 1
        if not self._finder.may_be(event):
            return
        if event.audit_id in page.defects:
            batch.without.append((event.audit_id, Outcome.UNREADABLE))
            return
        try:
            found = self._finder.find(event, self._contacts)
        except Exception:  # a rule raised: the processors dead-letter such a row
            batch.without.append((event.audit_id, Outcome.UNREADABLE))
            return
        if isinstance(found, AssociationLog):
            batch.logs.append((event.audit_id, found))
        elif isinstance(found, Refused):
            batch.without.append((event.audit_id, Outcome.UNREADABLE))
        elif isinstance(found, Skip):
            batch.without.append((event.audit_id, Outcome.NO_CONTACT))

    def _patch(self, batch: _Batch, turn: Callable[[], object] | None) -> tuple[list[Outcome], int]:
        """Patch a batch's documents; return its rows' outcomes, and how many rows name a deleted record.

        `turn` waits for the batch before this one, None if that is done.
        """
        with self._naming:
            self._names.learn([name for _, log in batch.logs for name in log.names])
            rows = [self._association(audit_id, log) for audit_id, log in batch.logs]
        outcomes = self._enricher.patch(rows, turn) if turn is not None else self._enricher.patch(rows)
        return outcomes, sum(DELETED_REFERENCE in row.texts.values() for row in rows)

    def _association(self, audit_id: int, log: AssociationLog) -> Association:
        """Return what the enricher has to know of a row."""
        links = dict(log.links)
        type_name = links.pop(TYPE_KEY, None)
        texts = {TYPE_KEY: type_name} if type_name is not None else {}
        texts |= {name.key: text for name in log.names if (text := self._names.get(name))}
        return Association(
            audit_id, log.external_id, log.customer_id, log.category, log.action, log.timestamp_ms, links, texts
        )
