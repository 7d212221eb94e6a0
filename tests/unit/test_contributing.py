"""CONTRIBUTING's map names every source file, and nothing that is not there."""

import re
from pathlib import Path

from tests.support.sources import PACKAGES, ROOT

HEADING = "## Where things are\n"


def places() -> set[str]:
    """Return what the rows' second column names of this repository."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text[text.index(HEADING) + len(HEADING) :].split("\n## ")[0]
    rows = [line.strip("|").split("|")[1] for line in section.splitlines() if line.startswith("| ")][1:]
    return {name for row in rows for name in re.findall(r"`([^` ]+)`", row) if "/" in name}


def test_what_the_map_names_is_there() -> None:
    assert places()
    assert {name for name in places() if not (ROOT / name).exists()} == set()


def test_every_source_file_is_in_a_row() -> None:
    """A directory stands for the files directly in it: a new room gets a row."""
    named = places()
    files = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    missing = {str(path) for path in files if not {str(path), f"{path.parent}/"} & named}
    assert files
    assert missing == set()


def test_a_directory_is_named_as_one() -> None:
    assert {name for name in places() if Path(ROOT / name).is_dir() and not name.endswith("/")} <= {
        "tests/golden/schemas"
    }
