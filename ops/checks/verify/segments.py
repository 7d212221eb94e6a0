"""One worker's part: source rows of an id segment, transformed again, against the documents of the same segment.

A segment is a range of audit ids. Its documents are found without their content: the `_id` of a document that the
replay wrote begins with the run and ends with the audit id (sink.documents), so those of a segment are one range of the
primary key for each run that has documents. Missing ones are looked up by external_id, in the unique index.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, cast

from bson import ObjectId

from ops.checks.verify.compare import BODY_AT, body_of, decode, differences, documents, expected_document, stored
from ops.checks.verify.expected import Expected, expected_of
from ops.checks.verify.model import Finding, Kind, Tally
from ops.checks.verify.seals import ACTING_MAX, WITHOUT_MAX, Evidence, Letters, Seal, SealStore, answers_fingerprint
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.answers import TableLookups, decoded
from processors.lookups.directory import UserDirectory
from processors.lookups.tables import TableRows
from producer.audits import AuditReader, AuditSource, Limits
from producer.cursor import EARLIEST
from producer.messages import Page
from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import ServiceUnreachableError
from schemas.identity import EXTERNAL_ID_PREFIX, SOURCE_TAG, external_id_of, replay_id
from schemas.process.connections import Connections
from schemas.process.mongodb import Documents, connect
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import DeadLetterCause, SkipReason
from sink.indexes import UNIQUE_EXTERNAL_ID

PAGE_ROWS = 2_000
SEGMENT_ROWS = 2_000  # rows and documents of so many are held at once by a worker
LOOK_UP_MAX = 1_000  # external ids a query
BATCH_DOCUMENTS = 5_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """The ids in (low, high], one worker's task."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker has to know; inherited when the process is forked, never sent."""

    connections: Connections
    codec: Codec
    company_sso_id: str
    mapping: SourceMapping
    source: AuditSource
    cutoff_us: int
    runs: tuple[int, ...]  # that have documents
    limits: Limits  # of the reader; what does not fit the replay topic is no document either
    tables: dict[str, TableRows]
    dead_letters: dict[int, str]  # audit id -> cause
    dead_letters_expired: bool  # the topic may have let some go
    named_max: int
    basis: str = ""  # of the seals; "": none are used, none are made
    seals: Mapping[int, Seal] = field(default_factory=dict)  # by the id below their first


@dataclass(slots=True)
class _Segment:
    """The rows of an id range, with their expected outcomes."""

    bodies: dict[int, bytes] = field(default_factory=dict)  # audit id -> the document without its length
    skipped: dict[int, SkipReason] = field(default_factory=dict)
    refused: dict[int, DeadLetterCause] = field(default_factory=dict)
    created_at: dict[int, int] = field(default_factory=dict)  # of every row


@dataclass(slots=True)
class _Collected:
    """What a chunk's proof has come by, as far as its seal has to name it."""

    documents: dict[int, Any] = field(default_factory=dict)  # by run; of the very bytes that were compared
    acting: set[int] = field(default_factory=set)
    without: list[int] = field(default_factory=list)
    elsewhere: bool = False  # documents were found that have the `_id` of none of the runs


