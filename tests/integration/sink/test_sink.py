"""A sink on real Kafka and MongoDB: what it writes, counts, dead-letters and commits."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import bson
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from pymongo.errors import AutoReconnect

from schemas.errors import BadInputError
from schemas.identity import ID_BYTES, replay_id
from schemas.process.topic_watch import TopicReplacedError
from schemas.records import AuditEvent, Record
from schemas.vocabulary import DeadLetterCause
from sink.dead_letters import DeadLetterTopic
from sink.effects import Effect
from sink.group import OutcomesLostError
from sink.halting import HaltedError, JobGate
from sink.indexes import UNIQUE_EXTERNAL_ID
from sink.progress import Progress, RunTotals
from tests.integration.sink.conftest import CODEC, Account
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
T = TypeVar("T")
DOCUMENT_BYTES_MAX = 16 * 1024 * 1024


def test_each_outcome_ends_in_its_bin(account: Account) -> None:
    letter = account.dead_letter(4)
    account.publish([account.log(1), account.skip(2), account.log(3), letter, account.skip(5, "other"), account.end()])
    sink = account.run_sink()
    totals = account.totals
    assert account.external_ids() == ["crm_audit:1", "crm_audit:3"]
    assert totals.migrated == 2
    assert totals.skipped == {"contact_not_found": 1, "other": 1}
    assert totals.failed == {"undecodable_changes": 1}
    assert (totals.partitions_ended, totals.last_audit_id) == (1, 5)
    assert account.committed() == {0: 6}
    assert account.dead_letters() == [letter]
    assert sink.metrics.inserted == 2


def test_logs_whose_actor_is_the_deleted_user_are_counted_once_and_only_where_this_run_wrote_them(
    account: Account,
) -> None:
    gone = {"type": "deleted_user", "id": None, "name": "gone, and {type: user}"}
    told = [{"field": "actor", "label": "Actor", "from": None, "to": {"actor": gone}}]
    account.logs.insert_one(account.document(4, actor=gone))
    logs = [account.log(1), account.log(2, actor=gone), account.log(3, changes=told), account.log(4, actor=gone)]
    account.publish([*logs, *logs, account.end()])
    account.run_sink(sink_batch_records=4)
    assert (account.totals.migrated, account.totals.skipped) == (3, {"duplicate_external_id": 1})
    assert account.totals.actors_fell_back == 1


def test_a_document_is_stored_byte_for_byte_behind_its_id(account: Account) -> None:
    log = account.log(258)
    account.publish([log, account.end()])
    account.run_sink()
    raw = account.logs.with_options(codec_options=bson.CodecOptions(document_class=bson.raw_bson.RawBSONDocument))
    stored = raw.find_one({}).raw
    assert stored[4 + ID_BYTES :] == log.document[4:]
    assert account.logs.find_one({})["_id"].binary == replay_id(7, 258) == bytes.fromhex("000000070000000000000102")


def test_the_same_outcomes_again_insert_nothing_and_count_nothing(account: Account) -> None:
    records: list[Record] = [account.log(1), account.skip(2), account.log(3), account.dead_letter(4)]
    account.publish([*records, *records, account.end()])
    sink = account.run_sink(sink_batch_records=4)
    assert sink.metrics.inserted == 2
    assert sink.metrics.redelivered == 2
    assert sink.metrics.repeated == 4
    assert account.totals.accounted == 4
    assert account.totals.migrated == 2
    assert len(account.dead_letters()) == 1


def test_a_page_that_comes_twice_within_one_batch_is_counted_once(account: Account) -> None:
    page = [account.log(i) for i in range(1, 51)]
    republished = [account.log(i, 100 + i) for i in range(1, 51)]
    account.publish([*page, *republished, account.end()])
    account.run_sink()
    assert account.totals.migrated == 50
    assert account.totals.skipped == {}


def test_each_id_range_has_its_own_high_water(account: Account) -> None:
    account.publish([account.log(1000, id_range=1), account.log(1), account.log(1001, id_range=1), account.log(2)])
    account.publish([account.log(1), account.log(1000, id_range=1), account.end()])
    account.run_sink()
    assert account.totals.migrated == 4


def test_documents_of_an_earlier_run_are_duplicates_and_stay_as_they_are(make_account: Callable[..., Account]) -> None:
    account = make_account()
    before = {**account.document(1), "changes": "of an earlier run"}
    account.logs.insert_one(dict(before))
    account.publish([account.log(1), account.log(2), account.end()])
    account.run_sink()
    assert account.totals.migrated == 1
    assert account.totals.skipped == {"duplicate_external_id": 1}
    stored = account.logs.find_one({"external_id": "crm_audit:1"})
    assert stored["changes"] == "of an earlier run"


def test_redelivered_documents_count_as_migrated(account: Account) -> None:
    """A sink died after its write: the documents are there under this run's ids, and nothing is counted."""
    account.logs.insert_one({"_id": bson.ObjectId(replay_id(7, 1)), **account.document(1)})
    account.publish([account.log(1), account.log(2), account.end()])
    sink = account.run_sink()
    assert account.totals.migrated == 2
    assert account.totals.skipped == {}
    assert (sink.metrics.redelivered, sink.metrics.inserted) == (1, 1)


