"""I/O: the checks of Kafka. No topic is created: the requests have `validate_only`."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, NewTopic, ResourceType

from ops.checks.estimates import Estimate
from ops.checks.model import Check, Verdict, bytes_text, fail, join, ok, warn
from ops.kafka import admin as kafka_admin
from producer.topics import MESSAGE_BYTES_LIMIT
from schemas.errors import BadInputError
from schemas.process.waiting import Deadline
from schemas.topics import AccountTopics

TIMEOUT_S = kafka_admin.ANSWER_TIMEOUT_S
COORDINATOR_ASK_S = 5.0  # of one request, which is repeated
COORDINATOR_MAX_S = 15.0  # well within the time that a check has
OFFSETS_KEPT_MIN = 7 * 24 * 60  # minutes; a halted job's groups have no member
_API = re.compile(r"ApiKey (?:Unknown-\d+\??|\w+) \((\d+)\) Versions (\d+)\.\.(\d+)")
# What a release was the first to answer, the newest first: (API key, its highest version at least, release).
_RELEASES = ((76, 1, "4.1"), (75, 0, "3.8"), (68, 0, "3.7"), (60, 0, "2.8"), (11, 5, "2.3"))
TOPIC_OPERATIONS = (AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE_CONFIGS)


class _Collected(logging.Handler):
    """Collects librdkafka's log lines about the broker's features, which it reports in no other way."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def release_of(lines: Iterable[str]) -> str:
    """Return the oldest Kafka release that answers all that these lines list; "" if they list nothing. Pure."""
    highest: dict[int, int] = {}
    for line in lines:
        for key, _, high in _API.findall(line):
            highest[int(key)] = max(int(high), highest.get(int(key), -1))
    if not highest:
        return ""
    return next((release for key, at_least, release in _RELEASES if highest.get(key, -1) >= at_least), "before 2.3")


def check_reachable(kafka: Mapping[str, Any]) -> Check:
    """Return whether the cluster answers, how many brokers it has, and of what release it is at least."""
    kafka_admin.client(kafka)  # raises in one line
    collected, logger = _Collected(), logging.getLogger(f"{__name__}.librdkafka")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(collected)
    try:
        admin = AdminClient({**kafka, "debug": "feature", "log_level": 7}, logger=logger)
        metadata = admin.list_topics(timeout=TIMEOUT_S)
        admin.poll(0)
    finally:
        logger.removeHandler(collected)
    release, brokers = release_of(collected.lines), len(metadata.brokers)
    facts = {"brokers": brokers, "release": release or None, "security": kafka.get("security.protocol", "PLAINTEXT")}
    summary = (
        f"{brokers} broker{'s' if brokers != 1 else ''}, Kafka {f'{release} or newer' if release else 'of unknown age'}"
    )
    if release == "before 2.3":
        return fail("kafka_reachable", summary, "static group membership needs Kafka 2.3 or newer", **facts)
    if brokers < 2:
        return warn(
            "kafka_reachable",
            f"{summary}: one copy of everything",
            "in production three brokers, replication 3",
            **facts,
        )
    return ok("kafka_reachable", summary, **facts)


def check_names(kafka: Mapping[str, Any], account: str) -> Check:
    """Return whether the account's topic names are legal and no other topic conflicts with them."""
    topics = AccountTopics.of(account)  # raises for an account that cannot be named
    names = {topics.replay, topics.outcomes, topics.dead_letters, *topics.references}
    existing = set(_admin(kafka).list_topics(timeout=TIMEOUT_S).topics)
    facts = {"topics": sorted(names), "there_already": sorted(names & existing)}
    # Kafka's metrics take `.` and `_` for the same character, so it refuses a topic that differs only there.
    metric = {name.replace("_", "."): name for name in existing - names}
    clashes = sorted(f"{metric[key]} and {name}" for name in names if (key := name.replace("_", ".")) in metric)
    if clashes:
        return fail(
            "kafka_names",
            f"names that Kafka takes for the same: {', '.join(clashes)}",
            "delete the other topic",
            **facts,
        )
    return ok(
        "kafka_names", f"{topics.replay} and {len(names) - 1} more, {len(names & existing)} there already", **facts
    )


