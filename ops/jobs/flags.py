"""The migration flag of each account, in `crm_replay_flags`; off by default."""

import datetime as dt
from dataclasses import dataclass

from bson.codec_options import CodecOptions

from schemas.collections import FLAGS
from schemas.process.mongodb import Database, Document, Documents
from schemas.topics import AccountTopics


@dataclass(frozen=True, slots=True)
class Flag:
    """Whether the account may be migrated; author and time (aware UTC) of the last change, None if never changed."""

    company_sso_id: str
    enabled: bool = False
    changed_at: dt.datetime | None = None
    changed_by: str | None = None


def read(database: Database, company_sso_id: str) -> Flag:
    """Return the account's flag."""
    found = _flags(database).find_one({"_id": company_sso_id})
    return _flag(found) if found else Flag(company_sso_id)


def read_all(database: Database, limit: int = 10_000) -> list[Flag]:
    """Return the flags that have ever been set, on or off, by account id."""
    return [_flag(found) for found in _flags(database).find().sort("_id", 1).limit(limit)]


def write(database: Database, company_sso_id: str, enabled: bool, by: str) -> Flag:
    """Set the account's flag and return it. Raises BadInputError for what is no account id."""
    AccountTopics.of(company_sso_id)
    now = dt.datetime.now(dt.UTC)
    changed_at = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as BSON keeps it
    fields = {"enabled": enabled, "changed_at": changed_at, "changed_by": by}
    _flags(database).update_one({"_id": company_sso_id}, {"$set": fields}, upsert=True)
    return Flag(company_sso_id, enabled, changed_at, by)


def _flag(document: Document) -> Flag:
    return Flag(document["_id"], document["enabled"], document["changed_at"], document["changed_by"])


def _flags(database: Database) -> Documents:
    aware: CodecOptions[Document] = CodecOptions(tz_aware=True)
    flags: Documents = database.get_collection(FLAGS, codec_options=aware)
    return flags
