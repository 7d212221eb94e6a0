"""The lineage of one source row, collected from every server, with the rule that decided.

Parts are independent: a server that is down, a topic that is gone or an account without a job costs its own part only,
and the lineage lists the unavailable parts. Nothing is changed, no consumer group is joined.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from confluent_kafka import KafkaException
from psycopg import sql
from pymongo.errors import PyMongoError

from ops.checks.explain.lineage import Lineage, Row, Step, candidates, out_of_scope, run_of, steps
from ops.checks.verify.compare import TOLERANT, body_of, differences, expected_document
from ops.checks.verify.expected import Expected, expected_of
from ops.dead_letters.feed import outcomes_in_feed
from ops.dead_letters.read import attempt_of, attempts_of, read_letters
from ops.feed.feed import feed_of
from ops.jobs import migrations
from ops.jobs.jobs import Job
from ops.jobs.letters import moment, printable
from ops.jobs.store import JobStore
from ops.kafka import admin as kafka_admin
from ops.kafka.rows import Topics, partition_of
from ops.progress import RunView
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.answers import TableLookups, decoded
from processors.lookups.directory import UserDirectory
from processors.lookups.tables import ReferenceTables
from producer.audits import UNDECODABLE, AuditReader, Limits, answering, connect, resolve
from producer.core import EPOCH_2000_US
from producer.cursor import EARLIEST
from producer.settings import ProducerSettings
from producer.topics import message_bytes_max
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.identity import SOURCE_TAG, external_id_of
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.process.mongodb import connect as connect_mongodb
from schemas.records import ActivityLog, AuditEvent, DeadLetter, SkippedRecord
from schemas.source.mapping import SourceMapping, load
from schemas.source.person import record_key
from schemas.topics import AccountTopics
from schemas.vocabulary import DeadLetterCause, SkipReason

LOAD_TIMEOUT_S = 900.0
JOBS_MAX = 1_000
NAMED_MAX = 20  # of anything that is listed on a terminal; --json has all
SERVERS = {"postgresql": "crm_audit_database_url", "kafka": "kafka_bootstrap_servers", "mongodb": "mongodb_url"}
EQUAL = "equal to what the row becomes now"


class _Collector:
    """Queries the servers one after the other and records those that do not respond."""

    def __init__(
        self,
        account: str,
        audit_id: int,
        connections: Connections,
        mapping_path: str,
        view: RunView,
        feed: str = "",
    ) -> None:
        self.lineage = Lineage(account, audit_id)
        self._account = account
        self._id = audit_id
        self._connections = connections
        self._mapping_path = mapping_path
        self._view = view
        self._names = AccountTopics.of(account)
        self._feed = feed
        self._down: dict[str, str] = {}  # server -> why
        self._topics: Any = None  # a Topics; like the database, there once `_open` has reached it
        self._database: Database | None = None
        # Findings of one part for the next; None where it was unavailable.
        self._job: Job | None = None
        self._mapping: SourceMapping = load(None)
        self._row: Row | None = None
        self._key: str | None = None
        self._expected: Expected | None = None

    def collect(self) -> Lineage:
        """Return the whole lineage. Raises BadInputError for what the caller has to fix."""
        try:
            self._open()
            self._query("job", "mongodb", self._collect_job)
            self._mapping = load(self._mapping_path or (self._job.mapping_path if self._job else "") or None)
            self._query("source", "postgresql", self._collect_source)
            self._query("key", "postgresql", self._collect_key)
            self._query("published", "kafka", self._collect_published)
            self._query("decision", "kafka", self._collect_decision)
            self._query("outcome", "kafka", self._collect_outcome)
            self._query("document", "mongodb", self._collect_document)
            self._query("dead letters", "kafka", self._collect_dead_letters)
            if self._feed and "mongodb" in self._down:
                self.lineage.not_looked_at["live feed"] = self._down["mongodb"]
            elif self._feed:
                self._query("live feed", "kafka", self._collect_feed)
        finally:
            if self._database is not None:
                self._database.client.close()
        if not self.lineage.looked_at:
            raise ServiceUnreachableError("no server could be queried", "; ".join(sorted(set(self._down.values()))))
        return self.lineage

    def _open(self) -> None:
        """Reach Kafka and MongoDB; PostgreSQL is reached when it is read."""
        connections = self._connections
        self._down |= {
            server: f"{name.upper()} is not set" for server, name in SERVERS.items() if not getattr(connections, name)
        }
        if len(self._down) == len(SERVERS):
            connections.require(*SERVERS.values())
        if "kafka" not in self._down:
            try:
                kafka_admin.client(connections.kafka())
                self._topics = Topics(connections.kafka(), connections.schema_registry_url)
            except ServiceUnreachableError as error:
                self._down["kafka"] = error.what
        if "mongodb" not in self._down:
            try:
                self._database = connect_mongodb(connections, app_name="crm-replay-explain")
                migrations.require_current(self._database, older_will_do=True)
            except ServiceUnreachableError as error:
                self._down["mongodb"] = error.what

    def _query(self, part: str, server: str, collect: Callable[[], None]) -> None:
        """Collect a part of the lineage; an outage ends this part only. A wrong mapping or account ends the command."""
        if server in self._down:
            self.lineage.not_looked_at[part] = self._down[server]
            return
        try:
            collect()
        except ServiceUnreachableError as error:
            self._down[server] = error.what
            self.lineage.not_looked_at[part] = error.what
        except BadInputError:
            raise
        except ReplayError as error:
            self.lineage.not_looked_at[part] = error.what
        except PyMongoError as error:
            self.lineage.not_looked_at[part] = f"MongoDB does not answer ({type(error).__name__})"
        except KafkaException as error:
            self.lineage.not_looked_at[part] = f"Kafka does not answer ({error.args[0].str()})"
        else:
            self.lineage.looked_at.add(server)

    def _collect_job(self) -> None:
        assert self._database is not None
        store = JobStore(self._database)
        job = self._job = store.latest(self._account)
        if job is None:
            self.lineage.add("job", None, "the account has no job")
            return
        self._partials = [each for each in store.jobs(self._account, JOBS_MAX) if each.partial and each.run > job.run]
        facts = {
            "job_id": job.job_id,
            "status": job.status.value,
            "run": job.run,
            "started_at": job.started_at.isoformat(),
            "top_audit_id": job.top_audit_id,
            "cutoff": job.cutoff.isoformat(),
            "partitions": job.partitions,
            "begin_offsets": list(job.begin_offsets),
            "replays_of_parts_since": [each.run for each in self._partials],
        }
        line = f"{job.job_id}, {job.status}, run {job.run} of {job.started_at:%Y-%m-%d %H:%M:%S} UTC"
        parts = f"{len(self._partials)} replays of chosen rows since" if self._partials else ""
        since = f"created from {job.reads_from.isoformat()}" if job.reads_from > EARLIEST else "whenever created"
        bounds = f"rows up to {job.top_audit_id}, {since}"
        self.lineage.add("job", facts, line, bounds, *filter(None, [parts]))

    def _collect_source(self) -> None:
        row = self._row = self._read_row()
        why = out_of_scope(row, self._id, self._mapping, self._job)
        facts: dict[str, Any] = {"exists": row.exists, "of_account": row.ours, "out_of_scope": why}
        if row.ours:
            created = moment(row.created_at_us).isoformat() if row.created_at_us is not None else None
            facts |= {"auditable_type": row.auditable_type, "action": row.action, "created_at": created}
            facts["defect"] = {"cause": row.defect, "detail": row.defect_detail} if row.defect else None
            lines = [
                f"{printable(row.auditable_type)} {printable(row.action)}, created {created or 'at no known time'}"
            ]
            lines += [f"not read by a replay: {reason}" for reason in why] or ["read by a replay"]
            if row.defect:
                lines.append(f"{row.defect}: {row.defect_detail}")
        else:
            lines = why
        self.lineage.add("source", facts, *lines)

    def _read_row(self) -> Row:
        """Return the row. Of another account's row only its existence is read."""
        dsn = self._connections.crm_audit_database_url
        with closing(connect(dsn)) as db:
            source = resolve(db, self._mapping, self._account)
            ours: sql.Composable = sql.SQL("true")
            if source.account_column is not None:
                ours = sql.SQL("COALESCE({} = %(account)s, false)").format(sql.Identifier(source.account_column))
            query = sql.SQL(
                "SELECT {ours}, COALESCE(auditable_type, ''), COALESCE(action, ''), created_at FROM {table}"
                " WHERE id = %(id)s"
            ).format(ours=ours, table=sql.Identifier(source.schema, source.relation))
            with answering("reading the row"):
                try:
                    found = db.execute(query, {"account": source.account, "id": self._id}, binary=True).fetchone()
                except UNDECODABLE:  # of what is needed to find it: such a row is of no type in scope
                    raise BadInputError(
                        f"row {self._id} has a type or an action that is no text in the database's encoding",
                        "correct it in the CRM, or leave it: a replay never reads the row",
                    ) from None
        if found is None:
            return Row(exists=False)
        is_ours, auditable_type, action, created_at = found
        if not is_ours:
            return Row(exists=True)
        row = Row(
            exists=True,
            auditable_type=auditable_type,
            action=action,
            created_at_us=None if created_at is None else created_at + EPOCH_2000_US,
            ours=True,
        )
        limits = Limits()
        if self._topics is not None and self._topics.spans(self._names.replay):
            limits = ProducerSettings.load().limits(message_bytes_max(self._connections.kafka(), self._names.replay))
        # The replay's own reader, with the row's type in scope, mapped or not.
        with closing(AuditReader(dsn, replace(source, scope=(auditable_type,)), EARLIEST, limits)) as reader:
            page = reader.late_page_after(self._id - 1, [(self._id, self._id)], 0)
        if page.events and (defect := page.defects.get(self._id)) is not None:
            return replace(row, event=page.events[0], defect=defect.cause.value, defect_detail=defect.detail)
        return replace(row, event=page.events[0] if page.events else None)

    def _event(self) -> AuditEvent | None:
        return self._row.event if self._row is not None else None

    def _collect_key(self) -> None:
        event = self._event()
        if event is None:
            return
        self._key = record_key(event, self._mapping.person)
        persons = candidates(event, self._mapping)
        summary = ", ".join(f"{each['person_id']} ({each['from']})" for each in persons[:NAMED_MAX])
        line = (
            f"{printable(self._key)}; persons, in the order tried: {summary}" if summary else f"{self._key}; no person"
        )
        self.lineage.add("key", {"record_key": self._key, "persons": persons}, line)

    def _collect_published(self) -> None:
        topic = self._names.replay
        held = self._topics.spans(topic)
        if not held:
            self.lineage.add(
                "published", {"topic": topic, "records": [], "why": "no topic"}, f"there is no topic {topic}"
            )
            return
        key = self._key
        expected = partition_of(key.encode(), len(held)) if key is not None else None
        begin = dict(enumerate(self._job.begin_offsets)) if self._job is not None else {}
        cut = sorted(p for p, span in held.items() if begin.get(p, 0) < span.low)
        records = self._on_replay_topic(begin, [expected] if expected is not None else list(held))
        if not records and expected is not None and len(held) > 1:
            # Published under another key: the row has changed since, or the topic had fewer partitions.
            records = self._on_replay_topic(begin, [partition for partition in held if partition != expected])
        facts = {"topic": topic, "expected_partition": expected, "records": records, "begin_is_gone": cut}
        lines = [
            f"partition {each['partition']}, offset {each['offset']} of {topic}{each['note']}"
            for each in records[-NAMED_MAX:]
        ]
        if expected is not None and any(each["partition"] != expected for each in records):
            lines.append(f"its key belongs on partition {expected} now")
        if not records:
            since = "since the job began" if begin else "within the topic's retention"
            where = f"; its key belongs on partition {expected}" if expected is not None else ""
            lines.append(f"not on {topic} {since}{where}")
            if cut:
                lines.append(f"Kafka has deleted the first records of partitions {', '.join(map(str, cut))}")
        self.lineage.add("published", facts, *lines)

    def _on_replay_topic(self, begin: dict[int, int], partitions: Sequence[int]) -> list[dict[str, Any]]:
        found = []
        for partition, offset, record in self._topics.find(
            self._names.replay, [self._id], self._view, begin, partitions
        ):
            note = ""
            if isinstance(record, AuditEvent):
                if record.company_sso_id not in ("", self._account):
                    note = ": a row of another account with the same id"
            elif isinstance(record, DeadLetter):
                note = f": as a dead letter ({record.cause}), for it could not be published whole"
            else:
                continue
            found.append({"partition": partition, "offset": offset, "note": note})
        return found

    def _collect_decision(self) -> None:
        if self._row is None:
            raise ReplayError("the source row could not be read")
        if (event := self._row.event) is None:
            return
        if self._row.defect:
            self._expected = DeadLetterCause(self._row.defect)
            decided = [Step("source", "refuse", f"{self._row.defect}: it never reaches the rules")]
        else:
            lookups = self._lookups(event)
            self._expected = expected_of(
                event, RowEncoder(Transformer(self._mapping, self._account), lookups, self._topics.codec)
            )
            decided = steps(event, self._mapping, self._account, lookups)
            if not isinstance(self._expected, bytes) and decided[-1].verdict == "pass":
                # What only shows when the document is made: too large, or a defect of a rule.
                decided.append(Step("document", "refuse", f"it cannot be made: {self._expected.value}"))
        result = self._result()
        facts = {
            "result": result,
            "rule": decided[-1].rule if decided[-1].verdict != "pass" else None,
            "steps": [{"rule": s.rule, "verdict": s.verdict, "text": s.text, **s.values} for s in decided],
        }
        lines = [f"{step.rule}: {printable(step.text)}" for step in decided]
        self.lineage.add("decision", facts, *lines, f"so it becomes {result}")

    def _result(self) -> str:
        """Return what the transformation makes of the row now, in one phrase."""
        if isinstance(self._expected, bytes):
            document = expected_document(body_of(self._expected))
            return f"a document, {document['category']}/{document['action']}"
        if isinstance(self._expected, SkipReason):
            return f"skipped: {self._expected.value}"
        assert self._expected is not None
        return f"a dead letter: {self._expected.value}"

    def _lookups(self, event: AuditEvent) -> TableLookups:
        """Return what the processors would look up: the reference topics as they are now, and the user directory."""
        names = self._names
        missing = [name for name in names.references if not self._topics.spans(name)]
        if missing:
            raise ReplayError(f"there is no topic {', '.join(missing)}")
        tables = ReferenceTables(
            self._connections.kafka(),
            {"contacts": names.contacts, "users": names.users, "referents": names.referents},
            self._topics.codec,
        )
        try:
            tables.load(LOAD_TIMEOUT_S)
        finally:
            tables.close()
        url = self._connections.user_directory_url
        directory = UserDirectory(url, self._account) if url else None
        lookups = TableLookups(decoded(tables.rows, self._topics.codec, self._account), directory)
        if directory is not None and event.user_id:

            async def fetch() -> None:
                async with directory:
                    await lookups.prefetch_users({event.user_id})

            asyncio.run(fetch())
            if directory.counts.failed or directory.counts.not_asked:
                self.lineage.not_looked_at["user directory"] = "it does not answer, so the actor is the fallback"
        return lookups

    def _collect_outcome(self) -> None:
        topic = self._names.outcomes
        if not self._topics.spans(topic):
            self.lineage.add("outcome", {"topic": topic, "records": []}, f"there is no topic {topic}")
            return
        begin = self._topics.offsets_at(topic, self._job.started_at) if self._job is not None else {}
        published = (self.lineage.facts.get("published") or {}).get("records") or []
        # An outcome is on the partition of its event. If nothing was found there, all are searched.
        partitions = sorted({each["partition"] for each in published}) or None
        records = [
            _outcome(found.partition, found.offset, found.record)
            for found in self._topics.find(topic, [self._id], self._view, begin, partitions)
            if not isinstance(found.record, AuditEvent)
        ]
        lines = [
            f"partition {each['partition']}, offset {each['offset']}, run {each['run']}: {each['what']}"
            f"{' (' + each['reason'] + ')' if each['reason'] else ''}"
            for each in records[-NAMED_MAX:]
        ]
        since = "since the job began" if begin else "within the topic's retention"
        self.lineage.add("outcome", {"topic": topic, "records": records}, *(lines or [f"none on {topic} {since}"]))

    def _collect_document(self) -> None:
        assert self._database is not None
        logs = self._database.get_collection(ACTIVITY_LOGS, codec_options=TOLERANT)
        external_id = external_id_of(self._id)
        found = logs.find_one({"company_sso_id": self._account, "external_id": external_id})
        if found is None:
            self.lineage.add("document", {"found": False, "external_id": external_id}, f"none with {external_id}")
            return
        run = run_of(found["_id"], self._id)
        of_replay = found.get("source_tag") == SOURCE_TAG
        facts: dict[str, Any] = {
            "found": True,
            "_id": str(found["_id"]),
            "external_id": external_id,
            "of_replay": of_replay,
            "run": run,
            "customer_id": str(found.get("customer_id")),
            "differs": None,
            "enriched": None,
        }
        writer = f"written by run {run}" if run else "not written by a run of the replay"
        lines = [f"{found['_id']}, {writer}, customer {found.get('customer_id')}"]
        if not of_replay:
            lines.append(f"it has no source_tag {SOURCE_TAG}: the live feed's")
        elif isinstance(self._expected, bytes):
            differs, enriched = differences(expected_document(body_of(self._expected)), found)
            facts |= {"differs": list(differs), "enriched": enriched}
            lines.append(f"differs from what the row becomes now: {', '.join(differs)}" if differs else EQUAL)
            if enriched:
                lines.append("metadata has been added since")
        elif self._expected is not None:
            facts["differs"] = ["(the row becomes no document now)"]
            lines.append(f"but the row becomes none now: {self._result()}")
        self.lineage.add("document", facts, *lines)

    def _collect_dead_letters(self) -> None:
        letters = [letter for letter in read_letters(self._topics, self._names) if letter.audit_id == self._id]
        shown = [
            {
                "offset": letter.offset,
                "cause": letter.cause,
                "detail": letter.detail,
                "run": letter.run,
                "failed_at": moment(letter.failed_at_us).isoformat(),
                "partition": letter.source_partition,
                "source_offset": letter.source_offset,
            }
            for letter in letters
        ]
        retries = []
        if self._database is not None:
            retries = [attempt_of(one, self._id) for one in attempts_of(self._database, self._account, self._id)]
        lines = [
            f"offset {each['offset']}, run {each['run']}, {each['failed_at']}: {each['cause']}"
            f" ({printable(str(each['detail']))})"
            for each in shown[-NAMED_MAX:]
        ]
        lines += [
            f"retried {one['at']} by {one['who']} ({printable(one['reason'])}): {one['outcome']}" for one in retries
        ]
        self.lineage.add("dead letters", {"letters": shown, "retries": retries}, *(lines or ["none"]))

    def _collect_feed(self) -> None:
        """Collect the row's outcomes in a live feed. A feed is of one CRM database, so the id alone names the row."""
        assert self._database is not None
        feed = feed_of(self._database, self._feed)
        if self._row is not None and not self._row.ours and self._row.exists:
            return  # another account's: nothing of it is shown
        came = outcomes_in_feed(feed, self._id, self._account, self._topics, self._view)
        shown = [
            {
                "offset": letter.offset,
                "cause": letter.cause,
                "detail": letter.detail,
                "failed_at": moment(letter.failed_at_us).isoformat(),
                "partition": letter.source_partition,
                "source_offset": letter.source_offset,
            }
            for letter in read_letters(self._topics, feed.topics)
            if letter.audit_id == self._id
        ]
        lines = [
            f"{feed.topic}/{each['partition']}@{each['source_offset']}: {each['what']}"
            f"{' (' + each['reason'] + ')' if each['reason'] else ''}"
            for each in came[-NAMED_MAX:]
        ]
        lines += [
            f"dead letter at offset {each['offset']}, {each['failed_at']}: {each['cause']}"
            f" ({printable(str(each['detail']))})"
            for each in shown[-NAMED_MAX:]
        ]
        facts = {"feed": feed.feed, "topic": feed.topic, "outcomes": came, "letters": shown, "end": _end(came, shown)}
        self.lineage.add("live feed", facts, *(lines or [f"no outcome of {feed.feed} on {feed.topics.outcomes}"]))


