"""Counts stay exact whatever comes again, in whatever portions."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import DeadLetter
from sink.counting import PartitionProgress, advance
from sink.identity import ALL_IN_ONE, with_ids
from sink.records import Bin, Decided

pytestmark = pytest.mark.hot_paths

LETTER = DeadLetter(1, 0, "t", 0, 0, 7, "cause", "", b"", b"", 0)


def row(offset: int, audit_id: int, into: Bin = Bin.MIGRATED, reason: str = "", id_range: int = 0) -> Decided:
    letter = LETTER._replace(audit_id=audit_id) if into is Bin.FAILED else None
    return Decided(offset, offset + 1000, audit_id, id_range, into, reason, letter)


def test_every_bin_is_counted() -> None:
    batch = [
        row(0, 1),
        row(1, 2, Bin.SKIPPED, "why"),
        row(2, 3, Bin.FAILED, "cause"),
        row(3, 4, Bin.SKIPPED, "why"),
        Decided(4, -1, 0, 0, Bin.FOREIGN, "poison", LETTER),
        Decided(5, -1, 0, 0, Bin.PASSED_OVER),
        Decided(6, 1006, 0, 0, Bin.ENDED),
    ]
    after, letters, repeated = advance(PartitionProgress(), batch)
    assert after == PartitionProgress(
        version=1,
        outcomes_offset=6,
        source_offset=1003,
        id_ranges={0: 4},
        migrated=1,
        skipped={"why": 2},
        failed={"cause": 1},
        foreign={"poison": 1},
        ended=True,
        with_document=with_ids({}, [1], ALL_IN_ONE),
    )
    assert [letter.audit_id for letter in letters] == [3, 1]
    assert repeated == 0


def test_outcomes_of_one_record_share_its_offset_and_are_each_counted_once() -> None:
    poison = Decided(4, -1, 0, 0, Bin.FOREIGN, "poison", LETTER)
    batch = [row(3, 1), row(4, 2)._replace(source_offset=1), poison, row(4, 3)._replace(source_offset=2), poison]
    once = advance(PartitionProgress(), batch)
    assert (once.progress.migrated, once.progress.foreign, once.progress.outcomes_offset) == (3, {"poison": 2}, 4)
    assert len(once.dead_letters) == 2
    again = advance(once.progress, batch[1:])
    assert (again.repeated, again.dead_letters) == (4, ())
    assert again.progress == replace(once.progress, version=2)


def test_what_was_counted_is_not_changed_in_place() -> None:
    before = advance(PartitionProgress(), [row(0, 1, Bin.SKIPPED, "why")]).progress
    advance(before, [row(1, 2, Bin.SKIPPED, "why")])
    assert before.skipped == {"why": 1}
    assert before.id_ranges == {0: 1}


def test_a_batch_again_counts_nothing_and_has_no_dead_letters() -> None:
    batch = [row(0, 1), row(1, 2, Bin.FAILED, "cause"), Decided(2, -1, 0, 0, Bin.FOREIGN, "poison", LETTER)]
    once = advance(PartitionProgress(), batch).progress
    twice, letters, repeated = advance(once, batch)
    assert twice == replace(once, version=2)
    assert letters == ()
    assert repeated == 3


def test_the_first_outcome_of_a_row_is_the_one_that_counts() -> None:
    after = advance(PartitionProgress(), [row(0, 1, Bin.SKIPPED, "why"), row(1, 1)]).progress
    assert (after.migrated, after.skipped) == (0, {"why": 1})


def test_a_page_published_again_comes_at_new_offsets_and_is_not_counted() -> None:
    page = [row(i, i + 1) for i in range(5)]
    again = [row(i + 5, i + 1) for i in range(5)]
    assert advance(PartitionProgress(), [*page, *again, row(10, 6)]).progress.migrated == 6


def test_ranges_count_on_their_own() -> None:
    batch = [row(0, 1000, id_range=1), row(1, 1), row(2, 1001, id_range=1), row(3, 2), row(4, 1000, id_range=1)]
    after = advance(PartitionProgress(), batch).progress
    assert after.id_ranges == {1: 1001, 0: 2}
    assert after.migrated == 4


def test_a_foreign_audit_id_does_not_hide_our_rows() -> None:
    stranger = Decided(0, 1000, 999_999, 0, Bin.FOREIGN, "wrong_account", LETTER)
    after = advance(PartitionProgress(), [stranger, row(1, 1), row(2, 2)]).progress
    assert after.migrated == 2
    assert after.foreign == {"wrong_account": 1}


def test_a_foreign_record_goes_by_its_source_offset_when_it_comes_again_at_another() -> None:
    stranger = Decided(0, 1000, 0, 0, Bin.FOREIGN, "undecodable_record", LETTER)
    after = advance(PartitionProgress(), [stranger, row(1, 1), stranger._replace(offset=2)]).progress
    assert after.foreign == {"undecodable_record": 1}


def stream(seed: int, rows: int) -> tuple[list[Decided], PartitionProgress]:
    """Return a partition's records with repetitions as producers and processors make them, and the true counts."""
    chance = random.Random(seed)
    log: list[tuple[int, int, Bin, str]] = []  # audit id, range, bin, reason: as first processed, in source order
    next_id = {0: 1, 1: 10_000}
    for _ in range(rows):
        id_range = chance.choice((0, 1))
        next_id[id_range] += chance.randint(1, 3)
        into = chance.choice((Bin.MIGRATED, Bin.MIGRATED, Bin.SKIPPED, Bin.FAILED))
        log.append((next_id[id_range], id_range, into, "" if into is Bin.MIGRATED else chance.choice("ab")))
    records: list[Decided] = []
    at = 0
    while at < len(log):
        if at and chance.random() < 0.3:  # back to what had been acknowledged last
            at -= chance.randint(1, min(at, 10))
        for _ in range(chance.randint(1, 12)):
            if at == len(log):
                break
            audit_id, id_range, into, reason = log[at]
            letter = LETTER if into is Bin.FAILED else None
            records.append(Decided(len(records), at, audit_id, id_range, into, reason, letter))
            at += 1
    counts: dict[Bin, dict[str, int]] = {Bin.MIGRATED: {}, Bin.SKIPPED: {}, Bin.FAILED: {}}
    for _, _, into, reason in log:
        counts[into][reason] = counts[into].get(reason, 0) + 1
    ranges = {r: max(a for a, of, _, _ in log if of == r) for r in {of for _, of, _, _ in log}}
    truth = PartitionProgress(
        outcomes_offset=len(records) - 1,
        source_offset=rows - 1,
        id_ranges=ranges,
        migrated=counts[Bin.MIGRATED].get("", 0),
        skipped=counts[Bin.SKIPPED],
        failed=counts[Bin.FAILED],
        with_document=with_ids({}, [audit_id for audit_id, _, into, _ in log if into is Bin.MIGRATED], ALL_IN_ONE),
    )
    return records, truth


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 80))
def test_counts_are_exact_under_repetitions_redeliveries_and_lost_answers(seed: int, rows: int) -> None:
    records, truth = stream(seed, rows)
    chance = random.Random(seed + 1)
    stored = PartitionProgress()
    committed = 0
    delivered: list[DeadLetter] = []
    while committed < len(records):
        position = committed
        while position < len(records):
            batch = records[position : position + chance.randint(1, 20)]
            step = advance(stored, batch)
            if chance.random() < 0.1:
                break  # died before the progress was saved
            stored = step.progress
            delivered.extend(step.dead_letters)
            if chance.random() < 0.1:
                break  # died before the commit
            position += len(batch)
            committed = position
    assert replace(stored, version=0) == truth
    assert len(delivered) == sum(truth.failed.values())


def test_rows_with_a_document_are_those_written_and_those_met() -> None:
    batch = [
        row(0, 1),
        row(1, 2, Bin.SKIPPED, "duplicate_external_id"),
        row(2, 3, Bin.SKIPPED, "contact_not_found"),
        row(3, 4, Bin.FAILED, "duplicate_external_id"),
        row(4, 5),
        row(5, 1),  # again
    ]
    after = advance(PartitionProgress(), batch, 2).progress
    assert after.with_document == {0: with_ids({}, [1, 2], 2)[0], 1: with_ids({}, [5], 2)[1]}
    assert advance(after, batch, 2).progress.with_document == after.with_document


def test_ids_that_an_older_release_has_begun_to_count_stay_unknown() -> None:
    begun = PartitionProgress(migrated=7, with_document=None)
    assert advance(begun, [row(0, 1)]).progress.with_document is None
