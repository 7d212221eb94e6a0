"""What the rules look up, from dictionaries, and the row that most tests of rules change."""

from schemas.records import Contact, Referent, User
from tests.support.factories import event

WATERMARK = 1_700_000_000_000_000


BEFORE = WATERMARK - 1


class Nothing:
    """Nothing is found."""

    def contact(self, person_id: str) -> Contact | None:
        return None

    def user(self, user_id: int) -> User | None:
        return None

    def sso_id(self, email: str) -> str | None:
        return None

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        return None


class Lookups(Nothing):
    """Persons 1 to 9 are contacts of account A; users 1 to 9 are active."""

    def __init__(self, account: str = "A", watermark: int = WATERMARK) -> None:
        self._account = account
        self._watermark = watermark

    def contact(self, person_id: str) -> Contact | None:
        if len(person_id) > 1:
            return None
        return Contact(self._account, person_id, f"{self._account}-{person_id}", self._watermark)

    def user(self, user_id: int) -> User | None:
        return User(user_id, f"u{user_id}@example.com", f"User {user_id}", False) if user_id < 10 else None

    def sso_id(self, email: str) -> str | None:
        return f"sso-{email}" if not email.startswith("u9") else None

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        return Referent(referent_type, referent_id, "Renewal") if referent_id == 7 else None


class Anyone(Lookups):
    """Every person is a contact, synced after every row."""

    def contact(self, person_id: str) -> Contact | None:
        return Contact("A", person_id, f"contact-{person_id}", 2**62)


ROW = event(
    audit_id=42,
    created_at=BEFORE,
    comment='{"crm_person_id":1}',
    audited_changes="---\ncrm_stage_id:\n- 31\n- 39\n",
    user_type="User",
    user_id=3,
    request_uuid="r-1",
    version=5,
)
