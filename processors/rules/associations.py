"""What a row links: ids and names of CRM records for the document's `metadata`. Pure.

`linked_entity_*` is the record that the log is about from the customer's point of view: the row's own record, or, in a
join row, the side that gives the log its category. The other side of a join, unless a person, is stored under its own
column: `crm_company_id`, `crm_company_name`. An unknown name is left out: the enricher adds it later.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from schemas.records import AuditEvent, Referent
from schemas.source.mapping import SourceMapping

ID_MAX = 2**63 - 1
TYPE_KEY, ID_KEY, NAME_KEY = "linked_entity_type", "linked_entity_id", "linked_entity_name"


class ReferentLookups(Protocol):
    """Look-ups of the names of CRM records."""

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return the name of a CRM record."""


# A CRM record that a log links: under which keys id and name stand in `metadata`, its type, id, and name ("": not
# known). Only the record that the log is about, under ID_KEY, is there with its type.
Link = tuple[str, str, str, int, str]


class _Side(NamedTuple):
    column: str
    type_name: str
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
                _Side(column, side, ID_KEY, NAME_KEY)
                if place == 0
                else _Side(column, side, column, f"{column.removesuffix('_id')}_name")
                for place, (column, side) in enumerate(sides)
            )

    def is_join(self, type_name: str) -> bool:
        """Return whether rows of a type link records by their columns."""
        return type_name in self._joins and type_name not in self._person_types

    def links_itself(self, type_name: str) -> bool:
        """Return whether a row of a type links the record that it is about."""
        return type_name not in self._joins and type_name not in self._person_types

    def has_name(self, type_name: str) -> bool:
        """Return whether records of a type have names to look up."""
        return type_name in self._has_names

    def columns_of(self, type_name: str) -> frozenset[str]:
        """Return the columns in which rows of a type say what they link."""
        return frozenset(side.column for side in self._joins.get(type_name, ()))

    def links(self, event: AuditEvent, columns: Mapping[str, Any], lookups: ReferentLookups) -> tuple[Link, ...]:
        """Return what the row links, the record that its log is about first; `columns` has at least `columns_of`."""
        type_name = event.auditable_type
        if type_name in self._person_types:
            return ()
        sides = self._joins.get(type_name)
        if sides is None:
            record_id = event.auditable_id
            if not record_id:
                return ()
            name = ""
            if type_name in self._has_names:
                referent = lookups.referent(type_name, record_id)
                if referent is not None:
                    name = referent.name
            return ((ID_KEY, NAME_KEY, type_name, record_id, name),)
        links: list[Link] = []
        for column, side_type, id_key, name_key in sides:
            linked_id = record_id_in(columns.get(column))
            if linked_id is not None:
                referent = lookups.referent(side_type, linked_id)
                links.append((id_key, name_key, side_type, linked_id, referent.name if referent is not None else ""))
        return tuple(links)


def metadata_of(links: Iterable[Link]) -> dict[str, Any]:
    """Return the links as a log's `metadata` has them."""
    metadata: dict[str, Any] = {}
    for id_key, name_key, type_name, record_id, name in links:
        if id_key == ID_KEY:
            metadata[TYPE_KEY] = type_name
        metadata[id_key] = record_id
        if name:
            metadata[name_key] = name
    return metadata


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
