"""Produces outcomes to their topic: an idempotent producer, and confirmation of all of a batch's outcomes.

Dying after some deliveries repeats the batch, and the sink absorbs the repetition. A delivery that Kafka refuses
permanently is an exception here, so that the batch is not acknowledged and the worker ends.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.codec import Codec
from schemas.errors import ReplayError
from schemas.process.tracing import Headers
from schemas.records import OutcomeBatch

OUTCOMES_A_BATCH_MAX = 500  # more saves the broker nothing measurable
BATCH_BYTES_MAX = 512 * 1024  # of keys and values; a larger single outcome is not batched
MESSAGE_BYTES_MAX = 20 * 1024 * 1024  # as the topic allows: a 16 MiB document and its envelope
POLL_S = 0.1
Message = tuple[bytes, bytes]  # key and value


class OutcomeBatches:
    """Pure: combines outcomes into batches, so that the broker, the sink and every other client handle few records."""

    def __init__(self, codec: Codec) -> None:
        """`codec` frames the batches as it frames the outcomes."""
        self._encode = codec.encoder(OutcomeBatch)

    def __call__(self, messages: Sequence[Message]) -> list[Message]:
        """Return outcomes of one partition as records in the same order; a single outcome stays unchanged."""
        records: list[Message] = []
        begin = size = 0
        for at, (key, value) in enumerate(messages):
            bytes_ = len(key) + len(value)
            if at - begin >= OUTCOMES_A_BATCH_MAX or (at > begin and size + bytes_ > BATCH_BYTES_MAX):
                records.append(self._record(messages[begin:at]))
                begin, size = at, 0
            size += bytes_
        if begin < len(messages):
            records.append(self._record(messages[begin:]))
        return records

    def _record(self, part: Sequence[Message]) -> Message:
        return part[0] if len(part) == 1 else (b"", self._encode((part,)))


class OutcomeNotDeliveredError(ReplayError):
    """Kafka refused an outcome permanently, or was unreachable for too long."""


class Delivery:
    """The outcomes of one batch in flight."""

    __slots__ = ("_error", "_left")

    def __init__(self, count: int) -> None:
        """`count` confirmations are to come."""
        self._left = count
        self._error: Any = None

    def report(self, error: Any, _message: Any) -> None:
        """Take one confirmation or refusal; librdkafka calls it while the producer is polled."""
        self._left -= 1
        if error is not None and self._error is None:
            self._error = error

    @property
    def left(self) -> int:
        """How many confirmations are still to come."""
        return self._left

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for. Raises OutcomeNotDeliveredError as soon as one was refused."""
        if self._error is not None:
            raise _refused(self._error)
        return self._left <= 0


def _refused(error: KafkaError) -> OutcomeNotDeliveredError:
    return OutcomeNotDeliveredError(
        f"Kafka did not take an outcome ({error.str()})",
        "nothing is lost: after a restart the worker continues from the last committed offset",
    )


class OutcomeProducer:
    """Produces to one topic; build one per process."""

    def __init__(self, config: Mapping[str, Any], topic: str, delivery_timeout_s: float) -> None:
        """`config` is confluent-kafka's connection."""
        self._topic = topic
        self._delivery_timeout_s = delivery_timeout_s
        self._failure: OutcomeNotDeliveredError | None = None  # with its cause, once it has failed permanently
        logger = logging.getLogger(f"{__name__}.librdkafka")
        logger.addFilter(lambda record: "enable.gapless.guarantee is experimental" not in record.getMessage())
        self._producer = Producer(
            {
                **config,
                "enable.idempotence": True,
                "acks": "all",
                # A failed message must not let later ones pass: the sink relies on the order of a partition's ids.
                # An expired one would, despite the guarantee; so none expires, and `confirmed` has the time-out.
                "enable.gapless.guarantee": True,
                "delivery.timeout.ms": 0,
                "linger.ms": 5,  # a batch is produced within this; half-filled requests cost brokers and sink more
                "batch.size": 1024 * 1024,
                "batch.num.messages": 10_000,
                "message.max.bytes": MESSAGE_BYTES_MAX,
                "queue.buffering.max.messages": 500_000,
                "queue.buffering.max.kbytes": 256 * 1024,
                "compression.type": "lz4",
            },
            logger=logger,
        )

    def send(self, messages: Iterable[Message], count: int, partition: int, headers: Headers | None = None) -> Delivery:
        """Queue the messages of a batch for `partition`, in order, with these headers; `count` is how many they are.

        Raises OutcomeNotDeliveredError for one that librdkafka itself refuses.
        """
        delivery = Delivery(count)
        produce, topic, report = self._producer.produce, self._topic, delivery.report
        if headers:
            produce = partial(produce, headers=headers)
        for key, value in messages:
            while True:
                try:
                    produce(topic, value, key, partition, report)
                except BufferError:  # messages in flight have to be delivered first
                    self._poll(POLL_S)
                except KafkaException as error:
                    if error.args[0].code() == KafkaError._FATAL:  # noqa: SLF001  without the cause
                        self._poll(0)
                        raise self._failure or _refused(error.args[0]) from error
                    raise OutcomeNotDeliveredError(
                        f"an outcome of {len(value)} bytes could not be produced ({error.args[0].str()})",
                        "check the topic's settings (max.message.bytes) and permissions",
                    ) from error
                else:
                    break
        self._poll(0)
        return delivery

    async def confirmed(self, delivery: Delivery) -> None:
        """Return once every message is on the topic; raises OutcomeNotDeliveredError."""
        self._poll(0)
        left, moved_at = delivery.left, time.monotonic()
        while not delivery.done:
            # In a thread: the event loop handles the next batch meanwhile.
            await asyncio.get_running_loop().run_in_executor(None, self._poll, POLL_S)
            if delivery.left != left:
                left, moved_at = delivery.left, time.monotonic()
            elif time.monotonic() - moved_at > self._delivery_timeout_s:
                raise OutcomeNotDeliveredError(
                    f"Kafka has confirmed no outcome for {self._delivery_timeout_s:.0f} s",
                    "nothing is lost: after a restart the worker continues from the last committed offset",
                )

    def _poll(self, timeout_s: float) -> None:
        """Process available confirmations; raises OutcomeNotDeliveredError once the producer has failed permanently."""
        try:
            self._producer.poll(timeout_s)
        except KafkaException as error:
            self._failure = self._failure or _refused(error.args[0])
            raise self._failure from error

    def close(self, timeout_s: float) -> None:
        """Deliver what is in flight, if possible in time; none of it has been acknowledged."""
        with contextlib.suppress(KafkaException):  # it has failed permanently, which has been reported
            self._producer.flush(timeout_s)
