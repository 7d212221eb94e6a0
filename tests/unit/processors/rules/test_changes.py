"""From columns to `{field, label, from, to}`: pairs, bare values, and what only the mapping can tell."""

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.rules.changes import ChangeRules, clock_time, humanized
from schemas.source import mapping

SECRET = "[REDACTED]"


def rules(**fields: Any) -> ChangeRules:
    return ChangeRules(mapping.load(None).model_copy(update=fields))


def sides(
    action: str, columns: dict[str, Any], type_name: str = "Crm::Deal", **fields: Any
) -> dict[str, tuple[Any, Any]]:
    return {
        change["field"]: (change["from"], change["to"])
        for change in rules(**fields).changes(type_name, action, columns)
    }


def test_create_leaves_nulls_out() -> None:
    assert sides("create", {"name": "a", "amount": None, "won": False, "count": 0, "tags": [1, 2], "x": ""}) == {
        "name": (None, "a"),
        "won": (None, False),
        "count": (None, 0),
        "tags": (None, [1, 2]),
        "x": (None, ""),
    }


def test_destroy_shows_what_is_gone() -> None:
    assert sides("destroy", {"name": "a", "tags": [1, 2]}) == {"name": ("a", None), "tags": ([1, 2], None)}


def test_update_shows_both_sides() -> None:
    assert sides("update", {"name": ["a", "b"], "amount": [None, 1], "labels": [["a", "b"], []]}) == {
        "name": ("a", "b"),
        "amount": (None, 1),
        "labels": (["a", "b"], []),
    }


@pytest.mark.parametrize("bare", ["text", 5, None, {}, {"a": 1}, [], [1], [1, 2, 3], True])
def test_a_bare_value_in_an_update_has_no_from(bare: Any) -> None:
    assert sides("update", {"name": ["a", "b"], "x": bare}) == {"name": ("a", "b"), "x": (None, bare)}


def test_the_order_of_the_columns_stays_and_labels_are_given() -> None:
    found = rules(labels={"Crm::Deal": {"b": "Second"}, "*": {"c": "Third", "b": "not this"}}).changes(
        "Crm::Deal", "update", {"b": [1, 2], "crm_stage_id": [1, 2], "c": [1, 2]}
    )
    assert [(change["field"], change["label"]) for change in found] == [
        ("b", "Second"),
        ("crm_stage_id", "Crm stage"),
        ("c", "Third"),
    ]
    assert list(found[0]) == ["field", "label", "from", "to"]


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("crm_person_id", "Crm person"), ("lost_reason", "Lost reason"), ("name", "Name"), ("_private", "Private"),
        ("URL", "Url"), ("amount_idr", "Amount idr"), ("id", "Id"), ("", ""), ("_id", "Id"), ("été_id", "Été"),
    ],
)  # fmt: skip
def test_a_column_is_humanised_as_rails_does(column: str, label: str) -> None:
    assert humanized(column) == label


# Combined rows: a create was folded into an update --------------------------------------------------------------------

LISTS = {"Crm::Deal": ("product_ids",)}


def test_in_a_combined_row_a_list_can_be_a_value() -> None:
    combined = {"account_id": 101, "status": [0, 1], "product_ids": [11, 12], "tags": [11, 12]}
    assert sides("update", combined, list_columns=LISTS) == {
        "account_id": (None, 101),
        "status": (0, 1),
        "product_ids": (None, [11, 12]),
        "tags": (11, 12),  # the mapping does not say that it can hold lists
    }


@pytest.mark.parametrize(
    "pair", [[[11, 12], [12, 13]], [None, [1]], [[1, 2], None], [[], [1, 2]], [{"a": 1}, {"a": 2}]]
)
def test_in_a_combined_row_a_pair_of_lists_is_a_pair(pair: list[Any]) -> None:
    assert sides("update", {"account_id": 101, "product_ids": pair}, list_columns=LISTS)["product_ids"] == tuple(pair)


def test_two_nulls_in_a_list_column_of_a_combined_row_are_a_value() -> None:
    combined = {"account_id": 101, "product_ids": [None, None]}
    assert sides("update", combined, list_columns=LISTS)["product_ids"] == (None, [None, None])


@pytest.mark.parametrize("other", [["a", "b"], SECRET, "[FILTERED]"])
def test_a_row_that_is_not_combined_holds_pairs_only(other: Any) -> None:
    # The third and fourth: the gem's 4.10 to 5.0 add a redacted column to every update.
    columns = {"name": other, "product_ids": [11, 12]}
    assert sides("update", columns, list_columns=LISTS)["product_ids"] == (11, 12)


