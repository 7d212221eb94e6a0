"""Reading a topic to its end, with a client that gives what a broker would."""

from collections.abc import Iterable
from typing import Any

import pytest
from confluent_kafka import KafkaException

from producer import topics
from producer.topics import PARTITION_EOF, messages_held
from schemas.errors import ReplayError


class Refusal:
    """An error as confluent-kafka gives it in a message's place."""

    def __init__(self, code: int) -> None:
        self._code = code

    def code(self) -> int:
        return self._code

    def str(self) -> str:
        return "refused"


class Message:
    def __init__(self, partition: int, offset: int, error: Refusal | None = None) -> None:
        self._partition, self._offset, self._error = partition, offset, error

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def error(self) -> Refusal | None:
        return self._error


class Client:
    """A consumer that gives these batches, and then nothing."""

    def __init__(self, batches: Iterable[list[Message]]) -> None:
        self.batches = list(batches)
        self.assigned: list[tuple[int, int]] = []
        self.closed = False

    def assign(self, parts: Iterable[Any]) -> None:
        self.assigned = [(part.partition, part.offset) for part in parts]

    def consume(self, *_: object) -> list[Message]:
        return self.batches.pop(0) if self.batches else []

    def close(self) -> None:
        self.closed = True


def client(monkeypatch: pytest.MonkeyPatch, *batches: list[Message]) -> Client:
    made = Client(batches)
    monkeypatch.setattr(topics, "Consumer", lambda _: made)
    return made


def places(held: dict[int, tuple[int, int]], **options: float) -> list[tuple[int, int]]:
    return [(found.partition() or 0, found.offset() or 0) for found in messages_held({}, "t", held, **options)]


def test_a_topic_that_holds_nothing_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "Consumer", None)
    assert places({}) == places({0: (3, 3)}) == []


def test_each_partition_is_read_from_its_first_offset_to_its_end_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = client(
        monkeypatch,
        [Message(0, 5), Message(2, 0)],
        [Message(0, 6), Message(0, 7), Message(2, 1)],  # 7 was produced meanwhile
    )
    assert places({0: (5, 7), 1: (4, 4), 2: (0, 2)}) == [(0, 5), (2, 0), (0, 6), (2, 1)]
    assert made.assigned == [(0, 5), (2, 0)]
    assert made.closed


def test_a_partition_whose_last_offsets_were_compacted_away_ends_at_the_brokers_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client(monkeypatch, [Message(0, 1)], [Message(0, 9, Refusal(PARTITION_EOF))])
    assert places({0: (0, 9)}) == [(0, 1)]


def test_a_broker_that_sends_nothing_before_the_end_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client(monkeypatch, [Message(0, 0)])
    with pytest.raises(ReplayError, match="Kafka sends nothing of t"):
        places({0: (0, 2)}, idle_max_s=0.01)
    assert made.closed


def test_a_refusal_is_reported_with_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client(monkeypatch, [Message(0, 0, Refusal(29))])
    with pytest.raises(ReplayError, match="cannot read t: refused") as raised:
        places({0: (0, 2)})
    assert isinstance(raised.value.__cause__, KafkaException)
    assert made.closed


def test_a_reader_that_stops_early_closes_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client(monkeypatch, [Message(0, 0), Message(0, 1)])
    reading = messages_held({}, "t", {0: (0, 9)})
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert made.closed
