"""The in-place update on a real MongoDB: what it changes, what never, by which index, and beside other writers."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pymongo.errors import AutoReconnect

from ops.jobs import migrations
from sink.enricher import STATEMENT_BYTES_MAX, Enricher
from sink.match_key import Association, Outcome
from tests.fixtures.services import mongo_scratch
from tests.support.plans import stages

pytestmark = pytest.mark.services
T0 = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
T0_MS = int(T0.timestamp() * 1000)
KEYS = ("crm_person_id", "linked_entity_type", "linked_entity_id", "linked_entity_name", "crm_company_id")
NAME = "PT Maju"


def association(audit_id: int, **more: Any) -> Association:
    default: dict[str, Any] = {
        "external_id": f"crm_audit:{audit_id}",
        "customer_id": "c1",
        "category": "deal",
        "action": "link",
        "timestamp_ms": T0_MS + audit_id * 60_000,
        "ids": {"crm_person_id": 5, "linked_entity_id": audit_id},
        "texts": {"linked_entity_type": "Crm::Deal", "linked_entity_name": NAME},
    }
    return Association(audit_id=audit_id, **{**default, **more})


def log_of(row: Association, *, live: bool = False, shift_ms: int = 0, **metadata: Any) -> dict[str, Any]:
    """Return the row's document with this metadata; a live one has no external_id."""
    return {
        "company_sso_id": "a",
        "customer_id": row.customer_id,
        "category": row.category,
        "action": row.action,
        "changes": [{"field": "crm_deal_id", "to": 1.0}],
        "timestamp": dt.datetime.fromtimestamp((row.timestamp_ms + shift_ms) / 1000, dt.UTC),
        **({} if live else {"external_id": row.external_id, "source_tag": "crm_migration"}),
        "metadata": metadata,
    }


@pytest.fixture(scope="module")
def migrated(mongodb_url: str) -> Iterator[Any]:
    with mongo_scratch(mongodb_url) as database:
        migrations.up(database)
        yield database


@pytest.fixture
def logs(migrated: Any) -> Any:
    """Give the migrated, empty collection."""
    migrated["activity_logs"].delete_many({})
    return migrated["activity_logs"]


def raw(logs: Any) -> dict[Any, bytes]:
    dates = bson.codec_options.DatetimeConversion.DATETIME_MS
    found = logs.with_options(
        codec_options=bson.CodecOptions(document_class=RawBSONDocument, datetime_conversion=dates)
    ).find()
    return {document["_id"]: document.raw for document in found}


def metadata_of(logs: Any, document_id: Any) -> Any:
    return logs.find_one({"_id": document_id})["metadata"]


def test_what_is_missing_is_added_and_a_second_time_nothing(logs: Any) -> None:
    rows = [association(number) for number in range(1, 6)]
    logs.insert_many([log_of(row, crm_person_id=5, request_id="r") for row in rows[:4]])
    logs.update_one({"external_id": "crm_audit:2"}, {"$unset": {"metadata": 1}})
    logs.update_one({"external_id": "crm_audit:3"}, {"$set": {"metadata.linked_entity_name": "As it was called then"}})
    logs.insert_one({**log_of(rows[4]), "company_sso_id": "b"})
    enricher = Enricher(logs, "a")
    assert enricher.patch(rows) == [*[Outcome.PATCHED] * 4, Outcome.NO_DOCUMENT]
    found = {log["external_id"]: log["metadata"] for log in logs.find({"company_sso_id": "a"})}
    whole = {"crm_person_id": 5, "linked_entity_type": "Crm::Deal", "linked_entity_name": NAME}
    assert found["crm_audit:1"] == {**whole, "request_id": "r", "linked_entity_id": 1}
    assert found["crm_audit:2"] == {**whole, "linked_entity_id": 2}
    assert found["crm_audit:3"]["linked_entity_name"] == "As it was called then"
    assert logs.find_one({"company_sso_id": "b"})["metadata"] == {}
    before = raw(logs)
    assert enricher.patch(rows) == [*[Outcome.COMPLETE] * 4, Outcome.NO_DOCUMENT]
    assert raw(logs) == before


