"""An effect is repeated until its server answers; every wait ends as soon as the sink is to end."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException
from pymongo.errors import ConfigurationError, InvalidOperation, PyMongoError

from schemas.errors import ReplayError
from schemas.process.waiting import FOR_EVER_S, Deadline, retrying
from sink.metrics import SinkMetrics
from sink.writer import NotAnsweredError

log = logging.getLogger(__name__)
T = TypeVar("T")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0

# The group has moved on without us: what was to be committed is another sink's now, and will be repeated there.
NOT_OURS_ANY_MORE = frozenset(
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
    """Whether the sink is to end, and the waits that end with it. Used by the loop, its writers and its parts."""

    def __init__(self, metrics: SinkMetrics) -> None:
        """`metrics` counts the retries. Setting `stopping` asks for the end."""
        self._metrics = metrics
        self.stopping = threading.Event()
        self._trouble: ReplayError | None = None

    def end_with(self, error: ReplayError) -> None:
        """Have the loop end with this error; called from any thread."""
        self._trouble = error

    def raise_trouble(self) -> None:
        """Raise the error that the sink is to end with, if there is one."""
        if self._trouble is not None:
            raise self._trouble

    def until_answered(self, server: str, effect: Callable[[], T], within_s: float = FOR_EVER_S) -> T:
        """Return what the effect returns; while the server does not answer, try again with back-off.

        Raises StoppedError when asked to stop meanwhile, what is no outage, and an outage that lasts `within_s`.
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
        self.raise_trouble()
        if isinstance(error, InvalidOperation | ConfigurationError):
            return False  # a defect of ours, which no waiting mends
        if isinstance(error, KafkaException):
            kafka_error = error.args[0]
            if kafka_error.fatal() or kafka_error.code() in NOT_OURS_ANY_MORE:
                return False
            cause = kafka_error.str()
        else:
            # Errors that are a document's own never come here; a server that refuses everything (no primary, no space,
            # no permission) is waited for: an operator has to repair it, and nothing is lost meanwhile.
            code = getattr(error, "code", None)
            cause = error.what if isinstance(error, NotAnsweredError) else type(error).__name__
            cause += f" {code}" if code else ""
        log.warning("%s does not answer (%s); trying again", server, cause)
        self._metrics.retries += 1
        return True
