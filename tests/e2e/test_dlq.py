"""Dead letters on real servers: listed, shown, and their rows sent through the topology again."""

import json
from typing import Any

import psycopg
from confluent_kafka import Producer

from ops.jobs.letters import RETRIES_MAX
from ops.jobs.store import JobStore
from ops.local.sample_crm import SAMPLE_YAML
from schemas.codec import Codec
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, mapping_of
from tests.support.factories import event
from tests.support.waiting import wait_until

MAPPING = mapping_of(SAMPLE_YAML)
MENDED, UNREADABLE = 1200008, 1200021  # rows of one person whom the platform knows
SECRET = "budi@contoh.co.id"
GARBAGE = b"\x00\x01 no Avro at all"


def change(crm: Crm, audit_id: int, column: str, value: str) -> str:
    """Give a row another value and return the one it had."""
    assert column in ("audited_changes", "action")
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        before = db.execute(f"SELECT {column} FROM audits WHERE id = %s", (audit_id,)).fetchone()
        db.execute(f"UPDATE audits SET {column} = %s WHERE id = %s", (value, audit_id))
    return str(before[0])


def listed(crm: Crm, account: str, *words: str) -> Any:
    return crm.json("dlq", "list", "--account", account, *words)


def shown(crm: Crm, account: str, *words: str) -> Any:
    return crm.json("dlq", "show", "--account", account, *words)


def retried(crm: Crm, account: str, *words: str, code: int = 0) -> Any:
    return crm.json("dlq", "retry", "--account", account, "--reason", "a test", "--yes", *words, code=code)


def counted(crm: Crm, account: str) -> dict[str, Any]:
    """Return the counts in the account's status, after a look whether they add up."""
    job = crm.status(account)
    assert job["records_total"] == job["records_attempted"]
    assert job["records_attempted"] == job["records_migrated"] + job["records_skipped"] + job["records_failed"]
    assert job["records_skipped"] == sum(job["skips_by_reason"].values())
    assert job["records_failed"] == sum(job["failures_by_cause"].values())
    assert job["documents"] == job["records_migrated"] + job["records_duplicate"]
    assert (job["accuracy_pct"] == 100.0) is (job["records_failed"] == 0)
    return job


def test_a_mended_row_is_migrated_by_a_retry_and_one_that_fails_each_time_is_left_out(
    sample_crm: Crm, account: str
) -> None:
    whole = {
        audit_id: change(sample_crm, audit_id, "audited_changes", f"--- [{SECRET}") for audit_id in (MENDED, UNREADABLE)
    }
    job = sample_crm.run(account, "--mapping", MAPPING)
    assert job["failures_by_cause"] == {"undecodable_changes": 2}
    retries = sample_crm.database["crm_replay_retries"]

    before = listed(sample_crm, account)
    assert before["states"] == {"waiting": 2, "resolved": 0, "no_row": 0}
    assert {letter["audit_id"] for letter in before["dead_letters"]} == {MENDED, UNREADABLE}
    assert all(letter["run"] == job["run"] and letter["failures"] == 1 for letter in before["dead_letters"])
    lines = sample_crm.call("dlq", "list", "--account", account).stdout.splitlines()
    assert len(lines) == 4
    assert SECRET not in "".join(lines)
    assert "undecodable_changes" in lines[1]
    assert SECRET in shown(sample_crm, account, "--audit-id", str(UNREADABLE))["payload"]["fields"]["audited_changes"]

    change(sample_crm, MENDED, "audited_changes", whole[MENDED])
    assert retried(sample_crm, account, "--dry-run")["would_retry"] == [MENDED, UNREADABLE]
    unasked = sample_crm.call("dlq", "retry", "--account", account, "--reason", "a test")
    assert (unasked.returncode, "give --yes" in unasked.stderr) == (2, True)
    assert retries.count_documents({}) == 0

    again = retried(sample_crm, account, code=1)
    assert again["outcomes"] == [
        {"outcome": "failed", "why": "undecodable_changes", "audit_ids": [UNREADABLE]},
        {"outcome": "migrated", "why": "", "audit_ids": [MENDED]},
    ]
    assert again["balanced"]
    status = counted(sample_crm, account)
    assert (status["run"], status["status"]) == (job["run"], "completed")
    assert status["records_migrated"] == job["records_migrated"] + 1
    assert (status["failures_by_cause"], status["records_repaired"]) == ({"undecodable_changes": 1}, 1)
    attempt = retries.find_one({})
    assert (attempt["reason"], attempt["outcome"], attempt["job_id"]) == ("a test", "done", again["job_id"])
    assert attempt["outcomes"] == again["outcomes"]
    after = {(each["audit_id"], each["run"]): each for each in listed(sample_crm, account)["dead_letters"]}
    assert after[MENDED, job["run"]]["state"] == "resolved"
    assert [after[UNREADABLE, run]["failures"] for run in (job["run"], again["run"])] == [2, 2]
    assert after[UNREADABLE, again["run"]]["state"] == "waiting"
    of_run = listed(sample_crm, account, "--run", str(again["run"]))["dead_letters"]
    assert [each["audit_id"] for each in of_run] == [UNREADABLE]

    for _ in range(RETRIES_MAX - 1):  # as if it had been tried as often as it may be
        retries.insert_one({key: value for key, value in attempt.items() if key != "_id"})
    guarded = retried(sample_crm, account)
    assert [each["audit_id"] for each in guarded["left_out"]] == [UNREADABLE]
    assert "--force" in guarded["left_out"][0]["why"]
    assert retries.count_documents({}) == RETRIES_MAX
    change(sample_crm, UNREADABLE, "audited_changes", whole[UNREADABLE])
    forced = retried(sample_crm, account, "--force", "--audit-ids", str(UNREADABLE))
    assert (forced["migrated"], forced["failed"]) == (1, 0)
    assert listed(sample_crm, account)["states"] == {"waiting": 0, "resolved": 3, "no_row": 0}
    status = counted(sample_crm, account)
    assert (status["records_failed"], status["records_repaired"], status["accuracy_pct"]) == (0, 2, 100.0)
    # Replayed once more although they are there: a repaired row is not counted twice.
    more = ("--audit-ids", f"{MENDED},{UNREADABLE}", "--mapping", MAPPING)
    assert sample_crm.call("rerun", "--account", account, *more).returncode == 0
    assert counted(sample_crm, account) == {**status, "documents_at": counted(sample_crm, account)["documents_at"]}
    assert len(sample_crm.logs(account)) == job["records_migrated"] + 2


