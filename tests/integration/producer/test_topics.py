"""What a real broker says of topics."""

from contextlib import closing

import pytest
from confluent_kafka import Consumer

from producer.publisher import Publisher
from producer.topics import check_topic, message_bytes_max, messages_held, offsets_held
from schemas.errors import BadInputError, ServiceUnreachableError
from tests.integration.producer.conftest import MakeJob

pytestmark = pytest.mark.services


def test_a_topic_is_checked_before_anything_is_published(make_job: MakeJob) -> None:
    here = make_job(partitions=3, topic_config={"max.message.bytes": "70000"})
    kafka = {"bootstrap.servers": here.kafka}
    assert check_topic(kafka, here.job.topics.replay, 3) == 3
    assert 60_000 < message_bytes_max(kafka, here.job.topics.replay) < 70_000
    with pytest.raises(BadInputError, match="no topic"):
        check_topic(kafka, here.job.topics.replay + ".not")
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        check_topic({"bootstrap.servers": "127.0.0.1:1"}, "any")


def test_a_topic_is_read_to_its_end_with_its_tombstones(make_job: MakeJob) -> None:
    here = make_job(partitions=2)
    kafka, topic = {"bootstrap.servers": here.kafka}, here.job.topics.replay
    with closing(Publisher(kafka, topic)) as publisher:
        publisher.publish([(b"%d" % number, b"x" if number % 2 else None) for number in range(100)])
        publisher.flush()
    with closing(Consumer({**kafka, "group.id": "test"})) as consumer:
        held = dict(enumerate(offsets_held(consumer, topic, 2)))
    found = [(message.key(), message.value()) for message in messages_held(kafka, topic, held)]
    assert len(found) == 100
    assert set(found) == {(b"%d" % number, b"x" if number % 2 else None) for number in range(100)}
    late = {partition: (end - 1, end) for partition, (_, end) in held.items()}
    last = {(message.partition(), message.offset()) for message in messages_held(kafka, topic, late)}
    assert last == {(partition, first) for partition, (first, _) in late.items()}
