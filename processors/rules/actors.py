"""Who did it. Pure: four cases, and none of them is a reason to drop a record."""

from collections import Counter
from typing import Any, Protocol

from processors.encoding.bson_parts import elements
from schemas.records import AuditEvent, User
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import ActorKind, FellBack

KNOWN_MAX = 10_000  # users whose elements are kept


class UserLookups(Protocol):
    """What is known of the CRM's users."""

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, soft-deleted or not."""

    def sso_id(self, email: str) -> str | None:
        """Return what the user directory has said; None if it knows no active user of this email, or said nothing."""


class ActorRules:
    """Names actors, by one source mapping."""

    def __init__(self, mapping: SourceMapping) -> None:
        """The two actors that are nobody in particular are made once."""
        self.fell_back: Counter[FellBack] = Counter()  # actors that became the deleted user, by case
        self._user_type = mapping.users.type
        self.deleted_user = {"type": str(ActorKind.DELETED_USER), "id": None, "name": mapping.actors.deleted_user}
        self.system = {"type": str(ActorKind.SYSTEM), "id": None, "name": mapping.actors.system}
        self._user = str(ActorKind.USER)
        self._deleted_user_element = elements({"actor": self.deleted_user})
        self._system_element = elements({"actor": self.system})
        self._known: dict[tuple[str, str], bytes] = {}  # SSO id and name -> element

    def actor(self, event: AuditEvent, lookups: UserLookups) -> dict[str, Any]:
        """Return the actor's part of the document; one that becomes `deleted_user` has fallen back, by a case."""
        user_id = event.user_id
        if not user_id:
            return self._deleted(FellBack.USERNAME_ONLY) if event.username else self.system
        if event.user_type != self._user_type:
            return self._deleted(FellBack.OTHER_TYPE)
        user = lookups.user(user_id)
        if user is None or user.deleted:
            return self._deleted(FellBack.NO_USER if user is None else FellBack.DELETED)
        sso_id = lookups.sso_id(user.email) if user.email else None
        if not sso_id:
            return self._deleted(FellBack.NO_SSO_ID if user.email else FellBack.NO_EMAIL)
        return {"type": self._user, "id": sso_id, "name": user.full_name}

    def _deleted(self, case: FellBack) -> dict[str, Any]:
        self.fell_back[case] += 1
        return self.deleted_user

    def element(self, event: AuditEvent, lookups: UserLookups) -> bytes:
        """Return what `actor` returns, with the actor as the element of a BSON document."""
        actor = self.actor(event, lookups)
        if actor is self.deleted_user:
            return self._deleted_user_element
        if actor is self.system:
            return self._system_element
        key = actor["id"], actor["name"]
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            known = self._known[key] = elements({"actor": actor})
        return known
