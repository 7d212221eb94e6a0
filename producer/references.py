"""Publishes what the processors look up: contacts, users and referents, completely, to their compacted topics.

Every key gets its present value, and every key of a former publication that no longer exists gets a tombstone. So a
table loaded from the topic equals the source at this moment. Idempotent.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from confluent_kafka.admin import AdminClient
from psycopg import sql

from producer.audits import INTEGERS, Connection, answering, columns_of, connect, resolve
from producer.checkpoint import answering as mongo_answering
from producer.publisher import Publisher
from producer.topics import check_topics, message_bytes_max, messages_held, offsets_held_by
from schemas.codec import Codec
from schemas.collections import CONTACT_ID_MAP, CONTACTS
from schemas.process import stored
from schemas.process.mongodb import Database
from schemas.records import Contact, Referent, User
from schemas.source.contact_rules import (
    CONTACT_FIELDS,
    MAP_FIELDS,
    Watermarked,
    customer_key,
    customer_of,
    first_mapped,
    first_synced,
    has_odd_person,
    microseconds,
    person_key,
    person_of,
)
from schemas.source.mapping import SourceMapping
from schemas.topics import ACCOUNT_KEY, AccountTopics

Progress = Callable[[str, int], None]  # "contacts", "users" or "referents"; records published so far

FETCH_ROWS = 5_000
REPLACEMENT = "\ufffd"
NAMED_MAX = 5  # records named of those with a defect
BATCH_RECORDS = 2_000


@dataclass(frozen=True, slots=True)
class ReferenceCounts:
    """What was published, and which contacts and texts were unusable."""

    contacts: int
    users: int
    referents: int
    tombstones: int
    contacts_doubled: int  # contacts left out because an older one has the same CRM person id
    contacts_mapped: int  # of the contacts: found through crm_contact_id_map only
    contacts_unusable: int  # created_at is not a date, so there is no watermark
    mapped_missing: int  # entries of crm_contact_id_map whose customer has no contact in this account
    contacts_undecodable: int  # contacts and id map entries that cannot be decoded, so that their person is unknown
    contacts_odd_id: int  # with a CRM person id in a form that no look-up finds
    texts_repaired: int  # users and referents with bytes that are not UTF-8 in a text, replaced by U+FFFD
    undecodable_named: tuple[str, ...]  # the first few of them, by `_id`
    odd_ids_named: tuple[str, ...]
    repaired_named: tuple[str, ...]  # by record key

    def warnings(self) -> list[str]:
        """Return a line for each kind of unusable record."""
        skipped = "their history is skipped as contact_not_found"
        return [
            f"{named(count, first, what)} {why}"
            for count, first, what, why in (
                (self.contacts_undecodable, self.undecodable_named, "contacts", f"cannot be decoded: {skipped}"),
                (
                    self.contacts_odd_id,
                    self.odd_ids_named,
                    "contacts",
                    f"have a crm_data.id that is no plain number: {skipped}",
                ),
                (
                    self.texts_repaired,
                    self.repaired_named,
                    "users and referents",
                    "have a text that is not UTF-8: U+FFFD stands for what is not, and such an email counts as none",
                ),
            )
            if count
        ]


@dataclass(frozen=True, slots=True)
class FoundContacts:
    """An account's contacts by CRM person id."""

    by_person: dict[str, Watermarked]
    doubled: int
    mapped: int
    unusable: int
    mapped_missing: int
    undecodable: int = 0
    odd_ids: int = 0
    undecodable_named: tuple[str, ...] = ()  # the first few `_id`s, as `stored.shown_id` shows them
    odd_ids_named: tuple[str, ...] = ()


