"""The pure half of the nightly check: results in every form, and where a night's sample is taken."""

import itertools
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from ops.checks.model import Verdict, fail, ok, warn
from ops.checks.nightly.model import PLATFORM, AccountResult, Results, segments


def results() -> Results:
    return Results(
        [
            AccountResult(PLATFORM, [ok("mongodb_indexes", "all there")]),
            AccountResult(
                "acme & \x07 <co>", [warn("a", "hm", "look"), fail("b", "1 missing \x00", "verify", n=1)], 2.0
            ),
        ],
        seed=7,
        seconds=3.0,
    )


def test_a_failure_anywhere_closes_the_gate() -> None:
    found = results()
    assert not found.ok
    assert (found.counted(Verdict.OK), found.counted(Verdict.WARN), found.counted(Verdict.FAIL)) == (1, 1, 1)
    assert [result.verdict for result in found.results] == [Verdict.OK, Verdict.FAIL]
    found.results[1].checks.pop()
    assert found.ok


def test_json_names_the_account_and_every_check() -> None:
    answer = results().as_dict()
    assert (answer["ok"], answer["seed"], answer["checks"]) == (False, 7, {"ok": 1, "warn": 1, "fail": 1})
    assert [result["company_sso_id"] for result in answer["results"]] == [None, "acme & \x07 <co>"]
    assert answer["results"][1]["checks"][1]["facts"] == {"n": 1}


def test_junit_is_legal_xml_whatever_the_names_hold() -> None:
    root = ET.fromstring(results().as_junit())
    assert (root.get("tests"), root.get("failures")) == ("3", "1")
    suite = root.findall("testsuite")[1]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("acme & ? <co>", "2", "1")
    cases = suite.findall("testcase")
    assert cases[0].find("failure") is None
    failure = cases[1].find("failure")
    assert failure.get("message") == "1 missing ?"
    assert failure.text == "1 missing ?\nverify"


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**7),
    st.integers(1, 10**6),
    st.integers(1, 30),
    st.integers(1, 500),
    st.integers(0, 5),
    st.lists(st.integers(0, 10**7), max_size=30),
)
def test_a_sample_lies_within_the_ids_and_has_the_newest_among_it(
    low: int, width: int, rows: int, places: int, rows_a_place: int, seed: int, spread: list[int]
) -> None:
    top = low + width
    found = segments(low, top, rows, places=places, rows_a_place=rows_a_place, seed=seed, spread=spread)
    assert found[-1][1] == top
    assert all(low <= begin < end <= top for begin, end in found)
    assert all(end < following for (_, end), (following, _) in itertools.pairwise(found))
    assert 1 <= len(found) <= places
    if rows <= places * rows_a_place:
        assert found == [(low, top)]
    assert found == segments(low, top, rows, places=places, rows_a_place=rows_a_place, seed=seed, spread=spread)


def test_each_seed_takes_other_places_and_a_spread_is_followed() -> None:
    taken = [segments(0, 10**6, 10**6, places=5, rows_a_place=10, seed=seed) for seed in range(5)]
    assert len({tuple(found) for found in taken}) == 5
    clustered = [900_000 + n * 100 for n in range(1_000)]
    found = segments(0, 10**6, 10**6, places=20, rows_a_place=10, seed=1, spread=clustered)
    assert all(begin >= 899_000 for begin, _ in found)


def test_nothing_to_look_at_is_no_segment() -> None:
    assert segments(5, 5, 10, places=3, rows_a_place=3, seed=0) == []
    assert segments(0, 5, 0, places=3, rows_a_place=3, seed=0) == []
