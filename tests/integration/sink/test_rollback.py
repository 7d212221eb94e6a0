"""Rollback on a real MongoDB: what goes, what stays byte for byte, by which index, and after a kill."""

import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from ops.jobs import migrations
from schemas.collections import ACTIVITY_LOGS
from schemas.identity import SOURCE_TAG
from sink.indexes import COMPANY_SOURCE_TAG, UNIQUE_EXTERNAL_ID
from sink.purge import purge
from sink.rollback import EXACTLY, RollbackFailedError, documents_of, rollback
from tests.support.plans import stages

pytestmark = pytest.mark.services
OURS = 2_300
LIVE = {"company_sso_id": "a", "category": "deal", "action": "update", "changes": [{"field": "x", "to": 1.0}]}
KILLED = """
import os, signal, sys
import pymongo
from sink.rollback import rollback

database = pymongo.MongoClient(sys.argv[1])[sys.argv[2]]
rollback(database, "a", batch_documents=500, on_batch=lambda removed: os.kill(os.getpid(), signal.SIGKILL))
"""


def migrated(audit_id: int, account: str = "a") -> dict[str, Any]:
    return {
        "company_sso_id": account,
        "external_id": f"crm_audit:{audit_id}",
        "source_tag": "crm_migration",
        "metadata": {"version": audit_id},
    }


@pytest.fixture
def database(mongo_database: Any) -> Any:
    """Give three accounts: ours among live logs, with and without external_id, and two that look much like it."""
    migrations.up(mongo_database)
    logs = mongo_database["activity_logs"]
    logs.insert_many([migrated(number) for number in range(OURS)], ordered=False)
    logs.insert_many([migrated(number, account) for account in ("b", "A", "aa") for number in range(200)])
    logs.insert_many([{**LIVE, "external_id": f"live:{number}"} for number in range(100)])
    logs.insert_many([{**LIVE, "n": number} for number in range(100)])
    # What a live feed may have written: the tag of another origin, an id that looks like ours, no tag at all.
    logs.insert_many(
        [
            {**LIVE, "source_tag": "other_migration"},
            {**LIVE, "source_tag": None},
            {**LIVE, "external_id": "crm_audit:99999"},
            {"source_tag": "crm_migration"},
        ]
    )
    return mongo_database


def left(database: Any) -> list[bytes]:
    """Return every document but those that are to go, as the server keeps it."""
    raw = CodecOptions(document_class=RawBSONDocument)
    query = {"$nor": [{"company_sso_id": "a", "source_tag": "crm_migration"}]}
    logs = database.get_collection("activity_logs", codec_options=raw)
    return [document.raw for document in logs.find(query).sort("_id", 1)]


def test_only_the_accounts_own_replayed_documents_go_and_a_second_call_removes_none(database: Any) -> None:
    others, everything = left(database), database["activity_logs"].count_documents({})
    seen: list[int] = []
    assert documents_of(database, "a") == OURS
    assert rollback(database, "a", batch_documents=500, on_batch=seen.append) == OURS
    assert seen == [500, 1000, 1500, 2000, 2300]
    assert (documents_of(database, "a"), database["activity_logs"].count_documents({})) == (0, everything - OURS)
    assert left(database) == others
    assert rollback(database, "a") == 0
    assert left(database) == others
    assert rollback(database, "nobody") == 0


def test_a_rollback_that_is_killed_goes_on_where_it_was(mongodb_url: str, database: Any) -> None:
    others = left(database)
    killed = subprocess.run([sys.executable, "-c", KILLED, mongodb_url, database.name], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert documents_of(database, "a") == OURS - 500
    assert rollback(database, "a") == OURS - 500
    assert left(database) == others


def test_what_goes_is_found_counted_and_deleted_by_index(database: Any) -> None:
    """The commands that rollback really sends, explained: no stage of any of them scans the collection."""
    explained: list[tuple[str, list[dict[str, Any]]]] = []

    class Explaining:
        """Stands before the collection and explains each command before it is sent."""

        def __init__(self, logs: Any) -> None:
            self._logs = logs

        def _explain(self, name: str, command: dict[str, Any]) -> None:
            plan = database.command("explain", {name: self._logs.name, **command}, verbosity="queryPlanner")
            explained.append((name, stages(plan["queryPlanner"]["winningPlan"])))

        def find(self, query: Any, fields: Any, *, limit: int, hint: str, collation: Any) -> Any:
            said = {"filter": query, "projection": fields, "limit": limit, "hint": hint}
            self._explain("find", {**said, "collation": collation.document})
            return self._logs.find(query, fields, limit=limit, hint=hint, collation=collation)

        def delete_many(self, query: Any, *, hint: str, collation: Any) -> Any:
            said = {"q": query, "limit": 0, "hint": hint, "collation": collation.document}
            self._explain("delete", {"deletes": [said]})
            return self._logs.delete_many(query, hint=hint, collation=collation)

        def count_documents(self, query: Any, *, hint: str) -> Any:
            self._explain("count", {"query": query, "hint": hint})
            return self._logs.count_documents(query, hint=hint)

    stand_in: Any = {ACTIVITY_LOGS: Explaining(database["activity_logs"])}
    assert documents_of(stand_in, "a") == OURS
    assert rollback(stand_in, "a", batch_documents=1_000) == OURS
    assert [name for name, _ in explained] == ["count", "find", "delete", "find", "delete", "find", "delete", "find"]
    for name, plan in explained:
        assert not {"COLLSCAN", "SORT"} & {stage["stage"] for stage in plan}
        used = {stage["indexName"] for stage in plan if "indexName" in stage}
        # Each batch by its own ids: by the account's index, a delete could read all that is left every time.
        assert used == {"_id_" if name == "delete" else "idx_company_source_tag"}


def test_documents_that_a_server_does_not_delete_are_an_error_and_no_endless_loop(database: Any) -> None:
    class Stubborn:
        """A collection of which nothing can be removed."""

        def __init__(self, logs: Any) -> None:
            self._logs = logs

        def __getattr__(self, name: str) -> Any:
            return getattr(self._logs, name)

        def delete_many(self, query: Any, *, hint: str, collation: Any) -> Any:
            return self._logs.delete_many({**query, "_id": "nobody"}, hint=hint)

    stubborn: Any = {ACTIVITY_LOGS: Stubborn(database["activity_logs"])}
    with pytest.raises(RollbackFailedError, match="the next could not be"):
        rollback(stubborn, "a")
    assert documents_of(database, "a") == OURS


def test_no_other_account_is_meant_where_a_collation_ignores_case(mongo_database: Any) -> None:
    """Such a collection is refused by every command; one that was made again under a running server is not seen."""
    logs = mongo_database.create_collection("activity_logs", collation={"locale": "en", "strength": 2})
    for index in (COMPANY_SOURCE_TAG, UNIQUE_EXTERNAL_ID):
        logs.create_index(list(index.keys), name=index.name)
    logs.insert_many({"company_sso_id": account, "source_tag": SOURCE_TAG} for account in ("acme", "ACME", "ACME"))
    with suppress(OperationFailure):  # no index answers it byte by byte
        rollback(mongo_database, "acme")
    with suppress(OperationFailure):
        purge(mongo_database, "acme", "7")
    assert logs.count_documents({"company_sso_id": "ACME"}, collation=EXACTLY) == 2
