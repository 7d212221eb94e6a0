"""I/O: the purge of one person, in an order that is repeatable after a failure at any point.

1. tombstones on the reference topics: from here on a rerun finds no contact, so nothing that is deleted is restored;
2. the documents, in batches;
3. the backlog, if requested: everything that has been processed on the replay and outcomes topics is deleted, of every
   person: Kafka can only truncate a topic that is not compacted;
4. the audit log, then the certificate.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from ops.jobs import audit_log
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.kafka.topics import spans
from ops.progress import RunView
from ops.subject import find
from ops.subject.find import OnTopic
from ops.subject.model import Certificate, Kept, Person, gone_by
from producer.publisher import Publisher
from producer.topics import message_bytes_max
from schemas.codec import Codec
from schemas.collections import CONTACT_ID_MAP, CONTACTS
from schemas.errors import BadInputError, ReplayError
from schemas.identity import SOURCE_TAG
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.source.mapping import SourceMapping
from schemas.topics import LIVE_TOPIC, AccountTopics
from schemas.vocabulary import JobStatus
from sink import purge as documents

ACTION = "subject-purge"  # in the audit log, in which the nightly check finds deliberate deletions
FEED_TOPICS = "crm.feed."  # of live feeds, each for many accounts
Confirm = Callable[[dict[str, Any]], None]  # gets the findings; raises to stop before anything is removed


def purge_person(
    person: Person,
    mapping: SourceMapping,
    connections: Connections,
    database: Database,
    codec: Codec,
    view: RunView,
    *,
    confirm: Confirm,
    truncate_backlog: bool = False,
) -> Certificate:
    """Remove the person's data and return the certificate; idempotent.

    Raises BadInputError while a job of the account is in progress: its processes still write.
    """
    account, kafka = person.company_sso_id, connections.kafka()
    job = JobStore(database).latest(account)
    if job is not None and job.status is JobStatus.IN_PROGRESS:
        raise BadInputError(
            f"a run of {account} is in progress, it would write on", f"crm-replay halt --account {account}"
        )
    admin = kafka_admin.client(kafka)
    names = AccountTopics.of(account)
    seen = {topic: find.on_topic(kafka, topic, person, codec, view) for topic in find.topics_of(account)}
    contacts, mapped, customers = find.contacts_of(database, person)
    customers |= find.customers_on(seen[names.contacts], codec)
    tags = [document.get("source_tag") for document in find.documents_of(database, person, customers)]
    count, of_the_replay = len(tags), tags.count(SOURCE_TAG)
    certificate = Certificate(account, person.person_id, datetime.now(UTC), audit_log.on_this_host())
    certificate.found = {
        "documents": count,
        "documents_of_the_replay": of_the_replay,
        "topics": {topic: len(found.records) for topic, found in seen.items()},
    }
    confirm(certificate.found)
    audit_log.append(
        database,
        ACTION,
        account,
        who=certificate.by,
        outcome=audit_log.BEGUN,
        detail={"found": certificate.found},
    )
    tombstones = _bury(kafka, seen, names)
    removed = documents.purge(
        database, account, person.person_id, customers, on_batch=lambda n: view.progress(n, count, {}, 0)
    )
    truncated = _truncate(admin, kafka, names) if truncate_backlog else {}
    certificate.removed = {
        "documents": removed,
        "documents_of_the_replay": of_the_replay,
        "tombstones": tombstones,
        "truncated": truncated,
    }
    certificate.left = _left(admin, seen, names, truncated)
    certificate.still_in = {CONTACTS: contacts, CONTACT_ID_MAP: mapped}
    _tell(certificate, person, mapping, connections, database, customers, admin)
    audit_log.append(database, ACTION, account, who=certificate.by, detail={"removed": certificate.removed})
    return certificate


def _bury(kafka: Mapping[str, Any], seen: Mapping[str, OnTopic], names: AccountTopics) -> dict[str, int]:
    """Publish a tombstone for each of the person's keys that still has a value; return how many by topic."""
    buried = {}
    for topic in (names.contacts, names.referents):
        keys = sorted(seen[topic].last_is_value)
        if keys:
            publisher = Publisher(kafka, topic, message_bytes_max(kafka, topic))
            try:
                publisher.publish((key, None) for key in keys)
                publisher.flush()
            finally:
                publisher.close()
        buried[topic] = len(keys)
    return buried


