"""`crm-replay transform`: every sample row, and what an operator is told about a file that is not right."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadInputError
from tests.support.transform_command import run
from tests.unit.schemas.sample import as_stored, lines

SAMPLE = Path(__file__).parents[4] / "ops" / "local" / "sample"
ROW = {"id": 5, "created_at": "2024-01-31T17:30:00.123456Z", "auditable_type": "Crm::Person", "auditable_id": 7}
REDACTED = {"national_id", "portal_token", "ssn"}


def outcomes(*arguments: str | Path, text: str | bytes | None = None) -> list[dict[str, Any]]:
    result = run(*arguments, text=text)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.split("\n") if line]


@pytest.mark.parametrize("table", ["audits_yaml", "audits_jsonb"])
def test_every_sample_row_has_one_line_with_the_gem_s_values(table: str) -> None:
    found = outcomes("--rows", SAMPLE / f"{table}.jsonl")
    truth = {line["id"]: line["changes"] or {} for line in lines("expected_changes.jsonl") if line["table"] == table}
    assert [outcome["id"] for outcome in found] == list(truth)
    logs = 0
    for outcome, row in zip(found, lines(f"{table}.jsonl"), strict=True):
        if outcome["outcome"] != "log":
            assert outcome["outcome"] == "skip"
            continue
        logs += 1
        values = as_stored(truth[outcome["id"]])
        document = outcome["document"]
        assert document["external_id"] == f"crm_audit:{outcome['id']}"
        shown = {change["field"]: change for change in document["changes"]}
        nulls = {column for column, value in values.items() if value is None} - REDACTED
        assert set(shown) == set(values) - (nulls if row["action"] == "create" else set())
        for column, change in shown.items():
            if column in REDACTED:
                assert {change["from"], change["to"]} <= {None, "[REDACTED]"}
            elif row["action"] == "create":
                assert (change["from"], change["to"]) == (None, values[column])
            elif row["action"] == "destroy":
                assert (change["from"], change["to"]) == (values[column], None)
            else:
                assert [change["from"], change["to"]] == values[column] or (
                    (change["from"], change["to"]) == (None, values[column])
                )
    assert logs > 150


def test_without_contacts_every_person_is_one_and_without_users_nobody_is_known() -> None:
    (outcome,) = outcomes(
        "--rows", "-", text=json.dumps(ROW | {"action": "create", "user_type": "User", "user_id": 11})
    )
    assert outcome["document"]["customer_id"] == "contact-7"
    assert outcome["document"]["company_sso_id"] == "company"
    assert outcome["document"]["actor"]["type"] == "deleted_user"
    assert outcome["document"]["timestamp"] == "2024-01-31T17:30:00.123Z"


def test_users_and_contacts_come_from_files(tmp_path: Path) -> None:
    contacts, users = tmp_path / "contacts.jsonl", tmp_path / "users.jsonl"
    contacts.write_text(
        '{"crm_person_id":"7","customer_id":"c-7","created_at":"2024-01-31T17:30:00.123457Z"}\n\n'
        '{"crm_person_id":8,"customer_id":"c-8","created_at":"2024-01-31T17:30:00.123456Z"}\n'
    )
    users.write_text(
        '{"id":11,"full_name":"Siti","email":null}\n{"id":12,"full_name":"Left","deleted_at":"2024-01-01"}\n'
    )
    rows = [
        ROW | {"action": "create", "user_type": "User", "user_id": 11},
        ROW | {"action": "create", "user_type": "User", "user_id": 12},
        ROW | {"action": "create", "auditable_id": 8},
        ROW | {"action": "create", "auditable_id": 9},
        ROW | {"action": "create", "auditable_type": "Crm::Product"},
        ROW | {"action": "create", "audited_changes": "---\na: 'x"},
        ROW | {"action": "update", "audited_changes": {"a": [1, 123456789012345678901234567890]}},
        ROW | {"action": "create", "audited_changes": json.dumps({"a": "\u2028" * 6_000_000}, ensure_ascii=False)},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    found = outcomes("--rows", "-", "--contacts", contacts, "--users", users, "--company", "A", text=text)
    assert [(outcome["outcome"], outcome.get("reason")) for outcome in found] == [
        ("log", None),
        ("log", None),
        ("skip", "post_sync_live_feed"),
        ("skip", "contact_not_found"),
        ("skip", "unmapped_action_type"),
        ("dead_letter", "undecodable_changes"),
        ("log", None),
        ("dead_letter", "document_too_large"),
    ]
    assert found[0]["document"]["actor"] == {"type": "user", "id": "sso-11", "name": "Siti"}
    assert found[1]["document"]["actor"]["id"] is None
    assert found[6]["document"]["changes"][0]["to"] == "123456789012345678901234567890"


def test_another_account_s_contact_is_none(tmp_path: Path) -> None:
    contacts = tmp_path / "contacts.jsonl"
    contacts.write_text(
        '{"company_sso_id":"A","crm_person_id":7,"customer_id":"a-7"}\n'
        '{"company_sso_id":"B","crm_person_id":7,"customer_id":"b-7"}\n'
        '{"company_sso_id":"B","crm_person_id":8,"customer_id":"b-8"}\n'
    )
    text = "\n".join(json.dumps(ROW | {"action": "create", "auditable_id": person_id}) for person_id in (7, 8))
    found = outcomes("--rows", "-", "--contacts", contacts, "--company", "A", text=text)
    assert found[0]["document"]["customer_id"] == "a-7"
    assert found[1]["reason"] == "contact_not_found"


def test_lines_end_at_line_feeds_only() -> None:
    row = json.dumps(ROW | {"action": "create", "audited_changes": "---\nname: 'a\u2028b'\n"}, ensure_ascii=False)
    (outcome,) = outcomes("--rows", "-", text=f"{row}\r\n\n".encode())
    assert outcome["document"]["changes"][0]["to"] == "a\u2028b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", ("line 1", "not JSON")),
        (json.dumps(ROW) + "\n[]", ("line 2", "not a JSON object")),
        (b"\xff\xfe", ("line 1", "not JSON")),
        (json.dumps(ROW | {"id": "5"}), ("line 1", "id", "integer")),
        ("{}", ("line 1", "id")),
        (json.dumps(ROW | {"created_at": None}), ("line 1", "created_at")),
        (json.dumps(ROW | {"created_at": "soon"}), ("line 1", "created_at")),
        (json.dumps(ROW | {"version": "x"}), ("line 1", "version")),
        (json.dumps(ROW | {"comment": 5}), ("line 1", "comment")),
        (json.dumps(ROW | {"auditable_id": 2**63}), ("line 1", "auditable_id")),
        ("[" * 100_000, ("line 1", "not JSON")),
    ],
)
def test_a_broken_line_is_named_by_its_number(text: str | bytes, said: tuple[str, ...]) -> None:
    with pytest.raises(BadInputError) as caught:
        run("--rows", "-", text=text)
    assert caught.value.exit_code == 2
    for part in ("standard input", *said):
        assert part in str(caught.value)


@pytest.mark.parametrize("option", ["--rows", "--contacts", "--users", "--mapping"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, option: str) -> None:
    rows = [] if option == "--rows" else ["--rows", str(SAMPLE / "audits_yaml.jsonl")]
    with pytest.raises(BadInputError, match=r"missing\.x"):
        run(*rows, option, tmp_path / "missing.x")


@pytest.mark.parametrize(
    "line", ['{"crm_person_id":1}', '{"customer_id":"c"}', '{"crm_person_id":1,"customer_id":"c","created_at":1}']
)
def test_a_broken_contact_is_named(tmp_path: Path, line: str) -> None:
    contacts = tmp_path / "contacts.jsonl"
    contacts.write_text(line)
    with pytest.raises(BadInputError, match=r"contacts\.jsonl, line 1"):
        run("--rows", SAMPLE / "audits_yaml.jsonl", "--contacts", contacts)


def test_a_row_under_a_former_name_becomes_what_it_would_under_the_name_now(tmp_path: Path) -> None:
    text = files("schemas.source").joinpath("mapping.default.yaml").read_text("utf-8")
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(text.replace("aliases: {}", "aliases: {Person: Crm::Person, Deal: Crm::Deal}"))
    rows = [
        {**ROW, "action": "update", "audited_changes": "---\nssn:\n- '1'\n- '2'\n"},
        {**ROW, "auditable_type": "Crm::Deal", "associated_type": "Crm::Person", "associated_id": 7, "action": "update",
         "audited_changes": "---\ncrm_stage_id:\n- 1\n- 39\n"},
    ]  # fmt: skip
    former = json.loads(json.dumps(rows).replace("Crm::", ""))
    as_text = ["".join(f"{json.dumps(row)}\n" for row in some) for some in (rows, former)]
    now, then = (outcomes("--rows", "-", "--mapping", renamed, text=each) for each in as_text)
    assert then == now
    assert [outcome["document"]["action"] for outcome in now] == ["update", "won"]
    assert now[1]["document"]["metadata"]["linked_entity_type"] == "Crm::Deal"
    assert [outcome["outcome"] for outcome in outcomes("--rows", "-", text=as_text[1])] == ["skip", "skip"]
