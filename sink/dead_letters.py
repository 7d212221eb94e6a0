"""I/O: publishes dead letters to their topic, each delivery confirmed."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.codec import Codec
from schemas.records import DeadLetter

RECORD_BYTES_MAX = 20 * 1024 * 1024  # as the topics are created
FLUSH_SLICE_S = 0.2
DELIVERY_TIMEOUT_MS = 60_000
TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE,)  # refused by librdkafka before it is sent, or by the broker


class DeadLetterTopic:
    """The dead letter topic of one account."""

    def __init__(self, kafka: dict[str, Any], topic: str, codec: Codec) -> None:
        """`kafka` is the connection's configuration."""
        self._topic = topic
        self._codec = codec
        self._producer = Producer(
            {
                **kafka,
                "enable.idempotence": True,
                "compression.type": "lz4",
                "message.max.bytes": RECORD_BYTES_MAX + 65_536,
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            }
        )

    def deliver(self, dead_letters: Sequence[DeadLetter], keep_waiting: Callable[[], bool]) -> None:
        """Return when the broker has confirmed all of them.

        One that is too large for the topic is sent without its payload, which its source position still locates. Raises
        KafkaException if a delivery fails or `keep_waiting` returns False; all of them are then to be sent again.
        """
        refused: list[tuple[DeadLetter, KafkaError]] = []
        for dead_letter in dead_letters:
            self._send(dead_letter, refused)
        self._flush(keep_waiting)
        too_large = [dead_letter for dead_letter, error in refused if error.code() in TOO_LARGE]
        others = [error for _, error in refused if error.code() not in TOO_LARGE]
        if others:
            raise KafkaException(others[0])
        if too_large:
            if not any(dead_letter.payload for dead_letter in too_large):
                raise KafkaException(refused[0][1])
            self.deliver([without_payload(dead_letter) for dead_letter in too_large], keep_waiting)

    def _send(self, dead_letter: DeadLetter, refused: list[tuple[DeadLetter, KafkaError]]) -> None:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                refused.append((dead_letter, error))

        value = self._codec.encode(dead_letter)
        while True:
            try:
                self._producer.produce(self._topic, value, dead_letter.key or None, on_delivery=delivered)
                return
            except BufferError:
                self._producer.poll(FLUSH_SLICE_S)
            except KafkaException as error:
                refused.append((dead_letter, error.args[0]))
                return

    def _flush(self, keep_waiting: Callable[[], bool]) -> None:
        # A flush precedes each check of `keep_waiting`, so that a stop still gets confirmations that are due.
        while self._producer.flush(FLUSH_SLICE_S):
            if not keep_waiting():
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "stopped before every delivery was confirmed"))  # noqa: SLF001


def without_payload(dead_letter: DeadLetter) -> DeadLetter:
    """Return the dead letter with an empty payload, noted in its detail."""
    left_out = f"{dead_letter.detail} [payload of {len(dead_letter.payload)} bytes left out]".strip()
    return dead_letter._replace(payload=b"", detail=left_out)


def now_us() -> int:
    """Return the present time in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000
