"""The fast reader of YAML: the forms that Psych writes for most rows, line by line, three to ten times faster.

It never guesses. It takes a document only if every line has a form it knows; anything else (anchors outside of times,
refused tags, flow collections, unusual keys, characters that YAML gives a meaning) is None, and `nodes` reads it.
A result always equals that of `nodes`: tests/unit/schemas shows it on every sample row and on generated ones.
"""

import re
from typing import Any

from schemas.source.audited_changes import scalars
from schemas.source.audited_changes.nodes import json_key

LENGTH_MAX = 20_000  # characters: below NODES_MAX nodes, whatever they are
_INDENT_MAX = 40  # 20 levels, below DEPTH_MAX
KEY_LENGTH_MAX = 128  # YAML ends implicit keys at 1,024
_CACHED_LENGTH_MAX = 60
_CACHE_SIZE_MAX = 20_000  # of each: together 15 MB at most

_HWIA = "!ruby/hash:ActiveSupport::HashWithIndifferentAccess"
_TWZ = "!ruby/object:ActiveSupport::TimeWithZone"
_TWZ_ITEM = f"- {_TWZ}"
_DECIMAL = "!ruby/object:BigDecimal "
_ZONE = "!ruby/object:ActiveSupport::TimeZone"
_ANCHORED = re.compile(r"&([0-9]{1,6}) (.+)")

