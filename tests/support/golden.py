"""Golden cases: each is a file that has a row, what it becomes, and why the case is there."""

import json
from pathlib import Path
from typing import Any, NamedTuple

GOLDEN = Path(__file__).parents[1] / "golden"


class Case(NamedTuple):
    """A case, as its file has it."""

    why: str
    row: dict[str, Any]
    outcome: dict[str, Any]


def cases(folder: str) -> dict[str, Case]:
    """Return the cases of a folder by name."""
    return {path.stem: Case(**json.loads(path.read_text("utf-8"))) for path in sorted((GOLDEN / folder).glob("*.json"))}


def as_lines(some: dict[str, Case]) -> str:
    """Return the cases' rows as `crm-replay transform` reads them."""
    return "".join(f"{json.dumps(case.row)}\n" for case in some.values())
