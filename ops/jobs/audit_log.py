"""The audit log of requests and their results, in `crm_replay_audit_log`. Append-only."""

import datetime as dt
import getpass
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import DESCENDING

from schemas.collections import AUDIT_LOG
from schemas.process.mongodb import Database, Document, Documents

OK = "ok"
BEGUN = "begun"  # of irreversible actions: recorded before, and again with the result
ENTRIES_MAX = 1_000
DETAIL_CHARACTERS_MAX = 2_000  # of one text in it


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. `outcome` is `ok`, `begun`, or the `resp_code` of the refusal; `at` is aware UTC."""

    at: dt.datetime
    who: str
    action: str
    company_sso_id: str
    outcome: str = OK
    request_id: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


def append(
    database: Database,
    action: str,
    company_sso_id: str,
    *,
    who: str,
    outcome: str = OK,
    request_id: str = "",
    detail: Mapping[str, Any] | None = None,
) -> Entry:
    """Note a request and return the entry; `detail` holds no personal data."""
    now = dt.datetime.now(dt.UTC)
    short = {
        key: value[:DETAIL_CHARACTERS_MAX] if isinstance(value, str) else value for key, value in (detail or {}).items()
    }
    entry = Entry(
        now.replace(microsecond=now.microsecond // 1000 * 1000),
        who,
        action,
        company_sso_id,
        outcome,
        request_id,
        short,
    )
    _log(database).insert_one({name: getattr(entry, name) for name in Entry.__dataclass_fields__})
    return entry


def entries(database: Database, company_sso_id: str | None = None, limit: int = 100) -> list[Entry]:
    """Return the newest entries first; of one account or of all."""
    query = {} if company_sso_id is None else {"company_sso_id": company_sso_id}
    found = _log(database).find(query, {"_id": 0}).sort("at", DESCENDING).limit(min(limit, ENTRIES_MAX))
    return [Entry(**document) for document in found]


def has(database: Database, company_sso_id: str, action: str) -> bool:
    """Return whether the account has an entry of this action."""
    return _log(database).find_one({"company_sso_id": company_sso_id, "action": action}, {"_id": 1}) is not None


def on_this_host() -> str:
    """Return the operator of this command line, as entries name them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user id, as in some containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _log(database: Database) -> Documents:
    aware: CodecOptions[Document] = CodecOptions(tz_aware=True)
    log: Documents = database.get_collection(AUDIT_LOG, codec_options=aware)
    return log
