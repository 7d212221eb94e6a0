"""`audited_changes` -> the log's `changes` as BSON, in one pass, for the forms that most rows have. Pure.

What `schemas.source.audited_changes` reads and `processors.rules.changes` tells, without the columns and changes in
between. One pattern takes a text apart: columns with values on lines of their own come out as texts, numbers and
instants that need no further look, and of those few other forms that a value has, the short ones are known after the
first time. Columns whose values take several lines are read by `schemas.source.audited_changes.direct`. It never
guesses: a text with anything in it that has to be thought about is None, and takes the long way. What it does return is
what the long way returns, to the byte; tests/unit/processors/encoding/test_to_bson.py shows it on every sample row and
on generated ones.

Rows are not looked up by their lines: most names, numbers and times are new, and to remember what is new costs more
than to read it (docs/performance.md has both measured).
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from processors.encoding.bson_parts import (
    DOCUMENT_AT,
    END,
    INDEXES_MAX,
    LENGTH_BYTES,
    LENGTHS,
    element,
    length,
    text_element,
)
from processors.rules.changes import ChangeRules, ColumnRule, is_pair_of_lists
from schemas.source.audited_changes import scalars
from schemas.source.audited_changes.direct import LENGTH_MAX, ROOTS, Document, UnknownFormError, is_plain, names_zone

KNOWN_MAX = 20_000  # columns of a type, and short values of a kind: 8 MB
KNOWN_BLOCKS_MAX = 5_000  # of one type and action; 3 MB
BLOCK_LENGTH_MAX = 200
ZONES_MAX = 1_000  # Rails knows some 150
COLUMNS_MAX = INDEXES_MAX - 1
LABEL_BYTES_MAX = 1_000
TEXT_LENGTH_MAX = min(LENGTH_MAX, (len(LENGTHS) - 2 * LABEL_BYTES_MAX) // 4)  # so that every length is a ready-made one
VALUE_LENGTH_MAX = 40  # of the short ones: words, fractions, decimals, empty texts
_FROM, _TO = b"from", b"to"
_NO_FROM, _NO_TO = element(_FROM, None), element(_TO, None)
_AROUND = LENGTH_BYTES + len(END)
_KEPT = frozenset((str, int, float, bool, type(None)))  # kinds of values that nobody can change

# A value: a text (of six letters at least, below that it could be a word like `false`; or in quotes, and then with one
# letter), or anything else. The rest of its line is empty.
_VALUE = rb"(?:((?=[^\n]{6})[A-Za-z](?:[^:#\n]++|:(?=[^ \n])|(?<! )#)*+(?<! )|'[^'\n]++'|\"[^\"\\\n]++\")|([^\n]++))"
_NAME = rb"([a-z_][a-z0-9_]*+)"
_ENDS = rb"\n(?![- \n])"  # the line, and with it all that belongs to the column
# What belongs to any other column: lines that begin with a dash or a space, and empty ones between them.
_BLOCK = rb"([^\n]+\n(?:\n*+[- ][^\n]*\n)*+)"
_PAIRS = re.compile(
    rb"^(?:%b: ?\n-(?: %b?)?\n-(?: %b?)?%b|%b)" % (_NAME, _VALUE, _VALUE, _ENDS, _BLOCK), re.MULTILINE
).findall
_BARE = re.compile(rb"^(?:%b:(?: %b?)?%b|%b)" % (_NAME, _VALUE, _ENDS, _BLOCK), re.MULTILINE).findall
_NUMBER = re.compile(rb"-?[1-9][0-9]{0,8}").fullmatch
# A day and a time that exist, all but the 29th of February: date, and time without what is below a microsecond.
_UTC = (
    rb"([0-9]{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31))"
    rb" ((?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6})[0-9]{3} Z"
)
_INSTANT = re.compile(_UTC).fullmatch
# A time with a zone, which is given, named for those below, or named above: the two of an update share theirs.
_ZONED = (
    rb"!ruby/object:ActiveSupport::TimeWithZone\n  utc: %b\n"
    rb"  zone: (?:(?:&([0-9]{1,6}) )?!ruby/object:ActiveSupport::TimeZone\n  (  name: [^\n]+)|\*([0-9]{1,6}))\n"
    rb"  time: [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9} Z\n"
) % _UTC
_ZONED_GROUPS = 5  # date, time, the zone's anchor, the line of its name, the anchor it refers to
_ZONED_PAIR = re.compile(rb"%b: ?\n-(?: %b| ?\n)-(?: %b| ?\n)" % (_NAME, _ZONED, _ZONED))
_ZONED_BARE = re.compile(rb"%b: %b" % (_NAME, _ZONED))
_LETTER = ord("A")  # the first byte of a text is this or above, or else a quote


class Written(NamedTuple):
    """The changes of a row: the elements of the array, and the values of the columns that were asked for."""

    elements: bytes
    values: Mapping[str, Any]


class _Column(NamedTuple):
    """A column of one type."""

    key: str
    begin: bytes  # of its change: field and label
    size: int  # of its change without the values
    is_special: bool  # is not simple, or is wanted
    is_simple: bool  # its values are shown as they are
    is_wanted: bool
    rule: ColumnRule


class _Other(NamedTuple):
    """A value of none of the frequent kinds, on either side of a change, and as it is."""

    from_element: bytes
    to_element: bytes
    value: Any


Write = Callable[[str], Written | None]
_NOTHING: dict[str, Any] = {}


class _Others(dict[bytes, _Other]):
    """Values by their texts, read when they are first asked for; the short ones are kept."""

    def __init__(self, before: str) -> None:
        """`before` is what stands before such a value in a document of one column."""
        super().__init__()
        self._before = before

    def __missing__(self, text: bytes) -> _Other:
        """Read the value. Raises UnknownFormError."""
        if _NUMBER(text) is not None:
            value = int(text)
            number = value.to_bytes(4, "little", signed=True)
            other = _Other(b"\x10from\x00" + number, b"\x10to\x00" + number, value)
        elif (found := _INSTANT(text)) is not None:
            instant = b"%bT%bZ" % found.groups()
            other = _Other(_INSTANT_FROM % instant, _INSTANT_TO % instant, instant.decode())
        else:
            other = self._read(text.decode())
        if len(text) <= VALUE_LENGTH_MAX and type(other.value) in _KEPT:
            if len(self) >= KNOWN_MAX:
                self.clear()
            self[text] = other
        return other

    def _read(self, text: str) -> _Other:
        lines = f"{self._before}{text}\n".split("\n")
        document = Document(lines)
        _, value, read_to = document.column(1)
        if read_to != len(lines) - 1 or document.has_anchors:
            raise UnknownFormError
        if len(lines) > 3:  # below its column, after a dash
            (value,) = value
        return _Other(element(_FROM, value), element(_TO, value), value)


_items, _bare = _Others("---\na:\n- "), _Others("---\na: ")
_TEXT_FROM, _TEXT_TO = b"\x02from\x00", b"\x02to\x00"
_INSTANT_FROM, _INSTANT_TO = (
    b"%b%b%%b\x00" % (head, LENGTHS[len("2024-01-31T17:30:00.123456Z\0")]) for head in (_TEXT_FROM, _TEXT_TO)
)
_TEXT_FROM_SIZE, _TEXT_TO_SIZE = (len(head) + LENGTH_BYTES for head in (_TEXT_FROM, _TEXT_TO))  # without the text
_TEXT_SIZES = _TEXT_FROM_SIZE + _TEXT_TO_SIZE
_END_AND_TEXT_TO, _ENDS_BOTH = END + _TEXT_TO, END + END
_NULL = _NO_TO[0]  # the type of an element that holds nothing


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
        self.by_name: dict[bytes, _Column] = {}  # names that are keys as they stand

    def begin_of(self, text: str) -> int:
        """Return where the first column begins. Raises UnknownFormError if the text is not for us."""
        begin = 4 if text[:4] == "---\n" else text.find("\n") + 1
        if (
            (begin != 4 and text[: begin - 1] not in ROOTS)
            or text[-1] != "\n"
            or len(text) > TEXT_LENGTH_MAX
            or not (text.replace("\n", "").isprintable() or is_plain(text.split("\n")))
            or (self._clocks and any(column in text for column in self._clocks))
        ):
            raise UnknownFormError
        return begin

    def column(self, key: str) -> _Column:
        column = self._known.get(key)
        if column is None:
            rule = self._rules.rule(self._type_name, key)
            begin = text_element(b"field", key) + text_element(b"label", rule.label)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            is_simple, is_wanted = rule.is_simple, key in self._wanted
            size = len(begin) + _AROUND
            column = _Column(key, begin, size, is_wanted or not is_simple, is_simple, is_wanted, rule)
            self._known[key] = column
        return column

    def named(self, name: bytes) -> _Column:
        """Return the column of a name that is new. Raises UnknownFormError for `yes` and the like."""
        key = name.decode()
        column = self.column(key)
        if scalars.plain(key) != key or column.size > LABEL_BYTES_MAX:
            raise UnknownFormError
        if len(self.by_name) >= KNOWN_MAX:
            self.by_name.clear()
        self.by_name[name] = column
        return column

    def shown(self, rule: ColumnRule, value: Any) -> Any:
        return value if rule.shows_values else self._rules.shown(rule, value)


class _Block(NamedTuple):
    """A column whose value takes several lines, or is otherwise not of the frequent forms."""

    key: str
    change: bytes  # with its length; b"" if there is none
    is_wanted: bool
    value: Any


class _Blocks:
    """The blocks of one text, taken in their order: an anchor in one is known to those below it."""

    def __init__(self, text: str, writer: "_Writer") -> None:
        self._text = text
        self._writer = writer
        self._document: Document | None = None
        self._anchors: dict[str, str | None] = {}  # that stand above, as the document keeps them
        self.further_lines = 0  # that the blocks taken have, beyond what as many plain columns would have

    def take(self, block: bytes, columns_above: int) -> _Block:
        """Return what the next block is. Raises UnknownFormError."""
        lines, plain_lines = block.count(b"\n"), self._writer.column_lines
        found = self._writer.blocks.get(block)
        if found is None:
            found = self._zoned(block)
            if found is None:
                found = self._read(block, 1 + plain_lines * columns_above + self.further_lines, lines)
        self.further_lines += lines - plain_lines
        return found

    def _zoned(self, block: bytes) -> _Block | None:
        """Return what a block is that holds times with a zone, as most with a time do; None for any other."""
        found = self._writer.zoned.fullmatch(block)
        if found is None:
            return None
        groups, writer, anchors = found.groups(), self._writer, self._anchors
        instants: list[bytes | None] = []
        for at in range(1, len(groups), _ZONED_GROUPS):
            date, time, anchor, zone, above = groups[at : at + _ZONED_GROUPS]
            if date is None:
                instants.append(None)
                continue
            if above is not None:
                if above.decode() not in anchors:
                    return None
            elif zone not in writer.zones and not writer.is_zone(zone):
                return None
            if anchor is not None:
                anchors[anchor.decode()] = None
            instants.append(b"%bT%bZ" % (date, time))
        column = writer.columns.by_name.get(groups[0]) or writer.columns.named(groups[0])
        if column.is_simple and not column.is_wanted:
            return _Block(column.key, writer.change_of_instants(column, instants), False, None)
        texts = [None if instant is None else instant.decode() for instant in instants]
        value = texts if len(texts) > 1 else texts[0]
        return _Block(column.key, writer.change(column, value), column.is_wanted, value)

    def _read(self, block: bytes, at: int, lines: int) -> _Block:
        document = self._document = self._document or Document(self._text.split("\n"), self._anchors)
        key, value, read_to = document.column(at)
        if read_to != at + lines:
            raise UnknownFormError
        column = self._writer.columns.column(key)
        found = _Block(key, self._writer.change(column, value), column.is_wanted, value)
        # Without anchors nothing in it can mean something from above, or give a meaning to what stands below.
        if not document.has_anchors and len(block) <= BLOCK_LENGTH_MAX:
            if len(self._writer.blocks) >= KNOWN_BLOCKS_MAX:
                self._writer.blocks.clear()
            self._writer.blocks[block] = found
        return found


class _Writer:
    """What both kinds of rows have in common."""

    column_lines: ClassVar[int]  # of a column whose values stand on lines of their own
    zoned: ClassVar[re.Pattern[bytes]]  # of a block that holds times with a zone

    def __init__(self, columns: _Columns) -> None:
        self.columns = columns
        self.blocks: dict[bytes, _Block] = {}  # that have been read, and mean the same everywhere
        self.zones: set[bytes] = set()  # lines that name a zone

    def write(self, text: str) -> Written | None:
        """Return the changes of a row, None if it takes the long way."""
        try:
            return self._written(text, self.columns.begin_of(text))
        except UnknownFormError:
            return None

    def change(self, column: _Column, value: Any) -> bytes:
        """Return a change, with its length; b"" if there is none. Raises UnknownFormError."""
        raise NotImplementedError

    def change_of_instants(self, column: _Column, instants: list[bytes | None]) -> bytes:
        """Return `change` for one instant, or for the two of an update, of a column that shows values as they are."""
        raise NotImplementedError

    def is_zone(self, line: bytes) -> bool:
        """Return whether a line names a zone, and remember it: there are few, and the pattern is slow."""
        if len(self.zones) < ZONES_MAX and names_zone(line.decode()):
            self.zones.add(line)
            return True
        return False

    def _written(self, text: str, begin: int) -> Written | None:
        raise NotImplementedError

    def _is_whole(self, raw: bytes, keys: list[str], taken: _Blocks | None) -> bool:
        """Return whether nothing is left between the columns, and none comes twice."""
        lines = 1 + self.column_lines * len(keys) + (taken.further_lines if taken else 0)
        return lines == raw.count(b"\n") and len({*keys}) == len(keys)


class _Pairs(_Writer):
    """Updates: each column has its old and its new value."""

    column_lines = 3
    zoned = _ZONED_PAIR

    def _written(self, text: str, begin: int) -> Written | None:
        raw = text.encode()
        found = _PAIRS(raw, begin)
        if not 0 < len(found) <= COLUMNS_MAX:
            return None
        by_name, lengths, others = self.columns.by_name, LENGTHS, _items
        keys: list[str] = []
        parts: list[bytes] = []
        values = _NOTHING
        blocks: _Blocks | None = None
        for index, (name, old, old_other, new, new_other, block) in zip(DOCUMENT_AT, found, strict=False):
            if not name:
                blocks = blocks or _Blocks(text, self)
                read = blocks.take(block, len(keys))
                if read.is_wanted:
                    values = {**values, read.key: read.value}
                parts += (index, read.change)
                keys.append(read.key)
                continue
            column = by_name.get(name) or self.columns.named(name)
            key, begin_of_change, base, is_special, _, _, _ = column
            keys.append(key)
            if is_special:
                value = [_value(others, old, old_other), _value(others, new, new_other)]
                if column.is_wanted:
                    values = {**values, key: value}
                if not column.is_simple:
                    parts += (index, self.change(column, value))
                    continue
            # Two sides in four ways, written out: a call for each side costs as much again.
            if old:
                if old[0] < _LETTER:
                    old = old[1:-1]
                old_size = len(old) + 1
                old_length = lengths[old_size]
            else:
                old_element = others[old_other][0] if old_other else _NO_FROM
            if new:
                if new[0] < _LETTER:
                    new = new[1:-1]
                new_size = len(new) + 1
                new_length = lengths[new_size]
                if old:
                    size = base + old_size + new_size + _TEXT_SIZES
                    parts += (
                        index, lengths[size], begin_of_change,
                        _TEXT_FROM, old_length, old, _END_AND_TEXT_TO, new_length, new, _ENDS_BOTH,
                    )  # fmt: skip
                else:
                    size = base + len(old_element) + new_size + _TEXT_TO_SIZE
                    parts += (
                        index, lengths[size], begin_of_change,
                        old_element, _TEXT_TO, new_length, new, _ENDS_BOTH,
                    )  # fmt: skip
            else:
                new_element = others[new_other][1] if new_other else _NO_TO
                if old:
                    size = base + old_size + len(new_element) + _TEXT_FROM_SIZE
                    parts += (
                        index, lengths[size], begin_of_change,
                        _TEXT_FROM, old_length, old, END, new_element, END,
                    )  # fmt: skip
                else:
                    size = base + len(old_element) + len(new_element)
                    parts += (
                        index, lengths[size], begin_of_change,
                        old_element, new_element, END,
                    )  # fmt: skip
        return Written(b"".join(parts), values) if self._is_whole(raw, keys, blocks) else None

    def change(self, column: _Column, value: Any) -> bytes:
        begin, rule = column.begin, column.rule
        shown = self.columns.shown
        if type(value) is list and len(value) == 2:
            if rule.can_be_list and not is_pair_of_lists(value):
                raise UnknownFormError  # only the other columns say whether this is a pair
            sides = element(_FROM, shown(rule, value[0])) + element(_TO, shown(rule, value[1]))
        else:
            sides = _NO_FROM + element(_TO, shown(rule, value))
        return length(len(begin) + len(sides) + _AROUND) + begin + sides + END

    def change_of_instants(self, column: _Column, instants: list[bytes | None]) -> bytes:
        old, new = instants
        old_element = _NO_FROM if old is None else _INSTANT_FROM % old
        new_element = _NO_TO if new is None else _INSTANT_TO % new
        size = column.size + len(old_element) + len(new_element)
        return LENGTHS[size] + column.begin + old_element + new_element + END


class _Bare(_Writer):
    """Creates and destroys: each column has its value."""

    column_lines = 1
    zoned = _ZONED_BARE

    def __init__(self, columns: _Columns, *, created: bool) -> None:
        super().__init__(columns)
        self._created = created

    def _written(self, text: str, begin: int) -> Written | None:
        raw = text.encode()
        found = _BARE(raw, begin)
        if not 0 < len(found) <= COLUMNS_MAX:
            return None
        by_name, lengths, others, created = self.columns.by_name, LENGTHS, _bare, self._created
        # What stands before and behind a text: the other side of the change is empty.
        if created:
            before, behind, around = _NO_FROM + _TEXT_TO, b"\x00\x00", _TEXT_TO_SIZE + len(_NO_FROM)
        else:
            before, behind, around = _TEXT_FROM, b"\x00" + _NO_TO + END, _TEXT_FROM_SIZE + len(_NO_TO)
        keys: list[str] = []
        parts: list[bytes] = []
        values = _NOTHING
        blocks: _Blocks | None = None
        indexes = iter(DOCUMENT_AT)  # a column that was created empty is no change and has none
        for name, told, other, block in found:
            if not name:
                blocks = blocks or _Blocks(text, self)
                read = blocks.take(block, len(keys))
                if read.is_wanted:
                    values = {**values, read.key: read.value}
                if read.change:
                    parts += (next(indexes), read.change)
                keys.append(read.key)
                continue
            column = by_name.get(name) or self.columns.named(name)
            key, begin_of_change, base, is_special, _, _, _ = column
            keys.append(key)
            if is_special:
                value = _value(others, told, other)
                if column.is_wanted:
                    values = {**values, key: value}
                if not column.is_simple:
                    if change := self.change(column, value):
                        parts += (next(indexes), change)
                    continue
            if told:
                if told[0] < _LETTER:
                    told = told[1:-1]
                text_size = len(told) + 1
                size = base + text_size + around
                parts += (
                    next(indexes), lengths[size], begin_of_change, before,
                    lengths[text_size], told, behind,
                )  # fmt: skip
            elif not created:
                side = others[other][0] if other else _NO_FROM
                size = base + len(side) + len(_NO_TO)
                parts += (
                    next(indexes), lengths[size], begin_of_change, side, _NO_TO, END,
                )  # fmt: skip
            elif other and (side := others[other][1])[0] != _NULL:
                size = base + len(side) + len(_NO_FROM)
                parts += (
                    next(indexes), lengths[size], begin_of_change, _NO_FROM, side, END,
                )  # fmt: skip
        return Written(b"".join(parts), values) if self._is_whole(raw, keys, blocks) else None

    def change(self, column: _Column, value: Any) -> bytes:
        shown = self.columns.shown(column.rule, value)
        if not self._created:
            change = column.begin + element(_FROM, shown) + _NO_TO
        elif shown is not None:
            change = column.begin + _NO_FROM + element(_TO, shown)
        else:
            return b""
        return length(len(change) + _AROUND) + change + END

    def change_of_instants(self, column: _Column, instants: list[bytes | None]) -> bytes:
        (instant,) = instants
        assert instant is not None  # the pattern of a bare value has no empty one
        sides = _NO_FROM + _INSTANT_TO % instant if self._created else _INSTANT_FROM % instant + _NO_TO
        return LENGTHS[column.size + len(sides)] + column.begin + sides + END


def _value(others: _Others, told: bytes, other: bytes) -> Any:
    """Return a value by what the pattern has found."""
    if told:
        return (told[1:-1] if told[0] < _LETTER else told).decode()
    return others[other].value if other else None
