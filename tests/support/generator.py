"""The rows of a generated CRM, read back from what COPY would load."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ops.local.generator.history import History, Plan
from ops.local.generator.plain import PlainHistory
from schemas.records import AuditEvent
from tests.support.factories import event

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Audit:
    """A generated row, its fields as PostgreSQL will have them."""

    id: int
    auditable_id: int
    auditable_type: str
    associated_id: int | None
    associated_type: str | None
    user_id: int | None
    user_type: str | None
    username: str | None
    action: str
    changes: str | None
    version: int
    comment: str | None
    remote_address: str | None
    request_uuid: str
    created_at: str
    account_id: int

    @classmethod
    def of(cls, line: str) -> "Audit":
        f = [None if x == "\\N" else re.sub(r"\\(.)", lambda m: ESCAPES[m[1]], x) for x in line.split("\t")]
        numbers = {0, 1, 3, 5, 10, 15}
        return cls(*(int(x) if i in numbers and x is not None else x for i, x in enumerate(f)))  # type: ignore[arg-type]

    @property
    def event(self) -> AuditEvent:
        """Return the row as the producer publishes it."""
        created_at = datetime.fromisoformat(f"{self.created_at}+00:00")
        return event(
            audit_id=self.id,
            created_at=(created_at - EPOCH) // timedelta(microseconds=1),
            auditable_type=self.auditable_type,
            auditable_id=self.auditable_id,
            associated_type=self.associated_type or "",
            associated_id=self.associated_id or 0,
            user_type=self.user_type or "",
            user_id=self.user_id or 0,
            username=self.username or "",
            action=self.action,
            audited_changes=self.changes or "",
            version=self.version,
            comment=self.comment or "",
            request_uuid=self.request_uuid,
        )

    @property
    def record(self) -> tuple[str, int]:
        return self.auditable_type, self.auditable_id


def audits(history: History | PlainHistory) -> Iterator[Audit]:
    """Yield the rows of a generated CRM."""
    for text, rows in history.chunks():
        lines = text.decode().split("\n")
        assert lines.pop() == ""
        assert len(lines) == rows
        yield from map(Audit.of, lines)


def digest(plan: Plan) -> str:
    made = PlainHistory(plan) if plan.shape == "peer" else History(plan)
    sha = hashlib.sha256()
    for text, _ in made.chunks():
        sha.update(text)
    return sha.hexdigest()