class SegmentChecker:
    """Checks chunks, one after the other, over connections of its own."""

    def __init__(self, work: Work) -> None:
        """Connects at once."""
        self._work = work
        self._account = work.company_sso_id
        self._reader = AuditReader(work.connections.crm_audit_database_url, work.source, EARLIEST, work.limits)
        self._database = connect(work.connections, app_name="crm-replay-verify")
        logs: Documents = self._database[ACTIVITY_LOGS]
        self._logs = logs
        url = work.connections.user_directory_url
        self._directory = UserDirectory(url, work.company_sso_id) if url else None
        self._loop = asyncio.new_event_loop()
        self._tables = TableLookups(decoded(work.tables, work.codec, work.company_sso_id), self._directory)
        self._rows = RowEncoder(Transformer(work.mapping, work.company_sso_id), self._tables, work.codec)
        self._seals = SealStore(self._database, work.company_sso_id)
        self._letters = Letters(work.dead_letters)
        self._collected = _Collected()

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
        self._database.client.close()
        if self._directory is not None:
            self._loop.run_until_complete(self._directory.aclose())
        self._loop.close()

    def check(self, chunk: Chunk) -> Tally:
        """Return the result of a chunk's rows and documents."""
        if not self._work.basis:
            return self._prove(chunk)
        # Before the rows are read: were it after, a row altered in between would be sealed without having been proved.
        rows = self._reader.fingerprint(chunk.low, chunk.high)
        seal = self._work.seals.get(chunk.low)
        if seal is not None and seal.high == chunk.high and self._is_intact(seal, rows):
            return seal.tally()
        tally = self._prove(chunk)
        if rows is not None and not tally.found:
            self._seal(chunk, rows, tally)
        return tally

    def _prove(self, chunk: Chunk) -> Tally:
        self._collected = _Collected()
        tally, segment = Tally(), _Segment()
        low = cursor = chunk.low
        while cursor < chunk.high:
            page = self._reader.page_after(cursor, chunk.high, 0, (), look_for_gaps=False)
            self._take(page, segment)
            cursor = page.end
            if len(segment.created_at) >= SEGMENT_ROWS or cursor >= chunk.high:
                self._compare(low, cursor, segment, tally)
                low, segment = cursor, _Segment()
        return tally

    def rows_of(self, audit_ids: Sequence[int]) -> dict[int, Expected]:
        """Return how the rows with these ids have to end; an id without a row in scope is left out."""
        segment = _Segment()
        ids = sorted(set(audit_ids))
        cursor = ids[0] - 1 if ids else 0
        while ids and cursor < ids[-1]:
            page = self._reader.late_page_after(cursor, [(audit_id, audit_id) for audit_id in ids], 0)
            self._take(page, segment)
            cursor = page.end
        return {**segment.bodies, **segment.skipped, **segment.refused}

    # ---- seals

    def _is_intact(self, seal: Seal, rows: str | None) -> bool:
        """Return whether all inputs of the chunk's proof are unchanged; the cheapest are compared first."""
        low, high, proved = seal.low, seal.high, seal.evidence
        return (
            (proved.basis, proved.rows) == (self._work.basis, rows)
            and seal.names_enough(self._work.named_max)
            and proved.letters == self._letters.fingerprint(low, high)
            and proved.answers == self._answers(seal.acting)
            and not self._have_documents(seal.without)
            and proved.documents == self._documents(low, high)
        )

    def _seal(self, chunk: Chunk, rows: str, tally: Tally) -> None:
        """Keep that the chunk was proved equal, unless more would have to be named than a seal is made for."""
        collected, low, high = self._collected, chunk.low, chunk.high
        if collected.elsewhere or len(collected.without) > WITHOUT_MAX or len(collected.acting) > ACTING_MAX:
            return
        evidence = Evidence(
            self._work.basis,
            rows,
            {str(run): digest.hexdigest() for run, digest in collected.documents.items()},
            self._letters.fingerprint(low, high),
            self._answers(collected.acting),
        )
        if not self._seals.keep(Seal.of(low, high, evidence, tally, collected.without, collected.acting)):
            tally.unsealed += tally.rows

    def _documents(self, low: int, high: int) -> dict[str, str]:
        """Return the fingerprints of the documents of (low, high], by run."""
        found = {}
        for run in self._work.runs:
            digest = None
            for batch in self._range(run, low, high):
                if batch:
                    digest = digest or sha256()
                    digest.update(batch)
            if digest is not None:
                found[str(run)] = digest.hexdigest()
        return found

    def _have_documents(self, audit_ids: Sequence[int]) -> bool:
        """Return whether any of these rows has a document of the account by now."""
        for at in range(0, len(audit_ids), LOOK_UP_MAX):
            query = self._by_external_id(audit_ids[at : at + LOOK_UP_MAX])
            if self._logs.find_one(query, {"_id": 1}, hint=UNIQUE_EXTERNAL_ID.name) is not None:
                return True
        return False

    def _answers(self, acting: Iterable[int]) -> str:
        """Return the fingerprint of the directory's answers for these users; "" if none is queried."""
        if self._directory is None:
            return ""
        users = sorted(acting)
        self._ask_directory(set(users))
        known = ((user_id, self._tables.user(user_id)) for user_id in users)
        return answers_fingerprint((id_, self._tables.sso_id(user.email) if user else None) for id_, user in known)

    # ---- the source's side

    def _take(self, page: Page, segment: _Segment) -> None:
        """Add a page's rows to the segment."""
        if self._directory is not None:
            acting = {event.user_id for event in page.events if event.user_id}
            self._ask_directory(acting)
            self._collected.acting |= acting
        rows = self._rows
        bodies, created_at = segment.bodies, segment.created_at
        for event in page.events:
            audit_id = event.audit_id
            created_at[audit_id] = event.created_at
            expected = expected_of(event, rows)
            if type(expected) is bytes:
                bodies[audit_id] = body_of(expected)
            elif type(expected) is SkipReason:
                segment.skipped[audit_id] = expected
            else:
                segment.refused[audit_id] = expected  # type: ignore[assignment]
        for audit_id, defect in page.defects.items():  # such a row never reaches the rules
            bodies.pop(audit_id, None)
            segment.skipped.pop(audit_id, None)
            segment.refused[audit_id] = defect.cause

    def _ask_directory(self, user_ids: Set[int]) -> None:
        assert self._directory is not None
        self._loop.run_until_complete(self._tables.prefetch_users(user_ids))
        counts = self._directory.counts
        if counts.failed or counts.not_asked:
            raise ServiceUnreachableError(
                "the user directory does not answer, so the actors are unknown",
                "check USER_DIRECTORY_URL, then verify again",
            )

    # ---- the copy's side

    def _compare(self, low: int, high: int, segment: _Segment, tally: Tally) -> None:
        """Compare rows and documents of (low, high]."""
        work, bodies = self._work, segment.bodies
        missing = dict(bodies)  # until their document is met
        odd: list[tuple[int, bytes]] = []
        matched = 0
        digests = self._collected.documents
        for run in work.runs:
            for batch in self._range(run, low, high):
                if work.basis and batch:
                    digests.setdefault(run, sha256()).update(batch)
                for begin, end, audit_id in stored(batch):
                    body = missing.pop(audit_id, None)
                    if body is not None and body == batch[begin + BODY_AT : end]:
                        matched += 1
                        continue
                    if body is not None:
                        missing[audit_id] = body
                    odd.append((audit_id, batch[begin:end]))
        tally.matched += matched
        tally.tagged += matched  # they are the account's and have our tag, for their bytes are the same
        met: set[int] = set()
        elsewhere: set[int] = set()
        for audit_id, document in odd:
            self._judge_by_id(audit_id, decode(document), segment, missing, elsewhere, met, tally)
        if missing:
            self._look_up(missing, segment, met, tally)
            self._collected.without += missing
        self._count(segment, missing, elsewhere, tally)

    def _range(self, run: int, low: int, high: int) -> Iterable[bytes]:
        first, last = max(low + 1, 1), max(high, 1)
        span = {"$gte": ObjectId(replay_id(run, first)), "$lte": ObjectId(replay_id(run, last))}
        return self._raw({"_id": span}, "_id_")

    def _raw(self, query: dict[str, Any], index: str) -> Iterable[bytes]:
        """Return batches of documents as the server keeps them; pymongo's types claim that they are decoded."""
        found: Any = self._logs.find_raw_batches(query, batch_size=BATCH_DOCUMENTS, hint=index)
        return cast("Iterable[bytes]", found)

    def _judge_by_id(
        self,
        audit_id: int,
        document: dict[str, Any],
        segment: _Segment,
        missing: dict[int, bytes],
        elsewhere: set[int],
        met: set[int],
        tally: Tally,
    ) -> None:
        """Decide about a document that has the `_id` of a row, but not its bytes."""
        if document.get("company_sso_id") != self._account:
            elsewhere.add(audit_id)  # not ours to touch; the row goes without
            return
        is_tagged = document.get("source_tag") == SOURCE_TAG
        tally.tagged += is_tagged
        external_id = document.get("external_id")
        if audit_id in missing and external_id == external_id_of(audit_id):
            self._judge(audit_id, missing.pop(audit_id), document, segment, tally)
            met.add(audit_id)
        elif is_tagged:
            if external_id != external_id_of(audit_id):
                why = f"its external_id is not that of row {audit_id}, which its _id names"
            else:
                why = why_extra(segment.skipped.get(audit_id) or segment.refused.get(audit_id))
            tally.note(extra(document, audit_id, why), self._work.named_max)

    def _judge(self, audit_id: int, body: bytes, document: dict[str, Any], segment: _Segment, tally: Tally) -> None:
        """Compare the document of a row."""
        fields, enriched = differences(expected_document(body), document)
        if not fields:
            tally.matched += 1
            tally.enriched += enriched
            return
        tally.note(
            Finding(
                Kind.DIFFERENT,
                audit_id,
                segment.created_at[audit_id],
                f"{', '.join(fields)} {'differs' if len(fields) == 1 else 'differ'} from what the row becomes",
                fields,
                str(document.get("external_id")),
                document.get("_id"),
                str(document.get("customer_id")) if "customer_id" in fields else "",
            ),
            self._work.named_max,
        )

    def _look_up(self, missing: dict[int, bytes], segment: _Segment, met: set[int], tally: Tally) -> None:
        """Find documents by external_id that have the `_id` of no run; what is left in `missing` has none."""
        ids = list(missing)
        for at in range(0, len(ids), LOOK_UP_MAX):
            for batch in self._raw(self._by_external_id(ids[at : at + LOOK_UP_MAX]), UNIQUE_EXTERNAL_ID.name):
                for document in documents(batch):
                    self._collected.elsewhere = True
                    tally.tagged += document.get("source_tag") == SOURCE_TAG
                    audit_id = int(str(document["external_id"])[len(EXTERNAL_ID_PREFIX) :])
                    self._judge(audit_id, missing.pop(audit_id), document, segment, tally)
                    met.add(audit_id)

    def _by_external_id(self, audit_ids: Sequence[int]) -> dict[str, Any]:
        wanted = [external_id_of(audit_id) for audit_id in audit_ids]
        return {"company_sso_id": self._account, "external_id": {"$in": wanted}}

    def _count(self, segment: _Segment, missing: dict[int, bytes], elsewhere: set[int], tally: Tally) -> None:
        """Put every row of the segment into its bin."""
        work, named_max = self._work, self._work.named_max
        letters, created_at, cutoff_us = work.dead_letters, segment.created_at, work.cutoff_us
        old = {audit_id for audit_id, at_us in created_at.items() if at_us < cutoff_us}
        tally.before_cutoff += len(old)
        tally.rows += len(created_at) - len(old)
        tally.logs += len(segment.bodies) - sum(audit_id in segment.bodies for audit_id in old)
        tally.skipped.update(reason.value for audit_id, reason in segment.skipped.items() if audit_id not in old)
        if letters:
            tally.retried += sum(
                audit_id in letters for audit_id in segment.bodies if audit_id not in missing and audit_id not in old
            )
        for audit_id in missing:
            if audit_id in old:
                continue
            cause = letters.get(audit_id)
            if cause is not None:
                tally.logs -= 1
                tally.fail(audit_id, cause, named_max)
                continue
            why = "its document has another company_sso_id" if audit_id in elsewhere else ""
            tally.note(Finding(Kind.MISSING, audit_id, created_at[audit_id], why), named_max)
        for audit_id, refused in segment.refused.items():
            if audit_id in old:
                continue
            cause = letters.get(audit_id)
            if cause is not None or work.dead_letters_expired:
                tally.fail(audit_id, cause or refused.value, named_max)
                continue
            why = f"the row ends as {refused.value}, and the dead-letter topic does not have it"
            tally.note(Finding(Kind.DEAD_LETTER_LOST, audit_id, created_at[audit_id], why), named_max)


def extra(document: dict[str, Any], audit_id: int | None, why: str) -> Finding:
    """Return the finding that a document is one too many."""
    stamp = document.get("timestamp")  # of any type
    at_us = int(stamp.timestamp() * 1_000_000) if isinstance(stamp, datetime) else None
    return Finding(
        Kind.EXTRA,
        audit_id,
        at_us,
        why,
        external_id=str(document.get("external_id", "")),
        document_id=document.get("_id"),
        customer_id=str(document.get("customer_id", "")),
    )


def why_extra(reason: SkipReason | DeadLetterCause | None) -> str:
    """Return why a row with this outcome should have no document; None: there is no such row."""
    if reason is None:
        return "no source row of the account in scope has this id"
    if isinstance(reason, SkipReason):
        return f"its row is skipped: {reason.value}"
    return f"its row cannot become a document: {reason.value}"
