"""The check of a copy against real servers: a sound copy is equal, and every planted defect is named."""

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from bson import ObjectId
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from ops.jobs.operations import digest
from ops.jobs.store import JobStore, NewJob
from ops.kafka import admin as kafka_admin
from ops.local.directory_server import DirectoryServer
from ops.local.sample_crm import SAMPLE_JSONB, SAMPLE_YAML
from producer import markers, references
from producer.checkpoint import Checkpoint
from producer.cursor import IdRange
from producer.publisher import PRODUCER_CONFIG
from producer.survey import survey
from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS
from schemas.identity import replay_id
from schemas.records import ActivityLog, AuditEvent, Contact, DeadLetter
from schemas.source.mapping import load
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from tests.e2e.conftest import Crm, mapping_of
from tests.support.programs import Program

ACCOUNT, OTHER = SAMPLE_YAML, SAMPLE_JSONB  # under other names in each test, see below
MAPPING, OTHER_MAPPING = mapping_of(SAMPLE_YAML), mapping_of(SAMPLE_JSONB)
UNREADABLE = 1_200_001_000_000  # above every sample id
LATE = UNREADABLE + 1


def verify(crm: Crm, *words: str) -> dict[str, Any]:
    """Verify the account and return the report; the exit code must go with it."""
    done = crm.call("verify", "--account", ACCOUNT, "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) is report["equal"]
    return report


def only_finding(report: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the one thing that the report names."""
    kinds = ("missing", "extra", "different", "dead_letter_lost")
    assert {name: report[name] for name in kinds} == {**dict.fromkeys(kinds, 0), kind: 1}
    (finding,) = report["findings"]
    assert finding["kind"] == kind
    return dict(finding)


@pytest.fixture(autouse=True)
def names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the accounts anew: topics are the cluster's, and a name that was just deleted has no leader for a while."""
    for name, sample in (("ACCOUNT", SAMPLE_YAML), ("OTHER", SAMPLE_JSONB)):
        monkeypatch.setitem(globals(), name, f"{sample}-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def named(sample_crm: Crm) -> Crm:
    """Give the sample CRM with its accounts under the names of this module."""
    for collection in ("contacts", "crm_contact_id_map"):
        for sample, name in ((SAMPLE_YAML, ACCOUNT), (SAMPLE_JSONB, OTHER)):
            sample_crm.database[collection].update_many({"company_sso_id": sample}, {"$set": {"company_sso_id": name}})
    return sample_crm


@pytest.fixture
def copied(named: Crm) -> Crm:
    """Give the account replayed; one more row of it ended as a dead letter."""
    named.add_row(UNREADABLE, "--- [never closed")
    named.run(ACCOUNT, "--mapping", MAPPING)
    return named


def test_each_planted_defect_is_named_and_a_repair_mends_them_all(copied: Crm) -> None:
    copied.run(OTHER, "--mapping", OTHER_MAPPING)
    logs = copied.database[ACTIVITY_LOGS]
    sound = copied.logs(ACCOUNT)
    ours = list(logs.find({"company_sso_id": ACCOUNT}).sort("_id"))
    theirs = logs.find_one({"company_sso_id": OTHER})
    dropped, doubled, altered, misplaced, enriched = ours[3], ours[10], ours[17], ours[24], ours[31]

    # What happens beside a replay and is none of it: the live feed's document of a row that the live feed owns, a row
    # that was written since, and what the enricher adds.
    copied.add_row(LATE, "---\nlead_score:\n- 1\n- 2\n")
    post_sync = {"company_sso_id": ACCOUNT, "customer_id": "someone", "external_id": "crm_audit:1200282"}
    logs.insert_one(dict(post_sync))
    logs.update_one({"_id": enriched["_id"]}, {"$set": {"metadata.linked_name": "PT Maju"}})
    report = verify(copied)
    assert report["equal"], report
    assert report["documents"] == report["documents_expected"] == report["documents_equal"] == len(sound)
    assert report["source_rows"] == 327 == len(sound) + sum(report["skipped"].values()) + 1
    assert report["enriched"] == 1
    assert report["failed"] == {"undecodable_changes": 1}
    assert report["failed_rows"] == [{"audit_id": UNREADABLE, "cause": "undecodable_changes"}]
    logs.update_one({"_id": enriched["_id"]}, {"$unset": {"metadata.linked_name": 1}})

    logs.delete_one({"_id": dropped["_id"]})
    finding = only_finding(verify(copied), "missing")
    assert finding["external_id" if "external_id" in finding else "audit_id"] == audit_id(dropped)
    assert "outcome at partition" in finding["why"]
    assert "no document" in finding["why"]
    assert finding["age_s"] > 0
    logs.insert_one(dropped)

    logs.insert_one({**doubled, "_id": ObjectId(), "external_id": "crm_audit:77"})
    finding = only_finding(verify(copied), "extra")
    assert (finding["audit_id"], finding["external_id"]) == (77, "crm_audit:77")
    assert "no source row" in finding["why"]
    logs.delete_one({"external_id": "crm_audit:77"})

    logs.update_one({"_id": altered["_id"]}, {"$set": {"actor.name": "Somebody Else"}})
    finding = only_finding(verify(copied), "different")
    assert (finding["audit_id"], finding["fields"]) == (audit_id(altered), ["actor.name"])
    assert "Somebody" not in json.dumps(finding)
    logs.replace_one({"_id": altered["_id"]}, altered)

    logs.update_one({"_id": misplaced["_id"]}, {"$set": {"customer_id": theirs["customer_id"]}})
    finding = only_finding(verify(copied), "different")
    assert (finding["audit_id"], finding["fields"]) == (audit_id(misplaced), ["customer_id"])
    assert f"its customer is a contact of account {OTHER}" in finding["why"]
    logs.replace_one({"_id": misplaced["_id"]}, misplaced)

    logs.insert_one({**theirs, "_id": ObjectId(), "company_sso_id": ACCOUNT, "external_id": "crm_audit:78"})
    finding = only_finding(verify(copied), "extra")
    assert finding["external_id"] == "crm_audit:78"
    assert f"its customer is a contact of account {OTHER}" in finding["why"]

    # All of them at once, and a repair.
    logs.delete_one({"_id": dropped["_id"]})
    logs.insert_one({**doubled, "_id": ObjectId(), "external_id": "crm_audit:77"})
    logs.update_one({"_id": altered["_id"]}, {"$set": {"actor.name": "Somebody Else"}})
    logs.update_one({"_id": misplaced["_id"]}, {"$set": {"customer_id": theirs["customer_id"]}})
    report = verify(copied, "--limit", "1")
    assert (report["missing"], report["extra"], report["different"]) == (1, 2, 2)
    assert report["findings_left_out"] == 2
    others = copied.logs(OTHER)
    mended = verify(copied, "--repair", "--yes")
    assert mended["equal"], mended
    assert mended["repair"] == {"documents_deleted": 4, "rows_replayed": 3}
    assert copied.logs(OTHER) == others
    assert logs.count_documents(post_sync) == 1
    assert [log for log in copied.logs(ACCOUNT) if log.get("source_tag")] == sound


def audit_id(document: Mapping[str, Any]) -> int:
    return int(document["external_id"].removeprefix("crm_audit:"))


def test_what_was_proved_is_not_transformed_again_until_anything_it_follows_from_changes(copied: Crm) -> None:
    crm, kafka, codec, topics = copied, copied.connections.kafka(), Codec(), AccountTopics.of(ACCOUNT)
    logs = crm.database[ACTIVITY_LOGS]
    first = verify(crm)
    assert (first["equal"], first["source_rows"], first["source_rows_unchanged"]) == (True, 327, 0)

    def is_unchanged() -> None:
        again = verify(crm)
        wall_clock = {"seconds": 0, "rows_per_s": 0, "source_rows_unchanged": 327}
        assert {**again, **wall_clock} == {**first, **wall_clock}
        assert again["source_rows_unchanged"] == 327

    is_unchanged()
    assert verify(crm, "--from-scratch")["source_rows_unchanged"] == 0

    # The source: a row altered; a row that appears where there was none. The copy: a document under an `_id` of the run
    # that is none of a row's. What was proved before still is, once all is as it was.
    some = logs.find_one({"company_sso_id": ACCOUNT, "action": "update"})
    row = audit_id(some)
    run = int.from_bytes(some["_id"].binary[:4], "big")
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        ((changes,),) = db.execute("SELECT audited_changes FROM audits WHERE id = %s", (row,)).fetchall()
        altered = "UPDATE audits SET audited_changes = %s WHERE id = %s"
        db.execute(altered, ("---\nlead_score:\n- 1\n- 98765\n", row))
        assert only_finding(verify(crm), "different")["audit_id"] == row
        db.execute(altered, (changes, row))
        appeared = 1_200_001_000_000 - 7
        crm.add_row(appeared, "---\nlead_score:\n- 1\n- 2\n")
        assert only_finding(verify(crm), "missing")["audit_id"] == appeared
        db.execute("DELETE FROM audits WHERE id = %s", (appeared,))
    doubled = {**some, "_id": ObjectId(replay_id(run, row + 1_000_000)), "external_id": "crm_audit:77"}
    logs.insert_one(doubled)
    only_finding(verify(crm), "extra")
    logs.delete_one({"_id": doubled["_id"]})
    verify(crm)  # a chunk that reached to the row that appeared
    is_unchanged()

    # Dead letters: a row's document is gone and a letter says why; then somebody brings the document.
    letter = DeadLetter(row, 0, topics.replay, 0, 5, run, "write_refused", "", b"", b"", 0)
    logs.delete_one({"_id": some["_id"]})
    produce(kafka, topics.dead_letters, None, codec.encode(letter))
    others = 49  # rows of the chunks around
    for unchanged in (others, 327):
        report = verify(crm)
        assert (report["failed"], report["missing"]) == ({"undecodable_changes": 1, "write_refused": 1}, 0)
        assert report["source_rows_unchanged"] == unchanged
    logs.insert_one({**some, "_id": ObjectId()})
    report = verify(crm)
    assert (report["failed"], report["documents_equal"]) == ({"undecodable_changes": 1}, first["documents_equal"])
    assert (report["equal"], report["source_rows_unchanged"]) == (True, others)
    assert verify(crm)["source_rows_unchanged"] == others  # its `_id` is not of a run: such a segment is not sealed

    # The reference tables: a person is another customer now.
    person = some["metadata"]["crm_person_id"]
    contact = Contact(ACCOUNT, str(person), "somebody-else", 2**60)
    produce(kafka, topics.contacts, str(person), codec.encode(contact))
    report = verify(crm)
    assert report["different"] > 0
    assert set(report["differing_fields"]) == {"customer_id"}


def produce(kafka: Mapping[str, Any], topic: str, key: str | None, value: bytes) -> None:
    """Publish one record, as nobody should; by its key it takes the place of the one before it."""
    producer = Producer({**kafka, "partitioner": PRODUCER_CONFIG["partitioner"]})
    producer.produce(topic, value, key)
    assert producer.flush(30) == 0


def test_what_the_directory_says_by_now_breaks_a_seal(named: Crm) -> None:
    with psycopg.connect(named.dsn) as db:
        emails = [email for (email,) in db.execute("SELECT email FROM users WHERE email <> ''")]
    with DirectoryServer(emails) as directory:
        named.environment["USER_DIRECTORY_URL"] = directory.url
        named.run(ACCOUNT, "--mapping", MAPPING)
        for unchanged in (0, 326):
            report = verify(named)
            assert (report["equal"], report["source_rows_unchanged"]) == (True, unchanged)
        asked = {email for request in directory.requests for email in request}
        assert asked
        directory.behave(left_out=tuple(asked))
        report = verify(named)
        assert report["different"] > 0
        assert set(report["differing_fields"]) == {"actor"}


def test_a_lost_dead_letter_is_named_and_so_is_the_document_of_a_row_that_is_left_out(copied: Crm) -> None:
    logs = copied.database[ACTIVITY_LOGS]
    some = logs.find_one({"company_sso_id": ACCOUNT})
    logs.insert_one({**some, "_id": ObjectId(), "external_id": "crm_audit:1200282"})  # the live feed owns this row
    finding = only_finding(verify(copied), "extra")
    assert finding["why"].startswith("its row is skipped: post_sync_live_feed")
    logs.delete_one({"external_id": "crm_audit:1200282"})

    topic = AccountTopics.of(ACCOUNT).dead_letters
    admin = AdminClient(copied.connections.kafka())
    admin.delete_records([TopicPartition(topic, 0, -1)])[TopicPartition(topic, 0, -1)].result(30)
    finding = only_finding(verify(copied), "dead_letter_lost")
    assert finding["audit_id"] == UNREADABLE
    assert "undecodable_changes" in finding["why"]


def test_a_cursor_saved_and_offsets_committed_too_early_are_named(named: Crm) -> None:
    """Three promises broken in one run: each loses rows, and the check says at which step."""
    crm, topics, codec = named, AccountTopics.of(ACCOUNT), Codec()
    kafka = crm.connections.kafka()
    job = begun(crm)
    environment = {
        **os.environ,
        **crm.environment,
        "CRM_REPLAY_JOB": job.replay_job().model_dump_json(),
        "CRM_REPLAY_EXIT_AT_END": "1",
    }

    # The cursor is saved behind the first rows before they are published.
    passed_up_to = 1_200_020
    first = IdRange(0, first=0, cursor=passed_up_to, last=job.top_audit_id)
    Checkpoint(crm.database, job.job_id, job.run).save(first)
    assert Program.call("producer", env=environment).returncode == 0

    # The processors' group commits behind the first rows of a partition before they are handled.
    partition = 0
    begin = job.begin_offsets[partition] + 1
    published = [r for r in records(kafka, topics.replay, partition) if isinstance(codec.decode(r), AuditEvent)]
    unhandled = {codec.decode_as(AuditEvent, value).audit_id for value in published[:7]}
    committed = [offset + 1 for offset in job.begin_offsets]
    committed[partition] = begin + 7
    kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, committed)
    few = {**environment, "CRM_REPLAY_RUN_RECORDS_MAX": "9"}  # and so many outcomes in a record
    assert Program.call("processors", env=few).returncode == 0

    # The sink's group commits behind the first outcomes of another partition before they are written.
    other = 1
    batch = codec.outcomes(b"", records(kafka, topics.outcomes, other)[0])
    outcomes = [codec.decode(value) for _, value in batch]
    unwritten = {outcome.audit_id for outcome in outcomes if isinstance(outcome, ActivityLog)}
    offsets = [0] * job.partitions
    offsets[other] = 1
    kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, offsets)
    JobStore(crm.database).release(job)
    ended = crm.call("run", "--account", ACCOUNT, "--mapping", MAPPING)
    assert ended.returncode == 1
    assert "out of balance" in ended.stderr

    report = verify(crm, "--limit", "1000")
    assert (report["extra"], report["different"], report["offsets"]) == (0, 0, [])
    assert {count["name"] for count in report["counts"]} >= {"migrated"}
    why = {finding["audit_id"]: finding["why"] for finding in report["findings"]}
    passed = {id_ for id_, text in why.items() if text == "never published: the cursor passed it"}
    assert passed == {id_ for id_ in why if id_ <= passed_up_to}
    assert len(passed) > 10
    lost = {id_ for id_, text in why.items() if "no outcome: its offset was committed before" in text}
    assert lost
    assert lost <= unhandled
    assert all(f"published at partition {partition}, " in why[id_] for id_ in lost)
    dropped = {id_ for id_, text in why.items() if "no document" in text}
    assert dropped == unwritten
    assert all(f"outcome at partition {other}, " in why[id_] for id_ in dropped)
    assert set(why) == passed | lost | dropped

    mended = verify(crm, "--repair", "--yes", "--limit", "1000", "--delete-max-pct", "100")
    assert mended["equal"], mended


def begun(crm: Crm) -> Any:
    """Return a job of the account that is about to run: topics, references and begin markers are there."""
    kafka, topics, codec = crm.connections.kafka(), AccountTopics.of(ACCOUNT), Codec()
    mapping = load(MAPPING)
    found = survey(crm.dsn, mapping, ACCOUNT)
    partitions = kafka_admin.ensure_topics(kafka_admin.client(kafka), topics, 2)
    store = JobStore(crm.database)
    job = store.create(
        NewJob(
            company_sso_id=ACCOUNT,
            partitions=partitions,
            top_audit_id=found.top_audit_id,
            snapshot_xmax=found.snapshot_xmax,
            cutoff=found.cutoff,
            mapping_path=MAPPING,
            mapping_sha256=digest(mapping),
            records_total=found.rows,
        )
    )
    references.publish(crm.dsn, mapping, ACCOUNT, kafka=kafka, mongo=crm.database, topics=topics, codec=codec)
    begin = markers.begin(kafka, topics.replay, partitions, job_id=job.job_id, run=job.run, codec=codec)
    kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, [offset + 1 for offset in begin])
    kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, [0] * partitions)
    return store.set_begin_offsets(job, begin, partitions)


