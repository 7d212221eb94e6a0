"""What `flush` promises, on a real broker."""

import os

import pytest

from producer.publisher import Publisher
from schemas.errors import ReplayError
from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob

pytestmark = pytest.mark.services


def test_what_was_flushed_is_on_the_topic_in_order_also_through_a_full_queue(make_job: MakeJob) -> None:
    here = make_job(partitions=2)
    topic = here.job.topics.replay
    publisher = Publisher({"bootstrap.servers": here.kafka, "queue.buffering.max.messages": 10}, topic)
    publisher.publish((b"%d" % (n % 7), b"%d" % n) for n in range(1_000))
    publisher.flush()
    found = crm.everything_on(here.kafka, topic)
    publisher.close()
    assert sorted(int(value or b"") for _, _, value in found) == list(range(1_000))
    for partition in range(2):
        numbers = [int(value or b"") for at, _, value in found if at == partition]
        assert numbers == sorted(numbers)


def test_a_record_the_broker_refuses_fails_the_flush_with_the_cause(make_job: MakeJob) -> None:
    here = make_job(partitions=1, topic_config={"max.message.bytes": "20000"})
    topic = here.job.topics.replay
    publisher = Publisher({"bootstrap.servers": here.kafka}, topic)
    publisher.publish([(b"small", b"x")])
    publisher.flush()
    publisher.publish([(b"large", os.urandom(50_000))])
    with pytest.raises(ReplayError, match=r"did not take a record for .*[Ss]ize too large.*cursor is kept"):
        publisher.flush()
    publisher.close()
    assert [key for _, key, _ in crm.everything_on(here.kafka, topic)] == [b"small"]


def test_a_record_over_the_producers_own_limit_is_refused_at_once(make_job: MakeJob) -> None:
    here = make_job(partitions=1)
    publisher = Publisher({"bootstrap.servers": here.kafka}, here.job.topics.replay, message_bytes_max=10_000)
    with pytest.raises(ReplayError, match="size too large"):
        publisher.publish([(b"large", bytes(50_000))])
    publisher.close()


def test_deliveries_that_time_out_fail_the_flush() -> None:
    publisher = Publisher({"bootstrap.servers": "127.0.0.1:1", "delivery.timeout.ms": 300, "linger.ms": 0}, "nowhere")
    publisher.publish([(b"key", b"value")])
    with pytest.raises(ReplayError, match=r"did not take a record for nowhere: .*timed out"):
        publisher.flush()
    publisher.close()
