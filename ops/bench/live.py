"""`crm-replay bench --stage live`: how long after its cause an activity log of the live feed can be read.

A real `crm-replay live` (one processor, one sink) follows a sample CRM whose rows arrive at a steady rate: first as
records put onto the live topic, then as rows committed in PostgreSQL, which Debezium in Kafka Connect brings there. A
client of its own polls MongoDB for the documents. A latency runs from the moment at which a record was due, or from the
answer to a row's commit, to the answer of the poll that has found the document: at most `POLL_S` and a query too long,
never too short. A rate is kept whatever the feed does, so a feed that falls behind is seen as late documents.
"""

import contextlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import KafkaException, Producer

from ops.bench.measure import Meter, workers_of
from ops.feed import connector
from ops.feed.feed import LiveOptions, feed_of
from ops.jobs import migrations
from ops.kafka import admin as kafka_admin
from ops.local import sandbox, services
from ops.local.sample.contacts import seed_contacts
from ops.local.sample_crm import SAMPLE_YAML, load_sample, mapping_path
from ops.local.services import Extra
from ops.runner.processes import child_environment
from schemas.codec import Codec
from schemas.collections import ACTIVITY_LOGS, CONTACTS, FEEDS, PROGRESS
from schemas.errors import ReplayError
from schemas.identity import external_id_of
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from schemas.process.registry import codec_for
from schemas.records import AuditEvent
from schemas.source.mapping import load
from sink.indexes import UNIQUE_EXTERNAL_ID

NAME = "crm_replay_bench_live"
RATES = (100, 1_000)  # events a second
RATE_MAX = 64_000  # where the search for the highest rate ends
SECONDS = 20.0  # of each rate
WARM_UP_EVENTS = 200
POLL_S = 0.005  # between an answer and the next query
LATE_S = 1.0  # the 99th percentile that a rate has to stay under, to be one that the feed keeps
KEPT_SHARE = 0.95  # of the rate that was wanted
STEPS = 3  # halvings of the last doubling, in the search for the highest such rate
GIVE_UP_S = 120.0  # after the last event: its document is missing
LOOK_UP_MAX = 1_000  # documents per query
WRITERS = 8  # connections that commit rows
STARTED_WITHIN_S = 180.0
PARTITIONS = 4
TOPIC, POSTGRESQL = "topic", "postgresql"


@dataclass(frozen=True, slots=True)
class Latencies:
    """Events at one rate, and how long each took to its document."""

    begin: str  # where the latency begins: TOPIC or POSTGRESQL
    rate: int  # events a second that were wanted
    kept_rate: float  # events a second, from the first to the last
    seconds: Sequence[float]  # of each event, sorted
    cpu_s: Mapping[str, float]  # of the feed's and the servers' processes

    def quantile(self, share: float) -> float:
        """Return the latency in seconds that this share of the events did not exceed."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def is_late(self) -> bool:
        """Whether the feed did not keep the rate, or the source did not."""
        return self.quantile(0.99) >= LATE_S or self.kept_rate < KEPT_SHARE * self.rate

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON line's object; times in milliseconds."""
        named = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
        return {
            "stage": "live",
            "from": self.begin,
            "rate": self.rate,
            "kept_rate": round(self.kept_rate),
            "events": len(self.seconds),
            **{name: round(self.quantile(share) * 1000, 1) for name, share in named.items()},
            "cpu_us_per_event": {name: round(cpu / len(self.seconds) * 1e6) for name, cpu in self.cpu_s.items()},
        }


@dataclass
class Watcher:
    """Polls MongoDB for the documents of audit ids, in a thread of its own, and notes when each was there."""

    connections: Connections
    is_running: Callable[[], bool]  # the feed
    due: dict[int, float] = field(default_factory=dict)  # audit id -> when its latency began
    latencies: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def expect(self, audit_id: int, since: float) -> None:
        """Look for a document from now on; `since` is of `time.monotonic`."""
        self.due[audit_id] = since

    def run(self) -> None:
        """Poll until stopped and every document was found. Raises ReplayError for a missing one."""
        database = connect(self.connections, app_name="crm-replay-bench")
        logs = database[ACTIVITY_LOGS]
        last_found = time.monotonic()
        try:
            while not (self._over.is_set() and not self.due):
                names = {external_id_of(audit_id): audit_id for audit_id in list(self.due)[:LOOK_UP_MAX]}
                query = {"company_sso_id": SAMPLE_YAML, "external_id": {"$in": list(names)}}
                found = list(logs.find(query, {"_id": 0, "external_id": 1}, hint=UNIQUE_EXTERNAL_ID.name))
                at = time.monotonic()
                for document in found:
                    self.latencies.append(at - self.due.pop(names[document["external_id"]]))
                last_found = at if found or not self._over.is_set() else last_found
                if at - last_found > GIVE_UP_S or not self.is_running():
                    raise ReplayError(f"{len(self.due)} documents of the live feed do not come")
                if len(found) < LOOK_UP_MAX // 2:
                    time.sleep(POLL_S)
        finally:
            database.client.close()

    def stop(self) -> None:
        """Let it end once every document is there."""
        self._over.set()


