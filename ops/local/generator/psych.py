"""Ruby values -> the YAML text that Psych writes for them in `audited_changes`.

Psych hands its events to libyaml's emitter, and so does this: PyYAML's C emitter is the same code, so line breaks,
escapes and block indicators come out alike. What Psych decides itself is here: the style of a string, the tags, the
anchors of a shared time zone. The fixture rows, which the real gem wrote, prove it: read into these values and written
again they are the same bytes (tests/unit/ops/local/test_generator_psych.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

HASH_WITH_INDIFFERENT_ACCESS = "!ruby/hash:ActiveSupport::HashWithIndifferentAccess"
TIME_WITH_ZONE = "!ruby/object:ActiveSupport::TimeWithZone"
TIME_ZONE = "!ruby/object:ActiveSupport::TimeZone"
BIG_DECIMAL = "!ruby/object:BigDecimal"

NIL_025 = ""  # what follows `key:` or `-` where the value is nil: libyaml 0.2.5 writes nothing,
NIL_022 = " "  # libyaml 0.2.2 a space
_NIL_MARK = "\ue000"  # stands for nil while libyaml writes; no value has it

# Words, numbers, dates and times that Psych would read back as something else than a string. Wider than Psych's own
# scanner in one point only: it never lets a string through that Psych would quote.
_READS_AS_SOMETHING_ELSE = re.compile(
    r"""
    ~ | null | true | false | yes | no | on | off                     # in any case
    | [-+]?[0-9][0-9_,]*                                              # integers
    | [-+]?0[0-7_,]+ | [-+]?0x[0-9a-f_,]+ | [-+]?0b[01_,]+
    | [-+]?(?:[0-9][0-9_,]*)?\.[0-9]*(?:e[-+][0-9]+)?                 # floats
    | [-+]?\.inf | \.nan
    | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}                                  # dates and times
    | -?[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:t|\s+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?
          \s*(?:z|[-+][0-9]{1,2}:?[0-9]{0,2})?
    | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9]){1,2}(?:\.[0-9_]*)?            # base 60
    | :.+                                                             # symbols
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LIKE_AN_OCTAL_NUMBER = re.compile(r"0[0-7]*[89]")  # and is none; quoted for other readers of YAML
_LINE_BREAK_INSIDE = re.compile(r"\n(?!\Z)")
_BEGINS_UNLIKE_A_WORD = re.compile(r"^[^\w][^\"]*$", re.MULTILINE)


class Plain(str):
    """Text that is written unchanged and unquoted: a date, a timestamp, an enum's number."""

    __slots__ = ()


class Symbol(str):
    """A Ruby symbol, without its colon."""

    __slots__ = ()


class Indifferent(dict[Any, Any]):
    """An `ActiveSupport::HashWithIndifferentAccess`."""


@dataclass(frozen=True, slots=True)
class Instant:
    """An `ActiveSupport::TimeWithZone`: `YYYY-MM-DD HH:MM:SS.nnnnnnnnn` in UTC and on the wall of `zone`."""

    utc: str
    wall: str
    zone: str = "Asia/Jakarta"


def document(value: object, nil: str = NIL_025) -> str:
    """Return the YAML document of a value, as ActiveRecord stores it."""
    return with_nil(template(value), nil)


def with_nil(text: str, nil: str) -> str:
    """Return a template's text with nil written as one of the two libyaml versions does."""
    return text.replace(f" {_NIL_MARK}", nil)


def template(value: object) -> str:
    """Return the YAML document of a value with a mark for every nil: `with_nil` makes it whole."""
    events: list[Event] = [
        StreamStartEvent(),
        DocumentStartEvent(explicit=True),
        *_Visitor(value).events(value),
        DocumentEndEvent(explicit=False),
        StreamEndEvent(),
    ]
    return cast("str", yaml.emit(events, Dumper=yaml.CDumper, allow_unicode=True))


