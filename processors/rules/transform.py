"""Audit row -> activity log. Pure: the rules in their order, over what has been loaded and looked up before.

`Transformer.transform` gives the document, `to_bson` the same document's bytes in a third of the time: what it is made
of is mostly there as bytes already. Both decide by the same rules; tests hold them equal to the byte.

The order of the checks is the contract's, and the first that applies decides the reason that is counted:
scope, contact, watermark, changes. (The fourth skip, a duplicate, is decided by the unique index at the write.)
"""

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from processors.encoding.bson_parts import END, LENGTH_BYTES, LENGTHS, elements, integer_writer, length, text_element
from processors.encoding.written_changes import Write, writer
from processors.rules.actors import ActorRules
from processors.rules.associations import AssociationRules
from processors.rules.categories import CategoryOf, action_of, category_rules, changes_status
from processors.rules.changes import ChangeRules
from processors.rules.contacts import Resolved, resolve
from processors.rules.watermark import skip_reason
from schemas.identity import EXTERNAL_ID_FORMAT, SOURCE_TAG, external_id_of
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.source.audited_changes import Columns, Unreadable, read
from schemas.source.mapping import SourceMapping
from schemas.source.person import changes_candidates, comment_candidates, own_candidates
from schemas.vocabulary import DeadLetterCause, FellBack, SkipReason

CUSTOMERS_MAX = 100_000  # whose documents' beginnings are kept, some 200 bytes each
_AROUND = LENGTH_BYTES + len(END)  # what stands around the elements of a document or array
_ARRAY_AT = 2 + LENGTH_BYTES  # where the elements of an array without a name begin: behind type, NUL and length
_crm_person_id, _version = integer_writer(b"crm_person_id"), integer_writer(b"version")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a BSON date and Python's datetime both hold, in milliseconds: the years 1 to 9999.
_TIMESTAMP_MIN_MS = int((datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) / timedelta(milliseconds=1))
_TIMESTAMP_MAX_MS = int((datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) / timedelta(milliseconds=1))


class Transformed(NamedTuple):
    """The activity log a row became: ready for BSON (`processors.encoding.documents`), without `_id`."""

    document: dict[str, Any]


class Skip(NamedTuple):
    """A row left out on purpose."""

    reason: SkipReason


class Refused(NamedTuple):
    """A row that cannot be understood; `detail` is one line without anything of its content."""

    cause: DeadLetterCause
    detail: str


