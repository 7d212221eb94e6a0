"""Activity logs that come by HTTP, a few at a time: their model, and writing them as the sink does.

They are the replay's documents from another source: same shape, same unique index, same `source_tag`, so that a roll
back removes them and a verification recognises them by their `external_id`. Repeating a request inserts nothing. Each
call is in the audit log, an entry an account (ops.jobs.http_documents).
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pymongo.errors import PyMongoError

from ops.jobs import http_documents
from processors.encoding.documents import encode, is_too_large
from schemas.collections import ACTIVITY_LOGS
from schemas.errors import BadInputError
from schemas.identity import AUDIT_ID_MAX, EXTERNAL_ID_PREFIX, SOURCE_TAG, audit_id_of
from schemas.process.mongodb import Database
from schemas.topics import ACCOUNT_LENGTH_MAX, encode_account
from schemas.vocabulary import SkipReason
from sink.documents import is_sound
from sink.writer import write_batch

RECORDS_MAX = 20
CHANGES_MAX = 2_000
TEXT_LENGTH_MAX = 1_000
NESTING_MAX = 100  # levels of a value; MongoDB stores 180 of the whole document
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FAR = dt.datetime(9999, 12, 30, tzinfo=dt.UTC)  # a time zone away from where Python's times end

# Control characters are in no id. `schemas.topics` leaves out a few more; those find no document.
AccountId = Annotated[
    str, Field(min_length=1, max_length=ACCOUNT_LENGTH_MAX, pattern=r"^[^\x00-\x1f\x7f]+$", description="the tenant")
]


def _can_be_replayed(value: str) -> str:
    """Return the account's id; raises ValueError for one that no command accepts: it could not be rolled back."""
    try:
        encode_account(value)
    except BadInputError as error:
        raise ValueError(error.to_do) from None
    return value


