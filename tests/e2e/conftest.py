"""A sandbox for whole runs: a PostgreSQL and a MongoDB database of its own, and the command line as a user calls it."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo.database import Database

from ops.local import sandbox, services
from ops.local.generator import Plan, generate_crm
from ops.local.sample.contacts import seed_contacts
from ops.local.sample_crm import SAMPLE_YAML, load_sample, mapping_path
from schemas.process.connections import Connections
from tests.support.programs import Program
from tests.support.waiting import wait_until

# The beginning of a script: an enricher that is killed once it has patched five batches.
DIES_AT_ITS_FIFTH_BATCH = """
import os, signal, sys
from sink.enricher import Enricher

patch, batches = Enricher.patch, []

def patch_and_die(self, rows, *turn):
    outcomes = patch(self, rows, *turn)
    batches.append(len(rows))
    if len(batches) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcomes

Enricher.patch = patch_and_die
"""


def connections_of(environment: Mapping[str, Any]) -> Connections:
    return Connections(**{name.lower(): value for name, value in environment.items()})


@dataclass
class Crm:
    """Where a test's run takes place."""

    environment: dict[str, str]
    database: Any  # a pymongo Database
    home: Path

    @property
    def dsn(self) -> str:
        return self.environment["CRM_AUDIT_DATABASE_URL"]

    @property
    def connections(self) -> Connections:
        return connections_of(self.environment)

    def start(self, *words: str, **environment: str) -> Program:
        """Start `crm-replay <words>`."""
        return Program(
            "ops",
            *words,
            env=self._environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {**os.environ, **self.environment, "CRM_REPLAY_HOME": str(self.home), **more}

    def call(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `crm-replay <words>` to its end."""
        return Program.call("ops", *words, env=self._environment(environment))

    def json(self, *words: str, code: int = 0) -> Any:
        """Run `crm-replay <words> --json` to its end; return what it has printed. It must end with this exit code."""
        done = self.call(*words, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def run(self, account: str, *words: str) -> Any:
        """Replay an account and return the job; it must have gone well."""
        return self.json("run", "--account", account, *words)

    def status(self, account: str) -> Any:
        return self.json("status", "--account", account)

    def renamed(self, sample: str) -> str:
        """Give a sample account's contacts a name of the test's own: a deleted topic has no leader for a while."""
        name = f"{sample}-{uuid.uuid4().hex[:8]}"
        for collection in ("contacts", "crm_contact_id_map"):
            self.database[collection].update_many({"company_sso_id": sample}, {"$set": {"company_sso_id": name}})
        return name

    def add_row(self, audit_id: int, changes: str, created_at: str = "2023-01-15 10:00:00") -> None:
        """Add a row about a person of the sample whom the platform knows."""
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute(
                "INSERT INTO audits (id, auditable_type, auditable_id, action, audited_changes, version, created_at)"
                " SELECT %s, auditable_type, auditable_id, 'update', %s, 99, %s FROM audits"
                " WHERE auditable_type = 'Crm::Person' AND auditable_id = 50001 LIMIT 1",
                (audit_id, changes, created_at),
            )

    def wait_written(self, documents: int) -> None:
        """Return once so many activity logs are there."""
        logs = self.database["activity_logs"]
        wait_until(lambda: logs.estimated_document_count() >= documents, f"{documents} logs are written")

    def logs(self, account: str) -> list[dict[str, Any]]:
        """Return the account's activity logs in the order of their external ids, without `_id`."""
        found = self.database["activity_logs"].find({"company_sso_id": account}, {"_id": 0})
        return sorted(found, key=lambda log: str(log["external_id"]))


@pytest.fixture
def crm(
    service_environment: dict[str, str], database_dsn: str, mongo_database: Database[dict[str, Any]], tmp_path: Path
) -> Iterator[Crm]:
    """Give an empty CRM and an empty, migrated customer data platform."""
    environment = {
        **service_environment,
        "CRM_AUDIT_DATABASE_URL": database_dsn,
        "MONGODB_DATABASE": mongo_database.name,
        services.Service.KAFKA.variable: service_environment["KAFKA_BOOTSTRAP_SERVERS"],
    }
    place = Crm(environment, mongo_database, tmp_path / "home")
    assert place.call("migrate", "up").returncode == 0
    yield place
    for account in mongo_database["crm_activity_log_migration_jobs"].distinct("company_sso_id"):
        sandbox.forget(place.connections, account)


@pytest.fixture
def sample_crm(crm: Crm) -> Crm:
    """Give the sample CRM with its contacts."""
    load_sample(crm.dsn)
    seed_contacts(crm.database)
    return crm


def mapping_of(account: str) -> str:
    return str(mapping_path(account))


def generated(crm: Crm, audits: int) -> str:
    """Load a generated CRM and return its largest account."""
    accounts = generate_crm(crm.dsn, Plan(audits, 3, 7)).accounts
    largest = max(accounts, key=lambda account: accounts[account])
    seed_contacts(crm.database, crm.dsn, accounts=[largest])
    return largest


CATEGORIES, ACTIONS = ["deal", "company", "ticket", "task"], ["link", "unlink", "won", "resolved", "completed"]


ASSOCIATIONS = {"category": {"$in": CATEGORIES}, "action": {"$in": ACTIONS}}


def everything(crm: Crm) -> list[dict[str, Any]]:
    return list(crm.database["activity_logs"].find().sort("_id", 1))


def without_links(crm: Crm, account: str) -> list[dict[str, Any]]:
    """Take from the account's association logs what the replay had written of their links; return them as they were."""
    logs = crm.database["activity_logs"]
    before = list(logs.find({"company_sso_id": account, **ASSOCIATIONS}).sort("_id", 1))
    gone = {f"metadata.{key}": 1 for log in before for key in log["metadata"] if key not in ("request_id", "version")}
    logs.update_many({"company_sso_id": account, **ASSOCIATIONS}, {"$unset": gone})
    return before


@pytest.fixture
def account(sample_crm: Crm) -> str:
    """Give the sample account under a name of its own."""
    return sample_crm.renamed(SAMPLE_YAML)
