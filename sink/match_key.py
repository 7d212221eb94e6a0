"""Pure: which document an association row enriches, with which fields, and which conflicts prevent it.

A document is found by its external_id; a live feed's without one by the match key: customer, category, action, linked
record, and a time within a window around the row's. The account is part of every query.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

LINKED_ID = "linked_entity_id"  # in metadata: part of the match key
DELETED_REFERENCE = "[Deleted reference]"  # the name of a record that the CRM no longer has


class Outcome(StrEnum):
    """The outcome of an association row, exactly one each. Stored and graphed: add values, never rename one."""

    PATCHED = "patched"  # metadata was missing and has been added
    COMPLETE = "complete"  # nothing was missing
    ENRICH_AMBIGUOUS = "enrich_ambiguous"  # several documents match the row, or several rows the document
    CONFLICT = "conflict"  # the document has another action, record or person
    REFUSED = "refused"  # MongoDB refused the patch
    NO_DOCUMENT = "no_document"  # neither by external_id nor by match key
    NO_CONTACT = "no_contact"  # the row has no contact, so it has no log
    UNREADABLE = "unreadable"  # the row cannot be decoded


class Association(NamedTuple):
    """The fields of an association row that concern its log."""

    audit_id: int
    external_id: str
    customer_id: str
    category: str
    action: str
    timestamp_ms: int  # since 1970 UTC
    ids: Mapping[str, Any]  # identifying metadata: a value in the document has to agree
    texts: Mapping[str, str]  # types and names: a value in the document is kept


class MatchKey(NamedTuple):
    """The fields that a live log without external_id shares with its row, besides account and time."""

    customer_id: str
    category: str
    action: str
    linked_id: int | str


def match_key(association: Association) -> MatchKey | None:
    """Return the row's match key; None if it lacks the linked record."""
    linked_id = same_form(association.ids.get(LINKED_ID))
    if linked_id is None:
        return None
    return MatchKey(association.customer_id, association.category, association.action, linked_id)


def key_of(document: Mapping[str, Any]) -> MatchKey | None:
    """Return a document's match key; None if it lacks a part."""
    metadata = document.get("metadata")
    linked_id = same_form(metadata.get(LINKED_ID)) if isinstance(metadata, Mapping) else None
    customer_id, category, action = (document.get(name) for name in ("customer_id", "category", "action"))
    if linked_id is None or type(customer_id) is not str or type(category) is not str or type(action) is not str:
        return None
    return MatchKey(customer_id, category, action, linked_id)


def same_form(value: Any) -> int | str | None:
    """Return an id in the canonical form for comparisons; None for a value that is no id."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text or None
    return str(value)


def candidates(
    association: Association, by_key: Mapping[MatchKey, Sequence[tuple[int, Any]]], window_ms: int
) -> list[Any]:
    """Return the documents that match the row, from (time in ms, document) by key: same key, within the window."""
    key = match_key(association)
    if key is None:
        return []
    return [document for at_ms, document in by_key.get(key, ()) if abs(at_ms - association.timestamp_ms) <= window_ms]


def missing(association: Association, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metadata that the document lacks, by key; None if the document contradicts the row.

    Existing values stay; a null is an existing value that contradicts nothing.
    """
    if (document.get("category"), document.get("action")) != (association.category, association.action):
        return None
    metadata = document.get("metadata", {})
    if not isinstance(metadata, Mapping):
        return None
    for key, value in association.ids.items():
        present = metadata.get(key)
        if present is not None and same_form(present) != same_form(value):
            return None
    wanted = {**association.ids, **association.texts}
    return {key: value for key, value in wanted.items() if key not in metadata}


def agree(claims: Iterable[Association]) -> bool:
    """Return whether several rows that found one document would add the same to it."""
    merged: dict[str, Any] = {}
    return all(
        merged.setdefault(key, value) == value
        for claim in claims
        for key, value in {**claim.ids, **claim.texts}.items()
    )
