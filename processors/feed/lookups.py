"""What the rules look up for a feed's rows of any account: users and names in tables, contacts in MongoDB."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from processors.feed.contacts import LiveContacts, Row
from processors.feed.directory import LiveDirectory
from processors.feed.mongo import MongoContacts
from processors.lookups.answers import Records
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.source.mapping import PersonRule
from schemas.source.person import person_candidates
from schemas.topics import ACCOUNT_KEY


class LiveLookups:
    """Look-ups for rows of any account, from the tables and from what was prefetched for a batch."""

    def __init__(
        self,
        tables: Mapping[str, Records[Any]],
        person: PersonRule,
        contacts: LiveContacts,
        mongo: MongoContacts,
        directory: LiveDirectory,
        is_mapped: Callable[[AuditEvent], bool],
    ) -> None:
        """`tables` are `users` and `referents`; `is_mapped` returns whether a row needs a contact."""
        self._users: Records[User] = tables["users"]
        self._referents: Records[Referent] = tables["referents"]
        self._person = person
        self._contacts = contacts
        self._mongo = mongo
        self._directory = directory
        self._is_mapped = is_mapped

    async def prefetch(self, events: Sequence[AuditEvent]) -> None:
        """Return once the contacts of a batch's rows are known or finally missing, and the directory was queried."""
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
        except KeyError:  # a row names a person in a way that `person_candidates` does not find: rare, and correct
            self._contacts.counts.unforeseen += 1
            return self._mongo.find([person]).get(person)

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, deleted or not."""
        return self._users.get(b"%d" % user_id)

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return the name of a CRM record."""
        return self._referents.get(f"{referent_type}:{referent_id}".encode())

    def account_of(self, value: str) -> str | None:
        """Return the account that a value of the account column stands for; None: not known, or not yet."""
        named = self._referents.get(f"{ACCOUNT_KEY}{value}".encode())
        return named.name if named is not None else None

    def sso_id(self, account: str, email: str) -> str | None:
        """Return the user's SSO id in this account, None if the directory does not know it."""
        return self._directory.sso_id(account, email)

    def of(self, account: str) -> "AccountLookups":
        """Return the look-ups for rows of this account."""
        return AccountLookups(self, account)


class AccountLookups:
    """One account's view: `processors.rules.decide.Lookups`."""

    __slots__ = ("_account", "_all", "referent", "user")

    def __init__(self, every: LiveLookups, account: str) -> None:
        """Users and referents are the CRM's, the same for every account."""
        self._all = every
        self._account = account
        self.user = every.user
        self.referent = every.referent

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact of the account with this CRM person id."""
        return self._all.contact(self._account, person_id)

    def sso_id(self, email: str) -> str | None:
        """Return the user directory's answer."""
        return self._all.sso_id(self._account, email)
