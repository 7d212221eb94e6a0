"""Plain scalars, value by value, as Psych's ScalarScanner reads them."""
# ruff: noqa: E501, RUF001 - tables of values, several a line

import base64
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.source.audited_changes import scalars

NAN = {"$float": "NaN"}
INFINITY = {"$float": "Infinity"}
MINUS_INFINITY = {"$float": "-Infinity"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # null and booleans: Psych's words, in any case, and no others
        ("", None), ("~", None), ("null", None), ("NULL", None), ("Null", None), ("nil", "nil"), ("nulls", "nulls"),
        ("true", True), ("TRUE", True), ("yes", True), ("Yes", True), ("on", True), ("y", "y"), ("t", "t"),
        ("false", False), ("no", False), ("Off", False), ("n", "n"), ("f", "f"), ("on\n", True), ("offer", "offer"),
        # a break in the text: Psych's patterns look at each line
        ("n\nno", False), ("a\nno", "a\nno"), ("~\n", "~\n"),
        # integers
        ("0", 0), ("-0", 0), ("+5", 5), ("123", 123), ("-17", -17), ("1_000", 1000), ("1,000", 1000), ("1,0,0", 100),
        ("1__0", "1__0"), ("1_", "1_"), ("017", 15), ("0_17", 15), ("-017", -15), ("00", 0), ("0_", 0), ("018", "018"),
        ("08123456789", "08123456789"), ("0o17", "0o17"), ("0x1F", 31), ("-0x1f", -31), ("0x1_F", 31), ("0x_", "0x_"),
        ("0b101", 5), ("+0b1_1", 3), ("0b2", "0b2"), ("0b_", "0b_"), ("1a", "1a"), ("+", "+"), ("-", "-"), ("--1", "--1"),
        ("9223372036854775807", 2**63 - 1), ("9223372036854775808", "9223372036854775808"),
        ("-9223372036854775808", -(2**63)), ("-9223372036854775809", "-9223372036854775809"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("٣", "٣"), ("１２", "１２"), ("²", "²"),
        # floats need a point, and a signed exponent
        ("1.5", 1.5), ("-1.5", -1.5), ("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("1_0.5", 10.5), ("1,000.5", 1000.5),
        ("2.5e-07", 2.5e-07), ("1.0e+20", 1e20), ("1.5e3", "1.5e3"), ("1e3", "1e3"), ("1.e+2", 100.0), (".", "."), ("+.", "+."),
        (".e+1", ".e+1"), ("1.2.3", "1.2.3"), ("1.5e+400", INFINITY), ("-1.5e+400", MINUS_INFINITY),
        (".inf", INFINITY), ("+.INF", INFINITY), ("-.inf", MINUS_INFINITY), (".NaN", NAN), ("-.nan", "-.nan"), ("inf", "inf"),
        # base 60, with one or two colons only
        ("12:30", 45000), ("1:30:15", 5415), ("-1:30", -1800), ("10:20:30:40", "10:20:30:40"), ("1:60", "1:60"), ("1_0:5", 36300),
        ("1:30.5", 5430.0), ("1:2:3.25", 3723.25), ("1:", "1:"), ("12:30 delivery", "12:30 delivery"),
        # symbols
        (":web", "web"), (":two words", "two words"), (':"quoted one"', "quoted one"), (":'a'b", "a"), (":", ":"), ("::a", ":a"),
        # dates
        ("2024-02-29", "2024-02-29"), ("2024-2-9", "2024-02-09"), ("2023-02-30", "2023-02-30"), ("2023-2-30", "2023-2-30"),
        ("2024-13-01", "2024-13-01"), ("2024-00-10", "2024-00-10"), ("0000-01-01", "0000-01-01"), ("2024-02", "2024-02"),
        # times
        ("2024-01-31 17:30:00.123456000 Z", "2024-01-31T17:30:00.123456Z"),
        ("2024-01-31 17:30:00.123456999 Z", "2024-01-31T17:30:00.123456Z"),  # cut, not rounded
        ("2024-01-31T17:30:00Z", "2024-01-31T17:30:00.000000Z"),
        ("2024-01-31t7:30:00.5", "2024-01-31T07:30:00.500000Z"),
        ("2024-01-31 17:30:00 +07:00", "2024-01-31T10:30:00.000000Z"),
        ("2024-01-31 17:30:00 -0330", "2024-01-31T21:00:00.000000Z"),
        ("2024-01-31 17:30:00 +7", "2024-01-31T10:30:00.000000Z"),
        ("2024-03-01 00:30:00 -00:30", "2024-03-01T00:00:00.000000Z"),  # Psych loses that sign
        ("2024-03-01 00:30:00 +01:00", "2024-02-29T23:30:00.000000Z"),
        ("0001-01-01 00:30:00 +01:00", "0000-12-31T23:30:00.000000Z"),
        ("-0001-03-01 00:00:00 Z", "-0001-03-01T00:00:00.000000Z"),
        ("2023-02-30 10:00:00 Z", "2023-02-30 10:00:00 Z"), ("2024-01-31 25:00:00 Z", "2024-01-31 25:00:00 Z"),
        ("2024-01-31 17:60:00 Z", "2024-01-31 17:60:00 Z"), ("2024-01-31 17:30", "2024-01-31 17:30"),
        ("2024-01-31 17:30:00 +99:00", "2024-01-31 17:30:00 +99:00"), ("2024-01-31 17:30:00.", "2024-01-31 17:30:00."),
        # everything else is text
        ("web", "web"), ("=", "="), ("<<", "<<"), ("C:\\new", "C:\\new"), ("01.234.567.8-901.000", "01.234.567.8-901.000"),
        ("0812-3456-7890", "0812-3456-7890"), ("192.168.0.1", "192.168.0.1"), ("1 000", "1 000"), ("-abc", "-abc"), ("é", "é"),
        ("日本", "日本"), ("8d8ac610-566d-4ef0", "8d8ac610-566d-4ef0"), ("1-2-3", "1-2-3"), ("+62 812", "+62 812"),
    ],
)  # fmt: skip
def test_a_plain_scalar(text: str, value: Any) -> None:
    result = scalars.plain(text)
    assert (type(result), result) == (type(value), value)


def test_minus_zero_stays() -> None:
    assert str(scalars.plain("-0.0")) == "-0.0"


@given(st.text(max_size=40) | st.from_regex(r"[-+0-9:._,eExbTZ ]{1,30}", fullmatch=True))
def test_every_text_is_some_value(text: str) -> None:
    value = scalars.plain(text)
    assert value is None or isinstance(value, bool | int | float | str | dict)
    assert not isinstance(value, int) or scalars.INT_MIN <= value <= scalars.INT_MAX


@given(st.integers(min_value=-(10**40), max_value=10**40))
def test_an_integer_is_exact(number: int) -> None:
    assert scalars.plain(str(number)) == (number if -(2**63) <= number < 2**63 else str(number))


@given(st.dates())
def test_a_date_reads_as_itself(day: date) -> None:
    assert scalars.plain(day.isoformat()) == day.isoformat()
    assert scalars.plain(f"{day.year:04d}-{day.month}-{day.day}") == day.isoformat()


@given(
    st.datetimes().filter(lambda local: date(1, 1, 2) <= local.date() <= date(9999, 12, 30)),
    st.integers(min_value=-23, max_value=23),
    st.sampled_from((0, 15, 30, 45)),
)
def test_a_time_with_an_offset_is_its_instant(local: datetime, hours: int, minutes: int) -> None:
    offset = timedelta(hours=hours, minutes=minutes if hours >= 0 else -minutes)
    sign = "+" if hours >= 0 else "-"
    text = f"{local:%H:%M:%S}.{local.microsecond:06d}999 {sign}{abs(hours):02d}:{minutes:02d}"
    expected = local.replace(tzinfo=timezone(offset)).astimezone(UTC).isoformat(timespec="microseconds")
    assert scalars.plain(f"{local.date().isoformat()} {text}") == expected.replace("+00:00", "Z")


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**20), max_value=10**20))
def test_a_decimal_is_exact_in_plain_notation(number: Decimal) -> None:
    written = scalars.decimal(f"27:{number:E}")
    assert written is not None
    assert Decimal(written) == number
    assert "E" not in written
    assert "." in written


@pytest.mark.parametrize("text", ["18:", "18:abc", "", "18:1.2.3", "18:0x1", "18:--1", "18:1e", "18:1_0"])
def test_what_is_no_decimal(text: str) -> None:
    assert scalars.decimal(text) is None


@given(st.binary(max_size=60))
def test_binary_is_text_if_it_is_ascii(data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    folded = "\n".join(encoded[at : at + 7] for at in range(0, len(encoded), 7))
    expected: Any = data.decode() if data.isascii() else {"$binary": encoded}
    assert scalars.binary(folded) == expected


def test_broken_base64_gives_what_there_is() -> None:
    assert scalars.binary("cGxh!aW4") == "plain"
    assert scalars.binary("cGxhaW5") == "plain"[:5]
    assert scalars.binary("A") == ""
