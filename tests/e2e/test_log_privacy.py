"""Logs without personal data: the sample CRM through everything at debug level, then each personal value looked for."""

import json
from pathlib import Path

import psycopg
from pymongo.errors import OperationFailure

from ops.local.sample_crm import SAMPLE_YAML
from tests.e2e.conftest import Crm, mapping_of
from tests.support.personal import personal_values

MAPPING = mapping_of(SAMPLE_YAML)
POISON = 1200021


def test_no_line_of_any_log_at_any_level_says_anything_of_a_person(sample_crm: Crm) -> None:
    values = personal_values()
    assert len(values) > 50
    with psycopg.connect(sample_crm.dsn, autocommit=True) as db:
        whole = db.execute("SELECT audited_changes FROM audits WHERE id = %s", (POISON,)).fetchone()
        broken = f"--- [Siti Nurhaliza binti Hassan, siti.nurhaliza@contoh.co.id, {whole[0]}"
        db.execute("UPDATE audits SET audited_changes = %s WHERE id = %s", (broken, POISON))
    # A server that refuses a document says which value it refused.
    refused = {"$jsonSchema": {"properties": {"external_id": {"not": {"enum": ["crm_audit:1200008"]}}}}}
    try:
        sample_crm.database.command("collMod", "activity_logs", validator=refused)
        validated = True
    except OperationFailure:  # an engine without validators: the poison row is failure enough
        validated = False
    loud = {"CRM_REPLAY_LOG_LEVEL": "DEBUG"}
    said = [sample_crm.call("run", "--account", SAMPLE_YAML, "--mapping", MAPPING, "--json", **loud)]
    assert said[0].returncode == 0, said[0].stderr
    job = json.loads(said[0].stdout)
    assert job["records_failed"] == 1 + validated
    for words in (("verify",), ("enrich",), ("status",), ("dlq", "list")):
        said.append(sample_crm.call(*words, "--account", SAMPLE_YAML, **loud))
        assert said[-1].returncode in (0, 1), said[-1].stderr

    logs = sorted((sample_crm.home / "logs").rglob("*.log"))
    assert {"producer-0", "processors-0", "sink-0"} <= {log.stem for log in logs}
    texts = {log.name: log.read_text() for log in logs}
    texts |= {f"{done.args[0]}": done.stdout + done.stderr for done in said}
    assert any('"level": "debug"' in text for text in texts.values()), "nothing was logged at debug level"
    leaks = {(name, value) for name, text in texts.items() for value in values if value in text}
    assert not leaks

    lines = sum(text.count("\n") for name, text in texts.items() if name.endswith(".log"))
    assert lines < 100 * (1 + job["records_total"] / 1000), "the volume of logs is not bounded by the rows"
    for line in "".join(texts[log.name] for log in logs).splitlines():
        entry = json.loads(line)  # every line is an object, also those of libraries and of the last words
        assert {"time", "level", "event", "process"} <= entry.keys()
    assert all(json.loads(line)["account"] == SAMPLE_YAML for line in Path(logs[-1]).read_text().splitlines()[1:])


def test_the_search_finds_what_it_looks_for() -> None:
    values = personal_values()
    assert {"Siti Nurhaliza binti Hassan", "siti.nurhaliza@contoh.co.id", "Lestari Kusumawardhani"} <= values
    assert "+6281234567890" in values
