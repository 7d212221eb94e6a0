"""I/O: the servers, the source mapping and the account's topics, checked before a run changes anything."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient

from ops.jobs import migrations, operations
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.kafka.rows import Topics
from ops.progress import RunView
from ops.runner.processes import require_writable
from producer.audits import connect as db_connect
from producer.audits import resolve
from producer.survey import Survey, survey
from producer.visibility import require_whole_tables, tables_read
from schemas.codec import Codec
from schemas.errors import BadInputError
from schemas.process.connections import Connections
from schemas.process.mongodb import Database, connect
from schemas.process.registry import codec_for
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The servers, mapping and topics of a run, checked before anything is changed."""

    connections: Connections
    kafka: Mapping[str, Any]
    admin: AdminClient
    mapping: SourceMapping
    store: JobStore
    database: Database
    topics: AccountTopics
    codec: Codec

    def look(self, account: str, date_range_start: datetime | None, view: RunView) -> Survey:
        """Return a survey of the source, if Kafka's retention is enough for a replay of it. Raises BadInputError."""
        found = survey(
            self.connections.crm_audit_database_url, self.mapping, account, date_range_start=date_range_start
        )
        kafka_admin.require_retention(self.admin, self.topics, found.rows)
        for note in found.notes:
            view.note(note)
        return found

    def require_mapping(self, job: Job) -> None:
        """Raise BadInputError if the job was started with another source mapping than this one."""
        if job.mapping_sha256 != operations.digest(self.mapping):
            raise BadInputError(
                f"the job of {job.company_sso_id} was started with another source mapping "
                f"({job.mapping_path or 'the default'})",
                "give the same --mapping",
            )

    def row_reader(self) -> Topics:
        """Return a reader of single rows on the account's topics."""
        return Topics(self.kafka, self.connections.schema_registry_url)


@contextmanager
def surroundings(account: str, mapping_path: str, connections: Connections, home: Path) -> Iterator[Surroundings]:
    """Yield the surroundings of a run after every check that needs no job, with nothing changed.

    Raises BadInputError for a missing address, or a mapping or database that is unusable,
    ServiceUnreachableError for a server that does not answer.
    """
    topics = AccountTopics.of(account)
    connections.require("crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url")
    mapping = load(mapping_path or None)
    require_writable(home)
    with closing(db_connect(connections.crm_audit_database_url)) as db:
        require_whole_tables(db, connections.crm_audit_database_url, tables_read(mapping))
        resolve(db, mapping, account)
    kafka = connections.kafka()
    admin = kafka_admin.client(kafka)
    database = connect(connections, app_name="crm-replay-runner")
    try:
        migrations.require_current(database)
        codec = codec_for(connections.schema_registry_url)
        yield Surroundings(connections, kafka, admin, mapping, JobStore(database), database, topics, codec)
    finally:
        database.client.close()
