"""Migrations on a real MongoDB: there and back, twice, at once, from a database that is in use."""

import datetime as dt
import signal
import subprocess
import sys
import time
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo.errors import DuplicateKeyError

from ops.jobs import migrations
from ops.jobs.migrations import (
    MIGRATIONS,
    NEWEST,
    MigrationLockedError,
    MigrationRefusedError,
    down,
    require_current,
    status,
    up,
)
from schemas.collections import APPLIED_MIGRATIONS
from schemas.errors import BadInputError
from sink.indexes import INDEXES
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
COLLECTIONS = {index.collection for index in INDEXES}
ALL = [migration.version for migration in MIGRATIONS]


def indexes(database: Any) -> dict[str, dict[str, Any]]:
    return {name: database[name].index_information() for name in sorted(database.list_collection_names())}


def raw_documents(database: Any) -> dict[str, list[bytes]]:
    raw = bson.CodecOptions(document_class=RawBSONDocument)
    return {
        name: [document.raw for document in database.get_collection(name, codec_options=raw).find().sort("_id", 1)]
        for name in sorted(database.list_collection_names())
        if name != APPLIED_MIGRATIONS
    }


def natives() -> list[dict[str, Any]]:
    """Return live logs of every BSON type, as a platform that knows nothing of us has them."""
    values: tuple[Any, ...] = (
        1, bson.Int64(1), 1.5, float("nan"), -0.0, "text \u2028 \U0001f600", "", None, True, b"\0\xff",
        bson.Binary(b"x", 4), bson.Decimal128("1.10"), bson.Decimal128("1.1"), bson.ObjectId(b"native-logs1"),
        bson.Regex("a.b", "i"), bson.Timestamp(1, 2), bson.MinKey(), bson.MaxKey(), bson.Code("x()", {"y": 1}),
        dt.datetime(1, 1, 1, tzinfo=dt.UTC), [], {}, [[1], {"b": 2, "a": 1}], {"": {"$ruby": "X"}, "a.b": 1},
    )  # fmt: skip
    return [
        {"_id": number, "action": ACTIONS[number % 3], "company_sso_id": f"c{number % 5}", "value": value}
        | ({"external_id": f"live:{number}"} if number % 2 else {})
        for number, value in enumerate(values * 20)
    ]


ACTIONS = ("create", "link", "won")


def populate(database: Any) -> None:
    """A platform in use: live logs with and without external_id, contacts, an index of somebody else's."""
    database["activity_logs"].insert_many(natives())
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
    assert up(mongo_database) == ALL
    assert set(mongo_database.list_collection_names()) >= COLLECTIONS
    made = indexes(mongo_database)
    for index in INDEXES:
        assert [key for key, _ in made[index.collection][index.name]["key"]] == list(index.keys)
        assert made[index.collection][index.name].get("unique", False) == index.unique
        assert made[index.collection][index.name].get("partialFilterExpression", {}) == index.partial
    assert all(step.applied_at is not None for step in status(mongo_database))
    assert down(mongo_database) == ALL[::-1]
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
    mongo_database[APPLIED_MIGRATIONS].insert_one(newer)
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


MIGRATE = """
import sys, time
import pymongo
from ops.jobs import migrations
from schemas.errors import ReplayError

url, name, at, wait_s = sys.argv[1:5]
database = pymongo.MongoClient(url, tz_aware=True)[name]
database.command("ping")
while time.time() < float(at):  # all of them in the same moment
    pass
try:
    print(migrations.up(database, wait_s=float(wait_s)))
except ReplayError as error:
    print(error)
"""
HOLD = """
import sys, time
import pymongo
from ops.jobs import migrations

migrations.LOCK_EXPIRY_S = float(sys.argv[3])
database = pymongo.MongoClient(sys.argv[1], tz_aware=True)[sys.argv[2]]
with migrations._locked(database, 0.0):
    print("held", flush=True)
    time.sleep(300)
"""


