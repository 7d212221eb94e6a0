"""Reference tables from compacted topics on real Kafka: whole, as they are now, and kept up to date."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from processors.lookups import tables
from processors.lookups.tables import ReferenceTables, TablesNotLoadedError
from schemas.codec import Codec
from schemas.errors import ServiceUnreachableError, UnreadableTopicError
from schemas.records import RECORD_TYPES, Contact, Record
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services


class Anything(Codec):
    """Takes every value for a record: what most tests here publish are texts."""

    def require_frame(self, record_type: type[Record], data: bytes) -> None:
        """Take it."""


ANYTHING = Anything()
Publish = Callable[[str, list[tuple[str, str | None]]], None]


@pytest.fixture
def config(kafka_bootstrap: str) -> dict[str, Any]:
    return {"bootstrap.servers": kafka_bootstrap}


@pytest.fixture
def new_topic(config: dict[str, Any], topic_prefix: str) -> Iterator[Callable[..., str]]:
    """Return a function that makes a compacted topic of three partitions, with further settings."""
    admin = AdminClient(config)
    names: list[str] = []

    def make(name: str, **settings: str) -> str:
        topic = NewTopic(f"{topic_prefix}.{name}", 3, 1, config={"cleanup.policy": "compact", **settings})
        for future in admin.create_topics([topic]).values():
            future.result(10)
        names.append(topic.topic)
        return topic.topic

    yield make
    for future in admin.delete_topics(names).values():
        future.result(10)


@pytest.fixture
def publish(config: dict[str, Any]) -> Publish:
    def rows(topic: str, pairs: list[tuple[str, str | None]]) -> None:
        producer = Producer({**config, "linger.ms": 5})
        for key, value in pairs:
            producer.produce(topic, None if value is None else value.encode(), key.encode())
        assert producer.flush(30) == 0

    return rows


@pytest.fixture
def load(config: dict[str, Any]) -> Iterator[Callable[..., ReferenceTables]]:
    """Return a function that loads tables by name and topic."""
    loaded: list[ReferenceTables] = []

    def make(timeout_s: float = 30, **topics: str) -> ReferenceTables:
        found = ReferenceTables(config, topics, ANYTHING)
        loaded.append(found)
        found.load(timeout_s)
        return found

    yield make
    for found in loaded:
        found.close()


def test_tables_hold_the_last_value_of_each_key_and_no_tombstones(
    new_topic: Callable[..., str], publish: Publish, load: Callable[..., ReferenceTables]
) -> None:
    contacts, users = new_topic("contacts"), new_topic("users")
    publish(contacts, [(str(n), f"old {n}") for n in range(3000)])
    publish(contacts, [(str(n), f"new {n}") for n in range(0, 3000, 2)])
    publish(contacts, [(str(n), None) for n in range(0, 3000, 3)])
    found = load(contacts=contacts, users=users)
    expected = {str(n).encode(): f"{'old' if n % 2 else 'new'} {n}".encode() for n in range(3000) if n % 3}
    assert found.rows == {"contacts": expected, "users": {}}
    assert found.sizes() == {"contacts": 2000, "users": 0}


def test_tables_are_kept_up_to_date(
    new_topic: Callable[..., str], publish: Publish, load: Callable[..., ReferenceTables]
) -> None:
    contacts = new_topic("contacts")
    publish(contacts, [("1", "one"), ("2", "two")])
    found = load(contacts=contacts)
    rows = found.rows["contacts"]
    found.follow()
    publish(contacts, [("1", "changed"), ("2", None), ("3", "three")])
    wait_until(lambda: rows == {b"1": b"changed", b"3": b"three"}, "the changes arrive", 10)
    found.check()


@pytest.mark.slow
def test_a_topic_that_kafka_has_compacted_is_loaded_to_its_end(
    config: dict[str, Any], new_topic: Callable[..., str], publish: Publish, load: Callable[..., ReferenceTables]
) -> None:
    contacts = new_topic(
        "contacts",
        **{"min.cleanable.dirty.ratio": "0.01", "segment.ms": "100", "max.compaction.lag.ms": "100"},
    )
    for version in range(5):
        publish(contacts, [(str(n), f"{version} {n}") for n in range(200)])
        time.sleep(0.15)  # the time after which Kafka begins a new segment: only closed ones are compacted
    publish(contacts, [(f"last {n}", "x") for n in range(30)])
    read = 0

    def compacted() -> bool:
        nonlocal read
        found = ReferenceTables(config, {"contacts": contacts}, ANYTHING)
        apply = found._apply

        def counting(messages: list[Any], left: set[tuple[str, int]]) -> None:
            nonlocal read
            read += sum(message.error() is None for message in messages)
            apply(messages, left)

        read, found._apply = 0, counting  # type: ignore[method-assign]
        found.load(30)
        found.close()
        return read < 5 * 200

    wait_until(compacted, "Kafka compacts the topic", 60)
    found = load(contacts=contacts)
    expected = {str(n).encode(): f"4 {n}".encode() for n in range(200)}
    assert found.rows["contacts"] == {**expected, **{f"last {n}".encode(): b"x" for n in range(30)}}


def test_what_a_transaction_aborted_is_in_no_table(
    config: dict[str, Any], new_topic: Callable[..., str], load: Callable[..., ReferenceTables]
) -> None:
    contacts = new_topic("contacts")
    producer = Producer({**config, "transactional.id": contacts})
    producer.init_transactions(30)
    for key, commit in (("kept", True), ("aborted", False)):
        producer.begin_transaction()
        producer.produce(contacts, b"x", key.encode())
        producer.flush(10)
        producer.commit_transaction(30) if commit else producer.abort_transaction(30)
    assert load(contacts=contacts).rows["contacts"] == {b"kept": b"x"}


def test_a_load_ends_early_when_the_worker_is_to_stop(config: dict[str, Any], new_topic: Callable[..., str]) -> None:
    found = ReferenceTables(config, {"contacts": new_topic("contacts")}, ANYTHING)
    found.load(30, lambda: True)
    found.close()
    assert found.rows == {"contacts": {}}


def test_a_load_that_takes_too_long_says_so(
    new_topic: Callable[..., str], load: Callable[..., ReferenceTables]
) -> None:
    contacts = new_topic("contacts")
    with pytest.raises(TablesNotLoadedError, match="the reference tables are not loaded after 0 s"):
        load(timeout_s=0, contacts=contacts)


def test_a_kafka_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ANSWER_TIMEOUT_S", 0.5)
    found = ReferenceTables({"bootstrap.servers": "127.0.0.1:9", "log_level": 0}, {"contacts": "contacts"}, ANYTHING)
    with pytest.raises(ServiceUnreachableError, match=r"Kafka at 127\.0\.0\.1:9 does not answer"):
        found.load(5)
    found.close()


def test_a_value_that_cannot_be_decoded_ends_the_loading_unless_a_later_one_can(
    config: dict[str, Any], new_topic: Callable[..., str]
) -> None:
    codec, topic, producer = Codec(), new_topic("contacts"), Producer(config)
    contact = codec.encode(Contact("acme", "1", "customer-1", 1))
    framed_by_a_registry = Codec(dict.fromkeys(RECORD_TYPES, 7)).encode(Contact("acme", "2", "customer-2", 1))
    for key, value in (("1", b"garbage"), ("1", contact), ("3", b"garbage"), ("3", None), ("2", framed_by_a_registry)):
        producer.produce(topic, value, key, partition=1)
    assert producer.flush(30) == 0
    found = ReferenceTables(config, {"contacts": topic}, codec)
    with pytest.raises(UnreadableTopicError, match=rf"{topic}, partition 1, offset 4 cannot be .*SCHEMA_REGISTRY_URL"):
        found.load(30)
    found.close()
    producer.produce(topic, None, "2", partition=1)
    assert producer.flush(30) == 0
    found = ReferenceTables(config, {"contacts": topic}, codec)
    found.load(30)
    assert found.rows["contacts"] == {b"1": contact}
    found.follow()
    producer.produce(topic, b"garbage", "1", partition=1)
    assert producer.flush(30) == 0

    def stopped() -> bool:
        try:
            found.check()
        except UnreadableTopicError:
            return True
        return False

    wait_until(stopped, "the worker is told of it", 10)
    found.close()
