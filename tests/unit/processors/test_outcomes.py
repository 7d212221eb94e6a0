"""Delivery: every message has to be confirmed; one refusal is an error."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from processors import outcomes
from processors.outcomes import (
    BATCH_BYTES_MAX,
    OUTCOMES_A_BATCH_MAX,
    Delivery,
    OutcomeBatches,
    OutcomeNotDeliveredError,
    OutcomeProducer,
)
from schemas.codec import Codec

REFUSED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
Report = Callable[[Any, Any], None]


class FakeProducer:
    """librdkafka's producer: reports come when it is polled, some messages at a time; its queue is small."""

    def __init__(self, config: dict[str, Any], logger: Any) -> None:
        self.config = config
        self.queue: deque[Report] = deque()
        self.sent: list[tuple[str, bytes, bytes, int]] = []
        self.queue_max = 10_000
        self.errors: dict[bytes, KafkaError] = {}
        self.flushed = False
        self.fatal = False
        self.told = False

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, report: Report) -> None:
        if self.fatal:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        if value == b"too large":
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if len(self.queue) >= self.queue_max:
            raise BufferError
        self.sent.append((topic, key, value, partition))
        error = self.errors.get(value)
        self.queue.append(lambda _error, message: report(error, message))

    def poll(self, _timeout: float) -> int:
        if self.fatal and not self.told:
            self.told = True
            raise KafkaException(REFUSED)
        for _ in range(min(3, len(self.queue))):
            self.queue.popleft()(None, SimpleNamespace())
        return 0

    def flush(self, _timeout: float) -> int:
        self.flushed = True
        return 0


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> OutcomeProducer:
    monkeypatch.setattr(outcomes, "Producer", FakeProducer)
    return OutcomeProducer({"bootstrap.servers": "localhost:9"}, "outcomes", 60)


def fake(producer: OutcomeProducer) -> FakeProducer:
    return cast("FakeProducer", producer._producer)


def test_a_delivery_is_done_when_nothing_is_left() -> None:
    delivery = Delivery(2)
    done = []
    for _ in range(2):
        done.append(delivery.done)
        delivery.report(None, None)
    assert [*done, delivery.done] == [False, False, True]
    assert Delivery(0).done


def test_one_refusal_is_an_error_at_once() -> None:
    delivery = Delivery(3)
    delivery.report(REFUSED, None)
    with pytest.raises(OutcomeNotDeliveredError, match="Kafka did not take an outcome"):
        _ = delivery.done


def test_the_producer_is_idempotent_and_waits_for_all_replicas(producer: OutcomeProducer) -> None:
    config = fake(producer).config
    assert config["enable.idempotence"] is True
    assert config["acks"] == "all"
    assert config["enable.gapless.guarantee"] is True
    assert config["delivery.timeout.ms"] == 0


def test_confirmed_returns_once_every_message_is_there(producer: OutcomeProducer) -> None:
    messages = [(b"k%d" % n, b"v%d" % n) for n in range(20)]
    delivery = producer.send(messages, 20, 5)
    assert not delivery.done
    asyncio.run(producer.confirmed(delivery))
    assert fake(producer).sent == [("outcomes", key, value, 5) for key, value in messages]
    assert not fake(producer).queue


def test_a_refused_message_is_an_error_of_its_own_delivery_only(producer: OutcomeProducer) -> None:
    fake(producer).errors[b"bad"] = REFUSED
    good = producer.send([(b"k", b"v")], 1, 0)
    bad = producer.send([(b"k", b"v"), (b"k", b"bad"), (b"k", b"w")], 3, 0)
    with pytest.raises(OutcomeNotDeliveredError):
        asyncio.run(producer.confirmed(bad))
    asyncio.run(producer.confirmed(good))


def test_a_full_queue_is_waited_for(producer: OutcomeProducer) -> None:
    fake(producer).queue_max = 4
    delivery = producer.send([(b"k", b"v")] * 50, 50, 0)
    asyncio.run(producer.confirmed(delivery))
    assert len(fake(producer).sent) == 50


def test_what_librdkafka_itself_refuses_is_an_error(producer: OutcomeProducer) -> None:
    with pytest.raises(OutcomeNotDeliveredError, match="an outcome of 9 bytes could not be produced"):
        producer.send([(b"k", b"too large")], 1, 0)


def test_a_producer_that_has_failed_for_good_says_so(producer: OutcomeProducer) -> None:
    delivery = producer.send([(b"k", b"v")], 1, 0)
    fake(producer).fatal = True
    with pytest.raises(OutcomeNotDeliveredError, match="Kafka did not take an outcome"):
        asyncio.run(producer.confirmed(delivery))


def test_the_cause_is_told_whichever_call_meets_the_failure_first(producer: OutcomeProducer) -> None:
    fake(producer).fatal = True
    for _ in range(2):  # librdkafka tells the cause to one poll only; every later call is told that it is fatal
        with pytest.raises(OutcomeNotDeliveredError, match=r"not take an outcome .*authorization failed"):
            producer.send([(b"k", b"v")], 1, 0)


def test_closing_gives_what_is_on_its_way_a_last_chance(producer: OutcomeProducer) -> None:
    producer.close(1)
    assert fake(producer).flushed


def test_a_broker_that_confirms_nothing_ends_the_wait(producer: OutcomeProducer) -> None:
    producer._delivery_timeout_s = 0.01
    delivery = producer.send([], 1, 0)  # a confirmation that never comes
    with pytest.raises(OutcomeNotDeliveredError, match="confirmed no outcome"):
        asyncio.run(producer.confirmed(delivery))


@given(st.lists(st.sampled_from((0, 1, 400, BATCH_BYTES_MAX // 2, BATCH_BYTES_MAX, BATCH_BYTES_MAX + 1)), max_size=30))
def test_outcomes_keep_their_order_in_batches_of_a_bounded_size(sizes: list[int]) -> None:
    codec = Codec()
    messages = [(b"%d" % number, bytes(size)) for number, size in enumerate(sizes)]
    records = OutcomeBatches(codec)(messages)
    assert [outcome for key, value in records for outcome in codec.outcomes(key, value)] == messages
    for key, value in records:
        parts = codec.outcomes(key, value)
        assert len(parts) == 1 or sum(len(k) + len(v) for k, v in parts) <= BATCH_BYTES_MAX
        assert (len(parts) == 1) == ((key, value) in messages)  # one that is alone is what it was


def test_a_batch_has_so_many_outcomes_at_most_and_never_fewer_for_nothing() -> None:
    codec = Codec()
    records = OutcomeBatches(codec)([(b"k", b"value")] * (2 * OUTCOMES_A_BATCH_MAX + 3))
    assert [len(codec.outcomes(key, value)) for key, value in records] == [OUTCOMES_A_BATCH_MAX] * 2 + [3]
    assert OutcomeBatches(codec)([]) == []
