"""YAML through libyaml's events: the reader that decides what a document means, for every form there is.

Nothing is ever built by tag: a tag is compared with a short list, and any other one costs its own value, which becomes
`{"$ruby": "ClassName"}`. The parser returns one event at a time and a list is the stack, so neither depth nor
length can take more than `limits` allows, in C or in Python.
"""

import re
from typing import Any

import orjson
import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]

from schemas.source.audited_changes import scalars
from schemas.source.audited_changes.limits import (
    DEPTH_MAX,
    JSON_KEY_LENGTH_MAX,
    NODES_MAX,
    YAML_LENGTH_MAX,
    UnreadableError,
)

# Times that are a mapping of `utc`, `zone` and `time`; the second one is what Rails 7.0 makes of a time column's value.
TIMES_WITH_ZONE = frozenset(
    f"!ruby/object:{name}" for name in ("ActiveSupport::TimeWithZone", "ActiveRecord::Type::Time::Value")
)
BIG_DECIMAL = "!ruby/object:BigDecimal"
DATE_TIME = "!ruby/object:DateTime"
_HASHES = frozenset(
    f"{kind}:{name}"
    for kind in ("!ruby/hash", "!map")
    for name in ("ActiveSupport::HashWithIndifferentAccess", "HashWithIndifferentAccess")
) | {"tag:yaml.org,2002:map", "!"}
_LISTS = frozenset(("tag:yaml.org,2002:seq", "!"))
_STRINGS = frozenset(("tag:yaml.org,2002:str", "!str", "!ruby/string"))
# `! '…'` is how every Psych writes a nil key and a symbol that needs quotes; it reads any such scalar like a plain one.
NONSPECIFIC = "!"
_LIKE_PLAIN = (None, NONSPECIFIC)
_BINARIES = frozenset(("!binary", "tag:yaml.org,2002:binary"))
_SYMBOLS = frozenset(("!ruby/symbol", "!ruby/sym"))
# What Psych makes of a tag that names no class.
_KINDS = {
    "!ruby/class": "Class",
    "!ruby/module": "Module",
    "!ruby/regexp": "Regexp",
    "!ruby/range": "Range",
    "!ruby/encoding": "Encoding",
    "!ruby/object": "Object",
    "!ruby/struct": "Struct",
    "!ruby/exception": "Exception",
    "!ruby/hash-with-ivars": "Hash",
    "!omap": "Psych::Omap",
    "tag:yaml.org,2002:omap": "Psych::Omap",
    "!set": "Psych::Set",
    "tag:yaml.org,2002:set": "Psych::Set",
}
_WITH_CLASS = re.compile(
    r"!(?:ruby/(?:object|struct|hash-with-ivars|hash|array|string|exception|marshalable|data|sym(?:bol)?)|map|seq|str):(.+)",
    re.DOTALL,
)
_CLASS_NAME_LENGTH_MAX = 200  # of a mark; a tag can be as long as the text


class _Open:
    """A collection whose end has not come yet."""

    __slots__ = ("anchor", "clock", "is_mapping", "items", "nodes", "refused", "tag", "text_length")

    def __init__(self, event: Any, counts: tuple[int, int, int], clock: bool) -> None:
        self.is_mapping = type(event) is yaml.MappingStartEvent
        self.items: list[Any] = []  # of a mapping: key, value, key, value, ...
        self.tag: str | None = event.tag
        self.anchor: str | None = event.anchor
        self.nodes, self.text_length, self.refused = counts  # as they were before it
        self.clock = clock  # a time in here is a time of day

    def awaits_key(self) -> bool:
        """Return whether what comes next is a key."""
        return self.is_mapping and len(self.items) % 2 == 0


_MERGE = object()  # a plain `<<` that is a key


