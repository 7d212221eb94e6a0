"""What waits on an account's topics, asked of a Kafka that nobody has used before."""

import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from ops.kafka import admin as kafka_admin
from ops.kafka.lag import Lag, LagReader
from ops.local import services
from ops.local.services import Service
from schemas.topics import AccountTopics

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("without_urls")]

# In a process of its own: what this is about ends the process.
ASK = """
import sys
from ops.kafka.lag import LagReader
for account in sys.argv[2:]:
    print(LagReader({"bootstrap.servers": sys.argv[1]}).of(account), flush=True)
"""


def asked(bootstrap: str, *accounts: str) -> set[str]:
    argv = [sys.executable, "-c", ASK, bootstrap, *accounts]
    answer = subprocess.run(argv, capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines())


def test_a_new_cluster_has_nothing_to_say_at_first_and_then_what_waits(empty_home: Path) -> None:
    bootstrap = services.up(empty_home, only=[Service.KAFKA]).kafka_bootstrap_servers
    account = "lag-1"
    topics = AccountTopics.of(account)
    # No topics, and at first no coordinator of any group: which one is met when it is about to begin is chance.
    assert asked(bootstrap, account, *(f"lag-{number}" for number in range(2, 40))) == {str(Lag())}

    admin, kafka = AdminClient({"bootstrap.servers": bootstrap}), {"bootstrap.servers": bootstrap}
    assert kafka_admin.ensure_topics(admin, topics, 2) == 2
    assert asked(bootstrap, account) == {str(Lag(None, None, 0))}  # topics, and groups that have committed nothing

    producer = Producer(kafka)
    for topic, partition, count in ((topics.replay, 0, 7), (topics.replay, 1, 2), (topics.outcomes, 1, 4)):
        for _ in range(count):
            producer.produce(topic, b"value", b"key", partition)
    producer.produce(topics.dead_letters, b"value")
    assert producer.flush(30) == 0
    kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, [3, 2])
    kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, [0, 1])
    assert LagReader(kafka).of(account) == Lag(processors=4, sink=3, dead_letters=1)

    # The sink says which row its next outcome is of: one record of outcomes waits for it, and those have two rows.
    sink = Consumer({**kafka, "group.id": topics.sink_group, "enable.auto.commit": False})
    sink.commit(offsets=[TopicPartition(topics.outcomes, 1, 3, "0")], asynchronous=False)
    sink.close()
    assert LagReader(kafka).of(account) == Lag(processors=4, sink=2, dead_letters=1)
