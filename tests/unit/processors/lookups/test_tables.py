"""The published high-water, as it travels with the committed offset."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.lookups.tables import NOTE_BYTES_MAX, HighWater, ReferenceTables
from schemas.codec import Codec
from schemas.topics import AccountTopics


def test_rows_of_a_range_are_published_once() -> None:
    high = HighWater(run=3)
    assert not high.is_republished(0, 10)
    assert not high.is_republished(0, 11)
    assert high.is_republished(0, 11)
    assert high.is_republished(0, 4)
    assert not high.is_republished(1, 4)
    assert not high.is_republished(0, 12)


@given(st.dictionaries(st.integers(0, 50), st.integers(1, 2**62), max_size=20), st.booleans())
def test_a_note_brings_it_back(by_range: dict[int, int], ended: bool) -> None:
    high = HighWater(run=3)
    for id_range, audit_id in by_range.items():
        assert not high.is_republished(id_range, audit_id)
    high.ended = ended
    again = HighWater(3, high.note())
    assert again.ended == ended
    assert all(again.is_republished(id_range, audit_id) for id_range, audit_id in by_range.items())
    assert not any(again.is_republished(id_range, audit_id + 1) for id_range, audit_id in by_range.items())


def test_a_note_of_another_run_does_not_count() -> None:
    high = HighWater(run=3)
    high.is_republished(0, 10)
    high.ended = True
    other = HighWater(4, high.note())
    assert not other.ended
    assert not other.is_republished(0, 10)


@pytest.mark.parametrize(
    "note", ["", "somebody else's", "[]", "3", '{"run": 3}', '{"run": 3, "high": 5, "ended": true}']
)
def test_what_is_no_note_of_ours_begins_empty(note: str) -> None:
    high = HighWater(3, note)
    assert not high.is_republished(0, 1)
    assert not high.ended


def test_a_note_fits_kafkas_bound_and_keeps_the_highest_ranges() -> None:
    high = HighWater(run=2_000_000_000)
    for id_range in range(1000):
        high.is_republished(id_range, 2**62 + id_range)
    note = high.note()
    assert len(note) <= NOTE_BYTES_MAX
    kept = json.loads(note)["high"]
    assert len(kept) > 80
    assert min(map(int, kept)) == 1000 - len(kept)


def test_the_readers_group_is_under_the_prefix_of_its_topics() -> None:
    """A right on `crm.*` has to cover it: librdkafka looks up the coordinator of a group that nothing joins."""
    topics = AccountTopics.of("acme")
    references = {"contacts": topics.contacts, "users": topics.users, "referents": topics.referents}
    assert ReferenceTables({}, references, Codec())._config["group.id"].startswith("crm.")
