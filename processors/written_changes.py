"""`audited_changes` -> the log's `changes` as BSON, in one pass, for the forms that most rows have. Pure.

What `schemas.audited_changes` reads and `processors.changes` tells, without the columns and changes in between: a line
that has been seen before is one look-up, and gives bytes that are ready. It never guesses: a text with anything in it
that has to be thought about is None, and takes the long way. What it does return is what the long way returns, to the
byte; tests/unit/processors/test_written_changes.py shows it on every sample row and on generated ones.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

from processors.bson_parts import DOCUMENT_AT, END, INDEXES_MAX, LENGTH_BYTES, LENGTHS, element, length, text_element
from processors.changes import ChangeRules, ColumnRule, is_pair_of_lists
from schemas.audited_changes.direct import (
    LENGTH_MAX,
    ROOTS,
    Document,
    UnknownFormError,
    is_known_column,
    is_plain,
    known_item,
)

KNOWN_MAX = 20_000  # lines of a kind that are kept; of items, 8 MB
LINE_LENGTH_MAX = 60  # of those
_FROM, _TO = b"from", b"to"
_NO_FROM, _NO_TO = element(_FROM, None), element(_TO, None)
_AROUND = LENGTH_BYTES + len(END)
_BELOW = ("-", " ")  # how a line begins that belongs to the column above it


class Written(NamedTuple):
    """The changes of a row: the elements of the array, and the values of the columns that were asked for."""

    elements: bytes
    values: Mapping[str, Any]


class _Column(NamedTuple):
    """A column of one type."""

    begin: bytes  # of its change: field and label
    is_wanted: bool
    rule: ColumnRule


Write = Callable[[str], Written | None]
_NOTHING: dict[str, Any] = {}
# Lines of sequences, of whatever column: what each is on either side of a change, and its value. The same keys in all.
_old: dict[str, bytes] = {}
_new: dict[str, bytes] = {}
_values: dict[str, Any] = {}


def writer(rules: ChangeRules, type_name: str, action: str, wanted: Collection[str]) -> Write:
    """Return a function from the YAML text of a row of this type and action to its changes.

    `action` is the gem's. `wanted` are columns whose values decide more than the changes. None: it takes the long way.
    """
    columns = _Columns(rules, type_name, wanted)
    return _Pairs(columns).write if action == "update" else _Bare(columns, created=action == "create").write


class _Columns:
    """What is known of the columns of one type."""

    def __init__(self, rules: ChangeRules, type_name: str, wanted: Collection[str]) -> None:
        self._rules = rules
        self._type_name = type_name
        self._wanted = frozenset(wanted)
        self._clocks = rules.clock_columns(type_name)
        self._known: dict[str, _Column] = {}

    def document(self, text: str, lines: list[str]) -> Document:
        """Return a reader of a text in which something is new. Raises UnknownFormError if it is not for us."""
        if (
            lines[-1]
            or lines[0] not in ROOTS
            or len(text) > LENGTH_MAX
            or not is_plain(lines)
            or (self._clocks and any(column in text for column in self._clocks))
        ):
            raise UnknownFormError
        return Document(lines)

    def column(self, key: str) -> _Column:
        column = self._known.get(key)
        if column is None:
            rule = self._rules.rule(self._type_name, key)
            begin = text_element(b"field", key) + text_element(b"label", rule.label)
            column = _Column(begin, key in self._wanted, rule)
            _remember(self._known, key, column)
        return column

    def shown(self, rule: ColumnRule, value: Any) -> Any:
        return value if rule.shows_values else self._rules.shown(rule, value)


class _Pairs:
    """Updates: each column has its old and its new value."""

    def __init__(self, columns: _Columns) -> None:
        self._columns = columns
        # Line of a column that is shown as it is, and whose values stand below it -> how its change begins.
        self._begins: dict[str, bytes] = {}
        self._wanted: dict[bytes, str] = {}  # how its change begins -> the column, of those that are wanted

    def write(self, text: str) -> Written | None:
        """Return the changes of a row, None if it takes the long way."""
        lines = text.split("\n")
        # A row of pairs whose lines are all known is three look-ups a column, all in C.
        if len(lines) % 3 == 2:
            try:
                begins = [*map(self._begins.__getitem__, lines[1:-1:3])]
                old = [*map(_old.__getitem__, lines[2:-1:3])]
                new = [*map(_new.__getitem__, lines[3:-1:3])]
            except KeyError:
                pass
            else:
                if (
                    len({*begins}) == len(begins) > 0
                    and lines[0] in ROOTS
                    and not lines[-1]
                    and len(begins) < INDEXES_MAX
                ):
                    values = self._wanted_in(lines, begins) if self._wanted else _NOTHING
                    parts: list[bytes] = []
                    for at, begin, from_element, to_element in zip(DOCUMENT_AT, begins, old, new, strict=False):
                        size = len(begin) + len(from_element) + len(to_element) + _AROUND
                        parts += (
                            at, LENGTHS[size] if size < 4096 else length(size), begin, from_element, to_element, END,
                        )  # fmt: skip
                    return Written(b"".join(parts), values)
        try:
            return self._read(self._columns.document(text, lines), lines)
        except UnknownFormError:
            return None

    def _wanted_in(self, lines: list[str], begins: list[bytes]) -> dict[str, Any]:
        """Return the old and new values of the wanted columns in a row of pairs whose lines are all known."""
        return {
            column: [_values[lines[3 * begins.index(begin) + 2]], _values[lines[3 * begins.index(begin) + 3]]]
            for begin, column in self._wanted.items()
            if begin in begins
        }

    def _read(self, document: Document, lines: list[str]) -> Written | None:
        """Return the changes of a row in which something is new, or has to be looked at. Raises UnknownFormError."""
        columns, begins, old, new = self._columns, self._begins, _old, _new
        parts: list[bytes] = []
        keys: set[bytes] = set()
        values: dict[str, Any] = {}
        at, end = 1, len(lines) - 1
        for index in DOCUMENT_AT:
            if at >= end:
                if len(keys) != len(parts) // 6 or (not keys and lines[0] != ROOTS[0]):
                    return None
                return Written(b"".join(parts), values)
            begin = begins.get(lines[at], b"")
            # The lines that follow are there: none but the last one is empty, and no line that is known is.
            if (
                begin
                and (from_element := old.get(lines[at + 1])) is not None
                and (to_element := new.get(lines[at + 2])) is not None
                and lines[at + 3][:1] != "-"
            ):
                if begin in self._wanted:
                    values[self._wanted[begin]] = [_values[lines[at + 1]], _values[lines[at + 2]]]
                at += 3
            else:
                key, value, after = document.column(at)
                column = columns.column(key)
                begin, is_wanted, rule = column
                if is_wanted:
                    values[key] = value
                if type(value) is list and len(value) == 2:
                    if rule.can_be_list and not is_pair_of_lists(value):
                        raise UnknownFormError  # only the other columns say whether this is a pair
                    from_value, to_value = value
                    if rule.shows_values:
                        self._learn(lines, at, after, column, key)
                    else:
                        from_value, to_value = columns.shown(rule, from_value), columns.shown(rule, to_value)
                    from_element, to_element = element(_FROM, from_value), element(_TO, to_value)
                else:
                    from_element, to_element = _NO_FROM, element(_TO, columns.shown(rule, value))
                at = after
            keys.add(begin)
            size = len(begin) + len(from_element) + len(to_element) + _AROUND
            parts += index, length(size), begin, from_element, to_element, END
        return None  # more columns than we have places for

    def _learn(self, lines: list[str], at: int, after: int, column: _Column, key: str) -> None:
        """Remember the lines in [at, after) of a pair, as far as they mean the same wherever they stand."""
        begin, is_wanted, rule = column
        line = lines[at]
        if rule.is_simple and line not in self._begins and len(line) <= LINE_LENGTH_MAX:
            _remember(self._begins, line, begin)
            if is_wanted:
                self._wanted[begin] = key
        if after != at + 3:
            return  # a value that takes several lines is none to remember
        for line in lines[at + 1 : after]:
            if line not in _old and (found := known_item(line)) is not None:
                if len(_old) >= KNOWN_MAX:
                    _old.clear()
                    _new.clear()
                    _values.clear()
                value = found[0]
                _old[line], _new[line], _values[line] = element(_FROM, value), element(_TO, value), value


class _Bare:
    """Creates and destroys: each column has its value."""

    def __init__(self, columns: _Columns, *, created: bool) -> None:
        self._columns = columns
        self._created = created
        # Line of a column with its value, or with none and nothing below it -> its change; b"" if it has none.
        self._changes: dict[str, bytes] = {}
        self._keys: dict[str, str] = {}  # the same lines -> the column

    def write(self, text: str) -> Written | None:
        """Return the changes of a row, None if it takes the long way."""
        lines = text.split("\n")
        members = lines[1:-1]
        found = [*map(self._changes.get, members)]
        if None in found or not found or lines[-1] or lines[0] not in ROOTS:
            try:
                return self._read(self._columns.document(text, lines), lines, found)
            except UnknownFormError:
                return None
        # All lines are known, so no column has anything below it.
        if len({*map(self._keys.__getitem__, members)}) != len(members) or len(members) >= INDEXES_MAX:
            return None
        return Written(b"".join(chain.from_iterable(zip(DOCUMENT_AT, filter(None, found), strict=False))), _NOTHING)

    def _read(self, document: Document, lines: list[str], found: list[bytes | None]) -> Written | None:
        """Return the changes of a row in which something is new, or has to be looked at. Raises UnknownFormError.

        `found` has the change of every line behind the first that is known as a column's.
        """
        names = [*map(self._keys.get, lines[1:-1])]  # before anything is learned: that can make room
        changes: list[bytes | None] = []
        keys: list[str | None] = []
        values: dict[str, Any] = {}
        at, end = 1, len(lines) - 1
        while at < end:
            try:
                new = found.index(None, at - 1) + 1  # the next line that is not known
            except ValueError:
                new = end
            if new < end and lines[new][:1] in _BELOW and new > at:
                new -= 1  # it belongs to the column above it, which therefore is not what it was elsewhere
            if new > at:
                changes += found[at - 1 : new - 1]
                keys += names[at - 1 : new - 1]
                at = new
                continue
            line = lines[at]
            key, value, after = document.column(at)
            column = self._columns.column(key)
            change = self._change(column, value)
            if column.is_wanted:
                values[key] = value
            elif after == at + 1 and len(line) <= LINE_LENGTH_MAX and (value is None or is_known_column(line)):
                self._learn(line, key, change)
            changes.append(change)
            keys.append(key)
            at = after
        if len({*keys}) != len(keys) or len(keys) >= INDEXES_MAX or (not keys and lines[0] != ROOTS[0]):
            return None
        return Written(b"".join(chain.from_iterable(zip(DOCUMENT_AT, filter(None, changes), strict=False))), values)

    def _learn(self, line: str, key: str, change: bytes) -> None:
        """Remember a line that is all of a column."""
        if len(self._changes) >= KNOWN_MAX:
            self._changes.clear()
            self._keys.clear()
        self._changes[line], self._keys[line] = change, key

    def _change(self, column: _Column, value: Any) -> bytes:
        shown = self._columns.shown(column.rule, value)
        if not self._created:
            change = column.begin + element(_FROM, shown) + _NO_TO
        elif shown is not None:
            change = column.begin + _NO_FROM + element(_TO, shown)
        else:
            return b""
        return length(len(change) + _AROUND) + change + END


def _remember(known: dict[str, Any], line: str, what: Any) -> None:
    if len(known) >= KNOWN_MAX:
        known.clear()
    known[line] = what
