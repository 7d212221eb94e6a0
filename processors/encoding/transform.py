"""Audit row -> activity log: a decision (`processors.rules.decide`) as a document, the plain way. Pure.

This is the reference: `processors.encoding.core` writes this document as `processors.encoding.documents` encodes it.
"""

from copy import copy
from datetime import timedelta
from typing import Any, NamedTuple

from processors.rules.actors import Actor
from processors.rules.associations import metadata_of
from processors.rules.decide import EPOCH, Lookups, Refused, Rules, Skip
from schemas.identity import SOURCE_TAG, external_id_of
from schemas.records import AuditEvent
from schemas.source.mapping import SourceMapping


class Transformed(NamedTuple):
    """The activity log a row became: ready for BSON (`processors.encoding.documents`), without `_id`."""

    document: dict[str, Any]


class Transformer:
    """Renders one account's decisions; replay and live feed differ in the side of the watermark and in `source_tag`."""

    def __init__(self, mapping: SourceMapping, company_sso_id: str, *, live: bool = False) -> None:
        """`mapping` says what the CRM's types and columns mean."""
        self.rules = Rules(mapping, company_sso_id, live=live)
        self.counts = self.rules.counts
        self._live = live

    def for_account(self, company_sso_id: str) -> "Transformer":
        """Return a transformer for another account; rules and counts are shared."""
        other = copy(self)
        other.rules = self.rules.for_account(company_sso_id)
        return other

    def is_mapped(self, event: AuditEvent) -> bool:
        """Return whether the row's type and action have a category; the others need no look-up."""
        return self.rules.is_mapped(event)

    def transform(self, event: AuditEvent, lookups: Lookups) -> Transformed | Skip | Refused:
        """Return the activity log that the row becomes, or why it becomes none."""
        decision = self.rules.decide(event, lookups)
        if isinstance(decision, Skip | Refused):
            return decision
        metadata = {"crm_person_id": int(decision.person_id), **metadata_of(decision.links)}
        if event.request_uuid:
            metadata["request_id"] = event.request_uuid
        if event.version:
            metadata["version"] = event.version
        document: dict[str, Any] = {
            "company_sso_id": self.rules.company_sso_id,
            "customer_id": decision.contact.customer_id,
            "category": decision.category,
            "action": decision.action,
            "actor": _actor(decision.actor),
            "changes": self.rules.change_rules.changes(event.auditable_type, event.action, decision.changes.values),
            "timestamp": EPOCH + timedelta(milliseconds=event.created_at // 1000),
            "external_id": external_id_of(event.audit_id),
            "source_tag": SOURCE_TAG,
            "metadata": metadata,
        }
        if self._live:
            del document["source_tag"]
        return Transformed(document)


def _actor(actor: Actor) -> dict[str, Any]:
    kind, sso_id, name = actor
    return {"type": kind, "id": sso_id, "name": name}
