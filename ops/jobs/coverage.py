"""I/O of the contact guard: the distinct CRM persons in the source's scope, and which of them the platform knows.

The ids up to the newest are cut into equal id ranges, read a page at a time in turn, so that reading can stop
at any point with a sample of the whole history. An account of up to ROWS_MAX rows is read completely.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from ops.jobs.guards import Coverage
from processors.rules.categories import RECORD_ACTIONS
from producer.audits import AuditReader, Limits, answering, connect, resolve
from producer.cursor import EARLIEST
from schemas.collections import CONTACT_ID_MAP, CONTACTS
from schemas.process import stored
from schemas.process.mongodb import Database
from schemas.process.waiting import Deadline
from schemas.records import AuditEvent
from schemas.source.contact_rules import person_key, person_of, spellings
from schemas.source.mapping import SourceMapping
from schemas.source.person import person_candidates
from sink.indexes import CONTACT_BY_CRM_ID, CONTACT_ID_MAP_UNIQUE, Index

ROWS_MAX = 30_000
PERSONS_MAX = 10_000
READ_MAX_S = 10.0  # a request waits for it
STATEMENT_TIMEOUT_S = 10.0
ID_RANGES = 64
IDS_A_QUERY = 1_000
MISSING_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class Persons:
    """The distinct CRM persons that some rows of the source name, and whether these were all rows in scope."""

    rows: int
    ids: tuple[str, ...]
    complete: bool


def measure(
    database: Database,
    dsn: str,
    mapping: SourceMapping,
    company_sso_id: str,
    *,
    date_range_start: datetime | None = None,
) -> Coverage:
    """Return how many of the account's CRM persons are contacts of the platform. Reads only.

    Raises BadInputError if the CRM has no such account or does not match the mapping, ServiceUnreachableError or
    ReplayError for an outage.
    """
    persons = persons_in_scope(dsn, mapping, company_sso_id, date_range_start=date_range_start)
    known = known_persons(database, company_sso_id, persons.ids)
    missing = [person for person in persons.ids if person not in known]
    return Coverage(
        persons.rows,
        len(persons.ids),
        len(persons.ids) - len(missing),
        persons.complete,
        tuple(missing[:MISSING_NAMED_MAX]),
    )


def persons_in_scope(
    dsn: str, mapping: SourceMapping, company_sso_id: str, *, date_range_start: datetime | None = None
) -> Persons:
    """Return the persons that rows in scope name first, which is the one that keys them, as `person_named` has them."""
    with connect(dsn, STATEMENT_TIMEOUT_S) as db:
        source = resolve(db, mapping, company_sso_id)
        with answering("querying the newest id"):
            _, top, _ = db.execute(source.query("horizon")).fetchall()[0]
    persons: dict[str, None] = {}
    rows = 0
    deadline = Deadline(READ_MAX_S)
    left = id_ranges(0, max(top, 0))
    limits = Limits(statement_timeout_s=STATEMENT_TIMEOUT_S)
    with closing(AuditReader(dsn, source, date_range_start or EARLIEST, limits)) as reader:
        while left:
            further = []
            for cursor, last in left:
                if rows >= ROWS_MAX or len(persons) >= PERSONS_MAX or deadline.passed:
                    return Persons(rows, tuple(persons), complete=False)
                page = reader.page_after(cursor, last, 0, (), look_for_gaps=False)
                rows += len(page.events)
                for event in page.events:
                    if (person := person_named(event, mapping)) is not None:
                        persons[person] = None
                if page.end < last:
                    further.append((page.end, last))
            left = further
    return Persons(rows, tuple(persons), complete=True)


def person_named(event: AuditEvent, mapping: SourceMapping) -> str | None:
    """Return the person that a row names first, None if it is about none.

    A row of a type that is logged like persons, and that names none, counts as one that is no contact, by type and id:
    `Person:7` of a class that was renamed, and that the mapping has under `categories` only. Without it the coverage
    would be whole while all of that class's history is skipped.
    """
    if found := person_candidates(event, mapping.person):
        return found[0]
    rule = mapping.categories.get(event.auditable_type)
    if rule is None or event.action not in RECORD_ACTIONS:
        return None
    of_persons = {mapping.categories[name].category for name in mapping.person.types if name in mapping.categories}
    return f"{event.auditable_type}:{event.auditable_id}" if rule.category in of_persons else None


def id_ranges(first: int, top: int, count: int = ID_RANGES) -> list[tuple[int, int]]:
    """Return (first, top] cut into so many ranges, in an order of which every prefix is spread over the whole."""
    bounds = [first + (top - first) * number // count for number in range(count + 1)]
    cut = [(low, high) for low, high in pairwise(bounds) if high > low]
    width = max(1, (len(cut) - 1).bit_length())
    return [cut[at] for number in range(2**width) if (at := int(f"{number:0{width}b}"[::-1], 2)) < len(cut)]


def known_persons(database: Database, company_sso_id: str, person_ids: Collection[str]) -> set[str]:
    """Return those of the persons that are contacts of the account, or in its id map; answered by the indexes alone."""
    known: set[str] = set()
    for segment in _segments(tuple(person_ids), IDS_A_QUERY):
        for index in (CONTACT_BY_CRM_ID, CONTACT_ID_MAP_UNIQUE):
            left = [person for person in segment if person not in known]
            query, projection = look_up(index, company_sso_id, left)
            found = stored.find(database[index.collection], query, projection, stored.leave_out, hint=index.name)
            for document in found:
                is_contact = index.collection == CONTACTS
                person = person_of(document) if is_contact else person_key(document.get("crm_person_id"))
                if person is not None:
                    known.add(person)
    return known


def look_up(index: Index, company_sso_id: str, person_ids: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return query and projection that find persons in an index; an id may be stored as a number or as text."""
    field = {CONTACTS: "crm_data.id", CONTACT_ID_MAP: "crm_person_id"}[index.collection]
    ids = [form for person in person_ids for form in spellings(person)]
    return {"company_sso_id": company_sso_id, field: {"$in": ids}}, {"_id": 0, field: 1}


def _segments(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
