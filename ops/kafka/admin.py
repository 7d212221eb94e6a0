"""What a job needs in Kafka before its first worker starts: topics and committed offsets. All idempotent."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, ResourceType

from producer.topics import offsets_held, partitions_of
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.process.client_errors import kind_of
from schemas.process.waiting import Deadline, retrying
from schemas.topics import AccountTopics

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
CLUSTERS_DEFAULT = -1  # of the copies of a topic, as Kafka has it
KNOWN_POLL_S = 0.02
COORDINATOR_POLL_S = 0.2
EMPTY_GROUP_POLL_S = 0.5
EMPTY_GROUP_TIMEOUT_S = 30.0  # longer than the session timeout after which Kafka removes a dead member
_GROUP_IN_USE = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.ILLEGAL_GENERATION)
COORDINATOR_MOVES = (  # after a broker's start or stop: the next attempt finds the new coordinator
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
RECORD_BYTES_MAX = 20 * 1024 * 1024  # a 16 MiB document and its envelope
DAY_MS = 24 * 3600 * 1000
BACKLOG_RETENTION_MS = 7 * DAY_MS  # a replay takes less than a day; the rest is for reruns
DEAD_LETTER_RETENTION_MS = 30 * DAY_MS
RETENTION_MIN_MS = 3600 * 1000
RATE_MIN_PER_S = 500  # rows; a slower replay is outside the contract
ROW_BYTES_GUESS = 1_000  # estimated, on a topic, with keys and envelopes
DEAD_LETTER_PARTITIONS = 1  # few records, read by people in order
REFERENCE_PARTITIONS = 4  # loaded whole by every worker; parallel fetches


def client(config: Mapping[str, Any]) -> AdminClient:
    """Return an admin client that has reached the cluster; raises ServiceUnreachableError."""
    refusals: list[str] = []  # errors of brokers that reject the certificate or password

    def note(error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):  # noqa: SLF001 - librdkafka's own codes
            refusals.append(error.str())

    quiet: dict[str, Any] = {"log_level": 0, "socket.connection.setup.timeout.ms": 5000, "error_cb": note}
    admin = AdminClient({**config, **quiet})

    def passes(_: KafkaException) -> bool:
        admin.poll(0)  # calls `note`
        return not refusals  # a retry would be refused again, and librdkafka retries indefinitely

    list_topics = partial(admin.list_topics, timeout=min(1.0, ANSWER_TIMEOUT_S))
    try:
        retrying(list_topics, KafkaException, Deadline(ANSWER_TIMEOUT_S), 0.0, passes=passes)
    except KafkaException as error:
        where = f"Kafka at {config['bootstrap.servers']}"
        if refusals:
            why = refusals[-1].rsplit(": ", 1)[-1].strip()
            raise ServiceUnreachableError(
                f"{where} refuses the login ({why})", "check KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_*"
            ) from error
        raise ServiceUnreachableError(
            f"{where} does not answer ({error.args[0].str()})",
            "check KAFKA_BOOTSTRAP_SERVERS, or start the embedded servers: crm-replay services up",
        ) from error
    return admin


def answer(future: Any) -> Any:
    """Return an admin request's result. Raises KafkaException, for a broker that is silent, too."""
    try:
        return future.result(ANSWER_TIMEOUT_S)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error  # noqa: SLF001 - librdkafka's own code


def default_copies(admin: AdminClient) -> tuple[int, int | None]:
    """Return the number of brokers, and how many copies the cluster gives a topic; None if we may not know."""
    brokers = answer(admin.describe_cluster(request_timeout=ANSWER_TIMEOUT_S)).nodes
    resource = ConfigResource(ResourceType.BROKER, str(brokers[0].id))
    try:
        entries = answer(admin.describe_configs([resource])[resource])
        return len(brokers), int(entries["default.replication.factor"].value)
    except (KafkaException, KeyError, TypeError, ValueError):
        return len(brokers), None