def test_outcomes_of_another_run_are_passed_over(account: Account) -> None:
    others = [record._replace(run=6) for record in (account.log(1), account.skip(2), account.dead_letter(3))]
    account.publish([*others, account.end()._replace(run=6), account.log(4), account.end()])
    sink = account.run_sink()
    assert account.external_ids() == ["crm_audit:4"]
    assert account.totals.accounted == 1
    assert sink.metrics.other_runs == 4
    assert account.dead_letters() == []


def test_poison_bytes_become_dead_letters_and_the_rest_goes_on(account: Account) -> None:
    whole = CODEC.encode(account.log(9))
    event = CODEC.encode(AuditEvent(1, 0, 0, "t", 1, "", 0, "", 0, "", "update", "", False, 1, "", ""))
    poison = [b"", b"garbage", whole[:-1], whole + b"\0", event]
    account.publish([account.log(1), *poison, account.log(2), account.end()])
    account.run_sink()
    letters = account.dead_letters()
    assert [letter.payload for letter in letters] == poison
    assert {letter.cause for letter in letters} == {DeadLetterCause.UNDECODABLE_RECORD}
    assert [(letter.source_topic, letter.source_offset) for letter in letters] == [
        (account.job.topics.outcomes, offset) for offset in range(1, 6)
    ]
    totals = account.totals
    assert (totals.migrated, totals.failed, totals.foreign) == (2, {}, {"undecodable_record": 5})


def test_outcomes_in_batches_end_as_those_alone_do_whatever_is_among_them(account: Account) -> None:
    account.logs.insert_one(account.document(2))
    broken = account.log(4)._replace(document=b"\x05\0\0\0")
    refused = account.log(5, changes=[{"from": 1}] * 3)  # ... by the server, as one of the batch
    inside = bytearray(refused.document)
    inside[inside.index(b"category") - 1] = 0x7E
    refused = refused._replace(document=bytes(inside))
    mixed: list[Any] = [
        account.log(1),
        account.log(2),
        account.skip(3),
        broken,
        refused,
        b"poison",
        account.dead_letter(6),
    ]
    account.publish([*mixed, account.log(7)], together=20)
    account.publish([account.log(8), account.end()])
    account.publish([*mixed, account.end()], together=3)  # a processor repeats some of it, cut in another way
    sink = account.run_sink(sink_batch_records=2)  # no batch of the sink takes a record apart
    assert account.external_ids() == ["crm_audit:1", "crm_audit:2", "crm_audit:7", "crm_audit:8"]
    totals = account.totals
    assert (totals.migrated, totals.skipped) == (3, {"contact_not_found": 1, "duplicate_external_id": 1})
    assert totals.failed == {"undecodable_record": 1, "write_refused": 1, "undecodable_changes": 1}
    letters = {(letter.cause, letter.source_topic, letter.source_offset): letter for letter in account.dead_letters()}
    poison = letters["undecodable_record", account.job.topics.outcomes, 0]
    assert (poison.payload, poison.key, poison.detail) == (b"poison", b"key", "unknown schema header 706f69736f6e")
    assert letters["write_refused", account.job.topics.replay, 5].payload == CODEC.encode(refused)
    assert letters["undecodable_record", account.job.topics.replay, 4].payload == CODEC.encode(broken)
    assert sink.metrics.records >= len(mixed) + 3  # outcomes, and not records of the topic


def test_documents_that_cannot_be_sent_are_dead_letters(account: Account) -> None:
    other = account.log(2, company_sso_id="somebody-else")
    broken = account.log(3)._replace(document=b"\x05\0\0\0")
    # Right at both ends, unreadable between them: only the server can tell.
    inside = bytearray(account.log(4).document)
    inside[inside.index(b"category") - 1] = 0x7E
    account.publish([account.log(1), other, broken, account.log(4)._replace(document=bytes(inside)), account.log(5)])
    account.publish([account.end()])
    account.run_sink()
    assert account.external_ids() == ["crm_audit:1", "crm_audit:5"]
    assert account.totals.migrated == 2
    assert account.totals.failed == {"wrong_account": 1, "undecodable_record": 1, "write_refused": 1}
    assert {letter.audit_id: letter.cause for letter in account.dead_letters()} == {
        2: "wrong_account",
        3: "undecodable_record",
        4: "write_refused",
    }


