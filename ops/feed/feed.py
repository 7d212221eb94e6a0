"""The live feed on this host: its supervised processors and sinks, and the reference data that they look up.

Order of effects, and what a death between two of them costs:

1. checks: nothing is changed before they pass.
2. topics, the feed's document with its run, the committed offsets of the processors' group: each is created if missing.
3. users and names of the CRM, published before the first worker starts and again at every interval.
4. processors and sinks, until they are stopped. They resume from their committed offsets.

Any number of hosts may run one feed at the same time: they use what the first one created, and join its groups.
"""

import datetime as dt
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from pymongo.errors import DuplicateKeyError, PyMongoError

from ops.jobs import migrations
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.progress import RunView
from ops.runner.processes import (
    ProcessGaveUpError,
    Supervised,
    Supervisor,
    child_environment,
    python_module,
    require_writable,
)
from producer import references
from schemas.collections import FEEDS, PROGRESS
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.job import LiveFeed
from schemas.process.connections import Connections
from schemas.process.exposition import of_children
from schemas.process.mongodb import Database, connect
from schemas.process.registry import codec_for
from schemas.process.topic_watch import TopicReplacedError
from schemas.process.waiting import Deadline, retrying, stop_on_signals
from schemas.source.mapping import load
from schemas.topics import LIVE_FEED, LIVE_TOPIC
from schemas.vocabulary import ExitCode
from sink.feed.progress import totals_by_account
from sink.progress import RunTotals

POLL_EVERY_S = 0.5
REPORT_EVERY_S = 30.0
PAUSE_S = 30.0  # after a process has kept ending: taken for an outage, since a feed is never given up
PROCESSORS = "processors"
DRAIN_MAX_S = 60.0
ANSWER_TIMEOUT_S = 10.0
COORDINATOR_TIMEOUT_S = 30.0
COORDINATOR_MOVES = frozenset(
    (
        *kafka_admin.COORDINATOR_MOVES,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TIMED_OUT,  # noqa: SLF001  librdkafka's public names begin with an underscore
    )
)
NO_OFFSET = -1001


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a feed is run on this host."""

    feed: str = LIVE_FEED
    topic: str = LIVE_TOPIC
    mapping_path: str = ""
    partitions: int = 4  # of a topic that is not there yet
    processors: int = 1
    sinks: int = 1
    table_account: str = ""
    visibility_delay_s: float = 10.0
    refresh_s: float = 60.0
    with_referents: bool = True
    home: Path = Path(".crm-replay")


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """The counts and the lag of a feed."""

    feed: LiveFeed
    accounts: Mapping[str, RunTotals]
    processors_lag: int  # records of the feed without an outcome
    sink_lag: int  # outcomes that are not written

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; the account "" has what belongs to no known account."""
        return {
            "feed": self.feed.feed,
            "topic": self.feed.topic,
            "run": self.feed.run,
            "processors_lag": self.processors_lag,
            "sink_lag": self.sink_lag,
            "accounts": {
                account: {
                    "migrated": totals.migrated,
                    "skipped": dict(totals.skipped),
                    "failed": dict(totals.failed),
                    "foreign": dict(totals.foreign),
                }
                for account, totals in self.accounts.items()
            },
        }


