"""The live feed's app: the same topology over a topic of many accounts that has no end.

What differs from a replay: the side of the watermark and the provenance tag; contacts are asked for in MongoDB, because
they appear while the feed runs (`contacts` says when a miss is final); every record gets its outcome whenever it
comes, for the rows of a feed do not rise by id: one that the source sends twice has two outcomes, and the unique index
makes the second a duplicate. An outcome goes to the partition its record came from, under the account as its key, so
that the sink can count by account.
"""

import asyncio
import gc
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from processors.app import BeforeAck, ReplayApp, RunHandler, add_agent, build_app, of_run
from processors.batches import KEY_BYTES_MAX, Decoded, RunTransformer, SourceRecord, Undecodable
from processors.batching import Run, Stretch
from processors.encoding import documents
from processors.encoding.transform import Transformer
from processors.feed.change_events import ChangeDecoder
from processors.feed.change_events import Refused as ChangeRefused
from processors.feed.contacts import LiveContacts, Row
from processors.feed.directory import LiveDirectory
from processors.feed.mongo import MongoContacts, database
from processors.lookups.answers import DecodedRows
from processors.lookups.directory import UserDirectory
from processors.lookups.tables import HighWater, ReferenceTables, TableRows
from processors.metrics import ProcessorMetrics
from processors.outcomes import Message, OutcomeProducer
from processors.rules.decide import Refused, Skip
from processors.settings import ProcessorSettings
from processors.worker import GC_THRESHOLD, first, serve_measured
from schemas.codec import Codec
from schemas.errors import UndecodableRecordError
from schemas.job import LiveFeed
from schemas.process import tracing
from schemas.process.connections import Connections
from schemas.process.registry import SchemaLookup, codec_for
from schemas.process.topic_watch import KafkaQuestions, TopicWatch
from schemas.process.tracing import Piece, Work
from schemas.records import AuditEvent, Contact, DeadLetter, Referent, SkippedRecord, SnapshotMarker, User
from schemas.source import mapping as source_mapping
from schemas.source.mapping import PersonRule
from schemas.source.person import person_candidates
from schemas.topics import ACCOUNT_KEY, ACCOUNT_LENGTH_MAX
from schemas.vocabulary import DeadLetterCause

log = logging.getLogger(__name__)

LIVE = "CRM_REPLAY_LIVE"  # in the environment of a process: it belongs to a live feed
ACCOUNT_WAIT_S = 90.0  # for an account to be published: accounts are, once a minute
ACCOUNT_AGAIN_S = 600.0
ACCOUNT_POLL_S = 0.25
TRANSFORMERS_MAX = 10_000  # accounts whose rules are kept at hand
FLUSH_TIMEOUT_S = 2.0


class LiveSettings(ProcessorSettings):
    """What a worker of a live feed reads from its environment; every name has the prefix CRM_REPLAY_."""

    job: LiveFeed = Field(description="the feed, as JSON")
    run_records_max: int = Field(1000, ge=1, le=100_000, description="records that are handled and committed together")


def is_wanted() -> bool:
    """Return whether this process belongs to a live feed."""
    return bool(os.environ.get(LIVE))


class NoHighWater(HighWater):
    """A feed's rows come in the order of their commits and not of their ids: no row can be told to be a repetition."""

    def __init__(self) -> None:
        """Begin and stay empty."""
        super().__init__(0)

    def is_republished(self, id_range: int, audit_id: int) -> bool:  # noqa: ARG002
        """Return False: the unique index decides."""
        return False

    def note(self) -> str:
        """Return nothing to commit with the offset."""
        return ""


class LiveApp(ReplayApp):
    """Never ends by itself."""

    async def on_stretches(self, stretches: Mapping[Any, Stretch]) -> None:
        """Take every record for new."""
        await super().on_stretches(stretches)
        self.high_waters = {stretch: NoHighWater() for stretch in stretches.values()}

    def check_end(self) -> None:
        """Do nothing: a feed has no end markers."""


