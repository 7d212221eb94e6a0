"""I/O: which of some rows have a document in MongoDB, found by the unique index in bounded queries.

A row's document is found by its external id, written by any of three: the replay, the live feed or a caller of the HTTP
interface. `tagged` leaves those out that the replay's source tag does not mark as its own.
"""

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from schemas.collections import ACTIVITY_LOGS
from schemas.identity import EXTERNAL_ID_PREFIX, SOURCE_TAG, external_id_of
from schemas.process.mongodb import Database, Document, Documents
from sink.identity import Identities, with_ids
from sink.indexes import COMPANY_SOURCE_TAG, UNIQUE_EXTERNAL_ID

LOOK_UP_MAX = 1_000  # external ids of a query whose documents come one by one
SEGMENT_IDS = 10_000  # external ids of a query that counts, or whose documents come as raw batches
RAW_DOCUMENTS = 20_000  # read at once
# The whole text has to have the form that we write.
_ID_IN_RAW = re.compile(
    rb"\x02external_id\x00.{4}%b(0|-?[1-9]\d{0,18})\x00\x00(?!\x00)" % EXTERNAL_ID_PREFIX.encode(), re.DOTALL
)


def of_rows(
    database: Database,
    accounts: str | Sequence[str],
    audit_ids: Iterable[int],
    fields: Sequence[str] = (),
    *,
    tagged: bool = False,
) -> Iterator[tuple[int, Document]]:
    """Yield the audit id and the document of those of the rows that have one; with `external_id` and these fields.

    `accounts` is one company_sso_id, or several, of which each may have a document of the same audit id. Raises
    pymongo's errors for an outage.
    """
    company_sso_id = accounts if isinstance(accounts, str) else {"$in": list(accounts)}
    projection = {"_id": 0, "external_id": 1, **dict.fromkeys(fields, 1)}
    for ids in _parts(sorted(set(audit_ids)) if accounts else (), LOOK_UP_MAX):
        names = {external_id_of(audit_id): audit_id for audit_id in ids}
        query = {"company_sso_id": company_sso_id, "external_id": {"$in": list(names)}}
        if tagged:
            query["source_tag"] = SOURCE_TAG
        for document in database[ACTIVITY_LOGS].find(query, projection, hint=UNIQUE_EXTERNAL_ID.name):
            audit_id = names.get(document["external_id"])
            if audit_id is not None:  # where the collection's collation ignores case, another text can be found
                yield audit_id, document


def rows_with_document(
    database: Database, accounts: str | Sequence[str], audit_ids: Iterable[int], *, tagged: bool = False
) -> set[int]:
    """Return those of the rows that have a document of the account, or of one of them."""
    return {audit_id for audit_id, _ in of_rows(database, accounts, audit_ids, tagged=tagged)}


def count_of(database: Database, company_sso_id: str, audit_ids: Sequence[int]) -> int:
    """Return how many of these rows have a document of ours."""
    logs: Documents = database[ACTIVITY_LOGS]
    return sum(
        logs.count_documents(query, hint=UNIQUE_EXTERNAL_ID.name) for query in _segments(company_sso_id, audit_ids)
    )


def count_since(database: Database, company_sso_id: str, cutoff: dt.datetime) -> int:
    """Return how many documents of ours are of rows created at or after `cutoff`; documents have milliseconds."""
    query = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG, "timestamp": {"$gte": _milliseconds(cutoff)}}
    return database[ACTIVITY_LOGS].count_documents(query, hint=COMPANY_SOURCE_TAG.name)


def identities_of(database: Database, company_sso_id: str, audit_ids: Sequence[int], shift: int) -> Identities:
    """Return which of these rows have a document of ours. `shift` is the width of the id ranges (`sink.identity`)."""
    found: Identities = {}
    for query in _segments(company_sso_id, audit_ids):
        found = _identities(database, query, UNIQUE_EXTERNAL_ID.name, shift, found)
    return found


def identities_since(database: Database, company_sso_id: str, cutoff: dt.datetime | None, shift: int) -> Identities:
    """Return which rows have a document of ours, of all rows or of those created at or after `cutoff`.

    Read in the order in which the documents lie on disk, in bounded memory (decision 55).
    """
    query: dict[str, Any] = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    if cutoff is not None:
        query["timestamp"] = {"$gte": _milliseconds(cutoff)}
    return _identities(database, query, COMPANY_SOURCE_TAG.name, shift, {})


def _identities(database: Database, query: dict[str, Any], index: str, shift: int, found: Identities) -> Identities:
    logs: Documents = database[ACTIVITY_LOGS]
    batches: Any = logs.find_raw_batches(query, {"_id": 0, "external_id": 1}, hint=index, batch_size=RAW_DOCUMENTS)
    for batch in batches:
        found = with_ids(found, [int(digits) for digits in _ID_IN_RAW.findall(batch)], shift)
    return found


def _segments(company_sso_id: str, audit_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the queries for the documents of ours of these rows."""
    for ids in _parts(audit_ids, SEGMENT_IDS):
        names = [external_id_of(audit_id) for audit_id in ids]
        yield {"company_sso_id": company_sso_id, "external_id": {"$in": names}, "source_tag": SOURCE_TAG}


def _parts(audit_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (audit_ids[at : at + size] for at in range(0, len(audit_ids), size))


def _milliseconds(at: dt.datetime) -> dt.datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
