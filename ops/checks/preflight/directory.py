"""I/O: whether user directory and schema registry respond, and the status of users who are no longer active."""

import time
from collections import Counter
from collections.abc import Sequence

import httpx
from psycopg import sql

from ops.checks.model import Check, fail, ok, warn
from processors.lookups.directory import ACTIVE, PATH, TIMEOUT_S, normalized
from producer.audits import answering, connect
from schemas.source.mapping import SourceMapping

SAMPLE_USERS = 5
SLOW_S = 1.0


def sample_emails(dsn: str, mapping: SourceMapping, *, deleted: bool) -> list[str]:
    """Return the emails of a few CRM users, active ones or soft-deleted ones."""
    users = mapping.users
    query = sql.SQL(
        "SELECT {email}::text FROM {table}"
        " WHERE {email}::text ~ '^[ -~]+$' AND ({deleted_at} IS NOT NULL) = %(deleted)s"
        " ORDER BY {id} DESC LIMIT %(limit)s"
    ).format(
        id=sql.Identifier(users.id),
        email=sql.Identifier(users.email),
        deleted_at=sql.Identifier(users.deleted_at),
        table=sql.Identifier(users.schema_name, users.table),
    )
    with connect(dsn) as db, answering("looking for a few users"):
        rows = db.execute(query, {"deleted": deleted, "limit": SAMPLE_USERS}).fetchall()
    return [email for (text,) in rows if (email := normalized(text)) is not None]


def check_directory(url: str, account: str, active: Sequence[str], deleted: Sequence[str]) -> Check:
    """Return whether the directory knows a few active users, and the status it has for deactivated ones.

    A replay never queries a soft-deleted CRM user: such an actor falls back, whatever the directory's status.
    """
    name = "user_directory"
    if not url:
        return warn(name, "USER_DIRECTORY_URL is not set: no actor has an SSO id", "set it, if actors are to be named")
    began = time.monotonic()
    active_status = _ask(url, account, active) if active else {}
    seconds = time.monotonic() - began
    deleted_status = _ask(url, account, deleted) if deleted else {}
    known = sum(status == ACTIVE for status in active_status.values())
    of_deleted = Counter(deleted_status.get(email, "unknown") for email in deleted)
    facts = {
        "asked": len(active),
        "known": known,
        "answer_s": round(seconds, 3),
        "deactivated_asked": len(deleted),
        "deactivated_said": dict(of_deleted),
    }
    statuses = ", ".join(f"{status} ({count})" for status, count in sorted(of_deleted.items()))
    of_those = f"of {len(deleted)} deactivated users: {statuses}" if deleted else "the CRM has no deactivated user"
    summary = f"knows {known} of {len(active)} active users, answers in {seconds * 1000:.0f} ms; {of_those}"
    if active and not known:
        return warn(name, summary, "is it the directory of this account? All actors would fall back", **facts)
    if of_deleted.get(ACTIVE):
        return warn(
            name,
            f"{summary}: it takes them for active",
            "their logs still name no user: the CRM's deleted_at decides",
            **facts,
        )
    if seconds > SLOW_S:
        return warn(name, f"{summary}: slow", f"an answer over {TIMEOUT_S:.0f} s counts as none", **facts)
    return ok(name, summary, **facts)


def _ask(url: str, account: str, emails: Sequence[str]) -> dict[str, str]:
    """Return the status of each user in the answer by email; raises ValueError or httpx's errors."""
    response = httpx.get(
        f"{url.rstrip('/')}{PATH}",
        params={"company_sso_id": account, "emails": ",".join(emails)},
        timeout=TIMEOUT_S,
    )
    response.raise_for_status()
    answer = response.json()
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise ValueError("not an answer of the user directory")
    return {
        str(user.get("email", "")).strip().lower(): str(user.get("status", ACTIVE)).lower()
        for user in answer["data"]
        if isinstance(user, dict)
    }


def outage(error: Exception) -> Check:
    """Return the check of a directory that gave no answer. A run would go through, with every actor fallen back."""
    what = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
    return fail(
        "user_directory",
        f"no answer ({what}): every actor would be the deleted user",
        "check USER_DIRECTORY_URL; unset it if actors need no SSO id",
    )


def check_registry(url: str) -> Check:
    """Return whether the schema registry answers; nothing is registered."""
    if not url:
        return ok("schema_registry", "none: Avro single-object encoding")
    try:
        response = httpx.get(f"{url.rstrip('/')}/subjects", timeout=TIMEOUT_S)
        response.raise_for_status()
        subjects = response.json()
        count = len(subjects) if isinstance(subjects, list) else 0
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return fail("schema_registry", f"no answer ({type(error).__name__})", "check SCHEMA_REGISTRY_URL, or unset it")
    return ok("schema_registry", f"answers, {count:,} subjects", subjects=count)