def test_a_live_log_is_found_by_its_match_key_and_two_are_ambiguous(logs: Any) -> None:
    one, two, far, other, foreign, nobody = rows = [association(number) for number in range(1, 7)]
    logs.insert_many(
        [
            {"_id": 1, **log_of(one, live=True, shift_ms=2_000, linked_entity_id="1")},
            {"_id": 2, **log_of(two, live=True, shift_ms=-1_500, linked_entity_id=2)},
            {"_id": 3, **log_of(two, live=True, shift_ms=1_500, linked_entity_id=2)},
            {"_id": 4, **log_of(far, live=True, shift_ms=2_001, linked_entity_id=3)},
            {"_id": 5, **log_of(other, live=True, linked_entity_id=4, crm_person_id=77)},
            {"_id": 6, **log_of(foreign, live=True, linked_entity_id=5), "company_sso_id": "b"},
            {"_id": 7, **log_of(nobody, live=True, linked_entity_id=999)},
            {"_id": 8, **log_of(one, live=True, linked_entity_id=1), "external_id": "another's"},
        ]
    )
    before = raw(logs)
    expected = [
        Outcome.PATCHED,
        Outcome.ENRICH_AMBIGUOUS,
        Outcome.NO_DOCUMENT,
        Outcome.CONFLICT,
        Outcome.NO_DOCUMENT,
        Outcome.NO_DOCUMENT,
    ]
    assert Enricher(logs, "a", dry_run=True).patch(rows) == expected
    assert raw(logs) == before
    assert Enricher(logs, "a").patch(rows) == expected
    assert {key for key, document in raw(logs).items() if document != before[key]} == {1}
    assert metadata_of(logs, 1) == {
        "linked_entity_id": "1",
        "crm_person_id": 5,
        "linked_entity_type": "Crm::Deal",
        "linked_entity_name": NAME,
    }
    assert Enricher(logs, "a", window_ms=2_001).patch([far]) == [Outcome.PATCHED]


def test_a_document_that_two_rows_claim_with_different_persons_is_ambiguous(logs: Any) -> None:
    one = association(1)
    two = one._replace(audit_id=2, external_id="crm_audit:2", ids={"crm_person_id": 6, "linked_entity_id": 1})
    three = one._replace(audit_id=3, external_id="crm_audit:3")
    logs.insert_one({"_id": 1, **log_of(one, live=True, linked_entity_id=1)})
    assert Enricher(logs, "a").patch([one, two]) == [Outcome.ENRICH_AMBIGUOUS] * 2
    assert metadata_of(logs, 1) == {"linked_entity_id": 1}
    assert Enricher(logs, "a").patch([one, three]) == [Outcome.PATCHED, Outcome.COMPLETE]


def test_metadata_that_is_no_document_and_dates_that_python_lacks_are_left_as_they_are(logs: Any) -> None:
    rows = [association(number) for number in range(1, 5)]
    for value, row in zip((None, "text", [{"crm_person_id": 5}], 7), rows, strict=True):
        logs.insert_one({**log_of(row), "metadata": value, "timestamp": bson.DatetimeMS(2**60)})
    before = raw(logs)
    assert Enricher(logs, "a").patch(rows) == [Outcome.CONFLICT] * 4
    assert raw(logs) == before


# ---- beside other writers


def enricher_of(logs: Any) -> Enricher:
    """Return an enricher of account a; `logs` may be what stands before a collection."""
    return Enricher(logs, "a")


class Meanwhile:
    """A collection to which somebody else writes between a read and the update after it, once for each of `writes`."""

    def __init__(self, logs: Any, *writes: Callable[[], None]) -> None:
        self._logs, self._writes = logs, list(writes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logs, name)

    def with_options(self, **options: Any) -> "Meanwhile":
        return Meanwhile(self._logs.with_options(**options), *self._writes)

    def bulk_write(self, *args: Any, **options: Any) -> Any:
        if self._writes:
            self._writes.pop(0)()
        return self._logs.bulk_write(*args, **options)


