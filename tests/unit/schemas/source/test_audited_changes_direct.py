"""The short way gives what libyaml's way gives, or nothing."""
# ruff: noqa: E501 - tables of texts, several a line

import json
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.source.audited_changes.direct import read_directly
from schemas.source.audited_changes.limits import UnreadableError
from schemas.source.audited_changes.nodes import read_yaml
from tests.fuzz.audited_changes import Fuzzer, texts
from tests.unit.schemas.sample import SampleRow, row_id, rows

YAML_ROWS = [row for row in rows() if row.event.audited_changes.startswith("---")]


def by_nodes(text: str) -> Any:
    try:
        found, refused = read_yaml(text, frozenset())
    except UnreadableError as error:
        return str(error)
    return (found or {}) if not refused else "refused"


def assert_equal_or_unknown(text: str) -> bool:
    direct = read_directly(text)
    if direct is not None:
        assert repr(by_nodes(text)) == repr(direct)
    return direct is not None


@pytest.mark.parametrize("row", YAML_ROWS, ids=row_id)
def test_a_sample_row(row: SampleRow) -> None:
    assert_equal_or_unknown(row.event.audited_changes)


def test_most_sample_rows_take_the_short_way() -> None:
    assert sum(read_directly(row.event.audited_changes) is not None for row in YAML_ROWS) >= 0.85 * len(YAML_ROWS)


@pytest.mark.parametrize(
    "text",
    [
        "---\na: 1\nb: two\nc: 'it''s'\nd: \"x\\ty\"\ne:\nf: \n",
        "---\nemployees:\n- 40\n- 1002\n",
        "--- !ruby/hash:ActiveSupport::HashWithIndifferentAccess\nsettings:\n- {}\n- theme: :dark\n",
        "---\nlabels:\n-\n- - hot\n  - 'a: b'\n  -\n- []\n",
        "---\nextra:\n  a:\n    b:\n    - 1\n    - c: d\n      e:\n      - 2\n",
        "---\ndescription: |\n  one\n\n    two # no comment\nb: |-\n  three\n",
        "---\namount:\n- !ruby/object:BigDecimal 18:0.25e9\n- !ruby/object:BigDecimal 18:-0.0\n",
        "---\na: one\n  two three\n  four\nb:\n- five\n  six\n",
        "---\na: 'one\n\n  '\nb:\n- 'it''s\n\n\n  two\n  three '\n",
        '---\na: "one \\"two\\"\n\n  three\\n\n  four"\n',
        "---\na: |2\n   b\n\n  c\nd: |2-\n\n  e\nf: !binary |-\n  iVBORw0K\n",
        "---\nextra:\n  \"n\": 1\n  'yes':\n  - 2\n",
        "---\nextra:\n  1: one\n  :two: three\n",
    ],
)
def test_a_form_that_is_known(text: str) -> None:
    assert assert_equal_or_unknown(text)


@pytest.mark.parametrize(
    "text",
    [
        "---\na: b: c\n", "---\na: b #c\n", "---\na:b\n", "---\na\n",
        "---\na: &1 b\nc: *1\n", "---\na: {b: c}\n", "---\na: [1]\n", "---\n? a\n: b\n", "---\n'a': b\n", "---\n<<: b\n",
        "---\na: !ruby/object:Set {}\n", "---\na: >\n  b\n", "---\na: |\n\n  b\n", "---\na: |2-\n  \nb: 1\n", "---\na: |2\n\n", "---\na: b\tc\n",
        "---\na: 'b\u2028c'\n", "---\na: b\r\n", "---\n- a\n", "---\na: b\n...\n", "---\na: b\n---\n", "---\na: b", "a: b\n",
        "---\n a: b\n", "---\na: @b\n", "---\na: 'b'c\n", "---\na: \"\\q\"\n", "---\na: \"\\ud83d\"\n", "---\n# a\nb: c\n", "---\na: b\n\n  c\n", "---\na: 'b\n\tc'\n", "---\na: 'b\nc'\n", "---\na: \"b\\\n  c\"\n",
        "---\na: 'b\n  c' d\n", "---\na: b\n  #c\n",
        "---\na:\n  - b\n", "---\na:\n-b\n- c\n", "---\na:\n- - b\n   - c\n",
    ],
)  # fmt: skip
def test_a_form_that_is_left_to_libyaml(text: str) -> None:
    assert read_directly(text) is None


def test_what_was_read_before_does_not_change_what_is_read_now() -> None:
    first = read_directly("---\na: {}\nb: .nan\nc: x\n")
    first["a"]["more"] = first["b"]["more"] = 1
    assert read_directly("---\na: {}\nb: .nan\nc: x\n") == {"a": {}, "b": {"$float": "NaN"}, "c": "x"}
    assert read_directly("---\na: x\n  y: z\n") is None  # although `x` is known by now


# What Psych would write: PyYAML's emitter over the same libyaml, with Psych's layout ----------------------------------

PLAIN = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20)
WORDS = st.sampled_from(
    ["yes", "NO", "~", "null", "1_000", "0x1F", "12:30", "2024-02-30", ":sym", "1.5", "- x", "a: b", "#x", "<<", "="]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PLAIN | WORDS | st.text(max_size=12)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN | WORDS, inner, max_size=3), max_leaves=8
)
COLUMNS = st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), VALUES, max_size=5)


@given(COLUMNS)
@settings(max_examples=200, deadline=None)
def test_a_generated_row(columns: dict[str, Any]) -> None:
    text = yaml.dump(columns, Dumper=yaml.CSafeDumper, explicit_start=True, allow_unicode=True, sort_keys=False)
    assert_equal_or_unknown(text)


SCALAR_TEXT = st.text(st.sampled_from("abyn01 :.-#'\"\\{}[]!&*|>%@`,?~=_é\n"), max_size=8)


@given(st.lists(st.tuples(st.sampled_from(["", " ", "  ", "- ", "- - ", "  - ", "-"]), SCALAR_TEXT), max_size=6))
@settings(max_examples=700, deadline=None)
@example([("", "a: n\nno")])
def test_lines_of_anything(parts: list[tuple[str, str]]) -> None:
    assert_equal_or_unknown("---\na:\n" + "".join(f"{lead}{text}\n" for lead, text in parts))


def test_mutated_rows() -> None:
    fuzzer = Fuzzer()
    findings = [
        finding
        for number, (text, is_json) in enumerate(texts(1_500, seed=7))
        if (finding := fuzzer.finding(text, is_json, number)) is not None
    ]
    assert findings == []


def test_the_sample_s_values_survive_json() -> None:
    for row in YAML_ROWS:
        direct = read_directly(row.event.audited_changes)
        assert direct is None or json.loads(json.dumps(direct)) == direct