def records(kafka: Mapping[str, Any], topic: str, partition: int) -> list[bytes]:
    """Return the values of a partition's records."""
    consumer = Consumer({**kafka, "group.id": f"{topic}.test", "enable.auto.commit": False})
    try:
        place = TopicPartition(topic, partition, 0)
        _, end = consumer.get_watermark_offsets(place, timeout=30)
        consumer.assign([place])
        found: list[bytes] = []
        while len(found) < end:
            found += [message.value() or b"" for message in consumer.consume(1000, 0.2) if message.error() is None]
        return found
    finally:
        consumer.close()


@pytest.mark.parametrize("words", [(), ("--repair", "--yes")])
def test_without_a_copy_there_is_nothing_to_verify(named: Crm, words: Any) -> None:
    done = named.call("verify", "--account", ACCOUNT, *words)
    assert done.returncode == 2
    assert f"{ACCOUNT} has never been replayed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_mapping_than_the_jobs_is_refused(named: Crm) -> None:
    job = begun(named)
    JobStore(named.database).transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    done = named.call("verify", "--account", ACCOUNT, "--mapping", OTHER_MAPPING)
    assert done.returncode == 2
    assert "is not the one that" in done.stderr


def test_a_run_that_is_not_over_is_refused(named: Crm) -> None:
    begun(named)
    done = named.call("verify", "--account", ACCOUNT)
    assert done.returncode == 2
    assert f"a run of {ACCOUNT} is in progress" in done.stderr
