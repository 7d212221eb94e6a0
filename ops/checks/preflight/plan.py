"""Pure: the plan of the page query by `EXPLAIN (ANALYZE, FORMAT JSON)`, and the missing index."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.checks.model import Verdict

SMALL_TABLE_ROWS = 20_000  # below it PostgreSQL rightly prefers to read the whole table
PAGE_TIME_WARN_MS = 1_000.0  # of one page: with 500 rows a page, the floor of 500 rows/s
WASTE_WARN = 50  # rows read for each one that is returned
SORTED_WARN_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class PagePlan:
    """How one page was read."""

    seq_scanned: int  # rows read without an index
    scanned: int  # rows read by any scan, those that the filter threw away included
    returned: int
    sorted_rows: int
    by_id: bool  # some index scan is bounded by id
    indexes: tuple[str, ...]
    execution_ms: float

    def facts(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "rows_read": self.scanned,
            "rows_returned": self.returned,
            "rows_read_without_index": self.seq_scanned,
            "rows_sorted": self.sorted_rows,
            "indexes": list(self.indexes),
            "execution_ms": round(self.execution_ms, 3),
        }


def page_plan(explained: Sequence[Mapping[str, Any]]) -> PagePlan:
    """Return the plan from the answer to EXPLAIN."""
    top = explained[0]["Plan"]
    seq = scanned = sorted_rows = 0
    by_id = False
    indexes: list[str] = []
    for node in _nodes(top):
        kind = str(node["Node Type"])
        rows = _rows(node)
        if "Relation Name" in node and kind.endswith("Scan"):
            scanned += rows
            if kind.endswith("Seq Scan"):
                seq += rows
        if "Index Name" in node:
            indexes.append(str(node["Index Name"]))
            by_id |= "id >" in str(node.get("Index Cond", "")).replace("(", "")
        if kind in ("Sort", "Incremental Sort"):
            sorted_rows = max(sorted_rows, *(_rows(child) for child in node.get("Plans", ())))
    returned = _rows(top, with_removed=False)
    return PagePlan(
        seq,
        scanned,
        returned,
        sorted_rows,
        by_id,
        tuple(dict.fromkeys(indexes)),
        float(explained[0].get("Execution Time", 0.0)),
    )


def judge(
    plan: PagePlan, *, table: str, table_rows: int, account_column: str | None, page_rows: int
) -> tuple[Verdict, str, str]:
    """Return a verdict on a page, what it was found to cost, and the index to add (SQL) or what else to do."""
    summary = f"a page of {plan.returned:,} rows reads {plan.scanned:,} in {plan.execution_ms:.0f} ms"
    by = f" by {', '.join(plan.indexes)}" if plan.indexes else ""
    if plan.seq_scanned > SMALL_TABLE_ROWS:
        sql = f"CREATE UNIQUE INDEX CONCURRENTLY ON {table} (id)"
        return Verdict.FAIL, f"{summary}, {plan.seq_scanned:,} of them without an index", f"{sql}; then ANALYZE {table}"
    if plan.sorted_rows > max(SORTED_WARN_ROWS, 4 * page_rows):
        return (
            Verdict.WARN,
            f"{summary}{by}, and sorts {plan.sorted_rows:,}: not in the order of an index on id",
            f"ANALYZE {table}; without an index on id: CREATE UNIQUE INDEX CONCURRENTLY ON {table} (id)",
        )
    if plan.execution_ms > PAGE_TIME_WARN_MS:
        return (
            Verdict.WARN,
            f"{summary}{by}",
            _index_for(table, account_column) or "see what else keeps the source busy, or lower CRM_REPLAY_PAGE_ROWS",
        )
    if plan.scanned > WASTE_WARN * max(plan.returned, 1) and plan.scanned > SMALL_TABLE_ROWS and account_column:
        return Verdict.WARN, f"{summary}{by}: few of them are the account's", _index_for(table, account_column)
    small = " (a small table is read whole)" if plan.seq_scanned and table_rows <= SMALL_TABLE_ROWS else ""
    return Verdict.OK, f"{summary}{by}{small}", ""


def _index_for(table: str, account_column: str | None) -> str:
    if account_column is None:
        return ""
    return f"CREATE INDEX CONCURRENTLY ON {table} ({account_column}, id); then ANALYZE {table}"


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows(node: Mapping[str, Any], *, with_removed: bool = True) -> int:
    """Return how many rows a node has read in all its loops."""
    rows = float(node.get("Actual Rows", 0))
    if with_removed:
        rows += float(node.get("Rows Removed by Filter", 0)) + float(node.get("Rows Removed by Index Recheck", 0))
    return round(rows * float(node.get("Actual Loops", 1)))
