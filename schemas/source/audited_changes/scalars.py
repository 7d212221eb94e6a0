"""Plain YAML scalars as Psych reads them (Ruby's YAML), not as YAML 1.1 or PyYAML do, and how values are written.

Values come out as the activity log holds them: None, bool, int (64 bits), float and str; values without a JSON type are
text or a small object, exactly as `ops/local/sample/README.md` lists it:

| Ruby | here |
| --- | --- |
| Integer beyond 64 bits | its decimal digits as a str (MongoDB has no such integer) |
| Float NaN, Infinity | `{"$float": "NaN"}`, `{"$float": "Infinity"}`, `{"$float": "-Infinity"}` |
| BigDecimal | plain decimal notation as a str |
| Date | `2024-02-29` |
| Time, DateTime, TimeWithZone | `2024-01-31T17:30:00.123456Z`: UTC, cut to six digits |
| Symbol | str without the colon |
| binary String | `{"$binary": "<base64>"}` if it has a byte above 127, else str |
"""

import binascii
import re
from decimal import Decimal, InvalidOperation
from typing import Any

INT_MIN = -(2**63)
INT_MAX = 2**63 - 1
NUMBER_LENGTH_MAX = 1_000  # longer ones stay text: to convert a million digits takes long, and Python refuses integers
EXPONENT_MAX = 400  # of a decimal written out in full; beyond, it keeps its exponent

NAN = "NaN"
INFINITY = "Infinity"
MINUS_INFINITY = "-Infinity"

_WORDS: dict[str, bool | None] = {
    "~": None,
    "null": None,
    "yes": True,
    "true": True,
    "on": True,
    "no": False,
    "false": False,
    "off": False,
}
_TEXT = re.compile(r"[^0-9.:\-]?(?:[^\W\d_]|[_ \t\n\v\f\r!@#$%^&*(){}<>|/\\~;=])")
_TIME = re.compile(
    r"(-?[0-9]{4})-([0-9]{1,2})-([0-9]{1,2})(?:[Tt]|\s+)([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]*))?"
    r"(?:\s*(?:(Z)|([-+][0-9]{1,2}):?([0-9]{2})?))?",
    re.ASCII,  # Ruby's \s knows no other spaces
)
_DATE = re.compile(r"([0-9]{4})-(1[012]|0[0-9]|[0-9])-([12][0-9]|3[01]|0[0-9]|[0-9])")
_SYMBOL = re.compile(r":([\"'])(.*)\1")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9]){1,2}")
_SEXAGESIMAL_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9]){1,2}\.[0-9_]*")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_,]*)?\.[0-9]*(?:[eE][+-][0-9]+)?")
_INTEGER = re.compile(
    r"(?P<b2>[-+]?0b[01_,]+)|(?P<b8>[-+]?0[0-7_,]+)|(?P<b10>[-+]?(?:0|[1-9][0-9]*+(?:[,_][0-9]++)*+))"
    r"|(?P<b16>[-+]?0x[0-9a-fA-F_,]+)"
)
_RUBY_TO_I = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_RUBY_TO_F = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+(?:_[0-9]+)*)?")
_BASE = {"b2": 2, "b8": 8, "b10": 10, "b16": 16}
_INSTANT = re.compile(r"-?[0-9]{4,5}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,18})?")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")


def plain(text: str) -> Any:
    """Return the value of a plain scalar without a tag, by the rules of Psych's ScalarScanner in its order.

    Every date, time or number that does not exist is the text itself. Where Psych would raise (`0x_`), so is it.
    """
    if not text:
        return None
    first = text[0]
    if first.isalpha() or "\n" in text or _TEXT.match(text):
        return _word(text) if len(text) <= 5 else text
    if first == ":":
        return _symbol(text)
    if first not in "0123456789+-." or len(text) > NUMBER_LENGTH_MAX:
        return text
    if "-" in text:
        if (found := _DATE.fullmatch(text)) is not None:
            return _date(text, found)
        if (found := _TIME.fullmatch(text)) is not None:
            return instant(found) or text
    if (found := _INTEGER.fullmatch(text)) is not None:
        return _integer(text, found)
    if ":" in text:
        return _sexagesimal(text)
    return _float(text)


def parse_instant(text: str) -> str | None:
    """Return the instant that Psych's `parse_time` finds in a timestamp, as `…T….ffffffZ`; None if it is none."""
    found = _TIME.fullmatch(text)
    return instant(found) if found is not None else None


def is_instant(value: Any) -> bool:
    """Return whether a value is an instant as this module writes them."""
    return isinstance(value, str) and _INSTANT.fullmatch(value) is not None


def clock_of(instant_text: str) -> str:
    """Return the clock time in an instant: `09:30:00`, or with six digits if it has a fraction of a second."""
    clock = instant_text.partition("T")[2].removesuffix("Z")
    return clock.removesuffix(".000000")


def instant(found: re.Match[str]) -> str | None:
    """Return the instant of a matched timestamp in UTC, cut to microseconds; None if that time does not exist."""
    year, month, day, hour, minute, second, fraction, _zulu, offset_hours, offset_minutes = found.groups()
    y, mo, d, h, mi, s = int(year), int(month), int(day), int(hour), int(minute), int(second)
    if not (1 <= mo <= 12 and 1 <= d <= _days_in_month(y, mo) and h <= 23 and mi <= 59 and s <= 59):
        return None
    if fraction == "":  # `12:00:00.`: Ruby's Rational refuses it
        return None
    micros = (fraction or "")[:6].ljust(6, "0")
    if offset_hours is not None:
        hours, minutes = int(offset_hours), int(offset_minutes or 0)
        if abs(hours) > 23 or minutes > 59:  # Ruby: utc_offset out of range
            return None
        # Psych takes the sign from the number of hours, so `-00:30` lies half an hour to the east.
        total = (_days(y, mo, d) * 24 + h - hours) * 60 + mi - (minutes if hours >= 0 else -minutes)
        days, minute_of_day = divmod(total, 24 * 60)
        y, mo, d = _civil(days)
        h, mi = divmod(minute_of_day, 60)
    sign, y = ("-", -y) if y < 0 else ("", y)
    return f"{sign}{y:04d}-{mo:02d}-{d:02d}T{h:02d}:{mi:02d}:{s:02d}.{micros}Z"


