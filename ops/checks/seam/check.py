"""The account's source rows against its documents around the watermarks; reads only, page by page.

Memory is bounded by the account's contacts (about 300 bytes each) and by a page of rows; every look-up goes through an
index: `uniq_company_external_id` for the documents of both sides, `idx_legacy_customer_time` for legacy documents.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pymongo.errors import PyMongoError

from ops.checks.seam.matching import Expected, Legacy, Matcher, ranges
from ops.jobs.documents import of_rows
from ops.jobs.jobs import Job
from ops.jobs.letters import moment
from ops.jobs.store import JobStore
from ops.progress import RunView
from processors.rules.associations import ID_KEY, metadata_of
from processors.rules.decide import Answer, Decision, Refused, Rules, Skip
from processors.rules.watermark import skip_reason
from producer.audits import AuditReader, AuditSource, Limits, resolve
from producer.audits import connect as db_connect
from producer.cursor import EARLIEST
from producer.references import FoundContacts, find_contacts
from producer.survey import count_in_scope, survey
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import BadInputError, ReplayError
from schemas.process import stored
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, Documents, connect
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.source.contact_rules import microseconds
from schemas.source.mapping import SourceMapping, load
from schemas.topics import encode_account
from sink.indexes import LEGACY_LOGS, UNIQUE_EXTERNAL_ID

PAGE_ROWS = 1_000
REPAIR_MAX = 1_000_000  # gaps of each side that one call repairs; the next call continues
CLAUSES_MAX = 200  # ranges of one query for legacy documents
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = 1_000_000


@dataclass(frozen=True, slots=True)
class SeamOptions:
    """The window and the tolerances of the check."""

    mapping_path: str = ""
    window_s: float = 86_400.0  # of rows, on either side of a contact's watermark; 0: all of them
    tolerance_s: float = 2.0  # between a row and its legacy document
    settle_s: float = 60.0  # younger rows may still be in transit
    named_max: int = 100


class Finding(NamedTuple):
    """A row that has no document, or two."""

    kind: str  # gap, overlap
    audit_id: int
    owner: str  # replay, live
    customer_id: str
    category: str
    action: str
    created_at: int  # microseconds
    watermark: int
    documents: tuple[str, ...]  # their `_id`s
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            **self._asdict(),
            "created_at": _text(self.created_at),
            "watermark": _text(self.watermark),
            "documents": list(self.documents),
        }


@dataclass
class Report:
    """The handover of an account."""

    company_sso_id: str
    contacts: int = 0
    rows: int = 0  # in scope, scanned
    no_log: int = 0  # that become no log on either side: no contact, not mapped
    unreadable: int = 0  # whose changes are dead letters
    outside: int = 0  # farther from the watermark than the window
    too_recent: int = 0
    checked: int = 0  # = written + written_before + gaps
    written: int = 0  # with their external_id
    written_before: int = 0  # by the live feed before it knew external ids
    gaps: int = 0
    gaps_of_replay: int = 0
    overlaps: int = 0
    findings: list[Finding] = field(default_factory=list)
    gaps_replay_ids: list[int] = field(default_factory=list)  # to be repaired, as many as one call does
    gaps_live_ids: list[int] = field(default_factory=list)
    seconds: float = 0.0
    repaired: dict[str, int] = field(default_factory=dict)  # rows given to each side

    @property
    def clean(self) -> bool:
        """Whether every row that was checked has exactly one document."""
        return self.gaps == 0 and self.overlaps == 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        names = ("company_sso_id", "contacts", "rows", "no_log", "unreadable", "outside", "too_recent", "checked",
                 "written", "written_before", "gaps", "gaps_of_replay", "overlaps")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "clean": self.clean,
            "findings": [finding.as_dict() for finding in self.findings],
            "repaired": self.repaired,
            "seconds": round(self.seconds, 3),
        }


class ContactLookups:
    """The rules' lookups here: contacts only. Actors and names do not decide ownership."""

    def __init__(self, company_sso_id: str, found: FoundContacts) -> None:
        """`found` are all contacts of the account."""
        self._account = company_sso_id
        self._by_person = found.by_person

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact with this CRM person id."""
        found = self._by_person.get(person_id)
        return Contact(self._account, person_id, found[1], found[0]) if found is not None else None

    def user(self, user_id: int) -> User | None:  # noqa: ARG002
        """Return None."""
        return None

    def sso_id(self, email: str) -> str | None:  # noqa: ARG002
        """Return None."""
        return None

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:  # noqa: ARG002
        """Return None."""
        return None


class _Row(NamedTuple):
    event: AuditEvent
    owner: str
    decision: Decision


class SeamChecker:
    """Checks one account; one use."""

    def __init__(
        self,
        account: str,
        mapping: SourceMapping,
        found: FoundContacts,
        database: Database,
        options: SeamOptions,
        now_us: int,
    ) -> None:
        """`found` are the account's contacts as they are now."""
        self.report = Report(account, contacts=len(found.by_person))
        self._lookups = ContactLookups(account, found)
        self._rules = Rules(mapping, account, live=None)
        self._database = database
        self._logs: Documents = database[ACTIVITY_LOGS]
        self._job: Job | None = JobStore(database).latest(account)
        self._options = options
        self._window_us = int(options.window_s * US)
        self._tolerance_ms = int(options.tolerance_s * 1000)
        self._young_us = now_us - int(options.settle_s * US)
        self._matcher = Matcher(self._tolerance_ms)
        self._has_legacy = self._logs.find_one(
            {"company_sso_id": account, "external_id": None}, {"_id": 1}, hint=LEGACY_LOGS.name
        ) is not None  # fmt: skip

    def add(self, events: Sequence[AuditEvent]) -> None:
        """Check a page of rows."""
        rows = [row for event in events if (row := self._owned(event)) is not None]
        self.report.rows += len(events)
        if rows:
            self._compare(rows)

    def _owned(self, event: AuditEvent) -> _Row | None:
        """Return the row with the side that has to write it; None if none has to, or if it is outside of the window."""
        report = self.report
        trail: list[Answer] = []
        decision = self._rules.decide(event, self._lookups, trail=trail)
        if isinstance(decision, Skip):
            report.no_log += 1
            return None
        (synced_at,) = (answer.facts["synced_at"] for answer in trail if answer.rule == "watermark")
        if self._window_us and abs(event.created_at - synced_at) > self._window_us:
            report.outside += 1
        elif event.created_at > self._young_us:
            report.too_recent += 1
        elif isinstance(decision, Refused):
            report.unreadable += 1
        else:
            report.checked += 1
            is_replays = skip_reason(event.created_at, synced_at, live=False) is None
            return _Row(event, "replay" if is_replays else "live", decision)
        return None

    def _compare(self, rows: Sequence[_Row]) -> None:
        report = self.report
        written = self._written([row.event.audit_id for row in rows])
        expected = [
            Expected(
                row.event.audit_id,
                row.decision.contact.customer_id,
                row.decision.category,
                row.decision.action,
                metadata_of(row.decision.links).get(ID_KEY),
                row.event.created_at // 1000,
                row.event.audit_id in written,
            )
            for row in rows
        ]
        legacy = self._matcher.match(expected, self._legacy(expected)).by_row if self._has_legacy else {}
        for row in rows:
            audit_id = row.event.audit_id
            ours, before = written.get(audit_id), legacy.get(audit_id)
            if ours is not None:
                report.written += 1
                if before is not None:
                    report.overlaps += 1
                    self._name(
                        "overlap", row, (str(ours), str(before)), "the live feed wrote it before, without external_id"
                    )
            elif before is not None:
                report.written_before += 1
            else:
                report.gaps += 1
                self._gap(row)

    def _gap(self, row: _Row) -> None:
        report = self.report
        if row.owner == "replay":
            report.gaps_of_replay += 1
            if len(report.gaps_replay_ids) < REPAIR_MAX:
                report.gaps_replay_ids.append(row.event.audit_id)
            self._name("gap", row, (), self._why_of_replay(row))
        else:
            if len(report.gaps_live_ids) < REPAIR_MAX:
                report.gaps_live_ids.append(row.event.audit_id)
            self._name("gap", row, (), "from the watermark on the live feed owns it, and has not written it")

    def _why_of_replay(self, row: _Row) -> str:
        job = self._job
        if job is None:
            return "before the watermark the replay owns it, and there was none yet"
        if row.event.audit_id > job.top_audit_id:
            return f"before the watermark the replay owns it, and the last one ended at audit {job.top_audit_id}"
        if row.decision.contact.created_at >= (microseconds(job.started_at) or 0):
            return "before the watermark the replay owns it, and the last one began before there was the contact"
        return "before the watermark the replay owns it, and the last one has not written it"

    def _name(self, kind: str, row: _Row, documents: tuple[str, ...], why: str) -> None:
        if len(self.report.findings) < self._options.named_max:
            self.report.findings.append(
                Finding(
                    kind,
                    row.event.audit_id,
                    row.owner,
                    row.decision.contact.customer_id,
                    row.decision.category,
                    row.decision.action,
                    row.event.created_at,
                    row.decision.contact.created_at,
                    documents,
                    why,
                )
            )

    def _written(self, audit_ids: Sequence[int]) -> dict[int, Any]:
        """Return the `_id` of each row's document, by audit id; rows without one are left out."""
        found = of_rows(self._database, self.report.company_sso_id, audit_ids, ("_id",))
        return {audit_id: document["_id"] for audit_id, document in found}

    def _legacy(self, rows: Sequence[Expected]) -> Iterator[Legacy]:
        """Yield the documents without external_id that may match one of the rows."""
        wanted = ranges(rows, self._tolerance_ms)
        for at in range(0, len(wanted), CLAUSES_MAX):
            clauses = [
                {
                    "company_sso_id": self.report.company_sso_id,
                    "customer_id": customer_id,
                    "external_id": None,
                    "timestamp": {"$gte": _moment(first), "$lte": _moment(last)},
                }
                for customer_id, first, last in wanted[at : at + CLAUSES_MAX]
            ]
            fields = {"customer_id": 1, "category": 1, "action": 1, "timestamp": 1, "metadata.linked_entity_id": 1}
            for document in stored.find(self._logs, {"$or": clauses}, fields, stored.leave_out):
                metadata = document.get("metadata")
                at_us = microseconds(document["timestamp"])
                if at_us is not None:
                    yield Legacy(
                        document["_id"],
                        str(document["customer_id"]),
                        str(document.get("category")),
                        str(document.get("action")),
                        metadata.get("linked_entity_id") if isinstance(metadata, dict) else None,
                        at_us // 1000,
                    )


