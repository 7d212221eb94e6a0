"""What a row is in the log: (type, action, changed columns) -> (category, action). Pure; the data is the mapping's."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.source.mapping import SourceMapping

# What the gem calls an action -> what a log calls it.
RECORD_ACTIONS = {"create": "create", "update": "update", "destroy": "delete"}
_LINK_ACTIONS = {"create": "link", "update": "update", "destroy": "unlink"}


class CategoryOf(NamedTuple):
    """How rows of one type and action are logged."""

    category: str
    action: str
    is_link: bool = False
    status_column: str = ""  # of an update: a change of it to one of `status_ids` makes it `status_action`
    status_action: str = ""
    status_ids: frozenset[str] | None = None  # None: the mapping names an id set that it does not have


def category_rules(mapping: SourceMapping) -> dict[tuple[str, str], CategoryOf]:
    """Return the rule of every (type, action) that is mapped and in scope; all others are unmapped."""
    rules: dict[tuple[str, str], CategoryOf] = {}
    scope = frozenset(mapping.scope)
    for type_name, join in mapping.join_models.items():
        for gem_action, action in _LINK_ACTIONS.items():
            rules[type_name, gem_action] = CategoryOf(join.category, action, is_link=True)
    for type_name, rule in mapping.categories.items():
        for gem_action, action in RECORD_ACTIONS.items():
            rules[type_name, gem_action] = CategoryOf(rule.category, action)
        if (status := rule.status) is not None:
            ids = mapping.id_sets.get(status.id_set)  # an empty set is as good as none: it can only be an oversight
            status_ids = frozenset(filter(None, map(status_id, ids))) if ids else None
            rules[type_name, "update"] = CategoryOf(
                rule.category, "update", False, status.column, status.action, status_ids
            )
    return {key: rule for key, rule in rules.items() if key[0] in scope}


def changes_status(rule: CategoryOf, columns: Mapping[str, Any]) -> bool:
    """Return whether an update changes the status column its rule watches.

    A bare value does not: a combined row has it from the folded `create`, which is no status change either.
    """
    value = columns.get(rule.status_column) if rule.status_column else None
    return type(value) is list and len(value) == 2


def action_of(rule: CategoryOf, columns: Mapping[str, Any]) -> str:
    """Return the log's action for a row with these columns; ids match by their value, stored as numbers or text."""
    if (
        rule.status_ids is not None
        and changes_status(rule, columns)
        and status_id(columns[rule.status_column][1]) in rule.status_ids
    ):
        return rule.status_action
    return rule.action


def status_id(value: Any) -> str | None:
    """Return a status id by its value: 39, 39.0, "39" and the decimal "39.0" are one. Other text is itself."""
    if type(value) is int:
        return str(value)
    if type(value) is float:
        return str(int(value)) if value.is_integer() else None
    if type(value) is not str:
        return None
    return whole[1] if (whole := _WHOLE.fullmatch(value)) is not None else value


_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)(?:\.0+)?", re.ASCII)
