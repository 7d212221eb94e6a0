"""`audited_changes` -> the log's list of `{field, label, from, to}`. Pure.

What can be told from a row alone, and what only from the mapping:

* create and destroy rows hold bare values; a list is a list.
* update rows hold `[old, new]`. A value that is no list of two is bare: the gem (4.10 to 5.0) adds redacted columns so,
  and a combined row carries over the columns of the `create` that was folded into it. Bare values have no `from`.
* A list of two in an update is a pair, unless all of this holds: the row has other bare values, which redaction does
  not explain, so a `create` was folded in; the mapping says that the column can hold lists (`list_columns`); and no
  side of it is a list, an object or null, as a pair of such a column has. If the mapping does not say so, it is a pair.
* Secrets that old versions stored in the clear cannot be told from other text: columns to redact are the mapping's.
* An enum's number and its name cannot be told apart from other numbers and texts: the mapping's `enums` gives names.
* An instant on 2000-01-01 can be a date: the mapping also says which columns are times of day.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from schemas.source.mapping import SourceMapping

REDACTED = "[REDACTED]"
_REDACTIONS = frozenset((REDACTED, "[FILTERED]"))
_COLUMNS_KEPT_MAX = 10_000  # a hostile table could have a new column in every row
_ISO_TIME = re.compile(
    r"-?[0-9]{4,5}-[0-9]{2}-[0-9]{2}[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?(Z|[-+][0-9]{2}:?[0-9]{2})?"
)


class ColumnRule(NamedTuple):
    """What the mapping says of one column of one type."""

    label: str
    redacted: bool
    can_be_list: bool
    names: Mapping[str, str] | None  # of an enum: database value -> name
    is_clock: bool

    @property
    def is_simple(self) -> bool:
        """Whether values are shown as they are, and a list of two in an update is a pair."""
        return not self.can_be_list and self.shows_values

    @property
    def shows_values(self) -> bool:
        """Whether values are shown as they are."""
        return not self.redacted and self.names is None and not self.is_clock


class ChangeRules:
    """Turns columns into changes, by one source mapping."""

    def __init__(self, mapping: SourceMapping) -> None:
        """The rules of a column are computed when it first appears."""
        self._mapping = mapping
        self._zone = ZoneInfo(mapping.time_zone) if mapping.time_zone is not None else None
        self._columns: dict[tuple[str, str], ColumnRule] = {}
        self._simple_labels: dict[str, dict[str, str]] = {}

    def clock_columns(self, type_name: str) -> frozenset[str]:
        """Return the type's columns that hold times of day."""
        return self._mapping.columns_of(self._mapping.times_of_day, type_name)

    def changes(self, type_name: str, action: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the changes of a row, in the order of its columns. `action` is the gem's."""
        if action == "update":
            return self._updated(type_name, columns)
        labels = self._simple_labels.get(type_name)
        if labels is None:
            labels = self._simple_labels[type_name] = {}
        found: list[dict[str, Any]] = []
        created = action == "create"
        for column, value in columns.items():
            label = labels.get(column)
            if label is None:
                rule = self.rule(type_name, column)
                label = rule.label
                if rule.is_simple:
                    if len(labels) < _COLUMNS_KEPT_MAX:
                        labels[column] = label
                else:
                    value = self.shown(rule, value)
            if not created:
                found.append({"field": column, "label": label, "from": value, "to": None})
            elif value is not None:
                found.append({"field": column, "label": label, "from": None, "to": value})
        return found

    def _updated(self, type_name: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        labels = self._simple_labels.get(type_name)
        if labels is None:
            labels = self._simple_labels[type_name] = {}
        found: list[dict[str, Any]] = []
        combined: bool | None = None
        for column, value in columns.items():
            label = labels.get(column)
            rule = None
            if label is None:
                rule = self.rule(type_name, column)
                label = rule.label
                if rule.is_simple:
                    if len(labels) < _COLUMNS_KEPT_MAX:
                        labels[column] = label
                    rule = None
            is_pair = type(value) is list and len(value) == 2
            if is_pair and rule is not None and rule.can_be_list and not is_pair_of_lists(value):
                if combined is None:
                    combined = self._has_folded_create(type_name, columns)
                is_pair = not combined
            old, new = value if is_pair else (None, value)
            if rule is not None and not rule.shows_values:
                new = self.shown(rule, new)
                old = self.shown(rule, old) if is_pair else None
            found.append({"field": column, "label": label, "from": old, "to": new})
        return found

    def _has_folded_create(self, type_name: str, columns: Mapping[str, Any]) -> bool:
        return any(
            not (type(value) is list and len(value) == 2)
            and not (isinstance(value, str) and value in _REDACTIONS)
            and not self.rule(type_name, column).redacted
            for column, value in columns.items()
        )

    def rule(self, type_name: str, column: str) -> ColumnRule:
        """Return the rule of a type's column."""
        rule = self._columns.get((type_name, column))
        if rule is None:
            mapping = self._mapping
            label = mapping.labels.get(type_name, {}).get(column) or mapping.labels.get("*", {}).get(column)
            names = mapping.enums.get(type_name, {}).get(column) or mapping.enums.get("*", {}).get(column)
            rule = ColumnRule(
                label=label or humanized(column),
                redacted=column in mapping.columns_of(mapping.redact, type_name),
                can_be_list=column in mapping.columns_of(mapping.list_columns, type_name),
                names={str(value): name for value, name in names.items()} if names else None,
                is_clock=column in self.clock_columns(type_name),
            )
            if len(self._columns) < _COLUMNS_KEPT_MAX:
                self._columns[type_name, column] = rule
        return rule

    def shown(self, rule: ColumnRule, value: Any) -> Any:
        """Return what is shown for a value by a rule that does not show values as they are."""
        if rule.redacted:
            return REDACTED
        if rule.names is not None and type(value) in (int, str):
            return rule.names.get(str(value), value)
        if rule.is_clock and type(value) is str:
            return clock_time(value, self._zone)
        return value


def is_pair_of_lists(value: list[Any]) -> bool:
    """Return whether both sides can be values of a column that holds lists or objects, and one certainly is."""
    return all(side is None or type(side) in (list, dict) for side in value) and value != [None, None]


def clock_time(value: str, zone: ZoneInfo | None) -> str:
    """Return the clock time of a time-of-day column's value: `09:30:00`, six digits more if there is a fraction.

    A time with an offset shows the local clock already. A plain UTC timestamp is converted to `zone`, on its own day;
    without a zone it is the clock. What is no time stays as it is.
    """
    found = _ISO_TIME.fullmatch(value)
    if found is None:
        return value
    clock, fraction, offset = found.groups()
    if zone is not None and offset == "Z":
        try:
            clock = datetime.fromisoformat(f"{value[:10]}T{clock}+00:00").astimezone(zone).strftime("%H:%M:%S")
        except (ValueError, OverflowError):  # years that Python does not have
            return value
    micros = (fraction or "")[:6].ljust(6, "0")
    return clock if micros == "000000" else f"{clock}.{micros}"


def humanized(column: str) -> str:
    """Return a column's name as Rails' `humanize` writes it: `crm_stage_id` -> `Crm stage`."""
    text = column.lstrip("_").removesuffix("_id").replace("_", " ").lower()
    return text[:1].upper() + text[1:]