def _end(came: Sequence[Mapping[str, Any]], letters: Sequence[Mapping[str, Any]]) -> str:
    """Return the outcome of a row's last passage through a feed; "" if it never came, or that is unknown."""
    if not came:
        return f"failed: {letters[-1]['cause']}" if letters else ""
    last = came[-1]
    if last["what"] == "skipped":
        return f"skipped: {last['reason']}"
    place = (last["partition"], last["source_offset"])
    refused = [each["cause"] for each in letters if (each["partition"], each["source_offset"]) == place]
    if last["what"] == "dead letter" or refused:  # by the processors, or of a log by the sink
        return f"failed: {[*refused, last['reason']][0]}"
    return ""  # a log: the document itself shows whether it was written


def _outcome(partition: int, offset: int, record: ActivityLog | SkippedRecord | DeadLetter) -> dict[str, Any]:
    """Return an outcome's fields for JSON."""
    what, reason = "activity log", ""
    if isinstance(record, SkippedRecord):
        what, reason = "skipped", record.reason
    elif isinstance(record, DeadLetter):
        what, reason = "dead letter", record.cause
    return {
        "partition": partition,
        "offset": offset,
        "run": record.run,
        "source_offset": record.source_offset,
        "what": what,
        "reason": reason,
    }


def explain_row(
    account: str, audit_id: int, connections: Connections, mapping: str, view: RunView, feed: str = ""
) -> Lineage:
    """Return the lineage of a row, with its part in a live feed if one is named.

    Raises BadInputError if account, mapping, source or feed are not as they should be.
    """
    return _Collector(account, audit_id, connections, mapping, view, feed).collect()
