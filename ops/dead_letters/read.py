"""Dead letters as they are on their topic, and the present state of their rows.

A dead letter stays on its topic when its row is repaired later; the row's state is looked up each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.dead_letters.feed import judged
from ops.jobs.documents import rows_with_document
from ops.jobs.letters import Letter, Listed, judge, last_runs, letter_of, once
from ops.jobs.store import JobStore
from ops.kafka.rows import Topics
from ops.kafka.topics import records
from ops.progress import RunView
from schemas.collections import RETRIES
from schemas.errors import UnknownSchemaError, UnreadableTopicError
from schemas.job import LiveFeed
from schemas.process.connections import Connections
from schemas.process.mongodb import Database
from schemas.records import SkippedRecord
from schemas.topics import AccountTopics

JOBS_MAX = 1_000


def read_letters(topics: Topics, names: AccountTopics) -> list[Letter]:
    """Return an account's or a feed's dead letters, oldest first, each failure once; empty without a topic of them."""
    name = names.dead_letters
    letters = []
    for partition, offset, value in records(topics.kafka, name):
        try:
            letters.append(letter_of(offset, value, topics.codec, unknown_schema_raises=True))
        except UnknownSchemaError as error:
            raise UnreadableTopicError.at(name, partition, offset, error) from error
    return once(letters)


def read_letter(topics: Topics, names: AccountTopics, offset: int) -> tuple[Letter, bytes] | None:
    """Return the dead letter at an offset and the bytes of its record; None if there is none."""
    name = names.dead_letters
    found = records(topics.kafka, name, dict.fromkeys(topics.spans(name), offset))
    try:
        for _, at, value in found:
            return (letter_of(at, value, topics.codec), value) if at == offset else None
        return None
    finally:
        found.close()  # type: ignore[attr-defined]


def resolved_rows(
    letters: Sequence[Letter], account: str, topics: Topics, database: Database, view: RunView
) -> dict[int, str]:
    """Return why rows need no retry any more, as far as that can be proven, by their audit ids.

    Proof is a document, or a skip in a run after the last failure: in the notes of a retry, or on the outcomes topic
    for as long as Kafka keeps it. Without either, a row waits.
    """
    failed_in = last_runs(letters)
    resolved = dict.fromkeys(rows_with_document(database, account, failed_in), "it has a document")
    for attempt in attempts_of(database, account):
        for group in attempt.get("outcomes", ()):
            if group["outcome"] == "skipped":
                for audit_id in group["audit_ids"]:
                    if attempt.get("run", 0) > failed_in.get(audit_id, attempt.get("run", 0)):
                        resolved.setdefault(audit_id, f"skipped as {group['why']} by run {attempt['run']}")
    if left := {audit_id: run for audit_id, run in failed_in.items() if audit_id not in resolved}:
        resolved |= _skipped_later(left, account, topics, database, view)
    return resolved


def _skipped_later(
    failed_in: Mapping[int, int], account: str, topics: Topics, database: Database, view: RunView
) -> dict[int, str]:
    """Return the rows that a run after their last failure has skipped, by its outcomes."""
    later = [job for job in JobStore(database).jobs(account, JOBS_MAX) if job.run > min(failed_in.values())]
    if not later:
        return {}
    name = AccountTopics.of(account).outcomes
    begin = topics.offsets_at(name, min(job.started_at for job in later))
    skipped = {}
    for found in topics.find(name, failed_in, view, begin):
        record = found.record
        if isinstance(record, SkippedRecord) and record.run > failed_in[record.audit_id]:
            skipped[record.audit_id] = f"skipped as {record.reason} by run {record.run}"
    return skipped


def attempts_of(database: Database, account: str, audit_id: int | None = None) -> list[dict[str, Any]]:
    """Return the account's retries in the order in which they began; of one row or of all."""
    query: dict[str, Any] = {"company_sso_id": account}
    if audit_id is not None:
        query["audit_ids"] = audit_id
    return list(database[RETRIES].find(query).sort([("started_at", 1), ("_id", 1)]))


def attempt_of(attempt: Mapping[str, Any], audit_id: int) -> dict[str, Any]:
    """Return what is shown of a retry of a row, as JSON takes it."""
    ended = [
        f"{group['outcome']} {group['why']}".strip() for group in attempt["outcomes"] if audit_id in group["audit_ids"]
    ]
    return {
        "at": attempt["started_at"].isoformat(),
        "who": attempt["who"],
        "reason": attempt["reason"],
        "job_id": attempt.get("job_id"),  # a feed's has no job
        "run": attempt.get("run") or None,
        "outcome": ended[0] if ended else attempt["outcome"],
    }


@dataclass(frozen=True, slots=True)
class Place:
    """Where the letters and documents of an account or of a feed are."""

    account: str  # "": it is a feed
    feed: LiveFeed | None
    topics: Topics
    database: Database
    connections: Connections

    @property
    def names(self) -> AccountTopics:
        """The names of its topics."""
        return self.feed.topics if self.feed is not None else AccountTopics.of(self.account)

    @property
    def whose(self) -> dict[str, str]:
        """Its fields in a JSON answer."""
        return {"feed": self.feed.feed} if self.feed is not None else {"company_sso_id": self.account}

    def listed(self, view: RunView) -> list[Listed]:
        """Return all dead letters with their states."""
        letters = read_letters(self.topics, self.names)
        if not letters:
            return []
        if self.feed is not None:
            return judged(letters, self.feed, self.topics, self.database, view)
        return judge(letters, resolved_rows(letters, self.account, self.topics, self.database, view))
