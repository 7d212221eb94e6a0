"""Pure: whether a record is about a person, and the certificate of what was found and removed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import bson
from bson.codec_options import CodecOptions

from ops.jobs.letters import payload_of
from schemas.avro import varint
from schemas.codec import Codec
from schemas.errors import BadInputError, UndecodableRecordError, UnknownSchemaError
from schemas.records import ActivityLog, AuditEvent, Contact, DeadLetter, Record, Referent
from schemas.source.mapping import PersonRule
from schemas.source.person import PERSON_ID_MAX, person_candidates

INT32_MAX = 2**31 - 1
TOLERANT: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, unicode_decode_error_handler="replace")


@dataclass(frozen=True, slots=True)
class Person:
    """A CRM person of one account."""

    company_sso_id: str
    person_id: str
    rule: PersonRule
    needles: tuple[bytes, ...]  # without one of them, no record can name the person in any of its forms

    @classmethod
    def of(cls, company_sso_id: str, person_id: str, rule: PersonRule) -> "Person":
        """Raise BadInputError for what is no CRM person id."""
        text = person_id.strip()
        if not (text.isascii() and text.isdigit() and 0 < int(text) <= PERSON_ID_MAX):
            raise BadInputError(f"{person_id[:40]!r} is no CRM person id", f"give one number, 1 to {PERSON_ID_MAX}")
        number = int(text)
        needles = [str(number).encode(), varint(number), number.to_bytes(8, "little")]
        if number <= INT32_MAX:
            needles.append(number.to_bytes(4, "little"))
        return cls(company_sso_id, str(number), rule, tuple(needles))

    @property
    def referent_keys(self) -> frozenset[bytes]:
        """The possible keys of the person's name among the referents."""
        return frozenset(f"{type_name}:{self.person_id}".encode() for type_name in self.rule.types)


def is_about(person: Person, key: bytes | None, value: bytes, codec: Codec) -> bool:
    """Return whether a record of one of the account's topics is about the person, or names them as one of its own.

    Raises UnknownSchemaError for one that may be, and whose schema cannot be looked up.
    """
    if key == person.person_id.encode() or key in person.referent_keys:
        return True
    if not any(needle in value for needle in person.needles):
        return False
    try:
        return _names(person, codec.decode(value), codec)
    except UnknownSchemaError:
        raise
    except UndecodableRecordError:
        return False


def _names(person: Person, record: Record, codec: Codec) -> bool:
    if isinstance(record, AuditEvent):
        ours = record.company_sso_id in ("", person.company_sso_id)
        return ours and person.person_id in person_candidates(record, person.rule)
    if isinstance(record, ActivityLog):
        try:
            metadata = bson.decode(record.document, TOLERANT).get("metadata")
        except bson.errors.BSONError:
            return False
        return isinstance(metadata, dict) and str(metadata.get("crm_person_id")) == person.person_id
    if isinstance(record, DeadLetter):
        try:
            return is_about(person, record.key, record.payload, codec) if record.payload else False
        except UnknownSchemaError:
            return False  # a payload can be any bytes
    if isinstance(record, Contact):
        return record.crm_person_id == person.person_id
    if isinstance(record, Referent):
        return record.referent_type in person.rule.types and str(record.referent_id) == person.person_id
    return False


def shown_record(
    topic: str, partition: int, offset: int, key: bytes | None, value: bytes, codec: Codec
) -> dict[str, Any]:
    """Return a record as a line of the export."""
    name = key.decode("utf-8", "replace") if key is not None else None
    record = payload_of(value, codec)
    if record.get("kind") == "DeadLetter":
        letter = codec.decode_as(DeadLetter, value)
        record["fields"]["payload"] = payload_of(letter.payload, codec)
    return {
        "kind": "topic_record",
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "key": name,
        "record": record,
    }


@dataclass(slots=True)
class Kept:
    """A person's data in one place that cannot be cleared at once, and when they will be deleted."""

    where: str
    count: int
    why: str
    gone_by: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        gone = self.gone_by.isoformat() if self.gone_by else None
        return {"where": self.where, "count": self.count, "why": self.why, "gone_by": gone}


@dataclass(slots=True)
class Certificate:
    """What was found of a person and what was removed. Holds ids and counts, and no other value of the person's."""

    company_sso_id: str
    person_id: str
    at: datetime
    by: str
    found: dict[str, Any] = field(default_factory=dict)
    removed: dict[str, Any] = field(default_factory=dict)
    left: list[Kept] = field(default_factory=list)
    still_in: dict[str, int] = field(default_factory=dict)  # where the replay takes it from: it would come back
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether no data are left that only time removes, and none from which they would be restored."""
        return not self.left and not any(self.still_in.values())

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "certificate": "crm-replay subject purge",
            "company_sso_id": self.company_sso_id,
            "crm_person_id": self.person_id,
            "at": self.at.isoformat(),
            "by": self.by,
            "found": self.found,
            "removed": self.removed,
            "left": [kept.as_dict() for kept in self.left],
            "still_in": self.still_in,
            "complete": self.complete,
            "notes": self.notes,
        }


def gone_by(config: Mapping[str, str], newest_at: datetime) -> datetime | None:
    """Return when a topic has deleted a record that old at the latest; None if it keeps records indefinitely."""
    from datetime import timedelta

    kept_ms, segment_ms = int(config.get("retention.ms", -1)), int(config.get("segment.ms", 0))
    if kept_ms < 0 or "delete" not in config.get("cleanup.policy", "delete"):
        return None
    # A segment is deleted as a whole, and not before it has been closed.
    return newest_at + timedelta(milliseconds=kept_ms + segment_ms)
