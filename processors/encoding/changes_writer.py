"""A row's `audited_changes` -> the elements of its log's `changes`, without columns in between. Pure, and compiled.

Most rows have columns whose values stand on lines of their own: numbers, texts, times. Those go from the text's bytes
to the document's. A column in another form is read by `schemas.source.audited_changes.direct`, one column at a time,
and its value is written. JSON is read by `json_text` and its values are written.

`ChangesWriter.write` never guesses: for a text that it does not handle it returns False (or raises ValueError), and the
plain way reads the text. What it writes equals the plain way's output, byte for byte.
"""

import re
from typing import Any, Final

from librt.strings import BytesWriter, write_i32_le
from mypy_extensions import i32, i64

from processors.encoding.bson_writing import (
    DOCUMENT,
    INT32,
    NULL,
    TEXT,
    array_name,
    begin_length,
    end_length,
    write_null,
    write_text,
    write_value,
)
from processors.rules.changes import REDACTED, ChangeRules, ColumnRule, is_pair_of_lists
from schemas.source.audited_changes import scalars
from schemas.source.audited_changes.direct import (
    EMPTY_ROOTS,
    KEY_LENGTH_MAX,
    LENGTH_MAX,
    ROOTS,
    Document,
    UnknownFormError,
    is_plain,
    names_zone,
)
from schemas.source.audited_changes.json_text import read_json
from schemas.source.audited_changes.limits import UnreadableError

# What a row of a gem's action tells of each column.
UPDATE: Final = 0  # the old value and the new one
CREATE: Final = 1  # the new value
DESTROY: Final = 2  # the old value

OTHER: Final = -1  # kind of a value that is known as an element only

FROM: Final = b"from\x00"
TO: Final = b"to\x00"
JSON_LENGTH_MAX: Final = 1_000_000
_KNOWN_MAX: Final = 20_000  # columns of a type, and short values; 4 MB
_KNOWN_LENGTH_MAX: Final = 40
_ZONES_MAX: Final = 1_000  # Rails knows some 150
_WORD_LENGTH_MAX: Final = 5  # `false`; a longer text that begins with a letter is no other value
_DIGITS_MAX: Final = 9  # of a number that surely has 32 bits

_NEWLINE: Final = 10
_SPACE: Final = 32
_DOUBLE_QUOTE: Final = 34
_QUOTE: Final = 39
_DASH: Final = 45
_ZERO: Final = 48
_ONE: Final = 49
_NINE: Final = 57
_COLON: Final = 58
_BACKSLASH: Final = 92
_NUMBER_SIGN: Final = 35

_ROOTS: Final[frozenset[bytes]] = frozenset(root.encode() for root in ROOTS)
_EMPTY_ROOTS: Final[frozenset[bytes]] = frozenset(root.encode() for root in EMPTY_ROOTS)
_NAME: Final = re.compile(rb"[a-z_][a-z0-9_]*")
_REDACTED: Final = REDACTED.encode()
# Bytes of an ASCII text to which YAML gives a meaning, or which it forbids: all controls but the end of a line.
_CONTROLS: Final = bytes([*range(10), *range(11, 32), 127])
_AS_THEY_ARE: Final = bytes(range(256))
_DIGITS_AS_ZERO: Final = _AS_THEY_ARE.replace(b"123456789", b"000000000")
_INSTANT_SHAPE: Final = b"0000-00-00 00:00:00.000000000 Z"
_TIME_WITH_ZONE: Final = b"!ruby/object:ActiveSupport::TimeWithZone"
_TIME_WITH_ZONE_ITEM: Final = b"- " + _TIME_WITH_ZONE
_NAMED_ZONE: Final = b"!ruby/object:ActiveSupport::TimeZone"
_UTC: Final = b"  utc: "
_ZONE: Final = b"  zone: "
_TIME: Final = b"  time: "
_ANCHOR: Final = re.compile(rb"&([0-9]{1,6}) (.+)")
_INSTANT_BYTES: Final = 28  # `2024-01-31T17:30:00.123456Z` and a NUL


