"""Bytes of the outcomes topic -> bins."""

from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.local.generator.history import History, Plan
from ops.local.generator.plain import PlainHistory
from processors.batches import BatchTransformer
from processors.encoding import documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformer
from processors.lookups.tables import HighWater
from processors.metrics import ProcessorMetrics
from schemas.codec import Codec
from schemas.errors import UnreadableTopicError
from schemas.identity import ID_BYTES
from schemas.records import RECORD_TYPES, ActivityLog, DeadLetter, Record, SkippedRecord, SnapshotMarker
from schemas.source import mapping
from sink.counting import PartitionProgress, advance
from sink.decoding import Batch, Decoder
from sink.documents import BatchOutcome, Refusal
from sink.records import Bin, Taken
from tests.support.factories import Consumed, replay_job
from tests.support.generator import audits
from tests.support.lookups import Anyone
from tests.unit.schemas.values import records, unhurried

JOB = replay_job(company_sso_id="acc", job_id="j", run=7, top_audit_id=10**6)
pytestmark = pytest.mark.hot_paths

CODEC = Codec()
DECODER = Decoder(JOB, CODEC, 1000)
DOCUMENT = bson.encode({"company_sso_id": "acc", "a": 1})


def log(audit_id: int) -> bytes:
    return CODEC.encode(ActivityLog(audit_id, 0, audit_id, 7, DOCUMENT))


def taken(*values: bytes, partition: int = 0) -> list[Taken]:
    return [Taken(partition, offset, b"key", value) for offset, value in enumerate(values)]


@given(st.binary(max_size=64))
def test_no_bytes_raise(data: bytes) -> None:
    batch = DECODER.batch(taken(data, log(1)[:-1] + data, log(1) + data), 5)
    assert batch.records == 3


def test_outcomes_that_only_the_settings_keep_from_being_decoded_are_no_dead_letters() -> None:
    framed = Codec({record_type: 1 + at for at, record_type in enumerate(RECORD_TYPES)})
    for ours in (ActivityLog(3, 0, 3, 7, DOCUMENT), SkippedRecord(2, 0, 2, 7, "why")):
        with pytest.raises(UnreadableTopicError, match=r"outcomes\.acc, partition 0, offset 1 .*SCHEMA_REGISTRY_URL"):
            DECODER.batch(taken(log(1), framed.encode(ours)), 5)
    poison = framed.encode(ActivityLog(3, 0, 3, 7, DOCUMENT))[:-1]
    batch = DECODER.batch(taken(log(1), poison, b"\0" * 10), 5)
    assert [record.bin for record in batch.decided[0]] == [Bin.MIGRATED, Bin.FOREIGN, Bin.FOREIGN]


def test_a_batch_knows_its_documents_bins_and_next_offsets() -> None:
    skip = CODEC.encode(SkippedRecord(2, 0, 2, 7, "why"))
    end = CODEC.encode(SnapshotMarker("end", "j", 9, 7))
    begin = CODEC.encode(SnapshotMarker("begin", "j", 0, 7))
    messages = [*taken(begin, log(1), skip, log(3), end), *taken(log(4), partition=1)]
    batch = DECODER.batch(messages, 5)
    assert [record.bin for record in batch.decided[0]] == [
        Bin.PASSED_OVER,
        Bin.MIGRATED,
        Bin.SKIPPED,
        Bin.MIGRATED,
        Bin.ENDED,
    ]
    assert batch.next_offsets == {0: 5, 1: 1}
    assert batch.next_source_offsets == {0: 10, 1: 5}
    assert DECODER.batch(taken(log(1), b"poison"), 5).next_source_offsets == {}
    assert [source.record.audit_id for source in batch.sources] == [1, 3, 4]
    assert [bson.decode(document)["a"] for document in batch.documents] == [1, 1, 1]


