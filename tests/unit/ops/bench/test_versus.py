"""Another pipeline beside ours: what its directory must have, and what is made of its results."""

from pathlib import Path

import pytest

from ops.bench.versus import MAPPING, WARM_UPS, WAYS, Peer, by_way, compared
from processors.rules.categories import category_rules
from schemas.errors import BadInputError
from schemas.source import mapping


def result(way: str, rate: int) -> dict[str, object]:
    return {"rows_s": rate, "settings": {"kind": "e2e", "write": way, "tasks": 2}}


def test_runs_that_warm_the_peer_up_do_not_count() -> None:
    cold = [result(WAYS[1], 1)] * WARM_UPS
    found = by_way([*cold, result("insert", 15_000), result("replace by _id", 7_000), result("insert", 14_000)])
    assert [one["rows_s"] for one in found["insert"]] == [15_000, 14_000]
    assert [one["rows_s"] for one in found["replace by _id"]] == [7_000]
    assert found["insert by _id"] == []


def test_medians_are_compared_way_by_way() -> None:
    peers = {"insert": [result("insert", 10_000)] * 2, "insert by _id": [], "replace by _id": [result("x", 5_000)]}
    lines = compared([9_000.4, 10_000.0, 40_000.0], peers)
    assert [(line["peer"], line["ratio"]) for line in lines] == [("insert", 1.0), ("replace by _id", 2.0)]
    assert lines[0]["our_rows_per_s"] == [9_000, 10_000, 40_000]
    assert lines[0]["peer_rows_per_s"] == [10_000, 10_000, 10_000]


def test_the_peers_rows_all_have_a_category() -> None:
    rules = mapping.parse(MAPPING, "versus.yaml")
    assert {type_name for type_name, _ in category_rules(rules)} == set(rules.scope)


def test_a_directory_that_is_no_peers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.sh").touch()
    with pytest.raises(BadInputError, match=r"load_audits\.py does not exist"):
        Peer(tmp_path)