def test_only_our_own_index_makes_a_duplicate(account: Account) -> None:
    account.logs.create_index("customer_id", unique=True, name="somebody_elses")
    account.publish([account.log(1), account.log(2), account.log(8), account.end()])  # 8 has the customer of 1
    account.run_sink()
    assert account.external_ids() == ["crm_audit:1", "crm_audit:2"]
    assert account.totals.failed == {"write_refused": 1}
    assert account.totals.skipped == {}
    (letter,) = account.dead_letters()
    assert letter.audit_id == 8
    assert (letter.source_topic, letter.source_offset) == (account.job.topics.replay, 8)
    assert letter.detail == "code 11000: duplicate key in index somebody_elses"
    assert CODEC.decode(letter.payload) == account.log(8)


def test_a_refusal_is_dead_lettered_without_the_documents_values(account: Account) -> None:
    account.logs.drop()
    logs = account.database.create_collection("activity_logs", validator={"customer_id": {"$ne": "secret person"}})
    logs.create_index([(key, 1) for key in UNIQUE_EXTERNAL_ID.keys], **UNIQUE_EXTERNAL_ID.options())
    account.publish([account.log(1, customer_id="secret person"), account.log(2), account.end()])
    account.run_sink()
    assert account.external_ids() == ["crm_audit:2"]
    (letter,) = account.dead_letters()
    assert letter.cause == DeadLetterCause.WRITE_REFUSED
    assert letter.detail.startswith("code 121: ")
    assert "secret" not in letter.detail


def test_the_largest_document_is_stored_and_one_byte_more_is_a_dead_letter(account: Account) -> None:
    def sized(audit_id: int, size: int) -> Any:
        room = size - ID_BYTES - len(account.log(audit_id, note="").document)
        return account.log(audit_id, note="x" * room)

    account.publish([sized(1, DOCUMENT_BYTES_MAX), sized(2, DOCUMENT_BYTES_MAX + 1), account.log(3), account.end()])
    account.run_sink()
    assert account.external_ids() == ["crm_audit:1", "crm_audit:3"]
    assert account.totals.failed == {"document_too_large": 1}
    (letter,) = account.dead_letters()
    assert letter.audit_id == 2
    assert len(letter.payload) > DOCUMENT_BYTES_MAX - ID_BYTES


def test_a_dead_letter_too_large_for_its_topic_goes_without_payload(account: Account) -> None:
    letter = account.dead_letter(1)._replace(payload=os.urandom(20 * 1024 * 1024))
    topic = DeadLetterTopic(account.kafka, account.job.topics.dead_letters, CODEC)
    topic.deliver([letter, account.dead_letter(2)], lambda: True)
    small, cut = account.dead_letters()
    assert small == account.dead_letter(2)
    assert cut == letter._replace(payload=b"", detail="a test [payload of 20971520 bytes left out]")


def test_every_effect_that_fails_once_is_repeated_and_counts_stay_exact(account: Account) -> None:
    failed: list[str] = []

    def fail_once(effect: Effect, run: Callable[[], T]) -> T:
        if effect.value not in failed:
            failed.append(effect.value)
            if effect in (Effect.WRITE_LOGS, Effect.SAVE_PROGRESS):
                run()  # done, but the answer is lost
            raise AutoReconnect("the connection is gone")
        return run()

    account.publish([account.log(1), account.dead_letter(2), account.skip(3), account.log(4), account.end()])
    sink = account.run_sink(fail_once)
    assert sorted(failed) == sorted(Effect)
    assert sink.metrics.retries == len(Effect)
    assert account.external_ids() == ["crm_audit:1", "crm_audit:4"]
    totals = account.totals
    assert (totals.migrated, totals.skipped_total, totals.failed_total) == (2, 1, 1)
    assert account.committed() == {0: 5}


def test_nothing_is_committed_while_a_server_does_not_answer(account: Account) -> None:
    def never(effect: Effect, run: Callable[[], T]) -> T:
        if effect is Effect.WRITE_LOGS:
            sink.stopping.set() if sink.metrics.retries else None
            raise AutoReconnect("the connection is gone")
        return run()

    account.publish([account.log(1), account.end()])
    sink = account.sink(never)
    sink.run()
    assert account.committed() == {0: -1001}
    assert account.totals.accounted == 0
    account.run_sink()
    assert account.totals.migrated == 1