def check_permissions(
    kafka: Mapping[str, Any], account: str, partitions: int, copies: int = kafka_admin.CLUSTERS_DEFAULT
) -> Check:
    """Return whether we may create missing topics, and use existing ones; none is created."""
    topics, admin = AccountTopics.of(account), _admin(kafka)
    metadata = admin.list_topics(timeout=TIMEOUT_S)
    wanted = kafka_admin.topic_settings(topics, partitions)
    new = [
        NewTopic(name, num_partitions=count, replication_factor=copies, config=config)
        for name, (count, config) in wanted.items()
        if name not in metadata.topics
    ]
    refused = []
    if new:
        answers = admin.create_topics(new, operation_timeout=TIMEOUT_S, validate_only=True)
        for name, future in answers.items():
            try:
                future.result(TIMEOUT_S)
            except KafkaException as error:
                refused.append(f"{name}: {error.args[0].str()}")
    there = [name for name in wanted if name in metadata.topics]
    lacking = []
    if there:
        described = admin.describe_topics(
            TopicCollection(there), include_authorized_operations=True, request_timeout=TIMEOUT_S
        )
        for name, future in described.items():
            allowed = future.result(TIMEOUT_S).authorized_operations
            missing = [op.name for op in TOPIC_OPERATIONS if allowed is not None and op not in allowed]
            if missing:
                lacking.append(f"{name}: {', '.join(missing)}")
    lacking_of_groups, unknown = _rights_lacking_on_groups(admin, (topics.processors_group, topics.sink_group))
    lacking += lacking_of_groups
    facts = {"would_make": [topic.topic for topic in new], "refused": refused, "lacking": lacking, "unknown": unknown}
    if refused or lacking:
        return fail(
            "kafka_permissions",
            "; ".join([*refused, *lacking]),
            "allow this user CREATE, READ, WRITE and DESCRIBE_CONFIGS on crm.* and READ on its groups",
            **facts,
        )
    if unknown:
        return warn(
            "kafka_permissions",
            f"Kafka has not found a coordinator within {COORDINATOR_MAX_S:.0f} s for {', '.join(unknown)}",
            "a new cluster creates __consumer_offsets at the first request: check again; if it stays so, compare"
            " offsets.topic.replication.factor with the number of brokers",
            **facts,
        )
    if not new:
        return ok("kafka_permissions", f"all topics are there, {len(there)} may be used", **facts)
    try:
        each = kafka_admin.require_copies(admin, copies)
    except BadInputError as error:
        return fail("kafka_permissions", error.what, error.to_do, **facts)
    made = f"{len(new)} topics may be made, {each or 'the default number of'} copies each"
    return ok("kafka_permissions", f"{made}, {len(there)} may be used", **facts)


