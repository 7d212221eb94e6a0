"""Names of topics and consumer groups, one set per account.

A legal topic name has `[a-zA-Z0-9._-]` and at most 249 characters, and Kafka's metrics take `.` and `_` for the same
character. So an account id keeps its letters, digits and hyphens; every other byte of its UTF-8 becomes `_xx` (hex).
That is reversible, hence unique, and no encoded id contains a dot, which separates the parts of a name.
"""

import re
from dataclasses import dataclass
from hashlib import sha256

from schemas.errors import BadInputError

LIVE_TOPIC = "crm.audits.live"
ACCOUNT_KEY = "@account:"  # begins a feed's referent that names an account; no CRM type begins like it
LIVE_FEED = "live"  # the name of a feed where there is only one
ENCODED_ACCOUNT_LENGTH_MAX = 200  # leaves room for the longest prefix within Kafka's 249
ACCOUNT_LENGTH_MAX = 255
_PLAIN = re.compile(rb"[a-zA-Z0-9-]")
_FEED = re.compile(r"[a-zA-Z0-9-]{1,60}")


def encode_account(company_sso_id: str) -> str:
    """Return the account id as a part of a topic name; two different ids never give the same part.

    Raises BadInputError for an id that is empty, too long, or holds control characters.
    """
    if not company_sso_id or len(company_sso_id) > ACCOUNT_LENGTH_MAX or not company_sso_id.isprintable():
        raise BadInputError(
            f"account {company_sso_id[:40]!r} is not a company_sso_id",
            f"give 1 to {ACCOUNT_LENGTH_MAX} printable characters",
        )
    encoded = "".join(chr(byte) if _PLAIN.match(bytes((byte,))) else f"_{byte:02x}" for byte in company_sso_id.encode())
    if len(encoded) > ENCODED_ACCOUNT_LENGTH_MAX:
        # `__` cannot come out of the encoding above, so a shortened name meets no other account's full name.
        encoded = f"{encoded[:100]}__{sha256(company_sso_id.encode()).hexdigest()}"
    return encoded


@dataclass(frozen=True, slots=True)
class AccountTopics:
    """Every topic and consumer group of one account."""

    replay: str
    outcomes: str
    dead_letters: str
    contacts: str
    users: str
    referents: str
    processors_group: str
    sink_group: str

    @classmethod
    def of(cls, company_sso_id: str) -> "AccountTopics":
        """Name them all; raises BadInputError for an illegal account id."""
        account = encode_account(company_sso_id)
        return cls(
            replay=f"crm.audits.replay.{account}",
            outcomes=f"crm.outcomes.{account}",
            dead_letters=f"crm.dead_letters.{account}",
            contacts=f"crm.reference.contacts.{account}",
            users=f"crm.reference.users.{account}",
            referents=f"crm.reference.referents.{account}",
            processors_group=f"crm.processors.{account}",
            sink_group=f"crm.sink.{account}",
        )

    @classmethod
    def of_feed(cls, feed: str, topic: str) -> "AccountTopics":
        """Name those of a live feed that reads `topic`: of many accounts, hence without a topic of contacts.

        No name of an account begins like these. Raises BadInputError for a feed's name that is none.
        """
        if not _FEED.fullmatch(feed):
            raise BadInputError(f"{feed[:40]!r} is no name of a live feed", "give 1 to 60 letters, digits or hyphens")
        return cls(
            replay=topic,
            outcomes=f"crm.feed.outcomes.{feed}",
            dead_letters=f"crm.feed.dead_letters.{feed}",
            contacts="",
            users=f"crm.feed.users.{feed}",
            referents=f"crm.feed.referents.{feed}",
            processors_group=f"crm.feed.processors.{feed}",
            sink_group=f"crm.feed.sink.{feed}",
        )

    @property
    def references(self) -> tuple[str, ...]:
        """The compacted topics that the processors' tables are loaded from; a feed has none of contacts."""
        return tuple(filter(None, (self.contacts, self.users, self.referents)))
