"""Audit row -> activity log. Pure: the rules in their order, over what has been loaded and looked up before.

The order of the checks is the contract's, and the first that applies decides the reason that is counted:
scope, contact, watermark, changes. (The fourth skip, a duplicate, is decided by the unique index at the write.)
"""

from copy import copy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from processors.actors import ActorRules
from processors.associations import AssociationRules
from processors.categories import action_of, category_rules, changes_status
from processors.changes import ChangeRules
from processors.contacts import Resolved, resolve
from processors.watermark import skip_reason
from schemas.audited_changes import Columns, Unreadable, read
from schemas.mapping import SourceMapping
from schemas.person import changes_candidates, comment_candidates, own_candidates
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.vocabulary import DeadLetterCause, SkipReason

SOURCE_TAG = "crm_migration"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a BSON date and Python's datetime both hold, in milliseconds: the years 1 to 9999.
_TIMESTAMP_MIN_MS = int((datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) / timedelta(milliseconds=1))
_TIMESTAMP_MAX_MS = int((datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) / timedelta(milliseconds=1))


class Transformed(NamedTuple):
    """The activity log a row became: ready for BSON (`processors.documents`), without `_id`."""

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
    actors_fell_back: int = 0  # active CRM users without an SSO id
    read_by_nodes: int = 0  # texts that took libyaml, because the short way does not know their form

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


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
        self._associations = AssociationRules(mapping)

    def for_account(self, company_sso_id: str) -> "Transformer":
        """Return these rules for another account; rules and counts are shared."""
        other = copy(self)
        other._company_sso_id = company_sso_id  # noqa: SLF001 - its own class
        return other

    def is_mapped(self, event: AuditEvent) -> bool:
        """Return whether the row's type and action have a category; the others need no look-up."""
        return (event.auditable_type, event.action) in self._categories

    def transform(self, event: AuditEvent, lookups: Lookups) -> Transformed | Skip | Refused:
        """Return the activity log that the row becomes, or why it becomes none."""
        rule = self._categories.get((event.auditable_type, event.action))
        if rule is None:
            return _UNMAPPED

        # The comment is tried alone at first: it names the person of most rows, without their changes being read.
        company_sso_id = self._company_sso_id
        columns: Columns | Unreadable | None = None
        resolved = resolve(comment_candidates(event.comment, self._person), company_sso_id, lookups)
        if resolved is None:
            columns = self._read(event)
            resolved = self._resolve_without_comment(event, columns, lookups)
            if resolved is None:
                return _NO_CONTACT
        person_id, contact = resolved

        if (reason := skip_reason(event.created_at, contact.created_at, self._live)) is not None:
            return _OTHER_SIDE[reason]

        if columns is None:
            columns = self._read(event)
        if type(columns) is not Columns:
            assert isinstance(columns, Unreadable)
            cause = DeadLetterCause.DOCUMENT_TOO_LARGE if columns.too_large else DeadLetterCause.UNDECODABLE_CHANGES
            return Refused(cause, columns.why)
        created_at_ms = event.created_at // 1000
        if not _TIMESTAMP_MIN_MS <= created_at_ms <= _TIMESTAMP_MAX_MS:
            return Refused(DeadLetterCause.TRANSFORM_FAILED, "created_at is outside the years 1 to 9999")
        values, refused, direct = columns
        if refused:
            self.counts.refused_values += refused
        if not direct:
            self.counts.read_by_nodes += 1

        action = rule.action
        if rule.status_column in values and changes_status(rule, values):
            if rule.status_ids is None:
                self.counts.status_id_set_missing += 1
            action = action_of(rule, values)
        actor, fell_back = self._actors.actor(event, lookups)
        if fell_back:
            self.counts.actors_fell_back += 1
        metadata: dict[str, Any] = {"crm_person_id": int(person_id)}
        self._associations.add_linked(metadata, event, values, lookups)
        if event.request_uuid:
            metadata["request_id"] = event.request_uuid
        if event.version:
            metadata["version"] = event.version
        document: dict[str, Any] = {
            "company_sso_id": company_sso_id,
            "customer_id": contact.customer_id,
            "category": rule.category,
            "action": action,
            "actor": actor,
            "changes": self._change_rules.changes(event.auditable_type, event.action, values),
            "timestamp": _EPOCH + timedelta(milliseconds=created_at_ms),
            "external_id": f"crm_audit:{event.audit_id}",
            "source_tag": SOURCE_TAG,
            "metadata": metadata,
        }
        if self._live:
            del document["source_tag"]
        return Transformed(document)

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