def prepare(options: LiveOptions, connections: Connections, database: Database) -> LiveFeed:
    """Create everything that the feed's first worker needs and return the feed. May be repeated, also while it runs.

    Raises BadInputError or ServiceUnreachableError before anything is changed.
    """
    load(options.mapping_path or None)
    mapping_path = str(Path(options.mapping_path).resolve()) if options.mapping_path else ""
    wanted = LiveFeed(
        job_id=f"live:{options.feed}",
        run=1,
        partitions=options.partitions,
        mapping_path=mapping_path,
        feed=options.feed,
        topic=options.topic,
        table_account=options.table_account,
        visibility_delay_s=options.visibility_delay_s,
    )
    topics = wanted.topics  # raises for an invalid name
    migrations.require_current(database)
    kafka = connections.kafka()
    admin, copies = kafka_admin.client(kafka), connections.kafka_replication_factor
    present = admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
    known = database[FEEDS].find_one({"_id": options.feed})
    if known is not None and known["topic"] != options.topic:
        raise BadInputError(
            f"the feed {options.feed} reads {known['topic']}", f"give another --feed for {options.topic}"
        )
    if options.topic in present:
        # It may be another program's (Debezium's) and stays unchanged; the others get its partition count.
        partitions = len(present[options.topic].partitions)
        kafka_admin.ensure_topics(admin, replace(topics, replay=topics.outcomes), partitions, copies)
    else:
        partitions = kafka_admin.ensure_topics(admin, topics, options.partitions, copies)
    topic_id = _topic_id(admin, options.topic)
    outcomes_id = _topic_id(admin, topics.outcomes)
    # Before the new topic id is saved: after a death in between, the next call finds the topic new again.
    reset = known is not None and known["topic_id"] != topic_id
    _commit_beginnings(kafka, topics.processors_group, topics.replay, partitions, reset=reset)
    if known is not None and known.get("outcomes_id", outcomes_id) != outcomes_id:
        _commit_beginnings(kafka, topics.sink_group, topics.outcomes, partitions, reset=True)
    run = _run_of(database, wanted, topic_id)
    feed = wanted.model_copy(update={"run": run, "partitions": partitions, "topic_id": topic_id})
    database[FEEDS].update_one(
        {"_id": options.feed, "run": feed.run},
        {"$set": {"partitions": partitions, "mapping_path": mapping_path, "table_account": options.table_account,
                  "visibility_delay_s": options.visibility_delay_s, "outcomes_id": outcomes_id,
                  "updated_at": dt.datetime.now(dt.UTC)}},
    )  # fmt: skip
    return feed


def _topic_id(admin: AdminClient, topic: str) -> str:
    """Return Kafka's id of a topic: one that was deleted and created again has another."""
    try:
        return retrying(
            lambda: str(kafka_admin.answer(admin.describe_topics(TopicCollection([topic]))[topic]).topic_id),
            KafkaException,
            Deadline(ANSWER_TIMEOUT_S),
            POLL_EVERY_S,  # a new topic may not be known to every broker yet
            passes=lambda error: error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART,
        )
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"Kafka does not describe {topic} ({error.args[0].str()})", "check the brokers and permissions"
        ) from error


def _run_of(database: Database, feed: LiveFeed, topic_id: str) -> int:
    """Return the feed's run: a new one if it never ran, or if its topic was replaced."""
    feeds = database[FEEDS]
    found = feeds.find_one({"_id": feed.feed})
    if found is None:
        run = JobStore(database).next_run()
        fields = {"topic": feed.topic, "topic_id": topic_id, "run": run}
        try:
            feeds.insert_one({"_id": feed.feed, **fields, "created_at": dt.datetime.now(dt.UTC)})
        except DuplicateKeyError:
            return _run_of(database, feed, topic_id)  # another host was first
        return run
    if found["topic_id"] != topic_id:
        feeds.update_one(
            {"_id": feed.feed, "topic_id": found["topic_id"]},
            {"$set": {"topic_id": topic_id, "run": JobStore(database).next_run()}},
        )
        found = feeds.find_one({"_id": feed.feed}) or found  # by another host, if it was first
    return int(found["run"])


def _commit_beginnings(kafka: Mapping[str, Any], group: str, topic: str, partitions: int, *, reset: bool) -> None:
    """Commit the first record's offset on partitions where the group has no committed offset.

    No worker may join a group without committed offsets (decision 2). `reset`: the committed offsets belong to a
    deleted topic of the same name.
    """
    once = partial(_commit_beginnings_once, kafka, group, topic, partitions, reset=reset)
    try:
        kafka_admin.coordinated(once, COORDINATOR_TIMEOUT_S)
    except KafkaException as error:
        raise ServiceUnreachableError(
            f"Kafka does not return the offsets of group {group} ({error.args[0].str()})",
            "check the brokers and permissions",
        ) from error