def decimal(text: str) -> str | None:
    """Return what `BigDecimal._load` reads (`27:0.125e9`), in plain notation (`125000000.0`); None if it is no number.

    An exponent beyond 400 is kept: written out, a few characters of source could take a gigabyte.
    """
    digits = text.partition(":")[2] if ":" in text else text
    digits = digits.strip()
    if digits in (NAN, INFINITY, MINUS_INFINITY):
        return digits
    if digits == "+Infinity":
        return INFINITY
    if _DECIMAL.fullmatch(digits) is None:
        return None
    try:
        number = Decimal(digits)
    except InvalidOperation:
        return None
    if not number:
        return "-0.0" if number.is_signed() else "0.0"
    if abs(number.adjusted()) > EXPONENT_MAX:
        return str(number)
    written = f"{number:f}"
    if "." in written:
        written = written.rstrip("0")
        return f"{written}0" if written.endswith(".") else written
    return f"{written}.0"


def binary(text: str) -> Any:
    """Return the bytes of base64 text (anything that is not base64 is passed over, as Ruby's unpack does).

    ASCII bytes are a str, as Psych itself decides; others `{"$binary": "<base64>"}`.
    """
    digits = _NOT_BASE64.sub("", text.partition("=")[0])
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    data = binascii.a2b_base64(digits + "=" * (-len(digits) % 4))
    if data.isascii():
        return data.decode("ascii")
    return {"$binary": binascii.b2a_base64(data, newline=False).decode("ascii")}


def floating(value: float) -> Any:
    """Return a float, or the mark of one that JSON has no number for."""
    if value - value == 0.0:
        return value
    return {"$float": NAN if value != value else INFINITY if value > 0 else MINUS_INFINITY}


def integer(value: int) -> int | str:
    """Return an integer of 64 bits, or the digits of a longer one."""
    return value if INT_MIN <= value <= INT_MAX else str(value)


def _word(text: str) -> Any:
    if "\n" not in text:
        return _WORDS.get(text.lower(), text) if text.isascii() else text
    # Psych's patterns are anchored to lines, not to the text: `n` and `no` on two lines are false.
    if re.search(r"^[^ytonf~]", text, re.IGNORECASE | re.MULTILINE):
        return text
    for pattern, value in ((r"^null$", None), (r"^(yes|true|on)$", True), (r"^(no|false|off)$", False)):
        if re.search(pattern, text, re.IGNORECASE | re.MULTILINE):
            return value
    return text


def _symbol(text: str) -> str:
    if len(text) == 1:
        return text
    if (found := _SYMBOL.match(text)) is not None:
        return found[2].removeprefix(":")
    return text[1:]


def _date(text: str, found: re.Match[str]) -> str:
    year, month, day = int(found[1]), int(found[2]), int(found[3])
    if 1 <= month <= 12 and 1 <= day <= _days_in_month(year, month):
        return f"{found[1]}-{month:02d}-{day:02d}"
    return text


def _integer(text: str, found: re.Match[str]) -> Any:
    digits = text.replace(",", "").replace("_", "")
    base = _BASE[str(found.lastgroup)]
    if base == 8 and digits.lstrip("+-") == "0":
        return 0
    try:
        return integer(int(digits, base))
    except ValueError:  # `0x_` and the like: a prefix without a digit
        return text


def _sexagesimal(text: str) -> Any:
    parts = text.split(":")
    if _SEXAGESIMAL.fullmatch(text) is not None:
        return integer(sum(_to_i(part) * 60 ** abs(place - 2) for place, part in enumerate(parts)))
    if _SEXAGESIMAL_FLOAT.fullmatch(text) is not None:
        return floating(sum((_to_f(part) * 60 ** abs(place - 2) for place, part in enumerate(parts)), start=0.0))
    return text


def _float(text: str) -> Any:
    lowered = text.lower()
    if lowered in (".inf", "+.inf"):
        return {"$float": INFINITY}
    if lowered == "-.inf":
        return {"$float": MINUS_INFINITY}
    if lowered == ".nan":
        return {"$float": NAN}
    if _FLOAT.fullmatch(text) is None:
        return text
    try:
        return floating(float(text.replace(",", "").replace("_", "")))
    except ValueError:  # `.` and `.e+1`
        return text


def _to_i(text: str) -> int:
    found = _RUBY_TO_I.match(text)
    return int(found[0].replace("_", "")) if found is not None else 0


def _to_f(text: str) -> float:
    found = _RUBY_TO_F.match(text)
    return float(found[0].replace("_", "")) if found is not None else 0.0


def _days_in_month(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _days(year: int, month: int, day: int) -> int:
    """Return the day's number in the proleptic Gregorian calendar; `datetime` begins only at year 1."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year


def _civil(days: int) -> tuple[int, int, int]:
    """Return year, month and day of a day's number: the inverse of `_days`."""
    era, day_of_era = divmod(days, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return era * 400 + year_of_era + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1
