"""Which CRM person an audit row is about: the record key of the topics, and what the contact lookup tries.

Pure. The order is the contract's: the comment, the changes, the row itself, what it is associated with.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.audited_changes import Columns, read
from schemas.mapping import PersonRule
from schemas.records import AuditEvent

PERSON_ID_MAX = 2**63 - 1
# The audited gem adds this to the comment of a row that older ones were folded into; what stood there was JSON before.
COMBINED = "\nThis audit is the result of multiple audits being combined."

# A key can be spelt so that its name is not in the text: by a numeric escape, a broken line, or base64 under `!binary`
# (whose tag can be spelt in as many ways).
_DISGUISE = re.compile(r"\\[xuU\r\n]|![b<%!]")
_DIGITS = re.compile(r"0*([1-9][0-9]{0,18})")
_PLAIN_COMMENT = re.compile(r'\{"([A-Za-z_][A-Za-z0-9_]*)":([1-9][0-9]{0,17})\}')


def person_candidates(event: AuditEvent, rule: PersonRule) -> tuple[str, ...]:
    """Return the row's CRM person ids as decimal digits, best first, none twice; empty if it names no person.

    In order: `crm_person_id` in a comment that is a JSON object (a number, digits, or a list of them); the mapped
    columns in `audited_changes` (in an update the new value, then the old); the row's own id if it is a person; the
    associated record's if that is one. A text that is unreadable as a whole names nobody.
    """
    columns = read(event.audited_changes, event.changes_are_json) if _may_name_person(event, rule) else None
    return candidates_in(event, rule, columns.values if isinstance(columns, Columns) else {})


def candidates_in(event: AuditEvent, rule: PersonRule, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Like `person_candidates`, for a caller who has read `audited_changes` already."""
    if not event.comment and event.auditable_type != rule.type:
        found = tuple(_in_changes(event.action, rule, changes))
        if not found:
            return (str(event.associated_id),) if event.associated_type == rule.type and event.associated_id > 0 else ()
    else:
        found = (*_in_comment(event.comment, rule.comment_key), *_in_changes(event.action, rule, changes))
        if event.auditable_type == rule.type and event.auditable_id > 0:
            found = (*found, str(event.auditable_id))
    if event.associated_type == rule.type and event.associated_id > 0:
        found = (*found, str(event.associated_id))
    return found if len(found) < 2 else tuple(dict.fromkeys(found))


def record_key(event: AuditEvent, rule: PersonRule) -> str:
    """Return the row's record key: its first person candidate, else `type:id`."""
    if event.comment:
        for person_id in _in_comment(event.comment, rule.comment_key):
            return person_id
    if _may_name_person(event, rule):
        columns = read(event.audited_changes, event.changes_are_json)
        if isinstance(columns, Columns):
            for person_id in _in_changes(event.action, rule, columns.values):
                return person_id
    if event.auditable_type == rule.type and event.auditable_id > 0:
        return str(event.auditable_id)
    if event.associated_type == rule.type and event.associated_id > 0:
        return str(event.associated_id)
    return f"{event.auditable_type}:{event.auditable_id}"


def _may_name_person(event: AuditEvent, rule: PersonRule) -> bool:
    """Return whether the changes can have one of the person columns: without its name in the text, hardly ever."""
    text = event.audited_changes
    for column in rule.columns:
        if column in text:
            return True
    return ("\\" in text or "!" in text) and _DISGUISE.search(text) is not None


def _in_comment(comment: str, key: str) -> Iterator[str]:
    if (plain := _PLAIN_COMMENT.fullmatch(comment)) is not None:
        if plain[1] == key:
            yield plain[2]
        return
    if key not in comment and "\\" not in comment:
        return
    while comment.endswith(COMBINED):
        comment = comment.removesuffix(COMBINED)
    if not comment.lstrip().startswith("{"):
        return
    try:
        said = json.loads(comment)
    except (ValueError, RecursionError):
        return
    value = said.get(key)
    for part in value if isinstance(value, list) else (value,):
        if (person_id := _person_id(part)) is not None:
            yield person_id


def _in_changes(action: str, rule: PersonRule, changes: Mapping[str, Any]) -> Iterator[str]:
    for column in rule.columns:
        value = changes.get(column)
        if value is None:
            continue
        if isinstance(value, list):
            if len(value) != 2 or action in ("create", "destroy"):
                continue
            parts = [value[1], value[0]]
        else:
            parts = [value]
        for part in parts:
            if (person_id := _person_id(part)) is not None:
                yield person_id


def _person_id(value: Any) -> str | None:
    """Return a positive id that PostgreSQL can hold, from a number or digits; None for anything else."""
    if type(value) is int:
        return str(value) if 0 < value <= PERSON_ID_MAX else None
    if isinstance(value, str) and (digits := _DIGITS.fullmatch(value.strip())) is not None:
        return digits[1] if int(digits[1]) <= PERSON_ID_MAX else None
    return None