class Live:
    """A feed that runs, and the ways by which rows come to it."""

    def __init__(
        self,
        connections: Connections,
        topic: str,
        persons: Sequence[int],
        process: "subprocess.Popen[bytes]",
        servers: Mapping[str, int],
    ) -> None:
        """`persons` are contacts of the sample account, `servers` name -> pid."""
        self.connections, self.topic, self._persons = connections, topic, persons
        self._process, self._servers = process, servers
        self._codec: Codec = codec_for(connections.schema_registry_url)
        self._audit_id = 10**9  # above every id of the sample's own sequence

    def from_topic(self, rate: int, seconds: float) -> Latencies:
        """Put records onto the live topic at a rate."""
        producer = Producer({**self.connections.kafka(), "linger.ms": 0, "queue.buffering.max.messages": 1_000_000})

        def publish(watcher: Watcher, due: float) -> None:
            self._audit_id += 1
            person = self._persons[self._audit_id % len(self._persons)]
            watcher.expect(self._audit_id, due)
            producer.produce(self.topic, self._codec.encode(_event(self._audit_id, person)), str(person))
            producer.poll(0)

        def publish_all(watcher: Watcher) -> None:
            _at_rate(rate, seconds, lambda due: publish(watcher, due))
            producer.flush()

        return self._measure(TOPIC, rate, round(rate * seconds), publish_all)

    def from_postgresql(self, rate: int, seconds: float) -> Latencies:
        """Commit rows in PostgreSQL at a rate, each in a transaction of its own."""

        def commit(watcher: Watcher, writer: int) -> None:
            with psycopg.connect(self.connections.crm_audit_database_url, autocommit=True) as db:

                def insert(_due: float) -> None:
                    person = self._persons[(writer + int(time.monotonic() * 1000)) % len(self._persons)]
                    row = db.execute(_INSERT, (person,)).fetchone()
                    assert row is not None
                    watcher.expect(row[0], time.monotonic())

                _at_rate(rate / WRITERS, seconds, insert)

        def commit_all(watcher: Watcher) -> None:
            with ThreadPoolExecutor(WRITERS) as writers:
                for done in [writers.submit(commit, watcher, number) for number in range(WRITERS)]:
                    done.result()

        return self._measure(POSTGRESQL, rate, round(rate * seconds), commit_all)

    def _measure(self, begin: str, rate: int, events: int, send: Callable[[Watcher], None]) -> Latencies:
        watcher = Watcher(self.connections, lambda: self._process.poll() is None)
        meter = Meter(lambda: {**self._servers, **workers_of(self._process.pid)}).start()
        began = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            watching = thread.submit(watcher.run)
            try:
                send(watcher)
                sent_s = time.monotonic() - began
            finally:
                watcher.stop()
            watching.result()
        meter.stop()
        cpu_s = {name: cost.cpu_s for name, cost in meter.costs().items()}
        return Latencies(begin, rate, events / sent_s, sorted(watcher.latencies), cpu_s)


_INSERT = (
    "INSERT INTO audits (auditable_type, auditable_id, action, audited_changes, version, created_at) VALUES"
    " ('Crm::Person', %s, 'update', E'---\\nfirst_name:\\n- A\\n- B\\n', 1, now() AT TIME ZONE 'UTC') RETURNING id"
)


