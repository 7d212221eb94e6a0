"""Pure: what a dry run counts, the examples it shows, and what it concludes.

Examples hold no personal values unless requested: a dry run's output ends up in tickets and chats. Of each value,
kind and size are shown, which is enough to judge a mapping (DECISIONS.md, decision 20).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ops.checks.estimates import Estimate, Rate
from ops.checks.model import bytes_text, duration_text
from schemas.vocabulary import ActorKind, SkipReason

FAILURE_RATE_MAX = 0.10  # a job halts above it
# Fields that name a kind, a column or a record by number, and never a person.
PLAIN_FIELDS = frozenset(
    ("company_sso_id", "customer_id", "category", "action", "timestamp", "external_id", "source_tag")
)
PLAIN_METADATA = frozenset(("request_id", "version"))


@dataclass(slots=True)
class Tally:
    """The counts of the sampled rows, each in exactly one of logs, skipped and failed."""

    rows: int = 0
    logs: Counter[str] = field(default_factory=Counter)  # by `category/action`
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    failed: Counter[str] = field(default_factory=Counter)  # by cause
    text_bytes: int = 0  # changes and comments in the source
    event_bytes: int = 0  # records on the replay topic
    document_bytes: int = 0  # of those that become logs

    @property
    def logs_total(self) -> int:
        """Rows that would become a new document."""
        return sum(self.logs.values())

    @property
    def skipped_total(self) -> int:
        """Rows that would be left out on purpose, those that have a document already among them."""
        return sum(self.skipped.values())

    @property
    def failed_total(self) -> int:
        """Rows that would end as dead letters."""
        return sum(self.failed.values())

    @property
    def failure_rate(self) -> float:
        """Return failed / (migrated + skipped + failed); 0.0 if no row was read."""
        return self.failed_total / self.rows if self.rows else 0.0


@dataclass(slots=True)
class Examples:
    """The first rows of each kind, `most` at most."""

    most: int
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def wanted(self, kind: dict[str, list[dict[str, Any]]], name: str) -> bool:
        """Return whether one more example of this name is wanted."""
        return self.most > 0 and len(kind.get(name, ())) < self.most


@dataclass(slots=True)
class Report:
    """The result of a dry run."""

    company_sso_id: str
    rows_in_scope: int
    top_audit_id: int
    cutoff: datetime
    tally: Tally
    examples: Examples
    counts: Mapping[str, int]  # the transformer's: fallen back actors, refused Ruby values, missing id sets
    references: Mapping[str, int]  # rows of each reference table
    estimate: Estimate
    dry_rows_per_s: float  # this run's own, one process, reading and transforming
    out_of_scope_by_type: Mapping[str, int] = field(default_factory=dict)  # rows of types that are not read
    notes: list[str] = field(default_factory=list)

    @property
    def sampled(self) -> bool:
        """Whether only a part of the rows was read."""
        return self.tally.rows < self.rows_in_scope

    @property
    def would_halt(self) -> bool:
        """Whether so many rows fail that a job would be halted."""
        return self.tally.failure_rate > FAILURE_RATE_MAX

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        tally = self.tally
        return {
            "company_sso_id": self.company_sso_id,
            "rows_in_scope": self.rows_in_scope,
            "rows_looked_at": tally.rows,
            "sampled": self.sampled,
            "out_of_scope_by_type": dict(self.out_of_scope_by_type),
            "top_audit_id": self.top_audit_id,
            "cutoff": self.cutoff.isoformat(),
            "logs": dict(sorted(tally.logs.items())),
            "logs_total": tally.logs_total,
            "skipped": dict(sorted(tally.skipped.items())),
            "failed": dict(sorted(tally.failed.items())),
            "failure_rate": round(tally.failure_rate, 6),
            "would_halt": self.would_halt,
            "counts": dict(self.counts),
            "references": dict(self.references),
            "examples": {
                "logs": self.examples.logs,
                "skipped": self.examples.skipped,
                "failed": self.examples.failed,
            },
            "estimate": self.estimate.facts(),
            "dry_rows_per_s": round(self.dry_rows_per_s),
            "notes": list(self.notes),
        }

    def estimate_text(self) -> str:
        """Return the estimate of the whole replay, in one line."""
        estimate = self.estimate
        basis = "from the sampled rows" if self.sampled else "measured on all rows"
        return (
            f"{estimate.rows:,} rows take about {duration_text(estimate.seconds)}"
            f" at {estimate.rate.rows_per_s:,.0f} rows/s ({estimate.rate.basis});"
            f" {bytes_text(estimate.topics_bytes)} on topics, {bytes_text(estimate.documents_bytes)} of documents"
            f" before compression ({basis})"
        )


def estimate_of(tally: Tally, rows_in_scope: int, rate: Rate, index_bytes: int) -> Estimate:
    """Return the estimate of the whole replay, from the sizes of the rows that were read."""
    share = rows_in_scope / tally.rows if tally.rows else 0.0
    return Estimate(
        rows=rows_in_scope,
        row_bytes=tally.text_bytes / tally.rows if tally.rows else 0.0,
        rate=rate,
        topics_bytes=round((tally.event_bytes + tally.document_bytes) * share),
        documents_bytes=round((tally.document_bytes + index_bytes * tally.logs_total) * share),
        seconds=rows_in_scope / max(rate.rows_per_s, 1e-9),
        seconds_at_floor=rows_in_scope / 500,
    )


def id_ranges(low: int, top: int, spread: Sequence[int], rows: int, places: int) -> list[tuple[int, int, int]]:
    """Return (from, up to, rows) of the id ranges in (low, top] from which `rows` rows are taken.

    `spread`: ids with about the same number of rows between neighbours, as far as the server knows; then each place
    represents as many rows, else for as many ids.
    """
    if rows <= 0 or top <= low:
        return []
    places = max(1, min(places, rows, top - low))
    inside = sorted({id_ for id_ in spread if low < id_ < top})
    if len(inside) >= places:
        bounds = [inside[len(inside) * place // places] for place in range(1, places)]
    else:
        bounds = [low + (top - low) * place // places for place in range(1, places)]
    edges = [low, *bounds, top]
    share = [rows // places + (place < rows % places) for place in range(places)]
    return [(begin, end, count) for begin, end, count in zip(edges[:-1], edges[1:], share, strict=True) if begin < end]


def masked_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an activity log as an example without personal values: who, what was and what is become kind and size."""
    shown: dict[str, Any] = {}
    for name, value in document.items():
        if name in PLAIN_FIELDS:
            shown[name] = value
        elif name == "actor":
            # Of a user, only the kind; the other kinds have the names that the mapping gives them.
            is_user = value["type"] == ActorKind.USER
            shown[name] = {key: masked(value[key]) if is_user and key != "type" else value[key] for key in value}
        elif name == "changes":
            shown[name] = [{**change, "from": masked(change["from"]), "to": masked(change["to"])} for change in value]
        elif name == "metadata":
            shown[name] = {
                key: part if key in PLAIN_METADATA or isinstance(part, int) else masked(part)
                for key, part in value.items()
            }
        else:
            shown[name] = masked(value)
    return shown


def masked(value: Any) -> Any:
    """Return what kind of value it is and how large, in angle brackets; None and empty ones as they are."""
    if value is None or value in ("", [], {}):
        return value
    if isinstance(value, bool):
        return "<boolean>"
    if isinstance(value, int | float):
        return "<number>"
    if isinstance(value, str):
        return f"<text, {len(value)} characters>"
    if isinstance(value, Mapping):
        return f"<object, {len(value)} keys>"
    if isinstance(value, Sequence):
        return f"<list of {len(value)}>"
    return f"<{type(value).__name__}>"


def named_duplicate() -> str:
    """Return the skip reason of a row whose document exists already."""
    return SkipReason.DUPLICATE_EXTERNAL_ID.value