def test_the_servers_answer_moves_only_the_records_it_names() -> None:
    batch = DECODER.batch([*taken(log(1), log(2), log(3)), *taken(log(4), partition=1)], 5)
    outcome = BatchOutcome(frozenset((0,)), frozenset(), frozenset((3,)), {1: Refusal(121, "no")})
    outcome = BatchOutcome(outcome.inserted | {2}, outcome.redelivered, outcome.duplicates, outcome.failed)
    decided = DECODER.decide(batch, outcome, 6)
    assert [(record.bin, record.reason) for record in decided[0]] == [
        (Bin.MIGRATED, ""),
        (Bin.FAILED, "write_refused"),
        (Bin.MIGRATED, ""),
    ]
    assert [(record.bin, record.reason) for record in decided[1]] == [(Bin.SKIPPED, "duplicate_external_id")]
    letter = decided[0][1].dead_letter
    assert (letter.audit_id, letter.source_topic, letter.detail) == (2, JOB.topics.replay, "code 121: no")
    assert (letter.payload, letter.key, letter.failed_at) == (log(2), b"key", 6)


def test_a_document_over_the_limit_is_never_sent() -> None:
    at_limit = bson.encode({"company_sso_id": "acc", "x": ""})
    at_limit = bson.encode({"company_sso_id": "acc", "x": "x" * (1000 - 17 - len(at_limit))})
    over = bson.encode({"company_sso_id": "acc", "x": "x" * 983})
    messages = taken(*(CODEC.encode(ActivityLog(i, 0, i, 7, d)) for i, d in ((1, at_limit), (2, over))))
    batch = DECODER.batch(messages, 5)
    assert [len(document) for document in batch.documents] == [1000]
    assert [record.reason for record in batch.decided[0]] == ["", "document_too_large"]


def test_a_record_whose_id_no_row_can_have_is_a_foreign_dead_letter() -> None:
    records: tuple[Record, ...] = (
        ActivityLog(-1, 0, 1, 7, DOCUMENT),
        ActivityLog(0, 0, 1, 7, DOCUMENT),
        SkippedRecord(-5, 0, 1, 7, "why"),
    )
    batch = DECODER.batch(taken(*map(CODEC.encode, records)), 5)
    assert batch.documents == []
    assert [(record.bin, record.reason) for record in batch.decided[0]] == [(Bin.FOREIGN, "undecodable_record")] * 3


def test_a_reason_that_cannot_name_a_field_is_counted_under_another_name() -> None:
    reasons = ("contact_not_found", "of_a_newer_release", "a.b", "$x", "", "nul\0", "x" * 65)
    records = [CODEC.encode(SkippedRecord(i, 0, i, 7, reason)) for i, reason in enumerate(reasons, 1)]
    counted = [record.reason for record in DECODER.batch(taken(*records), 5).decided[0]]
    assert counted == ["contact_not_found", "of_a_newer_release", *["unreadable_reason"] * 5]


def test_a_dead_letter_of_another_account_is_foreign_whatever_id_it_carries() -> None:
    letter = DeadLetter(10**9, 0, "t", 0, 3, 7, "wrong_account", "", b"", b"", 1)
    unknown = letter._replace(audit_id=0, cause="undecodable_record")
    known = letter._replace(audit_id=5, cause="undecodable_changes")
    batch = DECODER.batch(taken(*map(CODEC.encode, (letter, unknown, known))), 5)
    assert [record.bin for record in batch.decided[0]] == [Bin.FOREIGN, Bin.FOREIGN, Bin.FAILED]


@pytest.mark.parametrize("audit_id", [0, -1, JOB.top_audit_id + 1, 2**62])
def test_an_outcome_of_a_row_that_is_none_of_the_jobs_is_foreign_and_hides_no_other(audit_id: int) -> None:
    def log(number: int) -> ActivityLog:
        return ActivityLog(number, 0, number, 7, bson.encode({"company_sso_id": "acc"}))

    others: tuple[Record, ...] = (log(audit_id), SkippedRecord(audit_id, 0, 1, 7, "contact_not_found"))
    letter = DeadLetter(audit_id, 0, "t", 0, 3, 7, "undecodable_changes", "", b"", b"", 1)
    values: list[Record] = [log(1), *others, letter, log(2)]
    batch = DECODER.batch(taken(*map(CODEC.encode, values)), 5)
    assert [record.bin for record in batch.decided[0]] == [Bin.MIGRATED, *[Bin.FOREIGN] * 3, Bin.MIGRATED]
    assert len(batch.documents) == 2
    assert advance(PartitionProgress(), batch.decided[0]).progress.migrated == 2


