"""Pure: the findings of a check, counted and named, and their sums."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

NAMED_MAX = 100  # findings of a kind that are named unless the operator requests more
REPAIR_MAX = 100_000  # rows that a repair replays one by one; beyond it, rerun the account


class Kind(StrEnum):
    """What can be wrong with a row or a document. `failed` is none of these: it is an end of its own."""

    MISSING = "missing"  # the row should have become a document, and there is none
    EXTRA = "extra"  # a document of the replay that no source row accounts for
    DIFFERENT = "different"  # the document is not what the row becomes
    DEAD_LETTER_LOST = "dead_letter_lost"  # the row cannot become a document, and has no dead letter


@dataclass(slots=True)
class Finding:
    """One row or document that is not as it should be. Holds no value of either, but ids."""

    kind: Kind
    audit_id: int | None  # None: the document's external_id is not ours
    at_us: int | None  # the row's created_at, else the document's timestamp; microseconds since 1970
    why: str = ""
    fields: tuple[str, ...] = ()  # that differ
    external_id: str = ""
    document_id: Any = None
    customer_id: str = ""  # of the document; to look up whose it is, never shown

    def as_dict(self, now_us: int) -> dict[str, Any]:
        """Return what is shown of it, as JSON takes it."""
        shown: dict[str, Any] = {"kind": self.kind.value, "audit_id": self.audit_id}
        if self.external_id:
            shown["external_id"] = self.external_id
        if self.document_id is not None:
            shown["document_id"] = str(self.document_id)
        if self.fields:
            shown["fields"] = list(self.fields)
        shown["age_s"] = None if self.at_us is None else max(0, (now_us - self.at_us) // 1_000_000)
        shown["why"] = self.why
        return shown


@dataclass(slots=True)
class Failed:
    """A row that ended as a dead letter, as it should be accounted for."""

    audit_id: int
    cause: str


@dataclass(slots=True)
class Tally:
    """The counts of some segments, and what was found there."""

    rows: int = 0  # in scope, not created before the cutoff
    logs: int = 0  # of them, that are to become a document and did not fail
    before_cutoff: int = 0  # rows that the last run did not have to read
    matched: int = 0  # documents that are byte for byte, or field for field, what their row becomes
    enriched: int = 0  # of them, with metadata that was added later
    tagged: int = 0  # documents of the replay that were read
    retried: int = 0  # rows with both a dead letter and a document: a retry has brought it
    unchanged: int = 0  # rows whose chunk is sealed, and all of it as it was when it was proved (seals)
    unsealed: int = 0  # rows whose chunk was proved equal, but MongoDB does not let us keep that
    skipped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)  # of the different documents, by their first name
    findings: list[Finding] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    replay: "array[int]" = field(default_factory=lambda: array("q"))  # audit ids that a repair replays
    delete: list[Any] = field(default_factory=list)  # `_id`s that a repair deletes

    def note(self, finding: Finding, named_max: int) -> None:
        """Count a finding, and name it if fewer than `named_max` of its kind are named already."""
        self.found[finding.kind.value] += 1
        self.fields.update({name.split(".", 1)[0] for name in finding.fields})
        if sum(1 for named in self.findings if named.kind is finding.kind) < named_max:
            self.findings.append(finding)
        if finding.kind is not Kind.EXTRA and finding.audit_id is not None and len(self.replay) <= REPAIR_MAX:
            self.replay.append(finding.audit_id)
        if finding.kind in (Kind.EXTRA, Kind.DIFFERENT) and len(self.delete) <= REPAIR_MAX:
            self.delete.append(finding.document_id)

    def fail(self, audit_id: int, cause: str, named_max: int) -> None:
        """Count a row that ended as a dead letter."""
        self.failed[cause] += 1
        if len(self.failures) < named_max:
            self.failures.append(Failed(audit_id, cause))

    def add(self, other: "Tally", named_max: int) -> None:
        """Take over another tally's counts, and its names as far as there is room."""
        self.rows += other.rows
        self.logs += other.logs
        self.before_cutoff += other.before_cutoff
        self.matched += other.matched
        self.enriched += other.enriched
        self.tagged += other.tagged
        self.retried += other.retried
        self.unchanged += other.unchanged
        self.unsealed += other.unsealed
        for ours, theirs in (
            (self.skipped, other.skipped),
            (self.failed, other.failed),
            (self.found, other.found),
            (self.fields, other.fields),
        ):
            ours.update(theirs)
        named = Counter(finding.kind for finding in self.findings)
        for finding in other.findings:
            if named[finding.kind] < named_max:
                named[finding.kind] += 1
                self.findings.append(finding)
        self.failures.extend(other.failures[: max(0, named_max - len(self.failures))])
        self.replay.extend(other.replay[: max(0, REPAIR_MAX + 1 - len(self.replay))])
        self.delete.extend(other.delete[: max(0, REPAIR_MAX + 1 - len(self.delete))])

    @property
    def failed_total(self) -> int:
        """Rows that ended as dead letters."""
        return sum(self.failed.values())


