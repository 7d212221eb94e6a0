"""The source mapping file: what is accepted, and what an operator is told about what is not."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from schemas import mapping
from schemas.errors import MappingError

SMALL = "scope: [Crm::Deal]\ncategories:\n  Crm::Deal: {category: deal}\n"


def test_the_default_mapping_serves_the_sample() -> None:
    default = mapping.load(None)
    sample = json.loads(files("ops.local").joinpath("sample/id_sets.json").read_text("utf-8"))
    assert default.id_sets["won"] == (sample["crm_stage_id"]["won"],)
    assert default.id_sets["done"] == (sample["crm_task_status_id"]["done"],)
    assert default.id_sets["resolved"] == (sample["crm_ticket_status_id"]["resolved"],)
    assert set(default.join_models) == set(sample["join_models"])
    assert not set(default.categories) & set(sample["out_of_scope_types"])
    assert default.time_zone is None
    assert default.actors.deleted_user == "[Deleted CRM User]"


def test_a_small_mapping_has_defaults_for_the_rest() -> None:
    parsed = mapping.parse(SMALL, "small.yaml")
    assert parsed.person.columns == ("crm_person_id",)
    assert parsed.columns_of({"*": ("a",), "Crm::Deal": ("b",), "Other": ("c",)}, "Crm::Deal") == {"a", "b"}


def test_everything_can_be_said() -> None:
    parsed = mapping.parse(
        SMALL
        + "enums:\n  Crm::Deal: {status: {0: open, won: Won}}\n"
        + "list_columns: {Crm::Deal: [product_ids]}\n"
        + "times_of_day: {'*': [start_time]}\n"
        + "time_zone: Asia/Jakarta\n"
        + "actors: {system: The System}\n",
        "all.yaml",
    )
    assert parsed.enums["Crm::Deal"]["status"] == {0: "open", "won": "Won"}
    assert parsed.actors.system == "The System"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL + "time_zone: Mars/Olympus\n", ("line 4", "time_zone", "Mars/Olympus")),
        (SMALL + "time_zone: ../../etc/passwd\n", ("line 4", "time_zone")),
        (SMALL + "redacted: {}\n", ("line 4", "redacted")),
        (SMALL + "redact:\n  Crm::Deal: name\n", ("line 5", "redact.Crm::Deal")),
        (SMALL + "join_models:\n  Crm::Deal: {category: deal, links: {a: X, b: Y}}\n", ("Crm::Deal", "join_models")),
        (SMALL + "join_models:\n  Crm::DealPerson: {category: deal, links: {a: X}}\n", ("line 5", "links")),
        ("scope: []\ncategories: {}\n", ("line 1", "scope")),
        ("scope: [A]\n", ("categories",)),
        ("- a\n", ("line 1", "not a mapping")),
        ("a: [\n", ("line 2", "not YAML")),
        ("scope: [A]\ncategories:\n  A: {category: a, statsu: 1}\n", ("line 3", "statsu")),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: tuple[str, ...]) -> None:
    with pytest.raises(MappingError) as caught:
        mapping.parse(text, "mine.yaml")
    assert caught.value.exit_code == 2
    for part in ("mine.yaml", *said):
        assert part in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"missing\.yaml"):
        mapping.load(tmp_path / "missing.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MappingError, match="--mapping"):
        mapping.load(binary)
