"""Pure: Markdown that the pages share."""

from collections.abc import Iterable, Sequence

MADE = "Generated from the code by `crm-replay reference`; a test compares it."


def cell(text: str) -> str:
    """Return a text as one table cell has it."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell(text) for text in line)} |\n" for line in lines)