def read_yaml(text: str, clock_columns: frozenset[str]) -> tuple[dict[str, Any] | None, int]:
    """Return the columns of the one document in `text` (None for an empty one) and how many values were refused.

    Times in `clock_columns` are the local clock time (`09:30:00`), where the text has it. Raises UnreadableError.
    """
    if len(text) > YAML_LENGTH_MAX:
        raise UnreadableError(f"YAML of more than {YAML_LENGTH_MAX} characters")
    try:
        return _Reader(text, clock_columns).read()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise UnreadableError(f"not YAML{where}: {problem}") from None
    except UnicodeEncodeError:
        raise UnreadableError("not YAML: the text is not Unicode (it has a lone surrogate)") from None


def class_name(tag: str, scalar: str | None = None) -> str:
    """Return the class that a refused tag names, for its mark: `!ruby/struct:Quotation` -> `Quotation`."""
    if tag == "!ruby/object:Rational" and scalar is not None:
        return "Rational"
    if (kind := _KINDS.get(tag)) is not None:
        return kind
    if (found := _WITH_CLASS.fullmatch(tag)) is not None:
        return found[1][:_CLASS_NAME_LENGTH_MAX]
    return tag.removeprefix("tag:yaml.org,2002:").removeprefix("!")[:_CLASS_NAME_LENGTH_MAX]


class _Reader:
    def __init__(self, text: str, clock_columns: frozenset[str]) -> None:
        self._text = text
        self._clock_columns = clock_columns
        self._anchors: dict[str, tuple[Any, int, int] | None] = {}  # value, nodes and characters; None: still open
        self._nodes = 0
        self._length = 0
        self._refused = 0
        self._root_is_mapping = False

    def read(self) -> tuple[dict[str, Any] | None, int]:
        parser = CParser(self._text)
        try:
            return self._document(parser)
        finally:
            parser.dispose()

    def _document(self, parser: Any) -> tuple[dict[str, Any] | None, int]:
        next_event = parser.get_event
        next_event()  # the stream's start
        if not isinstance(next_event(), yaml.DocumentStartEvent):
            return None, 0  # nothing but comments
        root = self._root(next_event)
        next_event()  # the document's end
        if not isinstance(next_event(), yaml.StreamEndEvent):
            raise UnreadableError("more than one YAML document")
        if root is None:
            return None, 0
        if not self._root_is_mapping:
            raise UnreadableError("the YAML document is not a mapping of columns")
        return root, self._refused

    def _root(self, next_event: Any) -> Any:
        stack: list[_Open] = []
        anchors = self._anchors
        while True:
            event = next_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                text = event.value
                self._count(len(text))
                if event.tag is None and event.style:  # quoted or a block
                    value = text
                else:
                    value = self._scalar(event)
                    if text == "<<" and event.tag in _LIKE_PLAIN and stack and stack[-1].awaits_key():
                        value = _MERGE
                if event.anchor is not None:
                    anchors[event.anchor] = (value, 1, len(text))
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                if len(stack) >= DEPTH_MAX:
                    raise UnreadableError(f"nested deeper than {DEPTH_MAX} levels")
                clock = bool(stack) and (
                    stack[-1].clock or (len(stack) == 1 and _last_key(stack[0]) in self._clock_columns)
                )
                opened = _Open(event, (self._nodes, self._length, self._refused), clock)
                self._count(0)
                if event.anchor is not None:
                    anchors[event.anchor] = None
                stack.append(opened)
                continue
            elif kind is yaml.AliasEvent:
                value = self._alias(event.anchor)
            else:  # the end of a mapping or a sequence
                closed = stack.pop()
                value = self._collection(closed)
                if closed.anchor is not None:
                    anchors[closed.anchor] = (value, self._nodes - closed.nodes, self._length - closed.text_length)
                self._root_is_mapping = closed.is_mapping and (closed.tag is None or closed.tag in _HASHES)
            if not stack:
                return value
            stack[-1].items.append(value)

    def _count(self, length: int, nodes: int = 1) -> None:
        self._nodes += nodes
        self._length += length
        if self._nodes > NODES_MAX:
            raise UnreadableError(f"more than {NODES_MAX} nodes, aliases expanded")
        if self._length > YAML_LENGTH_MAX:
            raise UnreadableError(f"more than {YAML_LENGTH_MAX} characters, aliases expanded")

    def _alias(self, anchor: str) -> Any:
        try:
            known = self._anchors[anchor]
        except KeyError:
            raise UnreadableError("an alias without an anchor") from None
        if known is None:
            raise UnreadableError("an alias to the collection it stands in")
        value, nodes, length = known
        self._count(length, nodes)
        return value

    def _scalar(self, event: Any) -> Any:
        tag: str | None = event.tag
        text: str = event.value
        if tag is None or tag == NONSPECIFIC:
            return scalars.plain(text)
        if tag in _STRINGS:
            return text
        if tag in _SYMBOLS:
            return text
        value: Any = None
        if tag == BIG_DECIMAL:
            value = scalars.decimal(text)
        elif tag == DATE_TIME:
            value = scalars.parse_instant(text)
        elif tag in _BINARIES:
            value = scalars.binary(text)
        return value if value is not None else self._refuse(tag, text)

    def _refuse(self, tag: str, scalar: str | None = None) -> dict[str, str]:
        self._refused += 1
        return {"$ruby": class_name(tag, scalar)}

    def _collection(self, closed: _Open) -> Any:
        tag = closed.tag
        if not closed.is_mapping:
            if tag is None or tag in _LISTS:
                return closed.items
        elif tag is None or tag in _HASHES:
            return _mapping(closed.items)
        elif tag in TIMES_WITH_ZONE or tag in _STRINGS:
            self._refused = closed.refused  # what its other members are is not part of the value
            members = _mapping(closed.items)
            if tag not in TIMES_WITH_ZONE:
                value = members.get("str")
                if isinstance(value, str):
                    return value
            elif scalars.is_instant(members.get("utc")):
                if closed.clock and scalars.is_instant(members.get("time")):
                    return scalars.clock_of(members["time"])
                return members["utc"]
        self._refused = closed.refused
        return self._refuse(tag)


