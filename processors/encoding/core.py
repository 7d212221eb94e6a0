"""An audit event's bytes -> its outcome's bytes. Pure but for the lookups it is given, and compiled.

`Core.row` parses an event; `Core.outcome` makes the outcome: an ActivityLog with its document, or a SkippedRecord.
Either returns None for an unusual event, which is then decoded, decided and rendered in the plain way, the reference
(`processors.rules.decide`, `processors.encoding.transform`). Any other result equals that of the plain way, in bytes
and counts.

The rules are not repeated here: the result of a rule with few inputs is cached with these inputs, and computed again
when one of them differs. Only the order of the rules is repeated from `Rules.decide`.
"""

from typing import Any, Final

from librt.strings import BytesWriter, write_i64_le
from mypy_extensions import i64, u8

from processors.encoding.bson_writing import (
    ARRAY,
    DATE,
    DOCUMENT,
    begin_length,
    end_length,
    write_integer,
    write_text,
    write_value,
)
from processors.encoding.changes_writer import ChangesWriter
from processors.encoding.documents import DOCUMENT_BYTES_MAX
from processors.rules.associations import ID_KEY
from processors.rules.categories import action_of, changes_status
from processors.rules.decide import CREATED_AT_END, CREATED_AT_MIN, Lookups, Rules
from schemas.identity import EXTERNAL_ID_FORMAT, SOURCE_TAG
from schemas.records import AuditEvent, Contact, User
from schemas.source.audited_changes import Unreadable
from schemas.source.person import comment_candidates, further_candidates
from schemas.vocabulary import FellBack, SkipReason

_KNOWN_MAX: Final = 100_000  # persons with cached beginnings of documents, about 300 bytes each
_ACTORS_MAX: Final = 10_000
_TYPES_MAX: Final = 1_000  # names that are known to be text
_PERSON_DIGITS_MAX: Final = 18
_MICROSECONDS: Final = 1_000
_NUMBER_BITS_MAX: Final = 56  # the last shift of a varint that is read here
_NUMBER_MAX: Final = 2**61  # of an id that is written without a thought for overflow

_DIGIT_0: Final = 48
_DIGIT_1: Final = 49
_DIGIT_9: Final = 57
_CLOSING_BRACE: Final = 125

_CHANGES: Final = b"changes\x00"
_TIMESTAMP: Final = b"timestamp\x00"
_EXTERNAL_ID: Final = b"external_id\x00"
_SOURCE_TAG: Final = b"source_tag\x00"
_METADATA: Final = b"metadata\x00"
_CRM_PERSON_ID: Final = b"crm_person_id\x00"
_LINKED_TYPE: Final = b"linked_entity_type\x00"
_LINKED_ID: Final = b"linked_entity_id\x00"
_LINKED_NAME: Final = b"linked_entity_name\x00"
_REQUEST_ID: Final = b"request_id\x00"
_VERSION: Final = b"version\x00"


class Row:
    """A parsed event; texts are UTF-8 as received."""

    def __init__(self) -> None:
        """To be filled."""
        self.audit_id: i64 = 0
        self.id_range: i64 = 0
        self.created_at: i64 = 0
        self.type_name = b""
        self.record_id: i64 = 0
        self.associated_type = b""
        self.associated_id: i64 = 0
        self.user_type = b""
        self.user_id: i64 = 0
        self.username = b""
        self.action = b""
        self.text = b""
        self.is_json = False
        self.version: i64 = 0
        self.comment = b""
        self.request_id = b""

    def event(self) -> AuditEvent:
        """Return the fields that the rules read."""
        return AuditEvent(
            int(self.audit_id), 0, int(self.created_at), self.type_name.decode(), int(self.record_id),
            self.associated_type.decode(), int(self.associated_id), self.user_type.decode(), int(self.user_id),
            self.username.decode(), self.action.decode(), "", self.is_json, int(self.version), self.comment.decode(),
            "",
        )  # fmt: skip


class RowRule:
    """Cached results for rows of one type and action."""

    def __init__(self, rules: Rules, type_name: str, action: str) -> None:
        """`action` is the gem's."""
        category = rules.categories[type_name, action]
        self.category = category
        self.status_column: str = category.status_column
        self.action: str = category.action
        self.heads: dict[str, bytes] = {}  # by the log's action: category and action as elements
        self.changes = ChangesWriter(
            rules.change_rules, type_name, action, rules.deciding_columns(type_name, action) | {*rules.person.columns}
        )
        self.type_name = type_name
        associations = rules.associations
        self.links_itself: bool = associations.links_itself(type_name)
        self.has_name: bool = associations.has_name(type_name)
        self.is_join: bool = associations.is_join(type_name)

    def head(self, action: str) -> bytes:
        """Return category and action as a document has them."""
        head = self.heads.get(action)
        if head is None:
            w = BytesWriter()
            write_text(w, b"category\x00", self.category.category.encode())
            write_text(w, b"action\x00", action.encode())
            head = self.heads[action] = w.getvalue()
        return head


