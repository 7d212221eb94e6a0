"""A run enriches the association logs of its rows: without a further command, whatever dies, at no run's cost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.checks.nightly.run import check_enrichment
from ops.checks.preflight import Verdict
from ops.enrich.run import EnrichOptions, Run, enrich_account
from ops.jobs.store import JobStore
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from ops.runner import enrichment
from ops.runner.lease import HaltedError
from ops.runner.options import RunOptions, RunResult
from ops.runner.replay import run_account
from schemas.errors import ServiceUnreachableError
from schemas.vocabulary import JobStatus
from tests.e2e.conftest import DIES_AT_ITS_FIFTH_BATCH, Crm, everything, mapping_of, without_links

pytestmark = pytest.mark.services
MAPPING = mapping_of(SAMPLE_YAML)
KILLED = f"""{DIES_AT_ITS_FIFTH_BATCH}
from functools import partial
from pathlib import Path
from ops.enrich import run as enrich
from ops.local import services
from ops.runner import enrichment as run_enrichment
from ops.runner.options import RunOptions
from ops.runner.replay import run_account
from ops.progress import PlainView
run_enrichment.EnrichOptions = partial(enrich.EnrichOptions, batch_rows=5)
options = RunOptions(mapping_path=sys.argv[2], home=Path(os.environ["CRM_REPLAY_HOME"]))
run_account(sys.argv[1], options, services.connections(), PlainView())
"""


def job_of(crm: Crm) -> dict[str, Any]:
    found = crm.database["crm_activity_log_migration_jobs"].find_one({"partial": False}, sort=[("started_at", -1)])
    assert found is not None
    return found


def counts(job: dict[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("records_total", "records_migrated", "records_skipped", "records_failed")}


def run_here(crm: Crm, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    for name, value in crm.environment.items():
        monkeypatch.setenv(name, value)
    options = RunOptions(mapping_path=MAPPING, home=crm.home)
    return run_account(SAMPLE_YAML, options, crm.connections, PlainView())


def test_a_run_enriches_its_rows_whatever_dies(
    sample_crm: Crm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crm = sample_crm
    first = crm.run(SAMPLE_YAML, "--mapping", MAPPING)
    assert first["enrichment"]["state"] == "done"
    assert first["enrichment"]["association_rows"] == sum(first["enrichment"]["outcomes"].values()) > 30
    enrich_account(SAMPLE_YAML, EnrichOptions(), crm.connections, PlainView())  # nothing is left for it
    whole = everything(crm)
    before = without_links(crm, SAMPLE_YAML)

    # Killed with five batches patched: the job is in progress still, and the next runner continues where the cursor is.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, SAMPLE_YAML, MAPPING],
        env={**os.environ, **crm.environment, "CRM_REPLAY_HOME": str(crm.home)},
        check=False,
        timeout=240,
    )
    assert killed.returncode == -signal.SIGKILL
    died = job_of(crm)
    assert (died["status"], died["enrichment"]["state"]) == ("in_progress", "running")
    cursor = crm.database["crm_replay_enrichments"].find_one({"_id": SAMPLE_YAML})
    assert cursor["finished_at"] is None
    assert sum(cursor["outcomes"].values()) >= 10
    crm.database["crm_activity_log_migration_jobs"].update_one({"_id": died["_id"]}, {"$unset": {"lease_until": 1}})
    resumed = crm.run(SAMPLE_YAML, "--mapping", MAPPING)
    assert resumed["run"] == died["run"]
    enriched = resumed["enrichment"]
    assert enriched["state"] == "done"
    assert enriched["association_rows"] == first["enrichment"]["association_rows"]  # each row is counted once
    assert enriched["patched"] + enriched["already_complete"] == len(before)
    assert 0 < enriched["already_complete"] <= 15  # the batches in flight: patched, and not yet counted
    assert everything(crm) == whole
    assert (resumed["records_migrated"], resumed["records_skipped"]) == (0, first["records_total"])
    status = crm.status(SAMPLE_YAML)
    assert status["enrichment"] == enriched
    assert crm.call("verify", "--account", SAMPLE_YAML, "--mapping", MAPPING).returncode == 0

    # Chosen rows: theirs and no others.
    without_links(crm, SAMPLE_YAML)
    chosen = [int(log["external_id"].removeprefix("crm_audit:")) for log in before[:2]]
    words = ("rerun", "--account", SAMPLE_YAML, "--mapping", MAPPING, "--json")
    part = crm.call(*words, "--audit-ids", ",".join(map(str, chosen)))
    assert part.returncode == 0, part.stderr
    assert json.loads(part.stdout)["enrichment"]["patched"] == 2
    logs = crm.database["activity_logs"]
    assert list(logs.find({"_id": {"$in": [log["_id"] for log in before]}, "metadata.crm_person_id": {"$gt": 0}})) == [
        log for log in whole if log["_id"] in [log["_id"] for log in before[:2]]
    ]

    # An enrichment that cannot be done costs the run nothing; the command finishes it.
    with monkeypatch.context() as patched:
        patched.setattr(enrichment, "PAUSES_S", (0.1,))
        tries: list[object] = []

        def away(self: object) -> None:
            tries.append(self)
            raise ServiceUnreachableError("cannot connect to PostgreSQL database crm", "check it")

        patched.setattr(Run, "enrich", away)
        result = run_here(crm, patched)
    assert len(tries) == 2
    assert (result.job.status, result.job.accuracy_pct, result.job.error) == ("completed", 100.0, None)
    status = crm.status(SAMPLE_YAML)
    assert status["enrichment"]["state"] == "pending"
    assert "cannot connect to PostgreSQL" in status["enrichment"]["error"]
    assert result.job.enrichment is not None
    warned = check_enrichment(result.job)
    assert (warned.verdict, warned.found) == (
        Verdict.WARN,
        "pending: cannot connect to PostgreSQL database crm: check it",
    )
    finished = counts(job_of(crm))
    enrich_account(SAMPLE_YAML, EnrichOptions(), crm.connections, PlainView())
    assert everything(crm) == whole
    done = job_of(crm)
    assert (done["enrichment"]["state"], done["enrichment"]["error"]) == ("done", None)
    assert counts(done) == finished

    # Halted in the middle of it: the job stays halted, and a resume is a resume.
    without_links(crm, SAMPLE_YAML)
    with monkeypatch.context() as patched:
        enrich = Run.enrich

        def halted_meanwhile(self: Run) -> Any:
            store = JobStore(crm.database)
            job = store.latest(SAMPLE_YAML)
            store.transition(job.job_id, job.status, JobStatus.HALTED, "halted by a test")
            return enrich(self)

        patched.setattr(enrichment, "SAVE_EVERY_S", 0.0)
        patched.setattr(Run, "enrich", halted_meanwhile)
        with pytest.raises(HaltedError, match="halted by a test"):
            run_here(crm, patched)
    assert job_of(crm)["status"] == "halted"

    # Turned off in the mapping: a resume with it is of the same job, whose mapping it is still.
    text = Path(MAPPING).read_text("utf-8")
    off = tmp_path / "off.yaml"
    off.write_text(f"{text}\nenrichment: {{during_run: false}}\n", "utf-8")
    bare = everything(crm)
    again = crm.call("resume", "--account", SAMPLE_YAML, "--mapping", str(off), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["enrichment"]["state"] == "off"
    assert everything(crm) == bare
