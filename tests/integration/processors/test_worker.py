"""One worker on real Kafka, end to end: what it commits, what it delivers, and when it refuses to go on."""

import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from importlib.resources import files
from typing import Any

import bson
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from ops.checks.file_rows import event_of
from ops.kafka import admin as kafka_admin
from processors.batches import PAYLOAD_BYTES_MAX
from schemas.process.logs import last_event
from schemas.records import ActivityLog, AuditEvent, Contact, DeadLetter, SkippedRecord, SnapshotMarker, User
from schemas.vocabulary import DeadLetterCause, MarkerEdge, SkipReason
from tests.integration.processors.harness import CODEC, JOB_ID, JobOnKafka, Worker, event
from tests.support.programs import Program
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services

NewJob = Callable[[int], JobOnKafka]
UNTIL_END = {"CRM_REPLAY_EXIT_AT_END": "1"}


def finish(worker: Worker, code: int = 0) -> str:
    """Wait for the worker's own end, and return what it said."""
    assert worker.process.wait(60) == code, worker.output()[-3000:]
    return worker.output()


def message(record: AuditEvent, partition: int = 0) -> tuple[bytes, bytes, int]:
    return str(record.auditable_id).encode(), CODEC.encode(record), partition


def audit_ids(job: JobOnKafka) -> list[int]:
    return [o.audit_id for _, _, o in job.outcomes() if isinstance(o, ActivityLog)]


def test_every_record_has_one_outcome_on_its_own_partition_and_all_of_it_is_committed(new_job: NewJob) -> None:
    job = new_job(3)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, 5001))
    job.begin()
    finish(job.start("a", **UNTIL_END))
    outcomes = job.outcomes()
    assert len(outcomes) == 5003
    for partition in range(3):
        here = [(key, outcome) for p, key, outcome in outcomes if p == partition]
        logs = [(key, outcome) for key, outcome in here[:-1] if isinstance(outcome, ActivityLog)]
        assert [log.audit_id for _, log in logs] == list(range(partition + 1, 5001, 3))  # in order
        assert [log.source_offset for _, log in logs] == list(range(1, len(logs) + 1))
        assert [key for key, _ in logs] == [str(log.audit_id % 500 + 1).encode() for _, log in logs]
        assert {log.run for _, log in logs} == {job.job.run}
        assert bson.decode(logs[0][1].document)["audit_id"] == partition + 1
        assert here[-1][1] == SnapshotMarker(MarkerEdge.END, JOB_ID, len(logs) + 1, job.job.run)
    assert job.committed() == job.ends()


def test_a_rerun_by_offset_reset_delivers_everything_again(new_job: NewJob) -> None:
    job = new_job(2)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, 101))
    for times in (1, 2):
        job.begin()
        finish(job.start("a", **UNTIL_END))
        assert Counter(audit_ids(job)) == Counter(dict.fromkeys(range(1, 101), times))


def test_a_later_job_continues_behind_the_first_one(new_job: NewJob) -> None:
    job = new_job(1)
    job.publish(job.topics.replay, [*job.markers("begin", "job-0"), message(event(1)), *job.markers("end", "job-0")])
    job.publish(job.topics.replay, [*job.markers("begin"), message(event(2)), *job.markers("end")])
    job.begin([4])
    finish(job.start("a", **UNTIL_END))
    log, marker = (outcome for _, _, outcome in job.outcomes())
    assert isinstance(log, ActivityLog)
    assert log.audit_id == 2
    assert marker == SnapshotMarker(MarkerEdge.END, JOB_ID, 5, job.job.run)


def test_without_a_committed_offset_the_worker_refuses_to_guess(new_job: NewJob) -> None:
    job = new_job(2)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, 11))
    said = finish(job.start("a", **UNTIL_END), 1)
    assert "has no committed offset" in said
    assert job.committed() == [-1001, -1001]
    assert job.outcomes() == []


