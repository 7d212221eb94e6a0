"""What the rules ask about a row: contact, user, SSO id, name of a record. Answers come from memory, never from I/O."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from processors.lookups.tables import PUBLISH_AGAIN, TableRows
from schemas.codec import Codec
from schemas.errors import UndecodableRecordError, UnreadableTopicError
from schemas.records import Contact, Record, Referent, User

R = TypeVar("R", bound=Record)
DECODED_MAX = 100_000  # rows of each table kept decoded, some 300 bytes each


class Directory(Protocol):
    """The user directory, as far as it is asked here (processors.lookups.directory.UserDirectory)."""

    async def prefetch(self, emails: Iterable[str]) -> None:
        """Learn the SSO ids of these emails, as far as they are not known; returns in bounded time in any case."""

    def sso_id(self, email: str) -> str | None:
        """Return what has been learnt, None if nothing."""


class DecodedRows(Generic[R]):
    """A table's rows as records, decoded when first asked for."""

    def __init__(self, rows: TableRows, codec: Codec, record_type: type[R], keep: Callable[[R], bool]) -> None:
        """`keep` says of a record whether it may be used at all."""
        self._rows = rows
        self._codec = codec
        self._record_type = record_type
        self._keep = keep
        self._decoded: dict[bytes, tuple[bytes, R | None]] = {}
        self.rejects = 0  # rows that must not be used

    def get(self, key: bytes) -> R | None:
        """Return the record under `key`; None if there is none, or none that may be used.

        Raises UnreadableTopicError, which is to end the process: what is not known decides nothing.
        """
        raw = self._rows.get(key)
        if raw is None:
            return None
        known = self._decoded.get(key)
        if known is not None and known[0] is raw:  # identity: an update of the row brings new bytes
            return known[1]
        record: R | None
        try:
            record = self._codec.decode_as(self._record_type, raw)
        except UndecodableRecordError as error:
            what = f"the {self._record_type.__name__} with the key {key.decode(errors='replace')}"
            raise UnreadableTopicError(
                f"{what} on its reference topic cannot be decoded: {error.what}", error.to_do or PUBLISH_AGAIN
            ) from error
        if record is not None and not self._keep(record):
            record = None
        self.rejects += record is None
        if len(self._decoded) >= DECODED_MAX:
            self._decoded.clear()
        self._decoded[key] = (raw, record)
        return record


class TableLookups:
    """Answers from the reference tables and from what the user directory has told."""

    def __init__(
        self, rows: dict[str, TableRows], codec: Codec, company_sso_id: str, directory: Directory | None = None
    ) -> None:
        """`rows` are the tables `contacts`, `users` and `referents`."""
        self._contacts = DecodedRows(rows["contacts"], codec, Contact, lambda c: c.company_sso_id == company_sso_id)
        self._users = DecodedRows(rows["users"], codec, User, _any)
        self._referents = DecodedRows(rows["referents"], codec, Referent, _any)
        self._directory = directory

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact of this account with this CRM person id; another account's is never returned."""
        return self._contacts.get(person_id.encode("utf-8", "replace"))

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, deleted or not."""
        return self._users.get(b"%d" % user_id)

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return what a CRM record is called."""
        return self._referents.get(f"{referent_type}:{referent_id}".encode())

    def sso_id(self, email: str) -> str | None:
        """Return the user's SSO id; None without a directory, or if it does not know the email."""
        return self._directory.sso_id(email) if self._directory is not None else None

    async def prefetch_users(self, user_ids: Iterable[int]) -> None:
        """Have the directory asked about those of these users whom it has not answered yet."""
        if self._directory is None:
            return
        users = (self.user(user_id) for user_id in user_ids)
        emails = {user.email for user in users if user is not None and not user.deleted and user.email}
        if emails:
            await self._directory.prefetch(sorted(emails))

    @property
    def rejects(self) -> int:
        """Return how many table rows were of another account."""
        return self._contacts.rejects + self._users.rejects + self._referents.rejects


def _any(_: Any) -> bool:
    return True
