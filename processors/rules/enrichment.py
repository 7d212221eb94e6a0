"""Which audit rows are association logs, and what each says of its links. Pure; read by the topology's own rules.

A log's changes are never patched, so they are not rendered here: half of what a transformation costs.

Only rows that link or unlink records, or that bring one to its won, done or resolved status. Whether the replay or the
live feed owns a row makes no difference: either one's document can lack names.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from processors.rules.associations import metadata_of
from processors.rules.categories import CategoryOf, action_of, category_rules
from processors.rules.decide import Lookups, Refused, Rules, Skip
from schemas.identity import external_id_of
from schemas.records import AuditEvent
from schemas.source.audited_changes import Columns
from schemas.source.mapping import SourceMapping


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
        self._decides = Rules(mapping, company_sso_id, live=None)
        self._actions = frozenset(actions)
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
        """Return whether a row can be an association row; rejects most others cheaply."""
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
        columns = self._decides.read(event)
        if action_of(rule, columns.values if isinstance(columns, Columns) else {}) not in self._actions:
            return None
        decision = self._decides.decide(event, lookups, columns=columns)
        if isinstance(decision, Skip | Refused):
            return decision
        return AssociationLog(
            external_id_of(event.audit_id),
            decision.contact.customer_id,
            decision.category,
            decision.action,
            event.created_at // 1000,
            {"crm_person_id": int(decision.person_id), **metadata_of(decision.links)},
            tuple(Name(key, type_name, record_id) for _, key, type_name, record_id, _ in decision.links),
        )


def _may_reach(rule: CategoryOf) -> Callable[[str], re.Match[str] | None]:
    """Return a search of a row's text that finds nothing only where the row cannot bring a record to the rule's status.

    It finds the status column, unless a pair of it ends in a number that is not one of the status: all that most
    updates of the column are. Another spelling of value or name than Rails' own (a name that is not in the text as it
    is is spelt with an escape or under a tag for base64) is found.
    """
    wanted = "|".join(re.escape(status_id) for status_id in sorted(rule.status_ids or ()))
    other = rf":\n-(?: [^\n]*)?\n- (?!(?:{wanted})\n)(?:0|[1-9][0-9]*)\n(?![ \t])"
    return re.compile(rf"{re.escape(rule.status_column)}(?!{other})|\\|![b<%!]|%TAG").search