ROOTS = ("---", f"--- {_HWIA}")
EMPTY_ROOTS = frozenset(("---\n", "--- {}\n", f"--- {_HWIA} {{}}\n"))
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|:?[A-Za-z_][A-Za-z0-9_ /-]*[A-Za-z0-9_]|[0-9]{1,9}")
_INSTANT = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8]) (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{9} Z"
)
_SHAPE_OF_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9} Z")
_SPECIAL = frozenset("-?:,[]{}#&*!|>'\"%@`")
_ESCAPE = re.compile(r"\\(?:(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b", " ": " ",
    '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_CLOSED = {"'": re.compile(r"(?:[^']|'')*+'(?!')"), '"': re.compile(r'(?:[^"\\]|\\.)*+"')}
_SIMPLE_DOUBLE_QUOTED = re.compile(r'(?:[^"\\]|\\.)*')


class UnknownFormError(Exception):
    """This document is for `nodes`.

    Raised as a new one each time: one for all would collect a traceback, and with it the frames and pages above.
    """


_MISSING = object()
_KEY_INDICATORS = frozenset(":'\"")
_QUOTED_KEY = re.compile(r"""(?:'([^']{0,128})'|"([^"\\]{0,128})"):( .*)?""")
_NIL = ("", " ")  # what libyaml 0.2.5 and 0.2.2 write after the colon of a nil
# Caches: rows of a table repeat their columns and most of their values. Only what is short, context-free and
# immutable. (A line that continues below is noticed there.)
_scalars: dict[str, Any] = {}  # text on one line -> value
_keys: dict[str, str] = {}  # text before the colon -> key
_columns: dict[str, tuple[str, Any]] = {}  # line of the root mapping -> column and value, or _MISSING: look below
_items: dict[str, Any] = {}  # line of a sequence in the root mapping -> value
_zone_names: dict[str, None] = {}  # lines that name a time's zone, of times in the root mapping's sequences


def read_directly(text: str) -> dict[str, Any] | None:
    """Return the columns of a document in one of the known forms, None for any other. Raises nothing."""
    if len(text) > LENGTH_MAX:
        return None
    lines = text.split("\n")
    if lines[-1] or not is_plain(lines):
        return None
    if lines[0] not in ROOTS:
        return {} if text in EMPTY_ROOTS else None
    try:
        return Document(lines).root()
    except UnknownFormError:
        return None


def is_plain(lines: list[str]) -> bool:
    """Return whether no line has a character that YAML gives a meaning, or forbids."""
    # Not printable are, among others: tabs, carriage returns, controls, the line separators, byte order marks; and a
    # no-break space, which means nothing to YAML.
    bare = "".join(lines)
    return bare.isprintable() or bare.replace("\xa0", "").isprintable()


class Document:
    """The lines of one document; the last one is empty, and ends every block."""

    __slots__ = ("_anchors", "_at", "_lines")

    def __init__(self, lines: list[str], anchors: dict[str, str | None] | None = None) -> None:
        """`lines` are those of a text, which `is_plain` allows; they may be changed. `anchors` stand above them."""
        self._lines = lines
        self._at = 1  # the next line
        # Of a time's `utc`: the instant; of its `zone`: None.
        self._anchors: dict[str, str | None] = {} if anchors is None else anchors

    @property
    def has_anchors(self) -> bool:
        """Whether a column that was read has an anchor, which those below it can refer to."""
        return bool(self._anchors)

    def root(self) -> dict[str, Any]:
        """Return all columns. Raises UnknownFormError."""
        members: dict[str, Any] = {}
        lines, column, known_columns, missing = self._lines, self.column, _columns, _MISSING
        at, end = 1, len(lines) - 1
        while at < end:
            known = known_columns.get(lines[at])
            if known is not None and known[1] is not missing:
                members[known[0]] = known[1]
                at += 1
                continue
            key, value, at = column(at)
            members[key] = value
        if not members and lines[0] != ROOTS[0]:
            raise UnknownFormError  # a tag without a mapping
        return members

    def column(self, at: int) -> tuple[str, Any, int]:
        """Read the member of the root mapping that begins at line `at`: its key, its value, and the line behind it.

        Raises UnknownFormError.
        """
        lines, columns, known_items, missing = self._lines, _columns, _items, _MISSING
        line = lines[at]
        at += 1
        known = columns.get(line)
        if known is not None:
            key, value = known
            if value is not missing:
                return key, value, at
        else:
            name, colon, rest = line.partition(":")
            key = _keys.get(name) or _key(name)
            if len(rest) > 1:
                if rest[0] != " ":
                    raise UnknownFormError
                self._at = at
                value = self._scalar(rest[1:], 0)
                if self._at == at and len(line) <= _CACHED_LENGTH_MAX and rest[1:] in _scalars:
                    _remember(columns, line, (key, value))
                return key, value, self._at  # it may have continued below
            if not colon or rest not in _NIL:
                raise UnknownFormError
            if len(line) <= _CACHED_LENGTH_MAX:
                _remember(columns, line, (key, missing))
        following = lines[at]
        if following[:1] == "-":
            items: list[Any] = []
            while following[:1] == "-":
                at += 1
                value = known_items.get(following, missing)
                if value is missing:
                    self._at = at
                    if following == _TWZ_ITEM:
                        value = self._time_with_zone("  ")
                    elif following[1:2] not in _NIL:
                        raise UnknownFormError
                    else:
                        value = self._item(following[2:], 0)
                    if self._at != at:
                        at = self._at
                    elif len(following) <= _CACHED_LENGTH_MAX and following[2:] in _scalars:
                        _remember(known_items, following, value)
                items.append(value)
                following = lines[at]
            return key, items, at
        if following[:1] == " ":
            self._at = at
            return key, self._mapping(2), self._at
        return key, None, at

    def _mapping(self, indent: int) -> dict[str, Any]:
        """Read the mapping whose keys stand at `indent`; it has one at least."""
        if indent > _INDENT_MAX:
            raise UnknownFormError
        members: dict[str, Any] = {}
        lines = self._lines
        margin = " " * indent
        while True:
            line = lines[self._at]
            if not line.startswith(margin) or line[indent : indent + 1] in (" ", "", "-"):
                break
            if line[indent] not in _KEY_INDICATORS:
                name, colon, rest = line[indent:].partition(":")
                key = _keys.get(name)
                if key is None:
                    key = _key(name)
            else:
                key, colon, rest = _indicated_key(line[indent:])
            self._at += 1
            if len(rest) > 1:
                if rest[0] != " ":
                    raise UnknownFormError
                raw = rest[1:]
                value = _scalars.get(raw, _MISSING)
                members[key] = self._scalar(raw, indent) if value is _MISSING else value
                continue
            if not colon or rest not in _NIL:
                raise UnknownFormError
            following = lines[self._at]
            if following.startswith(margin):
                first = following[indent : indent + 1]
                if first == "-":
                    members[key] = self._sequence(indent)
                    continue
                if first == " ":
                    members[key] = self._mapping(indent + 2)
                    continue
            members[key] = None
        if not members:
            raise UnknownFormError
        return members

    def _sequence(self, indent: int) -> list[Any]:
        """Read the sequence whose dashes stand at `indent`; it has one at least."""
        if indent > _INDENT_MAX:
            raise UnknownFormError
        items: list[Any] = []
        lines = self._lines
        dash = " " * indent + "-"
        while True:
            line = lines[self._at]
            if not line.startswith(dash):
                break
            rest = line[indent + 1 :]
            self._at += 1
            if rest in _NIL:
                items.append(None)
                continue
            if rest[0] != " ":
                raise UnknownFormError
            raw = rest[1:]
            value = _scalars.get(raw, _MISSING)
            items.append(self._item(raw, indent) if value is _MISSING else value)
        return items

    def _item(self, raw: str, indent: int) -> Any:
        """Read what stands after a dash at `indent`: a scalar, or a collection that begins on the same line."""
        if not raw:
            _remember(_scalars, raw, None)
            return None
        first = raw[0]
        if first == "-" and raw[1:2] in (" ", ""):
            self._at -= 1
            self._lines[self._at] = f"{' ' * (indent + 2)}{raw}"
            return self._sequence(indent + 2)
        if first not in "'\"!&|" and (": " in raw or raw[-1] == ":"):
            self._at -= 1
            self._lines[self._at] = f"{' ' * (indent + 2)}{raw}"
            return self._mapping(indent + 2)
        return self._scalar(raw, indent)

    def _scalar(self, raw: str, indent: int) -> Any:
        """Read the value that begins with `raw`, in a collection at `indent`; `_at` is the line after it."""
        first = raw[0]
        value: Any
        goes_on = self._lines[self._at].startswith(" " * (indent + 1))
        if first not in _SPECIAL or (first in "-:" and (raw[1:2].isalnum() or raw[1:2] in ("_", "."))):
            if goes_on:
                return scalars.plain(self._folded_plain(raw, indent))
            if ": " in raw or raw[-1] in ": " or first == " " or " #" in raw:
                raise UnknownFormError
            value = scalars.plain(raw)
            if type(value) is dict:  # not a number: a new object every time
                return value
        elif first == "'":
            if len(raw) < 2 or raw[-1] != "'" or goes_on or self._lines[self._at] == "":
                return self._folded_quoted(raw, "'").replace("''", "'")
            value = raw[1:-1]
            if "'" in value:
                if "'" in value.replace("''", ""):
                    raise UnknownFormError
                value = value.replace("''", "'")
        elif first == '"':
            if len(raw) < 2 or raw[-1] != '"' or goes_on or self._lines[self._at] == "":
                return _ESCAPE.sub(_unescaped, self._folded_quoted(raw, '"'))
            value = _double_quoted(raw)
        elif first == "!":
            return self._tagged(raw, indent)
        elif first == "|":
            return self._literal(raw, indent)
        elif raw == "{}":
            return {}
        elif raw == "[]":
            return []
        else:
            raise UnknownFormError
        if goes_on:
            raise UnknownFormError
        if len(raw) <= _CACHED_LENGTH_MAX:
            _remember(_scalars, raw, value)
        return value

    def _folded_plain(self, raw: str, indent: int) -> str:
        """Return the text of a plain scalar over several lines; Psych folds long ones at spaces."""
        margin = " " * (indent + 1)
        parts = [raw]
        while (line := self._lines[self._at]).startswith(margin):
            parts.append(line.strip(" "))
            self._at += 1
        for part in parts:
            if not part or ": " in part or part[-1] in ": " or part[0] in " #" or " #" in part:
                raise UnknownFormError
        if self._lines[self._at] == "" and self._at < len(self._lines) - 1:
            raise UnknownFormError  # an empty line is a line break in the text
        return " ".join(parts)

    def _folded_quoted(self, raw: str, quote: str) -> str:
        """Return what stands between quotes over several lines, folded, with the escapes still in it."""
        lines, last = self._lines, len(self._lines) - 1
        closed = _CLOSED[quote]
        text = raw[1:]
        if closed.match(text) is not None:
            if closed.fullmatch(text) is None:
                raise UnknownFormError
            return text[:-1]
        text = text.rstrip(" ")
        breaks = 0
        while self._at < last:
            line = lines[self._at]
            self._at += 1
            if line == "":
                breaks += 1
                continue
            stripped = line.lstrip(" ")
            if stripped in ("", line) or text[-1:] == "\\":
                break
            line = stripped
            text += "\n" * breaks if breaks else " "
            breaks = 0
            if closed.match(line) is not None:
                if closed.fullmatch(line) is None:
                    break
                return text + line[:-1]
            text += line.rstrip(" ")
            if line[-1] == " ":
                break
        raise UnknownFormError

    def _tagged(self, raw: str, indent: int) -> Any:
        if raw.startswith(_DECIMAL):
            value = scalars.decimal(raw[len(_DECIMAL) :]) if _PLAIN_DECIMAL.fullmatch(raw, len(_DECIMAL)) else None
            if value is None:
                raise UnknownFormError
            if len(raw) <= _CACHED_LENGTH_MAX:
                _remember(_scalars, raw, value)
            return value
        if raw == "!binary |-":
            return scalars.binary(self._literal("|-", indent))
        if raw == _TWZ:
            return self._time_with_zone(" " * (indent + 2))
        if raw.startswith(_HWIA):
            rest = raw[len(_HWIA) :]
            if rest == " {}":
                return {}
            if rest == "":
                return self._mapping(indent + 2)
        raise UnknownFormError

    def _time_with_zone(self, margin: str) -> str:
        lines, at, anchors = self._lines, self._at, self._anchors
        if not lines[at].startswith(f"{margin}utc: "):
            raise UnknownFormError
        raw = lines[at][len(margin) + 5 :]
        anchor = None
        if raw[:1] == "&":
            if (found := _ANCHORED.fullmatch(raw)) is None:
                raise UnknownFormError
            anchor, raw = found[1], found[2]
        if raw[:1] == "*":
            instant = anchors.get(raw[1:])
        elif _INSTANT.fullmatch(raw) is not None:
            instant = f"{raw[:10]}T{raw[11:26]}Z"
        else:
            instant = scalars.parse_instant(raw) if _SHAPE_OF_TIME.fullmatch(raw) is not None else None
        if instant is None:
            raise UnknownFormError
        if anchor is not None:
            anchors[anchor] = instant

        at += 1
        if not lines[at].startswith(f"{margin}zone: "):
            raise UnknownFormError
        raw = lines[at][len(margin) + 6 :]
        at += 1
        if raw[:1] == "*":
            if raw[1:] not in anchors:
                raise UnknownFormError
        else:
            if raw[:1] == "&" and (found := _ANCHORED.fullmatch(raw)) is not None:
                anchors[found[1]] = None
                raw = found[2]
            name = lines[at]
            if raw != _ZONE or name[: len(margin)] != margin:
                raise UnknownFormError
            if name not in _zone_names:  # there are few, and the pattern is slow
                if _ZONE_NAME.fullmatch(name, len(margin)) is None:
                    raise UnknownFormError
                if margin == "  ":
                    _remember(_zone_names, name, None)
            elif margin != "  " and _ZONE_NAME.fullmatch(name, len(margin)) is None:
                raise UnknownFormError
            at += 1
        if (
            not lines[at].startswith(f"{margin}time: ")
            or _SHAPE_OF_TIME.fullmatch(lines[at], len(margin) + 6) is None
            or lines[at + 1].startswith(margin[1:])
        ):
            raise UnknownFormError
        self._at = at + 1
        return instant

    def _literal(self, raw: str, indent: int) -> str:
        """Read a literal block: `|` or `|-` whose first line shows how far it is indented, or `|2` or `|2-`."""
        lines, at = self._lines, self._at
        margin = " " * (indent + 2)
        # `|2` has the indentation, because the text begins with a space or an empty line.
        if raw not in ("|2", "|2-") and (
            raw not in ("|", "|-")
            or not lines[at].startswith(margin)
            or lines[at][indent + 2 : indent + 3] in ("", " ")
        ):
            raise UnknownFormError
        content: list[str] = []
        last = len(lines) - 1
        while at < last:
            line = lines[at]
            if line.startswith(margin):
                content.append(line[indent + 2 :])
            elif line == "":
                content.append("")
            else:
                break
            at += 1
        if lines[at].startswith(" " * (indent + 1)):
            raise UnknownFormError
        self._at = at
        while content and content[-1] == "":
            content.pop()
        if not content:
            raise UnknownFormError
        text = "\n".join(content)
        return text if raw[-1] == "-" else f"{text}\n"


_PLAIN_DECIMAL = re.compile(r"[0-9]+:-?(?:[0-9.e+-]+|Infinity)|[0-9]+:NaN")
_ZONE_NAME = re.compile(r"  name: [A-Z][A-Za-z_/+-]*[A-Za-z](?: (?:& )?\(?[A-Z][A-Za-z.]*\)?)*")


def names_zone(line: str) -> bool:
    """Return whether a line, without the margin of the time it belongs to, names that time's zone."""
    return _ZONE_NAME.fullmatch(line) is not None


def _key(name: str) -> str:
    """Return the key that a plain text before a colon is, and remember it."""
    if len(name) > KEY_LENGTH_MAX or _KEY.fullmatch(name) is None:
        raise UnknownFormError
    key = scalars.plain(name)
    if type(key) is not str:
        key = json_key(key)
    _remember(_keys, name, key)
    return key


def _remember(cache: dict[str, Any], text: str, what: Any) -> None:
    if len(cache) >= _CACHE_SIZE_MAX:
        cache.clear()
    cache[text] = what


def _indicated_key(line: str) -> tuple[str, str, str]:
    """Return the key that is a symbol or quoted, the colon, and the rest of its line."""
    if line[0] == ":":
        name, colon, rest = line[1:].partition(":")
        return _keys.get(f":{name}") or _key(f":{name}"), colon, rest
    if (found := _QUOTED_KEY.fullmatch(line)) is None:
        raise UnknownFormError
    return found[1] if found[1] is not None else found[2], ":", found[3] or ""


def _double_quoted(raw: str) -> str:
    inner = raw[1:-1]
    if len(raw) < 2 or raw[-1] != '"':
        raise UnknownFormError
    if "\\" not in inner:
        if '"' in inner:
            raise UnknownFormError
        return inner
    if _SIMPLE_DOUBLE_QUOTED.fullmatch(inner) is None:
        raise UnknownFormError
    return _ESCAPE.sub(_unescaped, inner)


def _unescaped(found: re.Match[str]) -> str:
    if (digits := found[1]) is None:
        character = _ESCAPES.get(found[2])
        if character is None:
            raise UnknownFormError
        return character
    code = int(digits[1:], 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise UnknownFormError
    return chr(code)
