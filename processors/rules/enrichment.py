"""Which audit rows are association logs, and what each says of its links. Pure; read by the topology's own rules.

A log's changes and actor are never patched, so they are not made here: half of what a transformation costs. Tests hold
the rest against `Transformer.transform`.

Only rows that link or unlink records, or that bring one to its won, done or resolved status. Whether the replay or the
live feed owns a row makes no difference: either one's document can lack names.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from processors.rules.associations import AssociationRules
from processors.rules.categories import CategoryOf, action_of, category_rules
from processors.rules.changes import ChangeRules
from processors.rules.contacts import resolve
from processors.rules.transform import Lookups, Refused, Skip
from schemas.identity import external_id_of
from schemas.records import AuditEvent
from schemas.source.audited_changes import Columns, Unreadable, read
from schemas.source.mapping import SourceMapping
from schemas.source.person import changes_candidates, comment_candidates, own_candidates
from schemas.vocabulary import DeadLetterCause, SkipReason

TYPE_KEY, ID_KEY, NAME_KEY = "linked_entity_type", "linked_entity_id", "linked_entity_name"
_NO_CONTACT = Skip(SkipReason.CONTACT_NOT_FOUND)


class Name(NamedTuple):
    """A name that belongs into a log's metadata: under `key`, that of the record `type_name` `record_id`."""

    key: str
    type_name: str
    record_id: int


class AssociationLog(NamedTuple):
    """An association row's log, as far as enrichment needs it. `links` is its metadata about links, without names."""

    external_id: str
    customer_id: str
    category: str
    action: str
    timestamp_ms: int  # since 1970 UTC
    links: dict[str, Any]
    names: tuple[Name, ...]


class AssociationFinder:
    """Finds the association rows of one account."""

    def __init__(
        self, mapping: SourceMapping, company_sso_id: str, categories: Collection[str], actions: Collection[str]
    ) -> None:
        """`categories` and `actions` are those of the logs that are wanted."""
        self._company_sso_id = company_sso_id
        self._person = mapping.person
        self._actions = frozenset(actions)
        self._associations = AssociationRules(mapping)
        self._clock_columns = ChangeRules(mapping).clock_columns
        # Of each join model the sides that have a name: column, key of the name, type.
        self._joins = {
            type_name: tuple(
                (column, f"{column.removesuffix('_id')}_name", side)
                for column, side in join.links.items()
                if side not in mapping.person.types
            )
            for type_name, join in mapping.join_models.items()
        }
        self._rules = {
            key: rule
            for key, rule in category_rules(mapping).items()
            if rule.category in categories
            and (rule.action in actions if not rule.status_ids else rule.status_action in actions)
        }

        self._reaches_status = {key: _may_reach(rule) for key, rule in self._rules.items() if not rule.is_link}

    @property
    def types(self) -> tuple[str, ...]:
        """The types whose rows can be association rows."""
        return tuple(sorted({type_name for type_name, _ in self._rules}))

    @property
    def kinds(self) -> tuple[tuple[str, str, str], ...]:
        """Type and action of the rows that can be association rows, and the column that their changes have to name."""
        return tuple((*key, "" if rule.is_link else rule.status_column) for key, rule in sorted(self._rules.items()))

    def may_be(self, event: AuditEvent) -> bool:
        """Return whether a row can be an association row; says no to most others, cheaply."""
        key = event.auditable_type, event.action
        rule = self._rules.get(key)
        if rule is None:
            return False
        return rule.is_link or self._reaches_status[key](event.audited_changes) is not None

    def find(self, event: AuditEvent, lookups: Lookups) -> AssociationLog | Skip | Refused | None:
        """Return the log of an association row, or why it has none; None for a row that is not one.

        `lookups` need not know any names. Only for rows of which `may_be` is true.
        """
        rule = self._rules[event.auditable_type, event.action]
        columns = read(event.audited_changes, event.changes_are_json, self._clock_columns(event.auditable_type))
        values = columns.values if isinstance(columns, Columns) else {}
        action = action_of(rule, values)
        if action not in self._actions:
            return None
        resolved = resolve(comment_candidates(event.comment, self._person), self._company_sso_id, lookups)
        if resolved is None:
            others = (*changes_candidates(event.action, self._person, values), *own_candidates(event, self._person))
            resolved = resolve(others, self._company_sso_id, lookups)
            if resolved is None:
                return _NO_CONTACT
        if isinstance(columns, Unreadable):
            cause = DeadLetterCause.DOCUMENT_TOO_LARGE if columns.too_large else DeadLetterCause.UNDECODABLE_CHANGES
            return Refused(cause, columns.why)
        person_id, contact = resolved
        links: dict[str, Any] = {"crm_person_id": int(person_id)}
        self._associations.add_linked(links, event, values, lookups)
        return AssociationLog(
            external_id_of(event.audit_id),
            contact.customer_id,
            rule.category,
            action,
            event.created_at // 1000,
            links,
            self._names(event.auditable_type, links),
        )

    def _names(self, type_name: str, links: dict[str, Any]) -> tuple[Name, ...]:
        names = []
        if TYPE_KEY in links and ID_KEY in links:
            names.append(Name(NAME_KEY, links[TYPE_KEY], links[ID_KEY]))
        for column, key, side in self._joins.get(type_name, ()):
            if column in links:
                names.append(Name(key, side, links[column]))
        return tuple(names)


def _may_reach(rule: CategoryOf) -> Callable[[str], re.Match[str] | None]:
    """Return a search of a row's text that finds nothing only where the row cannot bring a record to the rule's status.

    It finds the status column, unless a pair of it ends in a number that is not one of the status: all that most
    updates of the column are. Another spelling of value or name than Rails' own (a name that is not in the text as it
    is is spelt with an escape or under a tag for base64) is found.
    """
    wanted = "|".join(re.escape(status_id) for status_id in sorted(rule.status_ids or ()))
    other = rf":\n-(?: [^\n]*)?\n- (?!(?:{wanted})\n)(?:0|[1-9][0-9]*)\n(?![ \t])"
    return re.compile(rf"{re.escape(rule.status_column)}(?!{other})|\\|![b<%!]|%TAG").search