def _truncate(admin: AdminClient, kafka: Mapping[str, Any], names: AccountTopics) -> dict[str, int]:
    """Delete what both groups have handled of the backlog; return how many records by topic."""
    deleted = {}
    for topic, group in ((names.replay, names.processors_group), (names.outcomes, names.sink_group)):
        held = spans(kafka, topic)
        committed = kafka_admin.committed_offsets(kafka, group, topic, len(held)) if held else []
        behind = {p: span for p, span in held.items() if committed[p] < span.end and span.low < span.end}
        if any(committed[p] < 0 for p in behind):
            raise ReplayError(f"group {group} has committed nothing on {topic}", "leave --truncate-backlog out")
        wanted = [
            TopicPartition(topic, p, min(committed[p], span.end)) for p, span in held.items() if span.low < span.end
        ]
        if wanted:
            for future in admin.delete_records(wanted).values():
                kafka_admin.answer(future)
        deleted[topic] = sum(max(0, at.offset - held[at.partition].low) for at in wanted)
    return deleted


def _left(
    admin: AdminClient, seen: Mapping[str, OnTopic], names: AccountTopics, truncated: Mapping[str, int]
) -> list[Kept]:
    """Return what only time removes, and by when."""
    kept = []
    for topic, found in seen.items():
        if not found.records:
            continue
        config = kafka_admin.topic_config(admin, topic)
        if topic in (names.contacts, names.referents):
            why = "buried by a tombstone; the next compaction of its segment removes the values"
            kept.append(Kept(topic, len(found.records), why))
        elif topic not in truncated:
            newest = max(record.at for record in found.records)
            kept.append(Kept(topic, len(found.records), "retention of the topic", gone_by(config, newest)))
    return kept


def _tell(
    certificate: Certificate,
    person: Person,
    mapping: SourceMapping,
    connections: Connections,
    database: Database,
    customers: set[str],
    admin: AdminClient,
) -> None:
    """Note what else is known of the person, and what is not ours to remove."""
    if any(certificate.still_in.values()):
        certificate.notes.append(
            "the platform still has the contact: the next run would bring the history back; erase it there too"
        )
    if connections.crm_audit_database_url:
        try:
            rows = find.source_rows(connections.crm_audit_database_url, mapping, person)
        except ReplayError as error:
            certificate.notes.append(f"the CRM could not be queried: {error.what}")
        else:
            certificate.notes.append(
                f"the CRM has {rows:,} audit rows of the person's own record; this software never writes to it"
            )
    native = find.native_documents(database, person, customers)
    if native is None or native:
        number = "an unknown number of" if native is None else f"{native:,}"
        certificate.notes.append(f"{number} activity logs of other origins belong to the platform and were not touched")
    shared = [
        name
        for name in sorted(admin.list_topics(timeout=kafka_admin.ANSWER_TIMEOUT_S).topics)
        if name == LIVE_TOPIC or name.startswith(FEED_TOPICS)
    ]
    for topic in shared:
        config = kafka_admin.topic_config(admin, topic)
        kept_ms = int(config.get("retention.ms", -1))
        kept = f"for {kept_ms / kafka_admin.DAY_MS:.1f} days" if kept_ms >= 0 else "indefinitely"
        if "compact" in config.get("cleanup.policy", ""):
            kept = "until its key is gone from the CRM"
        certificate.notes.append(f"{topic}, which accounts share, keeps its records {kept}; it was not searched")
