"""`audited_changes` -> the log's `changes` as BSON, in one pass, for the forms that most rows have. Pure.

What `schemas.audited_changes` reads and `processors.changes` tells, without the columns and changes in between: a
column that has had these values before is one look-up, and gives bytes that are ready; so does a value that was seen
before. It never guesses: a text with anything in it that has to be thought about is None, and takes the long way. What
it does return is what the long way returns, to the byte; tests/unit/processors/test_to_bson.py shows it on every sample
row and on generated ones.
"""

import re
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
    is_plain,
    known_item,
)

KNOWN_MAX = 20_000  # lines of a kind that are kept; of items, 8 MB
KNOWN_BLOCKS_MAX = 5_000  # of one type and action; 3 MB
BLOCK_LENGTH_MAX = 200
COLUMNS_MAX = INDEXES_MAX - 1
LINE_LENGTH_MAX = 60  # of those
_FROM, _TO = b"from", b"to"
_NO_FROM, _NO_TO = element(_FROM, None), element(_TO, None)
_AROUND = LENGTH_BYTES + len(END)
# A column's line and what belongs to it: lines that begin with a dash or a space, and empty ones between them.
_BLOCKS = re.compile(r"[^\n]+\n(?:\n*+[- ][^\n]*\n)*+").findall


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
    return (_Pairs(columns) if action == "update" else _Bare(columns, created=action == "create")).write


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


class _Writer:
    """What both kinds of rows have in common: blocks, which are a column's line and all that stands below it."""

    def __init__(self, columns: _Columns) -> None:
        self._columns = columns
        # Block -> its change, b"" if it has none; its column; and the value if that is wanted.
        self._changes: dict[str, bytes] = {}
        self._keys: dict[str, str] = {}
        self._wanted: dict[str, Any] = {}

    def write(self, text: str) -> Written | None:
        """Return the changes of a row, None if it takes the long way."""
        head, _, rest = text.partition("\n")
        blocks = _BLOCKS(rest)
        found = [*map(self._changes.get, blocks)]
        if None in found or not found:
            try:
                return self._read(text, head, blocks, found)
            except UnknownFormError:
                return None
        # All blocks are known. Between them nothing may be left, and no column may come twice.
        keys = [*map(self._keys.__getitem__, blocks)]
        if (
            len("".join(blocks)) != len(rest)
            or len({*keys}) != len(keys)
            or head not in ROOTS
            or len(keys) > COLUMNS_MAX
        ):
            return None
        values = _NOTHING
        if self._wanted:
            values = {
                key: self._wanted[block] for key, block in zip(keys, blocks, strict=True) if block in self._wanted
            }
        return Written(b"".join(chain.from_iterable(zip(DOCUMENT_AT, filter(None, found), strict=False))), values)

    def _read(self, text: str, head: str, blocks: list[str], found: list[bytes | None]) -> Written | None:
        """Return the changes of a row in which something is new. Raises UnknownFormError."""
        lines = text.split("\n")
        document = self._columns.document(text, lines)
        if sum(map(len, blocks)) + len(head) + 1 != len(text) or len(blocks) > COLUMNS_MAX:
            return None
        keys = [*map(self._keys.get, blocks)]  # before anything is learned, which can make room
        wanted = self._wanted
        values = {str(key): wanted[block] for key, block in zip(keys, blocks, strict=True) if block in wanted}
        at = 1
        for index, block in enumerate(blocks):
            after = at + block.count("\n")
            if found[index] is None:
                is_alone = not document.has_anchors  # so that nothing in it can mean something from above
                key, value, read_to = document.column(at)
                if read_to != after:
                    return None
                column = self._columns.column(key)
                if column.is_wanted:
                    values[key] = value
                change = self._change(column, value)
                found[index], keys[index] = change, key
                if is_alone and len(block) <= BLOCK_LENGTH_MAX:
                    if len(self._changes) >= KNOWN_BLOCKS_MAX:
                        self._changes.clear()
                        self._keys.clear()
                        self._wanted.clear()
                    self._changes[block], self._keys[block] = change, key
                    if column.is_wanted:
                        self._wanted[block] = value
                self._learn(lines, at, after, column, key, value)
            at = after
        if len({*keys}) != len(keys) or (not keys and head != ROOTS[0]):
            return None
        return Written(b"".join(chain.from_iterable(zip(DOCUMENT_AT, filter(None, found), strict=False))), values)

    def _change(self, column: _Column, value: Any) -> bytes:
        """Return the change, with its length; b"" if there is none. Raises UnknownFormError."""
        raise NotImplementedError

    def _learn(self, lines: list[str], at: int, after: int, column: _Column, key: str, value: Any) -> None:
        """Remember what is in the lines of a block, if that is of any use."""