class Column:
    """Cached properties of a column of one type."""

    def __init__(self, key: str, begin: bytes, rule: ColumnRule, is_wanted: bool) -> None:
        """`begin` is field and label, as its changes begin; the value of a wanted one decides more than the changes."""
        self.key = key
        self.begin = begin
        self.rule = rule
        self.is_wanted = is_wanted
        self.is_redacted: bool = rule.redacted
        # What its change needs is known from the kinds of its values.
        self.is_plain: bool = rule.shows_values or rule.redacted
        self.can_be_list: bool = rule.can_be_list
        self.shows_values: bool = rule.shows_values
        self.row: i64 = -1  # the last row that had it


class Scalar:
    """A short value that has been read before, as an element without its name."""

    def __init__(self, kind: i64, payload: bytes) -> None:
        """`kind` is BSON's type, `payload` what follows the name."""
        self.kind = kind
        self.payload = payload


class ChangesWriter:
    """Writes the changes of rows of one type and action; has no state but caches."""

    def __init__(self, rules: ChangeRules, type_name: str, action: str, wanted: frozenset[str]) -> None:
        """`action` is the gem's; `wanted` are the columns whose values decide more than the changes."""
        self._rules = rules
        self._type_name = type_name
        self._sides: i64 = UPDATE if action == "update" else CREATE if action == "create" else DESTROY
        self._wanted = wanted
        self._clocks: list[bytes] = [column.encode() for column in rules.clock_columns(type_name)]
        self._columns: dict[str, Column] = {}
        self._by_name: dict[bytes, Column] = {}  # names that are keys as they stand
        self._items: dict[bytes, Scalar] = {}  # behind a dash
        self._singles: dict[bytes, Scalar] = {}  # behind a colon
        self._zones: dict[bytes, bool] = {}  # lines that name a zone
        self._row: i64 = 0
        # Of the row that is being written:
        self.values: dict[str, Any] = {}  # of the wanted columns
        self._w = BytesWriter()
        self._lines: list[bytes] = []
        self._end: i64 = 0  # the last line, which is empty
        self._count: i64 = 0  # changes written
        self._text = b""
        self._document: Document | None = None
        self._anchors: dict[str, str | None] = {}
        self._kind: i64 = NULL  # of the scalar written last,
        self._number: i64 = 0  # and its value if it is a number

    def write(self, w: BytesWriter, text: bytes, is_json: bool) -> bool:
        """Write the elements of the array `changes`; False if the text is in a form that is not handled here.

        Raises ValueError for a value that only the plain way can decide.
        """
        self._begin(w)
        if is_json or not text.startswith(b"---"):
            return self._write_json(text)
        if len(text) > LENGTH_MAX or not _is_plain(text):
            return False
        for clock in self._clocks:
            if clock in text:
                return False
        lines = text.split(b"\n")
        self._lines = lines
        self._end = len(lines) - 1
        if lines[self._end]:
            return False
        if lines[0] not in _ROOTS:
            return text in _EMPTY_ROOTS
        if self._end == 1:
            return text in _EMPTY_ROOTS
        self._text = text
        self._document = None
        if self._anchors:
            self._anchors = {}
        try:
            return self._write_pairs() if self._sides == UPDATE else self._write_singles()
        except UnknownFormError:
            return False

    def write_columns(self, w: BytesWriter, columns: dict[str, Any]) -> None:
        """Write the elements of `changes` for columns that have been read. Raises ValueError as `write` does."""
        self._begin(w)
        for key, value in columns.items():
            self._write_change(self._column(key), value)

    def _begin(self, w: BytesWriter) -> None:
        self._w = w
        w.truncate(0)
        self._row += 1
        if len(self._columns) >= _KNOWN_MAX:  # between two rows: within one, a column that comes twice is to be found
            self._columns.clear()
            self._by_name.clear()
        self._count = 0
        if self.values:
            self.values = {}

    # --- the columns of a YAML text

    def _write_pairs(self) -> bool:
        w, lines, end = self._w, self._lines, self._end
        at: i64 = 1
        while at < end:
            line = lines[at]
            colon = _find(line, 0, _COLON)
            if colon > 0:
                column = self._named(line[:colon])
                if column is not None and column.is_plain:
                    begin: i64 = len(w)
                    after = self._pair(column, at, colon + 1)
                    if after > 0:
                        at = after
                        continue
                    w.truncate(begin)
            at = self._block(at)
        return True

    def _pair(self, column: Column, at: i64, behind_name: i64) -> i64:
        """Write the change of an updated column, old and new value; returns the line behind it, -1: in another form."""
        w, line = self._w, self._lines[at]
        size: i64 = len(line)
        length_at = self._begin_change(column)
        values_at: i64 = len(w)
        if size > behind_name + 1 or (size > behind_name and line[behind_name] != _SPACE):
            # A bare value: of a redacted column, or of the `create` that was folded into a combined row.
            write_null(w, FROM)
            after = self._single(at, behind_name, TO)
            if after < 0 or column.is_wanted or not self._ends_column(after):
                return -1
            if column.is_redacted:
                w.truncate(values_at)
                write_null(w, FROM)
                write_text(w, TO, _REDACTED)
            return self._end_change(column, length_at, after)
        if column.can_be_list:
            return -1
        after = self._item(at + 1, FROM)
        if after < 0:
            return -1
        old_kind, old_number = self._kind, self._number
        after = self._item(after, TO)
        if after < 0 or not self._ends_column(after):
            return -1
        if column.is_wanted:
            if not (_is_id(old_kind) and _is_id(self._kind)):
                return -1
            self.values[column.key] = [_id_of(old_kind, old_number), _id_of(self._kind, self._number)]
        if column.is_redacted:
            w.truncate(values_at)
            write_text(w, FROM, _REDACTED)
            write_text(w, TO, _REDACTED)
        return self._end_change(column, length_at, after)

    def _write_singles(self) -> bool:
        w, lines, end, created = self._w, self._lines, self._end, self._sides == CREATE
        at: i64 = 1
        while at < end:
            line = lines[at]
            colon = _find(line, 0, _COLON)
            if colon > 0:
                column = self._named(line[:colon])
                if column is not None and column.is_plain:
                    begin: i64 = len(w)
                    length_at = self._begin_change(column)
                    values_at: i64 = len(w)
                    if created:
                        write_null(w, FROM)
                    after = self._single(at, colon + 1, TO if created else FROM)
                    if after > 0 and self._ends_column(after) and (not column.is_wanted or _is_id(self._kind)):
                        if column.is_wanted:
                            self.values[column.key] = _id_of(self._kind, self._number)
                        if column.is_redacted:
                            w.truncate(values_at)
                            if created:
                                write_null(w, FROM)
                            write_text(w, TO if created else FROM, _REDACTED)
                        elif created and self._kind == NULL:  # a column that was created empty is no change
                            w.truncate(begin)
                            column.row = self._row
                            at = after
                            continue
                        if not created:
                            write_null(w, TO)
                        at = self._end_change(column, length_at, after)
                        continue
                    w.truncate(begin)
            at = self._block(at)
        return True

    def _begin_change(self, column: Column) -> i64:
        """Begin the next change; returns where its length is."""
        w = self._w
        w.append(DOCUMENT)
        w.write(array_name(self._count))
        length_at = begin_length(w)
        w.write(column.begin)
        return length_at

    def _end_change(self, column: Column, length_at: i64, after: i64) -> i64:
        """End a change that is whole; returns the line behind its column."""
        end_length(self._w, length_at)
        column.row = self._row
        self._count += 1
        return after

    def _ends_column(self, at: i64) -> bool:
        """Return whether nothing of the column above stands on line `at`."""
        if at == self._end:
            return True
        line = self._lines[at]
        return len(line) > 0 and line[0] != _DASH and line[0] != _SPACE

    def _block(self, at: i64) -> i64:
        """Write the change of a column in any form that `direct` knows; returns the line behind it."""
        document = self._document
        if document is None:
            document = self._document = Document(self._text.decode().split("\n"), self._anchors)
        found = document.column(int(at))
        column = self._column(found[0])
        if column.row == self._row:
            raise UnknownFormError  # it comes twice
        column.row = self._row
        self._write_change(column, found[1])
        after: i64 = found[2]
        return after

    # --- columns

    def _named(self, name: bytes) -> Column | None:
        """Return the column with this name, None if that is unusual. Raises UnknownFormError if it comes twice."""
        column = self._by_name.get(name)
        if column is None:
            column = self._learn(name)
            if column is None:
                return None
        if column.row == self._row:
            raise UnknownFormError
        return column

    def _learn(self, name: bytes) -> Column | None:
        if len(name) > KEY_LENGTH_MAX or _NAME.fullmatch(name) is None:
            return None
        key = name.decode()
        if scalars.plain(key) != key:  # `yes` and the like
            return None
        column = self._by_name[name] = self._column(key)
        return column

    def _column(self, key: str) -> Column:
        column = self._columns.get(key)
        if column is None:
            rule = self._rules.rule(self._type_name, key)
            begin = BytesWriter()
            write_text(begin, b"field\x00", key.encode())
            write_text(begin, b"label\x00", rule.label.encode())
            column = Column(key, begin.getvalue(), rule, key in self._wanted)
            if len(key) <= KEY_LENGTH_MAX:  # memory is bounded by the number of columns
                self._columns[key] = column
        return column

    # --- values as they are read from elsewhere

    def _write_json(self, text: bytes) -> bool:
        if not text:
            return True
        if len(text) > JSON_LENGTH_MAX:
            return False
        try:
            members = read_json(text.decode())
        except UnreadableError:
            return False
        if members is not None:
            for key, value in members.items():
                self._write_change(self._column(key), value)
        return True

    def _write_change(self, column: Column, value: Any) -> None:
        """Write the change of a column with this value. Raises ValueError if only the plain way can decide it."""
        if column.is_wanted:
            self.values[column.key] = value
        w = self._w
        if self._sides == UPDATE:
            length_at = self._begin_change(column)
            if isinstance(value, list) and len(value) == 2:
                if column.can_be_list and not is_pair_of_lists(value):
                    raise ValueError(column.key)  # only the other columns say whether this is a pair
                write_value(w, FROM, self._shown(column, value[0]))
                write_value(w, TO, self._shown(column, value[1]))
            else:
                write_null(w, FROM)
                write_value(w, TO, self._shown(column, value))
        else:
            value = self._shown(column, value)
            if self._sides == CREATE:
                if value is None:
                    return
                length_at = self._begin_change(column)
                write_null(w, FROM)
                write_value(w, TO, value)
            else:
                length_at = self._begin_change(column)
                write_value(w, FROM, value)
                write_null(w, TO)
        end_length(w, length_at)
        self._count += 1

    def _shown(self, column: Column, value: Any) -> Any:
        return value if column.shows_values else self._rules.shown(column.rule, value)

    # --- values on lines of their own

    def _item(self, at: i64, name: bytes) -> i64:
        """Write the value behind the dash on line `at`; returns the line behind it, -1 if it is in another form."""
        line = self._lines[at]
        size: i64 = len(line)
        if size == 0 or line[0] != _DASH:
            return -1
        if size == 1:
            self._kind = NULL
            write_null(self._w, name)
            return at + 1
        if line[1] != _SPACE:
            return -1
        if line == _TIME_WITH_ZONE_ITEM:
            return self._time(at + 1, name)
        if self._goes_on(at + 1):
            return -1
        return at + 1 if self._scalar(line, 2, name) else -1

    def _goes_on(self, at: i64) -> bool:
        """Return whether the value above continues on line `at`."""
        line = self._lines[at]
        return len(line) > 0 and line[0] == _SPACE

    def _single(self, at: i64, begin: i64, name: bytes) -> i64:
        """Write the value behind the colon on line `at`, as `_item` does."""
        line = self._lines[at]
        size: i64 = len(line)
        if size == begin:
            self._kind = NULL
            write_null(self._w, name)
            return at + 1
        if line[begin] != _SPACE:
            return -1
        if size == begin + 1 + len(_TIME_WITH_ZONE) and line.endswith(_TIME_WITH_ZONE):
            return self._time(at + 1, name)
        if self._goes_on(at + 1):
            return -1
        return at + 1 if self._scalar(line, begin + 1, name) else -1

    def _scalar(self, line: bytes, begin: i64, name: bytes) -> bool:
        """Write the scalar that begins there and ends with the line; False if it is in another form."""
        w = self._w
        end: i64 = len(line)
        if begin >= end:
            self._kind = NULL
            write_null(w, name)
            return True
        first: i64 = line[begin]
        size = end - begin
        if _ONE <= first <= _NINE or first == _DASH:
            if size <= _DIGITS_MAX and self._number_in(line, begin, end):
                self._kind = INT32
                w.append(INT32)
                w.write(name)
                write_i32_le(w, i32(self._number))
                return True
            if size == len(_INSTANT_SHAPE) and first != _DASH and is_instant(line[begin:]):
                self._kind = TEXT
                write_instant(w, name, line, begin)
                return True
        elif 97 <= first <= 122 or 65 <= first <= 90:
            if size > _WORD_LENGTH_MAX and _is_plain_text(line, begin):
                self._kind = TEXT
                write_text(w, name, line[begin:])
                return True
        elif first == _QUOTE:
            if size > 2 and _find(line, begin + 1, _QUOTE) == end - 1:
                self._kind = TEXT
                write_text(w, name, line[begin + 1 : end - 1])
                return True
        elif (
            first == _DOUBLE_QUOTE
            and size > 2
            and _find(line, begin + 1, _DOUBLE_QUOTE) == end - 1
            and _find(line, begin, _BACKSLASH) < 0
        ):
            self._kind = TEXT
            write_text(w, name, line[begin + 1 : end - 1])
            return True
        return self._other(line[begin:], name, line[0] == _DASH)

    def _number_in(self, line: bytes, at: i64, end: i64) -> bool:
        """Return whether -?[1-9][0-9]* stands there, and keep it."""
        negative = line[at] == _DASH
        if negative:
            at += 1
            if at == end or line[at] == _ZERO:
                return False
        number: i64 = 0
        while at < end:
            digit: i64 = line[at]
            if digit < _ZERO or digit > _NINE:
                return False
            number = number * 10 + digit - _ZERO
            at += 1
        self._number = -number if negative else number
        return True

    def _other(self, text: bytes, name: bytes, is_item: bool) -> bool:
        """Write a value of none of the frequent forms, read as the only one of a document; the short ones are known."""
        memo = self._items if is_item else self._singles
        known = memo.get(text)
        if known is None:
            try:
                known = _read_alone(text.decode(), is_item)
            except UnknownFormError:
                return False
            if len(text) <= _KNOWN_LENGTH_MAX:
                if len(memo) >= _KNOWN_MAX:
                    memo.clear()
                memo[text] = known
        self._kind = NULL if known.kind == NULL else OTHER
        w = self._w
        w.append(known.kind)
        w.write(name)
        w.write(known.payload)
        return True

    def _time(self, at: i64, name: bytes) -> i64:
        """Write the time with a zone whose members begin on line `at`, as `_item` does.

        Its zone is given, named for those below, or named above: the two of an update share theirs.
        """
        lines = self._lines
        if at + 3 > self._end:
            return -1
        utc, zone = lines[at], lines[at + 1]
        if len(utc) != len(_UTC) + len(_INSTANT_SHAPE) or not utc.startswith(_UTC) or not zone.startswith(_ZONE):
            return -1
        if not is_instant(utc[len(_UTC) :]):
            return -1
        at += 2
        zone = zone[len(_ZONE) :]
        if zone.startswith(b"*"):
            if zone[1:].decode() not in self._anchors:
                return -1
        else:
            anchor = b""
            if zone.startswith(b"&"):
                found = _ANCHOR.fullmatch(zone)
                if found is None:
                    return -1
                anchor, zone = found[1], found[2]
            if zone != _NAMED_ZONE or not self._names_zone(lines[at]):
                return -1
            if anchor:
                self._anchors[anchor.decode()] = None
            at += 1
            if at >= self._end:
                return -1
        time = lines[at]
        if (
            len(time) != len(_TIME) + len(_INSTANT_SHAPE)
            or not time.startswith(_TIME)
            or time[len(_TIME) :].translate(_DIGITS_AS_ZERO) != _INSTANT_SHAPE
        ):
            return -1
        self._kind = TEXT
        write_instant(self._w, name, utc, len(_UTC))
        return at + 1

    def _names_zone(self, line: bytes) -> bool:
        known = self._zones.get(line)
        if known is None:
            known = line.startswith(b"  ") and names_zone(line[2:].decode())
            if len(self._zones) < _ZONES_MAX:
                self._zones[line] = known
        return known


