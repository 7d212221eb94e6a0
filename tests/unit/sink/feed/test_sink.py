"""The live feed's sink as far as it decides with values: `_id`s, bins by account, counts that repeats do not move."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import bson
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Codec
from schemas.job import LiveFeed
from schemas.records import ActivityLog, DeadLetter, SkippedRecord
from schemas.vocabulary import DeadLetterCause, SkipReason
from sink.counting import PartitionProgress
from sink.documents import is_whole
from sink.feed.alarm import Alarm
from sink.feed.decoding import LiveDecoder, account_in, with_id
from sink.feed.progress import advance, totals_by_account
from sink.progress import RunTotals, to_fields
from sink.records import Bin, Decided, Taken

CODEC = Codec()
FEED = LiveFeed(job_id="live:t", run=7, partitions=2, mapping_path="", feed="t", topic="t.audits")


def document(account: str = "acme", audit_id: int = 1) -> bytes:
    return bson.encode({"company_sso_id": account, "external_id": f"crm_audit:{audit_id}"})


def log(source_offset: int, account: str = "acme", audit_id: int = 1, run: int = 7) -> bytes:
    return CODEC.encode(ActivityLog(audit_id, 0, source_offset, run, document(account, audit_id)))


def decoder() -> LiveDecoder:
    return LiveDecoder(FEED, CODEC, 16 * 1024 * 1024)


def test_an_id_tells_records_of_the_feed_apart_also_those_of_one_row() -> None:
    ids = {
        bytes(bson.decode(with_id(run, partition, offset, document()))["_id"].binary)
        for run in (1, 2)
        for partition in (0, 1)
        for offset in (0, 1, 2**40)
    }
    assert len(ids) == 12
    made = with_id(7, 1, 5, document())
    assert is_whole(made)
    assert bson.decode(made)["external_id"] == "crm_audit:1"


def test_the_account_is_read_where_the_processors_write_it() -> None:
    assert account_in(document("société-ü")) == "société-ü"
    assert account_in(bson.encode({"external_id": "x", "company_sso_id": "acme"})) == ""


def test_logs_of_any_account_are_written_but_not_under_anothers_name() -> None:
    batch = decoder().batch(
        [
            Taken(0, 10, b"acme", log(3)),
            Taken(0, 11, b"other", log(4, "other")),
            Taken(0, 12, b"other", log(5, "acme")),  # the key says other
            Taken(0, 13, b"", log(6, "acme")),
            Taken(1, 14, b"acme", log(7, run=6)),
            Taken(1, 15, b"acme", b"garbage"),
        ],
        0,
    )
    assert [record.bin for record in batch.decided[0]] == [Bin.MIGRATED, Bin.MIGRATED, Bin.FAILED, Bin.FAILED]
    assert {record.reason for record in batch.decided[0][2:]} == {DeadLetterCause.WRONG_ACCOUNT}
    assert [record.bin for record in batch.decided[1]] == [Bin.PASSED_OVER, Bin.FOREIGN]
    assert len(batch.documents) == 2


def test_skips_and_dead_letters_keep_their_account_until_they_are_counted() -> None:
    feed = decoder()
    letter = DeadLetter(5, 0, "t.audits", 0, 3, 7, "undecodable_changes", "", b"", b"", 0)
    feed.batch(
        [
            Taken(0, 1, b"acme", CODEC.encode(SkippedRecord(4, 0, 2, 7, SkipReason.PRE_SYNC_REPLAY))),
            Taken(0, 2, b"other", CODEC.encode(letter)),
        ],
        0,
    )
    assert (feed.take_account(0, 1), feed.take_account(0, 2)) == ("acme", "other")
    assert feed.take_account(0, 1) == ""  # taken once


def test_rows_with_ids_below_one_are_counted_as_foreign_dead_letters_whatever_they_came_to() -> None:
    letter = DeadLetter(-5, 0, "t.audits", 0, 3, 7, "unreadable_change", "id is not a positive number", b"", b"", 0)
    batch = decoder().batch(
        [
            Taken(0, 1, b"acme", log(3, audit_id=-5)),
            Taken(0, 2, b"acme", log(4, audit_id=0)),
            Taken(0, 3, b"acme", CODEC.encode(SkippedRecord(-(2**31), 0, 5, 7, SkipReason.PRE_SYNC_REPLAY))),
            Taken(0, 4, b"acme", CODEC.encode(letter)),
        ],
        0,
    )
    assert [record.bin for record in batch.decided[0]] == [Bin.FOREIGN] * 4
    assert batch.documents == []
    counted = advance(PartitionProgress(), batch.decided[0])
    assert dict(counted.progress.foreign) == {"undecodable_record": 3, "unreadable_change": 1}
    assert len(counted.dead_letters) == 4


def test_a_place_that_no_id_has_room_for_ends_no_feed() -> None:
    batch = decoder().batch([Taken(0, 1, b"acme", log(2**48)), Taken(0, 2, b"acme", log(2**48 - 1))], 0)
    assert [record.bin for record in batch.decided[0]] == [Bin.FAILED, Bin.MIGRATED]


bins = st.sampled_from([(Bin.MIGRATED, ""), (Bin.SKIPPED, "pre_sync_replay"), (Bin.FAILED, "write_refused")])


def outcomes(of: list[tuple[Bin, str]], start: int = 0) -> list[Decided]:
    """Return outcomes of consecutive records; ids fall, as they may in a feed."""
    return [Decided(start + at, at, 1_000 - at, 0, into, reason) for at, (into, reason) in enumerate(of)]


@given(st.lists(bins, max_size=30), st.data())
def test_repeated_stretches_count_nothing_however_they_are_cut_into_batches(
    of: list[tuple[Bin, str]], data: st.DataObject
) -> None:
    once = advance(PartitionProgress(), outcomes(of)).progress
    progress, sent = PartitionProgress(), 0
    done = 0
    while done < len(of):
        begin = data.draw(st.integers(0, done))  # a worker that died repeats from somewhere before
        end = data.draw(st.integers(done + 1, len(of)))
        stretch = outcomes(of)[begin:end]
        again = [record._replace(offset=sent + at) for at, record in enumerate(stretch)]
        sent += len(again)
        progress = advance(progress, again).progress
        done = end
    assert (progress.migrated, progress.skipped, progress.failed) == (once.migrated, once.skipped, once.failed)
    assert progress.migrated + sum(progress.skipped.values()) + sum(progress.failed.values()) == len(of)


def test_a_row_that_the_source_sends_twice_counts_twice_and_the_second_time_as_a_duplicate() -> None:
    twice = [
        Decided(0, 0, 5, 0, Bin.MIGRATED),
        Decided(1, 1, 5, 0, Bin.SKIPPED, SkipReason.DUPLICATE_EXTERNAL_ID),
    ]
    progress = advance(PartitionProgress(), twice).progress
    assert (progress.migrated, progress.skipped) == (1, {"duplicate_external_id": 1})


def test_the_alarm_names_accounts_of_which_too_much_fails_and_no_others() -> None:
    alarm = Alarm(0.0)
    alarm.add("poisoned", 80, 9)
    alarm.add("poisoned", 10, 1)
    alarm.add("healthy", 1_000, 100)  # a tenth is allowed
    alarm.add("small", 10, 10)  # too few to be a rate
    assert alarm.due(59.0) == []
    assert alarm.due(60.0) == [("poisoned", 10, 90)]
    assert alarm.due(120.0) == []  # a minute without failures
    assert alarm.sounded == 1


def test_the_counts_of_an_account_are_summed_over_its_partitions_and_runs() -> None:
    parts = [
        ("acme", PartitionProgress(migrated=2, skipped={"a": 1}, failed={"x": 1}, actors_fell_back=1), 5),
        ("acme", PartitionProgress(migrated=1, skipped={"a": 2, "b": 1}), 9),
        ("umbrella", PartitionProgress(foreign={"y": 3}), 7),
    ]
    stored = [
        {**to_fields(progress), "company_sso_id": account, "updated_at": datetime(2026, 1, day, tzinfo=UTC)}
        for account, progress, day in parts
    ]
    collection: Any = SimpleNamespace(find=lambda _query: stored)
    assert totals_by_account(collection, "feed") == {
        "acme": RunTotals(
            3, {"a": 3, "b": 1}, {"x": 1}, {}, updated_at=datetime(2026, 1, 9, tzinfo=UTC), actors_fell_back=1
        ),
        "umbrella": RunTotals(0, {}, {}, {"y": 3}, updated_at=datetime(2026, 1, 7, tzinfo=UTC)),
    }