def test_records_that_retention_took_end_the_worker_instead_of_being_jumped_over(new_job: NewJob) -> None:
    job = new_job(1)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, 101))
    job.begin()
    for future in job.admin.delete_records([TopicPartition(job.topics.replay, 0, 50)]).values():
        future.result(10)
    said = finish(job.start("a", **UNTIL_END), 1)
    assert "worker: the topic no longer has the records at the committed offset" in said
    assert job.committed() == [1]
    assert job.outcomes() == []


def test_an_outcome_that_kafka_refuses_ends_the_worker_and_nothing_behind_it_gets_through(new_job: NewJob) -> None:
    job = new_job(1)
    refused = event(20, audited_changes=random.Random(1).randbytes(50_000).hex())
    job.publish_snapshot(refused if audit_id == 20 else event(audit_id) for audit_id in range(1, 2001))
    job.begin()
    small = ConfigEntry("max.message.bytes", "30000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, job.topics.outcomes, incremental_configs=[small])
    for future in job.admin.incremental_alter_configs([resource]).values():
        future.result(10)
    said = finish(job.start("a", CRM_REPLAY_RUN_RECORDS_MAX="5", **UNTIL_END), 1)
    assert "Kafka did not take an outcome" in said
    assert job.committed()[0] <= refused.audit_id
    delivered = audit_ids(job)
    assert delivered == list(range(1, len(delivered) + 1))  # the sink takes them to be in order, without a gap
    assert len(delivered) < refused.audit_id


def test_offsets_without_records_are_passed_over_and_aborted_records_never_seen(new_job: NewJob) -> None:
    job = new_job(2)
    job.publish(job.topics.replay, job.markers("begin"))
    job.publish_transactions(
        job.topics.replay,
        (
            ([message(event(i * 10 + n), n % 2) for n in range(10)], i % 3 != 0)  # every third one is aborted
            for i in range(1, 31)
        ),
    )
    job.publish(job.topics.replay, job.markers("end"))
    job.begin()
    finish(job.start("a", CRM_REPLAY_RUN_RECORDS_MAX="7", **UNTIL_END))
    assert sorted(audit_ids(job)) == [i * 10 + n for i in range(1, 31) if i % 3 != 0 for n in range(10)]
    assert job.committed() == job.ends()
    assert job.handled_up_to() == job.ends()


def test_poison_ends_as_dead_letters_and_nothing_else_is_touched(new_job: NewJob) -> None:
    job = new_job(1)
    good = CODEC.encode(event(1))
    contact = CODEC.encode(Contact("someone-else", "1", "c", 1))
    poison: list[tuple[bytes | None, bytes | None]] = [
        (b"k", b"garbage"),
        (b"k", b""),
        (b"k", b"\xc3\x01" + bytes(8) + b"unknown schema"),
        (b"k", good[:-5]),
        (b"k", good + b"!"),
        (b"k", None),
        (None, good),
        (b"k", contact),
    ]
    defect = event(9, auditable_type="Defect", id_range=4)
    job.publish(job.topics.replay, job.markers("begin"))
    job.publish(job.topics.replay, [(key, value, 0) for key, value in poison])
    job.publish(job.topics.replay, [message(defect), message(event(10))])
    job.publish(job.topics.replay, job.markers("end"))
    job.begin()
    said = finish(job.start("a", **UNTIL_END))
    *letters, after, marker = (outcome for _, _, outcome in job.outcomes())
    assert isinstance(after, ActivityLog)
    assert after.audit_id == 10
    assert isinstance(marker, SnapshotMarker)
    assert len(letters) == len(poison) + 1
    for offset, ((key, value), letter) in enumerate(zip(poison, letters, strict=False), 1):
        assert isinstance(letter, DeadLetter)
        assert letter.cause == DeadLetterCause.UNDECODABLE_RECORD
        assert (letter.source_topic, letter.source_partition, letter.source_offset) == (job.topics.replay, 0, offset)
        assert (letter.key, letter.payload) == (key or b"", value or b"")
        assert letter.detail
    last = letters[-1]
    assert isinstance(last, DeadLetter)
    assert (last.audit_id, last.id_range, last.cause) == (9, 4, DeadLetterCause.TRANSFORM_FAILED)
    assert "KeyError" in last.detail
    assert "a rule's defect" not in last.detail  # an error's text can hold personal data
    assert "dead_letter.undecodable_record=8 dead_letter.transform_failed=1" in said.replace(
        "dead_letter.transform_failed=1 dead_letter.undecodable_record=8",
        "dead_letter.undecodable_record=8 dead_letter.transform_failed=1",
    )
    assert job.committed() == job.ends()


def test_a_huge_record_still_makes_a_deliverable_dead_letter(new_job: NewJob) -> None:
    job = new_job(1)
    size = PAYLOAD_BYTES_MAX + 1_000_000
    job.publish(job.topics.replay, job.markers("begin"))
    job.publish(job.topics.replay, [(b"k", b"x" * size, 0)], **{"message.max.bytes": kafka_admin.RECORD_BYTES_MAX})
    job.publish(job.topics.replay, job.markers("end"))
    job.begin()
    finish(job.start("a", **UNTIL_END))
    letter = job.outcomes()[0][2]
    assert isinstance(letter, DeadLetter)
    assert len(letter.payload) == PAYLOAD_BYTES_MAX
    assert f"cut from {size} to {PAYLOAD_BYTES_MAX} bytes" in letter.detail


def test_rows_that_the_snapshot_published_twice_are_dropped_also_after_a_restart(new_job: NewJob) -> None:
    job = new_job(1)
    job.publish(job.topics.replay, job.markers("begin"))
    job.publish(job.topics.replay, [message(event(i)) for i in (*range(1, 101), *range(81, 111))])
    job.publish(job.topics.replay, [message(event(i, id_range=1)) for i in range(5, 8)])
    job.begin()
    first = job.start("a")
    wait_until(lambda: job.committed() == job.ends(), "the first worker gets to the end", 60)
    assert first.leave() == 0
    job.publish(job.topics.replay, [message(event(i)) for i in range(91, 121)])
    job.publish(job.topics.replay, [message(event(i, id_range=1)) for i in range(5, 11)])
    job.publish(job.topics.replay, job.markers("end"))
    said = finish(job.start("b", **UNTIL_END))
    rows = [(o.id_range, o.audit_id) for _, _, o in job.outcomes() if isinstance(o, ActivityLog)]
    assert sorted(rows) == [*((0, i) for i in range(1, 121)), *((1, i) for i in range(5, 11))]
    assert "republished=23" in said


def test_a_run_that_was_delivered_but_not_acknowledged_is_delivered_again_after_sigkill(new_job: NewJob) -> None:
    job = new_job(1)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, 51))
    job.begin()
    stuck = job.start("a", SLOW_S="600")  # its outcomes are confirmed, its ack does not come
    wait_until(lambda: len(job.outcomes()) == 51, "the outcomes are delivered", 60)
    assert stuck.running
    stuck.kill()
    assert job.committed() == [1]
    finish(job.start("a", **UNTIL_END))
    assert Counter(audit_ids(job)) == Counter(dict.fromkeys(range(1, 51), 2))
    assert job.committed() == job.ends()