def test_a_field_that_appears_meanwhile_stays_and_the_rest_is_added(logs: Any) -> None:
    rows = [association(number) for number in range(1, 8)]
    logs.insert_many([{"_id": row.audit_id, **log_of(row)} for row in rows[:6]])
    logs.insert_one({"_id": 7, **log_of(rows[6], live=True, linked_entity_id=7)})

    theirs = {f"metadata.{key}": "theirs" for key in whole(rows[1])}

    def write() -> None:
        logs.update_one({"_id": 1}, {"$set": {"metadata.linked_entity_name": "Theirs", "metadata.more": 1}})
        logs.update_one({"_id": 2}, {"$set": theirs, "$push": {"changes": {"field": "x"}}})
        logs.delete_one({"_id": 3})
        logs.update_one({"_id": 4}, {"$set": {"metadata": "no document any more"}})
        logs.update_one({"_id": 5}, {"$set": {"metadata.crm_person_id": 6}})

    def write_to_the_live_log() -> None:
        logs.update_one({"_id": 7}, {"$set": {"external_id": "theirs"}})

    outcomes = enricher_of(Meanwhile(logs, write, write_to_the_live_log)).patch(rows)
    assert outcomes == [
        Outcome.PATCHED,
        Outcome.COMPLETE,
        Outcome.NO_DOCUMENT,
        Outcome.CONFLICT,
        Outcome.PATCHED,
        Outcome.PATCHED,
        Outcome.PATCHED,
    ]
    assert metadata_of(logs, 1) == {**whole(rows[0]), "linked_entity_name": "Theirs", "more": 1}
    assert metadata_of(logs, 2) == dict.fromkeys(whole(rows[1]), "theirs")
    assert len(logs.find_one({"_id": 2})["changes"]) == 2
    assert metadata_of(logs, 4) == "no document any more"
    assert metadata_of(logs, 5) == {**whole(rows[4]), "crm_person_id": 6}
    assert metadata_of(logs, 6) == whole(rows[5])
    assert metadata_of(logs, 7) == whole(rows[6])
    assert logs.find_one({"_id": 7})["external_id"] == "theirs"


def whole(row: Association) -> dict[str, Any]:
    return {**row.ids, **row.texts}


def test_what_is_there_keeps_its_place_and_a_name_with_a_dollar_is_a_name(logs: Any) -> None:
    row = association(1, texts={"linked_entity_type": "Crm::Deal", "linked_entity_name": "$metadata.version"})
    logs.insert_one({"_id": 1, **log_of(row, request_id="r", linked_entity_id=1, version=2)})
    assert Enricher(logs, "a").patch([row]) == [Outcome.PATCHED]
    names = ["request_id", "linked_entity_id", "version", "crm_person_id", "linked_entity_type", "linked_entity_name"]
    assert list(metadata_of(logs, 1)) == names
    assert metadata_of(logs, 1)["linked_entity_name"] == "$metadata.version"


def test_a_patch_that_the_server_refuses_is_counted_and_the_others_are_written(logs: Any) -> None:
    rows = [association(number) for number in range(1, 4)]
    logs.insert_many([{"_id": row.audit_id, **log_of(row)} for row in rows])
    room = 16 * 1024 * 1024 - len(bson.encode({**logs.find_one({"_id": 2}), "filler": ""}))
    logs.update_one({"_id": 2}, {"$set": {"filler": "x" * room}})  # none is left for a name
    assert Enricher(logs, "a").patch(rows) == [Outcome.PATCHED, Outcome.REFUSED, Outcome.PATCHED]
    assert metadata_of(logs, 2) == {}