def test_a_secret_in_the_clear_does_not_make_a_row_combined() -> None:
    columns = {"ssn": "123-45", "product_ids": [11, 12]}
    found = sides("update", columns, list_columns=LISTS, redact={"*": ("ssn",)})
    assert found == {"ssn": (None, SECRET), "product_ids": (11, 12)}


def test_creates_before_updates_do_not_change_how_updates_are_read() -> None:
    kept = rules(list_columns=LISTS)
    kept.changes("Crm::Deal", "create", {"product_ids": [11, 12]})
    assert kept.changes("Crm::Deal", "update", {"a": 1, "product_ids": [11, 12]})[1]["from"] is None


# Redaction, enums, times of day ---------------------------------------------------------------------------------------


@given(st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=3) | st.dictionaries(st.text(), st.text()))
def test_nothing_of_a_secret_is_shown(secret: Any) -> None:
    redact = {"Crm::Person": ("ssn",), "*": ("token",)}
    for column in ("ssn", "token"):
        assert sides("create", {column: secret}, "Crm::Person", redact=redact) == {column: (None, SECRET)}
        assert sides("destroy", {column: secret}, "Crm::Person", redact=redact) == {column: (SECRET, None)}
        assert sides("update", {column: [secret, secret]}, "Crm::Person", redact=redact) == {column: (SECRET, SECRET)}
    if not isinstance(secret, list) or len(secret) != 2:
        assert sides("update", {"ssn": secret}, "Crm::Person", redact=redact) == {"ssn": (None, SECRET)}
    assert sides("create", {"ssn": "1"}, "Crm::Deal", redact=redact) == {"ssn": (None, "1")}


def test_the_default_mapping_redacts_what_old_versions_stored() -> None:
    assert sides("create", {"national_id": "3174", "portal_token": "t", "ssn": "1", "name": "x"}, "Crm::Person") == {
        "national_id": (None, SECRET),
        "portal_token": (None, SECRET),
        "ssn": (None, SECRET),
        "name": (None, "x"),
    }


def test_an_enum_reads_alike_whichever_version_wrote_it() -> None:
    enums = {"Crm::Person": {"stage": {0: "subscriber", 3: "customer"}, "gender": {"F": "female"}}}
    for stored in ([0, 3], ["0", "3"], ["subscriber", "customer"]):
        assert sides("update", {"stage": stored}, "Crm::Person", enums=enums) == {"stage": ("subscriber", "customer")}
    assert sides("create", {"stage": 9, "gender": "F"}, "Crm::Person", enums=enums) == {
        "stage": (None, 9),
        "gender": (None, "female"),
    }
    assert sides("update", {"stage": [None, True]}, "Crm::Person", enums=enums) == {"stage": (None, True)}


@pytest.mark.parametrize(
    ("stored", "zone", "clock"),
    [
        ("09:30:00", None, "09:30:00"),
        ("2000-01-01T09:30:00.000+07:00", None, "09:30:00"),
        ("2000-01-01T09:30:00.000+07:00", "Asia/Jakarta", "09:30:00"),
        ("2000-01-01T23:59:59.500Z", None, "23:59:59.500000"),
        ("2000-01-01T02:30:00.000000Z", None, "02:30:00"),
        ("2000-01-01T02:30:00.000000Z", "Asia/Jakarta", "09:30:00"),
        ("1999-12-31T23:05:00.000000Z", "Asia/Jakarta", "06:05:00"),
        ("2000-01-01T02:30:00.250000Z", "Asia/Kathmandu", "08:15:00.250000"),
        ("2000-01-01 02:30:00", "Asia/Jakarta", "02:30:00"),
        ("-0001-01-01T02:30:00.000000Z", "Asia/Jakarta", "-0001-01-01T02:30:00.000000Z"),
        ("noon", "Asia/Jakarta", "noon"),
    ],
)
def test_a_time_of_day_is_a_clock_time(stored: str, zone: str | None, clock: str) -> None:
    assert clock_time(stored, ZoneInfo(zone) if zone else None) == clock
    found = sides("update", {"start": [None, stored]}, times_of_day={"Crm::Deal": ("start",)}, time_zone=zone)
    assert found == {"start": (None, clock)}


def test_what_is_no_text_in_a_time_of_day_column_stays() -> None:
    refused = {"$ruby": "Tod::TimeOfDay"}
    assert sides("create", {"start": refused}, times_of_day={"*": ("start",)}) == {"start": (None, refused)}
