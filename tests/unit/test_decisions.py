"""DECISIONS.md: its index has every entry with title, date and status, and a status names later entries only."""

import re
from pathlib import Path

ENTRY = re.compile(r"(?m)^## (\d+)\. (.+)\n\n(\d{4}-\d\d-\d\d), (.+)\.\n")
STATUS = re.compile(r"accepted|(amended|superseded) by \d+(, \d+)*( and \d+)?")
TEXT = (Path(__file__).parents[2] / "DECISIONS.md").read_text("utf-8")


def slug(heading: str) -> str:
    """Return the anchor that a heading has on GitHub."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def test_the_index_has_every_entry_with_its_title_date_and_status() -> None:
    entries = ENTRY.findall(TEXT)
    assert [number for number, *_ in entries] == re.findall(r"(?m)^## (\d+)\.", TEXT)
    wanted = [
        f"| [{number}](#{slug(f'{number}. {title}')}) | {title} | {date} | {status} |"
        for number, title, date, status in entries
    ]
    assert re.findall(r"(?m)^\| \[\d+\].*$", TEXT) == wanted


def test_a_status_is_accepted_or_names_later_entries() -> None:
    status_of = {int(number): status for number, _, _, status in ENTRY.findall(TEXT)}
    assert list(status_of) == sorted(status_of)
    for number, status in status_of.items():
        assert STATUS.fullmatch(status), f"decision {number}: {status}"
        assert all(int(later) > number and int(later) in status_of for later in re.findall(r"\d+", status)), number
