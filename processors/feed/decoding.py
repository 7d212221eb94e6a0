"""Decodes a record of a feed: an audit event of this product's schema, or a change event of the CRM's database."""

from collections.abc import Callable
from typing import NamedTuple

from processors.batches import SourceRecord, Undecodable
from processors.feed.change_events import ChangeDecoder, Refused
from schemas.codec import Codec
from schemas.errors import UndecodableRecordError
from schemas.records import AuditEvent, DeadLetter, SnapshotMarker


class PassedOver(NamedTuple):
    """A record that is about no row: a tombstone, a heartbeat, a transaction's marker."""


Decoded = AuditEvent | DeadLetter | Undecodable | Refused | PassedOver


class FeedDecoder:
    """Decodes records of any account."""

    def __init__(self, codec: Codec, changes: ChangeDecoder, named_now: Callable[[AuditEvent], AuditEvent]) -> None:
        """`changes` decodes change events; `named_now` replaces former names of types."""
        self._codec = codec
        self._changes = changes
        self._named_now = named_now

    def decode(self, record: SourceRecord) -> Decoded:
        """Return the decoded record."""
        if record.value is None:
            return PassedOver()
        try:
            ours = self._codec.decode(record.value)
        except UndecodableRecordError:
            what = self._changes.decode(record.key, record.value, getattr(record, "headers", None)) or PassedOver()
            return self._named_now(what) if isinstance(what, AuditEvent) else what
        if isinstance(ours, AuditEvent):
            return self._named_now(ours)
        if isinstance(ours, DeadLetter):
            return ours
        if isinstance(ours, SnapshotMarker):
            return PassedOver()
        return Undecodable(f"a {type(ours).__name__} stands where an AuditEvent belongs")