@dataclass(frozen=True, slots=True)
class CountMismatch:
    """A count of the job that differs from its rows'."""

    name: str
    job: int
    truth: int


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Records of the run that a consumer group has not committed."""

    group: str
    partition: int
    committed: int  # below 0: nothing is committed
    end: int


@dataclass(slots=True)
class Report:
    """The result of a check."""

    company_sso_id: str
    job_id: str
    run: int
    top_audit_id: int
    tally: Tally
    documents: int  # with our source_tag, by the index
    counts: list[CountMismatch] = field(default_factory=list)
    offsets: list[Unhandled] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    deleted: int | None = None  # by a repair before this check
    replayed: int | None = None
    mapping_path: str = ""
    planned: dict[str, Any] | None = None  # what a repair would do, in a dry run
    completed: bool = False  # the job had failed or was halted, and this proof has completed it

    @property
    def equal(self) -> bool:
        """Whether the copy matches the source, and no count differs."""
        return not (self.tally.found or self.counts or self.offsets)

    def as_dict(self, now_us: int) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        tally = self.tally
        found = {kind.value: tally.found[kind.value] for kind in Kind}
        shown: dict[str, Any] = {
            "company_sso_id": self.company_sso_id,
            "job_id": self.job_id,
            "run": self.run,
            "top_audit_id": self.top_audit_id,
            "equal": self.equal,
            "source_rows": tally.rows,
            "source_rows_unchanged": tally.unchanged,
            "documents_expected": tally.logs,
            "documents": self.documents,
            "documents_equal": tally.matched,
            "enriched": tally.enriched,
            "skipped": dict(sorted(tally.skipped.items())),
            "failed": dict(sorted(tally.failed.items())),
            "failed_rows": [{"audit_id": failed.audit_id, "cause": failed.cause} for failed in tally.failures],
            **found,
            "differing_fields": dict(sorted(tally.fields.items())),
            "findings": [finding.as_dict(now_us) for finding in tally.findings],
            "findings_left_out": sum(found.values()) - len(tally.findings),
            "counts": [{"name": c.name, "job": c.job, "truth": c.truth} for c in self.counts],
            "offsets": [
                {"group": o.group, "partition": o.partition, "committed": o.committed, "end": o.end}
                for o in self.offsets
            ],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(tally.rows / self.seconds) if self.seconds else None,
        }
        if self.planned is not None:
            shown |= {"repair": self.planned}
        if self.completed:
            shown |= {"job_completed": True}
        if self.deleted is not None:
            shown |= {"repair": {"documents_deleted": self.deleted, "rows_replayed": self.replayed}}
        return shown


@dataclass(frozen=True, slots=True)
class Counted:
    """What a run has counted, or the sum of several. A document that was there before is as good as migrated."""

    documents: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0


def count_mismatches(tally: Tally, run: Counted, since: Counted | None) -> list[CountMismatch]:
    """Return where the counts of the account's run differ from its rows.

    `since` is what later replays of chosen rows have counted. Such a row may have been counted by the run as well or
    not (that may be why it was chosen), so each of them makes the answer wider by one; so does a row whose dead letter
    was retried.
    """
    since = since or Counted()
    lost = tally.found[Kind.DEAD_LETTER_LOST.value]
    failed = tally.failed_total + lost
    bounds = [("migrated", run.documents, since.documents + tally.retried, tally.logs, 0)]
    bounds += [
        (f"skipped: {reason}", run.skipped.get(reason, 0), since.skipped.get(reason, 0), tally.skipped[reason], 0)
        for reason in sorted(set(run.skipped) | set(tally.skipped))
    ]
    bounds.append(("failed", run.failed, since.failed, failed, tally.retried))
    return [
        CountMismatch(name, counted, truth)
        for name, counted, more, truth, less in bounds
        if not truth - more <= counted <= truth + less
    ]