def test_two_workers_end_by_themselves_once_all_partitions_have_ended(new_job: NewJob) -> None:
    job = new_job(4)
    job.publish_snapshot(event(audit_id) for audit_id in range(1, 4001))
    job.begin()
    workers = [job.start(name, SLOW_S="0.05", CRM_REPLAY_RUN_RECORDS_MAX="50", **UNTIL_END) for name in ("a", "b")]
    for worker in workers:
        finish(worker)
    assert job.handled_up_to() == job.ends() == job.committed()
    assert set(audit_ids(job)) == set(range(1, 4001))


def test_a_worker_that_is_stopped_while_it_starts_ends_well(new_job: NewJob) -> None:
    job = new_job(1)
    job.publish_snapshot([event(1)])
    job.begin()
    worker = job.start("a")
    wait_until(lambda: "Starting" in worker.output(), "it has begun to start", 30)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(20) == 0, worker.output()[-3000:]


def test_no_audit_meets_a_table_that_is_not_loaded_to_its_end(new_job: NewJob) -> None:
    job = new_job(2)
    people = 30_000
    job.publish_references(
        job.topics.contacts,
        (*((str(i), Contact(job.account, str(i), f"c{i}", 1)) for i in range(1, people + 1)), ("3", None)),
    )
    job.publish_references(job.topics.contacts, [("5", Contact("another-account", "5", "c5", 1))])
    job.publish_snapshot(event(i, user_id=i) for i in (1, 2, 3, 4, 5, people - 1, people, people + 1))
    job.begin()
    said = finish(job.start("a", **UNTIL_END))
    outcomes = [outcome for _, _, outcome in job.outcomes()]
    assert sorted(o.audit_id for o in outcomes if isinstance(o, ActivityLog)) == [1, 2, 4, people - 1, people]
    skips = {o.audit_id: o.reason for o in outcomes if isinstance(o, SkippedRecord)}
    assert skips == dict.fromkeys((3, 5, people + 1), SkipReason.CONTACT_NOT_FOUND)
    assert f"table.contacts={people - 1}" in said
    assert "table_rejects=1" in said


