"""Enrichment after a real run: what the command adds, what it names, and that a kill costs nothing."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
from threading import Event
from typing import Any

import psycopg
import pytest
from pymongo.errors import AutoReconnect

from ops.enrich import run as enrichment
from ops.enrich.run import Cursor, Enrichment, EnrichOptions, enrich_account
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from schemas.errors import BadInputError, ReplayError
from sink.enricher import Enricher
from tests.e2e.conftest import DIES_AT_ITS_FIFTH_BATCH, Crm, everything, mapping_of, without_links

pytestmark = pytest.mark.services
LINKS = ("crm_person_id", "linked_entity_type", "linked_entity_id", "linked_entity_name")
KILLED = f"""{DIES_AT_ITS_FIFTH_BATCH}
from ops.enrich import run as enrich
from ops.local import services
from ops.progress import PlainView

options = enrich.EnrichOptions(mapping_path=sys.argv[2], batch_rows=5)
enrich.enrich_account(sys.argv[1], options, services.connections(), PlainView())
"""


def enrich(crm: Crm, **options: Any) -> dict[str, Any]:
    view = PlainView()
    report = enrich_account(SAMPLE_YAML, EnrichOptions(**options), crm.connections, view).as_dict()
    assert sum(report["outcomes"].values()) == report["association_rows"]
    return report


def test_what_logs_lack_is_added_once_and_nothing_else_changes_whatever_dies(sample_crm: Crm) -> None:
    crm = sample_crm
    mapping = mapping_of(SAMPLE_YAML)
    first = crm.call("run", "--account", SAMPLE_YAML, "--mapping", mapping, "--json", "--enrich")
    assert first.returncode == 0, first.stderr
    job, enriched = map(json.loads, first.stdout.splitlines())
    assert job["status"] == "completed"
    outcomes = enriched["outcomes"]
    whole = everything(crm)
    after = enrich(crm)
    assert after["outcomes"] == {
        **outcomes,
        "patched": 0,
        "complete": outcomes["complete"] + outcomes["patched"],
    }
    assert everything(crm) == whole
    before = without_links(crm, SAMPLE_YAML)
    assert len(before) > 30
    bare = everything(crm)
    assert enrich(crm, dry_run=True)["outcomes"]["patched"] == len(before)
    assert everything(crm) == bare

    # Killed with five batches patched: what was in flight is found complete, and every row is counted once.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, SAMPLE_YAML, mapping],
        env={**os.environ, **crm.environment, "CRM_REPLAY_HOME": str(crm.home)},
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    cursors = crm.database["crm_replay_enrichments"]
    died = cursors.find_one({"_id": SAMPLE_YAML})
    assert died["finished_at"] is None
    assert sum(died["outcomes"].values()) >= 10  # three were in flight at most, so the first two were saved
    with pytest.raises(BadInputError, match="by another process"):
        enrich(crm)
    cursors.update_one({"_id": SAMPLE_YAML}, {"$set": {"updated_at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}})
    resumed = enrich(crm)
    assert resumed["resumed"]
    assert resumed["association_rows"] == after["association_rows"]
    assert resumed["outcomes"]["patched"] + resumed["outcomes"]["complete"] == len(before)
    assert 0 < resumed["outcomes"]["complete"] <= 15  # the batches in flight, patched but not yet counted
    assert everything(crm) == whole
    assert enrich(crm)["outcomes"]["patched"] == 0

    for failing in (3, 4):
        assert len(without_links(crm, SAMPLE_YAML)) == len(before)
        one_of_two_batches_fails(crm, failing, before)
        assert everything(crm) == whole

    # The copy is still proven: metadata that was added is no difference.
    assert crm.call("verify", "--account", SAMPLE_YAML, "--mapping", mapping).returncode == 0
    logs_of_a_live_feed_and_records_that_are_gone(crm)


def one_of_two_batches_fails(crm: Crm, failing: int, before: list[dict[str, Any]]) -> None:
    """Have an outage at the third or fourth batch while the other one is in flight too.

    However far the cursor was saved, everything up to there was in MongoDB; going on, every row is counted once.
    """
    logs, cursors = crm.database["activity_logs"], crm.database["crm_replay_enrichments"]
    whole = {int(log["external_id"].removeprefix("crm_audit:")): log for log in before}
    batches: list[list[int]] = []  # audit ids
    patch, save = Enricher.patch, Cursor.save
    ended = {3: Event(), 4: Event()}  # or waiting for its turn

    def collect(self: Enricher, rows: Any, turn: Any = None) -> Any:
        batches.append([row.audit_id for row in rows])
        return patch(self, rows)

    def patch_or_fail(self: Enricher, rows: Any, turn: Any = lambda: None) -> Any:
        number = next((n for n, ids in enumerate(batches, start=1) if rows and rows[0].audit_id in ids), 0)
        if number not in ended:
            return patch(self, rows, turn)

        def turn_of_this() -> None:
            ended[number].set()
            turn()

        try:
            if number == failing:
                if number == 3:
                    assert ended[4].wait(60)
                raise AutoReconnect("connection closed")
            if number == 3:
                assert ended[4].wait(60)
            return patch(self, rows, turn_of_this)
        finally:
            ended[number].set()

    def checked_save(self: Cursor, state: Enrichment, **options: Any) -> None:
        save(self, state, **options)
        saved = cursors.find_one({"_id": SAMPLE_YAML})["cursor"]
        done = [log for audit_id, log in whole.items() if audit_id <= saved]
        assert list(logs.find({"_id": {"$in": [log["_id"] for log in done]}}).sort("_id", 1)) == done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Enricher, "patch", collect)
        patched.setattr(enrichment, "IN_FLIGHT", 1)
        expected = enrich(crm, batch_rows=5, dry_run=True)
    batches.sort()
    assert len(batches[4]) == 5
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Enricher, "patch", patch_or_fail)
        patched.setattr(Cursor, "save", checked_save)
        with pytest.raises(ReplayError, match="MongoDB does not answer"):
            enrich(crm, batch_rows=5)
        died = cursors.find_one({"_id": SAMPLE_YAML})
        assert batches[failing - 2][-1] <= died["cursor"] < batches[failing - 1][-1]
        patched.setattr(Enricher, "patch", patch)
        resumed = enrich(crm, batch_rows=5)
    assert resumed["resumed"]
    assert resumed["association_rows"] == expected["association_rows"]
    assert resumed["outcomes"]["patched"] + resumed["outcomes"]["complete"] == expected["outcomes"]["patched"]
    # What was written and not counted: of the two batches that were in flight behind the one that failed.
    assert int(failing == 3) <= resumed["outcomes"]["complete"] <= 10


def logs_of_a_live_feed_and_records_that_are_gone(crm: Crm) -> None:
    logs = crm.database["activity_logs"]
    association = {"company_sso_id": SAMPLE_YAML, "metadata.linked_entity_id": {"$exists": True}}
    # A feed that knew no external ids has written some of them, a second late; of one there are two.
    live = list(logs.find({**association, "category": "deal", "action": "link"}).sort("timestamp", 1))
    assert len(live) >= 3
    keys = [(log["customer_id"], log["metadata"]["linked_entity_id"], log["timestamp"]) for log in live]
    alone = [
        log
        for log, (customer, linked, at) in zip(live, keys, strict=True)
        if sum((c, i) == (customer, linked) and abs((t - at).total_seconds()) < 10 for c, i, t in keys) == 1
    ]
    assert len(alone) >= 2
    for log in alone:
        late = {"timestamp": log["timestamp"] + dt.timedelta(seconds=1), "actor": {"type": "system"}}
        metadata = {"linked_entity_id": str(log["metadata"]["linked_entity_id"])}
        document = {key: log[key] for key in ("company_sso_id", "customer_id", "category", "action")}
        logs.insert_one({**document, **late, "metadata": metadata, "of": log["external_id"]})
        logs.delete_one({"_id": log["_id"]})
    twin = logs.find_one({"of": alone[0]["external_id"]}, {"_id": 0})
    logs.insert_one(twin)
    gone = alone[1]["metadata"]["linked_entity_id"]
    with psycopg.connect(crm.dsn) as db:
        db.execute("DELETE FROM crm_deals WHERE id = %s", (gone,))
    count = logs.count_documents({})
    report = enrich(crm)
    assert report["outcomes"]["enrich_ambiguous"] == 1
    assert [f"crm_audit:{audit_id}" for audit_id in report["audit_ids"]["enrich_ambiguous"]] == [
        alone[0]["external_id"]
    ]
    assert report["deleted_references"] >= 1
    assert logs.count_documents({}) == count
    for log in logs.find({"of": {"$exists": True}}):
        was = next(one for one in alone if one["external_id"] == log["of"])
        linked = str(was["metadata"]["linked_entity_id"])
        assert "external_id" not in log
        assert log["timestamp"] == was["timestamp"] + dt.timedelta(seconds=1)
        if was is alone[0]:
            assert log["metadata"] == {"linked_entity_id": linked}
            continue
        expected = {key: was["metadata"][key] for key in LINKS if key in was["metadata"]}
        if was["metadata"]["linked_entity_id"] == gone:
            expected["linked_entity_name"] = "[Deleted reference]"
        assert {key: log["metadata"][key] for key in LINKS if key in log["metadata"]} == {
            **expected,
            "linked_entity_id": linked,
        }
    assert enrich(crm)["outcomes"]["patched"] == 0


def test_what_the_caller_has_to_mend_is_one_line(crm: Crm) -> None:
    wrong = crm.call("enrich", "--account", SAMPLE_YAML, "--window-s", "-1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.strip() == "crm-replay: a window of -1.0 s: give 0 to 3600 seconds"
