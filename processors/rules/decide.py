"""Audit row -> what it becomes, or why it becomes nothing. Pure; the one place with the order of the rules.

The order is the contract's, and the first rule that applies decides the reason that is counted: scope, contact,
watermark, changes. (The fourth skip, a duplicate, is decided by the unique index at the write.) A decision is rendered
elsewhere: as a document and as BSON by `processors.encoding.transform`, its trail by `crm-replay explain`.
"""

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, final

from processors.rules.actors import Actor, ActorRules
from processors.rules.associations import AssociationRules, Link
from processors.rules.categories import action_of, category_rules, changes_status
from processors.rules.changes import ChangeRules
from processors.rules.contacts import Resolved, resolve
from processors.rules.watermark import skip_reason
from schemas.records import AuditEvent, Contact, Referent, User
from schemas.source.audited_changes import Columns, Unreadable, read
from schemas.source.mapping import SourceMapping
from schemas.source.person import comment_candidates, further_candidates, placed_candidates
from schemas.vocabulary import DeadLetterCause, FellBack, SkipReason

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a BSON date and Python's datetime both hold, in microseconds: the years 1 to 9999, up to the last one's last day.
CREATED_AT_MIN = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
CREATED_AT_END = (datetime(9999, 12, 31, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1) + 1000
_NOTHING: dict[str, Any] = {}


@final
class Skip(NamedTuple):
    """A row left out on purpose."""

    reason: SkipReason


@final
class Refused(NamedTuple):
    """A row that cannot be understood; `detail` is one line without anything of its content."""

    cause: DeadLetterCause
    detail: str


class Decision(NamedTuple):
    """An activity log is made of the row: all of it that takes a rule."""

    category: str
    action: str
    person_id: str
    contact: Contact
    changes: Columns
    actor: Actor
    links: tuple[Link, ...]


class Answer(NamedTuple):
    """The inputs of a rule. The last one of a trail decided, if the row is skipped or refused.

    `crm-replay explain` has a sentence for each rule here; the facts of any other rule are shown as plain values.
    """

    rule: str
    facts: dict[str, Any]


class Lookups(Protocol):
    """Pure reads of preloaded data."""

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact with this CRM person id: by `crm_data.id`, then by `crm_contact_id_map`."""

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, soft-deleted or not."""

    def sso_id(self, email: str) -> str | None:
        """Return the user directory's SSO id; None: the actor falls back."""

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return the name of a CRM record."""


@dataclass(slots=True)
class Counts:
    """What operators watch in addition to the outcomes; sums over one account's rules and renderers."""

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


_UNMAPPED = Skip(SkipReason.UNMAPPED_ACTION_TYPE)
_NO_CONTACT = Skip(SkipReason.CONTACT_NOT_FOUND)
_OTHER_SIDE = {reason: Skip(reason) for reason in (SkipReason.POST_SYNC_LIVE_FEED, SkipReason.PRE_SYNC_REPLAY)}
_UNDATED = Refused(DeadLetterCause.TRANSFORM_FAILED, "created_at is outside the years 1 to 9999")


class Rules:
    """One account's rules."""

    def __init__(self, mapping: SourceMapping, company_sso_id: str, *, live: bool | None = False) -> None:
        """`live`: the side of the watermark; None takes rows of either side."""
        self.counts = Counts()
        self.company_sso_id = company_sso_id
        self.change_rules = ChangeRules(mapping)
        self._live = live
        self.person = mapping.person
        self.categories = category_rules(mapping)
        self._clock_columns = {
            type_name: columns for type_name in mapping.scope if (columns := self.change_rules.clock_columns(type_name))
        }
        self.actors = ActorRules(mapping)
        self.counts.fell_back = self.actors.fell_back
        self.associations = AssociationRules(mapping)

    def for_account(self, company_sso_id: str) -> "Rules":
        """Return these rules for another account; caches and counts are shared."""
        other = copy(self)
        other.company_sso_id = company_sso_id
        return other

    def is_mapped(self, event: AuditEvent) -> bool:
        """Return whether the row's type and action have a category; the others need no look-up."""
        return (event.auditable_type, event.action) in self.categories

    def decide(
        self,
        event: AuditEvent,
        lookups: Lookups,
        columns: Columns | Unreadable | None = None,
        trail: list[Answer] | None = None,
    ) -> Decision | Skip | Refused:
        """Return what the row becomes, or why it becomes nothing. Here is the order of the rules.

        `columns` is what `read` has returned of the row before. `trail` gets each rule's answer, up to and with that of
        the one that decides.
        """
        rule = self.categories.get((event.auditable_type, event.action))
        if trail is not None:
            trail.append(Answer("scope", {"rule": rule}))
        if rule is None:
            return _UNMAPPED

        # The comment is tried alone at first: it names the person of most rows, without their changes being read.
        resolved = resolve(comment_candidates(event.comment, self.person), self.company_sso_id, lookups)
        if resolved is None:
            if columns is None:
                columns = self.read(event)
            further = further_candidates(event, self.person, _values(columns))
            resolved = resolve(further, self.company_sso_id, lookups)
        if trail is not None:
            trail.append(Answer("contact", {"tried": self._tried(event, columns, resolved)}))
        if resolved is None:
            return _NO_CONTACT
        person_id, contact = resolved

        reason = skip_reason(event.created_at, contact.created_at, self._live)
        if trail is not None:
            trail.append(Answer("watermark", {"created_at": event.created_at, "synced_at": contact.created_at}))
        if reason is not None:
            return _OTHER_SIDE[reason]

        if columns is None:
            columns = self.read(event)
        if trail is not None:
            trail.append(Answer("changes", {"columns": columns}))
        if isinstance(columns, Unreadable):
            cause = DeadLetterCause.DOCUMENT_TOO_LARGE if columns.too_large else DeadLetterCause.UNDECODABLE_CHANGES
            return Refused(cause, columns.why)
        if not CREATED_AT_MIN <= event.created_at < CREATED_AT_END:
            if trail is not None:
                trail.append(Answer("timestamp", {"created_at": event.created_at}))
            return _UNDATED
        self._count(columns)
        values = columns.values

        action = rule.action
        if rule.status_column in values:
            if rule.status_ids is None and changes_status(rule, values):
                self.counts.status_id_set_missing += 1
            action = action_of(rule, values)
            if trail is not None and changes_status(rule, values):
                trail.append(Answer("status", {"rule": rule, "action": action}))
        actor = self.actors.actor(event, lookups)
        links = self.associations.links(event, values, lookups)
        return Decision(rule.category, action, person_id, contact, columns, actor, links)

    def read(self, event: AuditEvent) -> Columns | Unreadable:
        """Return all columns of the row's changes, or why they cannot be read."""
        clock_columns = self._clock_columns.get(event.auditable_type)
        if clock_columns is None:
            return read(event.audited_changes, event.changes_are_json)
        return read(event.audited_changes, event.changes_are_json, clock_columns)

    def deciding_columns(self, type_name: str, action: str) -> frozenset[str]:
        """Return the columns of mapped rows whose values decide more than the log's `changes`."""
        return self.associations.columns_of(type_name) | {self.categories[type_name, action].status_column}

    def _count(self, columns: Columns) -> None:
        """Count unusual readings of a row that becomes a log."""
        self.counts.refused_values += columns.refused
        self.counts.read_by_nodes += not columns.direct

    def _tried(
        self, event: AuditEvent, columns: Columns | Unreadable | None, resolved: Resolved | None
    ) -> list[dict[str, Any]]:
        """Return the persons that were tried, each with the first place where the row names it."""
        tried: list[dict[str, Any]] = []
        for person_id, place in placed_candidates(event, self.person, _values(columns)).items():
            is_the_one = resolved is not None and resolved[0] == person_id
            customer_id = resolved[1].customer_id if resolved is not None and is_the_one else None
            tried.append({"person_id": person_id, "from": str(place), "customer_id": customer_id})
            if is_the_one:
                break
        return tried


def _values(columns: Columns | Unreadable | None) -> Mapping[str, Any]:
    return columns.values if type(columns) is Columns else _NOTHING
