"""Rows of reference tables, as their topics carry them."""

from processors.lookups.tables import TableRows
from schemas.codec import Codec
from schemas.records import Contact, Referent, User

CODEC = Codec()
ACCOUNT = "account-1"


def contact(person_id: int, **changes: str) -> Contact:
    return Contact(ACCOUNT, str(person_id), f"customer-{person_id}", 1000)._replace(**changes)  # type: ignore[arg-type]


def reference_rows() -> dict[str, TableRows]:
    users = [User(1, "a@example.com", "Ann", False), User(2, "b@example.com", "Bob", True), User(3, "", "Cleo", False)]
    return {
        "contacts": {str(n).encode(): CODEC.encode(contact(n)) for n in range(1, 4)},
        "users": {str(user.user_id).encode(): CODEC.encode(user) for user in users},
        "referents": {b"Crm::Deal:7": CODEC.encode(Referent("Crm::Deal", 7, "Renewal"))},
    }
