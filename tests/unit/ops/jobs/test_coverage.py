"""How the source is cut for the contact guard."""

from hypothesis import given
from hypothesis import strategies as st

from ops.jobs.coverage import ID_RANGES, id_ranges


@given(st.integers(-1_000, 1_000), st.integers(0, 10**12))
def test_stretches_cover_every_id_once(first: int, ids: int) -> None:
    cut = id_ranges(first, first + ids)
    assert len(cut) == min(ID_RANGES, ids)
    at = first
    for low, high in sorted(cut):
        assert low == at < high
        at = high
    assert at == first + ids


def test_whatever_is_read_of_them_is_spread_over_the_whole() -> None:
    cut = id_ranges(0, 6_400)
    for count in (4, 8, 16, 32):
        begun = sorted(low for low, _ in cut[:count])
        assert begun == list(range(0, 6_400, 6_400 // count))
