"""Runs whose records are framed with a schema registry's ids, on a real registry: every command reads them."""

import json
import os
from collections.abc import Iterator

import pytest

from ops.local import services
from ops.local.sample_crm import SAMPLE_YAML
from ops.local.services import Extra, ServiceSettings
from schemas.collections import ACTIVITY_LOGS
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, mapping_of
from tests.fixtures.services import private_home

pytestmark = [pytest.mark.services, pytest.mark.slow]

MAPPING = mapping_of(SAMPLE_YAML)
UNREADABLE = 1_200_001_000_000  # above every sample id
LIVE_OWNED = 1_200_282


@pytest.fixture(scope="module")
def registry(service_environment: dict[str, str]) -> Iterator[str]:
    """Give a registry's address: the one that runs already, else one started for this module."""
    if found := os.environ.get("SCHEMA_REGISTRY_URL"):
        yield found
        return
    with pytest.MonkeyPatch.context() as patch, private_home() as home:
        for name, url in service_environment.items():
            patch.setenv(name, url)
        settings = ServiceSettings.load(start_timeout_s=300.0)  # on a machine that does much else
        yield services.up(home, extras=[Extra.REGISTRY], settings=settings).schema_registry_url


@pytest.fixture
def account(sample_crm: Crm) -> str:
    """Give the sample's account under a name of its own, with one row that cannot be read."""
    sample_crm.add_row(UNREADABLE, "--- [never closed")
    return sample_crm.renamed(SAMPLE_YAML)


def test_every_command_reads_a_run_that_was_framed_by_a_registry(sample_crm: Crm, account: str, registry: str) -> None:
    crm, named = sample_crm, ("--account", account)
    plain = {**crm.environment, "SCHEMA_REGISTRY_URL": ""}
    crm.environment["SCHEMA_REGISTRY_URL"] = registry
    foreseen = json.loads(crm.call("dry-run", *named, "--mapping", MAPPING, "--json").stdout)
    job = crm.run(account, "--mapping", MAPPING)
    logs = crm.logs(account)
    assert len(logs) == job["records_migrated"] == foreseen["logs_total"] > 0

    for words in ((), ("--from-scratch", "--repair", "--yes")):
        done = crm.call("verify", *named, "--json", *words)
        report = json.loads(done.stdout)
        assert (done.returncode, report["equal"], report["documents_equal"]) == (0, True, len(logs)), done.stderr
        assert report["failed_rows"] == [{"audit_id": UNREADABLE, "cause": "undecodable_changes"}]
    assert crm.logs(account) == logs

    checked = json.loads(crm.call("check", *named, "--json").stdout)["results"]
    wrong = [each for result in checked for each in result["checks"] if each["verdict"] != "ok"]
    assert [(each["name"], each["found"]) for each in wrong] == [("dead_letters", "1 wait")]
    listed = json.loads(crm.call("dlq", "list", *named, "--json").stdout)
    assert [(each["audit_id"], each["cause"]) for each in listed["dead_letters"]] == [
        (UNREADABLE, "undecodable_changes")
    ]
    some = int(logs[0]["external_id"].partition(":")[2])
    told = json.loads(crm.call("explain", str(some), *named, "--mapping", MAPPING, "--json").stdout)
    assert told["published"]["records"]
    assert told["outcome"]["records"]
    assert told["not_looked_at"] == {}
    assert told["verdict"] == "migrated"
    seam = json.loads(crm.call("seam", *named, "--mapping", MAPPING, "--window", "0", "--json").stdout)
    assert (seam["rows"], seam["gaps_of_replay"], seam["written"]) == (327, 0, len(logs))
    done = crm.call("enrich", *named, "--mapping", MAPPING)
    assert done.returncode == 0, done.stderr
    logs = crm.logs(account)

    # Without the registry nothing of it can be told, and a registry reads what was written without one.
    crm.environment.update(plain)
    done = crm.call("verify", *named, "--json", "--from-scratch", "--repair", "--yes")
    assert done.returncode == 2, done.stdout
    assert any(topic in done.stderr for topic in AccountTopics.of(account).references)
    assert "partition" in done.stderr
    assert "SCHEMA_REGISTRY_URL" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert crm.logs(account) == logs
    crm.run(account, "--mapping", MAPPING)
    crm.environment["SCHEMA_REGISTRY_URL"] = registry
    done = crm.call("verify", *named, "--json", "--from-scratch", "--repair", "--yes")
    assert done.returncode == 0, done.stderr
    assert crm.logs(account) == logs
    assert crm.database[ACTIVITY_LOGS].count_documents({"external_id": f"crm_audit:{LIVE_OWNED}"}) == 0
