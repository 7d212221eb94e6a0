"""Which CDP contact a row belongs to. Pure; persons are tried in order, and another account's contact never matches."""

from collections.abc import Iterable
from typing import Protocol

from schemas.records import Contact


class ContactLookups(Protocol):
    """Look-ups of the account's contacts."""

    def contact(self, person_id: str) -> Contact | None:
        """Return the contact with this CRM person id: by `crm_data.id`, then by `crm_contact_id_map`."""


Resolved = tuple[str, Contact]  # the person id that was tried, and its contact


def resolve(person_ids: Iterable[str], company_sso_id: str, lookups: ContactLookups) -> Resolved | None:
    """Return the first of the persons that is a contact of this account, None if none is.

    The account is compared although lookups are loaded per account: a person id is unique in a CRM only, and a log
    that is written to another tenant's customer cannot be undone.
    """
    for person_id in person_ids:
        contact = lookups.contact(person_id)
        if contact is not None and contact.company_sso_id == company_sso_id:
            return person_id, contact
    return None
