"""A runner's lease on a real MongoDB, with real workers: what becomes of them when it cannot be renewed, or is lost."""

import datetime as dt
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import NetworkTimeout

from ops.jobs import migrations
from ops.jobs.jobs import NEVER, Job
from ops.jobs.store import JobStore, LeaseLostError, NewJob
from ops.runner.lease import InterruptedRunError, Lease
from ops.runner.options import RunInput, RunOptions
from ops.runner.processes import Supervised
from ops.runner.watch import Patience, run_processes
from schemas.process.connections import Connections
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
PATIENCE_S = 60.0
WORKER = "import time; open({mark!r}, 'a').write('started\\n'); time.sleep(600)"


class Notes:
    """Where a run reports to."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def progress(self, done: int, total: int, skipped: dict[str, int], failed: int) -> None:
        pass

    def close(self) -> None:
        pass


class Run:
    """A job in progress with one worker that only sleeps, run in a thread."""

    def __init__(self, database: Any, url: str, place: Path) -> None:
        self.store = JobStore(database)
        self.connections = Connections(mongodb_url=url, mongodb_database=database.name)
        cutoff = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        self.job = self.store.create(NewJob("a", 1, 1, 1, cutoff), begin_offsets=(0,), owner="this one")
        self.mark = place / "started"
        self.mark.touch()
        self.workers: list[Supervised] = []
        self.view = Notes()
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def processes(self, *_args: object) -> Iterator[Supervised]:
        worker = Supervised(
            "worker", [sys.executable, "-c", WORKER.format(mark=str(self.mark))], {}, self.mark.with_suffix(".log")
        )
        self.workers.append(worker)
        yield worker

    def work(self, lease: Any) -> None:
        around: Any = type("Around", (), {"store": self.store, "connections": self.connections})
        try:
            patience = Patience(self.view, self.stop)
            run_processes(
                self.job,
                RunInput(),
                RunOptions(),
                around,
                self.view,
                patience,
                lease,
                self.stop,
                processes=self.processes,
            )
        except BaseException as error:
            self.error = error

    def starts(self) -> int:
        return len(self.mark.read_text().splitlines())

    def alive(self) -> bool:
        return any(worker.running for worker in self.workers)


@pytest.fixture
def run(mongo_database: Any, mongodb_url: str, tmp_path: Path) -> Run:
    migrations.up(mongo_database)
    return Run(mongo_database, mongodb_url, tmp_path)


@contextmanager
def running(run: Run) -> Iterator[Any]:
    """Give the lease of the run, once its worker has started."""
    with Lease(run.connections, run.job, renew_every_s=0.05, silence_max_s=3.0) as lease:
        thread = threading.Thread(target=run.work, args=(lease,))
        thread.start()
        try:
            wait_until(run.starts, "the workers are started")
            yield lease
        finally:
            run.stop.set()
            thread.join(PATIENCE_S)
    assert not run.alive()


def test_workers_are_stopped_while_the_lease_still_holds_and_started_again_if_it_still_does(run: Run) -> None:
    with running(run) as lease:
        renew, away = lease._store.renew, threading.Event()

        def unreachable(job: Job) -> None:
            if away.is_set():
                raise NetworkTimeout("the network is away")
            renew(job)

        lease._store.renew = unreachable
        away.set()
        wait_until(lambda: run.view.said, "the outage is said")
        assert not run.alive()  # and the lease, of 15 s, has not run out
        assert run.store.claim_next("another") is None
        assert "could not be renewed" in run.view.said[0]
        before = run.starts()
        away.clear()
        wait_until(lambda: run.starts() > before, "they are started again")
        assert run.alive()
    assert isinstance(run.error, InterruptedRunError)
    released = run.store.claim_next("another")
    assert released.fence == 2


def test_workers_are_stopped_when_another_has_taken_the_job_over(run: Run, mongo_database: Any) -> None:
    with running(run):

        def take_over() -> bool:
            """Expire the lease and claim the job; its runner may renew the lease in between."""
            mongo_database["crm_activity_log_migration_jobs"].update_one({}, {"$set": {"lease_until": NEVER}})
            return run.store.claim_next("another") is not None

        wait_until(take_over, "the lease is taken over")
        wait_until(lambda: run.error is not None, "the runner has ended")
        assert isinstance(run.error, LeaseLostError)
        assert not run.alive()
    after = run.store.get(run.job.job_id)
    assert (after.owner, after.fence) == ("another", 2)  # what it had lost it has not released
