"""Audit row -> activity log: a decision (`processors.rules.decide`) as a document, or as its bytes. Pure.

`Transformer.transform` gives the document, `to_bson` the same document's bytes in a third of the time: what it is made
of is mostly there as bytes already. Tests hold them equal to the byte.
"""

from copy import copy
from datetime import timedelta
from typing import Any, NamedTuple

from processors.encoding.bson_parts import (
    END,
    LENGTH_BYTES,
    LENGTHS,
    elements,
    integer_element,
    integer_writer,
    length,
    text_element,
)
from processors.encoding.written_changes import Write, Written, writer
from processors.rules.actors import Actor
from processors.rules.associations import ID_KEY, metadata_of
from processors.rules.decide import EPOCH, Lookups, Refused, Rules, Skip
from schemas.identity import EXTERNAL_ID_FORMAT, SOURCE_TAG, external_id_of
from schemas.records import AuditEvent
from schemas.source.mapping import SourceMapping

CUSTOMERS_MAX = 100_000  # whose documents' beginnings are kept, some 200 bytes each
ACTORS_MAX = 10_000  # whose elements are kept
_AROUND = LENGTH_BYTES + len(END)  # what stands around the elements of a document or array
_ARRAY_AT = 2 + LENGTH_BYTES  # where the elements of an array without a name begin: behind type, NUL and length
_crm_person_id, _version = integer_writer(b"crm_person_id"), integer_writer(b"version")
_linked_entity_id = integer_writer(b"linked_entity_id")


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
        self._begins: dict[str, bytes] = {}  # customer -> account and customer, how its documents begin
        self._tag = b"\x00" + (b"" if live else text_element(b"source_tag", SOURCE_TAG)) + b"\x03metadata\x00"
        self._category_elements: dict[tuple[str, str], bytes] = {}  # of every category and action there is
        self._actor_elements: dict[Actor, bytes] = {}
        self._type_elements: dict[str, bytes] = {}  # of the types that have come by; a mapping has few
        self._writers: dict[tuple[str, str], Write] = {}  # of every type and action in scope

    def for_account(self, company_sso_id: str) -> "Transformer":
        """Return the same for another account; rules, counts and what is kept of either are shared."""
        other = copy(self)
        other.rules = self.rules.for_account(company_sso_id)
        other._begins = {}  # noqa: SLF001 - its own class
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

    def to_bson(self, event: AuditEvent, lookups: Lookups) -> bytes | Skip | Refused:
        """Return the document of `transform` as `processors.encoding.documents` encodes it, or why there is none."""
        decided = self.rules.decided(event, lookups, self._written)
        if type(decided) is Skip or type(decided) is Refused:
            return decided
        category, action, person_id, contact, read, actor, links = decided
        if type(read) is Written:
            changes = read.elements
        else:
            found = self.rules.change_rules.changes(event.auditable_type, event.action, read.values)
            changes = elements({"": found})[_ARRAY_AT:-1]
        category_element = self._category_elements.get((category, action))
        if category_element is None:
            category_element = elements({"category": category, "action": action})
            self._category_elements[category, action] = category_element
        actor_element = self._actor_elements.get(actor) or self._actor_element(actor)
        begin = self._begins.get(contact.customer_id) or self._begin_of(contact.customer_id)
        metadata = _crm_person_id(int(person_id))
        for id_key, name_key, type_name, record_id, name in links:
            if id_key == ID_KEY:
                metadata += self._type_elements.get(type_name) or self._type_element(type_name)
                metadata += _linked_entity_id(record_id)
            else:
                metadata += integer_element(id_key.encode(), record_id)
            if name:
                metadata += text_element(name_key.encode(), name)
        if request_uuid := event.request_uuid:
            metadata += text_element(b"request_id", request_uuid)
        if event.version:
            metadata += _version(event.version)
        external_id = EXTERNAL_ID_FORMAT % event.audit_id
        changes_size, metadata_size = length(len(changes) + _AROUND), length(len(metadata) + _AROUND)
        body = b"".join(
            (
                begin, category_element, actor_element,
                b"\x04changes\x00", changes_size, changes,
                b"\x00\x09timestamp\x00", (event.created_at // 1000).to_bytes(8, "little", signed=True),
                b"\x02external_id\x00", LENGTHS[len(external_id) + 1], external_id,
                self._tag, metadata_size, metadata,
                b"\x00\x00",
            )
        )  # fmt: skip
        return length(len(body) + LENGTH_BYTES) + body

    def _begin_of(self, customer_id: str) -> bytes:
        """Return how the documents of a customer begin, and remember it."""
        if len(self._begins) >= CUSTOMERS_MAX:
            self._begins.clear()
        begin = text_element(b"company_sso_id", self.rules.company_sso_id) + text_element(b"customer_id", customer_id)
        self._begins[customer_id] = begin
        return begin

    def _actor_element(self, actor: Actor) -> bytes:
        """Return the element of an actor, and remember it."""
        if len(self._actor_elements) >= ACTORS_MAX:
            self._actor_elements.clear()
        element = self._actor_elements[actor] = elements({"actor": _actor(actor)})
        return element

    def _type_element(self, type_name: str) -> bytes:
        """Return the element of a linked record's type, and remember it."""
        element = self._type_elements[type_name] = text_element(b"linked_entity_type", type_name)
        return element

    def _written(self, event: AuditEvent) -> Written | None:
        """Return the row's changes as they are written in its document; None: their form is not a frequent one."""
        text = event.audited_changes
        if text[:3] != "---" or event.changes_are_json:
            return None
        return (self._writers.get((event.auditable_type, event.action)) or self._writer(event))(text)

    def _writer(self, event: AuditEvent) -> Write:
        key = event.auditable_type, event.action
        write = self._writers[key] = writer(self.rules.change_rules, *key, self.rules.deciding_columns(*key))
        return write


def _actor(actor: Actor) -> dict[str, Any]:
    kind, sso_id, name = actor
    return {"type": kind, "id": sso_id, "name": name}
