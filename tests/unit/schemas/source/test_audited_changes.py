"""`read`: every sample row, every form its README names, and every limit."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from schemas.source.audited_changes import Columns, Unreadable, read
from schemas.source.audited_changes.limits import DEPTH_MAX, LENGTH_MAX, NODES_MAX, YAML_LENGTH_MAX
from tests.unit.schemas.sample import SampleRow, as_stored, row_id, rows


def values(text: str, is_json: bool = False, clocks: frozenset[str] = frozenset()) -> dict[str, Any]:
    result = read(text, is_json, clocks)
    assert isinstance(result, Columns), result
    return result.values


def why_not(text: str, is_json: bool = False) -> str:
    result = read(text, is_json)
    assert isinstance(result, Unreadable), result
    return result.why


@pytest.mark.parametrize("row", rows(), ids=row_id)
def test_a_sample_row_reads_as_the_gem_reads_it(row: SampleRow) -> None:
    result = read(row.event.audited_changes, row.event.changes_are_json)
    assert isinstance(result, Columns)
    # As text: 1 is not 1.0, -0.0 is not 0.0, and the order of the columns counts.
    assert json.dumps(result.values) == json.dumps(as_stored(row.changes))
    refused = [column for column, value in result.values.items() if "$ruby" in json.dumps(value)]
    assert refused == row.opaque_columns
    assert (result.refused > 0) == bool(row.opaque_columns)


@pytest.mark.parametrize(
    ("text", "is_json"), [("", False), ("", True), ("null", True), ("{}", True), ("--- {}\n", False)]
)
def test_no_changes(text: str, is_json: bool) -> None:
    assert values(text, is_json) == {}


@pytest.mark.parametrize(
    "text", ["---\n", "--- \n...\n", "--- !ruby/hash:ActiveSupport::HashWithIndifferentAccess {}\n"]
)
def test_an_empty_document_has_no_changes(text: str) -> None:
    assert values(text) == {}


# What a tag makes of a value ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "value"),
    [
        ("!!str 1", "1"),
        ("!!str '<<'", "<<"),
        ("! 123", 123),
        ("! '123'", 123),
        ("&a ! 123", 123),
        ("! ''", None),
        ("! ':key: [1, 2]'", "key: [1, 2]"),
        ("!str yes", "yes"),
        ("!ruby/symbol web", "web"),
        ("!ruby/sym 'two words'", "two words"),
        ("!ruby/object:BigDecimal 27:0.1250000005e9", "125000000.5"),
        ("!ruby/object:BigDecimal 18:-0.125e2", "-12.5"),
        ("!ruby/object:BigDecimal 18:0.0", "0.0"),
        ("!ruby/object:BigDecimal 18:0.1e-7", "0.00000001"),
        ("!ruby/object:BigDecimal 9:NaN", "NaN"),
        ("!ruby/object:BigDecimal 9:-Infinity", "-Infinity"),
        ("!ruby/object:BigDecimal 9:0.1e999999999", "1E+999999998"),  # written out it were a gigabyte
        ("!ruby/object:DateTime 2018-02-03 04:05:06.000000000 +08:00", "2018-02-02T20:05:06.000000Z"),
        ("!binary |-\n  iVBORw0KGgoA//5i", {"$binary": "iVBORw0KGgoA//5i"}),
        ("!binary |-\n  cGxhaW4=", "plain"),
        ("!!binary cGxhaW4", "plain"),
        ("!ruby/hash:ActiveSupport::HashWithIndifferentAccess\n  a: 1", {"a": 1}),
        ("!map:ActiveSupport::HashWithIndifferentAccess\n  a: 1", {"a": 1}),
        ("!str\n  str: text\n  '@ivar': 1", "text"),
        ("!important", {"$ruby": "important"}),
        ("'!important'", "!important"),
    ],
)
def test_a_tag_that_is_read(yaml: str, value: Any) -> None:
    assert values(f"---\na: {yaml}\nb: 1\n") == {"a": value, "b": 1}
    inside = yaml.replace("\n  ", "\n      ")
    assert values(f"---\na:\n- x\n- k:\n    - {inside}\nb: 1\n") == {"a": ["x", {"k": [value]}], "b": 1}


@pytest.mark.parametrize(
    ("yaml", "class_name"),
    [
        ("!ruby/object:OpenStruct\n  a: 1", "OpenStruct"),
        ("!ruby/object:Kernel", "Kernel"),
        ("!ruby/object {}", "Object"),
        ("!ruby/object:Set\n  hash:\n    a: true", "Set"),
        ("!ruby/struct:Quotation\n  total: !ruby/object:BigDecimal 18:0.1e1", "Quotation"),
        ("!ruby/class 'Crm::Person'", "Class"),
        ("!ruby/module Kernel", "Module"),
        ("!ruby/regexp /x/i", "Regexp"),
        ("!ruby/range 1..2", "Range"),
        ("!ruby/range\n  begin: 1\n  end: 2\n  excl: false", "Range"),
        ("!ruby/exception:RuntimeError\n  message: no", "RuntimeError"),
        ("!ruby/marshalable:Gem\n  - 1", "Gem"),
        ("!ruby/hash:OtherHash\n  a: 1", "OtherHash"),
        ("!map:OtherHash\n  a: 1", "OtherHash"),
        ("!ruby/hash-with-ivars:OtherHash\n  elements: {}\n  ivars: {}", "OtherHash"),
        ("!ruby/array:List\n  - 1", "List"),
        ("!ruby/string:ActiveSupport::SafeBuffer\n  str: <b>", "ActiveSupport::SafeBuffer"),
        ("!ruby/object:Rational\n  denominator: 3\n  numerator: 1", "Rational"),
        ("!ruby/object:Complex 1+2i", "Complex"),
        ("!ruby/object:ActiveSupport::TimeWithZone\n  zone: x", "ActiveSupport::TimeWithZone"),
        ("!ruby/object:ActiveSupport::TimeWithZone\n  utc: soon", "ActiveSupport::TimeWithZone"),
        ("!ruby/object:ActiveSupport::TimeWithZone 2024-01-01", "ActiveSupport::TimeWithZone"),
        ("!ruby/object:ActiveRecord::Type::Time::Value\n  utc: soon", "ActiveRecord::Type::Time::Value"),
        ("!ruby/object:BigDecimal 18:many", "BigDecimal"),
        ("!ruby/object:DateTime 2018-02-30 04:05:06 Z", "DateTime"),
        ("!omap\n  - a: 1", "Psych::Omap"),
        ("!set {a, b}", "Psych::Set"),
        ("!!python/object/apply:os.system ['true']", "python/object/apply:os.system"),
        ("!!python/name:os.system", "python/name:os.system"),
        ("!<tag:example.com,2024:x> 1", "tag:example.com,2024:x"),
    ],
)
def test_a_refused_tag_costs_its_own_value(yaml: str, class_name: str) -> None:
    result = read(f"---\na: {yaml}\nb: [1, 2]\n")
    assert result == Columns({"a": {"$ruby": class_name}, "b": [1, 2]}, 1, False)


def test_objects_inside_a_refused_one_are_refused_with_it() -> None:
    text = "---\na: !ruby/object:A\n  x: !ruby/object:B {}\n  y:\n  - !ruby/object:C {}\nb: !ruby/class D\n"
    assert read(text) == Columns({"a": {"$ruby": "A"}, "b": {"$ruby": "Class"}}, 2, False)


def test_the_zone_of_a_time_is_not_a_refused_value() -> None:
    text = (
        "---\ndue_at: !ruby/object:ActiveSupport::TimeWithZone\n  utc: &2 2024-01-31 17:30:00.123456789 Z\n"
        "  zone: &1 !ruby/object:ActiveSupport::TimeZone\n    name: Asia/Jakarta\n"
        "  time: 2024-02-01 00:30:00.123456789 Z\ndone_at: !ruby/object:ActiveSupport::TimeWithZone\n"
        "  utc: *2\n  zone: *1\n  time: 2024-02-01 00:30:00.123456789 Z\nzone: *1\n"
    )
    assert values(text) == {
        "due_at": "2024-01-31T17:30:00.123456Z",
        "done_at": "2024-01-31T17:30:00.123456Z",
        "zone": {"$ruby": "ActiveSupport::TimeZone"},
    }


@pytest.mark.parametrize("time", ["ActiveSupport::TimeWithZone", "ActiveRecord::Type::Time::Value"])
def test_a_time_of_day_is_the_local_clock(time: str) -> None:
    time_of_day = (
        f"!ruby/object:{time}\n  utc: 1999-12-31 23:05:00.000000000 Z\n"
        "  zone: !ruby/object:ActiveSupport::TimeZone\n    name: Asia/Jakarta\n"
        "  time: 2000-01-01 06:05:00.500000000 Z\n"
    )
    text = f"---\nstart_time:\n-\n- {time_of_day}due_at: {time_of_day}"
    assert values(text, clocks=frozenset({"start_time"})) == {
        "start_time": [None, "06:05:00.500000"],
        "due_at": "1999-12-31T23:05:00.000000Z",
    }


# Keys, anchors, documents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "read_as"),
    [
        ("1", "1"),
        ("2.5", "2.5"),
        ("true", "true"),
        ("~", "null"),
        (":theme", "theme"),
        ('"n"', "n"),
        ("'1'", "1"),
        ("! ''", "null"),
        ("! ':a: b'", "a: b"),
        ("? - 1\n  - 2\n", "[1,2]"),
        ("? {a: [x]}\n", '{"a":["x"]}'),
        ("2024-02-29", "2024-02-29"),
        ("'<<'", "<<"),
        ("!!str <<", "<<"),
        ("!ruby/symbol a", "a"),
    ],
)
def test_a_key_is_text(key: str, read_as: str) -> None:
    assert values(f"---\n{key}: v\n") == {read_as: "v"}


def test_the_last_of_equal_keys_counts() -> None:
    assert values("---\na: 1\nb: 2\na: 3\n") == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("merged", "result"),
    [
        ("<<: *1", {"x": 1, "y": 2}),
        ("<<: [*1, {x: 9, z: 3}]", {"x": 1, "y": 2, "z": 3}),
        ("<<: text", {"y": 1, "<<": "text"}),
        ("<<: [*1, text]", {"y": 1, "<<": [{"x": 1, "y": 2}, "text"]}),
        ("<<: .inf", {"y": 1, "<<": {"$float": "Infinity"}}),
        ("! '<<': *1", {"x": 1, "y": 2}),
        ("'<<': *1", {"y": 1, "<<": {"x": 1, "y": 2}}),
    ],
)
def test_a_plain_merge_key_merges_as_psych_does(merged: str, result: dict[str, Any]) -> None:
    assert values(f"---\na: &1 {{x: 1, y: 2}}\nb:\n  y: 1\n  {merged}\n")["b"] == result


def test_aliases_share_their_anchor_s_value() -> None:
    assert values("---\na: &1\n  k: [1]\nb: *1\nc:\n- *1\n- &2 x\n- *2\n") == {
        "a": {"k": [1]},
        "b": {"k": [1]},
        "c": [{"k": [1]}, "x", "x"],
    }


def test_an_anchor_can_be_given_again() -> None:
    assert values("---\na: &1 x\nb: *1\nc: &1 y\nd: *1\n") == {"a": "x", "b": "x", "c": "y", "d": "y"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("---\na: *1\n", "alias without an anchor"),
        ("---\na: &1 [*1]\n", "alias to the collection it stands in"),
        ("---\na: 1\n---\nb: 2\n", "more than one YAML document"),
        ("--- just text\n", "not a mapping"),
        ("---\n- 1\n- 2\n", "not a mapping"),
        ("--- !ruby/object:Crm::Person\na: 1\n", "not a mapping"),
        ("--- !ruby/class X\n", "not a mapping"),
        ("---\na: 'no end\n", "not YAML in line"),
        ("---\na: b: c\n", "not YAML in line 2"),
        ("---\na: \x07\n", "not YAML"),
        ("---\na: \ud83d\n", "lone surrogate"),
        ("{broken", "not JSON"),
        ("plain words", "not JSON"),
        ("[1, 2]", "not an object"),
    ],
)
def test_what_is_unreadable_as_a_whole_says_why(text: str, why: str) -> None:
    assert why in why_not(text)


def test_the_reason_shows_nothing_of_the_text() -> None:
    for text in ("---\na: secret: secret\n", '{"a": secret', "---\n? secret\n: [secret", "---\na: *secret\n"):
        assert "secret" not in why_not(text)


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 123456789012345678901234567890}', {"a": "123456789012345678901234567890"}),
        ('{"a": 9223372036854775807, "b": 9223372036854775808}', {"a": 2**63 - 1, "b": "9223372036854775808"}),
        ('{"a": -9223372036854775808, "b": -9223372036854775809}', {"a": -(2**63), "b": "-9223372036854775809"}),
        ('{"a": 0.1, "b": 100.0, "c": 1e400}', {"a": 0.1, "b": 100.0, "c": {"$float": "Infinity"}}),
        ('{"a": "2024-01-31", "b": "yes", "c": ":sym"}', {"a": "2024-01-31", "b": "yes", "c": ":sym"}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        (' {"a": [null, {"b": ["\\ud83d\\ude00"]}]}', {"a": [None, {"b": ["😀"]}]}),
        ('{"a\\ud83d": "\\ud83d x"}', {"a\ufffd": "\ufffd x"}),
        ('{"a": "x\\u0000y"}', {"a": "x\0y"}),
        ('{"---": 1}', {"---": 1}),
    ],
)
def test_json_is_read_as_json(text: str, is_json: bool, expected: dict[str, Any]) -> None:
    assert json.dumps(values(text, is_json)) == json.dumps(expected)


def test_text_that_is_no_json_is_tried_as_yaml_like_newer_rails_does() -> None:
    assert values("{a: [1, x]}") == {"a": [1, "x"]}
    assert values("name: PT Maju\n") == {"name": "PT Maju"}


@pytest.mark.parametrize(
    "text", ["NaN", '{"a": NaN}', '{"a": Infinity}', '{"a": 1', "[]", '"text"', "1", "---\na: 1\n"]
)
def test_a_json_column_holds_nothing_but_json_objects(text: str) -> None:
    why_not(text, is_json=True)


# Limits ---------------------------------------------------------------------------------------------------------------


REFERENCE_S = 0.015  # that `sum(range(1_000_000))` takes there


def cpu_ms(text: str, is_json: bool = False) -> float:
    """Return the best of three in CPU ms, as a machine would take that has the speed the bounds are meant for."""
    spent, slowness = [], []
    for _ in range(3):
        began = time.thread_time()
        read(text, is_json)
        spent.append(time.thread_time() - began)
        began = time.thread_time()
        sum(range(1_000_000))
        slowness.append((time.thread_time() - began) / REFERENCE_S)
    return min(spent) * 1000 / max(1.0, min(slowness))


def laughs(levels: int, width: int = 9) -> str:
    lines = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(["---", "a0: &a0 lol", *lines]) + "\n"


def test_a_billion_laughs_are_too_many_nodes() -> None:
    assert "aliases expanded" in why_not(laughs(10))
    assert cpu_ms(laughs(10)) < 100
    assert len(values(laughs(4))) == 4


def test_a_few_aliases_cannot_expand_to_megabytes() -> None:
    text = f"---\na: &1 {'x' * 100_000}\nb: [{', '.join(['*1'] * 50)}]\n"
    assert "characters, aliases expanded" in why_not(text)


def test_keys_inside_keys_do_not_double_for_ever() -> None:
    assert values("---\n? ? ? x\n") == {'{"{\\"x\\":null}":null}': None}
    assert "as a key" in why_not(f"---\n{'? ' * 40}x\n")
    assert cpu_ms(f"---\n{'? ' * 60}x\n") < 100


@pytest.mark.parametrize("opener", ["[", "{a: ", "- "])
def test_nesting_is_limited(opener: str) -> None:
    closer = {"[": "]", "{a: ": "}"}.get(opener, "")
    for levels, readable in ((DEPTH_MAX - 1, True), (DEPTH_MAX, False)):
        text = f"---\nk:\n  {opener * levels}x{closer * levels}\n"
        assert isinstance(read(text), Columns) == readable, levels
    assert "deeper than" in why_not(f"---\nk:\n  {opener * 5_000}x\n")


@pytest.mark.parametrize("is_json", [False, True])
def test_ten_megabytes_of_nesting_end_in_a_reason_and_not_in_a_crash(is_json: bool) -> None:
    # In a process of its own: what this test is about would end the process.
    script = (
        "import sys; from schemas.source.audited_changes import read\n"
        "n = 10_000_000; is_json = sys.argv[1] == 'True'\n"
        "for text in ('---\\na: ' + '[' * n, '---\\na: ' + '{a: ' * (n // 4), '---\\n' + '- ' * (n // 2), '[' * n,"
        " '{\"a\":' * (n // 5), '---\\n' + '\\n'.join(' ' * k + 'a:' for k in range(4400))):\n"
        "    result = read(text, is_json); print(type(result).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(is_json)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["Unreadable"] * 6), done.stderr[-500:]


def test_nodes_are_limited() -> None:
    text = f"---\na: [{', '.join(['1'] * (NODES_MAX - 3))}]\n"
    assert len(values(text)["a"]) == NODES_MAX - 3
    assert f"more than {NODES_MAX} nodes" in why_not(text.replace("]", ", 1]"))
    assert cpu_ms(text) < 100


def test_the_length_of_yaml_is_limited() -> None:
    assert "more than" in why_not(f"---\na: {'x' * YAML_LENGTH_MAX}\n")
    longest = f"---\na: {'x' * (YAML_LENGTH_MAX - 8)}\n"
    assert len(values(longest)["a"]) == YAML_LENGTH_MAX - 8
    assert cpu_ms(longest) < 100
    assert cpu_ms("---\na: '" + "x '' " * 150_000 + "'\n") < 100


MEGABYTE = 990_000


@pytest.mark.parametrize(
    "text",
    [
        f"---\na: {'1' * MEGABYTE}\n",
        f"---\na: {'1' * MEGABYTE}.5\n",
        f"---\na: 1{',1' * (MEGABYTE // 2)}\n",
        f"---\na: 1{':1' * (MEGABYTE // 2)}\n",
        f"---\na: 2024-01-01{' ' * MEGABYTE}x\n",
        "---\n" + "".join(f"a{n}: {'9' * 990}\n" for n in range(990)),
        "---\n" + "".join(f"a{n}: {'9' * 990}.5\n" for n in range(990)),
        f"---\na: !ruby/object:BigDecimal 18:{'1' * MEGABYTE}\n",
        f"---\na: !binary {'A' * MEGABYTE}\n",
        f"---\na: 'x{chr(10) * MEGABYTE}'\n",
        "---\n" + "".join(f"a{n}: &a{n} x\n" for n in range(9_900)),
        f"---\na: {'{' * 60}{'x: ' * 9_000}\n",
        f"---\n{'#' * MEGABYTE}\na: 1\n",
        '---\na: "' + "\\x41" * (MEGABYTE // 4) + '"\n',
        "---\n" + '"' * MEGABYTE,
        '{"a": "' + '\\",' * (MEGABYTE // 3),
        '{"a": [' + '"\\' * (MEGABYTE // 2),
        '"' * MEGABYTE,
    ],
    ids=range(18),
)
def test_a_megabyte_of_anything_is_read_or_refused_in_time(text: str) -> None:
    assert cpu_ms(text) < 100


def test_json_nodes_and_nesting_are_limited() -> None:
    numbers = ",".join(["1"] * (NODES_MAX - 1))
    assert f"more than {NODES_MAX} nodes" in why_not(f'{{"a": [{numbers},1,1]}}', is_json=True)
    assert len(values(f'{{"a": "{"," * 50_000}"}}', is_json=True)["a"]) == 50_000
    for levels, readable in ((DEPTH_MAX - 1, True), (DEPTH_MAX, False)):
        assert isinstance(read(f'{{"a": {"[" * levels}{"]" * levels}}}', True), Columns) == readable


def test_a_text_longer_than_any_document_is_not_looked_at() -> None:
    for text in ("---\na: " + "x" * LENGTH_MAX, '{"a": "' + "x" * LENGTH_MAX + '"}'):
        result = read(text)
        assert isinstance(result, Unreadable)
        assert result.too_large
    assert len(values('{"a": "' + "x" * 2_000_000 + '"}')["a"]) == 2_000_000
