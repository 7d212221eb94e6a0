"""The CDP's contacts, queried by CRM person id: a few queries a batch, for any number of persons. I/O.

Each query goes through an index: `idx_company_crm_data_id`, `uniq_company_crm_person_id`, `idx_company_customer_id`, or
`_id`. The results are read by the same rules as all contacts of a replay (`schemas.source.contact_rules`).
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import pymongo
from pymongo.collection import Collection as MongoCollection
from pymongo.database import Database
from pymongo.errors import ConfigurationError, InvalidURI, PyMongoError

from processors.feed.contacts import Person
from schemas.collections import CONTACT_ID_MAP, CONTACTS
from schemas.errors import BadInputError
from schemas.process import stored
from schemas.process.connections import Connections
from schemas.records import Contact
from schemas.secrets import about
from schemas.source.contact_rules import (
    CONTACT_FIELDS,
    MAP_FIELDS,
    Watermarked,
    customer_forms,
    customer_key,
    customer_of,
    first_mapped,
    first_synced,
    microseconds,
    person_key,
    person_of,
    spellings,
)

log = logging.getLogger(__name__)

SERVER_SELECTION_TIMEOUT_MS = 5_000
SOCKET_TIMEOUT_MS = 30_000
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
CLAUSES_MAX = 200  # accounts of one query; each clause is planned separately
UNDECODABLE_KEPT_MAX = 10_000  # contacts that have been logged already
Document = Mapping[str, Any]


def database(connections: Connections) -> Database[dict[str, Any]]:
    """Return the CDP's database, without connecting. Raises BadInputError for an invalid address."""
    connections.require("mongodb_url")
    try:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            connections.mongodb_url,
            tz_aware=True,
            appname="crm-replay-live",
            serverSelectionTimeoutMS=SERVER_SELECTION_TIMEOUT_MS,
            connectTimeoutMS=SERVER_SELECTION_TIMEOUT_MS,
            socketTimeoutMS=SOCKET_TIMEOUT_MS,
        )
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise BadInputError(
            f"MONGODB_URL is not usable ({about(error, connections.mongodb_url)})", "mongodb://host:port"
        ) from error
    return client[connections.mongodb_database]


class MongoContacts:
    """Reads `contacts` and `crm_contact_id_map`."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        """`database` is the CDP's. Reads go to the primary, whatever the URL says: a secondary lags."""
        primary = database.with_options(read_preference=pymongo.ReadPreference.PRIMARY)
        self._contacts = primary[CONTACTS]
        self._mapped = primary[CONTACT_ID_MAP]
        self._undecodable: set[str] = set()

    @property
    def undecodable(self) -> int:
        """How many contacts and entries could not be decoded: they match no person."""
        return len(self._undecodable)

    async def ask(self, persons: Collection[Person]) -> dict[Person, Contact]:
        """Return the contacts that exist; retries while MongoDB does not answer."""
        wait_s = BACKOFF_FIRST_S
        while True:
            try:
                return await asyncio.to_thread(self.find, persons)
            except PyMongoError as error:
                log.warning("MongoDB does not answer (%s); again in %.1f s", type(error).__name__, wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(BACKOFF_MAX_S, wait_s * 2)

    def find(self, persons: Collection[Person]) -> dict[Person, Contact]:
        """Return the contacts that exist: those with the id, then those named by the id map."""
        found = self._direct(persons)
        missing = [person for person in persons if person not in found]
        if missing:
            found.update(self._by_map(missing))
        return {
            person: Contact(person[0], person[1], customer_id, created_at)
            for person, (created_at, customer_id) in found.items()
        }

    def _direct(self, persons: Collection[Person]) -> dict[Person, Watermarked]:
        wanted = set(persons)
        found: dict[Person, Watermarked] = {}
        clauses = (
            {"company_sso_id": account, "crm_data.id": {"$in": [s for p in ids for s in spellings(p)]}}
            for account, ids in _by_account(persons)
        )
        for contact in self._found(self._contacts, clauses, CONTACT_FIELDS):
            person = (str(contact.get("company_sso_id")), person_of(contact) or "")
            created_at = microseconds(contact.get("created_at"))
            if person in wanted and created_at is not None:
                found[person] = first_synced(found.get(person), (created_at, customer_of(contact)))
        return found

    def _by_map(self, persons: Collection[Person]) -> dict[Person, Watermarked]:
        wanted = set(persons)
        clauses = (
            {"company_sso_id": account, "crm_person_id": {"$in": [s for p in ids for s in spellings(p)]}}
            for account, ids in _by_account(persons)
        )
        customers: dict[Person, set[str]] = defaultdict(set)
        spelt: dict[str, list[Any]] = defaultdict(list)  # by account: its customers, in every form
        for entry in self._found(self._mapped, clauses, MAP_FIELDS):
            account, customer = str(entry.get("company_sso_id")), customer_key(entry.get("customer_id"))
            person = (account, person_key(entry.get("crm_person_id")) or "")
            if customer is not None and person in wanted:
                customers[person].add(customer)
                spelt[account] += (entry["customer_id"], *customer_forms(customer))
        synced: dict[str, dict[str, int]] = defaultdict(dict)  # by account: its customers' created_at
        places = (
            {"company_sso_id": account, place: {"$in": ids}}
            for account, ids in spelt.items()
            for place in ("customer_id", "_id")
        )
        for contact in self._found(self._contacts, places, CONTACT_FIELDS):
            of_account, customer = synced[str(contact.get("company_sso_id"))], customer_of(contact)
            created_at = microseconds(contact.get("created_at"))
            if created_at is not None:
                of_account[customer] = min(created_at, of_account.get(customer, created_at))
        return {
            person: found
            for person, named in customers.items()
            if (found := first_mapped(named, synced[person[0]])) is not None
        }

    def _found(
        self, collection: MongoCollection[dict[str, Any]], clauses: Iterable[Document], fields: Document
    ) -> Iterator[Document]:
        rest = iter(clauses)
        while some := list(islice(rest, CLAUSES_MAX)):
            query = {"$or": some} if len(some) > 1 else some[0]
            yield from stored.find(collection, query, fields, self._report)

    def _report(self, undecodable: stored.Undecodable) -> None:
        if undecodable.id not in self._undecodable and len(self._undecodable) < UNDECODABLE_KEPT_MAX:
            self._undecodable.add(undecodable.id)
            log.warning("contact %s cannot be decoded and is ignored (%s)", undecodable.id, undecodable.why)


def _by_account(persons: Iterable[Person]) -> Iterator[tuple[str, list[str]]]:
    by_account: dict[str, list[str]] = defaultdict(list)
    for account, person_id in persons:
        by_account[account].append(person_id)
    yield from by_account.items()
