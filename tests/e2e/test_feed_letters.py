"""A live feed's dead letters on real servers: listed, shown, explained, and their records sent through it again."""

from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from ops.checks.explain.collect import explain_row
from ops.kafka import admin as kafka_admin
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from tests.e2e.conftest import Crm, mapping_of
from tests.e2e.feed import Feed, change, feed_on, now_us, records_on

pytestmark = [pytest.mark.services, pytest.mark.slow]

MENDED, BROKEN = 9_000_001, 9_000_002  # rows that the source does not have any more


def told(crm: Crm, feed: Feed) -> dict[str, Any]:
    """Return the story of the row that is mended, as `--json` prints it."""
    return explain_row(SAMPLE_YAML, MENDED, crm.connections, feed.mapping_path, PlainView(), feed.feed.feed).as_dict()


def publish_what_fails(feed: Feed, person: int) -> None:
    """Put onto the topic a row whose account nobody knows yet, one that can never be read, and what is no row."""
    feed.publish_raw(change("c", MENDED, person, now_us()))
    broken = change("c", BROKEN, person, now_us()).replace(b"---\\nfirst_name:", b"--- [first_name:")
    feed.publish_raw(broken, b"7", [("company_sso_id", f'"{SAMPLE_YAML}"'.encode())])
    feed.publish_raw(b"no change event")


def test_what_a_feed_could_not_take_is_listed_shown_explained_and_sent_through_it_again(sample_crm: Crm) -> None:
    crm = sample_crm
    contact = crm.database["contacts"].find_one({"company_sso_id": SAMPLE_YAML}) or {}
    with feed_on(crm, mapping_of(SAMPLE_YAML)) as feed:
        name = ("--feed", feed.feed.feed)
        with feed.running("--no-names"):
            publish_what_fails(feed, int(contact["crm_data"]["id"]))
            feed.wait_drained()
        listed = crm.json("dlq", "list", *name)
        assert (listed["feed"], listed["states"]) == (feed.feed.feed, {"waiting": 2, "resolved": 0, "no_row": 1})
        causes = {letter["audit_id"]: letter["cause"] for letter in listed["dead_letters"]}
        assert causes == {MENDED: "unknown_account", BROKEN: "undecodable_changes", None: "unreadable_change"}
        assert len(crm.call("dlq", "list", *name, "--cause", "unknown_account").stdout.splitlines()) == 3
        shown = crm.json("dlq", "show", *name, "--audit-id", str(MENDED))
        assert (shown["audit_id"], shown["state"], shown["retries"]) == (MENDED, "waiting", [])
        story = told(crm, feed)
        assert story["verdict"] == f"failed: unknown_account by the live feed {feed.feed.feed}"
        assert story["live_feed"]["letters"][0]["offset"] == shown["offset"]

        retry = ("dlq", "retry", *name, "--reason", "the feed knows the account by now", "--yes")
        assert len(crm.json(*retry, "--dry-run")["would_retry"]) == 3
        assert crm.database["crm_replay_retries"].count_documents({}) == 0
        away = crm.json(*retry, "--cause", "unreadable_change", "--wait", "0")  # sent, though nobody takes it yet
        assert (len(away["sent"]), away["passed"], away["failed_again"]) == (1, False, [])
        with feed.running("--no-names", "--account", SAMPLE_YAML):
            feed.wait_drained()
            again = crm.json(*retry, "--wait", "240", code=1)
        assert (len(again["sent"]), again["with_headers"], again["not_sent"], again["passed"]) == (3, 3, [], True)
        assert len(again["failed_again"]) == 2
        assert [log["external_id"] for log in crm.logs(SAMPLE_YAML)] == [f"crm_audit:{MENDED}"]

        records = records_on(crm.environment["KAFKA_BOOTSTRAP_SERVERS"], feed.feed.topic)
        records_end = kafka_admin.end_offsets(crm.connections.kafka(), feed.feed.topic, 1)[0]
        copies = [record for record in records if record[0] == b"7"]
        assert len(copies) == 2
        assert copies[0] == copies[1]  # key, value and headers
        after = crm.json("dlq", "list", *name)
        assert after["states"] == {"waiting": 1, "resolved": 4, "no_row": 1}
        of_rows = {letter["audit_id"]: letter for letter in after["dead_letters"]}  # the last of each
        assert (of_rows[MENDED]["state"], of_rows[MENDED]["why"]) == ("resolved", "it has a document")
        assert (of_rows[BROKEN]["state"], of_rows[BROKEN]["failures"]) == ("waiting", 2)
        text = crm.call("explain", str(MENDED), "--account", SAMPLE_YAML, *name).stdout
        assert f"{feed.feed.topic}/0@{records_end - 3}: activity log" in text
        story = told(crm, feed)
        assert story["verdict"] == "the live feed has written its document"
        assert [each["what"] for each in story["live_feed"]["outcomes"]][-1] == "activity log"

        everything = TopicPartition(feed.feed.topic, 0, records_end)
        admin = AdminClient(crm.connections.kafka())
        admin.delete_records([everything])[everything].result(60)
        bare = crm.json(*retry, "--wait", "0", "--audit-ids", str(BROKEN))
        assert (len(bare["sent"]), bare["with_headers"], bare["not_sent"]) == (1, 0, [])

        assert crm.call("dlq", "list", "--account", SAMPLE_YAML, *name).returncode == 2
        nobody = crm.call("dlq", "list", "--feed", "nobody")
        assert (nobody.returncode, "there is no live feed nobody" in nobody.stderr) == (2, True)
