"""What the generator writes is what Psych writes: the real gem's fixture rows, read and written again, stay the same."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from importlib.resources import files
from typing import Any

import pytest
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ops.local.generator import psych

UNTAGGED = "tag:yaml.org,2002:"


class NotOurs(Exception):
    """A tag or form that the generator has no value for."""


def ruby_value(node: Node, seen: set[int]) -> Any:
    """Read a node into the generator's values; strings by their style, as Psych reads them."""
    if id(node) in seen and not is_time_zone(node):
        raise NotOurs("alias of a plain value")
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        return scalar(node)
    if isinstance(node, SequenceNode):
        if not node.tag.startswith(UNTAGGED):
            raise NotOurs(node.tag)
        return [ruby_value(item, seen) for item in node.value]
    assert isinstance(node, MappingNode)
    pairs = [(ruby_value(key, seen), value) for key, value in node.value]
    if node.tag == psych.TIME_WITH_ZONE:
        parts = dict(pairs)
        return psych.Instant(
            utc=parts["utc"].value.removesuffix(" Z"),
            wall=parts["time"].value.removesuffix(" Z"),
            zone=parts["zone"].value[0][1].value,
        )
    if node.tag != psych.HASH_WITH_INDIFFERENT_ACCESS and not node.tag.startswith(UNTAGGED):
        raise NotOurs(node.tag)
    if any(isinstance(key, list) for key, _ in pairs):
        raise NotOurs("a sequence as a key")
    made = {key: ruby_value(value, seen) for key, value in pairs}
    return psych.Indifferent(made) if node.tag == psych.HASH_WITH_INDIFFERENT_ACCESS else made


def is_time_zone(node: Node) -> bool:
    return bool(node.tag == psych.TIME_ZONE)


def scalar(node: ScalarNode) -> Any:
    if node.tag == psych.BIG_DECIMAL:
        return Decimal(node.value.split(":", 1)[1])
    if not node.tag.startswith(UNTAGGED):
        raise NotOurs(node.tag)
    if node.style:  # libyaml's plain is the empty string
        return str(node.value)
    if node.value == "":
        return None
    if node.value.startswith(":"):
        return psych.Symbol(node.value[1:])
    if reads_as_a_value(node.value):
        return psych.Plain(node.value)
    return str(node.value)


def reads_as_a_value(plain: str) -> bool:
    """Numbers, booleans, dates and times: the fixtures' unquoted scalars that are no strings."""
    return bool(
        re.fullmatch(
            r"true|false|-?\d+|-?\d+\.\d+(e[-+]\d+)?|-?\.inf|\.nan|\d{4}-\d\d-\d\d"
            r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} (Z|[-+]\d\d:\d\d)",
            plain,
        )
    )


def fixture_documents() -> Iterator[tuple[int, str, str]]:
    sample = files("ops.local.sample")
    expected = sample.joinpath("expected_changes.jsonl").read_text("utf-8").split("\n")
    writers = {e["id"]: e["written_by"] for e in map(json.loads, filter(None, expected)) if e["table"] == "audits_yaml"}
    for line in sample.joinpath("audits_yaml.jsonl").read_text("utf-8").split("\n"):
        if line and (row := json.loads(line))["audited_changes"] is not None:
            yield row["id"], row["audited_changes"], writers[row["id"]]


def test_fixture_rows_written_again_are_the_same_bytes() -> None:
    same, not_ours, different = 0, 0, []
    for audit_id, text, writer in fixture_documents():
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        assert node is not None
        try:
            value = ruby_value(node, set())
        except NotOurs:
            not_ours += 1
            continue
        nil = psych.NIL_022 if "psych 3.1" in writer else psych.NIL_025
        if psych.document(value, nil) == text:
            same += 1
        else:
            different.append((audit_id, text, psych.document(value, nil)))
    for d in different:
        print(d)
    print(same, not_ours, len(different))
