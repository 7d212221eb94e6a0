"""How a document of ours is identified: its external id, its tag, its `_id`. Pure.

The external id names the audit row of a document, of any writer: the unique index over it decides what is a
duplicate. The `_id` names its writer: a record which Kafka delivers again collides on its own `_id`, a document of
another origin on the unique index only. Both are stored: they never change.
"""

from typing import Final

EXTERNAL_ID_PREFIX = "crm_audit:"
EXTERNAL_ID_END = "crm_audit;"  # `;` follows `:`, so every external id of ours lies between the two
# Formatted with an audit id, `external_id_of` in UTF-8: for the encoder, which has no time for a call.
EXTERNAL_ID_FORMAT = EXTERNAL_ID_PREFIX.encode() + b"%d"
AUDIT_ID_MAX = 2**63 - 1  # PostgreSQL's bigint
_DIGITS_MAX = len(str(AUDIT_ID_MAX))

SOURCE_TAG: Final = "crm_migration"  # of the replay's documents; the live feed's have none

# How a BSON document begins whose `_id` stands first, and how long that is with the ObjectId's twelve bytes.
OBJECT_ID_FIELD = b"\x07_id\x00"
ID_BYTES = len(OBJECT_ID_FIELD) + 12
# Those twelve bytes. A run's number begins both kinds, so one run is a range of the primary key.
RUN_BYTES, AUDIT_ID_BYTES = 4, 8
PARTITION_BYTES, OFFSET_BYTES = 2, 6


def external_id_of(audit_id: int) -> str:
    """Return the external id of an audit row."""
    return f"{EXTERNAL_ID_PREFIX}{audit_id}"


def audit_id_of(external_id: object) -> int | None:
    """Return the audit id in an external id of ours, or None if it is not one."""
    if not isinstance(external_id, str):
        return None
    digits = external_id.removeprefix(EXTERNAL_ID_PREFIX)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX):
        return None
    audit_id = int(digits)
    return audit_id if audit_id <= AUDIT_ID_MAX and external_id == external_id_of(audit_id) else None


def replay_id(run: int, audit_id: int) -> bytes:
    """Return the twelve bytes of the `_id` that a run of a replay gives a row's document: run, audit id."""
    return run.to_bytes(RUN_BYTES, "big") + audit_id.to_bytes(AUDIT_ID_BYTES, "big")


SOURCE_OFFSET_MAX = 2 ** (8 * OFFSET_BYTES) - 1  # that an `_id` has room for; no topic has as many records


def feed_id(run: int, partition: int, offset: int) -> bytes:
    """Return the twelve bytes of the `_id` that a live feed gives a record's document: run, its place on the topic.

    A row that the source sends twice has two places: only the unique index knows that it is one.
    """
    return (
        run.to_bytes(RUN_BYTES, "big")
        + partition.to_bytes(PARTITION_BYTES, "big")
        + offset.to_bytes(OFFSET_BYTES, "big")
    )


def run_in(document_id: bytes) -> int:
    """Return the run in the bytes of an `_id` of ours, of either kind."""
    return int.from_bytes(document_id[:RUN_BYTES], "big")