def require_copies(admin: AdminClient, copies: int) -> int | None:
    """Return how many copies each new topic gets; None if we may not know.

    Raises BadInputError if it is one on a cluster, and no setting says so.
    """
    if copies != CLUSTERS_DEFAULT:
        return copies
    brokers, default = default_copies(admin)
    if brokers > 1 and default == 1:
        raise BadInputError(
            f"this cluster of {brokers} brokers keeps one copy of a new topic (default.replication.factor), which is"
            " lost with its broker",
            "set KAFKA_REPLICATION_FACTOR to 3, or to 1 if one copy is meant",
        )
    return default


def topic_settings(topics: AccountTopics, partitions: int) -> dict[str, tuple[int, dict[str, str]]]:
    """Return partition count and configuration of every topic of an account."""
    size = {"max.message.bytes": str(RECORD_BYTES_MAX)}
    backlog = {**size, "cleanup.policy": "delete", "retention.ms": str(BACKLOG_RETENTION_MS)}
    compacted = {**size, "cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.3"}
    return {
        topics.replay: (partitions, backlog),
        topics.outcomes: (partitions, backlog),
        topics.dead_letters: (DEAD_LETTER_PARTITIONS, {**backlog, "retention.ms": str(DEAD_LETTER_RETENTION_MS)}),
        **dict.fromkeys(topics.references, (REFERENCE_PARTITIONS, compacted)),
    }


def ensure_topics(admin: AdminClient, topics: AccountTopics, partitions: int, copies: int = CLUSTERS_DEFAULT) -> int:
    """Create what is missing and return the partition count that the job has to use.

    An existing topic keeps its partitions, or gets more; Kafka cannot remove partitions. `copies` of each new one do
    not depend on how many brokers are up: one that was made during an outage would have too few for good. Raises
    BadInputError if topics cannot be made like that, ServiceUnreachableError for an outage.
    """
    every = topic_settings(topics, partitions)
    existing = partitions_of(admin, [*every])
    present = max((existing[t] for t in (topics.replay, topics.outcomes) if t in existing), default=0)
    partitions = max(partitions, present)
    wanted = topic_settings(topics, partitions)
    new = [
        NewTopic(name, num_partitions=count, replication_factor=copies, config=config)
        for name, (count, config) in wanted.items()
        if name not in existing
    ]
    if new:
        require_copies(admin, copies)
        for name, future in admin.create_topics(new, operation_timeout=ANSWER_TIMEOUT_S).items():
            _result(future, f"topic {name} could not be created", ignore=KafkaError.TOPIC_ALREADY_EXISTS)
        _wait_until_known(admin, [topic.topic for topic in new])
    grow = [
        NewPartitions(name, partitions)
        for name in (topics.replay, topics.outcomes)
        if name in existing and existing[name] < partitions
    ]
    if grow:
        for name, future in admin.create_partitions(grow, operation_timeout=ANSWER_TIMEOUT_S).items():
            _result(future, f"topic {name} could not get {partitions} partitions")
    return partitions


def _wait_until_known(admin: AdminClient, topics: Sequence[str]) -> None:
    """Return when the queried broker knows the new topics: brokers learn of them with a delay."""
    deadline = Deadline(ANSWER_TIMEOUT_S)
    while len(partitions_of(admin, topics)) < len(topics) and deadline.wait(KNOWN_POLL_S):
        pass


