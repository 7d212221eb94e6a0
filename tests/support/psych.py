"""A reader of the subset of YAML that Psych writes, written without ours: it reads what the generator writes."""

import re
from decimal import Decimal
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ops.local.generator import psych

UNTAGGED = "tag:yaml.org,2002:"


class NotOursError(Exception):
    """A tag or form that the generator has no value for."""


def read_back(text: str) -> Any:
    """Return the generator's value of a document; raises NotOursError where it has none."""
    node = yaml.compose(text, Loader=yaml.CSafeLoader)
    assert node is not None
    return _value(node, set())


def _value(node: Node, seen: set[int]) -> Any:
    if id(node) in seen and node.tag != psych.TIME_ZONE:
        raise NotOursError("an alias of a value")
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode):
        if not node.tag.startswith(UNTAGGED):
            raise NotOursError(node.tag)
        return [_value(item, seen) for item in node.value]
    assert isinstance(node, MappingNode)
    keys = [_value(key, seen) for key, _ in node.value]
    if node.tag == psych.TIME_WITH_ZONE:
        utc, zone, wall = (value for _, value in node.value)
        return psych.Instant(utc.value.removesuffix(" Z"), wall.value.removesuffix(" Z"), zone.value[0][1].value)
    if node.tag != psych.HASH_WITH_INDIFFERENT_ACCESS and not node.tag.startswith(UNTAGGED):
        raise NotOursError(node.tag)
    if any(isinstance(key, list) for key in keys):
        raise NotOursError("a sequence as a key")
    made = dict(zip(keys, (_value(value, seen) for _, value in node.value), strict=True))
    return psych.Indifferent(made) if node.tag == psych.HASH_WITH_INDIFFERENT_ACCESS else made


def _scalar(node: ScalarNode) -> Any:
    if node.tag == psych.BIG_DECIMAL:
        return Decimal(node.value.split(":", 1)[1])
    if not node.tag.startswith(UNTAGGED):
        raise NotOursError(node.tag)
    if node.style:  # libyaml's plain is the empty string
        return str(node.value)
    if node.value == "":
        return None
    if node.value.startswith(":"):
        return psych.Symbol(node.value[1:])
    if _is_no_string(node.value):
        return psych.Plain(node.value)
    return str(node.value)


def _is_no_string(plain: str) -> bool:
    """Tell the unquoted numbers, booleans, dates and times from the unquoted strings."""
    return bool(
        re.fullmatch(
            r"true|false|-?\d+|-?\d+\.\d+(e[-+]\d+)?|-?\.inf|\.nan|\d{4}-(0\d|1[012])-([012]\d|3[01])"
            r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} (Z|[-+]\d\d:\d\d)",
            plain,
        )
    )
