"""What the rules look up for a row: contact, user, SSO id, name of a record. Answers are in memory, without I/O."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from processors.lookups.tables import PUBLISH_AGAIN, TableRows
from schemas.codec import Codec
from schemas.errors import UndecodableRecordError, UnreadableTopicError
from schemas.records import Contact, Record, Referent, User

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)
DECODED_MAX = 100_000  # rows of each table kept decoded, some 300 bytes each


class Directory(Protocol):
    """The user directory, as far as it is used here (processors.lookups.directory.UserDirectory)."""

    async def prefetch(self, emails: Iterable[str]) -> None:
        """Fetch the unknown SSO ids of these emails; returns in bounded time in any case."""

    def sso_id(self, email: str) -> str | None:
        """Return the fetched SSO id, or None."""


class Records(Protocol[R_co]):
    """A table as it is read here: `DecodedRows`, or a Faust table of them (`processors.tables`)."""

    def get(self, key: bytes, /) -> R_co | None:
        """Return the record under `key`; None if there is none, or none that may be used."""


class DecodedRows(Mapping[bytes, R]):
    """A table's rows as records, decoded when first read."""

    def __init__(
        self, rows: TableRows, codec: Codec, record_type: type[R], keep: Callable[[R], bool] | None = None
    ) -> None:
        """`keep` decides whether a record may be used; None: every record may."""
        self._rows = rows
        self._codec = codec
        self._record_type = record_type
        self._keep = keep
        self._decoded: dict[bytes, tuple[bytes, R | None]] = {}
        self.rejects = 0  # rows that must not be used

    def __getitem__(self, key: bytes) -> R:
        """Return the record under `key`. Raises KeyError if there is none, or none that may be used."""
        record = self.get(key)
        if record is None:
            raise KeyError(key)
        return record

    def __iter__(self) -> Iterator[bytes]:
        """Yield the keys of the records that may be used; each row is decoded."""
        return (key for key in list(self._rows) if self.get(key) is not None)

    def __len__(self) -> int:
        """Return the number of rows, including those that must not be used: none is decoded."""
        return len(self._rows)

    def get(self, key: bytes) -> R | None:  # type: ignore[override]  # called for every row
        """Return the record under `key`; None if there is none, or none that may be used.

        Raises UnreadableTopicError, which has to end the process: nothing is decided without the record.
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
        if self._keep is not None and not self._keep(record):
            record = None
        self.rejects += record is None
        if len(self._decoded) >= DECODED_MAX:
            self._decoded.clear()
        self._decoded[key] = (raw, record)
        return record


class TableLookups:
    """Look-ups in the reference tables and in the cached answers of the user directory."""

    def __init__(self, tables: Mapping[str, Records[Any]], directory: Directory | None = None) -> None:
        """`tables` are `contacts`, of one account, `users` and `referents`."""
        self._contacts: Records[Contact] = tables["contacts"]
        self._users: Records[User] = tables["users"]
        self._referents: Records[Referent] = tables["referents"]
        self._directory = directory

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact of this account with this CRM person id; another account's is never returned."""
        return self._contacts.get(person_id.encode("utf-8", "replace"))

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, deleted or not."""
        return self._users.get(b"%d" % user_id)

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return the name of a CRM record."""
        return self._referents.get(f"{referent_type}:{referent_id}".encode())

    def sso_id(self, email: str) -> str | None:
        """Return the user's SSO id; None without a directory, or if it does not know the email."""
        return self._directory.sso_id(email) if self._directory is not None else None

    async def prefetch_users(self, user_ids: Iterable[int]) -> None:
        """Query the directory for those of these users that it has not answered yet."""
        if self._directory is None:
            return
        users = (self.user(user_id) for user_id in user_ids)
        emails = {user.email for user in users if user is not None and not user.deleted and user.email}
        if emails:
            await self._directory.prefetch(sorted(emails))


def of_account(company_sso_id: str) -> Callable[[Contact], bool]:
    """Return the predicate whether a contact belongs to this account."""
    return lambda contact: contact.company_sso_id == company_sso_id


def decoded(rows: Mapping[str, TableRows], codec: Codec, company_sso_id: str) -> dict[str, DecodedRows[Any]]:
    """Return an account's three tables over rows that are in memory."""
    return {
        "contacts": DecodedRows(rows["contacts"], codec, Contact, of_account(company_sso_id)),
        "users": DecodedRows(rows["users"], codec, User),
        "referents": DecodedRows(rows["referents"], codec, Referent),
    }