def measure(connections: Connections, home: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield a JSON line's object for each way and rate, and last the highest rate that the feed keeps.

    Raises ReplayError if the feed does not start or a document does not come.
    """
    own = sandbox.own_databases(connections, NAME)
    persons = _prepare(own)
    feed = f"bench{uuid.uuid4().hex[:8]}"  # as feeds and connectors can both be called
    options = LiveOptions(
        feed=feed,
        topic=f"crm.audits.{feed}",
        mapping_path=str(mapping_path(SAMPLE_YAML)),
        partitions=PARTITIONS,
        with_referents=False,
        home=home,
    )
    try:
        with _running(own, options, persons, say) as live:
            for rate in RATES:
                yield live.from_topic(rate, SECONDS).as_dict()
            with _connector(own, options, say):
                live.from_postgresql(WARM_UP_EVENTS, 1.0)
                for rate in RATES:
                    yield live.from_postgresql(rate, SECONDS).as_dict()
            yield from _highest_rate(live)
    finally:
        _forget(own, options)


def _highest_rate(live: Live) -> Iterator[dict[str, Any]]:
    """Yield what rates show, and last the highest that the feed keeps."""
    kept = 0
    for rate, found in search(lambda rate: live.from_topic(rate, SECONDS / 2), 2 * RATES[-1]):
        yield found.as_dict()
        kept = kept if found.is_late else max(kept, rate)
    yield {"stage": "live", "from": TOPIC, "p99_under_s": LATE_S, "highest_rate": kept}


def search(measure: Callable[[int], Latencies], first: int) -> Iterator[tuple[int, Latencies]]:
    """Yield rates and what they show: doubled until the feed is late, then half-way between kept and late.

    Ends when the two are an eighth of the late one apart, or the lowest of `RATES`; or at `RATE_MAX`.
    """
    kept, late, rate = 0, 0, first
    while True:
        found = measure(rate)
        yield rate, found
        if found.is_late:
            late = rate
        else:
            kept = rate
        if kept >= RATE_MAX or (late and late - kept <= max(late >> STEPS, RATES[0])):
            return
        rate = (kept + late) // 2 if late else 2 * rate


def _at_rate(rate: float, seconds: float, send: Callable[[float], None]) -> None:
    """Call `send` with the moment it was due, so often a second, however long the calls take."""
    began = time.monotonic()
    for number in range(round(rate * seconds)):
        due = began + number / rate
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        send(due)


def _event(audit_id: int, person: int) -> AuditEvent:
    return AuditEvent(
        audit_id=audit_id, id_range=0, created_at=time.time_ns() // 1000, auditable_type="Crm::Person",
        auditable_id=person, associated_type="", associated_id=0, user_type="", user_id=0, username="",
        action="update", audited_changes="---\nfirst_name:\n- A\n- B\n", changes_are_json=False, version=1, comment="",
        request_uuid="", company_sso_id=SAMPLE_YAML,
    )  # fmt: skip


def _prepare(connections: Connections) -> list[int]:
    """Load the sample CRM and its contacts; return the persons whose rows of today are the live feed's."""
    load_sample(connections.crm_audit_database_url)
    database = connect(connections)
    try:
        migrations.up(database)
        seed_contacts(database, accounts=[SAMPLE_YAML])
        database[ACTIVITY_LOGS].delete_many({"company_sso_id": SAMPLE_YAML})
        found = database[CONTACTS].find({"company_sso_id": SAMPLE_YAML, "crm_data.id": {"$exists": True}})
        return [int(contact["crm_data"]["id"]) for contact in found]
    finally:
        database.client.close()


@contextmanager
def _running(
    connections: Connections, options: LiveOptions, persons: Sequence[int], say: Callable[[str], None]
) -> Iterator[Live]:
    """Give a feed that has written documents already."""
    words = (f"--feed={options.feed}", f"--topic={options.topic}", f"--mapping={options.mapping_path}", "--no-names")
    command = [sys.executable, "-c", "from ops.cli.main import main; main()", "live", *words]
    environment = child_environment(**connections.environment(), CRM_REPLAY_HOME=str(options.home))
    log = options.home / "bench" / "live.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"a live feed starts; its log is {log}")
    servers = {str(found.service): found.pid for found in services.status() if found.pid}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        live = Live(connections, options.topic, persons, process, servers)
        live.from_topic(WARM_UP_EVENTS, 1.0)  # returns once all of them are there: both workers are at work
        yield live
    except ReplayError as error:
        raise ReplayError(error.what, f"see {log} and the feed's logs in {options.home}") from error
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _connector(connections: Connections, options: LiveOptions, say: Callable[[str], None]) -> Iterator[None]:
    """Have Debezium bring rows that are committed inside onto the feed's topic."""
    say("Kafka Connect with Debezium starts")
    url = services.up(extras=[Extra.DEBEZIUM], say=say).kafka_connect_url
    dsn = connections.crm_audit_database_url
    with connector.Connect(url) as connect_api:
        config = connector.connector_config(
            load(options.mapping_path),
            dsn,
            name=options.feed,
            topic=options.topic,
            account=SAMPLE_YAML,
            snapshot=False,
        )
        try:
            connect_api.put(options.feed, config)
            connector.wait_running(connect_api, dsn, options.feed, STARTED_WITHIN_S)
            yield
        finally:
            connector.remove(connect_api, dsn, options.feed)


def _forget(connections: Connections, options: LiveOptions) -> None:
    """Delete what the feed has made."""
    database = connect(connections)
    try:
        if database[FEEDS].find_one({"_id": options.feed}) is None:
            return  # it did not start
        feed = feed_of(database, options.feed)
        topics = feed.topics
        names = (topics.replay, topics.outcomes, topics.dead_letters, *topics.references)
        for future in kafka_admin.client(connections.kafka()).delete_topics([*names]).values():
            with contextlib.suppress(KafkaException):
                future.result()
        database[FEEDS].delete_one({"_id": options.feed})
        database[PROGRESS].delete_many({"job_id": feed.job_id})
        database[ACTIVITY_LOGS].delete_many({"company_sso_id": SAMPLE_YAML})
    finally:
        database.client.close()
