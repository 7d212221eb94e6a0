"""Documents that came by `POST /private/activity_logs/migrate`: their identity and their account (decision 61).

They belong to the account's replay: they have its tag, its roll back removes them, also without a job, and its runs
count them as duplicates. No run has counted one whose row it does not have; such documents are reported separately,
by the nightly check and by each run, and do not fail the run. Their `_id` identifies them: it begins
with a number of the account's own above every run's, where a run's documents have their run (decision 7).
"""

import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from bson import ObjectId

from ops.jobs import audit_log
from ops.jobs.store import RUN_MAX
from schemas.collections import ACTIVITY_LOGS
from schemas.identity import AUDIT_ID_BYTES, RUN_BYTES, SOURCE_TAG
from schemas.process.mongodb import Database, Documents
from sink.documents import PRIMARY_KEY_INDEX
from sink.indexes import COMPANY_SOURCE_TAG

ACTION = "migrate"  # in the audit log
FIRST_NUMBER = RUN_MAX + 1


def new_id(company_sso_id: str) -> ObjectId:
    """Return the `_id` of a document of the account that comes by HTTP. Two are never the same: the index decides."""
    return ObjectId(_begin(company_sso_id) + os.urandom(AUDIT_ID_BYTES))


def is_id(document_id: object) -> bool:
    """Return whether a document with this `_id` came by HTTP."""
    return isinstance(document_id, ObjectId) and document_id.binary[0] >= FIRST_NUMBER >> 8 * (RUN_BYTES - 1)


def ids_of(company_sso_id: str) -> dict[str, ObjectId]:
    """Return the condition on `_id` that finds the account's; another account's can be among them, so name it too."""
    begin = _begin(company_sso_id)
    return {
        "$gte": ObjectId(begin + bytes(AUDIT_ID_BYTES)),
        "$lte": ObjectId(begin + b"\xff" * AUDIT_ID_BYTES),
    }


def count(database: Database, company_sso_id: str) -> int:
    """Return how many documents of the account came by HTTP and exist; a range of the primary key."""
    logs: Documents = database[ACTIVITY_LOGS]
    query = {"_id": ids_of(company_sso_id), "company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    return logs.count_documents(query, hint=PRIMARY_KEY_INDEX)


def are_known(database: Database, company_sso_id: str) -> bool:
    """Return whether documents of the replay are or were there that no job has to account for."""
    logs: Documents = database[ACTIVITY_LOGS]
    tagged = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    found = logs.find_one(tagged, {"_id": 1}, hint=COMPANY_SOURCE_TAG.name)
    return found is not None or audit_log.has(database, company_sso_id, ACTION)


def note(
    database: Database,
    counts: Mapping[str, Mapping[str, int]],
    *,
    who: str,
    request_id: str,
    outcome: str = audit_log.OK,
) -> None:
    """Write to the audit log who has sent documents of which accounts, and their results."""
    for company_sso_id, detail in counts.items():
        audit_log.append(
            database, ACTION, company_sso_id, who=who, outcome=outcome, request_id=request_id, detail=detail
        )


def in_words(fields: Mapping[str, Any] | None, company_sso_id: str) -> str:
    """Return what a job document has of them in one line; "" if there are none."""
    if not fields:
        return ""
    ids = ", ".join(each["external_id"] for each in fields["named"])
    more = ", …" if fields["without_row"] > len(fields["named"]) else ""
    return (
        f"{fields['without_row']:,} documents came by HTTP and belong to no row of this run ({ids}{more});"
        f" crm-replay verify --account {company_sso_id} shows the reasons, --repair deletes them"
    )


def _begin(company_sso_id: str) -> bytes:
    digest = int.from_bytes(sha256(company_sso_id.encode()).digest()[:RUN_BYTES], "big")
    return (FIRST_NUMBER | (digest & RUN_MAX)).to_bytes(RUN_BYTES, "big")