class LiveLookups:
    """Answers for rows of any account, from the tables and from what was asked for a run of rows."""

    def __init__(
        self,
        rows: Mapping[str, TableRows],
        codec: Codec,
        person: PersonRule,
        contacts: LiveContacts,
        mongo: MongoContacts,
        directory: LiveDirectory,
        is_mapped: Callable[[AuditEvent], bool],
    ) -> None:
        """`rows` are the tables `users` and `referents`; `is_mapped` says of a row whether it needs a contact."""
        self._users = DecodedRows(rows["users"], codec, User, lambda _: True)
        self._referents = DecodedRows(rows["referents"], codec, Referent, lambda _: True)
        self._person = person
        self._contacts = contacts
        self._mongo = mongo
        self._directory = directory
        self._is_mapped = is_mapped

    async def prefetch(self, events: Sequence[AuditEvent]) -> None:
        """Return once the contacts of a run's rows are known or missing for good, and the directory was asked."""
        rows = [
            Row(event.company_sso_id, event.created_at, persons)
            for event in events
            if self._is_mapped(event) and (persons := person_candidates(event, self._person))
        ]
        emails: dict[str, set[str]] = {}
        for event in events:
            user = self.user(event.user_id) if event.user_id else None
            if user is not None and not user.deleted and user.email:
                emails.setdefault(event.company_sso_id, set()).add(user.email)
        await asyncio.gather(self._contacts.prepare(rows), self._directory.prefetch(emails))

    def contact(self, account: str, person_id: str) -> Contact | None:
        """Return the contact of this account with this CRM person id."""
        person = (account, person_id)
        try:
            return self._contacts.get(person)
        except KeyError:  # a row names a person in a way that `person_candidates` does not see: rare, and never wrong
            self._contacts.counts.unforeseen += 1
            return self._mongo.find([person]).get(person)

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, deleted or not."""
        return self._users.get(b"%d" % user_id)

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return what a CRM record is called."""
        return self._referents.get(f"{referent_type}:{referent_id}".encode())

    def account_of(self, value: str) -> str | None:
        """Return the account that a value of the account column stands for; None: not known, or not yet."""
        named = self._referents.get(f"{ACCOUNT_KEY}{value}".encode())
        return named.name if named is not None else None

    def sso_id(self, account: str, email: str) -> str | None:
        """Return the user's SSO id in this account, None if the directory does not know it."""
        return self._directory.sso_id(account, email)

    def of(self, account: str) -> "AccountLookups":
        """Return what a row of this account may ask."""
        return AccountLookups(self, account)

    @property
    def rejects(self) -> int:
        """Return how many table rows were unreadable."""
        return self._users.rejects + self._referents.rejects


class AccountLookups:
    """One account's view: `processors.rules.decide.Lookups`."""

    __slots__ = ("_account", "_all", "referent", "user")

    def __init__(self, every: LiveLookups, account: str) -> None:
        """Users and referents are the CRM's, whichever account asks."""
        self._all = every
        self._account = account
        self.user = every.user
        self.referent = every.referent

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact of the account with this CRM person id."""
        return self._all.contact(self._account, person_id)

    def sso_id(self, email: str) -> str | None:
        """Return what the user directory has said."""
        return self._all.sso_id(self._account, email)


class AccountRules:
    """The rules of every account that has been met, by one source mapping."""

    def __init__(self, rules: Transformer, lookups: Callable[[str], AccountLookups]) -> None:
        """`rules` are shared by all accounts; `lookups` gives an account's view."""
        self._rules = rules
        self._lookups = lookups
        self._of: dict[str, tuple[Transformer, AccountLookups]] = {}

    def transform(self, event: AuditEvent) -> bytes | Skip | Refused:
        """Return what the row becomes by its account's rules: the document as BSON, or why there is none."""
        account = event.company_sso_id
        known = self._of.get(account)
        if known is None:
            if len(self._of) >= TRANSFORMERS_MAX:
                self._of.clear()
            known = self._of[account] = (self._rules.for_account(account), self._lookups(account))
        return known[0].to_bson(event, known[1])


class PassedOver(NamedTuple):
    """A record that is about no row: a tombstone, a heartbeat, a transaction's marker."""


class LiveTransformer(RunTransformer):
    """Turns runs of a feed into outcomes: every record has one, but those that are about no row.

    A record is an audit event of our own schema, or a change event of the CRM's database (`change_events`).
    """

    def __init__(
        self,
        *args: Any,
        changes: ChangeDecoder,
        named_now: Callable[[AuditEvent], AuditEvent] = lambda event: event,
        **kwargs: Any,
    ) -> None:
        """`changes` decodes what is not ours; `named_now` calls types that were renamed by their names now."""
        super().__init__(*args, **kwargs)
        self._named_now = named_now
        self._changes = changes
        self.refused: Counter[str] = Counter()  # change events, by reason
        self._records: Sequence[SourceRecord] = ()  # of the last run

    def decode(self, records: Sequence[SourceRecord]) -> list[Any]:
        """Return what each record is, in order."""
        self._records = records
        return [self._decode_live(record) for record in records]

    def decode_refused_again(self, decoded: list[Any]) -> None:
        """Decode those change events of the last run once more whose account was not known."""
        for at, what in enumerate(decoded):
            if isinstance(what, ChangeRefused) and what.account:
                decoded[at] = self._decode_live(self._records[at])

    def _decode_live(self, record: SourceRecord) -> Decoded | ChangeRefused | PassedOver:
        if record.value is None:
            return PassedOver()
        try:
            ours = self._codec.decode(record.value)
        except UndecodableRecordError:
            what = self._changes.decode(record.key, record.value, getattr(record, "headers", None)) or PassedOver()
            return self._named_now(what) if isinstance(what, AuditEvent) else what
        if isinstance(ours, AuditEvent):
            return self._named_now(ours)
        if isinstance(ours, DeadLetter):
            return ours
        if isinstance(ours, SnapshotMarker):
            return PassedOver()
        return Undecodable(f"a {type(ours).__name__} stands where an AuditEvent belongs")

    def outcomes(
        self,
        records: Sequence[SourceRecord],
        decoded: Sequence[Any],
        partition: int,
        high: HighWater,  # noqa: ARG002
    ) -> list[Message]:
        """Return account and value of every outcome, in order."""
        metrics = self._metrics
        messages: list[Message] = []
        for record, what in zip(records, decoded, strict=True):
            account = ""
            if isinstance(what, AuditEvent):
                account = what.company_sso_id
                if not account or len(account) > ACCOUNT_LENGTH_MAX:
                    detail = "the row names no account"
                    value = self._dead_letter(record, what, partition, DeadLetterCause.WRONG_ACCOUNT, detail)
                    account = ""
                else:
                    value = self._outcome(record, what, partition)
            elif isinstance(what, Undecodable):
                value = self._dead_letter(record, None, partition, DeadLetterCause.UNDECODABLE_RECORD, what.detail)
            elif isinstance(what, DeadLetter):
                value = self._passed_on(record, what, partition)
            elif isinstance(what, ChangeRefused):
                self.refused[what.reason] += 1
                if not what.reason.loses_a_row and what.audit_id > 0:
                    skipped = SkippedRecord(what.audit_id, 0, record.offset, self._job.run, str(what.reason))
                    value = self._codec.encode(skipped)
                else:
                    value = self._refused_change(record, what, partition)
            else:
                metrics.markers += 1
                continue
            messages.append((account.encode("utf-8", "replace")[:KEY_BYTES_MAX], value))
        metrics.records_in += len(records)
        return messages

    def _refused_change(self, record: SourceRecord, refused: ChangeRefused, partition: int) -> bytes:
        """Return the dead letter of a change event that may hold a row; its cause is why it was refused."""
        letter = self._dead_letter(record, None, partition, DeadLetterCause.UNDECODABLE_RECORD, refused.detail)
        decoded = self._codec.decode_as(DeadLetter, letter)
        return self._codec.encode(decoded._replace(audit_id=refused.audit_id, cause=str(refused.reason)))


class Patience:
    """Pure: how long values of the account column are waited for that no publication has named yet.

    One that stays unknown is waited for again after ACCOUNT_AGAIN_S; until then its rows are dead letters. Each wait in
    vain halves the next one, so that together they delay a feed by at most 2 * ACCOUNT_WAIT_S in ACCOUNT_AGAIN_S.
    """

    def __init__(self) -> None:
        """Begin with no account given up."""
        self.wait_s = ACCOUNT_WAIT_S
        self._given_up: dict[str, float] = {}  # when each was given up

    def worth_waiting_for(self, unknown: Collection[str], now_s: float) -> set[str]:
        """Return those of the unknown values that have not been given up lately."""
        self._given_up = {value: at for value, at in self._given_up.items() if now_s - at < ACCOUNT_AGAIN_S}
        if not self._given_up:
            self.wait_s = ACCOUNT_WAIT_S
        return set(unknown) - self._given_up.keys()

    def give_up(self, unknown: Collection[str], now_s: float) -> None:
        """Note what is still unknown after a wait."""
        if unknown:
            self.wait_s /= 2
        self._given_up.update(dict.fromkeys(unknown, now_s))


