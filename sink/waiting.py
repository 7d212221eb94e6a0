"""Retries of an effect until its server answers; every wait ends as soon as the sink is stopped."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException
from pymongo.errors import ConfigurationError, InvalidOperation, PyMongoError

from schemas.errors import ReplayError
from schemas.process.liveness import Liveness
from schemas.process.waiting import INDEFINITELY_S, Deadline, retrying
from sink.metrics import SinkMetrics
from sink.writer import NotAnsweredError

log = logging.getLogger(__name__)
T = TypeVar("T")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0

# The group has rebalanced: another sink owns what was to be committed, and will repeat it.
ASSIGNMENT_LOST = frozenset(
    (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001  librdkafka's public names begin with an underscore
        KafkaError._STATE,  # noqa: SLF001
        KafkaError._NO_OFFSET,  # noqa: SLF001
    )
)


class Waiting:
    """The stop request, and the waits that end with it. Used by the loop, its writers and its parts."""

    def __init__(self, metrics: SinkMetrics, liveness: Liveness) -> None:
        """`metrics` counts the retries, `liveness` notes them. Setting `stopping` requests the end."""
        self._metrics = metrics
        self._liveness = liveness
        self.stopping = threading.Event()
        self._error: ReplayError | None = None

    def end_with(self, error: ReplayError) -> None:
        """End the loop with this error; thread-safe."""
        self._error = error

    def raise_error(self) -> None:
        """Raise the error given to `end_with`, if there is one."""
        if self._error is not None:
            raise self._error

    def until_answered(self, server: str, effect: Callable[[], T], within_s: float = INDEFINITELY_S) -> T:
        """Return what the effect returns; retried with back-off while the server does not answer.

        Raises StoppedError on a stop request, any other error at once, and an outage that lasts `within_s`.
        """
        return retrying(
            effect,
            (PyMongoError, NotAnsweredError, KafkaException),
            Deadline(within_s, self.stopping),
            BACKOFF_FIRST_S,
            BACKOFF_MAX_S,
            passes=partial(self._passes, server),
        )

    def _passes(self, server: str, error: Exception) -> bool:
        self._liveness.turned()
        self.raise_error()
        if isinstance(error, InvalidOperation | ConfigurationError):
            return False  # a defect of ours, which retries do not fix
        if isinstance(error, KafkaException):
            kafka_error = error.args[0]
            if kafka_error.fatal() or kafka_error.code() in ASSIGNMENT_LOST:
                return False
            cause = kafka_error.str()
        else:
            # A document's own errors never get here; a server that refuses everything (no primary, no space, no
            # permission) is retried: an operator has to repair it, and nothing is lost meanwhile.
            code = getattr(error, "code", None)
            cause = error.what if isinstance(error, NotAnsweredError) else type(error).__name__
            cause += f" {code}" if code else ""
        log.warning("%s does not answer (%s); retrying", server, cause)
        self._metrics.retries += 1
        return True