def _commit_beginnings_once(kafka: Mapping[str, Any], group: str, topic: str, partitions: int, *, reset: bool) -> None:
    committed = kafka_admin.committed_offsets(kafka, group, topic, partitions)
    if all(offset >= 0 for offset in committed) and not reset:
        return
    oldest = kafka_admin.oldest_offsets(kafka, topic, partitions)
    begin = [offset if offset >= 0 and not reset else first for offset, first in zip(committed, oldest, strict=True)]
    kafka_admin.commit_offsets(kafka, group, topic, begin)


def feed_of(database: Database, name: str) -> LiveFeed:
    """Return a feed that was prepared. Raises BadInputError if there is none."""
    found = database[FEEDS].find_one({"_id": name})
    if found is None or "partitions" not in found:
        raise BadInputError(f"there is no live feed {name}", "crm-replay live creates it")
    return LiveFeed(
        job_id=f"live:{name}",
        run=found["run"],
        partitions=found["partitions"],
        mapping_path=found["mapping_path"],
        table_account=found["table_account"],
        feed=name,
        topic=found["topic"],
        topic_id=found["topic_id"],
        visibility_delay_s=found["visibility_delay_s"],
    )


def environment_of(feed: LiveFeed, connections: Connections) -> dict[str, str]:
    """Return the environment of a worker of the feed."""
    return {**connections.environment(), "CRM_REPLAY_JOB": feed.model_dump_json(), "CRM_REPLAY_LIVE": "1"}


def join(module: str, name: str, connections: Connections) -> None:
    """Become a worker of a feed that was prepared; does not return."""
    database = connect(connections, app_name="crm-replay-live")
    try:
        feed = feed_of(database, name)
    finally:
        database.client.close()
    command = python_module(module)
    os.execve(command[0], command, child_environment(**environment_of(feed, connections)))  # noqa: S606 - our own module


def run_feed(options: LiveOptions, connections: Connections, view: RunView) -> None:
    """Run the feed's processes on this host until SIGINT or SIGTERM.

    Raises BadInputError before anything is changed, and ReplayError if a process cannot even start.
    """
    connections.require("kafka_bootstrap_servers", "mongodb_url")
    require_writable(options.home)
    database = connect(connections, app_name="crm-replay-live")
    try:
        feed: LiveFeed | None = prepare(options, connections, database)
        with stop_on_signals() as stop:
            while feed is not None:
                try:
                    _run_prepared(feed, options, connections, database, view, stop)
                except TopicReplacedError as error:
                    view.note(f"feed {feed.feed}: {error}")
                    feed = _prepare_again(options, connections, database, view, stop)
                else:
                    break
            view.note(f"feed {options.feed}: stopped; the same command continues")
    finally:
        database.client.close()


def _run_prepared(
    feed: LiveFeed,
    options: LiveOptions,
    connections: Connections,
    database: Database,
    view: RunView,
    stop: threading.Event,
) -> None:
    """Run the feed until `stop`. Raises TopicReplacedError when its topics are not those it was prepared for."""
    over = threading.Event()
    refresher = Refresher(feed, options, connections, view, over)
    refresher.publish()
    refresher.start()
    try:
        with Supervisor() as supervisor:
            for process in _processes(feed, options, connections):
                supervisor.add(process)
            view.note(f"feed {feed.feed}: reading {feed.topic} ({feed.partitions} partitions), run {feed.run}")
            _watch(supervisor, feed, connections, database, view, stop)
    finally:
        over.set()
        refresher.join()


