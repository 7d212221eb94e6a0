"""The records on the topics, field for field as in the `.avsc` file of the same name, which documents each field.

Named tuples and not frozen dataclasses: they are as immutable, and made in a third of the time on a path where one
microsecond a record is two percent (DECISIONS.md, decision 4). Times are microseconds since 1970-01-01 UTC.
"""

from typing import NamedTuple


class AuditEvent(NamedTuple):
    """One row of `audits`; "" and 0 stand for NULL."""

    audit_id: int
    id_range: int
    created_at: int
    auditable_type: str
    auditable_id: int
    associated_type: str
    associated_id: int
    user_type: str
    user_id: int
    username: str
    action: str
    audited_changes: str
    changes_are_json: bool
    version: int
    comment: str
    request_uuid: str
    company_sso_id: str = ""


class ActivityLog(NamedTuple):
    """A row that became an activity log; `document` is BSON without `_id`."""

    audit_id: int
    id_range: int
    source_offset: int
    run: int
    document: bytes


class SkippedRecord(NamedTuple):
    """A row left out on purpose; `reason` is a `SkipReason`."""

    audit_id: int
    id_range: int
    source_offset: int
    run: int
    reason: str


class DeadLetter(NamedTuple):
    """A record that could not be understood or stored; `cause` is a `DeadLetterCause`."""

    audit_id: int
    id_range: int
    source_topic: str
    source_partition: int
    source_offset: int
    run: int
    cause: str
    detail: str
    key: bytes
    payload: bytes
    failed_at: int


class SnapshotMarker(NamedTuple):
    """First (`begin`) or last (`end`) record of a run on a partition."""

    edge: str
    job_id: str
    source_offset: int
    run: int


class OutcomeBatch(NamedTuple):
    """Outcomes that follow one another on a partition, key and framed value of each; see `Codec.outcomes`."""

    outcomes: tuple[tuple[bytes, bytes], ...]


class Contact(NamedTuple):
    """A CDP contact by CRM person id; `created_at` is its watermark."""

    company_sso_id: str
    crm_person_id: str
    customer_id: str
    created_at: int


class User(NamedTuple):
    """A CRM user."""

    user_id: int
    email: str
    full_name: str
    deleted: bool


class Referent(NamedTuple):
    """What a CRM record is called."""

    referent_type: str
    referent_id: int
    name: str


Record = (
    AuditEvent | ActivityLog | SkippedRecord | DeadLetter | SnapshotMarker | OutcomeBatch | Contact | User | Referent
)
Outcome = ActivityLog | SkippedRecord | DeadLetter
RECORD_TYPES: tuple[type[Record], ...] = (
    AuditEvent,
    ActivityLog,
    SkippedRecord,
    DeadLetter,
    SnapshotMarker,
    OutcomeBatch,
    Contact,
    User,
    Referent,
)