def by_the_codec(decoder: Decoder, outcomes: list[Taken]) -> Batch:
    """Return outcomes as a batch, each in the way that those go which are no fit logs in their usual form."""
    batch = Batch(records=len(outcomes), bytes=sum(len(outcome.value) for outcome in outcomes))
    for outcome in outcomes:
        decoder._decode(batch, 5, outcome, batch.decided.setdefault(outcome.partition, []))
    return batch


def require_equal(outcomes: list[Taken], decoder: Decoder = DECODER) -> int:
    """Return how many documents they became, either way."""
    batch = decoder.batch(outcomes, 5)
    assert batch == by_the_codec(decoder, outcomes)
    return len(batch.documents)


def document(account: str, actor: str, size: int) -> bytes:
    before = {"company_sso_id": account, "customer_id": "c"}
    return bson.encode({**before, "actor": {"type": actor, "name": "n"}, "metadata": {"text": "x" * size}})


NUMBERS = st.one_of(st.integers(-3, 200), st.integers(-(2**63), 2**63 - 1))
DOCUMENTS = st.one_of(
    st.builds(
        document,
        st.sampled_from(["acc", "ac", "acc2", ""]),
        st.sampled_from(["deleted_user", "user", "deleted_user2", "system"]),
        st.integers(0, 1200),
    ),
    st.sampled_from(
        [DOCUMENT, DOCUMENT[:-1], DOCUMENT[:-1] + b"\x01", DOCUMENT + b"\0", b"", b"\x05\0\0\0\0", b"\x05\0\0\0"]
    ),
    st.binary(max_size=40),
)
LOGS = st.builds(ActivityLog, NUMBERS, NUMBERS, NUMBERS, st.sampled_from([7, 7, 7, 6, -7, 7 + 2**32]), DOCUMENTS)


@unhurried
@given(st.lists(st.tuples(st.integers(0, 2), LOGS), max_size=5))
def test_a_log_ends_as_the_codec_s_reading_of_it_does(logs: list[tuple[int, ActivityLog]]) -> None:
    require_equal([Taken(partition, at, b"k", CODEC.encode(one)) for at, (partition, one) in enumerate(logs)])


@unhurried
@given(LOGS, st.data())
def test_changed_bytes_end_as_the_codec_s_reading_of_them_does(one: ActivityLog, data: st.DataObject) -> None:
    value = bytearray(CODEC.encode(one))
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(value)), st.integers(0, len(value))))
    require_equal(taken(bytes(value[:end])))


@unhurried
@given(records)
def test_any_record_ends_as_the_codec_s_reading_of_it_does(record: Record) -> None:
    require_equal(taken(CODEC.encode(record)))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_largest_document_is_as_large_for_both(more: int) -> None:
    assert require_equal(taken(log(1)), Decoder(JOB, CODEC, len(DOCUMENT) + ID_BYTES + more)) == (more >= 0)


@pytest.mark.parametrize("history", [PlainHistory, History])
def test_outcomes_of_generated_rows_end_as_the_codec_s_reading_of_them_does(history: Any) -> None:
    job = JOB.model_copy(update={"company_sso_id": "A"})
    encoder = RowEncoder(Transformer(mapping.load(None), "A"), Anyone(), CODEC, job.run)
    made = BatchTransformer(job, CODEC, encoder.plain, documents.encode, ProcessorMetrics(), encoder)
    rows = [row.event._replace(company_sso_id="A") for row in audits(history(Plan(1_000, 1, 1, "crm")))]
    sent = [Consumed(b"k", CODEC.encode(row), at) for at, row in enumerate(rows)]
    outcomes = [Taken(0, at, *of) for at, of in enumerate(made.outcomes(sent, made.decode(sent), 0, HighWater(7)))]
    assert require_equal(outcomes, Decoder(job, CODEC, 16 * 1024 * 1024)) > 500