class Lookups(Protocol):
    """Pure reads of what has been loaded before."""

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact with this CRM person id: by `crm_data.id`, then by `crm_contact_id_map`."""

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, soft-deleted or not."""

    def sso_id(self, email: str) -> str | None:
        """Return what the user directory has said; None: the actor falls back."""

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return what a CRM record is called."""


@dataclass(slots=True)
class TransformCounts:
    """What an operator wants to know beside the outcomes; the sums of one Transformer."""

    refused_values: int = 0  # Ruby objects that became {"$ruby": ...}
    status_id_set_missing: int = 0  # status changes that stayed updates, for want of an id set in the mapping
    read_by_nodes: int = 0  # texts that took libyaml, because the short way does not know their form
    fell_back: Counter[FellBack] = field(default_factory=Counter)  # actors that became the deleted user, by case

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name, those of actors as `actors.<case>` and in sum."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "fell_back"}
        cases = dict(self.fell_back)
        named["actors_fell_back"] = sum(cases.values())
        return {**named, **{f"actors.{case}": count for case, count in cases.items()}}


# A row that becomes a log if it can be understood: rule, person, contact; columns, None: they have not been read yet.
_Owned = tuple[CategoryOf, str, Contact, Columns | Unreadable | None]

_UNMAPPED = Skip(SkipReason.UNMAPPED_ACTION_TYPE)
_NO_CONTACT = Skip(SkipReason.CONTACT_NOT_FOUND)
_OTHER_SIDE = {reason: Skip(reason) for reason in (SkipReason.POST_SYNC_LIVE_FEED, SkipReason.PRE_SYNC_REPLAY)}


class Transformer:
    """One account's rules; replay and live feed differ in the side of the watermark and in `source_tag`."""

    def __init__(self, mapping: SourceMapping, company_sso_id: str, *, live: bool = False) -> None:
        """`mapping` says what the CRM's types and columns mean."""
        self.counts = TransformCounts()
        self._company_sso_id = company_sso_id
        self._live = live
        self._person = mapping.person
        self._categories = category_rules(mapping)
        self._change_rules = ChangeRules(mapping)
        self._clock_columns = {
            type_name: columns
            for type_name in mapping.scope
            if (columns := self._change_rules.clock_columns(type_name))
        }
        self._actors = ActorRules(mapping)
        self.counts.fell_back = self._actors.fell_back
        self._associations = AssociationRules(mapping)
        self._begins: dict[str, bytes] = {}  # customer -> account and customer, how its documents begin
        self._tag = b"\x00" + (b"" if live else text_element(b"source_tag", SOURCE_TAG)) + b"\x03metadata\x00"
        self._category_elements: dict[tuple[str, str], bytes] = {}  # of every category and action there is
        self._writers: dict[tuple[str, str], Write] = {}  # of every type and action in scope

    def for_account(self, company_sso_id: str) -> "Transformer":
        """Return these rules for another account; rules and counts are shared."""
        other = copy(self)
        other._company_sso_id = company_sso_id  # noqa: SLF001 - its own class
        other._begins = {}  # noqa: SLF001
        return other

    def is_mapped(self, event: AuditEvent) -> bool:
        """Return whether the row's type and action have a category; the others need no look-up."""
        return (event.auditable_type, event.action) in self._categories

    def transform(self, event: AuditEvent, lookups: Lookups) -> Transformed | Skip | Refused:
        """Return the activity log that the row becomes, or why it becomes none."""
        owned = self._owned(event, lookups)
        if isinstance(owned, Skip):
            return owned
        rule, person_id, contact, columns = owned
        if columns is None:
            columns = self._read(event)
        if (refused := self._refused(event, columns)) is not None:
            return refused
        assert type(columns) is Columns
        values = self._counted(columns)
        actor = self._actors.actor(event, lookups)
        metadata: dict[str, Any] = {"crm_person_id": int(person_id)}
        self._associations.add_linked(metadata, event, values, lookups)
        if event.request_uuid:
            metadata["request_id"] = event.request_uuid
        if event.version:
            metadata["version"] = event.version
        document: dict[str, Any] = {
            "company_sso_id": self._company_sso_id,
            "customer_id": contact.customer_id,
            "category": rule.category,
            "action": self._action(rule, values),
            "actor": actor,
            "changes": self._change_rules.changes(event.auditable_type, event.action, values),
            "timestamp": _EPOCH + timedelta(milliseconds=event.created_at // 1000),
            "external_id": external_id_of(event.audit_id),
            "source_tag": SOURCE_TAG,
            "metadata": metadata,
        }
        if self._live:
            del document["source_tag"]
        return Transformed(document)

    def to_bson(self, event: AuditEvent, lookups: Lookups) -> bytes | Skip | Refused:
        """Return the document of `transform` as `processors.encoding.documents` encodes it, or why there is none."""
        owned = self._owned(event, lookups)
        if isinstance(owned, Skip):
            return owned
        rule, person_id, contact, columns = owned
        written = None
        if columns is None:
            if event.audited_changes[:3] == "---" and not event.changes_are_json:
                write = self._writers.get((event.auditable_type, event.action)) or self._writer(event)
                written = write(event.audited_changes)
            if written is None:
                columns = self._read(event)
        created_at_ms = event.created_at // 1000
        if written is not None and _TIMESTAMP_MIN_MS <= created_at_ms <= _TIMESTAMP_MAX_MS:
            changes, values = written
        else:
            if (refused := self._refused(event, columns)) is not None:
                return refused
            assert type(columns) is Columns
            values = self._counted(columns)
            found = self._change_rules.changes(event.auditable_type, event.action, values)
            changes = elements({"": found})[_ARRAY_AT:-1]
        action = self._action(rule, values) if values else rule.action
        category = self._category_elements.get((rule.category, action))
        if category is None:
            category = elements({"category": rule.category, "action": action})
            self._category_elements[rule.category, action] = category
        actor = self._actors.element(event, lookups)
        begin = self._begins.get(contact.customer_id) or self._begin_of(contact.customer_id)
        metadata = _crm_person_id(int(person_id)) + self._associations.linked_elements(event, values, lookups)
        if request_uuid := event.request_uuid:
            metadata += text_element(b"request_id", request_uuid)
        if event.version:
            metadata += _version(event.version)
        external_id = EXTERNAL_ID_FORMAT % event.audit_id
        changes_size, metadata_size = length(len(changes) + _AROUND), length(len(metadata) + _AROUND)
        body = b"".join(
            (
                begin, category, actor,
                b"\x04changes\x00", changes_size, changes,
                b"\x00\x09timestamp\x00", created_at_ms.to_bytes(8, "little", signed=True),
                b"\x02external_id\x00", LENGTHS[len(external_id) + 1], external_id,
                self._tag, metadata_size, metadata,
                b"\x00\x00",
            )
        )  # fmt: skip
        return length(len(body) + LENGTH_BYTES) + body

    def _begin_of(self, customer_id: str) -> bytes:
        """Return how the documents of a customer begin, and remember it."""
        if len(self._begins) >= CUSTOMERS_MAX:
            self._begins.clear()
        begin = text_element(b"company_sso_id", self._company_sso_id) + text_element(b"customer_id", customer_id)
        self._begins[customer_id] = begin
        return begin

    def _owned(self, event: AuditEvent, lookups: Lookups) -> _Owned | Skip:
        """Return the row if it is for this side to log: mapped, of a contact, on this side of its watermark."""
        rule = self._categories.get((event.auditable_type, event.action))
        if rule is None:
            return _UNMAPPED

        # The comment is tried alone at first: it names the person of most rows, without their changes being read.
        columns: Columns | Unreadable | None = None
        resolved = resolve(comment_candidates(event.comment, self._person), self._company_sso_id, lookups)
        if resolved is None:
            columns = self._read(event)
            resolved = self._resolve_without_comment(event, columns, lookups)
            if resolved is None:
                return _NO_CONTACT
        person_id, contact = resolved

        if (reason := skip_reason(event.created_at, contact.created_at, self._live)) is not None:
            return _OTHER_SIDE[reason]
        return rule, person_id, contact, columns

    def _refused(self, event: AuditEvent, columns: Columns | Unreadable | None) -> Refused | None:
        """Return why the row cannot be understood, None if it can."""
        if type(columns) is Unreadable:
            cause = DeadLetterCause.DOCUMENT_TOO_LARGE if columns.too_large else DeadLetterCause.UNDECODABLE_CHANGES
            return Refused(cause, columns.why)
        if not _TIMESTAMP_MIN_MS <= event.created_at // 1000 <= _TIMESTAMP_MAX_MS:
            return Refused(DeadLetterCause.TRANSFORM_FAILED, "created_at is outside the years 1 to 9999")
        return None

    def _counted(self, columns: Columns) -> dict[str, Any]:
        """Return the columns' values; what is remarkable about their reading is counted."""
        values, refused, direct = columns
        if refused:
            self.counts.refused_values += refused
        if not direct:
            self.counts.read_by_nodes += 1
        return values

    def _action(self, rule: CategoryOf, values: Mapping[str, Any]) -> str:
        """Return the log's action; `values` has the column that decides it, if the row has."""
        if rule.status_column not in values:
            return rule.action
        if rule.status_ids is None and changes_status(rule, values):
            self.counts.status_id_set_missing += 1
        return action_of(rule, values)

    def _writer(self, event: AuditEvent) -> Write:
        key = event.auditable_type, event.action
        wanted = self._associations.columns_of(event.auditable_type) | {self._categories[key].status_column}
        write = self._writers[key] = writer(self._change_rules, event.auditable_type, event.action, wanted)
        return write

    def _read(self, event: AuditEvent) -> Columns | Unreadable:
        clock_columns = self._clock_columns.get(event.auditable_type)
        if clock_columns is None:
            return read(event.audited_changes, event.changes_are_json)
        return read(event.audited_changes, event.changes_are_json, clock_columns)

    def _resolve_without_comment(
        self, event: AuditEvent, columns: Columns | Unreadable, lookups: Lookups
    ) -> Resolved | None:
        values = columns.values if type(columns) is Columns else {}
        person_ids = (
            *changes_candidates(event.action, self._person, values),
            *own_candidates(event, self._person),
        )
        return resolve(person_ids, self._company_sso_id, lookups)