def insert_job(account: Account, **more: Any) -> None:
    account.database["crm_activity_log_migration_jobs"].insert_one(
        {"_id": account.job.job_id, "company_sso_id": "x", "run": account.job.run, "status": "in_progress", **more}
    )


def job_document(account: Account) -> Any:
    return account.database["crm_activity_log_migration_jobs"].find_one({"_id": account.job.job_id})


def test_too_many_failures_halt_the_job_and_keep_the_offsets(account: Account) -> None:
    insert_job(account)
    good = [account.log(i) for i in range(1, 445)]
    bad = [account.dead_letter(i) for i in range(445, 500)]
    account.publish([*good, *bad])  # 499 seen, 55 failed: not a page yet
    account.publish([account.skip(500), *[account.dead_letter(i) for i in range(501, 503)], account.end()])
    with pytest.raises(HaltedError) as halted:
        account.run_sink(sink_batch_records=499)
    assert halted.value.exit_code == 3
    job = job_document(account)
    assert job["status"] == "halted"
    assert job["error"] == "57 of 502 records failed, more than 10%"
    assert account.committed() == {0: 503}
    assert len(account.dead_letters()) == 57


def test_a_tenth_of_failures_does_not_halt(account: Account) -> None:
    insert_job(account)
    account.publish([account.log(i) if i % 10 else account.dead_letter(i) for i in range(1, 1001)])
    account.publish([account.end()])
    account.run_sink()
    assert job_document(account)["status"] == "in_progress"
    assert account.totals.failed_total == 100


def counts_in(job: Any) -> dict[str, Any]:
    names = ("migrated", "skipped", "failed", "foreign", "repaired")
    return {name: job[f"records_{name}"] for name in names} | {
        name: job[name] for name in ("skips_by_reason", "failures_by_cause", "last_audit_id", "progress_pct")
    }


def test_the_counts_of_a_job_that_halts_itself_are_of_one_moment(account: Account) -> None:
    insert_job(account, records_total=1000)
    account.publish([account.log(i) for i in range(1, 445)])
    account.publish([account.dead_letter(i) for i in range(445, 500)])
    account.publish([account.skip(500), *[account.dead_letter(i) for i in range(501, 503)], account.end()])
    with pytest.raises(HaltedError, match="crm-replay dlq retry"):
        account.run_sink(sink_batch_records=499)
    job = job_document(account)
    assert counts_in(job) == {
        "migrated": 444,
        "skipped": 1,
        "failed": 57,
        "foreign": 0,
        "repaired": 0,
        "skips_by_reason": account.totals.skipped,
        "failures_by_cause": account.totals.failed,
        "last_audit_id": 502,
        "progress_pct": 50.2,
    }
    # Another sink had a batch in hand, which it counts, and then finds the job halted.
    progress = Progress(account.database["crm_replay_progress"], account.job.job_id, account.job.run)
    other = replace(progress.load([1])[1], version=1, failed={"write_refused": 100}, skipped={"x": 3})
    assert progress.save({1: other})
    with pytest.raises(HaltedError):
        account.run_sink()
    job = job_document(account)
    assert (job["records_failed"], job["failures_by_cause"]["write_refused"], job["progress_pct"]) == (157, 100, 60.5)
    assert (job["records_skipped"], sum(job["skips_by_reason"].values())) == (4, 4)
    assert job["error"] == "157 of 605 records failed, more than 10%"


def test_older_totals_change_nothing_of_a_halted_job(account: Account) -> None:
    insert_job(account, records_total=1000)
    gate = JobGate(account.database["crm_activity_log_migration_jobs"], account.job.job_id, account.job.run)
    assert gate.closed_because() is None
    gate.halt(RunTotals(migrated=400, failed={"a": 100}))
    gate.settle(RunTotals(migrated=400, failed={"a": 99}))
    assert job_document(account)["records_failed"] == 100
    gate.settle(RunTotals(migrated=400, failed={"a": 101}))
    job = job_document(account)
    assert (job["records_failed"], job["error"]) == (101, "101 of 501 records failed, more than 10%")