def big_decimal(value: Decimal) -> str:
    """Return a BigDecimal as Ruby dumps it: `18:0.125e2`, the digits it has room for and the number.

    It has room for one machine word (nine digits) more than its digits need.
    """
    if not value:
        return "18:-0.0" if value.is_signed() else "18:0.0"
    sign, digits, exponent = value.normalize().as_tuple()
    assert isinstance(exponent, int)
    shown = "".join(map(str, digits))
    before = max(len(shown) + exponent, 1)
    room = (-(-(before + max(-exponent, 0)) // 9) + 1) * 9
    return f"{room}:{'-' if sign else ''}0.{shown}e{len(shown) + exponent}"


class _Visitor:
    """One document: which time zones occur more than once is known before the first is written."""

    def __init__(self, value: object) -> None:
        self._uses: dict[str, int] = {}
        self._anchors: dict[str, str] = {}
        self._count(value)

    def _count(self, value: object) -> None:
        if isinstance(value, Instant):
            self._uses[value.zone] = self._uses.get(value.zone, 0) + 1
        elif isinstance(value, Mapping):
            for item in value.values():
                self._count(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._count(item)

    def events(self, value: object) -> Iterator[Event]:
        """Yield libyaml's events for a value."""
        if isinstance(value, Mapping):
            tag = HASH_WITH_INDIFFERENT_ACCESS if isinstance(value, Indifferent) else None
            yield MappingStartEvent(None, tag, tag is None, flow_style=False)
            for key, item in value.items():
                yield from self.events(key)
                yield from self.events(item)
            yield MappingEndEvent()
        elif isinstance(value, Instant):
            yield from self._instant(value)
        elif isinstance(value, (list, tuple)):
            yield SequenceStartEvent(None, None, True, flow_style=False)
            for item in cast("Sequence[object]", value):
                yield from self.events(item)
            yield SequenceEndEvent()
        else:
            yield _scalar(value)

    def _instant(self, value: Instant) -> Iterator[Event]:
        yield MappingStartEvent(None, TIME_WITH_ZONE, False, flow_style=False)
        yield _plain("utc")
        yield _plain(f"{value.utc} Z")
        yield _plain("zone")
        anchor = self._anchors.get(value.zone)
        if anchor is not None:
            yield AliasEvent(anchor)
        else:
            if self._uses[value.zone] > 1:
                anchor = self._anchors[value.zone] = str(len(self._anchors) + 1)
            yield MappingStartEvent(anchor, TIME_ZONE, False, flow_style=False)
            yield _plain("name")
            yield _plain(value.zone)
            yield MappingEndEvent()
        yield _plain("time")
        yield _plain(f"{value.wall} Z")  # the wall clock, with a Z that is not true: so does ActiveSupport
        yield MappingEndEvent()


def _plain(text: str) -> Event:
    return ScalarEvent(None, None, (True, False), text)


def _scalar(value: object) -> Event:
    if value is None:
        return _plain(_NIL_MARK)
    if isinstance(value, Symbol):
        return _plain(f":{value}")
    if isinstance(value, Plain):
        return _plain(str(value))
    if isinstance(value, str):
        return ScalarEvent(None, None, (True, True), value, style=string_style(value))
    if isinstance(value, bool):
        return _plain("true" if value else "false")
    if isinstance(value, Decimal):
        return ScalarEvent(None, BIG_DECIMAL, (False, False), big_decimal(value))
    if isinstance(value, (int, float)):
        return _plain(repr(value))
    raise TypeError(f"no form is known for a {type(value).__name__}")


def string_style(text: str) -> str | None:
    """Return the style that Psych passes to libyaml: `|`, `"`, `'`, or None for plain, which libyaml may quote."""
    if _LINE_BREAK_INSIDE.search(text):
        return "|"
    if text in ("y", "Y", "n", "N"):
        return '"'
    if _BEGINS_UNLIKE_A_WORD.search(text):
        return '"'
    if not text or _READS_AS_SOMETHING_ELSE.fullmatch(text) or _LIKE_AN_OCTAL_NUMBER.match(text):
        return "'"
    return None