def _prepare_again(
    options: LiveOptions, connections: Connections, database: Database, view: RunView, stop: threading.Event
) -> LiveFeed | None:
    """Return the feed prepared for the present topics; None if stopped before that was possible.

    Waits for the source topic: its owner creates it, with the number of partitions.
    """
    reported_at = 0.0
    while not stop.is_set():
        try:
            admin = kafka_admin.client(connections.kafka())
            if options.topic in admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics:
                return prepare(options, connections, database)
            what = f"{options.topic} does not exist"
        except (ReplayError, KafkaException, PyMongoError) as error:
            what = (
                error.what if isinstance(error, ReplayError) else f"a server does not answer ({type(error).__name__})"
            )
        if not reported_at or time.monotonic() - reported_at >= REPORT_EVERY_S:
            reported_at = time.monotonic()
            view.note(f"feed {options.feed}: {what}; waiting")
        stop.wait(POLL_EVERY_S)
    return None


def _watch(
    supervisor: Supervisor,
    feed: LiveFeed,
    connections: Connections,
    database: Database,
    view: RunView,
    stop: threading.Event,
) -> None:
    """Keep the processes alive until `stop`; retry after an outage that lasts longer than their own retries.

    Raises TopicReplacedError when one of them has ended for that reason.
    """
    reported_at = time.monotonic()
    while not stop.wait(POLL_EVERY_S):
        try:
            if ended := supervisor.check():
                if all(process.name.startswith(PROCESSORS) for process in ended):
                    _drain(supervisor, feed, connections, stop)
                raise TopicReplacedError(ended[0].last_line())
        except ProcessGaveUpError as error:
            if all(process.restarts == 0 for process in supervisor.processes):
                raise  # it has never run: a restart would end the same way
            _require_same_partitions(feed, connections)
            view.note(f"{error.what}; trying again in {PAUSE_S:.0f} s")
            stop.wait(PAUSE_S)
            for process in supervisor.processes:
                process.crashes_in_a_row = 0
        if time.monotonic() - reported_at >= REPORT_EVERY_S:
            reported_at = time.monotonic()
            try:
                view.note(line_of(status_of(feed, connections, database)))
            except (PyMongoError, KafkaException, ReplayError) as error:
                view.note(f"the status cannot be read ({type(error).__name__})")


def _drain(supervisor: Supervisor, feed: LiveFeed, connections: Connections, stop: threading.Event) -> None:
    """Wait, for a bounded time, until the sinks have written the outcomes of the replaced topic."""
    processors = [process for process in supervisor.processes if process.name.startswith(PROCESSORS)]
    for process in processors:
        process.finishes = True
        process.signal(signal.SIGTERM)
    deadline = Deadline(DRAIN_MAX_S)
    while not deadline.passed and not stop.wait(POLL_EVERY_S):
        try:
            supervisor.check()
            if not any(process.running for process in processors) and not _lag(
                connections.kafka(), feed.topics.sink_group, feed.topics.outcomes, feed.partitions
            ):
                return
        except (ReplayError, KafkaException):
            continue  # an outage: it may be over in time


def _require_same_partitions(feed: LiveFeed, connections: Connections) -> None:
    """Raise ReplayError if the topic has more partitions by now: their workers lack what `prepare` creates."""
    try:
        topics = kafka_admin.client(connections.kafka()).list_topics(timeout=ANSWER_TIMEOUT_S).topics
    except (ReplayError, KafkaException):
        return  # an outage, and perhaps the only cause
    found = len(topics[feed.topic].partitions) if feed.topic in topics else 0
    if found != feed.partitions:
        raise ReplayError(
            f"{feed.topic} has {found} partitions now, and had {feed.partitions}", "run the same command again"
        )


def _processes(feed: LiveFeed, options: LiveOptions, connections: Connections) -> Iterator[Supervised]:
    """Yield every process of the feed on this host."""
    logs = options.home / "logs" / f"feed-{feed.feed}" / f"run-{feed.run}"
    for role, count in ((PROCESSORS, options.processors), ("sink", options.sinks)):
        for number in range(count):
            name = f"{role}-{number}"
            # With the supervisor's pid: two on one host are different members, a restart by one keeps the member.
            worker = f"{socket.gethostname()}-{os.getpid()}-{name}"
            env = child_environment(**environment_of(feed, connections), **of_children(), CRM_REPLAY_WORKER=worker)
            yield Supervised(
                name,
                python_module(role),
                env,
                logs / f"{name}.log",
                final_codes=frozenset({ExitCode.TOPIC_REPLACED}),
                hopeless_codes=frozenset({ExitCode.BAD_INPUT}),
            )


