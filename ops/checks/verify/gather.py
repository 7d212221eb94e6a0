"""I/O: the inputs of a check, before it reads a row. Every client of Kafka that is opened here is closed again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ops.checks.verify import topics
from ops.checks.verify.segments import PAGE_ROWS, Work
from ops.jobs.jobs import Job
from ops.kafka import admin as kafka_admin
from ops.kafka.topics import spans
from processors.lookups.tables import ReferenceTables
from producer.audits import AuditSource, connect, resolve
from producer.settings import ProducerSettings
from producer.topics import message_bytes_max
from schemas.codec import Codec
from schemas.process.connections import Connections
from schemas.source.mapping import SourceMapping
from schemas.topics import AccountTopics

LOAD_TIMEOUT_S = 900.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def work_of(
    job: Job,
    connections: Connections,
    mapping: SourceMapping,
    source: AuditSource,
    runs: tuple[int, ...],
    codec: Codec,
    named_max: int,
) -> Work:
    """Return what a segment's check has to know; the tables are those that the account's run was made with."""
    account, kafka = job.company_sso_id, connections.kafka()
    names = AccountTopics.of(account)
    references = {"contacts": names.contacts, "users": names.users, "referents": names.referents}
    tables = ReferenceTables(kafka, references, codec)
    try:
        tables.load(LOAD_TIMEOUT_S)
    finally:
        tables.close()
    held = spans(kafka, names.dead_letters)
    kept_for = timedelta(milliseconds=kafka_admin.DEAD_LETTER_RETENTION_MS)
    limits = ProducerSettings.load().limits(message_bytes_max(kafka, names.replay))
    return Work(
        connections=connections,
        codec=codec,
        company_sso_id=account,
        mapping=mapping,
        source=source,
        cutoff_us=(job.reads_from - EPOCH) // timedelta(microseconds=1),
        runs=runs,
        limits=replace(limits, page_rows=PAGE_ROWS),
        tables=tables.rows,
        dead_letters=topics.dead_letters(kafka, names, codec, job.run),
        dead_letters_expired=any(span.low > 0 for span in held.values())
        and datetime.now(UTC) - job.started_at > kept_for,
        named_max=named_max,
    )


def work_without_directory(
    job: Job,
    connections: Connections,
    mapping: SourceMapping,
    runs: tuple[int, ...],
    codec: Codec,
    named_max: int,
) -> Work:
    """Return the work that decides whether rows become documents; actors do not matter, so no directory is queried."""
    without_directory = connections.model_copy(update={"user_directory_url": ""})
    with connect(connections.crm_audit_database_url) as db:
        source = resolve(db, mapping, job.company_sso_id)
    return work_of(job, without_directory, mapping, source, runs, codec, named_max)