def require_retention(admin: AdminClient, topics: AccountTopics, rows: int) -> None:
    """Raise BadInputError if Kafka could delete records of a replay of so many rows before they are consumed.

    Checks the existing topics; new ones get `BACKLOG_RETENTION_MS`. A replay at the slowest accepted rate has to fit
    twice, and so have its bytes.
    """
    existing = partitions_of(admin, (topics.replay, topics.outcomes))
    needed_ms = max(RETENTION_MIN_MS, rows * 2_000 // RATE_MIN_PER_S)
    for topic in (topics.replay, topics.outcomes):
        if topic not in existing:
            continue
        config = topic_config(admin, topic)
        needed_bytes = rows * ROW_BYTES_GUESS * 2 // existing[topic]
        for name, needed in (("retention.ms", needed_ms), ("retention.bytes", needed_bytes)):
            allowed = int(config.get(name, -1))
            if "delete" in config.get("cleanup.policy", "delete") and 0 <= allowed < needed:
                raise BadInputError(
                    f"topic {topic} has {name}={allowed}: Kafka could delete what {rows:,} rows leave there too early",
                    f"set it to {needed} or more, or to -1",
                )


def _result(future: Any, what: str, ignore: int | None = None) -> None:
    try:
        answer(future)
    except KafkaException as error:
        why = f"{what} ({error.args[0].str()})"
        if kind_of(error) is ServiceUnreachableError:
            raise ServiceUnreachableError(why, "start again when Kafka answers") from error
        if error.args[0].code() != ignore:
            raise BadInputError(why, "check the cluster and its permissions") from error


def oldest_offsets(config: Mapping[str, Any], topic: str, partitions: int) -> list[int]:
    """Return the offset of the first record that each partition still holds."""
    return [low for low, _ in _watermarks(config, topic, partitions)]


def end_offsets(config: Mapping[str, Any], topic: str, partitions: int) -> list[int]:
    """Return the offset after the last record of each partition."""
    return [high for _, high in _watermarks(config, topic, partitions)]


def _watermarks(config: Mapping[str, Any], topic: str, partitions: int) -> list[tuple[int, int]]:
    with speaking_for(config, f"crm.offsets.{topic}") as consumer:
        return offsets_held(consumer, topic, partitions)


def commit_offsets(config: Mapping[str, Any], group: str, topic: str, offsets: Sequence[int]) -> None:
    """Commit the begin offsets of `group`, for every partition; waits, bounded, until dead members are removed.

    No worker may join a group without committed offsets: after a rebalance it would commit past unhandled records
    (DECISIONS.md, decision 2). Raises BadInputError if the group keeps having members.
    """
    passing = (*_GROUP_IN_USE, *COORDINATOR_MOVES)
    try:
        retrying(
            partial(_commit_once, config, group, topic, offsets),
            KafkaException,
            Deadline(EMPTY_GROUP_TIMEOUT_S),
            EMPTY_GROUP_POLL_S,
            passes=lambda error: error.args[0].code() in passing,
        )
    except KafkaException as error:
        raise BadInputError(
            f"offsets of group {group} could not be set ({error.args[0].str()})",
            "workers of this account seem to be running; stop them first"
            if error.args[0].code() in _GROUP_IN_USE
            else "check the brokers, and the permissions of this user on the group",
        ) from error


@contextlib.contextmanager
def speaking_for(config: Mapping[str, Any], group: str) -> Iterator[Consumer]:
    """Yield a consumer that queries and commits for a group, without joining it."""
    consumer = Consumer({**config, "group.id": group, "enable.auto.commit": False, "log_level": 0})
    try:
        yield consumer
    finally:
        consumer.close()


def _commit_once(config: Mapping[str, Any], group: str, topic: str, offsets: Sequence[int]) -> None:
    with speaking_for(config, group) as consumer:
        wanted = [TopicPartition(topic, partition, offset) for partition, offset in enumerate(offsets)]
        for answer in consumer.commit(offsets=wanted, asynchronous=False) or []:
            if answer.error:
                raise KafkaException(answer.error)


def committed_offsets(config: Mapping[str, Any], group: str, topic: str, partitions: int) -> list[int]:
    """Return the committed offset of each partition; -1001 where there is none.

    Retried for a bounded time while the group's coordinator starts, as after the first request to a new cluster.
    Raises KafkaException.
    """
    return coordinated(partial(_committed_once, config, group, topic, partitions), ANSWER_TIMEOUT_S)


def coordinated(request: Callable[[], T], within_s: float) -> T:
    """Return the result of a request to a group's coordinator, which may be moving or starting.

    Raises KafkaException, also if the coordinator is still moving after that time.
    """
    return retrying(
        request,
        KafkaException,
        Deadline(within_s),
        COORDINATOR_POLL_S,
        passes=lambda error: error.args[0].code() in COORDINATOR_MOVES,
    )


def _committed_once(config: Mapping[str, Any], group: str, topic: str, partitions: int) -> list[int]:
    with speaking_for(config, group) as consumer:
        wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
        return [tp.offset for tp in consumer.committed(wanted, timeout=ANSWER_TIMEOUT_S)]


def topic_config(admin: AdminClient, topic: str) -> dict[str, str]:
    """Return the effective configuration of a topic."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    entries = answer(admin.describe_configs([resource])[resource])
    return {name: entry.value for name, entry in entries.items()}
