"""Committing where a group begins, and asking for it, while Kafka is not ready for that."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from ops.kafka import admin as kafka_admin
from schemas.errors import BadInputError


def failing(monkeypatch: pytest.MonkeyPatch, *codes: int) -> list[int]:
    """Have the first commits fail with these codes; return the attempts as they are made."""
    attempts: list[int] = []

    def commit_once(*_: object) -> None:
        attempts.append(len(attempts))
        if len(attempts) <= len(codes):
            raise KafkaException(KafkaError(codes[len(attempts) - 1]))

    monkeypatch.setattr(kafka_admin, "_commit_once", commit_once)
    monkeypatch.setattr(kafka_admin, "EMPTY_GROUP_POLL_S", 0.0)
    return attempts


def test_a_coordinator_that_moves_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = failing(
        monkeypatch,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.UNKNOWN_MEMBER_ID,
    )
    kafka_admin.commit_offsets({}, "group", "topic", [1])
    assert len(attempts) == 5


@pytest.mark.parametrize(
    ("code", "to_do"),
    [
        (KafkaError.REBALANCE_IN_PROGRESS, "workers of this account"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "this user"),
    ],
)
def test_what_does_not_pass_is_told(monkeypatch: pytest.MonkeyPatch, code: int, to_do: str) -> None:
    failing(monkeypatch, *[code] * 9)
    monkeypatch.setattr(kafka_admin, "EMPTY_GROUP_TIMEOUT_S", 0.0)
    with pytest.raises(BadInputError, match=rf"offsets of group g could not be set .*{to_do}"):
        kafka_admin.commit_offsets({}, "g", "topic", [1])


def test_who_asks_waits_for_a_coordinator_too_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS]

    def committed_once(*_: object) -> list[int]:
        if codes:
            raise KafkaException(KafkaError(codes.pop(0)))
        return [7, -1001]

    monkeypatch.setattr(kafka_admin, "_committed_once", committed_once)
    monkeypatch.setattr(kafka_admin, "COORDINATOR_POLL_S", 0.0)
    assert kafka_admin.committed_offsets({}, "group", "topic", 2) == [7, -1001]

    codes.append(KafkaError.GROUP_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
        kafka_admin.committed_offsets({}, "group", "topic", 2)
    codes += [KafkaError.NOT_COORDINATOR] * 2
    monkeypatch.setattr(kafka_admin, "ANSWER_TIMEOUT_S", 0.0)
    with pytest.raises(KafkaException, match="NOT_COORDINATOR"):
        kafka_admin.committed_offsets({}, "group", "topic", 2)
    assert len(codes) == 1
