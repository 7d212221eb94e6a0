"""`crm-replay bench --stage accounts`: the cost of a small account among many.

A real `crm-replay runner` replays generated accounts of some hundred rows, requested as over HTTP: so many one after
another, then ten at once. It measures a customer's wait and the host's work, and whether either grows with the
number of accounts in Kafka and MongoDB: the first tenth of them is compared with the last.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ops.jobs import migrations
from ops.jobs.jobs import NEVER
from ops.jobs.operations import digest
from ops.jobs.store import JobStore, NewJob
from ops.local import sandbox
from ops.local.generator import GENERATED_MAPPING, Plan, generate_crm
from ops.local.sample.contacts import seed_contacts
from ops.progress import generating
from ops.runner.processes import child_environment
from schemas.errors import ReplayError
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from schemas.source.mapping import load
from schemas.vocabulary import JobStatus

NAME = "crm_replay_bench_accounts"
AT_ONCE = 10
PARTITIONS = 4
SEED = 1
LARGE_SHARE = 4  # of the generated accounts every fourth is too large for this, and there is one that is huge
ROWS_PER_ACCOUNT = 600  # generated; most of them are the large ones'


@dataclass(frozen=True, slots=True)
class Measured:
    """So many small accounts replayed by one runner."""

    at_once: int
    rows: Sequence[int]  # of each account
    finished_after_s: Sequence[float]  # of each account in the order of their ends, from the runner's start
    seconds: float  # of the runner, from its start to its end
    cpu_s: float  # of the runner and all of its processes

    @property
    def gaps_s(self) -> list[float]:
        """Seconds from the end of one account to the end of the next."""
        return [after - before for before, after in zip(self.finished_after_s, self.finished_after_s[1:], strict=False)]

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON line's object."""
        count, gaps = len(self.rows), self.gaps_s
        found = {
            "stage": "accounts",
            "accounts": count,
            "at_once": self.at_once,
            "rows_each": [min(self.rows), round(median(self.rows)), max(self.rows)],
            "seconds": round(self.seconds, 2),
            "first_finished_after_s": round(self.finished_after_s[0], 2),
            "seconds_per_account": round(self.finished_after_s[-1] / count, 2),
            "cpu_s_per_account": round(self.cpu_s / count, 2),
        }
        if self.at_once == 1 and (tenth := len(gaps) // 10):
            found |= {
                "median_s": round(median(gaps), 2),
                "max_s": round(max(gaps), 2),
                "first_tenth_s": round(median(gaps[:tenth]), 2),
                "last_tenth_s": round(median(gaps[-tenth:]), 2),
            }
        return found


def measure(connections: Connections, accounts: int, home: Path) -> Iterator[Measured]:
    """Yield `accounts` small accounts one after another, then ten at once, each replayed for the first time.

    Raises ReplayError if one of them is not completed.
    """
    own = sandbox.own_databases(connections, NAME)
    sizes = _prepare(own, accounts + AT_ONCE)
    names = list(sizes)
    try:
        for chosen, at_once in ((names[:accounts], 1), (names[accounts:], AT_ONCE)):
            yield _measure(own, {name: sizes[name] for name in chosen}, at_once, home)
    finally:  # twenty-odd partitions each would make every later start and stop of Kafka slow
        for account in names:
            sandbox.forget(own, account)


def _prepare(connections: Connections, wanted: int) -> dict[str, int]:
    """Return that many small accounts with their rows, none of them replayed yet."""
    made = wanted + wanted // (LARGE_SHARE - 1) + 1
    plan = Plan(made * ROWS_PER_ACCOUNT, made, SEED)
    dsn = connections.crm_audit_database_url
    with generating(plan.audits) as report:
        found = generate_crm(dsn, plan, progress=report)
    small = dict(sorted(found.accounts.items(), key=lambda named: named[1])[:wanted])
    database = connect(connections)
    try:
        migrations.up(database)
        seed_contacts(database, dsn, accounts=small)
    finally:
        database.client.close()
    for account in small:
        sandbox.forget(connections, account)
    return small


def _measure(connections: Connections, sizes: dict[str, int], at_once: int, home: Path) -> Measured:
    database = connect(connections)
    try:
        store = JobStore(database)
        jobs = [store.create(_asked_for(account)).job_id for account in sizes]
        before, began, started_at = _cpu_of_children(), time.monotonic(), time.time()
        command = [sys.executable, "-c", "from ops.cli.main import main; main()", "runner", "--tasks=0", "--until-idle"]
        log = home / "bench" / "runner.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as summary:
            subprocess.run(  # noqa: S603 - our own command
                [*command, f"--jobs={at_once}"],
                env=child_environment(**connections.environment(), CRM_REPLAY_HOME=str(home)),
                stdout=summary,
                stderr=summary,
                check=True,
            )
        seconds, cpu_s = time.monotonic() - began, _cpu_of_children() - before
        ends = []
        for job_id in jobs:
            job = store.get(job_id)
            if job is None or job.status is not JobStatus.COMPLETED or job.finished_at is None:
                state = "gone" if job is None else f"{job.status} ({job.error})"
                raise ReplayError(f"a job of the benchmark is {state}", f"see {log}")
            ends.append(job.finished_at.timestamp() - started_at)
        return Measured(at_once, list(sizes.values()), sorted(ends), seconds, cpu_s)
    finally:
        database.client.close()


def _asked_for(account: str) -> NewJob:
    """Return a job as a trigger leaves it to a runner, which would refuse the generator's accounts: a few of their
    persons are no contacts.
    """
    return NewJob(
        company_sso_id=account,
        partitions=PARTITIONS,
        top_audit_id=0,
        snapshot_xmax=0,
        cutoff=NEVER,
        mapping_path=GENERATED_MAPPING,
        mapping_sha256=digest(load(GENERATED_MAPPING)),
        triggered_by=NAME,
        prepared=False,
    )


def _cpu_of_children() -> float:
    """Return the CPU seconds of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