def test_a_later_run_that_skips_the_row_resolves_it_and_so_does_a_retry_that_does(
    sample_crm: Crm, account: str
) -> None:
    for audit_id in (MENDED, UNREADABLE):
        change(sample_crm, audit_id, "audited_changes", "--- [never closed")
    job = sample_crm.run(account, "--mapping", MAPPING)
    for audit_id in (MENDED, UNREADABLE):
        change(sample_crm, audit_id, "action", "merge")
    rerun = ("rerun", "--account", account, "--mapping", MAPPING, "--audit-ids", str(MENDED), "--json")
    later = json.loads(sample_crm.call(*rerun).stdout)
    states = {each["audit_id"]: each for each in listed(sample_crm, account)["dead_letters"]}
    assert (states[MENDED]["state"], states[UNREADABLE]["state"]) == ("resolved", "waiting")
    assert states[MENDED]["why"] == f"skipped as unmapped_action_type by run {later['run']}"

    again = retried(sample_crm, account)
    skipped = {"outcome": "skipped", "why": "unmapped_action_type", "audit_ids": [UNREADABLE]}
    assert again["outcomes"] == [skipped]
    status, unmapped = counted(sample_crm, account), "unmapped_action_type"
    assert (status["records_failed"], status["records_repaired"]) == (0, 2)
    assert status["skips_by_reason"][unmapped] == job["skips_by_reason"].get(unmapped, 0) + 2
    assert listed(sample_crm, account)["states"]["resolved"] == 2


def test_bytes_that_are_no_row_are_listed_and_shown_and_cannot_be_retried(sample_crm: Crm, account: str) -> None:
    topics, store = AccountTopics.of(account), JobStore(sample_crm.database)
    producer = Producer(sample_crm.connections.kafka())
    person = {"auditable_type": "Crm::Person", "auditable_id": 50001}
    foreign = event(audit_id=MENDED, action="create", company_sso_id="another account", **person)
    with sample_crm.start("run", "--account", account, "--mapping", MAPPING, "--json") as runner:
        wait_until(lambda: (job := store.latest(account)) is not None and job.begin_offsets, "the run has begun")
        assert runner.poll() is None
        # The snapshot's process is only just being started; these come before its first row.
        producer.produce(topics.replay, GARBAGE, b"50001", 0)
        producer.produce(topics.replay, Codec().encode(foreign), b"50001", 0)
        assert producer.flush(10) == 0
        out, err = runner.communicate(timeout=120)
    assert runner.returncode == 0, err
    assert json.loads(out)["records_failed"] == 0

    found = listed(sample_crm, account)
    assert found["states"] == {"waiting": 0, "resolved": 0, "no_row": 2}
    letters = {each["cause"]: each for each in found["dead_letters"]}
    assert letters.keys() == {"undecodable_record", "wrong_account"}
    unread = letters["undecodable_record"]
    assert unread["audit_id"] is None
    assert unread["source"]["topic"] == topics.replay
    text = sample_crm.call("dlq", "show", "--account", account, str(unread["offset"])).stdout
    assert "payload: undecodable" in text
    assert GARBAGE[:4].hex(" ") in text
    assert "no Avro at" in text

    refused = sample_crm.call("dlq", "retry", "--account", account, "--reason", "a test", "--yes")
    assert (refused.returncode, refused.stdout.strip()) == (0, "nothing to retry")
    assert "carry no audit id" in refused.stderr
    assert "are about another account's rows" in refused.stderr
    assert sample_crm.database["crm_replay_retries"].count_documents({}) == 0


def test_an_account_without_dead_letters_has_none_and_wrong_calls_are_refused(sample_crm: Crm, account: str) -> None:
    for words in (("list",), ("show", "0"), ("retry", "--reason", "a test", "--yes")):
        done = sample_crm.call("dlq", *words, "--account", account)
        assert (done.returncode, done.stdout.strip()) == (0, "no dead letters"), done.stderr
    assert listed(sample_crm, account)["dead_letters"] == []
    wrong: tuple[tuple[tuple[str, ...], str], ...] = (
        (("list", "--cause", "bad_luck"), "bad_luck is no cause"),
        (("show",), "name one dead letter"),
        (("show", "0", "--audit-id", "7"), "name one dead letter"),
        (("retry", "--reason", " "), "--reason is empty"),
        (("retry", "--reason", "a test", "--audit-ids", "x"), "x is no audit id"),
    )
    for call, says in wrong:
        done = sample_crm.call("dlq", *call, "--account", account)
        assert done.returncode == 2, done.stdout
        assert says in done.stderr
    down = sample_crm.call("dlq", "list", "--account", account, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert (down.returncode, "Kafka at 127.0.0.1:9" in down.stderr) == (2, True)
    assert sample_crm.call("dlq", "list", "--account", "").returncode == 2
