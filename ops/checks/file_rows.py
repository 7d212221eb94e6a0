"""Audit rows, contacts and users from files: lookups for rules that run without a server."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from schemas.errors import BadInputError
from schemas.records import AuditEvent, Contact, Referent, User

NO_WATERMARK = 2**63 - 1  # microseconds: every row was created before
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TEXT_COLUMNS = ("auditable_type", "associated_type", "user_type", "username", "action", "comment", "request_uuid")
_NUMBER_COLUMNS = ("auditable_id", "associated_id", "user_id", "version")
_LONG_MAX = 2**63 - 1


class FileLookups:
    """Lookups from files; without contacts, every person has one."""

    def __init__(self, company_sso_id: str, contacts: dict[str, Contact] | None, users: dict[int, User]) -> None:
        """`contacts` by CRM person id, None: every person is `contact-<person id>`, without a watermark."""
        self._company_sso_id = company_sso_id
        self._contacts = contacts
        self._users = users

    def contact(self, person_id: str) -> Contact | None:
        """Return the person's contact."""
        if self._contacts is not None:
            return self._contacts.get(person_id)
        return Contact(self._company_sso_id, person_id, f"contact-{person_id}", NO_WATERMARK)

    def user(self, user_id: int) -> User | None:
        """Return the user; the id replaces the email, which no document shows."""
        return self._users.get(user_id)

    def sso_id(self, email: str) -> str | None:
        """Return a substitute for the directory's answer."""
        return f"sso-{email}"

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:  # noqa: ARG002 - Lookups' shape
        """Return None: names of records are in no file."""
        return None


def printable(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with its timestamp as ISO 8601 in UTC, to the millisecond."""
    timestamp: datetime = document["timestamp"]
    return document | {"timestamp": timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")}


def read_events(path: str) -> Iterator[AuditEvent]:
    """Yield the audit events in a file, in its order. Raises BadInputError naming the line that is broken."""
    for where, row in _objects(path, "--rows"):
        yield event_of(row, where)


def event_of(row: dict[str, Any], where: str) -> AuditEvent:
    """Return the event of a row as the fixtures print it; `where` is the file and line that errors name."""
    fields: dict[str, Any] = {"audit_id": _number(row, "id", where, required=True), "id_range": 0}
    fields["created_at"] = _instant(row, "created_at", where)
    for column in _NUMBER_COLUMNS:
        fields[column] = _number(row, column, where)
    for column in _TEXT_COLUMNS:
        fields[column] = _text(row, column, where)
    changes = row.get("audited_changes")
    # A json column's value can also be there as it is; text is recognised by its beginning.
    fields["changes_are_json"] = changes is not None and not isinstance(changes, str)
    fields["audited_changes"] = json.dumps(changes, ensure_ascii=False) if fields["changes_are_json"] else changes or ""
    return AuditEvent(**fields)


def read_contacts(path: str, company: str) -> dict[str, Contact]:
    """Return the contacts in a file by CRM person id. Raises BadInputError naming the line that is broken."""
    found: dict[str, Contact] = {}
    for where, row in _objects(path, "--contacts"):
        person_id, customer_id = row.get("crm_person_id"), row.get("customer_id")
        if type(person_id) not in (int, str) or type(customer_id) not in (int, str):
            raise BadInputError(f"{where}: crm_person_id or customer_id is missing", "give both, as text or numbers")
        created_at = _instant(row, "created_at", where) if row.get("created_at") is not None else NO_WATERMARK
        # A file can hold the contacts of several accounts, as the collection does; then each line names its account.
        if row.get("company_sso_id", company) == company:
            found[str(person_id)] = Contact(company, str(person_id), str(customer_id), created_at)
    return found


def read_users(path: str) -> dict[int, User]:
    """Return the CRM users in a file by id; no file, no users. Raises BadInputError naming the line that is broken."""
    found: dict[int, User] = {}
    for where, row in _objects(path, "--users") if path else ():
        user_id = _number(row, "id", where, required=True)
        found[user_id] = User(user_id, str(user_id), _text(row, "full_name", where), row.get("deleted_at") is not None)
    return found


def _objects(path: str, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
    name = "standard input" if path == "-" else path
    for number, line in enumerate(_lines(path, option), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)  # and not orjson, which would round integers beyond 64 bits
        except (ValueError, RecursionError):
            raise BadInputError(f"{where}: not JSON", "each line is one JSON object") from None
        if not isinstance(row, dict):
            raise BadInputError(f"{where}: not a JSON object", "each line is one JSON object")
        yield where, row


def _lines(path: str, option: str) -> Iterator[bytes]:
    """Yield the lines of a file, split at line feeds only: U+2028 is part of a value."""
    if path == "-":
        yield from sys.stdin.buffer
        return
    try:
        with Path(path).open("rb") as stream:
            yield from stream
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}", f"name a readable file with {option}") from None


def _number(row: dict[str, Any], column: str, where: str, required: bool = False) -> int:
    value = row.get(column)
    if value is None and not required:
        return 0
    if type(value) is not int or abs(value) > _LONG_MAX:
        raise BadInputError(f"{where}: {column} is not an integer", "rows look like those in ops/local/sample")
    return value


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInputError(f"{where}: {column} is not text", "rows look like those in ops/local/sample")
    return value


def _instant(row: dict[str, Any], column: str, where: str) -> int:
    """Return the time in microseconds since 1970; without an offset it is UTC, as in the CRM's tables."""
    try:
        moment = datetime.fromisoformat(row[column])
    except (KeyError, TypeError, ValueError):
        raise BadInputError(f"{where}: {column} is no time", "write it like 2024-01-31T17:30:00.123456Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND
