"""The delete of what the replay wrote for an account, by account and source_tag."""

from collections.abc import Callable

from pymongo.collation import Collation

from schemas.collections import ACTIVITY_LOGS
from schemas.errors import ReplayError
from schemas.identity import SOURCE_TAG
from schemas.process.mongodb import Database, Documents
from sink.indexes import COMPANY_SOURCE_TAG

PRIMARY_KEY = "_id_"  # the index's name on every server
# Binary comparison, overriding the collection's collation: one that ignores case could match another tenant.
EXACTLY = Collation("simple")
BATCH_DOCUMENTS = 5_000  # about a fifth of a second each; other writers run in between


class RollbackFailedError(ReplayError):
    """Documents that were to be deleted remain."""


def rollback(
    database: Database,
    company_sso_id: str,
    *,
    batch_documents: int = BATCH_DOCUMENTS,
    on_batch: Callable[[int], None] = lambda removed: None,  # noqa: ARG005
) -> int:
    """Delete the account's documents with our source_tag and return how many this call removed.

    Idempotent; after an interruption, call it again. `on_batch` receives the number removed so far. Found by index;
    other accounts' documents and those of the live feed are not touched. Raises RollbackFailedError if a batch of
    documents cannot be removed, pymongo's errors for an outage.
    """
    logs: Documents = database[ACTIVITY_LOGS]
    # The delete repeats the condition: a document that lost its tag meanwhile belongs to another writer.
    ours = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    removed = 0
    while True:
        found = logs.find(ours, {"_id": 1}, limit=batch_documents, hint=COMPANY_SOURCE_TAG.name, collation=EXACTLY)
        ids = [document["_id"] for document in found]
        if not ids:
            return removed
        # Explicitly by the primary key: by the account's index, each batch could scan all its remaining documents.
        gone = logs.delete_many({"_id": {"$in": ids}, **ours}, hint=PRIMARY_KEY, collation=EXACTLY)
        deleted = gone.deleted_count
        if deleted == 0 and logs.find_one({"_id": ids[0], **ours}, {"_id": 1}, collation=EXACTLY) is not None:
            raise RollbackFailedError(
                f"{removed} documents of account {company_sso_id} were removed, the next could not be",
                "see the server's log, then roll back again: it continues where it stopped",
            )
        removed += deleted
        on_batch(removed)


def documents_of(database: Database, company_sso_id: str) -> int:
    """Return how many documents of the account have our source_tag, counted by a covered query."""
    logs: Documents = database[ACTIVITY_LOGS]
    query = {"company_sso_id": company_sso_id, "source_tag": SOURCE_TAG}
    return logs.count_documents(query, hint=COMPANY_SOURCE_TAG.name)
