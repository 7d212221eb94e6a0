"""The account's documents beyond those that segments find: counted, extra ones named, wrong ones deleted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from bson import ObjectId
from bson.errors import InvalidId
from pymongo.errors import PyMongoError

from ops.checks.verify.expected import Expected
from ops.checks.verify.model import Finding
from ops.checks.verify.segments import SegmentChecker, extra, why_extra
from ops.jobs import http_documents
from producer.references import find_contacts
from schemas.collections import ACTIVITY_LOGS, CONTACTS, PROGRESS
from schemas.errors import BadInputError
from schemas.identity import SOURCE_TAG, audit_id_of, replay_id
from schemas.process import stored
from schemas.process.mongodb import Database, Documents
from sink.indexes import COMPANY_SOURCE_TAG, UNIQUE_EXTERNAL_ID

BATCH_DOCUMENTS = 500
RUNS_MAX = 8
OWNER_LOOKUP_MS = 10_000  # whose contact a customer is, may take a scan of all contacts; it is a courtesy


def require_indexes(database: Database) -> None:
    """Raise BadInputError if the indexes are missing by which the copy is read."""
    try:
        present = set(database[ACTIVITY_LOGS].index_information())
    except PyMongoError:
        present = set()
    missing = {UNIQUE_EXTERNAL_ID.name, COMPANY_SOURCE_TAG.name} - present
    if missing:
        raise BadInputError(f"activity_logs lacks the index {', '.join(sorted(missing))}", "crm-replay migrate up")


def runs_of(database: Database, job_ids: Sequence[str]) -> tuple[int, ...]:
    """Return the runs of these jobs that wrote the most documents, `RUNS_MAX` at most.

    Each is one more range to read in every segment. Documents of other runs are found by their external_id.
    """
    progress: Documents = database[PROGRESS]
    found = progress.aggregate(
        [
            {"$match": {"job_id": {"$in": list(job_ids)}, "migrated": {"$gt": 0}}},
            {"$group": {"_id": "$run", "migrated": {"$sum": "$migrated"}}},
            {"$sort": {"migrated": -1, "_id": -1}},
            {"$limit": RUNS_MAX},
        ]
    )
    return tuple(int(run["_id"]) for run in found)


def strays(
    database: Database, company_sso_id: str, runs: Sequence[int], top: int, checker: SegmentChecker
) -> Iterator[Finding]:
    """Yield the documents of the replay that are in no segment and that no row accounts for.

    A document whose external_id is that of a row which becomes a document is not one of them: the row's segment has
    looked it up, and the unique index keeps it from being there twice.
    """
    query = {"$nor": [{"_id": _ids_of(run, top)} for run in runs]} if runs else {}
    yield from _strays(database, company_sso_id, query, COMPANY_SOURCE_TAG.name, top, checker)


def strays_among(
    database: Database, company_sso_id: str, ids: Mapping[str, ObjectId], top: int, checker: SegmentChecker
) -> Iterator[Finding]:
    """Yield, of the documents of the replay with such an `_id`, those that no row accounts for."""
    yield from _strays(database, company_sso_id, {"_id": ids}, "_id_", top, checker)


def _strays(
    database: Database, company_sso_id: str, which: Mapping[str, Any], index: str, top: int, checker: SegmentChecker
) -> Iterator[Finding]:
    logs: Documents = database[ACTIVITY_LOGS]
    query = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG, **which}
    wanted = {"external_id": 1, "timestamp": 1, "customer_id": 1}
    found = iter(logs.find(query, wanted, hint=index, batch_size=BATCH_DOCUMENTS))
    while batch := list(islice(found, BATCH_DOCUMENTS)):
        ids = {document["_id"]: audit_id_of(document.get("external_id")) for document in batch}
        rows = checker.rows_of([audit_id for audit_id in ids.values() if audit_id is not None and audit_id <= top])
        for document in batch:
            audit_id = ids[document["_id"]]
            if (why := _why_stray(audit_id, top, rows)) is not None:
                by_http = "; it came by HTTP" if http_documents.is_id(document["_id"]) else ""
                yield extra(document, audit_id, f"{why}{by_http}")


def _why_stray(audit_id: int | None, top: int, rows: Mapping[int, Expected]) -> str | None:
    """Return why no row accounts for a document; None if one does."""
    if audit_id is None:
        return "its external_id is not one of the replay"
    if audit_id > top:
        return f"row {audit_id} is newer than the job"
    expected = rows.get(audit_id)
    if isinstance(expected, bytes):
        return None
    return why_extra(expected)


def owners_of(database: Database, company_sso_id: str, customer_ids: Iterable[str]) -> dict[str, str]:
    """Return a reason for each customer that is no contact of this account, as far as it is known."""
    suspects = set(customer_ids)
    if not suspects:
        return {}
    suspects -= {customer for _, customer in find_contacts(database, company_sso_id).by_person.values()}
    reasons = dict.fromkeys(suspects, "its customer is no contact of this account")
    keys = [*suspects, *(ObjectId(customer) for customer in suspects if _is_object_id(customer))]
    for query in ({"_id": {"$in": keys}}, {"customer_id": {"$in": keys}}):
        try:
            found = stored.find(
                database[CONTACTS],
                {**query, "company_sso_id": {"$ne": company_sso_id}},
                {"company_sso_id": 1, "customer_id": 1},
                stored.leave_out,
                max_time_ms=OWNER_LOOKUP_MS,
            )
            for contact in found:
                for customer in (str(contact.get("customer_id")), str(contact["_id"])):
                    if customer in suspects:
                        reasons[customer] = f"its customer is a contact of account {contact.get('company_sso_id')}"
        except PyMongoError:
            continue
    return reasons


def delete(database: Database, company_sso_id: str, ids: Sequence[Any]) -> int:
    """Delete these documents and return how many went: only such of this account that have our source_tag."""
    logs: Documents = database[ACTIVITY_LOGS]
    ours = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    deleted = 0
    for at in range(0, len(ids), BATCH_DOCUMENTS):
        deleted += logs.delete_many({"_id": {"$in": list(ids[at : at + BATCH_DOCUMENTS])}, **ours}).deleted_count
    return deleted


def _ids_of(run: int, top: int) -> dict[str, ObjectId]:
    return {"$gte": ObjectId(replay_id(run, 0)), "$lte": ObjectId(replay_id(run, max(top, 0)))}


def _is_object_id(text: str) -> bool:
    try:
        ObjectId(text)
    except (InvalidId, TypeError):
        return False
    return True
