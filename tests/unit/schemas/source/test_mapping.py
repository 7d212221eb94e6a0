"""The source mapping file: what is accepted, and what an operator is told about what is not."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from ops.jobs.operations import digest
from schemas.errors import MappingError
from schemas.records import AuditEvent
from schemas.source import mapping

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


# Renamed classes ------------------------------------------------------------------------------------------------------

RENAMED = SMALL + "person: {type: Crm::Person}\naliases: {Person: Crm::Person, Deal: Crm::Deal, Account: User}\n"


def event(**types: str) -> AuditEvent:
    fields = {"auditable_type": "", "associated_type": "", "user_type": ""} | types
    return AuditEvent(1, 0, 0, fields["auditable_type"], 1, fields["associated_type"], 1, fields["user_type"], 1, "",
                      "update", "", False, 1, "", "")  # fmt: skip


def test_rows_under_a_former_name_are_read_and_called_by_the_name_now() -> None:
    parsed = mapping.parse(RENAMED, "renamed.yaml")
    assert parsed.stored_types(parsed.scope) == ("Crm::Deal", "Deal")
    assert parsed.stored_types(("Crm::Person", "X")) == ("Crm::Person", "X", "Person")
    named = parsed.named_now(event(auditable_type="Deal", associated_type="Person", user_type="Account"))
    assert named == event(auditable_type="Crm::Deal", associated_type="Crm::Person", user_type="User")
    for types in ({"auditable_type": "Deal"}, {"associated_type": "Deal"}, {"user_type": "Deal"}):
        assert parsed.named_now(event(**types)) == event(**dict.fromkeys(types, "Crm::Deal"))
    other = event(auditable_type="X")
    assert parsed.named_now(other) is other


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("Crm::Person", {"Crm::Person"}),
        ("[Crm::Person, Lead]", {"Crm::Person", "Lead"}),
    ],
)
def test_a_mapping_names_one_type_of_persons_or_several(text: str, types: set[str]) -> None:
    assert mapping.parse(SMALL + f"person: {{type: {text}}}\n", "persons.yaml").person.types == types


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aliases: {A: B, B: C}\n", "A is an alias of B, which is one itself"),
        ("aliases: {A: A}\n", "A is an alias of A, which is one itself"),
        ("aliases: {Crm::Deal: Deal}\n", "scope names Crm::Deal, which is an alias: Deal stands for both"),
        ("aliases: {Crm::Person: P}\n", "person.type names Crm::Person"),
        ("aliases: {User: U}\n", "users.type names User"),
        ("aliases: {A: B}\nredact: {A: [x]}\n", "redact names A"),
        ("aliases: {A: B}\nreferents: {A: {table: a, name: n}}\n", "referents names A"),
        ("aliases: {X: B}\njoin_models: {J: {category: deal, links: {a: X, b: Y}}}\n", "join_models names X"),
        ("person: {type: []}\n", "person.type"),
    ],
)
def test_an_alias_has_no_rules_of_its_own(text: str, said: str) -> None:
    with pytest.raises(MappingError) as caught:
        mapping.parse(SMALL + text, "file.yaml")
    assert said in str(caught.value)


def test_a_mapping_without_aliases_is_what_it_was_to_a_job_that_remembers_it() -> None:
    dumped = mapping.load(None).model_dump_json()
    assert "aliases" not in dumped
    assert '"person":{"type":"Crm::Person","columns":["crm_person_id"],"comment_key":"crm_person_id"}' in dumped
    assert digest(mapping.parse(SMALL, "s.yaml")) == "e27a344755c70c875ac9da98e646b35106bcf3584a893eea6f052b4068e9e952"
    assert digest(mapping.parse(RENAMED, "r.yaml")) != digest(mapping.parse(SMALL, "s.yaml"))
    assert mapping.SourceMapping.model_validate(mapping.load(None).model_dump(by_alias=True)) == mapping.load(None)
