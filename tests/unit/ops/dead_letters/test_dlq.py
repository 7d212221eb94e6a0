"""Dead letters as a list: each failure once, what can be proven of its row, and which rows a retry takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.dead_letters.feed import chosen
from ops.jobs.audit_ids import AUDIT_IDS_MAX, parse_audit_ids
from ops.jobs.letters import (
    RETRIES_MAX,
    UNREADABLE,
    Letter,
    Listed,
    State,
    failed_retries,
    grouped,
    hex_dump,
    judge,
    last_runs,
    letter_of,
    moment,
    once,
    payload_of,
    plan,
    printable,
)
from schemas.codec import Codec
from schemas.errors import BadInputError
from schemas.records import ActivityLog, AuditEvent, DeadLetter
from schemas.vocabulary import DeadLetterCause

CODEC = Codec()
REFUSED, CHANGES, FOREIGN = (
    DeadLetterCause.WRITE_REFUSED.value,
    DeadLetterCause.UNDECODABLE_CHANGES.value,
    DeadLetterCause.WRONG_ACCOUNT.value,
)


def letter(offset: int, audit_id: int = 7, run: int = 1, at: int = 0, cause: str = CHANGES) -> Letter:
    return Letter(offset, audit_id, cause, "why", 0, run, "replay", 2, at, 10)


def event(audit_id: int = 7, changes: str = "---\nname: Budi\n") -> AuditEvent:
    return AuditEvent(
        audit_id, 0, 1_600_000_000_000_000, "Crm::Person", 9, "", 0, "User", 1, "", "create", changes, False, 1, "", ""
    )


def test_a_failure_that_was_written_twice_is_listed_once_with_the_first_offset() -> None:
    letters = [letter(0, at=5), letter(1, at=6), letter(2, at=5), letter(3, at=5, run=2)]
    assert [(each.offset, each.repeats) for each in once(letters)] == [(0, 1), (1, 0), (3, 0)]


def test_records_that_are_no_dead_letters_are_each_listed() -> None:
    letters = [letter_of(offset, b"garbage", CODEC) for offset in (0, 1)]
    assert [(each.offset, each.cause, each.row) for each in once(letters)] == [
        (0, UNREADABLE, None),
        (1, UNREADABLE, None),
    ]
    assert letter_of(0, CODEC.encode(event()), CODEC).cause == UNREADABLE


def test_a_dead_letter_is_read_without_its_payload() -> None:
    record = DeadLetter(7, 0, "replay", 2, 5, 1, CHANGES, "why", b"9", b"x" * 1000, 1_600_000_000_000_000)
    found = letter_of(3, CODEC.encode(record), CODEC)
    assert (found.offset, found.row, found.position, found.payload_bytes) == (3, 7, "replay/2@5", 1000)
    assert moment(found.failed_at_us).isoformat() == "2020-09-13T12:26:40+00:00"
    assert moment(2**62).year == 9999
    assert moment(-(2**62)).year == 1


def test_states_say_what_is_proven_and_how_often_a_row_has_failed() -> None:
    letters = [letter(0, 7), letter(1, 8), letter(2, 7, run=2), letter(3, 0), letter(4, 9, cause=FOREIGN)]
    found = judge(letters, {8: "it has a document"})
    assert [(each.letter.offset, each.state, each.failures) for each in found] == [
        (0, State.WAITING, 2),
        (1, State.RESOLVED, 1),
        (2, State.WAITING, 2),
        (3, State.NO_ROW, 1),
        (4, State.NO_ROW, 1),
    ]
    assert last_runs(letters) == {7: 2, 8: 1}


def listed(*letters: Letter, resolved: tuple[int, ...] = ()) -> list[Listed]:
    return judge(letters, dict.fromkeys(resolved, "it has a document"))


def test_a_retry_takes_every_waiting_row_once_and_says_what_it_leaves() -> None:
    found = listed(
        letter(0, 9),
        letter(1, 7),
        letter(2, 9, run=2),
        letter(3, 8),
        letter(4, 0),
        letter(5, 6, cause=FOREIGN),
        resolved=(8,),
    )
    planned = plan(found, {}, cause="", audit_ids=None, force=False)
    assert planned.audit_ids == [7, 9]
    assert (planned.no_audit_id, planned.other_accounts, planned.left_out) == ([4], [5], [])


def test_the_cause_of_the_last_letter_decides_and_ids_narrow_it() -> None:
    found = listed(
        letter(0, 7, cause=REFUSED), letter(1, 7, run=2), letter(2, 8, cause=REFUSED), letter(3, 9), resolved=(9,)
    )
    assert plan(found, {}, cause=REFUSED, audit_ids=None, force=False).audit_ids == [8]
    planned = plan(found, {}, cause="", audit_ids=[8, 9, 10, 11], force=False)
    assert (planned.audit_ids, planned.unknown) == ([8], 2)
    assert planned.left_out == [(9, "it is resolved: it has a document")]


def test_a_row_that_has_failed_every_retry_is_left_out_unless_forced() -> None:
    found, retried = listed(letter(0, 7), letter(1, 8)), {7: RETRIES_MAX, 8: RETRIES_MAX - 1}
    planned = plan(found, retried, cause="", audit_ids=None, force=False)
    assert planned.audit_ids == [8]
    ((row, why),) = planned.left_out
    assert row == 7
    assert f"{RETRIES_MAX} times" in why
    assert "--force" in why
    assert plan(found, retried, cause="", audit_ids=None, force=True).audit_ids == [7, 8]


def attempt(outcome: str, ids: list[int], **groups: list[int]) -> dict[str, object]:
    return {
        "outcome": outcome,
        "audit_ids": ids,
        "outcomes": [{"outcome": name, "why": "", "audit_ids": rows} for name, rows in groups.items()],
    }


def test_failed_retries_are_counted_in_a_row_and_an_unfinished_one_counts() -> None:
    attempts = [
        attempt("done", [7, 8], failed=[7, 8]),
        attempt("done", [8], migrated=[8]),
        attempt("started", [7, 8]),
        attempt("interrupted", [7]),
        attempt("halted", [7, 8], failed=[7]),
    ]
    assert failed_retries(attempts) == {7: 3, 8: 1}


def test_a_feeds_retry_sends_what_waits_of_a_row_the_last_and_what_has_no_row() -> None:
    found = listed(
        letter(0, 7), letter(1, 7, run=2), letter(2, 0), letter(3, 8), letter(4, 9, cause=REFUSED), resolved=(8,)
    )
    found.append(replace(found[2], letter=replace(found[2].letter, offset=5, source_topic="outcomes")))
    tried = [{"audit_ids": [9]}] * RETRIES_MAX

    def offsets(**how: Any) -> tuple[list[int], list[int]]:
        sending = chosen("replay", found, tried, **{"cause": "", "audit_ids": None, "force": False, **how})
        return [each.letter.offset for each in sending.letters], [offset for offset, _ in sending.left_out]

    assert offsets() == ([1, 2], [4, 5])
    assert offsets(force=True) == ([1, 2, 4], [5])
    assert offsets(cause=REFUSED, force=True) == ([4], [])
    assert offsets(audit_ids=[7, 8]) == ([1], [])


def test_outcomes_are_kept_by_what_they_are() -> None:
    outcomes = {9: ("migrated", ""), 7: ("failed", CHANGES), 8: ("failed", CHANGES)}
    assert grouped(outcomes) == [
        {"outcome": "failed", "why": CHANGES, "audit_ids": [7, 8]},
        {"outcome": "migrated", "why": "", "audit_ids": [9]},
    ]


def test_payloads_are_shown_as_far_as_they_can_be_read() -> None:
    shown = payload_of(CODEC.encode(event()), CODEC)
    assert (shown["kind"], shown["fields"]["audited_changes"]) == ("AuditEvent", "---\nname: Budi\n")
    assert shown["fields"]["created_at"] == "2020-09-13T12:26:40+00:00"
    document = bytes.fromhex("10000000026e616d6500020000006100" + "00")  # the length is one too short
    broken = payload_of(CODEC.encode(ActivityLog(7, 0, 1, 1, document)), CODEC)
    assert broken["fields"]["document"] == document.hex()
    garbage = payload_of(b"\x01garbage", CODEC)
    assert (garbage["kind"], garbage["bytes"], bytes.fromhex(garbage["hex"])) == ("undecodable", 8, b"\x01garbage")
    assert payload_of(b"", CODEC)["kind"] == "empty"


def test_a_log_in_a_payload_is_shown_as_its_document() -> None:
    from bson import encode

    log = ActivityLog(7, 0, 1, 1, encode({"category": "deal", "changes": [{"to": 2**40}]}))
    shown = payload_of(CODEC.encode(log), CODEC)
    assert shown["fields"]["document"] == {"category": "deal", "changes": [{"to": 2**40}]}


def test_a_hex_dump_names_places_and_says_what_it_leaves_out() -> None:
    assert hex_dump(b"\x00AB") == f"0000  {'00 41 42':<47}  .AB"
    lines = hex_dump(bytes(300), 32).splitlines()
    assert [line[:4] for line in lines[:2]] == ["0000", "0010"]
    assert lines[2] == "268 more bytes"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("a\x1b[2Jb\nc\td\x9b") == "a\\x1b[2Jb\nc\td\\x9b"


def test_audit_ids_are_numbers_ranges_or_a_file(tmp_path: Path) -> None:
    assert parse_audit_ids("17,18, 20-22") == [17, 18, 20, 21, 22]
    file = tmp_path / "ids"
    file.write_text("1\n2-3\n")
    assert parse_audit_ids(f"@{file}") == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("7,x", "x is no audit id"),
        ("9-3", "9-3 is too much, or backwards"),
        (f"1-{AUDIT_IDS_MAX + 1}", "too much"),
        ("1" * 20, "is no audit id"),
        (" , ", "no audit ids were given"),
        ("@/nowhere/at/all", "cannot be read"),
    ],
)
def test_wrong_audit_ids_are_named(text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        parse_audit_ids(text)
