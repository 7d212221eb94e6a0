"""I/O: a member of the sink group: assignment and revocation, polls, positions, commits."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.topic_watch import Positions
from sink.effects import Effect, EffectHook
from sink.metrics import SinkMetrics
from sink.settings import SinkSettings
from sink.waiting import ASSIGNMENT_LOST, Waiting

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
POSITION_EVERY_S = 1.0


class OutcomesLostError(ReplayError):
    """Kafka deleted outcomes before they were written."""


class Group:
    """The sink's membership. The callbacks of a rebalance run inside `consume`."""

    def __init__(
        self, settings: SinkSettings, kafka: dict[str, Any], waiting: Waiting, metrics: SinkMetrics, hook: EffectHook
    ) -> None:
        """Open the consumer; `kafka` is the connection's configuration."""
        self._settings = settings
        self._topics = settings.job.topics
        self._waiting = waiting
        self._metrics = metrics
        self._hook = hook
        self._begins: dict[int, int] = {}  # by partition: the offset at its assignment
        self._positions: dict[int, int] = {}
        self._positions_seen_at = 0.0
        self._consumer = Consumer(self._config(kafka), logger=log)

    def _config(self, kafka: dict[str, Any]) -> dict[str, Any]:
        config = {
            **kafka,
            "group.id": self._topics.sink_group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # `assigned` sets the start of a group without offsets; an offset that Kafka has deleted is an error.
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "session.timeout.ms": self._settings.sink_session_timeout_ms,
            "heartbeat.interval.ms": max(300, self._settings.sink_session_timeout_ms // 4),
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": max(16_384, 2 * self._settings.sink_batch_bytes // 1024),
        }
        if self._settings.sink_instance_id:
            config["group.instance.id"] = f"{self._topics.sink_group}.{self._settings.sink_instance_id}"
        return config

    def require_topics(self) -> None:
        """Check the topics, with retries. Raises ServiceUnreachableError, and BadInputError for a missing topic."""
        wanted = (self._topics.outcomes, self._topics.dead_letters)

        def existing() -> dict[str, Any]:
            """Return those that exist, without the other topics of the cluster."""
            found = {name: self._consumer.list_topics(name, timeout=ANSWER_TIMEOUT_S).topics[name] for name in wanted}
            return {name: topic for name, topic in found.items() if topic.error is None}

        try:
            known = self._waiting.until_answered("Kafka", existing, self._settings.sink_patience_s)
        except KafkaException as error:
            raise ServiceUnreachableError(
                f"Kafka does not answer ({error.args[0].str()})",
                "check KAFKA_BOOTSTRAP_SERVERS, or start the embedded servers: crm-replay services up",
            ) from error
        for topic in wanted:
            if topic not in known:
                raise BadInputError(f"topic {topic} does not exist", "start the job with crm-replay run")

    def join(self, finish: Callable[[], object], forget: Callable[[set[int]], None]) -> None:
        """Subscribe. `finish` is called before partitions are revoked, `forget` after an assignment or revocation."""

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            """Start at the group's committed offsets, or at the beginning; counts are read on demand."""
            committed = self._waiting.until_answered("Kafka", lambda: self._committed(partitions))
            forget({partition.partition for partition in partitions})
            for partition in committed:
                if partition.offset < 0:
                    partition.offset = OFFSET_BEGINNING
            self._begins = {partition.partition: partition.offset for partition in committed}
            consumer.assign(committed)
            self._metrics.rebalances += 1
            log.info("assigned %s", {p.partition: p.offset for p in committed})

        def lost(_consumer: Consumer, partitions: list[TopicPartition]) -> None:
            """Forget partitions that another sink may own; a batch in flight fails to save its progress."""
            gone = {partition.partition for partition in partitions}
            forget(gone)
            log.info("revoked %s", sorted(gone))

        def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            finish()
            lost(consumer, partitions)

        self._consumer.subscribe([self._topics.outcomes], on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def _committed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        answers = self._consumer.committed(partitions, timeout=ANSWER_TIMEOUT_S)
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return answers

    def consume(self, records_max: int, wait_s: float) -> list[Message]:
        """Return up to so many records. Raises OutcomesLostError, and KafkaException for a fatal error."""
        polled = self._consumer.consume(records_max, wait_s)
        records = []
        for message in polled:
            error = message.error()
            if error is None:
                records.append(message)
            else:
                self._report(error)
        return records

    def _report(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):  # noqa: SLF001
            raise OutcomesLostError(
                f"outcomes were deleted from {self._topics.outcomes} before they were written",
                "lengthen the topic's retention and run crm-replay rerun",
            )
        if error.fatal():
            raise KafkaException(error)
        log.warning("Kafka: %s", error.str())

    def positions(self) -> Positions:
        """Return the position on each assigned partition, a second old at most."""
        now = time.monotonic()
        if now - self._positions_seen_at >= POSITION_EVERY_S:
            self._positions_seen_at = now
            assigned = self._consumer.assignment()
            positions = self._consumer.position(assigned) if assigned else []
            self._positions = {
                at.partition: at.offset if at.offset >= 0 else self._begins.get(at.partition, at.offset)
                for at in positions
            }
        return self._positions

    def commit(self, next_offsets: Mapping[int, int], next_source_offsets: Mapping[int, int]) -> None:
        """Commit, by partition, the offset of the next record; partitions that another sink owns are left to it.

        The metadata is the next outcome's source offset on the replay topic, if it is known: a record of outcomes has
        many rows, and from this the lag is computed in rows (ops.kafka.lag).
        """
        offsets = [
            TopicPartition(self._topics.outcomes, partition, offset, str(next_source_offsets.get(partition, "")))
            for partition, offset in next_offsets.items()
        ]

        def commit() -> None:
            # Without a limit of its own, as is `close`; the watchdog ends a sink that hangs in one (decision 75).
            answers = self._consumer.commit(offsets=offsets, asynchronous=False)
            for answer in answers or ():
                if answer.error is not None:
                    raise KafkaException(answer.error)

        try:
            self._waiting.until_answered("Kafka", lambda: self._hook(Effect.COMMIT_OFFSETS, commit))
        except KafkaException as error:
            if error.args[0].code() not in ASSIGNMENT_LOST:
                raise
            log.warning("offsets not committed (%s); the batch is delivered again, uncounted", error.args[0].str())

    def close(self) -> None:
        """Leave the group: the other sinks take over at once."""
        self._consumer.close()
