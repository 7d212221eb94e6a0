"""What a row links: ids and names of CRM records for the document's `metadata`. Pure.

`linked_entity_*` is the record that the log is about from the customer's point of view: the row's own record, or, in a
join row, the side that gives the log its category. The other side of a join that is no person is there under its own
column: `crm_company_id`, `crm_company_name`. A name that is not known is left out: the enricher adds it later.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from processors.encoding.bson_parts import elements, integer_writer, text_element
from schemas.records import AuditEvent, Referent
from schemas.source.mapping import SourceMapping

ID_MAX = 2**63 - 1
_linked_entity_id = integer_writer(b"linked_entity_id")


class ReferentLookups(Protocol):
    """What is known of the names of CRM records."""

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return what a CRM record is called."""


class _Side(NamedTuple):
    column: str
    type: str
    id_key: str
    name_key: str


class AssociationRules:
    """Finds what rows link, by one source mapping."""

    def __init__(self, mapping: SourceMapping) -> None:
        """The sides of every join model are put in their order once: the category's first, persons left out."""
        self._person_types = mapping.person.types
        self._has_names = frozenset(mapping.referents)
        self._joins: dict[str, tuple[_Side, ...]] = {}
        categories = {type_name: rule.category for type_name, rule in mapping.categories.items()}
        for type_name, join in mapping.join_models.items():
            sides = [(column, side) for column, side in join.links.items() if side not in self._person_types]
            sides.sort(key=lambda side: categories.get(side[1]) != join.category)
            self._joins[type_name] = tuple(
                _Side(column, side, "linked_entity_id", "linked_entity_name")
                if place == 0
                else _Side(column, side, column, f"{column.removesuffix('_id')}_name")
                for place, (column, side) in enumerate(sides)
            )
        self._type_elements: dict[str, bytes] = {}  # of the types that have come by; a mapping has few

    def columns_of(self, type_name: str) -> frozenset[str]:
        """Return the columns in which rows of a type say what they link."""
        return frozenset(side.column for side in self._joins.get(type_name, ()))

    def linked_elements(self, event: AuditEvent, columns: Mapping[str, Any], lookups: ReferentLookups) -> bytes:
        """Return what `add_linked` would put into `metadata`, as BSON."""
        type_name = event.auditable_type
        if type_name in self._joins:
            metadata: dict[str, Any] = {}
            self.add_linked(metadata, event, columns, lookups)
            return elements(metadata)
        record_id = event.auditable_id
        if not record_id or type_name in self._person_types:
            return b""
        begin = self._type_elements.get(type_name)
        if begin is None:
            begin = self._type_elements[type_name] = text_element(b"linked_entity_type", type_name)
        begin += _linked_entity_id(record_id)
        if type_name in self._has_names:
            referent = lookups.referent(type_name, record_id)
            if referent is not None and referent.name:
                return begin + text_element(b"linked_entity_name", referent.name)
        return begin

    def add_linked(
        self, metadata: dict[str, Any], event: AuditEvent, columns: Mapping[str, Any], lookups: ReferentLookups
    ) -> None:
        """Put type, id and name of what the row links into `metadata`."""
        type_name = event.auditable_type
        if type_name in self._person_types:
            return
        sides = self._joins.get(type_name)
        if sides is None:
            record_id = event.auditable_id
            if not record_id:
                return
            metadata["linked_entity_type"] = type_name
            metadata["linked_entity_id"] = record_id
            if type_name in self._has_names:
                referent = lookups.referent(type_name, record_id)
                if referent is not None and referent.name:
                    metadata["linked_entity_name"] = referent.name
            return
        for side in sides:
            linked_id = record_id_in(columns.get(side.column))
            if linked_id is None:
                continue
            if side.id_key == "linked_entity_id":
                metadata["linked_entity_type"] = side.type
            metadata[side.id_key] = linked_id
            referent = lookups.referent(side.type, linked_id)
            if referent is not None and referent.name:
                metadata[side.name_key] = referent.name


def record_id_in(value: Any) -> int | None:
    """Return the id in a foreign key column: the value, or of a pair the new one, else the old one."""
    if type(value) is list:
        if len(value) != 2:
            return None
        new, old = value[1], value[0]
        return record_id_in(new) if new is not None and type(new) is not list else _scalar_id(old)
    return _scalar_id(value)


def _scalar_id(value: Any) -> int | None:
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= len(str(ID_MAX)):
        value = int(value)
    return value if type(value) is int and 0 < value <= ID_MAX else None
