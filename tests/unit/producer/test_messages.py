import gc
import json
import sys
from importlib.resources import files
from typing import Any

from producer.core import RecordKeys
from producer.messages import Defect, Encoder, Page
from schemas.codec import Codec
from schemas.records import AuditEvent, DeadLetter
from schemas.source.mapping import PersonRule
from schemas.vocabulary import DeadLetterCause
from tests.support import factories

CODEC = Codec()


def event(audit_id: int, changes: str = "---\na: 1\n", comment: str = "") -> AuditEvent:
    known = {"id_range": 2, "created_at": 1_700_000_000_000_000, "user_type": "User", "user_id": 3, "request_uuid": "r"}
    return factories.event(audit_id=audit_id, audited_changes=changes, comment=comment, **known)


def encoder(record_bytes_max: int = 100_000) -> Encoder:
    return Encoder(CODEC, lambda row: f"key-{row.audit_id}", "topic", 9, record_bytes_max)


def test_each_row_is_one_record_under_its_key_in_the_rows_order() -> None:
    events = (event(1), event(2, "é" * 300), event(2**40))
    records = encoder().encode(Page(events, end=2**40), now_us=0)
    assert records.dead_letters == 0
    assert [key for key, _ in records.records] == [b"key-1", b"key-2", b"key-1099511627776"]
    assert [CODEC.decode(value) for _, value in records.records] == list(events)


def test_a_row_with_a_defect_travels_in_its_place_as_a_dead_letter() -> None:
    page = Page((event(1), event(2), event(3)), end=3, defects={2: Defect(DeadLetterCause.UNDECODABLE_RECORD, "why")})
    records = [CODEC.decode(value) for _, value in encoder().encode(page, now_us=77).records]
    assert [record.audit_id for record in records if isinstance(record, AuditEvent | DeadLetter)] == [1, 2, 3]
    letter = records[1]
    assert letter == DeadLetter(
        2, 2, "topic", -1, -1, 9, "undecodable_record", "why", b"key-2", CODEC.encode(event(2)), 77
    )


def test_a_record_over_the_limit_becomes_a_dead_letter_that_fits_and_can_be_read() -> None:
    for size_max in (2_000, 10_000, 100_000):
        large = event(5, changes="ö" * 200_000, comment="x" * 200_000)
        encoded = encoder(size_max).encode(Page((large,), end=5), now_us=0)
        assert encoded.dead_letters == 1
        [(key, value)] = encoded.records
        assert len(key) + len(value) <= size_max
        letter = CODEC.decode_as(DeadLetter, value)
        assert letter.cause == DeadLetterCause.ROW_TOO_LARGE
        kept = CODEC.decode_as(AuditEvent, letter.payload)
        assert kept.audit_id == 5
        assert large.audited_changes.startswith(kept.audited_changes)
        assert kept.audited_changes


def test_encoding_pages_keeps_nothing_of_them() -> None:
    """Memory must not follow the rows, whatever form their changes have."""
    texts = [row["audited_changes"] for row in sample_rows() if row["audited_changes"]]
    page = Page(tuple(event(number, text, '{"a": [') for number, text in enumerate(texts, 1)), end=len(texts))
    real = Encoder(CODEC, RecordKeys(PersonRule()).key, "topic", 9, 100_000)
    for _ in range(3):  # fill the caches
        real.encode(page, now_us=0)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(10):
        real.encode(page, now_us=0)
    gc.collect()
    assert sys.getallocatedblocks() - before < len(texts), "less than a tenth of an object a row"


def sample_rows() -> list[dict[str, Any]]:
    text = files("ops.local").joinpath("sample", "audits_yaml.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
