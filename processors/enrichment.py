"""Which audit rows are association logs, and what each says of its links. Pure; read by the topology's own rules.

Only rows that link or unlink records, or that bring one to its won, done or resolved status. Whether the replay or the
live feed owns a row makes no difference: either one's document can lack names.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from processors.categories import action_of, category_rules
from processors.transform import Lookups, Refused, Skip, Transformed, Transformer
from schemas.audited_changes import Columns, read
from schemas.mapping import SourceMapping
from schemas.records import AuditEvent
from schemas.vocabulary import SkipReason

NOT_LINKS = ("request_id", "version")  # metadata that says nothing of a link
TYPE_KEY, ID_KEY, NAME_KEY = "linked_entity_type", "linked_entity_id", "linked_entity_name"


class Name(NamedTuple):
    """A name that belongs into a log's metadata: under `key`, that of the record `type_name` `record_id`."""

    key: str
    type_name: str
    record_id: int


class AssociationLog(NamedTuple):
    """An association row's log. `links` is its metadata about links, without names."""

    document: dict[str, Any]
    links: dict[str, Any]
    names: tuple[Name, ...]


class AssociationFinder:
    """Finds the association rows of one account."""

    def __init__(
        self, mapping: SourceMapping, company_sso_id: str, categories: Collection[str], actions: Collection[str]
    ) -> None:
        """`categories` and `actions` are those of the logs that are wanted."""
        self._sides = (Transformer(mapping, company_sso_id), Transformer(mapping, company_sso_id, live=True))
        self._actions = frozenset(actions)
        # Of each join model the sides that have a name: column -> type.
        self._joins = {
            type_name: {column: side for column, side in join.links.items() if side != mapping.person.type}
            for type_name, join in mapping.join_models.items()
        }
        self._rules = {
            key: rule
            for key, rule in category_rules(mapping).items()
            if rule.category in categories
            and (rule.action in actions if not rule.status_ids else rule.status_action in actions)
        }

    @property
    def types(self) -> tuple[str, ...]:
        """The types whose rows can be association rows."""
        return tuple(sorted({type_name for type_name, _ in self._rules}))

    def may_be(self, event: AuditEvent) -> bool:
        """Return whether a row can be an association row; says no to most others, cheaply."""
        rule = self._rules.get((event.auditable_type, event.action))
        if rule is None:
            return False
        text = event.audited_changes
        # A name that is not in the text as it is can only be spelt with an escape or a tag.
        return rule.is_link or rule.status_column in text or "\\" in text or "!" in text

    def find(self, event: AuditEvent, lookups: Lookups) -> AssociationLog | Skip | Refused | None:
        """Return the log of an association row, or why it has none; None for a row that is not one.

        `lookups` need not know any names. Only for rows of which `may_be` is true.
        """
        replay, live = self._sides
        result = replay.transform(event, lookups)
        if isinstance(result, Skip) and result.reason is SkipReason.POST_SYNC_LIVE_FEED:
            result = live.transform(event, lookups)
        if not isinstance(result, Transformed):
            return result if self._is_one(event) else None
        if result.document["action"] not in self._actions:
            return None
        metadata = result.document.get("metadata", {})
        links = {key: value for key, value in metadata.items() if key not in NOT_LINKS}
        return AssociationLog(result.document, links, self._names(event.auditable_type, links))

    def _is_one(self, event: AuditEvent) -> bool:
        """Return whether a row without a log is an association row, as far as it can be read."""
        rule = self._rules[event.auditable_type, event.action]
        if rule.is_link:
            return True
        columns = read(event.audited_changes, event.changes_are_json)
        return isinstance(columns, Columns) and action_of(rule, columns.values) in self._actions

    def _names(self, type_name: str, links: dict[str, Any]) -> tuple[Name, ...]:
        names = []
        if TYPE_KEY in links and ID_KEY in links:
            names.append(Name(NAME_KEY, links[TYPE_KEY], links[ID_KEY]))
        names += [
            Name(f"{column.removesuffix('_id')}_name", side, links[column])
            for column, side in self._joins.get(type_name, {}).items()
            if column in links
        ]
        return tuple(names)
