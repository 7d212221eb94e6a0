"""Two checks of the watchdog (`schemas.process.liveness`) for every process that consumes a topic. I/O.

Three states of Kafka look to a consumer like a topic on which nothing happens:

- its topic was deleted and created again. Positions and committed offsets are numbers of the topic that is gone. Where
  the new one has fewer records, nothing arrives; where it has more, the first ones would be skipped.
- records wait, the process has nothing in hand, and its position does not move.
- its group has no members: the broker has removed it, and it has not joined again.

Kafka is queried at intervals. What it does not answer decides nothing.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from schemas.errors import ReplayError
from schemas.process.liveness import CHECK_EVERY_S, RESTARTS, StalledError
from schemas.vocabulary import ExitCode

log = logging.getLogger(__name__)

GONE_AFTER_CHECKS = 3  # a broker learns of a new topic with a delay
STALLED_AFTER_CHECKS = 12  # a minute: longer than any rebalance or fetch
ANSWER_TIMEOUT_S = 10.0

Positions = Mapping[int, int]  # by partition: the offset of the next record; below zero: not known


RUN_AGAIN = "what it held is lost: halt the job, roll the account back and run it again"  # of a replay


class TopicReplacedError(ReplayError):
    """A consumed topic was deleted, or deleted and created again."""

    exit_code = ExitCode.TOPIC_REPLACED


class Questions(Protocol):
    """The watch's queries. Each raises an error if it is not answered."""

    def topic_id(self, topic: str) -> str | None:
        """Return Kafka's id of the topic; None: there is no such topic; "": this cluster has no ids."""

    def offsets(self, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return the first offset of each partition, and its end offset for committed records."""

    def members(self, group: str) -> int:
        """Return how many members the consumer group has."""


class KafkaQuestions:
    """Queries by an admin client, which is opened with the first query: short-lived processes need none."""

    def __init__(self, kafka: Mapping[str, Any]) -> None:
        """`kafka` is the connection's configuration."""
        self._kafka = kafka
        self._admin: Any = None

    def _client(self) -> Any:
        if self._admin is None:
            from confluent_kafka.admin import AdminClient

            self._admin = AdminClient({**self._kafka, "log_level": 0})
        return self._admin

    def topic_id(self, topic: str) -> str | None:
        """Return Kafka's id of the topic, as `Questions` says."""
        from confluent_kafka import KafkaError, KafkaException, TopicCollection

        try:
            answer = self._client().describe_topics(TopicCollection([topic]), request_timeout=ANSWER_TIMEOUT_S)
            found = answer[topic].result(ANSWER_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise
        known = found.topic_id
        return str(known) if known.get_most_significant_bits() or known.get_least_significant_bits() else ""

    def offsets(self, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return the bounds of each partition, as `Questions` says."""
        from confluent_kafka import IsolationLevel, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        def query(spec: Any) -> dict[int, int]:
            wanted = {TopicPartition(topic, partition): spec for partition in partitions}
            answers = self._client().list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_TIMEOUT_S
            )
            return {tp.partition: int(future.result(ANSWER_TIMEOUT_S).offset) for tp, future in answers.items()}

        first, end = query(OffsetSpec.earliest()), query(OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {partition: (first[partition], end[partition]) for partition in partitions}

    def members(self, group: str) -> int:
        """Return the size of the group, as `Questions` says."""
        answer = self._client().describe_consumer_groups([group], request_timeout=ANSWER_TIMEOUT_S)
        return len(answer[group].result(ANSWER_TIMEOUT_S).members)


class TopicWatch:
    """Watches the topics of one process, `topic`, which it consumes, and others that it reads, and its `group`."""

    def __init__(
        self,
        questions: Questions,
        topic: str,
        others: Sequence[str] = (),
        *,
        group: str,
        topic_id: str = "",
        to_do: str = "",
        positions: Callable[[], Positions | None] = lambda: None,
    ) -> None:
        """`topic_id` is the expected id; "": the id at the first check.

        `positions` returns the process's positions, None while it has records in progress or has not joined its group
        yet. `to_do` ends the error's line.
        """
        self._questions = questions
        self._topic = topic
        self._group = group
        self._ids: dict[str, str] = {topic: topic_id, **dict.fromkeys(others, "")}
        self._to_do = to_do
        self._positions = positions
        self._missing: dict[str, int] = {}
        # By partition: the position, and for how many checks records have been waiting there.
        self._seen: dict[int, tuple[int, int]] = {}
        self._checks_without_members = 0

    def check(self) -> None:
        """Raise TopicReplacedError or StalledError; errors of Kafka's client are outages."""
        for topic, before in self._ids.items():
            self._check_id(topic, before)
        self._check_progress()

    def check_now(self) -> None:
        """Check like `check`; an outage is ignored, as the process itself reports it."""
        try:
            self.check()
        except ReplayError:
            raise
        except Exception as error:
            self._seen.clear()
            self._checks_without_members = 0
            log.debug("Kafka does not describe the topics (%s)", type(error).__name__)

    def _check_id(self, topic: str, before: str) -> None:
        now = self._questions.topic_id(topic)
        if now is None:
            self._missing[topic] = self._missing.get(topic, 0) + 1
            if self._missing[topic] >= GONE_AFTER_CHECKS:
                raise TopicReplacedError(f"topic {topic} was deleted", self._to_do)
            return
        self._missing.pop(topic, None)
        if before and now and now != before:
            raise TopicReplacedError(f"topic {topic} was deleted and created again", self._to_do)
        self._ids[topic] = now or before

    def _check_progress(self) -> None:
        positions = self._positions()
        if positions is None:  # records are in progress: no evidence of a stall
            return
        self._check_members(positions)
        still = [at for at, position in positions.items() if self._seen.get(at, (None, 0))[0] == position]
        bounds = self._questions.offsets(self._topic, still) if still else {}
        seen = {at: (position, 0) for at, position in positions.items()}
        for at, (first, end) in bounds.items():
            position = max(first, positions[at])
            if end <= position:
                continue
            checks = self._seen[at][1] + 1
            if checks >= STALLED_AFTER_CHECKS:
                raise StalledError(
                    f"{end - position:,} records wait on {self._topic}[{at}], and for "
                    f"{STALLED_AFTER_CHECKS * CHECK_EVERY_S:.0f} s none was received (position {position})",
                    "this process ends, and its supervisor restarts it",
                )
            seen[at] = (positions[at], checks)
        self._seen = seen

    def _check_members(self, positions: Positions) -> None:
        """Raise StalledError if the process has no partitions, and for long no process is a member of its group.

        A member without partitions is none: where the others have them all, it waits for one of them to leave.
        """
        if positions or self._questions.members(self._group) > 0:
            self._checks_without_members = 0
            return
        self._checks_without_members += 1
        if self._checks_without_members >= STALLED_AFTER_CHECKS:
            raise StalledError(
                f"group {self._group} has had no members for {STALLED_AFTER_CHECKS * CHECK_EVERY_S:.0f} s, so this"
                " process is none either",
                RESTARTS,
            )