class Person:
    """A person, and how documents of the contact begin."""

    def __init__(self, contact: Contact, person_id: str, begin: bytes) -> None:
        """`begin` is account and customer."""
        self.contact = contact
        self.number: i64 = int(person_id)
        self.created_at: i64 = contact.created_at
        self.begin = begin


class KnownActor:
    """The actor that the rules made of a user and the directory's answer."""

    def __init__(self, user: User | None, sso_id: str | None, element: bytes, fell_back: FellBack | None) -> None:
        """`user` and `sso_id` are the results of the lookups."""
        self.user = user
        self.sso_id = sso_id
        self.element = element
        self.fell_back = fell_back


class _Answers:
    """Lookups that have been made."""

    def __init__(self, user: User | None, sso_id: str | None) -> None:
        self._user = user
        self._sso_id = sso_id

    def user(self, _user_id: int) -> User | None:
        return self._user

    def sso_id(self, _email: str) -> str | None:
        return self._sso_id


class Core:
    """The rows of one account's replay."""

    def __init__(self, rules: Rules, lookups: Lookups, frames: tuple[bytes, bytes, bytes], run: int) -> None:
        """`frames` are what is in front of an AuditEvent, an ActivityLog and a SkippedRecord."""
        self._rules = rules
        self._lookups = lookups
        self._account = rules.company_sso_id
        self._account_bytes = rules.company_sso_id.encode()
        self._event_frame, self._log_frame, self._skip_frame = frames
        self._run: i64 = run
        self._tag = SOURCE_TAG.encode()
        self._external_id: bytes = EXTERNAL_ID_FORMAT
        self._created_at_min: i64 = CREATED_AT_MIN
        self._created_at_end: i64 = CREATED_AT_END
        self._document_bytes_max: i64 = DOCUMENT_BYTES_MAX
        self._by_type: dict[bytes, dict[bytes, RowRule]] = {}
        for type_name, action in rules.categories:
            of_type = self._by_type.setdefault(type_name.encode(), {})
            of_type[action.encode()] = RowRule(rules, type_name, action)
        self._comment_begin: bytes = b'{"' + rules.person.comment_key.encode() + b'":'
        self._user_type: bytes = rules.actors.user_type.encode()
        self._persons: dict[str, Person] = {}
        self._actors: dict[int, KnownActor] = {}
        self._nobody = self._actor_of("", 0, "", None, None)
        self._username_only = self._actor_of("", 0, "x", None, None)
        self._other_type = self._actor_of("", 1, "", None, None)
        self._names: dict[bytes, bool] = {}  # that are UTF-8
        self._changes = BytesWriter()
        self._w = BytesWriter()
        self._at: i64 = 0
        self.skip: SkipReason | None = None  # why the last row's outcome is no log
        # Of the row that is being written, to be counted if it becomes a log:
        self._status_id_set_missing = False
        self._by_nodes = False
        self._refused: i64 = 0

    # --- the event

    def row(self, data: bytes) -> Row | None:
        """Return a parsed event of this account; None for anything else, or unusual. Raises nothing."""
        if not data.startswith(self._event_frame):
            return None
        try:
            return self._row(data)
        except (IndexError, ValueError, OverflowError):
            return None

    def _row(self, data: bytes) -> Row | None:
        self._at = len(self._event_frame)
        row = Row()
        row.audit_id = self._long(data)
        row.id_range = self._long(data)
        row.created_at = self._long(data)
        row.type_name = self._bytes(data)
        row.record_id = self._long(data)
        row.associated_type = self._bytes(data)
        row.associated_id = self._long(data)
        row.user_type = self._bytes(data)
        row.user_id = self._long(data)
        row.username = self._bytes(data)
        row.action = self._bytes(data)
        row.text = self._bytes(data)
        is_json: i64 = data[self._at]
        self._at += 1
        row.version = self._long(data)
        row.comment = self._bytes(data)
        row.request_id = self._bytes(data)
        account = self._bytes(data)
        if self._at != len(data) or is_json > 1 or not 0 < row.audit_id < _NUMBER_MAX or row.id_range < 0:
            return None
        if account and account != self._account_bytes:
            return None
        self._require_name(row.type_name)
        self._require_name(row.associated_type)
        self._require_name(row.user_type)
        self._require_name(row.action)
        for text in (row.username, row.text, row.comment, row.request_id):
            _require_text(text)
        row.is_json = is_json == 1
        return row

    def _long(self, data: bytes) -> i64:
        at = self._at
        byte: i64 = data[at]
        at += 1
        bits = byte & 127
        shift: i64 = 7
        while byte >= 128:
            if shift > _NUMBER_BITS_MAX:
                raise ValueError
            byte = data[at]
            at += 1
            bits |= (byte & 127) << shift
            shift += 7
        self._at = at
        return (bits >> 1) ^ -(bits & 1)

    def _bytes(self, data: bytes) -> bytes:
        size = self._long(data)
        begin = self._at
        end = begin + size
        if size < 0 or end > len(data):
            raise ValueError
        self._at = end
        return data[begin:end]

    def _require_name(self, name: bytes) -> None:
        """Raise ValueError for a name, of which there are few, that is not UTF-8."""
        if not name or name in self._names:
            return
        _require_text(name)
        if len(self._names) < _TYPES_MAX:
            self._names[name] = True

    # --- the outcome

    def outcome(self, row: Row, offset: i64) -> bytes | None:
        """Return the framed outcome of a row, or None. `skip` is None for a log, else the reason.

        Raises UnreadableTopicError as the lookups do.
        """
        made = self.document(row)
        if made is None:
            return None
        w = self._w
        w.truncate(0)
        is_log = isinstance(made, bytes)
        w.write(self._log_frame if is_log else self._skip_frame)
        _write_long(w, row.audit_id)
        _write_long(w, row.id_range)
        _write_long(w, offset)
        _write_long(w, self._run)
        value: bytes = made if isinstance(made, bytes) else made.encode()
        _write_long(w, len(value))
        w.write(value)
        self.skip = None if isinstance(made, bytes) else made
        return w.getvalue()

    def document(self, row: Row) -> bytes | SkipReason | None:
        """Return the document (bytes), or why there is none (SkipReason); None if the plain way has to decide.

        Raises UnreadableTopicError as the lookups do.
        """
        try:
            return self._decided(row)
        except (IndexError, ValueError, OverflowError):
            return None

    def _decided(self, row: Row) -> bytes | SkipReason | None:
        """Apply the rules in their order."""
        rule: RowRule | None = None
        of_type = self._by_type.get(row.type_name)
        if of_type is not None:
            rule = of_type.get(row.action)
        if rule is None:
            return SkipReason.UNMAPPED_ACTION_TYPE

        is_written = False
        person = self._commented(row)
        if person is None:
            if not self._write_changes(row, rule):
                return None
            is_written = True
            further = further_candidates(row.event(), self._rules.person, rule.changes.values)
            person = self._first_of(further)
            if person is None:
                return SkipReason.CONTACT_NOT_FOUND
        if row.created_at >= person.created_at:
            return SkipReason.POST_SYNC_LIVE_FEED
        if not (is_written or self._write_changes(row, rule)):
            return None
        if not self._created_at_min <= row.created_at < self._created_at_end:
            return None
        return self._document(row, rule, person)

    def _write_changes(self, row: Row, rule: RowRule) -> bool:
        """Write the changes; a text in no form that is known there is read by the rules' own reader."""
        self._refused = 0
        self._by_nodes = False
        if rule.changes.write(self._changes, row.text, row.is_json):
            return True
        columns = self._rules.read(row.event()._replace(audited_changes=row.text.decode()))
        if isinstance(columns, Unreadable):
            return False
        self._refused = columns.refused
        self._by_nodes = not columns.direct
        rule.changes.write_columns(self._changes, columns.values)
        return True

    def _document(self, row: Row, rule: RowRule, person: Person) -> bytes | None:
        values = rule.changes.values
        head = rule.head(self._action(rule, values))
        actor = self._actor(row)
        w = self._w
        w.truncate(0)
        begin = begin_length(w)
        w.write(person.begin)
        w.write(head)
        w.write(actor.element)
        w.append(ARRAY)
        w.write(_CHANGES)
        changes_at = begin_length(w)
        w.write(self._changes.getvalue())
        end_length(w, changes_at)
        w.append(DATE)
        w.write(_TIMESTAMP)
        write_i64_le(w, row.created_at // _MICROSECONDS)
        write_text(w, _EXTERNAL_ID, self._external_id % int(row.audit_id))
        write_text(w, _SOURCE_TAG, self._tag)
        w.append(DOCUMENT)
        w.write(_METADATA)
        metadata_at = begin_length(w)
        write_integer(w, _CRM_PERSON_ID, person.number)
        self._write_links(w, row, rule, values)
        if row.request_id:
            write_text(w, _REQUEST_ID, row.request_id)
        if row.version != 0:
            write_integer(w, _VERSION, row.version)
        end_length(w, metadata_at)
        end_length(w, begin)
        if len(w) > self._document_bytes_max:
            return None
        # From here on no row goes to the plain way, so each is counted once.
        if actor.fell_back is not None:
            self._rules.actors.fell_back[actor.fell_back] += 1
        counts = self._rules.counts
        if self._status_id_set_missing:
            counts.status_id_set_missing += 1
        if self._by_nodes:
            counts.read_by_nodes += 1
            counts.refused_values += int(self._refused)
        return w.getvalue()

    def _action(self, rule: RowRule, values: dict[str, Any]) -> str:
        self._status_id_set_missing = False
        if rule.status_column not in values:
            return rule.action
        category = rule.category
        self._status_id_set_missing = category.status_ids is None and changes_status(category, values)
        return action_of(category, values)

    def _write_links(self, w: BytesWriter, row: Row, rule: RowRule, values: dict[str, Any]) -> None:
        if rule.is_join:
            for id_key, name_key, type_name, record_id, name in self._rules.associations.links(
                row.event(), values, self._lookups
            ):
                if id_key == ID_KEY:
                    write_text(w, _LINKED_TYPE, type_name.encode())
                write_integer(w, id_key.encode() + b"\x00", record_id)
                if name:
                    write_text(w, name_key.encode() + b"\x00", name.encode())
        elif rule.links_itself and row.record_id != 0:
            write_text(w, _LINKED_TYPE, row.type_name)
            write_integer(w, _LINKED_ID, row.record_id)
            if rule.has_name:
                referent = self._lookups.referent(rule.type_name, int(row.record_id))
                if referent is not None and referent.name:
                    write_text(w, _LINKED_NAME, referent.name.encode())

    # --- the person

    def _commented(self, row: Row) -> Person | None:
        """Return the person that the comment names, if it is a contact of the account."""
        comment = row.comment
        if not comment:
            return None
        begin: i64 = len(self._comment_begin)
        end: i64 = len(comment) - 1
        if (
            begin < end <= begin + _PERSON_DIGITS_MAX
            and comment[end] == _CLOSING_BRACE
            and comment.startswith(self._comment_begin)
        ):
            at = begin
            digit: i64 = comment[at]
            if digit >= _DIGIT_1:
                while _DIGIT_0 <= digit <= _DIGIT_9:
                    at += 1
                    digit = comment[at]
                if at == end:
                    return self._person(comment[begin:end].decode())
        return self._first_of(comment_candidates(comment.decode(), self._rules.person))

    def _first_of(self, person_ids: Any) -> Person | None:
        for person_id in person_ids:
            person = self._person(person_id)
            if person is not None:
                return person
        return None

    def _person(self, person_id: str) -> Person | None:
        contact = self._lookups.contact(person_id)
        if contact is None:
            return None
        known = self._persons.get(person_id)
        if known is not None and (known.contact is contact or known.contact == contact):
            return known
        if contact.company_sso_id != self._account:
            return None
        w = BytesWriter()
        write_text(w, b"company_sso_id\x00", self._account_bytes)
        write_text(w, b"customer_id\x00", contact.customer_id.encode())
        if len(self._persons) >= _KNOWN_MAX:
            self._persons.clear()
        person = self._persons[person_id] = Person(contact, person_id, w.getvalue())
        return person

    # --- the actor

    def _actor(self, row: Row) -> KnownActor:
        if row.user_id == 0:
            return self._username_only if row.username else self._nobody
        if row.user_type != self._user_type:
            return self._other_type
        lookups = self._lookups
        user_id = int(row.user_id)
        user = lookups.user(user_id)
        email = user.email if user is not None else ""
        sso_id = lookups.sso_id(email) if email else None
        known = self._actors.get(user_id)
        if known is not None and known.sso_id == sso_id and (known.user is user or known.user == user):
            return known
        if len(self._actors) >= _ACTORS_MAX:
            self._actors.clear()
        known = self._actors[user_id] = self._actor_of(row.user_type.decode(), user_id, "", user, sso_id)
        return known

    def _actor_of(
        self, user_type: str, user_id: int, username: str, user: User | None, sso_id: str | None
    ) -> KnownActor:
        """Return the actor that the rules make of these answers."""
        answers = _Answers(user, sso_id)
        named, fell_back = self._rules.actors.named(user_type, user_id, username, answers)
        w = BytesWriter()
        kind, actor_id, name = named
        write_value(w, b"actor\x00", {"type": kind, "id": actor_id, "name": name})
        return KnownActor(user, sso_id, w.getvalue(), fell_back)


def _require_text(raw: bytes) -> None:
    """Raise ValueError for bytes that are not UTF-8."""
    if raw and not raw.isascii():
        raw.decode()


def _write_long(w: BytesWriter, value: i64) -> None:
    """Write a number that is not negative, in zigzag and base 128."""
    left = value << 1
    while left >= 128:
        w.append(u8(left & 127 | 128))
        left >>= 7
    w.append(u8(left))
