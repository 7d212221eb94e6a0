"""The live feed's parts: the same topology over a topic of many accounts that has no end.

What differs from a replay: the side of the watermark and the provenance tag; contacts are queried in MongoDB, because
they appear while the feed runs (`contacts` has the rule when a miss is final); every record gets an outcome each time
it arrives, since the rows of a feed are not ordered by id: one that the source sends twice has two outcomes, and the
unique index makes the second a duplicate.
"""

import time
from collections.abc import Sequence

from pydantic import Field, Json

from processors.app import Parts, Surroundings
from processors.batches import SourceRecord
from processors.encoding.transform import Transformer
from processors.feed.accounts import UnknownAccounts
from processors.feed.batches import AccountRules, FeedTransformer
from processors.feed.change_events import ChangeDecoder
from processors.feed.contacts import LiveContacts
from processors.feed.decoding import Decoded, FeedDecoder
from processors.feed.directory import LiveDirectory
from processors.feed.lookups import LiveLookups
from processors.feed.mongo import MongoContacts, database
from processors.lookups.directory import UserDirectory
from processors.lookups.tables import HighWater
from processors.settings import ProcessorSettings
from processors.tables import declare
from schemas.job import LiveFeed
from schemas.process.registry import SchemaLookup
from schemas.records import AuditEvent
from schemas.source import mapping as source_mapping

TOPIC_REPLACED_TO_DO = (
    "crm-replay live reads the new one from its beginning; crm-replay seam names rows that are missing"
)


class LiveSettings(ProcessorSettings):
    """What a worker of a live feed reads from its environment; every name has the prefix CRM_REPLAY_."""

    job: Json[LiveFeed] = Field(description="the feed, as JSON")
    run_records_max: int = Field(1000, ge=1, le=100_000, description="records that are handled and committed together")


class NoHighWater(HighWater):
    """A feed's rows are ordered by commit and not by id: a repetition cannot be recognized."""

    def __init__(self) -> None:
        """Always empty."""
        super().__init__(0)

    def is_republished(self, id_range: int, audit_id: int) -> bool:  # noqa: ARG002
        """Return False: the unique index decides."""
        return False

    def note(self) -> str:
        """Return nothing to commit with the offset."""
        return ""


def now_us() -> int:
    """Return the time now in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def feed_parts(feed: LiveFeed, around: Surroundings) -> Parts:
    """Return the parts of a feed's worker; declares the feed's tables on the app."""
    app, codec, servers = around.app, around.codec, around.connections
    declare(app, "users", feed.topics.users)
    declare(app, "referents", feed.topics.referents)

    mapping = source_mapping.load(feed.mapping_path)
    rules = Transformer(mapping, "", live=True)
    mongo = MongoContacts(database(servers))
    contacts = LiveContacts(mongo.ask, feed.visibility_delay_s, now_us=now_us)
    url = servers.user_directory_url
    directory = LiveDirectory((lambda account: UserDirectory(url, account)) if url else None)
    lookups = LiveLookups(app.tables, mapping.person, contacts, mongo, directory, rules.is_mapped)
    changes = ChangeDecoder(
        mapping,
        company_sso_id=feed.table_account,
        account_of=lookups.account_of,
        schema_of=SchemaLookup(servers.schema_registry_url) if servers.schema_registry_url else None,
    )
    decoder = FeedDecoder(codec, changes, mapping.named_now)
    accounts = UnknownAccounts(decoder, lookups.account_of)
    transform = AccountRules(rules, lookups.of).transform
    transformer = FeedTransformer(feed, codec, decoder, transform, around.metrics)

    async def prepare(records: Sequence[SourceRecord], decoded: Sequence[Decoded]) -> Sequence[Decoded]:
        decoded = await accounts.awaited(records, decoded)
        await lookups.prefetch([what for what in decoded if isinstance(what, AuditEvent) and what.company_sso_id])
        return decoded

    def counts() -> dict[str, int]:
        of_contacts = {f"contacts.{name}": count for name, count in contacts.counts.as_dict().items()}
        of_contacts["contacts.undecodable"] = mongo.undecodable
        of_directory = {f"directory.{name}": count for name, count in directory.counts().items()}
        of_changes = {f"changes.{reason}": count for reason, count in transformer.refused.items()}
        return {**rules.counts.as_dict(), **of_contacts, **of_directory, **of_changes}

    return Parts(
        transformer,
        prepare,
        lambda _: NoHighWater(),
        counts,
        directory.aclose,
        topic_replaced_to_do=TOPIC_REPLACED_TO_DO,
        topic_id=feed.topic_id,
        begins_traces=True,
    )
