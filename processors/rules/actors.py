"""Names the actor of a row. Pure: four cases, none of which drops a record."""

from collections import Counter
from typing import Protocol

from schemas.records import AuditEvent, User
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import ActorKind, FellBack

Actor = tuple[str, str | None, str]  # type, id and name, as the document has them


class UserLookups(Protocol):
    """Look-ups of the CRM's users."""

    def user(self, user_id: int) -> User | None:
        """Return the CRM user, soft-deleted or not."""

    def sso_id(self, email: str) -> str | None:
        """Return the user directory's SSO id; None if it has no active user with this email, or did not answer."""


class ActorRules:
    """Names actors, by one source mapping."""

    def __init__(self, mapping: SourceMapping) -> None:
        """The two actors that are no specific user are created once."""
        self.fell_back: Counter[FellBack] = Counter()  # actors that became the deleted user, by case
        self.user_type = mapping.users.type
        self.deleted_user = str(ActorKind.DELETED_USER), None, mapping.actors.deleted_user
        self.system = str(ActorKind.SYSTEM), None, mapping.actors.system
        self._user = str(ActorKind.USER)

    def actor(self, event: AuditEvent, lookups: UserLookups) -> Actor:
        """Return the actor's part of the document; one that becomes `deleted_user` has fallen back, and is counted."""
        actor, fell_back = self.named(event.user_type, event.user_id, event.username, lookups)
        if fell_back is not None:
            self.fell_back[fell_back] += 1
        return actor

    def named(self, user_type: str, user_id: int, username: str, lookups: UserLookups) -> tuple[Actor, FellBack | None]:
        """Return the actor, and the case by which it became `deleted_user`; depends only on the arguments."""
        if not user_id:
            return (self.deleted_user, FellBack.USERNAME_ONLY) if username else (self.system, None)
        if user_type != self.user_type:
            return self.deleted_user, FellBack.OTHER_TYPE
        user = lookups.user(user_id)
        if user is None or user.deleted:
            return self.deleted_user, FellBack.NO_USER if user is None else FellBack.DELETED
        sso_id = lookups.sso_id(user.email) if user.email else None
        if not sso_id:
            return self.deleted_user, FellBack.NO_SSO_ID if user.email else FellBack.NO_EMAIL
        return (self._user, sso_id, user.full_name), None