class LiveHandler(RunHandler):
    """Has a run's contacts asked for before it is transformed."""

    _lookups: Any  # LiveLookups: what the replay's handler asks of its own is asked in `_prefetch` alone
    _transformer: LiveTransformer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin with no account given up."""
        super().__init__(*args, **kwargs)
        self._patience = Patience()

    def _traced(self, run: Run) -> tuple[Sequence[Piece], Work]:
        """Return the same as for a replay; what nobody has traced on its way here may begin a trace."""
        pieces, work = super()._traced(run)
        return pieces, work if work.followed else self._traces.begin("run", **of_run(run))

    async def _prefetch(self, decoded: Sequence[Decoded]) -> None:
        assert isinstance(decoded, list)
        await self._wait_for_accounts(decoded)
        await self._lookups.prefetch([what for what in decoded if isinstance(what, AuditEvent) and what.company_sso_id])

    async def _wait_for_accounts(self, decoded: list[Any]) -> None:
        """Have rows of an account that was made a moment ago decoded again once its account is known."""
        began = time.monotonic()
        unknown = {what.account for what in decoded if isinstance(what, ChangeRefused) and what.account}
        unknown = self._patience.worth_waiting_for(unknown, began)
        if not unknown:
            return
        log.info("%d accounts are not known yet; waiting for the next publication", len(unknown))
        while (left := [v for v in unknown if self._lookups.account_of(v) is None]) and (
            time.monotonic() - began < self._patience.wait_s
        ):
            await asyncio.sleep(ACCOUNT_POLL_S)
        self._patience.give_up(left, began)
        self._transformer.decode_refused_again(decoded)


def now_us() -> int:
    """Return the time now in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


async def run_live_worker(
    settings: LiveSettings, connections: Connections, before_ack: BeforeAck | None = None
) -> None:
    """Return after SIGTERM or SIGINT, with everything committed that was handled.

    Raises ReplayError for everything that keeps the worker from going on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    feed = settings.job
    traces = tracing.start("processors", feed=feed.feed, run=feed.run)
    metrics = ProcessorMetrics()
    codec = codec_for(connections.schema_registry_url)
    mapping = source_mapping.load(feed.mapping_path)
    mongo = MongoContacts(database(connections))
    contacts = LiveContacts(mongo.ask, feed.visibility_delay_s, now_us=now_us)
    url = connections.user_directory_url
    directory = LiveDirectory((lambda account: UserDirectory(url, account)) if url else None)
    references = {"users": feed.topics.users, "referents": feed.topics.referents}
    tables = ReferenceTables(connections.kafka(), references, codec)
    producer = OutcomeProducer(connections.kafka(), feed.topics.outcomes, settings.delivery_timeout_s)
    try:
        loading = asyncio.create_task(asyncio.to_thread(tables.load, settings.load_timeout_s, stop.is_set))
        if not await first(stop, loading):
            return
        metrics.table_load_s = tables.load_s
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        tables.follow()
        rules = Transformer(mapping, "", live=True)
        lookups = LiveLookups(tables.rows, codec, mapping.person, contacts, mongo, directory, rules.is_mapped)
        transform = AccountRules(rules, lookups.of).transform
        app = build_app(settings, connections, metrics, LiveApp, fetch_bytes_min=1)
        changes = ChangeDecoder(
            mapping,
            company_sso_id=feed.table_account,
            account_of=lookups.account_of,
            schema_of=SchemaLookup(connections.schema_registry_url) if connections.schema_registry_url else None,
        )
        transformer = LiveTransformer(
            feed, codec, transform, documents.encode, metrics, changes=changes, named_now=mapping.named_now
        )
        handler = LiveHandler(app, transformer, lookups, tables, producer, metrics, before_ack, traces)
        add_agent(app, feed.topics.replay, handler)

        def gather() -> None:
            metrics.table_entries = tables.sizes()
            metrics.table_rejects = lookups.rejects
            of_contacts = {f"contacts.{name}": count for name, count in contacts.counts.as_dict().items()}
            of_contacts["contacts.undecodable"] = mongo.undecodable
            of_directory = {f"directory.{name}": count for name, count in directory.counts().items()}
            of_changes = {f"changes.{reason}": count for reason, count in transformer.refused.items()}
            metrics.transformation = {**rules.counts.as_dict(), **of_contacts, **of_directory, **of_changes}

        about = {"account": "", "job_id": feed.job_id, "run": str(feed.run)}
        watch = TopicWatch(
            KafkaQuestions(connections.kafka()),
            feed.topics.replay,
            (feed.topics.outcomes, feed.topics.users, feed.topics.referents),
            topic_id=feed.topic_id,
            positions=app.resting_positions,
            to_do="crm-replay live reads the new one from its beginning; crm-replay seam names rows that are missing",
        )
        await asyncio.to_thread(watch.check_now)  # before the offsets of a topic that is gone are met
        await serve_measured(app, stop, metrics, gather, settings.metrics_interval_s, about, watch)
    finally:
        stop.set()
        await asyncio.to_thread(producer.close, FLUSH_TIMEOUT_S)
        await asyncio.to_thread(tables.close)
        await directory.aclose()
        await asyncio.to_thread(traces.close)
