"""A worker's state besides the present record: the reference tables, and the published high-water mark of a partition.

**Reference tables** (contacts, users, referents) are the account's compacted topics, complete in every worker: a row
can name a person whose key hashes to any partition. `processors.tables` declares them as Faust's, but they are read
here and not by Faust's recovery, for four reasons, all in faust-streaming 0.15.3, `tables/recovery.py` and `assignor/`:

- it waits only for the partitions of a GlobalTable that the assignor makes "active". The rest are standbys, read in the
  background after the worker has started: audits would meet a half-loaded table and end as `contact_not_found`;
- `flow_control.resume()` is called up to three times in one recovery while the fetcher runs, and each call clears the
  changelog queue. Its records are skipped permanently, since a later offset counts as "seen";
- recovery runs again at every rebalance, and an entry of an unknown partition is applied to the table before it;
- a table's partitions must equal those of the source topic, and any changelog brings the leader's own assignor.

So a plain consumer, assigned to all partitions and in no group, reads them to the end before the app joins its group,
and then follows changes in a thread of its own. A rebalance does not affect it.

**The published high-water mark** is, by id range, the highest audit id of a partition whose outcome is delivered. It is
the metadata of the committed offset: written by the same commit, so that it cannot be ahead of the offset (a
redelivered row would then be taken for a republished one and be lost), and needs no changelog. It is a cache: without
it a republished row is transformed once more, and the sink counts it once.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.codec import Codec
from schemas.errors import ReplayError, ServiceUnreachableError, UndecodableRecordError, UnreadableTopicError
from schemas.process.waiting import Deadline
from schemas.records import Contact, Record, Referent, User

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
NEW_TOPIC_TIMEOUT_S = 3.0  # a new topic may not be known to every broker yet
LOAD_BATCH = 20_000
UPDATE_BATCH = 1000
POLL_S = 0.1
LOAD_POLL_S = 0.02  # a poll lasts its time-out unless the batch is full: the delay after the last record
NOTE_BYTES_MAX = 4000  # Kafka's offset.metadata.max.bytes is 4096
PUBLISH_AGAIN = "crm-replay run publishes the references again"
TableRows = dict[bytes, bytes]
TYPES: Mapping[str, type[Record]] = {"contacts": Contact, "users": User, "referents": Referent}  # of the tables' rows


class TablesNotLoadedError(ReplayError):
    """The reference tables could not be read to their end, or are no longer kept up to date."""


class HighWater:
    """By id range, the highest audit id of one partition that has an outcome; a range is published in order.

    Pure; the note is what is stored. A range's number must not be reused for other ids within a run.
    """

    __slots__ = ("_by_range", "_run", "ended")

    def __init__(self, run: int, note: str = "") -> None:
        """Continue from a stored note; begins empty with a note of another run or of another program."""
        self._run = run
        self._by_range: dict[int, int] = {}
        self.ended = False  # this run's end marker has passed
        try:
            stored = json.loads(note) if note else {}
            if isinstance(stored, dict) and stored.get("run") == run:
                self._by_range = {int(id_range): int(audit_id) for id_range, audit_id in stored["high"].items()}
                self.ended = bool(stored["ended"])
        except (ValueError, KeyError, AttributeError, TypeError):
            log.warning("the committed offset's metadata is unknown; republished rows will be transformed again")

    def is_republished(self, id_range: int, audit_id: int) -> bool:
        """Return whether this row already has an outcome, and record that it has one."""
        if audit_id <= self._by_range.get(id_range, 0):
            return True
        self._by_range[id_range] = audit_id
        return False

    def note(self) -> str:
        """Return what to commit with the offset; the highest range numbers where all exceed Kafka's bound."""
        while True:
            text = json.dumps({"run": self._run, "ended": self.ended, "high": self._by_range}, separators=(",", ":"))
            if len(text) <= NOTE_BYTES_MAX:
                return text
            for id_range in sorted(self._by_range)[: len(self._by_range) // 4 + 1]:
                del self._by_range[id_range]


class ReferenceTables:
    """Rows of the compacted topics, key to framed Avro, both unchanged: compact, and decoded when looked up.

    A row that cannot be decoded is not treated as absent: its person's rows would be skipped, and a check would take
    their documents for superfluous. So a frame of another schema ends the loading, and with it the process; a row that
    cannot be read behind its frame ends it when it is looked up (`answers.DecodedRows`).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        topics: Mapping[str, str],
        codec: Codec,
        rows: Mapping[str, TableRows] | None = None,
    ) -> None:
        """`config` is confluent-kafka's; `topics` names the topic of each table, which is one of TYPES.

        `rows` are where each table's rows are put; None: into dicts of their own.
        """
        self.rows = dict(rows) if rows is not None else {table: TableRows() for table in topics}
        self.load_s = 0.0
        self._table_of = {
            topic: (self.rows[table], TYPES[table], codec.frame(TYPES[table])) for table, topic in topics.items()
        }
        self._codec = codec
        self._unreadable: dict[tuple[str, bytes], UnreadableTopicError] = {}  # by topic and key
        self._config = {
            **config,
            # Required by librdkafka, which looks up its coordinator; nothing is joined or committed. Under the prefix
            # of the topics, so that the rights on these cover it.
            "group.id": f"{min(topics.values())}.read",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100,  # also the delay until the end of an empty partition is detected
            "isolation.level": "read_committed",
            "queued.min.messages": 200_000,
            "queued.max.messages.kbytes": 64 * 1024,
            "fetch.max.bytes": 32 * 1024 * 1024,
            "max.partition.fetch.bytes": 8 * 1024 * 1024,
        }
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        return {table: len(rows) for table, rows in self.rows.items()}

    def load(self, timeout_s: float, stopping: Callable[[], bool] = lambda: False) -> None:
        """Read every partition to its end; blocks, and returns early if `stopping` returns True.

        Raises ServiceUnreachableError if Kafka does not answer, TablesNotLoadedError if a topic is missing or the end
        is not reached in time, UnreadableTopicError if the last value of a key is no record of the table.
        """
        began = time.monotonic()
        consumer = self._consumer = Consumer(self._config)
        left = self._assign_all(consumer)
        while left and not stopping():
            if time.monotonic() - began > timeout_s:
                raise TablesNotLoadedError(
                    f"the reference tables are not loaded after {timeout_s:.0f} s ({sum(self.sizes().values())} rows)",
                    "raise CRM_REPLAY_LOAD_TIMEOUT_S, or check the brokers",
                )
            try:
                self._apply(consumer.consume(LOAD_BATCH, LOAD_POLL_S), left)
            except KafkaException as error:
                raise TablesNotLoadedError(
                    f"the reference tables cannot be read ({error.args[0].str()})",
                    "check the brokers and permissions",
                ) from error
        for unreadable in self._unreadable.values():
            raise unreadable
        self.load_s = time.monotonic() - began

    def follow(self) -> None:
        """Keep the tables up to date in a thread of their own; after `load`."""
        self._thread = threading.Thread(target=self._follow, name="reference-tables", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise TablesNotLoadedError if the tables are no longer kept up to date."""
        if isinstance(self._failure, UnreadableTopicError):
            raise self._failure
        if self._failure is not None:
            raise TablesNotLoadedError(
                f"the reference tables can no longer be read ({self._failure})", "restart the worker"
            ) from self._failure

    def close(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _assign_all(self, consumer: Consumer) -> set[tuple[str, int]]:
        """Assign every partition from its beginning and return all of them."""
        every = [
            TopicPartition(topic, partition, OFFSET_BEGINNING)
            for topic in self._table_of
            for partition in self._partitions(consumer, topic)
        ]
        consumer.assign(every)
        return {(partition.topic, partition.partition) for partition in every}

    def _partitions(self, consumer: Consumer, topic: str) -> list[int]:
        deadline = Deadline(NEW_TOPIC_TIMEOUT_S)
        while True:
            try:
                metadata = consumer.list_topics(topic, timeout=ANSWER_TIMEOUT_S).topics[topic]
            except KafkaException as error:
                raise ServiceUnreachableError(
                    f"Kafka at {self._config['bootstrap.servers']} does not answer ({error.args[0].str()})",
                    "check KAFKA_BOOTSTRAP_SERVERS, or start the embedded servers: crm-replay services up",
                ) from error
            if metadata.error is None and metadata.partitions:
                return list(metadata.partitions)
            if not deadline.wait(POLL_S):
                raise TablesNotLoadedError(
                    f"topic {topic} does not exist", "publish the reference topics first: crm-replay produce"
                )

    def _apply(self, messages: list[Message], left: set[tuple[str, int]]) -> None:
        """Store rows; remove partitions that have been read to their end from `left`."""
        tables = self._table_of
        for message in messages:
            error = message.error()
            if error is None:
                key, value = message.key(), message.value()
                if key is None:
                    continue  # a compacted topic refuses it; there is no key to store it under
                topic = str(message.topic())
                rows, record_type, frame = tables[topic]
                if self._unreadable:
                    self._unreadable.pop((topic, key), None)
                if value is None:
                    rows.pop(key, None)
                    continue
                rows[key] = value
                if value.startswith(frame):
                    continue
                try:
                    self._codec.require_frame(record_type, value)
                except UndecodableRecordError as undecodable:
                    self._unreadable[topic, key] = UnreadableTopicError.at(
                        topic,
                        cast("int", message.partition()),
                        cast("int", message.offset()),
                        undecodable,
                        PUBLISH_AGAIN,
                    )
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - confluent-kafka's name for it
                left.discard((message.topic(), message.partition()))
            elif left or error.fatal():
                raise KafkaException(error)
            else:
                log.warning("reference tables: %s", error.str())  # librdkafka retries by itself

    def _follow(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        nothing_left: set[tuple[str, int]] = set()
        try:
            while not self._stopping.is_set():
                self._apply(consumer.consume(UPDATE_BATCH, POLL_S), nothing_left)
                for unreadable in self._unreadable.values():
                    raise unreadable
        except Exception as error:  # re-raised in the worker's thread
            self._failure = error
