"""The sample CRM's rows and what the gem's own reader makes of them, for tests."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from ops.checks.file_rows import event_of
from schemas.records import AuditEvent

TABLES = {"audits_yaml": False, "audits_jsonb": True}


class SampleRow(NamedTuple):
    """One row of `ops/local/sample` with its truth."""

    event: AuditEvent
    changes: dict[str, Any]  # as `expected_changes.jsonl` has them
    opaque_columns: list[str]


def lines(name: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, which may hold U+2028 inside a line."""
    for line in files("ops.local").joinpath(f"sample/{name}").read_text("utf-8").split("\n"):
        if line:
            yield json.loads(line)


@cache
def rows() -> tuple[SampleRow, ...]:
    """Return every row of both files."""
    truth = {(line["table"], line["id"]): line for line in lines("expected_changes.jsonl")}
    return tuple(
        SampleRow(
            event_of(row, table)._replace(changes_are_json=is_json),
            truth[table, row["id"]]["changes"] or {},
            truth[table, row["id"]].get("opaque_columns", []),
        )
        for table, is_json in TABLES.items()
        for row in lines(f"{table}.jsonl")
    )


def row_id(row: SampleRow) -> str:
    """Return what a parametrised test is called."""
    return str(row.event.audit_id)


def as_stored(value: Any) -> Any:
    """Return a value of the truth as a log holds it: of a Ruby object only the class, long integers as digits."""
    if isinstance(value, dict):
        return {"$ruby": value["$ruby"]} if "$ruby" in value else {key: as_stored(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_stored(part) for part in value]
    if type(value) is int and not -(2**63) <= value < 2**63:
        return str(value)
    return value