Text = Annotated[str, Field(max_length=TEXT_LENGTH_MAX)]
Name = Annotated[str, Field(min_length=1, max_length=TEXT_LENGTH_MAX)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


def _text_only(value: object) -> object:
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:  # digits alone would be seconds since 1970
        raise ValueError("a time is text as in RFC 3339, with its time zone: 2024-05-31T17:30:00Z")
    return value


def _bounded(value: dt.datetime) -> dt.datetime:
    """Return the time in UTC, moved to the nearest that every store of ours can hold."""
    if value.tzinfo is None:
        raise ValueError("a time needs its time zone: 2024-05-31T17:30:00Z")
    try:
        return min(value.astimezone(dt.UTC), FAR)
    except OverflowError:
        return FAR if value.year > EPOCH.year else dt.datetime.min.replace(tzinfo=dt.UTC)


Moment = Annotated[
    dt.datetime,
    BeforeValidator(_text_only),
    AfterValidator(_bounded),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _shallow(value: Any) -> Any:
    """Return the value; raises ValueError for one nested too deep to store, or with numbers that JSON has not."""
    level = [value]
    for _ in range(NESTING_MAX):
        if any(isinstance(one, float) and (one != one or one in (float("inf"), float("-inf"))) for one in level):
            raise ValueError("NaN and infinity are no JSON")
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {NESTING_MAX} levels")


def _audit_id(value: str) -> str:
    if audit_id_of(value) is None:
        raise ValueError(f"{EXTERNAL_ID_PREFIX}<id of the row in audits>, at most {AUDIT_ID_MAX}")
    return value


JsonValue = Annotated[Any, AfterValidator(_shallow)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=False)


class UserActor(_Part):
    """A user of the CRM who is known to the user directory."""

    type: Literal["user"]
    id: Name = Field(description="SSO id")
    name: Text


class OtherActor(_Part):
    """The system, or a deleted user."""

    type: Literal["deleted_user", "system"]
    id: None = None
    name: Text


class Change(_Part):
    """One column: former and new value; `null` where there was none."""

    field: Name
    label: Text
    from_: JsonValue = Field(alias="from")
    to: JsonValue


class ActivityLogRecord(_Part):
    """An activity log as it is stored."""

    company_sso_id: Annotated[AccountId, AfterValidator(_can_be_replayed)]
    customer_id: Name = Field(description="the caller vouches for its being a customer of the account")
    category: Word = Field(description="contact, company, deal, task, ticket, note, or one of the source mapping's own")
    action: Word = Field(description="create, update, delete, link, unlink, won, completed, resolved, or its own")
    actor: Annotated[UserActor | OtherActor, Field(discriminator="type")]
    changes: list[Change] = Field(max_length=CHANGES_MAX)
    timestamp: Moment = Field(description="stored with milliseconds")
    external_id: Annotated[str, AfterValidator(_audit_id)] = Field(
        pattern=rf"^{EXTERNAL_ID_PREFIX}[1-9][0-9]{{0,17}}$",
        description=f"{EXTERNAL_ID_PREFIX}<audits.id>; decides what is a duplicate",
    )
    source_tag: Literal["crm_migration"] = Field(SOURCE_TAG, description="set, whether it is sent or not")
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="left out of the document when empty")


class MigrateRequest(_Part):
    """Up to 20 activity logs, of any accounts."""

    records: list[ActivityLogRecord] = Field(max_length=RECORDS_MAX)


class ResultStatus(StrEnum):
    """What became of a record."""

    INSERTED = "inserted"
    SKIPPED = "skipped"
    FAILED = "failed"


class RecordResult(BaseModel):
    """What became of one record."""

    external_id: str
    status: ResultStatus
    reason: str | None = Field(None, description="of a skip or a failure; null when inserted")


class MigrateAnswer(BaseModel):
    """Every record is in exactly one of the three, and in `results` in the order in which it was sent."""

    inserted: int
    skipped: int
    failed: int
    results: list[RecordResult]


def document_of(record: ActivityLogRecord) -> dict[str, Any]:
    """Return the document as it is stored, `_id` in front; fields in the processors' order."""
    moment = record.timestamp
    document: dict[str, Any] = {
        "_id": http_documents.new_id(record.company_sso_id),
        "company_sso_id": record.company_sso_id,
        "customer_id": record.customer_id,
        "category": record.category,
        "action": record.action,
        "actor": {"type": record.actor.type, "id": record.actor.id, "name": record.actor.name},
        "changes": [
            {"field": change.field, "label": change.label, "from": change.from_, "to": change.to}
            for change in record.changes
        ],
        "timestamp": moment.replace(microsecond=moment.microsecond // 1000 * 1000),
        "external_id": record.external_id,
        "source_tag": SOURCE_TAG,
    }
    if record.metadata:
        document["metadata"] = record.metadata
    return document


def write(
    database: Database, records: Sequence[ActivityLogRecord], *, by: str = "", request_id: str = ""
) -> MigrateAnswer:
    """Insert what is new in one unordered bulk write. Safe to repeat: existing documents are skipped.

    The audit log has who sent them, also where the answer is unknown: then pymongo's errors or the writer's
    NotAnsweredError are raised, and they are to be sent again.
    """
    sent = Counter(record.company_sso_id for record in records)
    try:
        answer = _write(database, records)
    except Exception as error:
        with suppress(PyMongoError):
            unknown = {account: {"records": count} for account, count in sent.items()}
            http_documents.note(database, unknown, who=by, request_id=request_id, outcome=type(error).__name__)
        raise
    counts = {account: {status.value: 0 for status in ResultStatus} for account in sent}
    for record, result in zip(records, answer.results, strict=True):
        counts[record.company_sso_id][result.status.value] += 1
    http_documents.note(database, counts, who=by, request_id=request_id)
    return answer


def _write(database: Database, records: Sequence[ActivityLogRecord]) -> MigrateAnswer:
    encoded = [encode(document_of(record)) for record in records]
    # The writer takes only what a server can hold; the body's limit makes the first a rarity.
    unfit = {at for at, document in enumerate(encoded) if is_too_large(document) or not is_sound(document)}
    fit = [at for at in range(len(encoded)) if at not in unfit]
    outcome = write_batch(database[ACTIVITY_LOGS], [encoded[at] for at in fit])
    results: list[RecordResult | None] = [None] * len(records)
    for at in unfit:
        results[at] = RecordResult(
            external_id=records[at].external_id, status=ResultStatus.FAILED, reason="document_too_large"
        )
    for place, at in enumerate(fit):
        external_id = records[at].external_id
        if place in outcome.duplicates:
            status, reason = ResultStatus.SKIPPED, str(SkipReason.DUPLICATE_EXTERNAL_ID)
        elif place in outcome.failed:
            status, reason = ResultStatus.FAILED, f"write_refused: {outcome.failed[place]}"
        else:  # inserted, or by this very request: its connection broke, and the driver sent it again
            results[at] = RecordResult(external_id=external_id, status=ResultStatus.INSERTED)
            continue
        results[at] = RecordResult(external_id=external_id, status=status, reason=reason)
    whole = [result for result in results if result is not None]
    counted = {status: sum(1 for result in whole if result.status is status) for status in ResultStatus}
    return MigrateAnswer(
        inserted=counted[ResultStatus.INSERTED],
        skipped=counted[ResultStatus.SKIPPED],
        failed=counted[ResultStatus.FAILED],
        results=whole,
    )