@pytest.mark.parametrize(
    ("more", "halts"),
    [
        ({}, True),  # a resume alone forgives nothing
        ({"failure_bound": 0.5}, False),
        ({"failure_bound": 0.45}, True),
        ({"repaired": {"failed": {"undecodable_changes": 550}, "migrated": 550, "skipped": {}}}, False),
    ],
)
def test_failures_count_over_the_jobs_whole_life(account: Account, more: dict[str, Any], halts: bool) -> None:
    insert_job(account, **more)
    account.publish([account.log(i) for i in range(1, 601)])  # first, so that half is never exceeded on the way
    account.publish([account.dead_letter(i) for i in range(601, 1201)])
    account.publish([account.end()])
    if halts:
        with pytest.raises(HaltedError, match="records failed"):
            account.run_sink()
    else:
        account.run_sink()
        assert account.totals.failed_total == 600
    assert job_document(account)["status"] == ("halted" if halts else "in_progress")


@pytest.mark.parametrize(
    ("change", "why"),
    [({"status": "halted"}, "is halted"), ({"status": "rolled_back"}, "rolled_back"), ({"run": 8}, "run 8")],
)
def test_a_sink_of_a_job_that_does_not_go_on_writes_nothing(account: Account, change: dict[str, Any], why: str) -> None:
    insert_job(account)
    account.database["crm_activity_log_migration_jobs"].update_one({"_id": account.job.job_id}, {"$set": change})
    account.publish([account.log(1), account.end()])
    with pytest.raises(HaltedError, match=why):
        account.run_sink()
    assert account.external_ids() == []


def test_a_missing_topic_is_bad_input(account: Account) -> None:
    account.job = account.job.model_copy(update={"company_sso_id": account.job.company_sso_id + "-x"})
    with pytest.raises(BadInputError, match="does not exist"):
        account.run_sink()
    account.job = account.job.model_copy(update={"company_sso_id": account.job.company_sso_id.removesuffix("-x")})


def test_a_collection_without_the_unique_index_is_not_written_to(account: Account) -> None:
    account.logs.drop_index(UNIQUE_EXTERNAL_ID.name)
    account.publish([account.log(1), account.end()])
    with pytest.raises(BadInputError, match="migrate up"):
        account.run_sink()
    assert account.external_ids() == []


def test_outcomes_that_kafka_deleted_unwritten_end_the_sink(account: Account) -> None:
    from confluent_kafka import Consumer, TopicPartition

    group = Consumer({**account.kafka, "group.id": account.job.topics.sink_group, "enable.auto.commit": False})
    group.commit(offsets=[TopicPartition(account.job.topics.outcomes, 0, 5)], asynchronous=False)
    group.close()
    with pytest.raises(OutcomesLostError):
        account.run_sink()


def test_sigterm_finishes_the_batch_and_exits_0(account: Account) -> None:
    account.publish([account.log(i) for i in range(1, 101)])
    process = account.start_process()
    wait_until(lambda: account.totals.migrated == 100, "the batch to be counted")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert account.committed() == {0: 100}


def test_a_halted_job_ends_the_process_with_exit_code_3(account: Account) -> None:
    insert_job(account, status="halted")
    assert account.start_process().wait(30) == 3


@pytest.mark.parametrize("server", ["MONGODB_URL", "KAFKA_BOOTSTRAP_SERVERS"])
def test_a_server_that_is_not_there_at_the_start_is_worth_another_start(account: Account, server: str) -> None:
    nowhere = {"MONGODB_URL": "mongodb://127.0.0.1:9", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}[server]
    assert account.start_process(**{server: nowhere}, CRM_REPLAY_SINK_PATIENCE_S="0").wait(40) == 1


@pytest.mark.parametrize("job", ["", "{", '{"run": 0}'])
def test_a_wrong_job_is_one_line_and_exit_code_2(account: Account, job: str) -> None:
    assert account.start_process(CRM_REPLAY_JOB=job).wait(30) == 2


def test_outcomes_that_were_deleted_and_made_again_end_the_sink(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.process.liveness.CHECK_EVERY_S", 0.2)
    account.publish([account.log(number) for number in range(1, 11)])
    sink = account.sink()
    admin, topic = AdminClient(account.kafka), account.job.topics.outcomes
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(sink.run)
        wait_until(lambda: account.totals.migrated == 10, "the first records")
        time.sleep(1)  # several checks have seen the topic that is about to go
        admin.delete_topics([topic], operation_timeout=30)[topic].result(30)
        wait_until(lambda: made(admin, topic), "the topic to be made again")
        account.publish([account.log(number) for number in range(101, 121)])
        with pytest.raises(TopicReplacedError, match=r"outcomes\S* was deleted and created again: .* run it again"):
            running.result(60)


def made(admin: AdminClient, topic: str) -> bool:
    try:
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(20)
    except KafkaException:
        return False
    return True