def start(source: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", source, *map(str, words)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("wait_s", [0, 60])
def test_processes_that_migrate_at_the_same_moment_apply_each_step_once(
    mongodb_url: str, mongo_database: Any, wait_s: int
) -> None:
    populate(mongo_database)
    documents = raw_documents(mongo_database)
    at = time.time() + 3
    processes = [start(MIGRATE, mongodb_url, mongo_database.name, at, wait_s) for _ in range(4)]
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert said.count(str(ALL)) == 1
    others = [text for text in said if text != str(ALL)]
    locked = [text for text in others if "another process is migrating" in text]
    assert len(locked) + others.count("[]") == 3
    assert not (wait_s and locked)
    assert all("(pid" in text and "UTC)" in text for text in locked if "database:" not in text)
    require_current(mongo_database)
    after = raw_documents(mongo_database)
    assert {name: after[name] for name in documents} == documents
    assert mongo_database[APPLIED_MIGRATIONS].find_one({"_id": "lock"}) is None


def test_the_lock_of_a_process_that_was_killed_is_taken_over_when_it_expires(
    mongodb_url: str, mongo_database: Any
) -> None:
    with start(HOLD, mongodb_url, mongo_database.name, 4) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MigrationLockedError, match=f"pid {holder.pid} on .+; a dead one's lock expires"):
            up(mongo_database)
        renewed = mongo_database[APPLIED_MIGRATIONS].find_one({"_id": "lock"})
        holder.send_signal(signal.SIGKILL)
    assert renewed is not None
    assert up(mongo_database, wait_s=60) == ALL
    assert mongo_database[APPLIED_MIGRATIONS].find_one({"_id": "lock"}) is None


def test_the_lock_of_a_process_that_lives_is_renewed(mongodb_url: str, mongo_database: Any) -> None:
    with start(HOLD, mongodb_url, mongo_database.name, 3) as holder:
        holder.stdout.readline()
        records = mongo_database[APPLIED_MIGRATIONS]
        first = records.find_one({"_id": "lock"})
        query = {"_id": "lock", "expires_at": {"$gt": first["expires_at"]}}
        now = wait_until(lambda: records.find_one(query), "the lock is renewed")
        assert now["owner"] == first["owner"]
        holder.kill()


def test_an_older_and_a_newer_schema_are_refused_with_what_to_do(mongo_database: Any) -> None:
    with pytest.raises(MigrationRefusedError, match=f"schema version 0, this release needs {NEWEST}.*migrate up"):
        require_current(mongo_database)
    up(mongo_database, 2)
    with pytest.raises(MigrationRefusedError, match=r"lacks jobs, .*schema version 2"):
        require_current(mongo_database)
    require_current(mongo_database, older_will_do=True)
    up(mongo_database)
    require_current(mongo_database)
    newer = {"_id": NEWEST + 1, "name": "of a later release", "state": "applied", "applied_at": None}
    mongo_database[APPLIED_MIGRATIONS].insert_one(newer)
    for older_will_do in (False, True):
        with pytest.raises(MigrationRefusedError, match=f"version {NEWEST + 1}.*use the newer release"):
            require_current(mongo_database, older_will_do=older_will_do)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("activity_logs", {"collation": {"locale": "en", "strength": 2}}, "collation"),
        ("contacts", {"collation": {"locale": "en", "numericOrdering": True}}, "collation"),
        ("activity_logs", {"capped": True, "size": 1_000_000}, "capped"),
        ("activity_logs", {"timeseries": {"timeField": "timestamp"}}, "timeseries"),
        ("contacts", {"viewOn": "customers", "pipeline": []}, "view"),
    ],
)
def test_a_collection_that_mixes_up_accounts_or_loses_documents_is_refused(
    mongo_database: Any, name: str, options: dict[str, Any], why: str
) -> None:
    mongo_database.create_collection(name, **options)
    with pytest.raises(MigrationRefusedError, match=f"{name} .*{why}"):
        up(mongo_database)
    assert status(mongo_database)[0].applied_at is None
    mongo_database.drop_collection(name)
    up(mongo_database)
    mongo_database.drop_collection(name)
    mongo_database.create_collection(name, **options)
    for refused in (require_current, up):
        with pytest.raises(MigrationRefusedError, match=f"{name} .*{why}"):
            refused(mongo_database)
    mongo_database.drop_collection(name)
    down(mongo_database)


@pytest.mark.parametrize("state", ["applying", "reverting"])
def test_a_step_that_died_half_way_is_taken_up_and_undone_completely(mongo_database: Any, state: str) -> None:
    up(mongo_database, 1)
    mongo_database["activity_logs"].drop_index("idx_company_source_tag")
    change = {"$set": {"state": state, "applied_at": None}}
    mongo_database[APPLIED_MIGRATIONS].update_one({"_id": 1}, change)
    assert status(mongo_database)[0].applied_at is None
    assert up(mongo_database) == ALL
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
    assert down(mongo_database) == ALL[::-1]
    assert mongo_database.list_collection_names() == []
