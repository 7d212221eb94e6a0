"""Figures of ids: the same on both sides where the ids are, whatever the order and the parts, and else not."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sink.identity import ALL_IN_ONE, added, ids_of, shift_of, unlike, with_ids

ids = st.sets(st.integers(-(2**63), 2**63 - 1), max_size=40)


@given(ids, st.integers(0, 64), st.randoms())
def test_neither_order_nor_parts_make_a_difference(some: set[int], shift: int, chance: random.Random) -> None:
    whole = with_ids({}, sorted(some), shift)
    mixed = list(some)
    chance.shuffle(mixed)
    cut = chance.randint(0, len(mixed))
    assert with_ids(with_ids({}, mixed[:cut], shift), mixed[cut:], shift) == whole
    assert added([with_ids({}, mixed[:cut], shift), with_ids({}, mixed[cut:], shift)]) == whole
    assert sum(count for count, _ in whole.values()) == len(some)


@given(ids, ids, st.integers(0, 64))
def test_ranges_that_differ_are_those_with_an_id_on_one_side_only(ours: set[int], theirs: set[int], shift: int) -> None:
    found = unlike(with_ids({}, list(ours), shift), with_ids({}, list(theirs), shift))
    assert found == sorted({audit_id >> shift for audit_id in ours ^ theirs})


def test_ids_that_stand_in_for_others_with_the_same_sum_are_told_apart() -> None:
    base = 1_200_000_000
    for gone, planted in (((5, 9), (6, 8)), ((1, 5, 6), (2, 3, 7)), ((0, 4, 7, 11), (1, 2, 9, 10))):
        ours = with_ids({}, [base + number for number in gone], ALL_IN_ONE)
        assert unlike(ours, with_ids({}, [base + number for number in planted], ALL_IN_ONE)) == [0]


@pytest.mark.parametrize("top", [0, 1, 63, 64, 1_200_001_000_000, 2**63 - 1])
def test_ids_have_64_ranges_at_most(top: int) -> None:
    shift = shift_of(top)
    assert top >> shift < 64
    low, high = ids_of(top >> shift, shift)
    assert low < top <= high
    assert (low + 1) >> shift == high >> shift == top >> shift


def test_a_sum_is_what_mongodb_keeps() -> None:
    figures = with_ids({}, range(1, 10_000), ALL_IN_ONE)
    assert 0 <= figures[0][1] < 2**63
