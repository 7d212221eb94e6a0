"""The report about the seam, on real servers: planted gaps and overlaps are named, and nothing else."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from ops.checks.seam.check import Report, SeamOptions, check_seam
from ops.cli.main import application
from ops.jobs import migrations
from ops.local.sample.contacts import seed_contacts
from ops.local.sample_crm import SAMPLE_YAML, load_sample, mapping_path
from ops.progress import PlainView
from schemas.process.connections import Connections

EVERYTHING = SeamOptions(mapping_path=str(mapping_path(SAMPLE_YAML)), window_s=0, named_max=10_000)


@pytest.fixture
def seam(
    database_dsn: str, mongodb_url: str, mongo_database: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Connections]:
    """Give the sample CRM, its contacts, and no activity log yet."""
    monkeypatch.setenv("CRM_AUDIT_DATABASE_URL", database_dsn)
    monkeypatch.setenv("MONGODB_URL", mongodb_url)
    monkeypatch.setenv("MONGODB_DATABASE", mongo_database.name)
    load_sample(database_dsn)
    migrations.up(mongo_database)
    seed_contacts(mongo_database)
    return mongo_database, Connections()


def look(connections: Connections, options: SeamOptions = EVERYTHING) -> Report:
    return check_seam(SAMPLE_YAML, options, connections, PlainView())


def log_of(finding: Any, **values: Any) -> dict[str, Any]:
    """Return a document as either side writes it, as far as the report reads it."""
    return {
        "company_sso_id": SAMPLE_YAML,
        "customer_id": finding.customer_id,
        "category": finding.category,
        "action": finding.action,
        "timestamp": datetime.fromisoformat(finding.as_dict()["created_at"]),
        **values,
    }


def write_all(database: Any, connections: Connections) -> list[Any]:
    """Write every document there has to be; return what they are of, in id order."""
    empty = look(connections)
    assert empty.gaps == empty.checked == len(empty.findings) > 150
    assert 0 < empty.gaps_of_replay < empty.gaps  # both sides own some
    rows = sorted(empty.findings, key=lambda finding: finding.audit_id)
    database["activity_logs"].insert_many(
        [log_of(finding, external_id=f"crm_audit:{finding.audit_id}") for finding in rows]
    )
    assert look(connections).clean
    return rows


def test_what_neither_side_has_written_is_a_gap_of_its_owner_and_what_both_have_is_an_overlap(seam: Any) -> None:
    database, connections = seam
    rows = write_all(database, connections)
    logs = database["activity_logs"]
    lost = next(row for row in rows if row.owner == "replay")
    also_lost = next(row for row in rows if row.owner == "live")
    for row in (lost, also_lost):
        logs.delete_one({"external_id": f"crm_audit:{row.audit_id}"})
    # Alone with its key for long around, so that no other row can be meant.
    keys = [(row.customer_id, row.category, row.action) for row in rows]
    doubled = next(
        row
        for row in rows
        if keys.count((row.customer_id, row.category, row.action)) == 1 and row not in (lost, also_lost)
    )
    legacy = log_of(doubled)
    legacy["timestamp"] += timedelta(seconds=1.9)
    legacy_id = logs.insert_one(legacy).inserted_id

    report = look(connections)
    assert (report.gaps, report.gaps_of_replay, report.overlaps) == (2, 1, 1)
    found = {(finding.kind, finding.audit_id, finding.owner) for finding in report.findings}
    assert found == {
        ("gap", lost.audit_id, "replay"),
        ("gap", also_lost.audit_id, "live"),
        ("overlap", doubled.audit_id, doubled.owner),
    }
    overlap = next(finding for finding in report.findings if finding.kind == "overlap")
    assert str(legacy_id) in overlap.documents

    # A legacy document of the live feed for the lost row: it was written, before there were external ids.
    logs.insert_one(log_of(also_lost))
    # Beyond the tolerance it is some other event.
    logs.update_one({"_id": legacy_id}, {"$set": {"timestamp": legacy["timestamp"] + timedelta(seconds=1)}})
    report = look(connections)
    assert (report.gaps, report.gaps_of_replay, report.overlaps, report.written_before) == (1, 1, 0, 1)
    assert report.checked == report.written + report.written_before + report.gaps


def test_the_window_leaves_out_what_is_far_from_the_watermark(seam: Any) -> None:
    database, connections = seam
    rows = write_all(database, connections)
    near = [row for row in rows if abs(row.created_at - row.watermark) <= 3_600_000_000]
    assert 0 < len(near) < len(rows)
    far = next(row for row in rows if row not in near)
    database["activity_logs"].delete_one({"external_id": f"crm_audit:{far.audit_id}"})
    an_hour = SeamOptions(mapping_path=EVERYTHING.mapping_path, window_s=3600)
    report = look(connections, an_hour)
    assert report.clean
    assert report.checked == len(near)
    database["activity_logs"].delete_one({"external_id": f"crm_audit:{near[0].audit_id}"})
    assert [finding.audit_id for finding in look(connections, an_hour).findings] == [near[0].audit_id]


def test_the_exit_code_says_whether_it_is_clean(seam: Any) -> None:
    database, connections = seam
    rows = write_all(database, connections)
    words = ["seam", "--account", SAMPLE_YAML, "--mapping", EVERYTHING.mapping_path, "--window", "0", "--json"]
    clean = CliRunner().invoke(application(), words)
    assert clean.exit_code == 0, clean.output
    assert json.loads(clean.stdout)["clean"] is True
    database["activity_logs"].delete_one({"external_id": f"crm_audit:{rows[0].audit_id}"})
    unclean = CliRunner().invoke(application(), words)
    assert unclean.exit_code == 1
    shown = json.loads(unclean.stdout)
    assert [finding["audit_id"] for finding in shown["findings"]] == [rows[0].audit_id]
    plain = CliRunner().invoke(application(), words[:-1])
    assert plain.exit_code == 1
    assert f"gap: row {rows[0].audit_id}" in plain.stdout
    assert "NOT CLEAN" in plain.stdout