def _last_key(root: _Open) -> Any:
    return root.items[-1] if len(root.items) % 2 == 1 and isinstance(root.items[-1], str) else None


def _mapping(items: list[Any]) -> dict[str, Any]:
    """Return keys and values as an object; keys that are no strings become JSON text, the last of equal keys counts."""
    members: dict[str, Any] = {}
    for index in range(0, len(items), 2):
        key, value = items[index], items[index + 1]
        if type(key) is str:
            members[key] = value
        elif key is not _MERGE:
            members[json_key(key)] = value
        elif not _merge(members, value):
            members["<<"] = value
    return members


def _merge(members: dict[str, Any], value: Any) -> bool:
    """Merge as Psych does under a plain `<<`; return whether `value` was something to merge."""
    if _is_hash(value):
        members.update(value)
        return True
    if isinstance(value, list) and all(map(_is_hash, value)):
        for part in reversed(value):
            members.update(part)
        return True
    return False


def _is_hash(value: Any) -> bool:
    """Return whether a value is a hash, and no mark of something else: of a number, of bytes, of a Ruby object."""
    return isinstance(value, dict) and not (len(value) == 1 and not _MARKS.isdisjoint(value))


_MARKS = frozenset(("$float", "$binary", "$ruby"))


def json_key(key: Any) -> str:
    """Return a mapping key that is not a string as JSON text: `1`, `2.5`, `true`, `null`, `[1,2]`.

    Raises UnreadableError if that is long: a key inside a key inside a key doubles with every level of quoting.
    """
    text = orjson.dumps(key).decode()
    if len(text) > JSON_KEY_LENGTH_MAX:
        raise UnreadableError(f"a collection as a key, of more than {JSON_KEY_LENGTH_MAX} characters of JSON")
    return text
