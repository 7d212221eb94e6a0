"""What of the sample is personal."""

import re
from collections.abc import Iterator
from typing import Any

from ops.local.sample.rows import json_lines

PERSONAL = {
    "people": ("first_name", "last_name", "email", "telephone"),
    "users": ("email", "full_name"),
    "notes": ("body",),
}


LENGTH_MIN = 5  # shorter ones are words of any line


def text_leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from text_leaves(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from text_leaves(inner)


def personal_values() -> set[str]:
    """Return every value that says something of somebody: of people and users, and changes of people."""
    found = {
        str(row[column]) for table, columns in PERSONAL.items() for row in json_lines(table) for column in columns
        if row.get(column)
    }  # fmt: skip
    people = {row["id"] for row in json_lines("audits_yaml") if row["auditable_type"] == "Crm::Person"}
    for row in json_lines("expected_changes"):
        if row["id"] in people:
            found |= set(text_leaves(row["changes"]))
    lines = {line.strip() for value in found for line in value.splitlines()}
    # What is a word of ours as well (a type, a field) says nothing of anybody.
    return {line for line in lines if len(line) >= LENGTH_MIN and not re.fullmatch(r"[a-z_]+|(?!0)[\d.:TZ -]+", line)}
