"""The pure half of the dry run: where a sample is taken, what an example shows, what it all comes to."""

import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.checks.dry_run.model import Examples, Report, Tally, estimate_of, id_ranges, masked, masked_document
from ops.checks.estimates import Rate

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@given(
    st.integers(-5, 10**6),
    st.integers(0, 10**6),
    st.lists(st.integers(-100, 3 * 10**6), max_size=60),
    st.integers(0, 10**5),
    st.integers(1, 30),
)
def test_a_sample_covers_all_ids_without_overlap_and_takes_as_many_rows_as_asked_for(
    low: int, width: int, spread: list[int], rows: int, places: int
) -> None:
    top = low + width
    found = id_ranges(low, top, spread, rows, places)
    if rows == 0 or width == 0:
        assert found == []
        return
    assert (found[0][0], found[-1][1]) == (low, top)
    assert all(end == following for (_, end, _), (following, _, _) in pairwise(found))
    assert sum(count for _, _, count in found) == rows
    assert max(count for *_, count in found) - min(count for *_, count in found) <= 1


def test_a_sample_follows_the_spread_of_the_rows_where_that_is_known() -> None:
    spread = [1_000_000 + n for n in range(100)]
    found = id_ranges(0, 10_000_000, spread, 100, 10)
    assert [end for _, end, _ in found[:3]] == [1_000_010, 1_000_020, 1_000_030]
    assert [end for _, end, _ in id_ranges(0, 100, [], 10, 4)] == [25, 50, 75, 100]


def personal() -> dict[str, Any]:
    return {
        "company_sso_id": "acme",
        "customer_id": "cus-1",
        "category": "contact",
        "action": "update",
        "actor": {"type": "user", "id": "3f2e", "name": "Budi Santoso"},
        "changes": [
            {"field": "email", "label": "Email", "from": "budi@example.com", "to": None},
            {"field": "tags", "label": "Tags", "from": ["Rahayu"], "to": {"phone": "+62811"}},
            {"field": "age", "label": "Age", "from": 41, "to": True},
        ],
        "timestamp": NOON,
        "external_id": "crm_audit:7",
        "source_tag": "crm_migration",
        "metadata": {"crm_person_id": 5, "crm_company_name": "Sari Bakery", "request_id": "r-1", "version": 3},
    }


def test_an_example_shows_kinds_and_sizes_and_no_personal_value() -> None:
    shown = masked_document(personal())
    said = json.dumps(shown, default=str)
    for value in ("Budi", "budi@", "Rahayu", "+62811", "41", "Sari", "3f2e"):
        assert value not in said
    assert shown["actor"] == {"type": "user", "id": "<text, 4 characters>", "name": "<text, 12 characters>"}
    assert shown["changes"][0] == {"field": "email", "label": "Email", "from": "<text, 16 characters>", "to": None}
    assert (shown["changes"][1]["from"], shown["changes"][1]["to"]) == ("<list of 1>", "<object, 1 keys>")
    assert shown["metadata"] == {
        "crm_person_id": 5, "crm_company_name": "<text, 11 characters>", "request_id": "r-1", "version": 3
    }  # fmt: skip
    assert shown["timestamp"] == NOON


def test_the_names_that_a_mapping_gives_stay_readable() -> None:
    document = personal() | {"actor": {"type": "system", "id": None, "name": "Qontak System"}}
    assert masked_document(document)["actor"]["name"] == "Qontak System"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None), ("", ""), ([], []), ({}, {}), (0, "<number>"), (1.5, "<number>"), (False, "<boolean>"),
        (NOON, "<datetime>"),
    ],
)  # fmt: skip
def test_what_is_empty_stays_and_all_else_is_a_kind(value: Any, shown: Any) -> None:
    assert masked(value) == shown


def test_each_row_is_in_one_bin_and_the_estimate_scales_with_the_rows() -> None:
    tally = Tally(
        rows=100,
        logs=Counter({"deal/won": 50}),
        skipped=Counter({"contact_not_found": 40}),
        failed=Counter({"undecodable_changes": 10}),
        text_bytes=20_000,
        event_bytes=40_000,
        document_bytes=30_000,
    )
    found = estimate_of(tally, 1_000, Rate(100, "said"), 100)
    assert (found.topics_bytes, found.documents_bytes, found.seconds, found.row_bytes) == (700_000, 350_000, 10, 200)
    report = Report("a", 1_000, 9, NOON, tally, Examples(1), {}, {}, found, 500.0)
    assert (report.sampled, report.would_halt, tally.failure_rate) == (True, False, 0.1)
    answer = report.as_dict()
    assert answer["rows_looked_at"] == answer["logs_total"] + 40 + 10
    assert "1,000 rows take about 10 s at 100 rows/s (said)" in report.estimate_text()
    tally.failed["undecodable_changes"] += 1
    assert report.would_halt
    assert estimate_of(Tally(), 0, Rate(100, "said"), 100).documents_bytes == 0


def test_as_many_examples_are_kept_as_were_asked_for() -> None:
    examples = Examples(2)
    assert examples.wanted(examples.logs, "deal/won")
    examples.logs["deal/won"] = [{}, {}]
    assert not examples.wanted(examples.logs, "deal/won")
    assert examples.wanted(examples.logs, "deal/link")
    assert not Examples(0).wanted({}, "x")