def _rights_lacking_on_groups(admin: AdminClient, groups: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the rights that this user lacks on the groups, and the groups for which Kafka did not report them.

    Retried until the groups have coordinators, COORDINATOR_MAX_S at most: a new cluster has none before the
    first request, and brokers need time to create the offsets topic.
    """
    lacking: list[str] = []
    left = list(groups)
    deadline = Deadline(COORDINATOR_MAX_S)
    while True:
        pending, left = left, []
        answers = admin.describe_consumer_groups(
            pending, include_authorized_operations=True, request_timeout=COORDINATOR_ASK_S
        )
        for group, future in answers.items():
            try:
                allowed = future.result(2 * COORDINATOR_ASK_S).authorized_operations
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    lacking.append(f"group {group}: DESCRIBE")
                elif code == KafkaError._TIMED_OUT or code in kafka_admin.COORDINATOR_MOVES:  # noqa: SLF001
                    left.append(group)
                continue  # Kafka 4 has another error for a group that does not exist yet
            except TimeoutError:  # the client's own time is not over when the request's is
                left.append(group)
                continue
            if allowed and AclOperation.READ not in allowed:
                lacking.append(f"group {group}: READ")
        if not left or not deadline.wait(kafka_admin.COORDINATOR_POLL_S):
            return lacking, left


def check_topics(
    kafka: Mapping[str, Any], account: str, partitions: int, wanted_copies: int = kafka_admin.CLUSTERS_DEFAULT
) -> Check:
    """Return whether the existing topics are configured as a run needs them."""
    topics, admin = AccountTopics.of(account), _admin(kafka)
    metadata = admin.list_topics(timeout=TIMEOUT_S)
    findings: list[tuple[Verdict, str, str]] = []
    seen = 0
    if wanted_copies == kafka_admin.CLUSTERS_DEFAULT:
        wanted_copies = kafka_admin.default_copies(admin)[1] or min(3, len(metadata.brokers))
    for name, (count, config) in kafka_admin.topic_settings(topics, partitions).items():
        if name not in metadata.topics:
            continue
        seen += 1
        present = kafka_admin.topic_config(admin, name)
        shape = metadata.topics[name].partitions
        findings += topic_findings(name, present, config)
        copies = min(len(partition.replicas) for partition in shape.values())
        out = sum(len(partition.isrs) < len(partition.replicas) for partition in shape.values())
        if copies < wanted_copies:
            found = f"{name} has {copies} cop{'y' if copies == 1 else 'ies'} of the {wanted_copies} that are configured"
            findings.append((Verdict.WARN, found, "raise its replication factor: kafka-reassign-partitions.sh"))
        if out:
            findings.append(
                (Verdict.WARN, f"{name}: {out} partitions lack a replica in sync", "see which broker is behind")
            )
        if count < len(shape) and name in (topics.replay, topics.outcomes):
            findings.append((Verdict.OK, f"{name} keeps its {len(shape)} partitions", ""))
    return join("kafka_topics", findings, f"{seen} topics exist, configured as a run needs them", there=seen)


def topic_findings(name: str, present: Mapping[str, str], wanted: Mapping[str, str]) -> list[tuple[Verdict, str, str]]:
    """Return how a topic's settings differ from what a run needs; retention is checked with the rows. Pure."""
    found = []
    compacted = "compact" in wanted["cleanup.policy"]
    policy = present.get("cleanup.policy", "delete")
    if compacted and policy != "compact":
        found.append(
            (
                Verdict.FAIL,
                f"{name} has cleanup.policy={policy}: what is looked up there would expire",
                f"kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=compact",
            )
        )
    if not compacted and "compact" in policy:
        found.append(
            (
                Verdict.FAIL,
                f"{name} has cleanup.policy={policy}: it would keep one row of each person",
                f"kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=delete",
            )
        )
    allowed = int(present.get("max.message.bytes", kafka_admin.RECORD_BYTES_MAX))
    if allowed < min(kafka_admin.RECORD_BYTES_MAX, MESSAGE_BYTES_LIMIT):
        found.append(
            (
                Verdict.WARN,
                f"{name} takes records up to {bytes_text(allowed)}: larger rows end as dead letters",
                f"set its max.message.bytes to {kafka_admin.RECORD_BYTES_MAX}",
            )
        )
    return found


def check_retention(kafka: Mapping[str, Any], account: str, estimate: Estimate | None) -> Check:
    """Return whether Kafka keeps the backlog long enough, and how much disk it takes."""
    admin = _admin(kafka)
    if estimate is None:
        return warn(
            "kafka_retention", "not known how many rows there will be", "fix what keeps the rows from being counted"
        )
    facts: dict[str, Any] = {"topics_bytes": estimate.topics_bytes}
    try:
        kafka_admin.require_retention(admin, AccountTopics.of(account), estimate.rows)
    except BadInputError as error:
        return fail("kafka_retention", error.what, error.to_do, **facts)
    metadata = admin.list_topics(timeout=TIMEOUT_S)
    copies = min(3, len(metadata.brokers))
    needed = estimate.topics_bytes * copies
    facts |= {"copies": copies, "disk_bytes": needed, "disk_bytes_per_broker": needed // max(1, len(metadata.brokers))}
    summary = (
        f"the backlog is kept until it is consumed; up to {bytes_text(needed)} of disk over {len(metadata.brokers)}"
        f" brokers for {kafka_admin.BACKLOG_RETENTION_MS // kafka_admin.DAY_MS} days (Kafka"
        " does not report free space)"
    )
    kept = _offsets_kept_min(admin, next(iter(metadata.brokers)))
    facts["offsets_kept_minutes"] = kept
    if kept is not None and kept < OFFSETS_KEPT_MIN:
        return warn(
            "kafka_retention",
            f"{summary}; offsets of a halted job are forgotten after {kept:,} minutes",
            f"set the brokers' offsets.retention.minutes to {OFFSETS_KEPT_MIN} or more",
            **facts,
        )
    return ok("kafka_retention", summary, **facts)


def _offsets_kept_min(admin: AdminClient, broker: int) -> int | None:
    """Return how long the offsets of a group without members are kept; None if we may not know."""
    resource = ConfigResource(ResourceType.BROKER, str(broker))
    try:
        entries = admin.describe_configs([resource], request_timeout=TIMEOUT_S)[resource].result(TIMEOUT_S)
        return int(entries["offsets.retention.minutes"].value)
    except (KafkaException, KeyError, TypeError, ValueError):
        return None


def _admin(kafka: Mapping[str, Any]) -> AdminClient:
    return kafka_admin.client(kafka)