def publish(
    dsn: str,
    mapping: SourceMapping,
    company_sso_id: str,
    *,
    kafka: Mapping[str, Any],
    mongo: Database,
    topics: AccountTopics,
    codec: Codec,
    statement_timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> ReferenceCounts:
    """Publish all three reference topics; returns once every delivery is confirmed.

    Raises ServiceUnreachableError or BadInputError before anything is published, ReplayError for an outage later: then
    publish again. Keeps the contacts (about 300 bytes each) and the keys of one topic at a time in memory.
    """
    admin = AdminClient({**kafka, "log_level": 0})
    partitions = check_topics(kafka, topics.references, admin)
    with ExitStack() as open_, connect(dsn, statement_timeout_s) as db:
        # Opened early, so that each has its producer id when it is needed.
        publishers = {
            topic: open_.enter_context(closing(Publisher(kafka, topic, message_bytes_max(kafka, topic, admin))))
            for topic in topics.references
        }
        account = resolve(db, mapping, company_sso_id).account
        found = find_contacts(mongo, company_sso_id)
        held = offsets_held_by(admin, partitions)  # late: topics just created have no leader yet
        tombstones = 0

        def run(name: str, topic: str, records: Iterator[tuple[str, bytes]]) -> int:
            nonlocal tombstones
            gone = keys_on(kafka, topic, held[topic])
            published, dropped = _publish_topic(
                publishers[topic], gone, records, lambda n: progress(name, n) if progress else None
            )
            tombstones += dropped
            return published

        contacts = run("contacts", topics.contacts, _contact_records(found, company_sso_id, codec))
        texts = _Texts(db)
        users = run("users", topics.users, _user_records(db, mapping, codec, texts))
        referents = run("referents", topics.referents, _referent_records(db, mapping, account, codec, texts))
    return ReferenceCounts(
        contacts=contacts,
        users=users,
        referents=referents,
        tombstones=tombstones,
        contacts_doubled=found.doubled,
        contacts_mapped=found.mapped,
        contacts_unusable=found.unusable,
        mapped_missing=found.mapped_missing,
        contacts_undecodable=found.undecodable,
        contacts_odd_id=found.odd_ids,
        texts_repaired=texts.repaired.count,
        undecodable_named=found.undecodable_named,
        odd_ids_named=found.odd_ids_named,
        repaired_named=tuple(texts.repaired.first),
    )


def publish_feed(
    dsn: str,
    mapping: SourceMapping,
    *,
    kafka: Mapping[str, Any],
    topics: AccountTopics,
    codec: Codec,
    with_referents: bool = True,
    statement_timeout_s: float = 60.0,
) -> tuple[int, int]:
    """Publish the users and referents of all accounts for a live feed; return how many of each.

    The referents include the accounts of the account column's values, if the mapping has a query for them: key
    `@account:<value>`, the account as its name. Contacts are left out: the live feed queries MongoDB, as they appear
    while it runs. Raises like `publish`.
    """
    admin = AdminClient({**kafka, "log_level": 0})
    held = offsets_held_by(admin, check_topics(kafka, (topics.users, topics.referents), admin))

    def run(topic: str, records: Iterator[tuple[str, bytes]]) -> int:
        with closing(Publisher(kafka, topic, message_bytes_max(kafka, topic, admin))) as publisher:
            return _publish_topic(publisher, keys_on(kafka, topic, held[topic]), records, lambda _: None)[0]

    with connect(dsn, statement_timeout_s) as db:
        texts = _Texts(db)
        users = run(topics.users, _user_records(db, mapping, codec, texts))
        names = _referent_records(db, mapping, None, codec, texts) if with_referents else iter(())
        records = chain(_account_records(db, mapping, codec), names)
        referents = run(topics.referents, records)
    return users, referents


def read_tables(
    dsn: str,
    mapping: SourceMapping,
    company_sso_id: str,
    *,
    mongo: Database,
    codec: Codec,
    statement_timeout_s: float = 60.0,
) -> dict[str, dict[bytes, bytes]]:
    """Return what `publish` would publish, by table and key, without Kafka: for dry runs.

    All in memory, as in a processor. Raises like `publish`.
    """
    with connect(dsn, statement_timeout_s) as db:
        account = resolve(db, mapping, company_sso_id).account
        found = find_contacts(mongo, company_sso_id)
        texts = _Texts(db)
        records = {
            "contacts": _contact_records(found, company_sso_id, codec),
            "users": _user_records(db, mapping, codec, texts),
            "referents": _referent_records(db, mapping, account, codec, texts),
        }
        return {table: {key.encode(): value for key, value in pairs} for table, pairs in records.items()}


def find_contacts(mongo: Database, company_sso_id: str) -> FoundContacts:
    """Return the account's contacts by CRM person id: those that have it, then those that the id map names.

    Of several contacts with one CRM person id the oldest wins (then the smaller customer_id): its watermark leaves most
    to the live feed, which has written since. A contact that cannot be decoded is left out, counted and named.
    """
    direct: dict[str, Watermarked] = {}
    doubled = unusable = mapped = missing = 0
    undecodable, odd_ids = _Named(), _Named()
    ours = {"company_sso_id": company_sso_id}
    with mongo_answering("reading the contacts"):
        by_map: dict[str, set[str]] = {}
        for entry in stored.find(mongo[CONTACT_ID_MAP], ours, MAP_FIELDS, undecodable.report, batch_size=FETCH_ROWS):
            person_id, mapped_to = person_key(entry.get("crm_person_id")), customer_key(entry.get("customer_id"))
            if person_id is not None and mapped_to is not None and entry["company_sso_id"] == company_sso_id:
                by_map.setdefault(person_id, set()).add(mapped_to)
        wanted = set().union(*by_map.values())
        created: dict[str, int] = {}  # of the wanted customers
        contacts = stored.find(mongo[CONTACTS], ours, CONTACT_FIELDS, undecodable.report, batch_size=FETCH_ROWS)
        for contact in contacts:
            if contact["company_sso_id"] != company_sso_id:
                continue  # a list of accounts: its owner is ambiguous
            person_id, customer = person_of(contact), customer_of(contact)
            if person_id is None:
                if has_odd_person(contact):
                    odd_ids.add(contact["_id"])
                if customer not in wanted:
                    continue
            created_at = microseconds(contact.get("created_at"))
            if created_at is None:
                unusable += 1
                continue
            if customer in wanted:
                created[customer] = min(created_at, created.get(customer, created_at))
            if person_id is not None:
                before = direct.get(person_id)
                doubled += before is not None
                direct[person_id] = first_synced(before, (created_at, customer))
    for person_id, customers in by_map.items():
        if person_id in direct:
            continue
        found = first_mapped(customers, created)
        if found is None:
            missing += 1
        else:
            direct[person_id] = found
            mapped += 1
    return FoundContacts(
        direct, doubled, mapped, unusable, missing, undecodable.count, odd_ids.count,
        tuple(undecodable.first), tuple(odd_ids.first),
    )  # fmt: skip


class _Named:
    """Records with a defect: their number, and the first few by name."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, contact_id: Any) -> None:
        self._add(stored.shown_id(contact_id))

    def report(self, undecodable: stored.Undecodable) -> None:
        self._add(undecodable.id)

    def _add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < NAMED_MAX:
            self.first.append(name)


def named(count: int, first: Sequence[str], what: str = "contacts") -> str:
    """Return the number in words, with the names of the first."""
    more = f" and {count - len(first):,} more" if count > len(first) else ""
    return f"{count:,} {what} ({', '.join(first)}{more})"


class _Texts:
    """Reads texts of the CRM's tables: as text, or as bytes from an SQL_ASCII database.

    Such a server fails a whole query for one text that is not UTF-8.
    """

    def __init__(self, db: Connection) -> None:
        self._as_bytes = db.info.parameter_status("server_encoding") == "SQL_ASCII"
        self.repaired = _Named()

    def select(self, expression: sql.Composable) -> sql.Composed:
        text = sql.SQL("COALESCE(({})::text, '')").format(expression)
        return sql.SQL("convert_to({}, 'SQL_ASCII')").format(text) if self._as_bytes else text

    def read(self, *values: Any, key: str) -> list[str]:
        """Return the texts of a record; what is not UTF-8 becomes U+FFFD, and the record is counted."""
        texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
        if self._as_bytes and any(
            REPLACEMENT in text and text.encode() != value for text, value in zip(texts, values, strict=True)
        ):
            self.repaired.add(key)
        return texts


def _contact_records(found: FoundContacts, company_sso_id: str, codec: Codec) -> Iterator[tuple[str, bytes]]:
    for person_id, (created_at, customer_id) in found.by_person.items():
        yield person_id, codec.encode(Contact(company_sso_id, person_id, customer_id, created_at))


def _user_records(db: Connection, mapping: SourceMapping, codec: Codec, texts: _Texts) -> Iterator[tuple[str, bytes]]:
    users = mapping.users
    query = sql.SQL(
        "SELECT {id}::bigint, {email}, {full_name}, {deleted_at} IS NOT NULL"
        " FROM {table} WHERE {order} > %(after)s ORDER BY {order}"
    ).format(
        id=sql.Identifier(users.id),
        order=_order(columns_of(db, users.schema_name, users.table), users.id),
        email=texts.select(sql.Identifier(users.email)),
        full_name=texts.select(sql.Identifier(users.full_name)),
        deleted_at=sql.Identifier(users.deleted_at),
        table=sql.Identifier(users.schema_name, users.table),
    )
    what = f"reading {users.schema_name}.{users.table}"
    for user_id, email_read, name_read, deleted in _stream(db, query, {}, what):
        email, full_name = texts.read(email_read, name_read, key=f"user {user_id}")
        # An email with replaced bytes finds no user in the directory.
        yield str(user_id), codec.encode(User(user_id, "" if REPLACEMENT in email else email, full_name, deleted))


def _account_records(db: Connection, mapping: SourceMapping, codec: Codec) -> Iterator[tuple[str, bytes]]:
    account = mapping.source.account
    if account is None or account.inverse is None:
        return
    query = sql.SQL("SELECT * FROM ({}) AS accounts").format(sql.SQL(account.inverse))
    with answering("the source mapping's inverse query for accounts"):
        rows = db.execute(query).fetchall()
    for value, company_sso_id in rows:
        if value is not None and company_sso_id:
            yield f"{ACCOUNT_KEY}{value}", codec.encode(Referent("", 0, str(company_sso_id)))


def _referent_records(
    db: Connection, mapping: SourceMapping, account: Any, codec: Codec, texts: _Texts
) -> Iterator[tuple[str, bytes]]:
    for type_name, table in mapping.referents.items():
        order = _order(columns_of(db, table.schema_name, table.table), table.id)
        which = sql.SQL("{order} > %(after)s").format(order=order)
        query = _referent_query(db, mapping, account, type_name, which, texts)
        query = sql.SQL("{} ORDER BY {}").format(query, order)
        name = f"{table.schema_name}.{table.table}"
        for referent_id, value in _stream(db, query, {"account": account}, f"reading {name}"):
            key = f"{type_name}:{referent_id}"
            (text,) = texts.read(value, key=key)
            yield key, codec.encode(Referent(type_name, referent_id, text))


class NameReader:
    """Reads the names of an account's records in the CRM, on one connection; queries are cached by type."""

    def __init__(self, db: Connection, mapping: SourceMapping, account: Any) -> None:
        """`account` is the mapped account column's value, None if the database has one account."""
        self._db = db
        self._mapping = mapping
        self._account = account
        self._texts = _Texts(db)
        self._queries: dict[str, bytes] = {}

    def names_of(self, type_name: str, ids: Collection[int]) -> dict[int, str]:
        """Return the present names of records of a type, "" for one without a name; deleted ones are left out.

        So are records of another account. Raises KeyError for a type that is not in the mapping's referents.
        """
        table = self._mapping.referents[type_name]
        with answering(f"reading {table.schema_name}.{table.table}"):
            if (query := self._queries.get(type_name)) is None:
                which = sql.SQL("{} = ANY(%(ids)s::bigint[])").format(sql.Identifier(table.id))
                composed = _referent_query(self._db, self._mapping, self._account, type_name, which, self._texts)
                query = self._queries[type_name] = composed.as_bytes(None)
            rows = self._db.execute(query, {"account": self._account, "ids": list(ids)}).fetchall()
        return {id_: self._texts.read(value, key=f"{type_name}:{id_}")[0] for id_, value in rows}


def _referent_query(
    db: Connection, mapping: SourceMapping, account: Any, type_name: str, which: sql.Composable, texts: _Texts
) -> sql.Composed:
    """Return the query for id and name of the account's records of a type; `which` is a predicate."""
    table = mapping.referents[type_name]
    account_column = mapping.source.account.column if mapping.source.account and account is not None else None
    predicate: sql.Composable = sql.SQL("true")
    if account_column is not None and account_column in columns_of(db, table.schema_name, table.table):
        predicate = sql.SQL("{} = %(account)s").format(sql.Identifier(account_column))
    return sql.SQL("SELECT {id}::bigint, {name} FROM {table} WHERE {which} AND {account}").format(
        id=sql.Identifier(table.id),
        # The mapping's expression is the operator's SQL; its per cent signs are not placeholders.
        name=texts.select(sql.SQL(table.name.replace("%", "%%"))),
        table=sql.Identifier(table.schema_name, table.table),
        which=which,
        account=predicate,
    )


def _stream(db: Connection, query: sql.Composed, values: Mapping[str, Any], what: str) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows, ordered by id, without holding them all."""
    with answering(what):
        yield from db.ordered(query, values)


def _order(columns: Mapping[str, str], id_: str) -> sql.Composable:
    """Return the sort expression of rows: the id as a number; the plain column, with its index, if it is one."""
    column = sql.Identifier(id_)
    return column if columns[id_] in INTEGERS else sql.SQL("{}::bigint").format(column)


def _publish_topic(
    publisher: Publisher, gone: set[bytes], records: Iterator[tuple[str, bytes]], progress: Callable[[int], None]
) -> tuple[int, int]:
    """Publish all records, and tombstones for the keys of `gone` that no record has; return how many of each."""
    published = 0
    while batch := [(key.encode(), value) for key, value in islice(records, BATCH_RECORDS)]:
        publisher.publish(batch)
        gone.difference_update(key for key, _ in batch)
        published += len(batch)
        progress(published)
    publisher.publish((key, None) for key in gone)
    publisher.flush()
    progress(published)
    return published, len(gone)


def keys_on(kafka: Mapping[str, Any], topic: str, held: Sequence[tuple[int, int]]) -> set[bytes]:
    """Return the keys whose last record on a topic is not a tombstone, reading the whole topic once.

    `held` has each partition's first offset and end offset. Raises ReplayError if Kafka stops answering.
    """
    keys: set[bytes] = set()
    for message in messages_held(kafka, topic, dict(enumerate(held))):
        if (key := message.key()) is not None:
            keys.discard(key) if message.value() is None else keys.add(key)
    return keys
