"""Pure: the lineage of one source row, the rules that decided it, and its outcome in one phrase."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from ops.jobs.letters import EPOCH, moment
from processors.rules.decide import Answer, Decision, Lookups, Refused, Rules, Skip
from processors.rules.watermark import skip_reason
from producer.cursor import EARLIEST
from schemas.errors import UnreadableTopicError
from schemas.identity import AUDIT_ID_BYTES, RUN_BYTES, run_in
from schemas.records import AuditEvent
from schemas.source.audited_changes import Columns, Unreadable, read
from schemas.source.mapping import SourceMapping
from schemas.source.person import placed_candidates

log = logging.getLogger(__name__)

PARTS = ("source", "key", "published", "decision", "outcome", "document", "dead letters", "live feed", "job")


@dataclass(slots=True)
class Lineage:
    """The known facts of a row, part by part; `facts` for JSON, `lines` as text."""

    company_sso_id: str
    audit_id: int
    facts: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    not_looked_at: dict[str, str] = field(default_factory=dict)  # part -> why
    looked_at: set[str] = field(default_factory=set)  # servers that answered

    def add(self, part: str, facts: Any, *lines: str) -> None:
        """Add the facts and text lines of a part."""
        self.facts[part.replace(" ", "_")] = facts
        self.lines.setdefault(part, []).extend(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the lineage for JSON."""
        return {
            "company_sso_id": self.company_sso_id,
            "audit_id": self.audit_id,
            **{part.replace(" ", "_"): self.facts.get(part.replace(" ", "_")) for part in PARTS},
            "not_looked_at": dict(self.not_looked_at),
            "verdict": verdict(self),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the source, as far as it may be read."""

    exists: bool
    auditable_type: str = ""
    action: str = ""
    created_at_us: int | None = None
    ours: bool = False  # of this account
    event: AuditEvent | None = None  # of a row of this account that can be read
    defect: str = ""  # cause why it cannot be published whole
    defect_detail: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One rule's answer as text. The first other than `pass` decides."""

    rule: str
    verdict: str  # pass, skip or refuse
    text: str
    values: dict[str, Any] = field(default_factory=dict)


class Bounds(Protocol):
    """As much of a job as decides which rows it reads."""

    @property
    def reads_from(self) -> datetime:
        """Return the time before which rows are left out; EARLIEST: none are."""

    @property
    def top_audit_id(self) -> int:
        """Return the newest id that it reads."""


def out_of_scope(row: Row, audit_id: int, mapping: SourceMapping, job: Bounds | None) -> list[str]:
    """Return why a replay does not read the row; empty if it does. Without a job, no cutoff and no top are known."""
    if not row.exists:
        return ["there is no row with this id"]
    if not row.ours:
        return ["it is another account's"]
    why = []
    if row.auditable_type not in mapping.stored_types(mapping.scope):
        why.append(f"its type {row.auditable_type or '(none)'} is not in the mapping's scope")
    if job is not None and job.reads_from > EARLIEST:
        if row.created_at_us is None:
            why.append("it has no created_at, so it is not in the job's date range")
        elif row.created_at_us < (job.reads_from - EPOCH) // timedelta(microseconds=1):
            created = moment(row.created_at_us).isoformat()
            why.append(f"created {created}, before the job's cutoff {job.reads_from.isoformat()}")
    if job is not None and audit_id > job.top_audit_id:
        why.append(f"its id is above the job's top, {job.top_audit_id}: it is newer than the job")
    return why


def candidates(event: AuditEvent, mapping: SourceMapping) -> list[dict[str, str]]:
    """Return the row's CRM person ids in the order in which they are tried, each with the first place that names it."""
    columns = read(event.audited_changes, event.changes_are_json)
    values = columns.values if isinstance(columns, Columns) else {}
    found = placed_candidates(event, mapping.person, values)
    return [{"person_id": person_id, "from": str(place)} for person_id, place in found.items()]


def steps(event: AuditEvent, mapping: SourceMapping, account: str, lookups: Lookups) -> list[Step]:
    """Return the answers of the rules in their order, up to and with the one that decides.

    A rule that raises ends them: the transformation dead-letters such a row. Raises UnreadableTopicError for a
    reference that cannot be read.
    """
    trail: list[Answer] = []
    result: Decision | Skip | Refused | None = None
    try:
        result = Rules(mapping, account).decide(event, lookups, trail=trail)
    except UnreadableTopicError:
        raise
    except Exception:
        log.debug("a rule raised", exc_info=True)
    taken = [Step(answer.rule, "pass", *_TEXTS.get(answer.rule, _plain)(event, answer.facts)) for answer in trail]
    if isinstance(result, Skip):
        values = {"reason": result.reason.value, **taken[-1].values}
        taken[-1] = replace(taken[-1], verdict="skip", values=values)
    elif isinstance(result, Refused):
        text = taken[-1].text if taken[-1].rule in _TEXTS else result.detail
        values = {"cause": result.cause.value, **taken[-1].values}
        taken[-1] = replace(taken[-1], verdict="refuse", text=text, values=values)
    return taken


_Text = tuple[str, dict[str, Any]]  # a step's text and values


def _scope(event: AuditEvent, facts: Mapping[str, Any]) -> _Text:
    what, rule = f"{event.auditable_type} {event.action}", facts["rule"]
    return (f"no category for {what}" if rule is None else f"{what} is {rule.category}/{rule.action}"), {}


def _contact(_: AuditEvent, facts: Mapping[str, Any]) -> _Text:
    summary = ", ".join(
        f"person {each['person_id']} ({each['from']}) is "
        f"{'customer ' + str(each['customer_id']) if each['customer_id'] else 'no contact of this account'}"
        for each in facts["tried"]
    )
    return summary or "the row names no person", dict(facts)


def _watermark(_: AuditEvent, facts: Mapping[str, Any]) -> _Text:
    created, synced = moment(facts["created_at"]).isoformat(), moment(facts["synced_at"]).isoformat()
    is_before = skip_reason(facts["created_at"], facts["synced_at"], live=False) is None
    summary = (
        f"before the contact ({synced}): the replay owns it"
        if is_before
        else f"not before the contact ({synced}): the live feed owns it"
    )
    return f"created {created}, {summary}", {"created_at": created, "contact_created_at": synced}


def _changes(_: AuditEvent, facts: Mapping[str, Any]) -> _Text:
    columns: Columns | Unreadable = facts["columns"]
    if isinstance(columns, Unreadable):
        return f"audited_changes is unreadable: {columns.why}", {}
    refused = f", {columns.refused} of them Ruby objects that stay unread" if columns.refused else ""
    names = sorted(columns.values)
    return f"{len(names)} columns{refused}", {"columns": names, "refused_values": columns.refused}


def _status(_: AuditEvent, facts: Mapping[str, Any]) -> _Text:
    rule, action = facts["rule"], facts["action"]
    if rule.status_ids is None:
        text = f"{rule.status_column} was changed, and the mapping has no id set for it"
    else:
        meaning = "one of" if action == rule.status_action else "none of"
        text = f"{rule.status_column} was changed to {meaning} the ids that mean {rule.status_action}"
    return f"{text}: {rule.category}/{action}", {}


def _plain(_: AuditEvent, facts: Mapping[str, Any]) -> _Text:
    """Return the facts of a rule without a text of its own."""
    return ", ".join(f"{name} {value}" for name, value in facts.items()), dict(facts)


_TEXTS: dict[str, Callable[[AuditEvent, Mapping[str, Any]], _Text]] = {
    "scope": _scope,
    "contact": _contact,
    "watermark": _watermark,
    "changes": _changes,
    "status": _status,
}


def verdict(lineage: Lineage) -> str:
    """Return the row's outcome in one phrase."""
    facts = lineage.facts
    document, decision = facts.get("document") or {}, facts.get("decision") or {}
    outcome = (facts.get("outcome") or {}).get("records") or []
    letters = facts.get("dead_letters") or {}
    source, published = facts.get("source") or {}, facts.get("published") or {}
    if document.get("found"):
        if not document.get("of_replay"):
            return "the live feed has written its document"
        if document.get("differs"):
            return f"migrated, but the document differs from what the row becomes now: {', '.join(document['differs'])}"
        return "migrated"
    feed = facts.get("live_feed") or {}
    if feed.get("end"):
        return f"{feed['end']} by the live feed {feed['feed']}"
    if outcome and outcome[-1]["what"] == "skipped":
        return f"skipped: {outcome[-1]['reason']}"
    if letters.get("letters"):
        last = letters["letters"][-1]
        return f"failed: {last['cause']} (dead letter at offset {last['offset']})"
    if outcome and outcome[-1]["what"] == "dead letter":
        return f"failed: {outcome[-1]['reason']}"
    if source.get("out_of_scope"):
        return f"not replayed: {'; '.join(source['out_of_scope'])}"
    if outcome and outcome[-1]["what"] == "activity log":
        if "document" not in facts:
            return "it became an activity log; whether it was written could not be checked"
        return "it became an activity log, but there is no document: not written yet, removed, or lost"
    if published.get("records"):
        return "in transit, or lost: it is published and has no outcome"
    if facts.get("job") is None and "job" in facts:
        return "not replayed: the account has no job"
    if decision.get("result"):
        missing = "" if "published" in facts else "; where it is now could not be checked"
        return f"it would be {decision['result']} now{missing}"
    return "unknown: too few servers could be queried"


def run_of(document_id: Any, audit_id: int) -> int | None:
    """Return the run that an `_id` of the replay's making names; None for any other `_id`."""
    binary = getattr(document_id, "binary", b"")
    if len(binary) != RUN_BYTES + AUDIT_ID_BYTES or int.from_bytes(binary[RUN_BYTES:], "big") != audit_id:
        return None
    return run_in(binary)


def text_lines(lineage: Lineage) -> Iterator[str]:
    """Yield the lineage's lines in order, each part under its name."""
    for part in PARTS:
        lines = lineage.lines.get(part, [])
        if part in lineage.not_looked_at:
            lines = [*lines, f"unavailable: {lineage.not_looked_at[part]}"]
        for number, line in enumerate(lines):
            yield f"  {'' if number else part:<13} {line}"
    for part in lineage.not_looked_at.keys() - set(PARTS):
        yield f"  {part:<13} unavailable: {lineage.not_looked_at[part]}"
