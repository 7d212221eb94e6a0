"""Pure: dead letters for display, the state of their rows, and which of those a retry replays."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import bson
from bson import json_util

from schemas.codec import Codec
from schemas.errors import UndecodableRecordError, UnknownSchemaError
from schemas.records import ActivityLog, AuditEvent, DeadLetter
from schemas.vocabulary import DeadLetterCause

RETRIES_MAX = 3  # of a row that has failed each time; more only with --force
HEX_BYTES_MAX = 256
UNREADABLE = "unreadable"  # the record on the topic is no dead letter
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Outcome = tuple[str, str]  # migrated, skipped, failed or gone; reason or cause
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class State(StrEnum):
    """What can be proven about the row of a dead letter."""

    WAITING = "waiting"  # no document, and no later run has skipped it
    RESOLVED = "resolved"  # it has a document, or a later run has left it out on purpose
    NO_ROW = "no_row"  # the letter names no row of this account, so nothing can be looked up or retried


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its payload, which can have megabytes."""

    offset: int  # on the dead-letter topic
    audit_id: int  # 0: unknown
    cause: str
    detail: str
    failed_at_us: int
    run: int
    source_topic: str
    source_partition: int
    source_offset: int
    payload_bytes: int
    repeats: int = 0  # the same failure written again, by a sink that died before it had noted it

    @property
    def row(self) -> int | None:
        """The row of this account it is about; None if it carries no audit id, or another account's."""
        return self.audit_id if self.audit_id > 0 and self.cause != DeadLetterCause.WRONG_ACCOUNT else None

    @property
    def position(self) -> str:
        """The source position as people write it."""
        return f"{self.source_topic}/{self.source_partition}@{self.source_offset}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A dead letter and its state."""

    letter: Letter
    state: State
    why: str  # of the state, where it is resolved
    failures: int  # how often the row has failed, this time included; 1 where there is no row

    def as_dict(self) -> dict[str, Any]:
        """Return what is shown of it, as JSON takes it; holds no personal data."""
        letter = self.letter
        return {
            "offset": letter.offset,
            "audit_id": letter.audit_id or None,
            "cause": letter.cause,
            "detail": letter.detail,
            "failed_at": moment(letter.failed_at_us).isoformat(),
            "run": letter.run,
            "source": {
                "topic": letter.source_topic,
                "partition": letter.source_partition,
                "offset": letter.source_offset,
            },
            "payload_bytes": letter.payload_bytes,
            "failures": self.failures,
            "repeats": letter.repeats,
            "state": self.state.value,
            "why": self.why,
        }


@dataclass(slots=True)
class Plan:
    """What a retry does and what it leaves out."""

    audit_ids: list[int] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)  # audit id, why
    no_audit_id: list[int] = field(default_factory=list)  # offsets of letters that name no row
    other_accounts: list[int] = field(default_factory=list)  # offsets of letters about rows of other accounts
    unknown: int = 0  # requested ids that have no dead letter


def moment(at_us: int) -> datetime:
    """Return microseconds since 1970 as a time in UTC; the nearest one that Python can hold."""
    try:
        return EPOCH + timedelta(microseconds=at_us)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if at_us > 0 else datetime.min.replace(tzinfo=UTC)


def letter_of(offset: int, value: bytes, codec: Codec, *, unknown_schema_raises: bool = False) -> Letter:
    """Return the dead letter in a record of the topic; what is none is one of cause `unreadable`."""
    try:
        found = codec.decode_as(DeadLetter, value)
    except UndecodableRecordError as error:
        if unknown_schema_raises and isinstance(error, UnknownSchemaError):
            raise
        return Letter(offset, 0, UNREADABLE, error.what, 0, 0, "", -1, -1, len(value))
    return Letter(
        offset,
        found.audit_id,
        found.cause,
        found.detail,
        found.failed_at,
        found.run,
        found.source_topic,
        found.source_partition,
        found.source_offset,
        len(found.payload),
    )


def once(letters: Iterable[Letter]) -> list[Letter]:
    """Return the letters in their order, each failure once: the first of those with the same run and source position.

    A sink that dies between the delivery of a letter and its own progress writes the letter again.
    """
    first: dict[tuple[int, str, int, int, int], Letter] = {}
    repeats: Counter[tuple[int, str, int, int, int]] = Counter()
    for letter in letters:
        key = (letter.run, letter.source_topic, letter.source_partition, letter.source_offset, letter.audit_id)
        if letter.cause == UNREADABLE:
            key = (0, "", -1, letter.offset, 0)
        if first.setdefault(key, letter) is not letter:
            repeats[key] += 1
    return [replace(letter, repeats=repeats[key]) if repeats[key] else letter for key, letter in first.items()]


def last_runs(letters: Iterable[Letter]) -> dict[int, int]:
    """Return the last run in which each row has failed."""
    runs: dict[int, int] = {}
    for letter in letters:
        if letter.row is not None:
            runs[letter.row] = max(letter.run, runs.get(letter.row, 0))
    return runs


