"""An outage after the job exists is none of the call's errors."""

import pytest
from confluent_kafka import KafkaError, KafkaException
from pymongo.errors import AutoReconnect

from ops.runner.replay import _outages_in_one_line
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.vocabulary import ExitCode


@pytest.mark.parametrize(
    "error",
    [
        ServiceUnreachableError("Kafka has confirmed nothing for t for 120 s", "start again"),
        KafkaException(KafkaError(KafkaError._TIMED_OUT)),
        AutoReconnect("gone"),
        TimeoutError("timed out"),
        OSError(28, "No space left on device", "log"),
    ],
)
def test_whatever_is_away_the_same_command_continues(error: Exception) -> None:
    with pytest.raises(ReplayError, match="the same command continues") as raised, _outages_in_one_line():
        raise error
    assert raised.value.exit_code == ExitCode.FAILED


def test_what_is_wrong_with_the_call_stays_so() -> None:
    with pytest.raises(BadInputError) as raised, _outages_in_one_line():
        raise BadInputError("no such table", "name it")
    assert raised.value.exit_code == ExitCode.BAD_INPUT
