"""I/O: finds all data of a person. Read-only; joins no group and commits nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ops.kafka.topics import KeyedRead, keyed_records
from ops.progress import RunView
from ops.subject.model import Person, is_about
from producer.audits import answering, connect, resolve
from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS, CONTACT_ID_MAP, CONTACTS
from schemas.errors import UndecodableRecordError, UnknownSchemaError, UnreadableTopicError
from schemas.identity import EXTERNAL_ID_PREFIX
from schemas.process import stored
from schemas.process.mongodb import Database
from schemas.records import Contact
from schemas.source.contact_rules import customer_key, customer_of, spellings
from schemas.source.mapping import SourceMapping
from schemas.topics import AccountTopics
from sink import purge as documents
from sink.indexes import CONTACT_BY_CRM_ID, CONTACT_ID_MAP_UNIQUE

PROGRESS_EVERY_RECORDS = 100_000
NATIVE_LOOKUP_MS = 30_000


@dataclass(slots=True)
class OnTopic:
    """The records about a person on one topic."""

    topic: str
    records: list[KeyedRead]  # one for each outcome of a batch, which all stand at its offset
    last_is_value: set[bytes]  # keys of them whose last record is no tombstone, so that a compaction keeps it


def forms(person: Person) -> list[Any]:
    """Return how the person's id may be stored in the platform."""
    return spellings(person.person_id)


def contacts_of(database: Database, person: Person) -> tuple[int, int, set[str]]:
    """Return how many contacts and id map entries name the person, and their customer ids."""
    account, ids = person.company_sso_id, forms(person)
    unread: list[stored.Undecodable] = []  # they name the person, and it is not known as which customer
    contacts = list(
        stored.find(
            database[CONTACTS],
            {"company_sso_id": account, "crm_data.id": {"$in": ids}},
            {"customer_id": 1},
            unread.append,
            hint=CONTACT_BY_CRM_ID.name,
        )
    )
    unread_contacts = len(unread)
    mapped = list(
        stored.find(
            database[CONTACT_ID_MAP],
            {"company_sso_id": account, "crm_person_id": {"$in": ids}},
            {"customer_id": 1},
            unread.append,
            hint=CONTACT_ID_MAP_UNIQUE.name,
        )
    )
    customers = {customer_of(contact) for contact in contacts}
    customers |= {customer for entry in mapped if (customer := customer_key(entry.get("customer_id"))) is not None}
    return len(contacts) + unread_contacts, len(mapped) + len(unread) - unread_contacts, customers


def documents_of(database: Database, person: Person, customers: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the person's activity logs that come from the CRM's audits, of the replay and of the live feed."""
    return documents.find(database, person.company_sso_id, person.person_id, customers)


def native_documents(database: Database, person: Person, customers: set[str]) -> int | None:
    """Return how many logs of other origins the person's customers have; None if that takes too long to count."""
    from pymongo.errors import ExecutionTimeout

    if not customers:
        return 0
    query = {
        "company_sso_id": person.company_sso_id,
        "customer_id": {"$in": sorted(customers)},
        "external_id": {"$not": {"$regex": f"^{EXTERNAL_ID_PREFIX}"}},
    }
    try:
        return int(database[ACTIVITY_LOGS].count_documents(query, maxTimeMS=NATIVE_LOOKUP_MS))
    except ExecutionTimeout:
        return None


def source_rows(dsn: str, mapping: SourceMapping, person: Person) -> int:
    """Return how many rows of the CRM's audits are about the person's own record: those that an index can find."""
    from psycopg import sql

    with connect(dsn) as db:
        source = resolve(db, mapping, person.company_sso_id)
        ours: sql.Composable = sql.SQL("true")
        if source.account_column is not None:
            ours = sql.SQL("{} = %(account)s").format(sql.Identifier(source.account_column))
        query = sql.SQL(
            "SELECT count(*) FROM {table} WHERE auditable_type = ANY(%(types)s) AND auditable_id = %(id)s AND {ours}"
        ).format(table=sql.Identifier(source.schema, source.relation), ours=ours)
        values = {
            "types": list(mapping.stored_types(person.rule.types)),
            "id": int(person.person_id),
            "account": source.account,
        }
        with answering("counting the person's rows"):
            return int(db.execute(query, values).fetchall()[0][0])


def topics_of(account: str) -> tuple[str, ...]:
    """Return the account's topics that can hold personal data."""
    names = AccountTopics.of(account)
    return (names.replay, names.outcomes, names.dead_letters, names.contacts, names.referents)


def on_topic(kafka: Mapping[str, Any], topic: str, person: Person, codec: Codec, view: RunView) -> OnTopic:
    """Return the records about the person on a topic, reading all of it once."""
    found = OnTopic(topic, [], set())
    keys = {person.person_id.encode(), *person.referent_keys}
    for number, record in enumerate(keyed_records(kafka, topic), start=1):
        if number % PROGRESS_EVERY_RECORDS == 0:
            view.note(f"{topic}: {number:,} records read")
        if record.value is None:
            if record.key is not None:
                found.last_is_value.discard(record.key)
            continue
        for key, value in codec.outcomes(record.key, record.value):
            try:
                about = is_about(person, key, value, codec)
            except UnknownSchemaError as error:
                raise UnreadableTopicError.at(topic, record.partition, record.offset, error) from error
            if about:
                found.records.append(record._replace(key=key, value=value))
                if key in keys:
                    found.last_is_value.add(key)
    return found


def customers_on(contacts: OnTopic, codec: Codec) -> set[str]:
    """Return the customers that the reference topic names for the person: the contact may have been erased since."""
    found = set()
    for record in contacts.records:
        try:
            found.add(codec.decode_as(Contact, record.value or b"").customer_id)
        except UndecodableRecordError:
            continue
    return found
