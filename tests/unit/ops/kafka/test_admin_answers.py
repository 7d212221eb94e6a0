"""What a cluster answers, or does not, while topics are made."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from ops.kafka import admin as kafka_admin
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.topics import AccountTopics

TOPICS = AccountTopics.of("acme")


def answered(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


class Cluster:
    """Brokers with a default number of copies; remembers what is made."""

    def __init__(self, brokers: int, default: int | None, refusal: int | None = None) -> None:
        self.nodes = [SimpleNamespace(id=number) for number in range(brokers)]
        self.default, self.refusal = default, refusal
        self.copies: set[int] = set()

    def describe_cluster(self, **_: Any) -> Future[Any]:
        return answered(SimpleNamespace(nodes=self.nodes))

    def describe_configs(self, resources: list[Any]) -> dict[Any, Future[Any]]:
        if self.default is None:
            forbidden = KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED))
            return {resources[0]: answered(forbidden)}
        entry = SimpleNamespace(value=str(self.default))
        return {resources[0]: answered({"default.replication.factor": entry})}

    def create_topics(self, new: list[Any], **_: Any) -> dict[str, Future[Any]]:
        self.copies |= {topic.replication_factor for topic in new}
        refusal = None if self.refusal is None else KafkaException(KafkaError(self.refusal))
        return {topic.topic: answered(refusal) for topic in new}


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_admin, "partitions_of", lambda _admin, _topics: {})
    monkeypatch.setattr(kafka_admin, "_wait_until_known", lambda _admin, _topics: None)


@pytest.mark.parametrize(("brokers", "default"), [(1, 1), (2, 2), (3, 3), (2, 3), (3, None)])
def test_new_topics_have_the_clusters_default_whoever_is_up(brokers: int, default: int | None) -> None:
    cluster = Cluster(brokers, default)
    kafka_admin.ensure_topics(cluster, TOPICS, 4)  # type: ignore[arg-type]
    assert cluster.copies == {-1}


def test_one_copy_on_a_cluster_has_to_be_meant() -> None:
    cluster = Cluster(3, 1)
    with pytest.raises(BadInputError, match=r"cluster of 3 brokers keeps one copy .* KAFKA_REPLICATION_FACTOR"):
        kafka_admin.ensure_topics(cluster, TOPICS, 4)  # type: ignore[arg-type]
    assert cluster.copies == set()
    for copies in (1, 3):
        kafka_admin.ensure_topics(cluster, TOPICS, 4, copies)  # type: ignore[arg-type]
    assert cluster.copies == {1, 3}


def test_a_refusal_is_bad_input_and_an_outage_is_none() -> None:
    with pytest.raises(BadInputError, match="could not be created"):
        kafka_admin.ensure_topics(Cluster(1, 1, KafkaError.TOPIC_AUTHORIZATION_FAILED), TOPICS, 4)  # type: ignore[arg-type]
    with pytest.raises(ServiceUnreachableError, match="could not be created"):
        kafka_admin.ensure_topics(Cluster(1, 1, KafkaError._TIMED_OUT), TOPICS, 4)  # type: ignore[arg-type]


def test_a_broker_that_is_silent_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """concurrent.futures raises the built-in TimeoutError, an OSError: it passed for an error of the disk."""
    monkeypatch.setattr(kafka_admin, "ANSWER_TIMEOUT_S", 0.01)
    with pytest.raises(KafkaException) as raised:
        kafka_admin.answer(Future())
    assert kind_of(raised.value) is ServiceUnreachableError