class _Pairs(_Writer):
    """Updates: each column has its old and its new value."""

    def __init__(self, columns: _Columns) -> None:
        super().__init__(columns)
        # Line of a column that is shown as it is, and whose values stand below it -> how its change begins.
        self._begins: dict[str, bytes] = {}
        self._wanted_begins: dict[bytes, str] = {}  # how its change begins -> the column, of those that are wanted

    def _read(self, text: str, head: str, blocks: list[str], found: list[bytes | None]) -> Written | None:
        # Values that are known, in new pairs: three look-ups a column.
        lines = text.split("\n")
        if len(lines) % 3 == 2:
            try:
                begins = [*map(self._begins.__getitem__, lines[1:-1:3])]
                old = [*map(_old.__getitem__, lines[2:-1:3])]
                new = [*map(_new.__getitem__, lines[3:-1:3])]
            except KeyError:
                return super()._read(text, head, blocks, found)
            if len({*begins}) == len(begins) <= COLUMNS_MAX and begins and head in ROOTS and not lines[-1]:
                values = self._wanted_in(lines, begins) if self._wanted_begins else _NOTHING
                parts: list[bytes] = []
                for at, begin, from_element, to_element in zip(DOCUMENT_AT, begins, old, new, strict=False):
                    size = len(begin) + len(from_element) + len(to_element) + _AROUND
                    parts += (
                        at, LENGTHS[size] if size < 4096 else length(size), begin, from_element, to_element, END,
                    )  # fmt: skip
                return Written(b"".join(parts), values)
        return super()._read(text, head, blocks, found)

    def _wanted_in(self, lines: list[str], begins: list[bytes]) -> dict[str, Any]:
        """Return the old and new values of the wanted columns in a row of pairs whose lines are all known."""
        return {
            column: [_values[lines[3 * begins.index(begin) + 2]], _values[lines[3 * begins.index(begin) + 3]]]
            for begin, column in self._wanted_begins.items()
            if begin in begins
        }

    def _change(self, column: _Column, value: Any) -> bytes:
        begin, _, rule = column
        shown = self._columns.shown
        if type(value) is list and len(value) == 2:
            if rule.can_be_list and not is_pair_of_lists(value):
                raise UnknownFormError  # only the other columns say whether this is a pair
            sides = element(_FROM, shown(rule, value[0])) + element(_TO, shown(rule, value[1]))
        else:
            sides = _NO_FROM + element(_TO, shown(rule, value))
        return length(len(begin) + len(sides) + _AROUND) + begin + sides + END

    def _learn(self, lines: list[str], at: int, after: int, column: _Column, key: str, value: Any) -> None:
        if type(value) is not list or len(value) != 2 or after != at + 3 or not column.rule.is_simple:
            return  # a value that takes several lines is none to remember
        line = lines[at]
        if line not in self._begins and len(line) <= LINE_LENGTH_MAX:
            _remember(self._begins, line, column.begin)
            if column.is_wanted:
                self._wanted_begins[column.begin] = key
        for line in lines[at + 1 : after]:
            if line not in _old and (known := known_item(line)) is not None:
                if len(_old) >= KNOWN_MAX:
                    _old.clear()
                    _new.clear()
                    _values.clear()
                _old[line], _new[line], _values[line] = element(_FROM, known[0]), element(_TO, known[0]), known[0]


class _Bare(_Writer):
    """Creates and destroys: each column has its value."""

    def __init__(self, columns: _Columns, *, created: bool) -> None:
        super().__init__(columns)
        self._created = created

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
