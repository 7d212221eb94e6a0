"""Migrations on a real MongoDB: there and back, twice, at once, from a database that is in use."""

import datetime as dt
import threading
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo.errors import DuplicateKeyError

from ops.control import migrations
from ops.control.migrations import (
    MIGRATIONS_COLLECTION,
    NEWEST,
    MigrationLockedError,
    MigrationRefusedError,
    down,
    status,
    up,
)
from schemas.errors import BadInputError
from sink.indexes import INDEXES

pytestmark = pytest.mark.services
COLLECTIONS = {index.collection for index in INDEXES}


def indexes(database: Any) -> dict[str, dict[str, Any]]:
    return {name: database[name].index_information() for name in sorted(database.list_collection_names())}


def raw_documents(database: Any) -> dict[str, list[bytes]]:
    raw = bson.CodecOptions(document_class=RawBSONDocument)
    return {
        name: [document.raw for document in database.get_collection(name, codec_options=raw).find().sort("_id", 1)]
        for name in sorted(database.list_collection_names())
        if name != MIGRATIONS_COLLECTION
    }


def populate(database: Any) -> None:
    """A platform in use: live logs with and without external_id, contacts, an index of somebody else's."""
    database["activity_logs"].insert_many(
        [
            {"company_sso_id": "a", "external_id": "crm_audit:1", "changes": [{"x": 1.5}]},
            {"company_sso_id": "a", "action": "link", "z": 1, "b": 2, "at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)},
            {"company_sso_id": "a", "action": "link", "long": bson.Int64(5)},
            {"company_sso_id": "b", "external_id": "crm_audit:1"},
        ]
    )
    database["activity_logs"].create_index("customer_id", name="theirs")
    database["contacts"].insert_many([{"company_sso_id": "a", "crm_data": {"id": 5}}, {"company_sso_id": "a"}])


def test_up_makes_every_index_and_down_leaves_nothing(mongo_database: Any) -> None:
    assert up(mongo_database) == [1, 2, 3, 4, 5]
    assert set(mongo_database.list_collection_names()) >= COLLECTIONS
    made = indexes(mongo_database)
    for index in INDEXES:
        assert [key for key, _ in made[index.collection][index.name]["key"]] == list(index.keys)
        assert made[index.collection][index.name].get("unique", False) == index.unique
        assert made[index.collection][index.name].get("partialFilterExpression", {}) == index.partial
    assert all(step.applied_at is not None for step in status(mongo_database))
    assert down(mongo_database) == [5, 4, 3, 2, 1]
    assert mongo_database.list_collection_names() == []


def test_up_and_down_again_change_nothing(mongo_database: Any) -> None:
    up(mongo_database)
    before = indexes(mongo_database)
    assert up(mongo_database) == []
    assert indexes(mongo_database) == before
    down(mongo_database)
    assert down(mongo_database) == []


def test_every_version_on_the_way_is_reached_and_left(mongo_database: Any) -> None:
    seen = [indexes(mongo_database)]
    for version in range(1, NEWEST + 1):
        assert up(mongo_database, version) == [version]
        seen.append(indexes(mongo_database))
        assert [step.version for step in status(mongo_database) if step.applied_at] == list(range(1, version + 1))
    for version in range(NEWEST - 1, -1, -1):
        assert down(mongo_database, version) == [version + 1]
        assert indexes(mongo_database) == seen[version]


def test_a_populated_database_keeps_its_documents_byte_for_byte(mongo_database: Any) -> None:
    populate(mongo_database)
    documents, had = raw_documents(mongo_database), indexes(mongo_database)
    up(mongo_database)
    after = raw_documents(mongo_database)
    assert {name: after[name] for name in documents} == documents
    down(mongo_database)
    assert raw_documents(mongo_database) == documents
    assert indexes(mongo_database) == had


def test_an_index_that_was_there_before_stays_after_down(mongo_database: Any) -> None:
    index = INDEXES[0]
    mongo_database[index.collection].create_index([(key, 1) for key in index.keys], **index.options())
    had = indexes(mongo_database)
    up(mongo_database)
    down(mongo_database)
    assert indexes(mongo_database) == had


def test_a_collection_with_documents_written_since_survives_down(mongo_database: Any) -> None:
    up(mongo_database)
    mongo_database["activity_logs"].insert_one({"company_sso_id": "a", "source_tag": "crm_migration"})
    down(mongo_database)
    assert mongo_database.list_collection_names() == ["activity_logs"]
    assert mongo_database["activity_logs"].count_documents({}) == 1


def test_the_unique_index_is_unique_per_account_where_there_is_an_external_id(mongo_database: Any) -> None:
    up(mongo_database)
    logs = mongo_database["activity_logs"]
    logs.insert_many([{"company_sso_id": a, "external_id": "crm_audit:1"} for a in ("a", "b")])
    logs.insert_many([{"company_sso_id": "a"}, {"company_sso_id": "a"}])
    with pytest.raises(DuplicateKeyError, match="uniq_company_external_id"):
        logs.insert_one({"company_sso_id": "a", "external_id": "crm_audit:1"})


def test_documents_that_break_the_unique_index_refuse_the_step_and_leave_no_trace(mongo_database: Any) -> None:
    mongo_database["activity_logs"].insert_many([{"company_sso_id": "a", "external_id": "x"} for _ in range(2)])
    documents, had = raw_documents(mongo_database), indexes(mongo_database)
    with pytest.raises(MigrationRefusedError, match="uniq_company_external_id"):
        up(mongo_database)
    assert raw_documents(mongo_database) == documents
    assert indexes(mongo_database) == had


@pytest.mark.parametrize(
    ("keys", "options", "what"),
    [
        (["company_sso_id", "external_id"], {"name": "uniq_company_external_id"}, "another index named"),
        (
            ["company_sso_id", "external_id"],
            {"name": "x", "unique": True, "partialFilterExpression": {"external_id": {"$exists": True}}},
            "under the name x",
        ),
    ],
)
def test_a_clashing_index_is_named_before_anything_is_changed(
    mongo_database: Any, keys: list[str], options: dict[str, Any], what: str
) -> None:
    mongo_database["activity_logs"].create_index([(key, 1) for key in keys], **options)
    had = indexes(mongo_database)
    with pytest.raises(MigrationRefusedError, match=what):
        up(mongo_database)
    assert indexes(mongo_database) == had


def test_a_newer_schema_is_left_alone(mongo_database: Any) -> None:
    up(mongo_database)
    newer = {"_id": NEWEST + 1, "name": "of a later release", "state": "applied", "applied_at": None}
    mongo_database[MIGRATIONS_COLLECTION].insert_one(newer)
    for migrate in (up, down):
        with pytest.raises(MigrationRefusedError, match=f"version {NEWEST + 1}"):
            migrate(mongo_database)
    assert status(mongo_database)[-1].name == "of a later release"


@pytest.mark.parametrize("version", [-1, NEWEST + 1])
def test_a_version_that_does_not_exist_is_bad_input(mongo_database: Any, version: int) -> None:
    with pytest.raises(BadInputError, match="no schema version"):
        up(mongo_database, version)
    assert mongo_database.list_collection_names() == []


def test_down_is_refused_while_a_job_is_in_progress(mongo_database: Any) -> None:
    up(mongo_database)
    mongo_database["crm_activity_log_migration_jobs"].insert_one({"status": "in_progress", "run": 1})
    had = indexes(mongo_database)
    with pytest.raises(MigrationRefusedError, match="in progress"):
        down(mongo_database)
    assert indexes(mongo_database) == had


def test_two_at_once_apply_each_step_once(mongo_database: Any) -> None:
    results: list[list[int] | str] = []
    start = threading.Barrier(4)

    def migrate() -> None:
        start.wait()
        try:
            results.append(up(mongo_database))
        except MigrationLockedError:
            results.append("locked")

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [1, 2, 3, 4, 5] in results
    assert all(result in ([], "locked", [1, 2, 3, 4, 5]) for result in results)
    assert sum(result == [1, 2, 3, 4, 5] for result in results) == 1
    assert mongo_database[MIGRATIONS_COLLECTION].find_one({"_id": "lock"}) is None


def test_a_dead_process_holds_the_lock_only_until_it_expires(mongo_database: Any) -> None:
    records = mongo_database[MIGRATIONS_COLLECTION]
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    records.insert_one({"_id": "lock", "owner": "dead", "expires_at": soon})
    with pytest.raises(MigrationLockedError):
        up(mongo_database)
    records.update_one({"_id": "lock"}, {"$set": {"expires_at": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}})
    assert up(mongo_database) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("state", ["applying", "reverting"])
def test_a_step_that_died_half_way_is_taken_up_and_undone_completely(mongo_database: Any, state: str) -> None:
    up(mongo_database, 1)
    mongo_database["activity_logs"].drop_index("idx_company_source_tag")
    change = {"$set": {"state": state, "applied_at": None}}
    mongo_database[MIGRATIONS_COLLECTION].update_one({"_id": 1}, change)
    assert status(mongo_database)[0].applied_at is None
    assert up(mongo_database) == [1, 2, 3, 4, 5]
    assert "idx_company_source_tag" in mongo_database["activity_logs"].index_information()
    down(mongo_database)
    assert mongo_database.list_collection_names() == []


def test_an_interrupted_down_goes_on(mongo_database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    up(mongo_database)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_undo", die)
        with pytest.raises(KeyboardInterrupt):
            down(mongo_database)
    assert status(mongo_database)[-1].applied_at is None
    assert down(mongo_database) == [5, 4, 3, 2, 1]
    assert mongo_database.list_collection_names() == []
