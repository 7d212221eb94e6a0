"""Traces of a real run, as a real receiver of OTLP is told them; and that a run without them has nothing of them."""

import re
import urllib.request
from collections import Counter, defaultdict
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from ops.local.sample_crm import SAMPLE_JSONB, SAMPLE_YAML
from schemas.process.tracing import context_of
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, mapping_of
from tests.e2e.feed import ONE, SYNCED, add_contact, feed_on, row, us
from tests.fixtures.otlp import ReceivedSpan, receiver
from tests.fixtures.services import _free_port
from tests.support.personal import personal_values

# Every attribute that there is: none can hold what a row says.
ATTRIBUTES = {
    *(f"crm_replay.{name}" for name in ("account", "job_id", "run", "id_range", "page_end", "rows", "offset")),
    *(
        f"crm_replay.{name}"
        for name in ("documents", "inserted", "redelivered", "duplicates", "failed", "dead_letters")
    ),
    "messaging.system",
    "messaging.destination.name",
    "messaging.destination.partition.id",
    "messaging.batch.message_count",
    "db.system.name",
    "db.collection.name",
    "db.operation.name",
}


def replay(crm: Crm, account: str, **environment: str) -> None:
    done = crm.call("run", "--account", account, "--json", "--mapping", mapping_of(account), **environment)
    assert done.returncode == 0, done.stderr


def records_of(crm: Crm, topic: str) -> list[Message]:
    """Return every record that a topic has."""
    consumer = Consumer({**crm.connections.kafka(), "group.id": "tracing-test", "enable.partition.eof": True})
    try:
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        found: list[Message] = []
        ended: set[int | None] = set()
        while len(ended) < len(partitions):
            message = consumer.poll(30)
            assert message is not None, f"{topic} does not end"
            if message.error() is None:
                found.append(message)
            else:
                ended.add(message.partition())
        return found
    finally:
        consumer.close()


def headers_of(message: Message) -> list[tuple[str, Any]]:
    headers = message.headers()
    return headers if isinstance(headers, list) else []


@pytest.mark.timeout(300)
def test_a_page_is_followed_from_its_read_to_the_bulk_write_and_the_run_beside_it_is_not(sample_crm: Crm) -> None:
    with receiver() as collector:
        replay(
            sample_crm,
            SAMPLE_YAML,
            CRM_REPLAY_TRACING_SAMPLE_RATIO="1",
            CRM_REPLAY_TRACING_ENDPOINT=collector.url,
            CRM_REPLAY_TRACING_HEADERS="x-tenant=crm",
            CRM_REPLAY_PAGE_ROWS="100",
        )
    spans = collector.spans
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    assert {headers["x-tenant"] for _, headers in collector.requests} == {"crm"}
    by_id = {span.span_id: span for span in spans}
    pages = [span for span in spans if span.name == "page" and span.attributes["crm_replay.rows"]]
    assert sum(page.attributes["crm_replay.rows"] for page in pages) == 326
    assert len({page.trace_id for page in pages}) == len(pages) >= 4
    assert not any(span.failed for span in spans)

    of_trace: dict[str, list[ReceivedSpan]] = defaultdict(list)
    for span in spans:
        of_trace[span.trace_id].append(span)
    for page in pages:
        below = of_trace[page.trace_id]
        assert page.parent == ""
        steps = Counter(span.name for span in below if span.parent == page.span_id and span.process == "producer")
        assert steps == {"read": 1, "encode": 1, "publish": 1, "confirm": 1, "save cursor": 1}
        runs = [span for span in below if span.name == "run"]
        assert runs
        assert {(run.process, run.parent) for run in runs} == {("processors", page.span_id)}
        writes = [span for span in below if span.name == "bulk write"]
        batches = [by_id[write.parent] for write in writes]
        assert {(batch.name, batch.process) for batch in batches} == {("batch", "sink")}
        # What a batch contains of the page is its parent or a link; together that is every run of the page.
        contained = {batch.parent for batch in batches}.union(*(batch.links for batch in batches))
        assert contained == {run.span_id for run in runs}
        for span in below:  # nothing begins before what led to it
            assert span.parent == "" or by_id[span.parent].began_ns <= span.began_ns <= span.ended_ns
    job = {span.attributes.get("crm_replay.job_id") for span in spans if span.name in ("page", "run", "batch")}
    assert len(job) == 1
    assert None not in job
    assert {span.attributes["crm_replay.account"] for span in pages} == {SAMPLE_YAML}
    written = {span.span_id: span.attributes["crm_replay.inserted"] for span in spans if span.name == "batch"}
    assert sum(written.values()) >= len(sample_crm.logs(SAMPLE_YAML))  # a batch is in the trace of each of its pages

    assert {name for span in spans for name in span.attributes} == ATTRIBUTES
    told = b"".join(collector.raw)
    assert not [value for value in personal_values() if value.encode() in told]

    topics = AccountTopics.of(SAMPLE_YAML)
    replayed = [context_of(headers_of(message)) for message in records_of(sample_crm, topics.replay)]
    assert Counter(context.split(b"-")[1].decode() for context in replayed if context) == {
        page.trace_id: page.attributes["crm_replay.rows"] for page in pages
    }
    outcomes = [context_of(headers_of(message)) for message in records_of(sample_crm, topics.outcomes)]
    assert {context.split(b"-")[2].decode() for context in outcomes if context} == {
        span.span_id for span in spans if span.name == "run"
    }

    replay(sample_crm, SAMPLE_JSONB)
    topics = AccountTopics.of(SAMPLE_JSONB)
    for topic, records_min in ((topics.replay, 200), (topics.outcomes, 3)):
        untraced = records_of(sample_crm, topic)
        assert len(untraced) > records_min
        assert not any(headers_of(message) for message in untraced)


@pytest.mark.slow
def test_a_live_record_is_followed_from_where_its_source_began_the_trace(sample_crm: Crm) -> None:
    add_contact(sample_crm, ONE, 1, SYNCED)
    after = us(SYNCED) + 1_000_000
    begun = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # as a CDC connector's interceptor may
    port = _free_port()
    with feed_on(sample_crm, "") as feed, receiver() as collector:
        traced = {
            "CRM_REPLAY_TRACING_SAMPLE_RATIO": "1e-9",  # what nobody has begun is not
            "CRM_REPLAY_TRACING_ENDPOINT": collector.url,
            "CRM_REPLAY_METRICS_PORT": str(port),
        }
        with feed.running(**traced):
            feed.publish_raw(feed.codec.encode(row(1, ONE, 1, after)), b"1", [("traceparent", begun)])
            feed.publish([row(2, ONE, 1, after)])
            feed.wait_drained()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                metrics = answer.read().decode()
    spans = {span.name: span for span in collector.spans}
    assert {span.trace_id for span in collector.spans} == {begun.split(b"-")[1].decode()}
    assert spans["run"].parent == begun.split(b"-")[2].decode()
    assert spans["batch"].parent == spans["run"].span_id
    assert spans["bulk write"].parent == spans["batch"].span_id
    assert spans["batch"].attributes["crm_replay.inserted"] >= 1
    assert len(sample_crm.logs(ONE)) == 2
    # The feed's workers say so at the port of the process that keeps them.
    up = dict(re.findall(r'crm_replay_worker_up\{account="",role="(\w+)",worker="[^"]+"\} (\S+)', metrics))
    assert up == {"processors": "1.0", "sink": "1.0"}
    assert re.search(r"crm_replay_live_contacts_total\{[^}]*what=\"asked\"[^}]*\} [1-9]", metrics)
