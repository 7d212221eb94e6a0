"""What the generator writes is what Psych writes: the real gem's rows, read and written again, stay the same bytes."""

import json
from collections.abc import Iterator
from decimal import Decimal
from importlib.resources import files

import pytest

from ops.local.generator import psych
from tests.support.psych import NotOursError, read_back

# Sample rows whose values the generator has no form for, and so never writes.
UNWRITTEN = {
    1200058: "y unquoted: psych 3.1",
    1200059: "n unquoted: psych 3.1",
    1200060: "y unquoted: psych 3.1",
    1200151: "!!str '<<'",
    1200153: "!!str '<<'",
    1200186: "one Time object twice, so an anchor on a timestamp",
}


def sample_documents() -> Iterator[tuple[int, str, str]]:
    """Yield (id, text, writer) of the sample's YAML rows."""
    sample = files("ops.local.sample")
    expected = sample.joinpath("expected_changes.jsonl").read_text("utf-8").split("\n")
    writers = {e["id"]: e["written_by"] for e in map(json.loads, filter(None, expected)) if e["table"] == "audits_yaml"}
    for line in sample.joinpath("audits_yaml.jsonl").read_text("utf-8").split("\n"):
        if line and (row := json.loads(line))["audited_changes"] is not None:
            yield row["id"], row["audited_changes"], writers[row["id"]]


def test_the_sample_rows_written_again_are_the_same_bytes() -> None:
    same, refused, different = 0, 0, set()
    for audit_id, text, writer in sample_documents():
        try:
            value = read_back(text)
        except NotOursError:
            refused += 1
            continue
        nil = psych.NIL_022 if "psych 3.1" in writer else psych.NIL_025
        if psych.document(value, nil) == text:
            same += 1
        else:
            different.add(audit_id)
    assert different == UNWRITTEN.keys()
    assert (same, refused) == (296, 23)  # refused: tags of other Ruby classes


def test_the_strings_that_need_quotes_get_psychs() -> None:
    written = {
        text: psych.document([text]).removeprefix("---\n- ").removesuffix("\n")
        for text in (
            "yes",
            "1.5",
            "+62811",
            "0812",
            "~",
            "",
            "#1",
            "a: b",
            "12:30",
            "2021-03-04",
            "y",
            "O'Neill",
            "日本",
        )
    }
    assert written == {
        "yes": "'yes'",
        "1.5": "'1.5'",
        "+62811": '"+62811"',
        "0812": "'0812'",
        "~": '"~"',
        "": "''",
        "#1": '"#1"',
        "a: b": "'a: b'",
        "12:30": "'12:30'",
        "2021-03-04": "'2021-03-04'",
        "y": '"y"',
        "O'Neill": "O'Neill",
        "日本": "日本",
    }


def test_a_zone_is_written_once_and_then_aliased() -> None:
    at = psych.Instant("2024-01-01 00:00:00.000000000", "2024-01-01 07:00:00.000000000")
    text = psych.document({"due_at": [at, at], "other_at": [None, at]})
    assert text.count("&1") == 1
    assert text.count("zone: *1\n") == 2
    assert "&" not in psych.document({"due_at": [None, at]})


@pytest.mark.parametrize(
    ("number", "dumped"),
    [
        ("12.5", "18:0.125e2"),
        ("-12.5", "18:-0.125e2"),
        ("0", "18:0.0"),
        ("0.0001", "18:0.1e-3"),
        ("125000000.5", "27:0.1250000005e9"),
        ("1250000.75", "18:0.125000075e7"),
        ("9999999999999.99", "27:0.999999999999999e13"),
        ("250000000", "18:0.25e9"),
    ],
)
def test_a_decimal_is_dumped_as_ruby_does(number: str, dumped: str) -> None:
    assert psych.big_decimal(Decimal(number)) == dumped


def test_a_value_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError, match="no form is known for a set"):
        psych.document({"x": {1}})