class Refresher:
    """Publishes the CRM's users and names for the feed, once and then at every interval, in a thread of its own."""

    def __init__(
        self, feed: LiveFeed, options: LiveOptions, connections: Connections, view: RunView, stop: threading.Event
    ) -> None:
        """Without CRM_AUDIT_DATABASE_URL nothing is published: another host has to do it."""
        self._feed = feed
        self._options = options
        self._connections = connections
        self._view = view
        self._stop = stop
        self._mapping = load(options.mapping_path or None)
        self._codec = codec_for(connections.schema_registry_url)
        self._thread = threading.Thread(target=self._refresh, name="refresher", daemon=True)

    def publish(self) -> tuple[int, int]:
        """Publish once; return how many users and names."""
        if not self._connections.crm_audit_database_url:
            self._view.note("CRM_AUDIT_DATABASE_URL is not set: another host has to publish users and names")
            return 0, 0
        users, names = references.publish_feed(
            self._connections.crm_audit_database_url,
            self._mapping,
            kafka=self._connections.kafka(),
            topics=self._feed.topics,
            codec=self._codec,
            with_referents=self._options.with_referents,
        )
        return users, names

    def start(self) -> None:
        """Continue in the background."""
        if self._connections.crm_audit_database_url and self._options.refresh_s > 0:
            self._thread.start()

    def join(self) -> None:
        """Wait for the thread, after `stop` was set."""
        if self._thread.is_alive():
            self._thread.join(ANSWER_TIMEOUT_S)

    def _refresh(self) -> None:
        while not self._stop.wait(self._options.refresh_s):
            try:
                self.publish()
            except (ReplayError, KafkaException) as error:  # an outage: the tables stay unchanged
                why = error.what if isinstance(error, ReplayError) else error.args[0].str()
                self._view.note(f"users and names could not be refreshed ({why})")


def status_of(feed: LiveFeed, connections: Connections, database: Database) -> LiveStatus:
    """Return the feed's counts over all its runs, and its lag. Raises what the clients raise."""
    kafka, topics = connections.kafka(), feed.topics
    return LiveStatus(
        feed=feed,
        accounts=totals_by_account(database[PROGRESS], feed.feed),
        processors_lag=_lag(kafka, topics.processors_group, topics.replay, feed.partitions),
        sink_lag=_lag(kafka, topics.sink_group, topics.outcomes, feed.partitions),
    )


def _lag(kafka: Mapping[str, Any], group: str, topic: str, partitions: int) -> int:
    """Return how many records of a topic a group has not handled."""
    committed = kafka_admin.committed_offsets(kafka, group, topic, partitions)
    ends = kafka_admin.end_offsets(kafka, topic, partitions)
    oldest = kafka_admin.oldest_offsets(kafka, topic, partitions)
    done = [offset if offset >= 0 else first for offset, first in zip(committed, oldest, strict=True)]
    return sum(max(0, end - at) for end, at in zip(ends, done, strict=True))


def line_of(status: LiveStatus) -> str:
    """Return the whole feed in one line."""
    totals = status.accounts.values()
    skipped: dict[str, int] = {}
    for each in totals:
        for reason, count in each.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    parts = [
        f"{sum(t.migrated for t in totals):,} logs of {len(status.accounts):,} accounts",
        *(f"{count:,} {reason}" for reason, count in sorted(skipped.items())),
        f"{sum(t.failed_total + t.foreign_total for t in totals):,} dead letters",
        f"lag {status.processors_lag:,} + {status.sink_lag:,}",
    ]
    return f"feed {status.feed.feed}: " + ", ".join(parts)
