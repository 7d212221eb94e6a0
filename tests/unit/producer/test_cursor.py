from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.cursor import (
    Gap,
    IdRange,
    advance,
    all_gaps,
    announce,
    clip,
    cutoff,
    in_gaps,
    next_number,
    note_gaps,
    progress,
    reconcile,
    share_out,
    split,
)
from schemas.errors import CursorDidNotAdvanceError

START, ROW, NOW = (datetime(2020, month, 1, tzinfo=UTC) for month in (1, 2, 3))


def a_range(**fields: object) -> IdRange:
    return IdRange(**({"id_range": 0, "first": 0, "cursor": 0, "last": 100} | fields))  # type: ignore[arg-type]


def test_the_cutoff_is_the_asked_start_else_the_first_row_else_now() -> None:
    assert cutoff(START, ROW, NOW) == START
    assert cutoff(None, ROW, NOW) == ROW
    assert cutoff(None, None, NOW) == NOW


@pytest.mark.parametrize("page_end", [-1, 40, 101])
def test_a_page_that_does_not_advance_or_leaves_its_range_is_an_error(page_end: int) -> None:
    with pytest.raises(CursorDidNotAdvanceError, match="past audit id 40"):
        advance(a_range(cursor=40), page_end, 1)


def test_advancing_counts_rows() -> None:
    page = advance(a_range(), 20, 5)
    assert (page.cursor, page.rows, page.reach, page.done) == (20, 5, 0, False)
    end = advance(page, 100, 2)
    assert (end.rows, end.done, end.left) == (7, True, 0)


def test_what_is_announced_is_no_part_of_a_tail_and_its_gaps_are_known() -> None:
    confirmed = advance(a_range(), 20, 5)
    announced = announce(confirmed, advance(note_gaps(confirmed, [(30, 31)], 50), 50, 9))
    assert announced == a_range(cursor=20, rows=5, reach=50, gaps=((30, 31),), gaps_to=50)
    assert split(announced, 1, [10, 30, 51, 70]) is not None
    assert announce(a_range(reach=90), confirmed).reach == 90


def test_a_gap_once_noted_stays_even_if_it_is_found_filled_later() -> None:
    noted = note_gaps(a_range(), [(3, 4), (8, 8)], scanned_to=10)
    assert noted.gaps == ((3, 4), (8, 8))
    assert note_gaps(noted, [(8, 8)], scanned_to=10) == noted
    further = note_gaps(noted, [(8, 8), (10, 12)], scanned_to=15)
    assert further.gaps == ((3, 4), (8, 8), (11, 12))
    assert further.gaps_to == 15


gaps_strategy = st.sets(st.integers(0, 60)).map(
    lambda ids: [(i, i) if i + 1 not in ids else (i, i + 1) for i in sorted(ids) if i - 1 not in ids]
)


@given(gaps_strategy, st.integers(-1, 62))
def test_being_in_a_gap_is_what_it_says(gaps: list[Gap], audit_id: int) -> None:
    assert in_gaps(gaps, audit_id) == any(low <= audit_id <= high for low, high in gaps)


@given(gaps_strategy, st.integers(0, 60), st.integers(0, 60))
def test_clipping_keeps_exactly_the_ids_within(gaps: list[Gap], above: int, up_to: int) -> None:
    kept = {id_ for low, high in clip(gaps, above, up_to) for id_ in range(low, high + 1)}
    assert kept == {id_ for low, high in gaps for id_ in range(low, high + 1) if above < id_ <= up_to}


def test_a_split_gives_the_tail_a_new_number_and_begins_behind_all_that_may_have_been_published() -> None:
    halves = split(a_range(cursor=10, reach=60, gaps=((5, 6),), gaps_to=70), 4, [])
    assert halves is not None
    head, tail = halves
    assert (head.id_range, head.cursor, head.last, head.gaps) == (0, 10, 85, ((5, 6),))
    assert tail == IdRange(4, first=85, cursor=85, last=100)


def test_a_split_follows_the_rows_where_ids_are_spread_unevenly() -> None:
    halves = split(a_range(last=2**40), 1, [10, 20, 30, 40, 50])
    assert halves[0].last == 30


def test_a_range_without_room_is_not_split() -> None:
    assert split(a_range(cursor=10, reach=99), 1, []) is None
    assert split(a_range(cursor=100), 1, []) is None


@given(st.integers(0, 99), st.integers(0, 120), st.lists(st.integers(-5, 130)).map(sorted))
def test_a_split_loses_and_doubles_no_id(cursor: int, reach: int, ids: list[int]) -> None:
    whole = a_range(cursor=cursor, reach=reach)
    halves = split(whole, 1, ids)
    if halves is not None:
        head, tail = halves
        assert (head.cursor, head.last, tail.first, tail.cursor, tail.last) == (
            cursor,
            tail.first,
            head.last,
            head.last,
            100,
        )
        assert min(reach, 100) <= head.last
        assert head.cursor < head.last < tail.last


def test_a_split_that_died_half_way_is_mended() -> None:
    head, tail = a_range(cursor=10), a_range(id_range=1, first=60, cursor=70)
    late = a_range(id_range=2, first=5, cursor=5, late=True)
    assert [(r.id_range, r.cursor, r.last) for r in reconcile([late, tail, head])] == [(0, 10, 60), (1, 70, 100)]
    assert reconcile([]) == []


def test_ranges_are_shared_out_evenly_and_done_ones_not_at_all() -> None:
    ranges = [
        a_range(id_range=0, last=50),
        a_range(id_range=1, first=50, cursor=100),
        a_range(id_range=2, first=100, cursor=100, last=130),
        a_range(id_range=3, first=130, cursor=130, last=150),
    ]
    assert [[r.id_range for r in lot] for lot in share_out(ranges, 2)] == [[0], [2, 3]]
    assert [[r.id_range for r in lot] for lot in share_out(ranges, 1)] == [[0, 2, 3]]
    assert share_out([ranges[1]], 3) == []


def test_numbers_are_never_taken_twice() -> None:
    assert next_number([]) == 0
    assert next_number([a_range(id_range=4), a_range(id_range=2)]) == 5


def test_progress_is_of_ids_and_late_ranges_do_not_count() -> None:
    assert progress([]) == 1.0
    assert progress([a_range(cursor=25), a_range(first=100, cursor=125, last=200), a_range(late=True)]) == 0.25


def test_the_gaps_of_all_ranges_come_in_rising_order() -> None:
    assert all_gaps([a_range(gaps=((9, 9),)), a_range(gaps=((1, 3), (5, 5)))]) == [(1, 3), (5, 5), (9, 9)]
