"""A page of rows, as PostgreSQL sends them, to keyed records of the replay topic.

Pure, and compiled if a C compiler is available. The fast path of common rows; unusual rows are left to the caller. Keys
equal those of `schemas.source.person.record_key`, records those of fastavro.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from mypy_extensions import i64

from schemas.records import AuditEvent
from schemas.source.mapping import PersonRule
from schemas.source.person import record_key

Row = tuple[Any, ...]  # in the order of row.sql
# Returns an unusual row as a common one; None if the page has to end before it.
Unusual = Callable[[Row, int], Row | None]

# PostgreSQL counts microseconds from 2000-01-01, and sends infinity as the largest 64-bit number.
EPOCH_2000_US: Final = 946_684_800_000_000
YEAR_1_US: Final = -62_135_596_800_000_000
YEAR_10000_US: Final = 253_402_300_800_000_000
DIGITS_MAX: Final = 18  # any number of so many digits fits a bigint
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EventMaker:
    """Makes audit events of an account's rows."""

    def __init__(self, company_sso_id: str, tag: int, changes_are_json: bool, unusual: Unusual) -> None:
        """`tag` marks the account's rows. `unusual` is called with each other row, and the characters so far."""
        self._company_sso_id = company_sso_id
        self._tag = tag
        self._changes_are_json = changes_are_json
        self._unusual = unusual

    def events(self, rows: Iterable[Row], id_range: int) -> tuple[list[AuditEvent], int, bool]:
        """Return the events of a page, the characters of their changes and comments, and whether no row is left."""
        company_sso_id, tag, changes_are_json = self._company_sso_id, self._tag, self._changes_are_json
        events: list[AuditEvent] = []
        new = tuple.__new__
        size: i64 = 0
        begin: i64 = YEAR_1_US - EPOCH_2000_US
        end: i64 = YEAR_10000_US - EPOCH_2000_US
        for read in rows:
            row: Row = read
            at: i64 = row[1]
            if row[14] != tag or row[10] is None or at < begin or at >= end:
                replaced = self._unusual(row, size)
                if replaced is None:
                    return events, size, False
                row = replaced
                at = row[1]
            changes: str = row[10]
            comment: str = row[12]
            size += len(changes) + len(comment)
            fields = (
                row[0], id_range, at + EPOCH_2000_US, row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
                changes, changes_are_json, row[11], comment, row[13], company_sso_id,
            )  # fmt: skip
            events.append(new(AuditEvent, fields))
        return events, size, True


class RecordKeys:
    """Record keys by a rule: `record_key`, without a call for most rows."""

    def __init__(self, rule: PersonRule) -> None:
        """`rule` defines where a row names its person."""
        self._rule = rule
        # What precedes the id in most comments. A name that JSON may escape is left to `record_key`.
        self._begin = f'{{"{rule.comment_key}":' if _NAME.fullmatch(rule.comment_key) else ""

    def key(self, event: AuditEvent) -> str:
        """Return the row's key."""
        return self._plain(event[14]) or record_key(event, self._rule)

    def _plain(self, comment: str) -> str:
        """Return the person's id in a comment that contains nothing else; "" for any other comment."""
        begin = self._begin
        size: i64 = len(comment) - len(begin) - 1
        if begin == "" or size < 1 or size > DIGITS_MAX or not comment.startswith(begin) or not comment.endswith("}"):
            return ""
        digits = comment[len(begin) : len(comment) - 1]
        return digits if digits.isascii() and digits.isdigit() and digits[0] != "0" else ""


def records_of(
    events: Sequence[AuditEvent],
    key_of: Callable[[Any], str],
    encode: Callable[[Any], bytes],
    record_bytes_max: int,
) -> tuple[list[tuple[bytes, bytes]], list[int], int]:
    """Return key and value of each event, the positions of those over `record_bytes_max`, and the bytes of all."""
    records: list[tuple[bytes, bytes]] = []
    too_large: list[int] = []
    size_max: i64 = record_bytes_max
    total: i64 = 0
    for event in events:
        key = key_of(event).encode()
        value = encode(event)
        size: i64 = len(key) + len(value)
        if size > size_max:
            too_large.append(len(records))
        total += size
        records.append((key, value))
    return records, too_large, total
