"""I/O: the rows of the source through the producer's reader and the processors' rules; nothing leaves this process.

Lookups are what a worker would have: the reference tables, read from source and platform instead of from their topics,
and the user directory, queried as by a worker.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import bson
from bson.codec_options import CodecOptions
from pymongo.errors import OperationFailure, PyMongoError

from ops.checks.dry_run.model import Examples, Report, Tally, estimate_of, id_ranges, masked_document, named_duplicate
from ops.checks.estimates import INDEX_BYTES, rate_of
from ops.checks.file_rows import printable
from ops.checks.verify.expected import Expected, expected_of
from ops.jobs.documents import rows_with_document
from ops.kafka import admin as kafka_admin
from ops.progress import RunView
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.answers import TableLookups, decoded
from processors.lookups.directory import UserDirectory
from processors.rules.decide import Refused
from producer.audits import AuditReader, connect, resolve
from producer.cursor import EARLIEST
from producer.messages import Page
from producer.references import read_tables
from producer.settings import ProducerSettings
from producer.survey import survey
from producer.topics import MESSAGE_BYTES_LIMIT, RECORD_OVERHEAD_BYTES, message_bytes_max
from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS, JOBS
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, Documents
from schemas.process.mongodb import connect as connect_mongodb
from schemas.process.registry import codec_for
from schemas.records import AuditEvent
from schemas.source.mapping import load
from schemas.source.person import person_candidates
from schemas.topics import AccountTopics
from schemas.vocabulary import DeadLetterCause, JobStatus, SkipReason
from sink.indexes import UNIQUE_EXTERNAL_ID

PLACES = 20  # of a sample: rows of every age
EXAMPLES = 1
JOBS_LOOKED_AT = 50
NAMESPACE_NOT_FOUND = 26
AWARE: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)


@dataclass(frozen=True, slots=True)
class DryRunOptions:
    """What a dry run reads and shows."""

    mapping_path: str = ""
    limit: int = 0  # rows, spread over all ids; 0: all of them
    date_range_start: datetime | None = None
    examples: int = EXAMPLES  # of each kind
    show_values: bool = False


def dry_run_account(account: str, options: DryRunOptions, connections: Connections, view: RunView) -> Report:
    """Return the results that a replay of the account would have now. Writes nothing, and needs no Kafka.

    Raises BadInputError for what a run would refuse too (mapping, account, servers), ReplayError for an outage.
    """
    AccountTopics.of(account)
    connections.require("crm_audit_database_url", "mongodb_url")
    mapping = load(options.mapping_path or None)
    codec = codec_for("")  # what it makes, it reads: no topic and no registry is needed
    dsn = connections.crm_audit_database_url
    found = survey(dsn, mapping, account, date_range_start=options.date_range_start)
    limits = ProducerSettings.load().limits(_row_bytes_max(account, connections))
    database = connect_mongodb(connections, app_name="crm-replay-dry-run")
    try:
        tables = read_tables(dsn, mapping, account, mongo=database, codec=codec)
        view.note("references: " + ", ".join(f"{len(rows):,} {name}" for name, rows in tables.items()))
        with connect(dsn) as db:
            source = resolve(db, mapping, account)
        dry = _DryRun(
            account, options, connections, Transformer(mapping, account), tables, codec, database, mapping.person
        )
        began = time.monotonic()
        wanted = min(options.limit or found.rows, found.rows)
        try:
            with closing(AuditReader(dsn, source, options.date_range_start or EARLIEST, limits)) as reader:
                for page in _pages(reader, found.min_id - 1, found.top_audit_id, found.rows, wanted):
                    dry.take(page)
                    tally = dry.tally
                    view.progress(tally.rows, wanted, dict(tally.skipped), tally.failed_total)
        finally:
            dry.close()
        seconds = time.monotonic() - began
        rate = rate_of(_finished_runs(database))
    except PyMongoError as error:
        raise ReplayError(f"MongoDB does not answer ({type(error).__name__})", "try again when it is back") from error
    finally:
        database.client.close()
    tally = dry.tally
    undated = 0 if options.date_range_start is None else found.rows_without_created_at
    return Report(
        company_sso_id=account,
        rows_in_scope=found.rows,
        top_audit_id=found.top_audit_id,
        cutoff=found.cutoff,
        tally=tally,
        examples=dry.examples,
        counts=dry.counts(),
        references={name: len(rows) for name, rows in tables.items()},
        estimate=estimate_of(tally, found.rows, rate, INDEX_BYTES),
        dry_rows_per_s=tally.rows / seconds if seconds else 0.0,
        out_of_scope_by_type=found.out_of_scope_by_type,
        notes=[*found.notes, *dry.notes(undated, connections.user_directory_url)],
    )


def _row_bytes_max(account: str, connections: Connections) -> int:
    """Return how many bytes a row may have: by its topic if it exists, else as the topic would be created."""
    would_be = max(
        RECORD_OVERHEAD_BYTES, min(kafka_admin.RECORD_BYTES_MAX, MESSAGE_BYTES_LIMIT) - RECORD_OVERHEAD_BYTES
    )
    if not connections.kafka_bootstrap_servers:
        return would_be
    with suppress(ReplayError):
        topic = AccountTopics.of(account).replay
        if topic in kafka_admin.client(connections.kafka()).list_topics(timeout=kafka_admin.ANSWER_TIMEOUT_S).topics:
            return message_bytes_max(connections.kafka(), topic)
    return would_be


def _pages(reader: AuditReader, low: int, top: int, rows: int, wanted: int) -> Iterator[Page]:
    """Yield pages of `wanted` rows in all: every page if that is all of them, else of places spread over the ids."""
    places = PLACES if wanted < rows else 1
    spread = reader.spread() if places > 1 else []
    owed = 0  # rows that earlier places did not have
    for begin, end, share in id_ranges(low, top, spread, wanted, places):
        left, cursor = share + owed, begin
        while cursor < end and (left > 0 or places == 1):
            page = reader.page_after(cursor, end, 0, (), look_for_gaps=False)
            cursor = page.end
            events = page.events if places == 1 else page.events[:left]
            left -= len(events)
            yield Page(events, page.end, page.gaps, page.defects)
        owed = max(0, left)


def _finished_runs(database: Database) -> Iterator[tuple[int, datetime, datetime | None]]:
    """Yield rows, start and end of completed runs, the newest first; also where no migration has been applied yet."""
    jobs = database[JOBS].find({"status": JobStatus.COMPLETED.value}).sort("started_at", -1).limit(JOBS_LOOKED_AT)
    for job in jobs:
        yield int(job["records_total"]), job["started_at"], job["finished_at"]


class _DryRun:
    """Takes pages, and counts what their rows become."""

    def __init__(
        self,
        account: str,
        options: DryRunOptions,
        connections: Connections,
        transformer: Transformer,
        tables: dict[str, dict[bytes, bytes]],
        codec: Codec,
        database: Database,
        person: Any,
    ) -> None:
        self.tally = Tally()
        self.examples = Examples(options.examples)
        self._account = account
        self._show_values = options.show_values
        self._transformer = transformer
        self._codec = codec
        self._person = person
        url = connections.user_directory_url
        self._directory = UserDirectory(url, account) if url else None
        self._lookups = TableLookups(decoded(tables, codec, account), self._directory)
        self._rows = RowEncoder(transformer, self._lookups, codec)
        self._loop = asyncio.new_event_loop()
        self._database = database
        self._has_index = UNIQUE_EXTERNAL_ID.name in _index_names(database[ACTIVITY_LOGS])

    def close(self) -> None:
        """Close the directory's connections."""
        if self._directory is not None:
            self._loop.run_until_complete(self._directory.aclose())
        self._loop.close()

    def counts(self) -> dict[str, int]:
        """Return the rules' other counts, besides the outcomes."""
        return self._transformer.counts.as_dict()

    def notes(self, without_created_at: int, directory_url: str) -> list[str]:
        """Return what the reader of the report has to know."""
        notes = []
        if without_created_at:
            notes.append(f"{without_created_at:,} rows have no created_at: they are in no date range and not read")
        if not self._has_index:
            notes.append("activity_logs has no index by external_id yet, so documents were not looked up")
        if not directory_url:
            notes.append("USER_DIRECTORY_URL is not set, so every actor who is a user falls back")
        elif self._directory is not None and self._directory.counts.failed:
            notes.append(f"the user directory did not respond for {self._directory.counts.failed:,} users")
        return notes

    def take(self, page: Page) -> None:
        """Count a page's rows."""
        users = {event.user_id for event in page.events if event.user_id}
        self._loop.run_until_complete(self._lookups.prefetch_users(users))
        logs: list[tuple[AuditEvent, bytes]] = []
        for event in page.events:
            self.tally.rows += 1
            self.tally.text_bytes += len(event.audited_changes.encode("utf-8", "replace")) + len(event.comment)
            self.tally.event_bytes += len(self._codec.encode(event))
            defect = page.defects.get(event.audit_id)
            expected: Expected = defect.cause if defect else expected_of(event, self._rows)
            if isinstance(expected, bytes):
                logs.append((event, expected))
            elif isinstance(expected, SkipReason):
                self._skip(event, expected.value)
            else:
                self._fail(event, expected, defect.detail if defect else None)
        there = self._documents_of([event.audit_id for event, _ in logs])
        for event, document in logs:
            if event.audit_id in there:
                self._skip(event, named_duplicate())
            else:
                self._log(event, document)

    def _documents_of(self, audit_ids: Sequence[int]) -> set[int]:
        """Return those of the rows that the unique index would refuse: they have a document, of any writer."""
        if not self._has_index or not audit_ids:
            return set()
        return rows_with_document(self._database, self._account, audit_ids)

    def _log(self, event: AuditEvent, encoded: bytes) -> None:
        document = bson.decode(encoded, AWARE)
        name = f"{document['category']}/{document['action']}"
        self.tally.logs[name] += 1
        self.tally.document_bytes += len(encoded)
        if self.examples.wanted(self.examples.logs, name):
            shown = document if self._show_values else masked_document(document)
            self.examples.logs.setdefault(name, []).append({**_row(event), "document": printable(shown)})

    def _skip(self, event: AuditEvent, reason: str) -> None:
        self.tally.skipped[reason] += 1
        if self.examples.wanted(self.examples.skipped, reason):
            persons = list(person_candidates(event, self._person))
            self.examples.skipped.setdefault(reason, []).append({**_row(event), "crm_person_ids": persons})

    def _fail(self, event: AuditEvent, cause: DeadLetterCause, detail: str | None) -> None:
        self.tally.failed[cause.value] += 1
        if self.examples.wanted(self.examples.failed, cause.value):
            shown = {**_row(event), "detail": self._why(event) if detail is None else detail}
            if self._show_values:
                shown |= {"audited_changes": event.audited_changes, "comment": event.comment}
            self.examples.failed.setdefault(cause.value, []).append(shown)

    def _why(self, event: AuditEvent) -> str:
        """Return the rules' own reason for a refusal; it has no content of the row."""
        try:
            result = self._transformer.transform(event, self._lookups)
        except Exception as error:  # a defect of a rule, which a worker dead-letters too
            return f"a rule raised {type(error).__name__}"
        return result.detail if isinstance(result, Refused) else "the document is larger than MongoDB takes"


def _row(event: AuditEvent) -> dict[str, Any]:
    """Return what names a row."""
    return {"audit_id": event.audit_id, "auditable_type": event.auditable_type, "action": event.action}


def _index_names(logs: Documents) -> set[str]:
    try:
        return set(logs.index_information())
    except OperationFailure as error:
        if error.code != NAMESPACE_NOT_FOUND:
            raise
        return set()