def test_a_missing_reference_topic_is_one_clear_line(new_job: NewJob) -> None:
    job = new_job(1)
    job.publish_snapshot([event(1)])
    job.begin()
    for future in job.admin.delete_topics([job.topics.users]).values():
        future.result(10)
    said = finish(job.start("a", **UNTIL_END), 1)
    assert f"worker: topic {job.topics.users} does not exist: publish the reference topics first" in said
    kafka_admin.ensure_topics(job.admin, job.topics, 1)


# -- the product's own process, on rows that the audited gem wrote


def sample(name: str) -> list[dict[str, Any]]:
    text = files("ops.local").joinpath(f"sample/{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_real_rows_become_activity_logs_by_the_products_own_process(new_job: NewJob) -> None:
    job = new_job(2)
    rows = sample("audits_yaml")
    people = {row["auditable_id"] for row in rows if row["auditable_type"] == "Crm::Person"}
    synced_at = 4_000_000_000_000_000  # after every row: the replay owns them all
    job.publish_references(
        job.topics.contacts, ((str(i), Contact(job.account, str(i), f"customer-{i}", synced_at)) for i in people)
    )
    job.publish_references(
        job.topics.users,
        (
            (str(u["id"]), User(u["id"], u["email"], u["full_name"], u["deleted_at"] is not None))
            for u in sample("users")
        ),
    )
    job.publish_snapshot(event_of(row, "a row") for row in rows)
    job.begin()
    process = Program.call("processors", env=job.environment("a", **UNTIL_END))
    assert process.returncode == 0, process.stderr
    outcomes = [outcome for _, _, outcome in job.outcomes() if not isinstance(outcome, SnapshotMarker)]
    assert sorted(outcome.audit_id for outcome in outcomes) == sorted(row["id"] for row in rows)
    logs = {o.audit_id: bson.decode(o.document) for o in outcomes if isinstance(o, ActivityLog)}
    assert len(logs) > 100
    by_id = {row["id"]: row for row in rows}
    for audit_id, document in logs.items():
        assert document["external_id"] == f"crm_audit:{audit_id}"
        assert document["company_sso_id"] == job.account
        assert document["customer_id"].startswith("customer-")
        assert document["source_tag"] == "crm_migration"
        created = datetime.fromisoformat(by_id[audit_id]["created_at"]).replace(tzinfo=None)
        assert abs((document["timestamp"] - created).total_seconds()) < 0.001
    assert {o.reason for o in outcomes if isinstance(o, SkippedRecord)} <= set(SkipReason)


def test_a_worker_without_its_environment_says_what_is_missing(kafka_bootstrap: str) -> None:
    process = Program.call("processors", env={"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap})
    assert process.returncode == 2
    assert [last_event(line) for line in process.stderr.splitlines()] == [
        "CRM_REPLAY_JOB: Field required: crm-replay sets it for the processes that it starts"
    ]
