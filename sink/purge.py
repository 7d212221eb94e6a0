"""The delete for one person: activity logs from the CRM's audits, by account and CRM person id.

The only deleter besides `rollback`. Documents of other origins have no external_id of ours and are never touched: the
platform erases its own.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from schemas.collections import ACTIVITY_LOGS
from schemas.identity import EXTERNAL_ID_END, EXTERNAL_ID_PREFIX
from schemas.process.mongodb import Database, Documents
from sink.indexes import UNIQUE_EXTERNAL_ID
from sink.rollback import EXACTLY, PRIMARY_KEY, RollbackFailedError

BATCH_DOCUMENTS = 1_000


def of_person(company_sso_id: str, person_id: str, customer_ids: Iterable[str] = ()) -> dict[str, Any]:
    """Return the query for a person's documents: those that name the person, or the customer and no person."""
    ids: list[Any] = [person_id]
    if person_id.isascii() and person_id.isdigit():
        ids.append(int(person_id))
    named: list[dict[str, Any]] = [{"metadata.crm_person_id": {"$in": ids}}]
    if customers := sorted(set(customer_ids)):
        named.append({"customer_id": {"$in": customers}, "metadata.crm_person_id": {"$exists": False}})
    return {
        "company_sso_id": company_sso_id,
        "external_id": {"$gte": EXTERNAL_ID_PREFIX, "$lt": EXTERNAL_ID_END},
        "$or": named,
    }


def find(
    database: Database, company_sso_id: str, person_id: str, customer_ids: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the person's documents. No index has the person: all documents of the account are scanned, by index."""
    logs: Documents = database[ACTIVITY_LOGS]
    yield from logs.find(of_person(company_sso_id, person_id, customer_ids), hint=UNIQUE_EXTERNAL_ID.name)


def purge(
    database: Database,
    company_sso_id: str,
    person_id: str,
    customer_ids: Iterable[str] = (),
    *,
    batch_documents: int = BATCH_DOCUMENTS,
    on_batch: Callable[[int], None] = lambda removed: None,  # noqa: ARG005
) -> int:
    """Delete the person's documents and return how many this call removed. Idempotent; can be resumed after a crash.

    Raises RollbackFailedError if documents cannot be removed, pymongo's errors for an outage.
    """
    logs: Documents = database[ACTIVITY_LOGS]
    query = of_person(company_sso_id, person_id, customer_ids)
    found = logs.find(query, {"_id": 1}, hint=UNIQUE_EXTERNAL_ID.name, collation=EXACTLY)
    ids = iter([document["_id"] for document in found])  # of one person: they fit in memory, and no cursor stays open
    removed = 0
    while batch := list(islice(ids, batch_documents)):
        # The condition again: a document that was changed to another person's meanwhile stays.
        gone = logs.delete_many({"_id": {"$in": batch}, **query}, hint=PRIMARY_KEY, collation=EXACTLY)
        removed += gone.deleted_count
        on_batch(removed)
    if logs.find_one(query, {"_id": 1}, hint=UNIQUE_EXTERNAL_ID.name, collation=EXACTLY) is not None:
        raise RollbackFailedError(
            f"{removed} documents were removed, but some remain", "purge again; see the server's log"
        )
    return removed