def _read_alone(text: str, is_item: bool) -> Scalar:
    """Return the value of a document that has nothing else. Raises UnknownFormError, ValueError."""
    lines = ["---", "a:", f"- {text}", ""] if is_item else ["---", f"a: {text}", ""]
    document = Document(lines)
    _, value, after = document.column(1)
    if after != len(lines) - 1 or document.has_anchors:
        raise UnknownFormError
    w = BytesWriter()
    write_value(w, b"", value[0] if is_item else value)
    element = w.getvalue()
    return Scalar(element[0], element[1:])


def _is_id(kind: i64) -> bool:
    """Return whether a value of this kind is cheap to write directly: a short number, or nothing."""
    return kind in (INT32, NULL)


def _id_of(kind: i64, number: i64) -> int | None:
    return number if kind == INT32 else None


def _is_plain(text: bytes) -> bool:
    """Return whether YAML gives a meaning to no character but the ends of lines, and forbids none."""
    if text.isascii():
        return len(text.translate(_AS_THEY_ARE, _CONTROLS)) == len(text)
    return is_plain(text.decode().split("\n"))


def _find(line: bytes, at: i64, wanted: i64) -> i64:
    """Return where a byte stands, from `at` on; -1 if it does not. A loop in C costs less than a call of a method."""
    end: i64 = len(line)
    while at < end:
        if line[at] == wanted:
            return at
        at += 1
    return -1


