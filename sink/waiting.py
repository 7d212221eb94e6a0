"""An effect is repeated until its server answers; every wait ends as soon as the sink is to end."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from bson.errors import InvalidDocument
from confluent_kafka import KafkaError, KafkaException
from pymongo.errors import ConfigurationError, InvalidOperation, PyMongoError

from schemas.errors import ReplayError
from sink.metrics import SinkMetrics
from sink.writer import NotAnsweredError

log = logging.getLogger(__name__)
T = TypeVar("T")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
STOP_CHECK_S = 0.1  # a wait looks this often whether it should end

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


class StoppedError(Exception):
    """Asked to stop while waiting for a server; nothing of the batch in hand is committed."""


class Waiting:
    """Whether the sink is to end, and the waits that end with it. Used by the loop, its writers and its parts."""

    def __init__(self, metrics: SinkMetrics) -> None:
        """`metrics` counts the retries."""
        self._metrics = metrics
        self.stop_requested = False
        self._trouble: ReplayError | None = None

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler."""
        self.stop_requested = True

    def end_with(self, error: ReplayError) -> None:
        """Have the loop end with this error; called from any thread."""
        self._trouble = error

    def raise_trouble(self) -> None:
        """Raise the error that the sink is to end with, if there is one."""
        if self._trouble is not None:
            raise self._trouble

    def until_answered(self, server: str, effect: Callable[[], T]) -> T:
        """Return what the effect returns; while the server does not answer, try again with back-off.

        Raises StoppedError when asked to stop meanwhile, and what is no outage.
        """
        wait_s = BACKOFF_FIRST_S
        while True:
            try:
                return effect()
            except (InvalidOperation, ConfigurationError, InvalidDocument):
                raise  # a defect of ours, which no waiting mends
            except (PyMongoError, NotAnsweredError) as error:
                # Errors that are a document's own never come here; a server that refuses everything (no primary, no
                # space, no permission) is waited for: an operator has to repair it, and nothing is lost meanwhile.
                code = getattr(error, "code", None)
                cause = error.what if isinstance(error, NotAnsweredError) else type(error).__name__
                log.warning(
                    "%s does not answer (%s%s); again in %.1f s", server, cause, f" {code}" if code else "", wait_s
                )
            except KafkaException as error:
                kafka_error = error.args[0]
                if kafka_error.fatal() or kafka_error.code() in NOT_OURS_ANY_MORE:
                    raise
                log.warning("%s does not answer (%s); again in %.1f s", server, kafka_error.str(), wait_s)
            self._metrics.retries += 1
            self._sleep(wait_s)
            wait_s = min(BACKOFF_MAX_S, wait_s * 2)

    def _sleep(self, seconds: float) -> None:
        """Wait; raises StoppedError as soon as a stop is asked for."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.raise_trouble()
            if self.stop_requested:
                raise StoppedError
            time.sleep(min(left, STOP_CHECK_S))
        if self.stop_requested:
            raise StoppedError