def check_seam(account: str, options: SeamOptions, connections: Connections, view: RunView) -> Report:
    """Return the state of an account's handover. Raises BadInputError, or ReplayError for an outage."""
    encode_account(account)  # raises for what is no account
    connections.require("crm_audit_database_url", "mongodb_url")
    mapping = load(options.mapping_path or None)
    began = time.monotonic()
    database = connect(connections, app_name="crm-replay-seam")
    try:
        _require_indexes(database)
        dsn = connections.crm_audit_database_url
        surveyed = survey(dsn, mapping, account)
        top, rows = surveyed.top_audit_id, surveyed.rows
        with closing(db_connect(dsn)) as db:
            source = resolve(db, mapping, account)
        found = find_contacts(database, account)
        checker = SeamChecker(account, mapping, found, database, options, time.time_ns() // 1000)
        cutoff = _cutoff(found, options)
        if cutoff > EARLIEST:
            rows = count_in_scope(dsn, mapping, account, top_audit_id=top, cutoff=cutoff).rows
        for page in _pages(dsn, source, cutoff, top):
            checker.add(page)
            done = checker.report.rows
            view.progress(done, max(rows, done), {}, checker.report.gaps + checker.report.overlaps)
        checker.report.seconds = time.monotonic() - began
        return checker.report
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "the same command again") from error
    finally:
        database.client.close()


