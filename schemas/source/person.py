"""Which CRM person an audit row is about: the record key of the topics, and what the contact lookup tries.

Pure. The order is the contract's: the comment, the changes, the row itself, what it is associated with.
"""

import json
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from schemas.records import AuditEvent
from schemas.source.audited_changes import Columns, read
from schemas.source.mapping import PersonRule

PERSON_ID_MAX = 2**63 - 1
_NOTHING: dict[str, Any] = {}
# The audited gem adds this to the comment of a row that older ones were folded into; what stood there was JSON before.
COMBINED = "\nThis audit is the result of multiple audits being combined."

# A key can be spelt so that its name is not in the text: by a numeric escape, a broken line, or base64 under `!binary`
# (whose tag can be spelt in as many ways).
_DISGUISE = re.compile(r"\\[xuU\r\n]|![b<%!]|%TAG")
_DIGITS = re.compile(r"0*([1-9][0-9]{0,18})")
_BARE_ACTIONS = frozenset(("create", "destroy"))  # their values are never pairs
_PLAIN_COMMENT = re.compile(r'\{"([A-Za-z_][A-Za-z0-9_]*)":([1-9][0-9]{0,17})\}')


class Place(StrEnum):
    """Where a row names a person, in the order in which they are tried."""

    COMMENT = "comment"
    CHANGES = "audited_changes"
    ITSELF = "the row itself"
    ASSOCIATED = "associated record"


def person_candidates(event: AuditEvent, rule: PersonRule) -> tuple[str, ...]:
    """Return the row's CRM person ids as decimal digits, best first, none twice; empty if it names no person.

    In order: `crm_person_id` in a comment that is a JSON object (a number, digits, or a list of them); the mapped
    columns in `audited_changes` (in an update the new value, then the old); the row's own id if it is a person; the
    associated record's if that is one. A text that is unreadable as a whole names no person.
    """
    return tuple(placed_candidates(event, rule, _person_columns(event, rule)))


def record_key(event: AuditEvent, rule: PersonRule) -> str:
    """Return the row's record key: its first person candidate, else `type:id`."""
    if found := comment_candidates(event.comment, rule):
        return found[0]
    for person_id in further_candidates(event, rule, _person_columns(event, rule)):
        return person_id
    return f"{event.auditable_type}:{event.auditable_id}"


def placed_candidates(event: AuditEvent, rule: PersonRule, changes: Mapping[str, Any]) -> dict[str, Place]:
    """Return the person ids of `person_candidates`, each with its first place; `changes` are the row's, read."""
    found = dict.fromkeys(comment_candidates(event.comment, rule), Place.COMMENT)
    for person_id, place in further_candidates(event, rule, changes).items():
        found.setdefault(person_id, place)
    return found


def further_candidates(event: AuditEvent, rule: PersonRule, changes: Mapping[str, Any]) -> dict[str, Place]:
    """Return the person ids that are tried behind those of the comment, best first, each with its first place."""
    found = dict.fromkeys(changes_candidates(event.action, rule, changes), Place.CHANGES)
    if event.auditable_type in rule.types and event.auditable_id > 0:
        found.setdefault(str(event.auditable_id), Place.ITSELF)
    if event.associated_type in rule.types and event.associated_id > 0:
        found.setdefault(str(event.associated_id), Place.ASSOCIATED)
    return found


def comment_candidates(comment: str, rule: PersonRule) -> tuple[str, ...]:
    """Return the person ids that a comment names: it is a JSON object that has the rule's key, or it names none.

    A comment that the gem has added its line about combined audits to is read without that line.
    """
    if not comment:
        return ()
    if (plain := _PLAIN_COMMENT.fullmatch(comment)) is not None:
        return (plain[2],) if plain[1] == rule.comment_key else ()
    if rule.comment_key not in comment and "\\" not in comment:
        return ()
    end = len(comment)
    while comment.endswith(COMBINED, 0, end):  # by position: to cut a long one again and again would take minutes
        end -= len(COMBINED)
    comment = comment[:end]
    if not comment.lstrip().startswith("{"):
        return ()
    try:
        parsed = json.loads(comment)
    except (ValueError, RecursionError):
        return ()
    value = parsed.get(rule.comment_key)
    return _person_ids(value if isinstance(value, list) else [value])


def changes_candidates(action: str, rule: PersonRule, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the person ids in the mapped columns of a row's changes; of a pair the new one first."""
    found: tuple[str, ...] = ()
    for column in rule.columns:
        value = changes.get(column)
        if value is None:
            continue
        if not isinstance(value, list):
            found += _person_ids([value])
        elif len(value) == 2 and action not in _BARE_ACTIONS:
            found += _person_ids([value[1], value[0]])
    return found


def _person_columns(event: AuditEvent, rule: PersonRule) -> Mapping[str, Any]:
    """Return the columns of the row's changes; none if no person column can be among them."""
    if not _may_name_person(event, rule):
        return _NOTHING
    columns = read(event.audited_changes, event.changes_are_json)
    return columns.values if isinstance(columns, Columns) else _NOTHING


def _may_name_person(event: AuditEvent, rule: PersonRule) -> bool:
    """Return whether the changes can have one of the person columns: without its name in the text, hardly ever."""
    text = event.audited_changes
    for column in rule.columns:
        if column in text:
            return True
    return ("\\" in text or "!" in text) and _DISGUISE.search(text) is not None


def _person_ids(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple([person_id for value in values if (person_id := _person_id(value)) is not None])


def _person_id(value: Any) -> str | None:
    """Return a positive id that PostgreSQL can hold, from a number or digits; None for anything else."""
    if type(value) is int:
        return str(value) if 0 < value <= PERSON_ID_MAX else None
    if isinstance(value, str) and (digits := _DIGITS.fullmatch(value.strip())) is not None:
        return digits[1] if int(digits[1]) <= PERSON_ID_MAX else None
    return None