def test_names_of_any_length_are_added_in_updates_that_the_server_takes(logs: Any) -> None:
    name = "n" * (STATEMENT_BYTES_MAX // 4)
    texts = {"linked_entity_type": "Crm::Deal", "linked_entity_name": name}
    rows = [association(number, texts=texts) for number in range(1, 10)]
    logs.insert_many([{"_id": row.audit_id, **log_of(row)} for row in rows])
    assert Enricher(logs, "a").patch(rows) == [Outcome.PATCHED] * 9
    assert {log["metadata"]["linked_entity_name"] for log in logs.find()} == {name}


# ---- several batches at once


def test_what_is_found_by_match_key_waits_for_its_turn_and_nothing_else_does(logs: Any) -> None:
    """Both batches have a row that means the one live log; the second finds it as the first has left it."""
    first = [association(1), association(2)]
    other = {**first[1].ids, "crm_person_id": 6, "crm_company_id": 8}
    second = [association(3), first[1]._replace(audit_id=4, external_id="crm_audit:4", ids=other)]
    logs.insert_many([{"_id": 1, **log_of(first[0])}, {"_id": 3, **log_of(second[0])}])
    logs.insert_one({"_id": 2, **log_of(first[1], live=True, linked_entity_id=2)})
    enricher = Enricher(logs, "a")
    at_its_turn: list[dict[str, Any]] = []
    done: list[list[Outcome]] = []

    def turn() -> None:
        at_its_turn.extend(metadata_of(logs, number) for number in (3, 2))
        done.append(enricher.patch(first))

    assert enricher.patch(second, turn) == [Outcome.PATCHED, Outcome.CONFLICT]
    assert done == [[Outcome.PATCHED] * 2]
    assert at_its_turn == [whole(second[0]), {"linked_entity_id": 2}]
    assert metadata_of(logs, 2) == whole(first[1])


def test_a_batch_whose_turn_never_comes_has_written_no_more_than_its_own_documents(logs: Any) -> None:
    own, live = rows = [association(1), association(2)]
    logs.insert_many([{"_id": 1, **log_of(own)}, {"_id": 2, **log_of(live, live=True, linked_entity_id=2)}])

    def turn() -> None:
        raise AutoReconnect("the batch before has failed")

    with pytest.raises(AutoReconnect):
        Enricher(logs, "a").patch(rows, turn)
    assert metadata_of(logs, 1) == whole(own)
    assert metadata_of(logs, 2) == {"linked_entity_id": 2}
    assert Enricher(logs, "a").patch(rows) == [Outcome.COMPLETE, Outcome.PATCHED]


def test_an_outage_is_raised_and_the_batch_can_be_patched_again(logs: Any) -> None:
    rows = [association(number) for number in range(1, 4)]
    logs.insert_many([log_of(row) for row in rows])

    def cut() -> None:
        raise AutoReconnect("connection closed")

    with pytest.raises(AutoReconnect):
        enricher_of(Meanwhile(logs, cut)).patch(rows)
    assert Enricher(logs, "a").patch(rows) == [Outcome.PATCHED] * 3


# ---- by index, in few commands


def test_a_batch_is_a_handful_of_commands_each_by_an_index(logs: Any) -> None:
    """The commands that are really sent, explained: no stage scans the collection, none is sent for each document."""
    rows = [
        association(number, category=category, action=action, customer_id=f"c{number % 50}")
        for number, (category, action) in enumerate([("deal", "link"), ("task", "completed")] * 300, start=1)
    ]
    migrated, live = rows[:400], rows[400:]
    logs.insert_many([log_of(row) for row in migrated])
    logs.insert_many([log_of(row, live=True, linked_entity_id=row.audit_id) for row in live])
    logs.insert_many([{**log_of(row), "external_id": f"x{n}", "action": "update"} for n, row in enumerate(rows)])
    sent: list[tuple[str, str, dict[str, Any]]] = []

    class Explaining:
        """Stands before the collection and explains each command before it is sent."""

        def __init__(self, logs: Any) -> None:
            self._logs = logs

        def with_options(self, **options: Any) -> "Explaining":
            return Explaining(self._logs.with_options(**options))

        def _explain(self, command: dict[str, Any]) -> dict[str, Any]:
            explained: dict[str, Any] = self._logs.database.command("explain", command, verbosity="executionStats")
            return explained

        def find(self, query: Any, fields: Any, *, hint: str) -> Any:
            command = {"find": self._logs.name, "filter": query, "projection": fields, "hint": hint}
            sent.append(("find", hint, self._explain(command)))
            return self._logs.find(query, fields, hint=hint)

        def bulk_write(self, updates: Any, *, ordered: bool) -> Any:
            assert not ordered
            (one,) = updates
            update = {"q": one._filter, "u": one._doc, "multi": True, "hint": one._hint}
            sent.append(("update", "_id_", self._explain({"update": self._logs.name, "updates": [update]})))
            return self._logs.bulk_write(updates, ordered=ordered)

    assert enricher_of(Explaining(logs)).patch(rows) == [Outcome.PATCHED] * 600
    assert [(name, hint) for name, hint, _ in sent] == [
        ("find", "uniq_company_external_id"),
        ("update", "_id_"),
        ("find", "idx_enrichment_match"),
        ("update", "_id_"),
    ]
    for name, hint, explained in sent:
        plan = stages(explained["queryPlanner"]["winningPlan"])
        assert not {"COLLSCAN", "SORT"} & {stage["stage"] for stage in plan}
        assert {stage["indexName"] for stage in plan if "indexName" in stage} <= {hint}
        if name == "find":  # no more than the documents that are wanted, and those of the same key without external_id
            assert explained["executionStats"]["totalDocsExamined"] <= 400
            assert "MinKey" not in str(plan[-1]["indexBounds"])  # no walk through the whole index


# ---- for any documents and rows

values = st.sampled_from([5, "5", 6, None, "text"])
metadatas = st.one_of(
    st.dictionaries(st.sampled_from([*KEYS, "request_id"]), values, max_size=5), st.just(None), st.just("text")
)
documents = st.fixed_dictionaries(
    {
        "company_sso_id": st.sampled_from(["a", "a", "a", "b"]),
        "customer_id": st.sampled_from(["c1", "c2"]),
        "category": st.sampled_from(["deal", "task", "contact"]),
        "action": st.sampled_from(["link", "completed", "update"]),
        "timestamp": st.integers(-3, 3).map(lambda seconds: T0 + dt.timedelta(seconds=seconds)),
    },
    optional={
        "metadata": metadatas,
        "external_id": st.one_of(st.none(), st.integers(1, 6).map(lambda number: f"crm_audit:{number}")),
    },
)
associations: SearchStrategy[Association] = st.builds(
    lambda audit_id, customer, kind, seconds, ids, texts: Association(
        audit_id, f"crm_audit:{audit_id}", customer, kind[0], kind[1], T0_MS + seconds * 1000, ids, texts
    ),
    st.integers(1, 6),
    st.sampled_from(["c1", "c2"]),
    st.sampled_from([("deal", "link"), ("task", "completed")]),
    st.integers(-3, 3),
    st.dictionaries(st.sampled_from(["crm_person_id", "linked_entity_id", "crm_company_id"]), st.sampled_from([5, 6])),
    st.dictionaries(st.sampled_from(["linked_entity_type", "linked_entity_name"]), st.sampled_from(["x", "$y"])),
)
live_writes = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([*KEYS, "request_id"]), st.sampled_from([5, 7, "theirs"])), max_size=3
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    stored=st.lists(documents, max_size=10),
    rows=st.lists(associations, max_size=6, unique_by=lambda row: row.audit_id),
    writes=live_writes,
)
def test_only_missing_metadata_ever_changes_and_a_second_time_nothing(
    logs: Any, stored: list[dict[str, Any]], rows: list[Association], writes: list[tuple[int, str, Any]]
) -> None:
    """For any documents and rows, with another writer in between: what it wrote is there, what was there stays."""
    logs.delete_many({})
    seen: set[tuple[str, str]] = set()
    for number, document in enumerate(stored):
        key = (document["company_sso_id"], document.get("external_id", f"none {number}"))
        if key not in seen:  # the unique index
            seen.add(key)
            logs.insert_one({"_id": number, **document})
    stored_ids = set(logs.distinct("_id"))

    def write() -> None:
        for number, key, value in writes:
            with contextlib.suppress(Exception):  # metadata that is no document takes no field
                logs.update_one({"_id": number}, {"$set": {f"metadata.{key}": value}})

    before = {document["_id"]: document for document in logs.find()}
    outcomes = enricher_of(Meanwhile(logs, write)).patch(rows)
    assert len(outcomes) == len(rows)
    after = {document["_id"]: document for document in logs.find()}
    assert set(after) == stored_ids
    allowed: set[str] = {key for row in rows for key in whole(row)}
    for number, old in before.items():
        new = after[number]
        rest = {name: value for name, value in old.items() if name != "metadata"}
        assert {name: value for name, value in new.items() if name != "metadata"} == rest
        theirs = {key: value for at, key, value in writes if at == number}
        was, now = old.get("metadata", {}), new.get("metadata", {})
        if not isinstance(was, dict):
            assert now == was
            continue
        for key in now.keys() | was.keys():
            if key in theirs and now.get(key) == theirs[key]:
                continue  # the other writer's, the last word on it
            if key in was:
                assert now[key] == was[key]
            else:
                assert key in allowed
                assert new["company_sso_id"] == "a"
                assert (new["category"], new["action"]) in (("deal", "link"), ("task", "completed"))
                assert key not in theirs  # else it was theirs, and is lost
    if writes:  # they may have made another document fit a row
        Enricher(logs, "a").patch(rows)
    unchanged = raw(logs)
    assert Outcome.PATCHED not in Enricher(logs, "a").patch(rows)
    assert raw(logs) == unchanged


def test_documents_with_ids_of_any_type_get_what_is_their_own(logs: Any) -> None:
    rows = [association(number) for number in range(1, 10)]
    ids = [ObjectId(), "text", {"a": 1}, 1.0, bson.Int64(2), True, bson.DatetimeMS(2**60), float("nan"), bson.MaxKey()]
    logs.insert_many([{"_id": id_, **log_of(row)} for id_, row in zip(ids, rows, strict=True)])
    assert Enricher(logs, "a").patch(rows) == [Outcome.PATCHED] * 9
    assert {log["external_id"]: log["metadata"] for log in logs.find({}, {"_id": 0})} == {
        row.external_id: whole(row) for row in rows
    }
    assert Enricher(logs, "a").patch(rows) == [Outcome.COMPLETE] * 9
