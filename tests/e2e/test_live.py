"""The live feed through every real part: Kafka, Faust workers, MongoDB; `crm-replay live` as a user starts it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from ops.feed.feed import LiveOptions, feed_of, prepare
from ops.kafka import admin as kafka_admin
from ops.local.sample_crm import load_sample
from schemas.errors import BadInputError
from tests.e2e.conftest import Crm
from tests.e2e.failures import reading, workers_of
from tests.e2e.feed import (
    ONE,
    OTHER,
    SYNCED,
    Feed,
    Headers,
    add_contact,
    change,
    dead_letters_of,
    feed_on,
    made_again,
    now_us,
    row,
    us,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

PATIENCE_S = 180.0  # with a machine that has other things to do
WATCHED_WITHIN_S = 90.0


@contextlib.contextmanager
def joined(crm: Crm, role: str, feed: Feed) -> Iterator[None]:
    """Run one more worker of the feed; it is asked to stop in the end, and must then end well."""
    with crm.start(role, "--live", "--feed", feed.feed.feed) as worker, reading(worker.stderr) as said:
        try:
            yield
        except BaseException:
            worker.kill()
            raise
        worker.terminate()
        assert worker.wait(60) == 0, said[-3:]


@pytest.fixture
def feed(crm: Crm) -> Iterator[Feed]:
    load_sample(crm.dsn)  # users, and what the rows' records are called
    with feed_on(crm, "") as feed:
        yield feed


def test_rows_of_many_accounts_end_in_their_own_bins_and_documents(crm: Crm, feed: Feed) -> None:
    customers = {account: add_contact(crm, account, 7, SYNCED) for account in (ONE, OTHER)}
    before, after = us(SYNCED) - 1, us(SYNCED)
    refused = crm.call("process", "--live", "--feed", "nobodys")
    assert refused.returncode == 2
    assert "there is no live feed nobodys" in refused.stderr
    # The feed's own processes on one host, its workers on others: they join by its name.
    with feed.running("--processors", "0", "--sinks", "0"), joined(crm, "process", feed), joined(crm, "sink", feed):
        feed.publish(
            [
                row(11, ONE, 7, after),  # the very instant belongs to the live feed
                row(11, OTHER, 7, after + 5_000_000),  # same ids in another account's CRM: another customer
                row(12, ONE, 7, before),
                row(13, ONE, 8, after),  # nobody's contact
                row(14, ONE, 7, after, action="merge"),
                row(15, OTHER, 7, after, audited_changes="--- !ruby/object:Foo\nbroken: ["),
                row(16, "", 7, after),
            ]
        )
        feed.publish_raw(b"garbage", b"7")
        feed.publish_raw(None, b"7")  # a tombstone is about no row
        # Ids that fall, and a row that the source sends twice: both are usual in a feed.
        feed.publish([row(5, ONE, 7, after), row(11, ONE, 7, after)])
        # Change events of the CRM's database beside our own: an insert, and an update of history, which is refused.
        owner: Headers = [("company_sso_id", OTHER.encode())]
        feed.publish_raw(change("c", 21, 7, after), b"21", owner)
        feed.publish_raw(change("u", 21, 7, after), b"21", owner)
        feed.wait_drained()
        wait_until(lambda: feed.counted() == 12, "every record but the tombstone in its bin")
        assert feed.counts(ONE) == {
            "migrated": 2,
            "skipped": {
                "pre_sync_replay": 1, "contact_not_found": 1, "unmapped_action_type": 1, "duplicate_external_id": 1,
            },
            "failed": {},
            "foreign": {},
        }  # fmt: skip
        assert feed.counts(OTHER) == {"migrated": 2, "skipped": {}, "failed": {"undecodable_changes": 1}, "foreign": {}}
        nobodys = feed.counts("")
        assert sum(nobodys["foreign"].values()) == 2
        assert nobodys["skipped"] == {"audit_updated": 1}
        shown = crm.call("live", "--status", "--feed", feed.feed.feed, "--json")
        assert shown.returncode == 0, shown.stderr
        assert feed.status().as_dict()["accounts"][ONE] == feed.counts(ONE)
    logs = list(crm.database["activity_logs"].find())
    assert {(log["company_sso_id"], log["external_id"], log["customer_id"]) for log in logs} == {
        (ONE, "crm_audit:11", customers[ONE]),
        (ONE, "crm_audit:5", customers[ONE]),
        (OTHER, "crm_audit:11", customers[OTHER]),
        (OTHER, "crm_audit:21", customers[OTHER]),
    }
    assert all("source_tag" not in log for log in logs)
    causes = sorted(letter.cause for letter in dead_letters_of(feed))
    assert len(causes) == 3
    assert "undecodable_changes" in causes
    assert "wrong_account" in causes


def test_a_feed_that_waits_for_a_contact_stops_when_told_and_loses_nothing_killed_or_not(crm: Crm) -> None:
    load_sample(crm.dsn)
    with feed_on(crm, "", partitions=1, visibility_delay_s=6.0) as feed:
        with feed.running("--visibility-delay", "100"):
            wait_until(lambda: "started in" in feed.logs(), "the worker", PATIENCE_S)
            feed.publish([row(1, ONE, 8, now_us())])  # a stranger's: held for as long as a contact may appear
            wait_until(lambda: feed.status().processors_lag == 1, "the row to be there")
        assert feed.counts(ONE)["skipped"] == {}  # and `running` has seen that it ended well
        with feed.running() as live:
            wait_until(lambda: feed.logs().count("started in") == 2, "the worker to be back", PATIENCE_S)
            for pid in workers_of(live):
                os.kill(pid, signal.SIGKILL)
            made = datetime.now(UTC)
            feed.publish([row(2, ONE, 7, us(made) + 1_000)])  # a millisecond after a contact that nobody can read yet
            time.sleep(1)
            customer = add_contact(crm, ONE, 7, made)
            feed.wait_drained()
        assert feed.counts(ONE)["skipped"] == {"contact_not_found": 1}
        assert feed.counts(ONE)["migrated"] == 1
    (log,) = crm.database["activity_logs"].find()
    assert (log["customer_id"], log["external_id"]) == (customer, "crm_audit:2")


def test_a_topic_that_was_made_anew_begins_a_new_run_and_one_that_is_there_keeps_its_partitions(crm: Crm) -> None:
    with feed_on(crm, "", partitions=3) as feed:
        options = LiveOptions(feed=feed.feed.feed, topic=feed.feed.topic, partitions=8)
        again = prepare(options, crm.connections, crm.database)
        assert (again.run, again.partitions) == (feed.feed.run, 3)
        kafka, topics = crm.connections.kafka(), feed.feed.topics
        assert kafka_admin.committed_offsets(kafka, topics.processors_group, topics.replay, 3) == [0, 0, 0]
        kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, [5, 5, 5])  # far on, in the old one
        admin = kafka_admin.client(kafka)
        admin.delete_topics([feed.feed.topic], operation_timeout=30)[feed.feed.topic].result(30)
        wait_until(lambda: feed.feed.topic not in admin.list_topics(timeout=10).topics, "the topic to be gone")
        anew = prepare(options, crm.connections, crm.database)
        assert (anew.run > feed.feed.run, anew.partitions) == (True, 8)
        assert kafka_admin.committed_offsets(kafka, topics.processors_group, topics.replay, 8) == [0] * 8
        assert feed_of(crm.database, feed.feed.feed) == anew
    with pytest.raises(BadInputError, match="reads"):
        prepare(LiveOptions(feed=feed.feed.feed, topic="another"), crm.connections, crm.database)


@pytest.mark.parametrize(
    ("which", "rows_after"),
    [("replay", 2), ("replay", 40), ("outcomes", 2)],  # fewer and more records than the one that is gone had
)
def test_a_topic_made_again_under_a_running_feed_is_read_from_its_beginning(
    crm: Crm, which: str, rows_after: int
) -> None:
    load_sample(crm.dsn)
    customer = add_contact(crm, ONE, 7, SYNCED)
    with feed_on(crm, "", partitions=1) as feed, feed.running():
        feed.publish([row(number, ONE, 7, us(SYNCED)) for number in range(1, 11)])
        feed.wait_drained()
        topic = getattr(feed.feed.topics, which)
        made_again(crm, topic, 1)
        feed.publish([row(number, ONE, 7, us(SYNCED)) for number in range(101, 101 + rows_after)])
        wait_until(
            lambda: crm.database["activity_logs"].count_documents({}) == 10 + rows_after,
            f"the rows of the new topic: {feed.said[-5:]}",
            WATCHED_WITHIN_S,
        )
        wait_until(lambda: feed.counts(ONE)["migrated"] == 10 + rows_after, "the counts")
        # The watchdog may find it a moment after the rows have passed.
        cause = f"topic {topic} was deleted and created again"
        wait_until(lambda: any(cause in line and "crm-replay seam" in line for line in feed.said), "the cause")
        assert (feed_of(crm.database, feed.feed.feed).run > feed.feed.run) == (which == "replay")
    assert {log["customer_id"] for log in crm.database["activity_logs"].find()} == {customer}