def judge(letters: Sequence[Letter], resolved: Mapping[int, str]) -> list[Listed]:
    """Return the letters with their states; `resolved` has, by row, why it needs no retry any more."""
    failures = Counter(letter.row for letter in letters if letter.row is not None)
    listed = []
    for letter in letters:
        row = letter.row
        if row is None:
            listed.append(Listed(letter, State.NO_ROW, "", 1))
        elif row in resolved:
            listed.append(Listed(letter, State.RESOLVED, resolved[row], failures[row]))
        else:
            listed.append(Listed(letter, State.WAITING, "", failures[row]))
    return listed


def failed_retries(attempts: Iterable[Mapping[str, Any]]) -> Counter[int]:
    """Return how often in a row each audit id was retried in vain; `attempts` in the order in which they began.

    An attempt without an outcome counts as failed.
    """
    counted: Counter[int] = Counter()
    for attempt in attempts:
        if attempt.get("outcome") == "started":
            counted.update(attempt["audit_ids"])
        for group in attempt.get("outcomes", ()):
            if group["outcome"] == "failed":
                counted.update(group["audit_ids"])
            else:
                for audit_id in group["audit_ids"]:
                    counted.pop(audit_id, None)
    return counted


def plan(
    listed: Sequence[Listed], retried: Mapping[int, int], *, cause: str, audit_ids: Collection[int] | None, force: bool
) -> Plan:
    """Return which rows a retry replays: those that wait, by the cause of their last letter, each once.

    `audit_ids` None: all of them. A row retried in vain `RETRIES_MAX` times is left out unless forced.
    """
    planned = Plan()
    last: dict[int, Listed] = {}
    for each in listed:
        row = each.letter.row
        if row is not None:
            last[row] = each
        elif audit_ids is None and (not cause or each.letter.cause == cause):
            places = planned.other_accounts if each.letter.audit_id > 0 else planned.no_audit_id
            places.append(each.letter.offset)
    requested = None if audit_ids is None else set(audit_ids)
    if requested is not None:
        planned.unknown = len(requested - last.keys())
    for row in sorted(last):
        each = last[row]
        if (requested is not None and row not in requested) or (cause and each.letter.cause != cause):
            continue
        if each.state is State.RESOLVED:
            if requested is not None:
                planned.left_out.append((row, f"it is resolved: {each.why}"))
        elif retried.get(row, 0) >= RETRIES_MAX and not force:
            planned.left_out.append(
                (row, f"it has been retried {retried[row]} times and has failed each time; --force retries it")
            )
        else:
            planned.audit_ids.append(row)
    return planned


def grouped(outcomes: Mapping[int, Outcome]) -> list[dict[str, Any]]:
    """Return outcomes as they are stored: one entry for each outcome and reason, with its audit ids."""
    groups: dict[Outcome, list[int]] = {}
    for audit_id, outcome in sorted(outcomes.items()):
        groups.setdefault(outcome, []).append(audit_id)
    return [
        {"outcome": outcome, "why": why, "audit_ids": audit_ids} for (outcome, why), audit_ids in sorted(groups.items())
    ]


def printable(text: str) -> str:
    """Return a text without the characters that a terminal would obey; line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def hex_dump(data: bytes, bytes_max: int = HEX_BYTES_MAX) -> str:
    """Return the first bytes, sixteen a line: place, hex, and the ASCII among them."""
    lines = []
    for at in range(0, min(len(data), bytes_max), 16):
        part = data[at : min(at + 16, bytes_max)]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:04x}  {part.hex(' '):<47}  {text}")
    if len(data) > bytes_max:
        lines.append(f"{len(data) - bytes_max:,} more bytes")
    return "\n".join(lines)


def payload_of(payload: bytes, codec: Codec) -> dict[str, Any]:
    """Return a dead letter's payload as far as it can be read: `kind`, `bytes`, and `fields` or `hex`."""
    try:
        record = codec.decode(payload)
    except UndecodableRecordError as error:
        if not payload:
            return {"kind": "empty", "bytes": 0, "hex": "", "why": "the record had no value, or it was left out"}
        return {"kind": "undecodable", "bytes": len(payload), "hex": payload.hex(), "why": error.what}
    fields: dict[str, Any] = record._asdict()
    if isinstance(record, AuditEvent):
        fields["created_at"] = moment(record.created_at).isoformat()
    elif isinstance(record, ActivityLog):
        fields["document"] = _document(record.document)
    fields = {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}
    return {"kind": type(record).__name__, "bytes": len(payload), "fields": fields}


def _document(document: bytes) -> Any:
    """Return a BSON document as JSON takes it, or its bytes if it is none."""
    try:
        return json.loads(json_util.dumps(bson.decode(document), json_options=json_util.RELAXED_JSON_OPTIONS))
    except (bson.errors.BSONError, ValueError, OverflowError):
        return document.hex()
