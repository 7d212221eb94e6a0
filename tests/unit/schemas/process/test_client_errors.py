"""Every public exception of the client libraries is one of ours."""

import inspect
from types import ModuleType

import aiokafka.errors
import confluent_kafka
import confluent_kafka.error
import httpx
import psycopg
import psycopg.errors
import pymongo.errors
import pytest
from confluent_kafka import KafkaError, KafkaException
from pymongo.errors import EncryptionError, OperationFailure

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.client_errors import SERVERS, kind_of, server_of

LIBRARIES = (psycopg, psycopg.errors, pymongo.errors, confluent_kafka, confluent_kafka.error, aiokafka.errors, httpx)


def public_exceptions(library: ModuleType) -> list[type[BaseException]]:
    """Return the exception classes of a library's own that it shows under a public name."""
    root = {library.__name__.partition(".")[0], "cimpl"}
    return [
        value
        for name, value in sorted(vars(library).items())
        if not name.startswith("_")
        and inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__.partition(".")[0] in root
    ]


def kind(exception: type[BaseException]) -> type[ReplayError] | None:
    """Return what an exception of the class is, made without arguments, as far as the library allows."""
    error = exception.__new__(exception)
    if isinstance(error, OperationFailure):
        OperationFailure.__init__(error, "", None, {})
    elif isinstance(error, EncryptionError):
        EncryptionError.__init__(error, Exception())
    return kind_of(error)


EXCEPTIONS = sorted({each for library in LIBRARIES for each in public_exceptions(library)}, key=str)


def test_all_libraries_are_looked_at() -> None:
    assert {each.__module__.partition(".")[0] for each in EXCEPTIONS} >= set(SERVERS) - {"bson"}
    assert len(EXCEPTIONS) > 350


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda each: f"{each.__module__}.{each.__name__}")
def test_each_is_one_of_ours(exception: type[BaseException]) -> None:
    assert kind(exception) in (ServiceUnreachableError, BadInputError, ReplayError)


@pytest.mark.parametrize(
    ("exception", "ours"),
    [
        (psycopg.OperationalError, ServiceUnreachableError),
        (psycopg.errors.AdminShutdown, ServiceUnreachableError),
        (psycopg.errors.ConnectionTimeout, ServiceUnreachableError),
        (psycopg.errors.QueryCanceled, ReplayError),
        (psycopg.errors.UndefinedTable, ReplayError),
        (pymongo.errors.ServerSelectionTimeoutError, ServiceUnreachableError),
        (pymongo.errors.NotPrimaryError, ServiceUnreachableError),
        (pymongo.errors.ExecutionTimeout, ServiceUnreachableError),
        (pymongo.errors.WTimeoutError, ServiceUnreachableError),
        (pymongo.errors.InvalidURI, BadInputError),
        (pymongo.errors.DuplicateKeyError, ReplayError),
        (aiokafka.errors.KafkaConnectionError, ServiceUnreachableError),
        (aiokafka.errors.NotLeaderForPartitionError, ServiceUnreachableError),
        (aiokafka.errors.TopicAuthorizationFailedError, ReplayError),
        (httpx.ConnectError, ServiceUnreachableError),
        (httpx.ReadTimeout, ServiceUnreachableError),
        (httpx.UnsupportedProtocol, BadInputError),
        (httpx.HTTPStatusError, ReplayError),
    ],
)
def test_an_outage_is_told_from_a_refusal(exception: type[BaseException], ours: type[ReplayError]) -> None:
    assert kind(exception) is ours


@pytest.mark.parametrize(("code", "ours"), [(133, ServiceUnreachableError), (13, ReplayError), (None, ReplayError)])
def test_a_code_of_mongodb_decides_where_the_class_does_not(code: int | None, ours: type[ReplayError]) -> None:
    assert kind_of(OperationFailure("", code)) is ours


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        (KafkaError(KafkaError._TRANSPORT), ServiceUnreachableError),
        (KafkaError(KafkaError._ALL_BROKERS_DOWN), ServiceUnreachableError),
        (KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION), ServiceUnreachableError),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, retriable=True), ServiceUnreachableError),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), ReplayError),
        (KafkaError(KafkaError._TRANSPORT, fatal=True), ReplayError),
    ],
)
def test_what_confluent_kafka_says_of_its_error_decides(reason: KafkaError, ours: type[ReplayError]) -> None:
    assert kind_of(KafkaException(reason)) is ours
    assert kind_of(reason) is ours  # type: ignore[arg-type]  # a callback gets it bare


@pytest.mark.parametrize("error", [ValueError("no"), OSError("no"), ReplayError("no")])
def test_an_error_of_no_client_is_none(error: Exception) -> None:
    assert kind_of(error) is None


def test_an_outage_is_not_bad_input() -> None:
    assert not issubclass(ServiceUnreachableError, BadInputError)


def test_a_class_of_ours_that_is_derived_from_a_client_s_is_of_that_client() -> None:
    class OverError(psycopg.OperationalError):
        pass

    assert server_of(OverError()) == "PostgreSQL"
    assert kind_of(OverError()) is ServiceUnreachableError
