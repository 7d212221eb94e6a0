"""Maps a client library's error to our error class. The message is the caller's, which knows the operation.

Classified by the library's base classes and codes. A library is imported only to classify an error of its own: a
command must not wait for imports that it does not use.
"""

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.server_state import is_outage

# By the error's package; confluent_kafka's are in its C module.
SERVERS = {
    "psycopg": "PostgreSQL",
    "pymongo": "MongoDB",
    "bson": "MongoDB",
    "cimpl": "Kafka",
    "confluent_kafka": "Kafka",
    "aiokafka": "Kafka",
    "httpx": "the HTTP server",
}
# librdkafka marks errors as retriable for its transactions only, so they are listed by code: its own, and the brokers'
# for a moving leader, coordinator or controller, for lagging replicas, and for a quota.
_KAFKA_PASSES = (
    "_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "_TIMED_OUT", "_MSG_TIMED_OUT", "_TIMED_OUT_QUEUE", "_WAIT_COORD",
    "_RETRY", "_SSL", "REQUEST_TIMED_OUT", "NETWORK_EXCEPTION", "BROKER_NOT_AVAILABLE", "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION", "REPLICA_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE",
    "NOT_COORDINATOR", "NOT_CONTROLLER", "NOT_ENOUGH_REPLICAS", "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "KAFKA_STORAGE_ERROR", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH", "PREFERRED_LEADER_NOT_AVAILABLE",
    "THROTTLING_QUOTA_EXCEEDED",
)  # fmt: skip


def server_of(error: BaseException) -> str | None:
    """Return the server whose client raised the error; None for an error of no client library."""
    return SERVERS.get(_library_of(error))


def _library_of(error: BaseException) -> str:
    """Return the package of the error's class, or of a client's class that it is derived from; "" for any other."""
    packages = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    return next((package for package in packages if package in SERVERS), "")


def kind_of(error: BaseException) -> type[ReplayError] | None:
    """Return our class for a client's error; None for an error of no client library.

    ServiceUnreachableError: the server is unavailable or in a temporary state, so the call can succeed later.
    BadInputError: the address or the client's configuration is wrong. ReplayError: the server has refused the call.
    """
    library = _library_of(error)
    if not library:
        return None
    if library == "psycopg":
        return _of_psycopg(error)
    if library in ("pymongo", "bson"):
        return _of_pymongo(error)
    if library == "aiokafka":
        return _of_aiokafka(error)
    return _of_httpx(error) if library == "httpx" else _of_confluent_kafka(error)


def _of_psycopg(error: BaseException) -> type[ReplayError]:
    from psycopg import OperationalError
    from psycopg.errors import QueryCanceled

    # A statement over its time limit is an OperationalError, too, but the server is available.
    away = isinstance(error, OperationalError) and not isinstance(error, QueryCanceled)
    return ServiceUnreachableError if away else ReplayError


def _of_pymongo(error: BaseException) -> type[ReplayError]:
    from pymongo.errors import ConfigurationError, ConnectionFailure, PyMongoError

    if isinstance(error, ConnectionFailure) or (isinstance(error, PyMongoError) and error.timeout) or is_outage(error):
        return ServiceUnreachableError
    return BadInputError if isinstance(error, ConfigurationError) else ReplayError  # InvalidURI among them


def _of_confluent_kafka(error: BaseException) -> type[ReplayError]:
    from confluent_kafka import KafkaError, KafkaException

    reason = error.args[0] if isinstance(error, KafkaException) and error.args else error
    if not isinstance(reason, KafkaError) or reason.fatal():
        return ReplayError
    passes = reason.retriable() or reason.code() in {getattr(KafkaError, name) for name in _KAFKA_PASSES}
    return ServiceUnreachableError if passes else ReplayError


def _of_aiokafka(error: BaseException) -> type[ReplayError]:
    from aiokafka import errors

    if isinstance(error, errors.KafkaConfigurationError):
        return BadInputError
    away = (errors.KafkaConnectionError, errors.KafkaUnavailableError, errors.KafkaTimeoutError)
    passes = isinstance(error, away) or getattr(error, "retriable", False)
    return ServiceUnreachableError if passes else ReplayError


def _of_httpx(error: BaseException) -> type[ReplayError]:
    import httpx

    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return BadInputError
    away = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.LocalProtocolError)
    return ServiceUnreachableError if away else ReplayError
