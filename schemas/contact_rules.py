"""How a CDP contact is read: its CRM person id, its watermark, and which one counts where several claim one. Pure.

The replay reads an account's contacts whole, the live feed one by one. Both must come to the same watermark, or a row
at the seam between them would have two owners, or none.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Watermarked = tuple[int, str]  # created_at in microseconds since 1970, customer_id


def person_key(value: Any) -> str | None:
    """Return a CRM person id, which may be stored as a number or as text, as the record key has it."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    text = str(value).strip() if value is not None else ""
    if text.isascii() and text.isdigit():
        text = text.lstrip("0")
    return text or None


def microseconds(value: Any) -> int | None:
    """Return a stored date in microseconds since 1970, ISO 8601 text included; None for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def person_of(contact: Mapping[str, Any]) -> str | None:
    """Return the CRM person id that a contact carries."""
    crm_data = contact.get("crm_data")
    return person_key(crm_data.get("id")) if isinstance(crm_data, dict) else None


def customer_of(contact: Mapping[str, Any]) -> str:
    """Return the id by which activity logs name the contact."""
    customer_id = contact.get("customer_id")
    return str(contact["_id"] if customer_id is None or customer_id == "" else customer_id)


def first_synced(one: Watermarked | None, other: Watermarked) -> Watermarked:
    """Return which of two contacts of one CRM person counts: the older one, then the smaller customer_id.

    Its watermark leaves the most to the live feed, which has written since.
    """
    return other if one is None else min(one, other)