def _is_plain_text(line: bytes, at: i64) -> bool:
    """Return whether nothing from `at` on ends a plain scalar: no colon or number sign that YAML gives a meaning."""
    end: i64 = len(line)
    before: i64 = 0
    while at < end:
        byte: i64 = line[at]
        if (byte == _SPACE and before == _COLON) or (byte == _NUMBER_SIGN and before == _SPACE):
            return False
        before = byte
        at += 1
    return before != _COLON and before != _SPACE


def is_instant(text: bytes) -> bool:
    """Return whether a text is `2024-01-31 17:30:00.123456789 Z` of a day that exists; of leap days none is taken."""
    if text.translate(_DIGITS_AS_ZERO) != _INSTANT_SHAPE:
        return False
    month = _two(text, 5)
    day = _two(text, 8)
    if month < 1 or month > 12 or day < 1 or day > 31:
        return False
    if day > 28 and (month == 2 or (day == 31 and (month == 4 or month == 6 or month == 9 or month == 11))):
        return False
    return _two(text, 11) < 24 and _two(text, 14) < 60 and _two(text, 17) < 60


def _two(text: bytes, at: i64) -> i64:
    tens: i64 = text[at]
    ones: i64 = text[at + 1]
    return (tens - _ZERO) * 10 + ones - _ZERO


def write_instant(w: BytesWriter, name: bytes, line: bytes, at: i64) -> None:
    """Write the instant that stands at `at` in a line, in ISO 8601, cut to microseconds."""
    w.append(TEXT)
    w.write(name)
    write_i32_le(w, _INSTANT_BYTES)
    w.write(line[at : at + 10])
    w.append(84)
    w.write(line[at + 11 : at + 26])
    w.append(90)
    w.append(0)
