"""How a CDP contact is read: its CRM person id, its watermark, and which one counts of several with one id. Pure.

The replay reads an account's contacts whole, the live feed and the contact guard query them by CRM person id. All must
find the same contact and watermark, or a row between replay and live feed would have two owners, or none.
So an id counts in exactly the forms that a query can name (decision 52): a number of any type by its value, and text
that is the number's digits and nothing else.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128

from schemas.source.person import PERSON_ID_MAX

Watermarked = tuple[int, str]  # created_at in microseconds since 1970, customer_id
CONTACT_FIELDS = {"company_sso_id": 1, "crm_data.id": 1, "created_at": 1, "customer_id": 1}
MAP_FIELDS = {"company_sso_id": 1, "crm_person_id": 1, "customer_id": 1}
MICROSECONDS_MAX = 2**63 - 1  # what a reference table holds; a date beyond is as good as this
_DIGITS = re.compile(r"[1-9][0-9]{0,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")


def person_key(value: Any) -> str | None:
    """Return a stored CRM person id as the record key has it; None for what is none, in whatever form it is.

    5, 5.0, Decimal128("5.0") and "5" are one person. " 5 ", "05", "+5", "5.0" and True are none: no index finds them.
    """
    if isinstance(value, str):
        return value if _DIGITS.fullmatch(value) is not None and int(value) <= PERSON_ID_MAX else None
    if isinstance(value, Decimal128):
        value = value.to_decimal()
        if not value.is_finite():
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if 0 < value <= PERSON_ID_MAX and value == int(value) else None


def spellings(person_id: str) -> list[Any]:
    """Return what to compare a stored id with to find every form of a CRM person id: MongoDB compares numbers by value.

    Whatever `person_key` takes for this person equals one of them.
    """
    return [int(person_id), person_id] if _DIGITS.fullmatch(person_id) is not None else [person_id]


def microseconds(value: Any) -> int | None:
    """Return a stored date in microseconds since 1970, ISO 8601 text included; None for anything else.

    A date that Python has no year for is one like any other; beyond what 64 bits hold, the last that they do.
    """
    if isinstance(value, DatetimeMS):
        return max(-MICROSECONDS_MAX, min(int(value) * 1000, MICROSECONDS_MAX))
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


def has_odd_person(contact: Mapping[str, Any]) -> bool:
    """Return whether a contact carries something as its CRM person id that `person_key` takes for none."""
    crm_data = contact.get("crm_data")
    value = crm_data.get("id") if isinstance(crm_data, dict) else crm_data
    return value is not None and value != "" and person_key(value) is None


def customer_of(contact: Mapping[str, Any]) -> str:
    """Return the id by which activity logs name the contact."""
    customer_id = contact.get("customer_id")
    return str(contact["_id"] if customer_id is None or customer_id == "" else customer_id)


def customer_key(value: Any) -> str | None:
    """Return the customer that an entry of the id map names; None if it names none."""
    return None if value is None or isinstance(value, dict | list) else str(value)


def customer_forms(customer: str) -> list[Any]:
    """Return the values that `customer_of` makes this text of, as far as a query can name them."""
    forms: list[Any] = [customer]
    if ObjectId.is_valid(customer):
        forms.append(ObjectId(customer))
    if (number := _NUMBER.fullmatch(customer)) is not None:
        forms.append(float(customer) if number[1] else int(customer))
    return forms


def first_synced(one: Watermarked | None, other: Watermarked) -> Watermarked:
    """Return which of two contacts of one CRM person counts: the older one, then the smaller customer_id.

    Its watermark leaves the most to the live feed, which has written since.
    """
    return other if one is None else min(one, other)


def first_mapped(customers: Iterable[str], created_at: Mapping[str, int]) -> Watermarked | None:
    """Return which customer counts of those that the id map has for one CRM person: by the same rule.

    `created_at` has the customers that are contacts of the account, in microseconds. None: none of them is.
    """
    return min(((created_at[customer], customer) for customer in customers if customer in created_at), default=None)