def _require_indexes(database: Database) -> None:
    present = database[ACTIVITY_LOGS].index_information()
    if missing := {UNIQUE_EXTERNAL_ID.name, LEGACY_LOGS.name} - set(present):
        raise BadInputError(f"activity_logs lacks the index {', '.join(sorted(missing))}", "crm-replay migrate up")


def _cutoff(found: FoundContacts, options: SeamOptions) -> datetime:
    """Return the moment before which no row is near a watermark."""
    if not options.window_s or not found.by_person:
        return EARLIEST
    first = min(created_at for created_at, _ in found.by_person.values()) - int(options.window_s * US)
    return max(EARLIEST, moment(first))


def _pages(dsn: str, source: AuditSource, cutoff: datetime, top: int) -> Iterator[Sequence[AuditEvent]]:
    """Yield pages of rows in id order."""
    with closing(AuditReader(dsn, source, cutoff, Limits(page_rows=PAGE_ROWS))) as reader:
        cursor = 0
        while cursor < top:
            page = reader.page_after(cursor, top, 0, (), look_for_gaps=False)
            cursor = page.end
            yield page.sound


def rows_of(
    account: str, audit_ids: Sequence[int], mapping: SourceMapping, connections: Connections
) -> Iterator[Sequence[AuditEvent]]:
    """Yield chosen rows of the account, in id order, some at a time."""
    dsn = connections.crm_audit_database_url
    with closing(db_connect(dsn)) as db:
        source = resolve(db, mapping, account)
    gaps = [(audit_id, audit_id) for audit_id in sorted(audit_ids)]
    with closing(AuditReader(dsn, source, EARLIEST, Limits(page_rows=PAGE_ROWS))) as reader:
        cursor = gaps[0][0] - 1
        while cursor < gaps[-1][1]:
            page = reader.late_page_after(cursor, gaps, 0)
            yield [event._replace(company_sso_id=account) for event in page.sound]
            cursor = page.end


def _moment(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)


def _text(moment_us: int) -> str:
    return moment(moment_us).isoformat(timespec="milliseconds")
