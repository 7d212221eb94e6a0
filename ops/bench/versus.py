"""`crm-replay bench --versus DIRECTORY`: this pipeline and another one, on the same rows, one after the other.

The other one is Debezium -> Kafka -> MongoDB's sink connector, which copies rows and transforms nothing. Its directory
has the benchmark: `load_audits.py DSN N` creates N rows in `public.audits`, and `run.sh N PLAN` measures its ways to
write on those rows on servers of its own, and appends a line of JSON for each run to `$PEER_HOME/results.jsonl` (its
home is `peer` in the temporary folder, by default). Ours runs on the same N rows, loaded by the same
script, with every person a contact, so that every row becomes a document.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from schemas.collections import CONTACTS
from schemas.errors import BadInputError, ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import connect

ACCOUNT = "versus"
PERSONS = range(50_000, 90_000)  # whom the peer's rows name
USERS = 60
WAYS = ("insert", "insert by _id", "replace by _id")  # of the peer's, by the names of its plan
WARM_UPS = 3  # Connect's JVM, and each side's broker, compile their hot code in the first runs; they do not count
TASKS = 2
PEER_TIMEOUT_S = 7_200
# A source mapping of the peer's table, which has no accounts: all rows are ours.
MAPPING = """\
scope: [Crm::Person, Crm::Deal, Crm::Task, Crm::Ticket, Crm::Note]
categories:
  Crm::Person: {category: contact}
  Crm::Deal: {category: deal, status: {column: crm_stage_id, id_set: won, action: won}}
  Crm::Task: {category: task, status: {column: crm_task_status_id, id_set: done, action: completed}}
  Crm::Ticket: {category: ticket, status: {column: crm_ticket_status_id, id_set: resolved, action: resolved}}
  Crm::Note: {category: note}
id_sets: {won: [5], done: [5], resolved: [4]}
"""


class Peer:
    """What is in the peer's directory."""

    def __init__(self, directory: Path) -> None:
        """Raises BadInputError if the directory is none of a peer's."""
        self._run, self._load, self._plan = (
            directory / "run.sh",
            directory / "load_audits.py",
            directory / "conf" / "plan.json",
        )
        for path in (self._run, self._load, self._plan):
            if not path.is_file():
                raise BadInputError(f"{path} does not exist", "name the peer's directory with --versus")
        self._home = Path(os.environ.get("PEER_HOME") or Path(tempfile.gettempdir()) / "peer")
        self._results = self._home / "results.jsonl"

    def load(self, connections: Connections, rows: int, mapping: Path) -> None:
        """Make the peer's rows ours: in our database, with users and contacts, and a source mapping at `mapping`."""
        dsn = connections.crm_audit_database_url
        loaded = subprocess.run([sys.executable, self._load, dsn, str(rows)], capture_output=True, text=True)  # noqa: S603
        if loaded.returncode:
            raise ReplayError(f"{self._load} has failed: {loaded.stderr.strip()[-300:]}")
        with psycopg.connect(dsn) as db:
            db.execute("DROP TABLE IF EXISTS users")
            db.execute("CREATE TABLE users (id bigint PRIMARY KEY, email text, full_name text, deleted_at timestamp)")
            db.execute(
                "INSERT INTO users SELECT id, 'u' || id || '@example.com', 'User ' || id, NULL"
                " FROM generate_series(1, %s) AS id",
                (USERS,),
            )
        database = connect(connections)
        try:
            database[CONTACTS].delete_many({"company_sso_id": ACCOUNT})
            database[CONTACTS].insert_many(
                {
                    "company_sso_id": ACCOUNT,
                    "crm_data": {"id": person},
                    "customer_id": f"customer-{person}",
                    "created_at": datetime(2035, 1, 1, tzinfo=UTC),
                }
                for person in PERSONS
            )
        finally:
            database.client.close()
        mapping.parent.mkdir(parents=True, exist_ok=True)
        mapping.write_text(MAPPING, "utf-8")

    def measure(self, rows: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
        """Return the results of each way to write, in the order in which they were measured.

        Raises ReplayError if the peer fails.
        """
        plan = json.loads(self._plan.read_text("utf-8"))
        cells = [{"kind": "e2e", "write": way, "tasks": TASKS} for way in WAYS]
        plan |= {
            "repeats": 1,
            "limits": False,
            "warmup": {"times": WARM_UPS, "cell": cells[1]},
            "sweep": cells * repeats,
        }
        before = self._results.read_text("utf-8").count("\n") if self._results.exists() else 0
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(plan, file)
            file.flush()
            ran = subprocess.run(  # noqa: S603
                ["/bin/bash", self._run, str(rows), file.name],
                stdout=sys.stderr,
                timeout=PEER_TIMEOUT_S,
                env={**os.environ, "PEER_HOME": str(self._home)},
            )
        if ran.returncode:
            raise ReplayError(f"{self._run} has ended with code {ran.returncode}")
        lines = self._results.read_text("utf-8").splitlines()[before:]
        return by_way([json.loads(line) for line in lines])


def by_way(results: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the peer's results by way to write, without the runs that warmed it up."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for result in results[WARM_UPS:]:
        found[result["settings"]["write"]].append(dict(result))
    return found


def compared(ours: Sequence[float], peers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a line of JSON for each way to write: the peer's rates, ours, and how many times as fast we are."""
    return [
        {
            "stage": "versus",
            "peer": way,
            "peer_rows_per_s": _spread([result["rows_s"] for result in results]),
            "our_rows_per_s": _spread(ours),
            "ratio": round(median(ours) / median(result["rows_s"] for result in results), 2),
        }
        for way, results in peers.items()
        if results
    ]


def _spread(rates: Sequence[float]) -> list[int]:
    return [round(min(rates)), round(median(rates)), round(max(rates))]
