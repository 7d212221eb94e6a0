"""`crm-replay runner` with real processes: killed, frozen, asked to stop, and what each leaves to the next.

The source is throttled, so that a job of a few hundred rows lasts long enough for what is done to it.
"""

import signal
import subprocess
from typing import Any

import psutil
import pytest

from ops.jobs import requests
from ops.jobs.jobs import NEVER
from ops.jobs.tasks import TaskKind
from ops.local.sample_crm import SAMPLE_YAML
from tests.e2e.conftest import Crm, everything, mapping_of, without_links
from tests.e2e.daemon import JOBS, PATIENCE_S, SLOW, asked_for, completed, daemon, job_of, wait_for


def workers_of(process: psutil.Process) -> dict[str, psutil.Process]:
    """Return the workers of a job's runner by their role."""
    found = {}
    for child in process.children():
        try:
            words = child.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "-m" in words:
            found[words[words.index("-m") + 1]] = child
    return found


def job_runner(daemon_process: subprocess.Popen[str]) -> psutil.Process | None:
    """Return the daemon's child that has workers, all three roles of them."""
    for child in psutil.Process(daemon_process.pid).children():
        if len(workers_of(child)) == 3:
            return child
    return None


def writing(crm: Crm, account: str, more_than: int) -> bool:
    return crm.database["activity_logs"].count_documents({"company_sso_id": account}) > more_than


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_asked_for_is_done_and_tasks_are_too(sample_crm: Crm) -> None:
    crm, account = sample_crm, SAMPLE_YAML
    answer = asked_for(crm, account)
    assert answer["status"] == "in_progress"
    waiting = job_of(crm, account)
    assert (waiting["prepared"], waiting["owner"], waiting["records_total"]) == (False, None, 0)
    again = crm.call("trigger", "--account", account)
    assert again.returncode == 1
    assert "in progress" in again.stderr
    with daemon(crm, CRM_AUDIT_DATABASE_URL="postgresql://postgres@127.0.0.1:1/away") as elsewhere:
        wait_for("two vain attempts", lambda: job_of(crm, account)["attempts"] >= 2)
    kept = job_of(crm, account)
    assert (kept["status"], kept["owner"]) == ("in_progress", None)
    assert "cannot connect to PostgreSQL database away at 127.0.0.1:1" in kept["error"]
    assert "cannot connect to" in elsewhere.said  # type: ignore[attr-defined]
    with daemon(crm, "--jobs", "1") as process:
        job = completed(crm, account)
        assert (job["_id"], job["attempts"], job["error"]) == (answer["job_id"], 0, None)
        wait_for("let go", lambda: job_of(crm, account)["owner"] is None)
        assert job["enrichment"]["state"] == "done"
        whole, before = everything(crm), without_links(crm, account)
        plane = requests.Control(crm.database, crm.connections, mapping_of(account))
        requests.rerun(plane, account, by="a test")
        assert requests.halt(plane, account, by="a test", reason="too slow").error == "too slow"
        requests.resume(plane, account, by="a test")
        rerun = completed(crm, account)
        assert rerun["run"] > job["run"]
        assert rerun["enrichment"]["outcomes"]["patched"] == len(before) > 30  # without a further command
        assert everything(crm) == whole
        assert rerun["skips_by_reason"]["duplicate_external_id"] == job["records_migrated"]

        def ended(kind: str) -> dict[str, Any] | None:
            return crm.database["crm_replay_tasks"].find_one({"kind": kind, "active": False})

        requests.request_task(plane, account, TaskKind.VERIFY, by="a test")
        verified = wait_for("verified", lambda: ended("verify"))
        assert (verified["status"], verified["error"], verified["result"]["equal"]) == ("done", None, True)
        requests.request_task(plane, account, TaskKind.ROLLBACK, by="somebody", arguments={"reason": "a test"})
        removed = wait_for("rolled back", lambda: ended("rollback"))
        assert removed["result"] == {"records_removed": job["records_migrated"]}, removed["error"]
        rolled_back = job_of(crm, account)["rollback"]
        assert (rolled_back["removed"], rolled_back["remaining"], rolled_back["by"]) == (
            job["records_migrated"],
            0,
            "somebody",
        )
    assert process.returncode == 0
    assert crm.logs(account) == []
    for says in ("ready for 1 jobs", "starting job", "completed: ", "verify is done", "rollback is done", "stopped"):
        assert says in process.said, process.said  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_runner_and_a_killed_daemon_leave_the_job_to_the_next_at_once(sample_crm: Crm) -> None:
    crm, account = sample_crm, SAMPLE_YAML
    asked_for(crm, account)
    with daemon(crm, **SLOW) as first:
        runner = wait_for("started", lambda: job_runner(first))
        wait_for("writing", lambda: writing(crm, account, 20))
        before = workers_of(runner)
        runner.kill()
        wait_for("claimed again", lambda: job_of(crm, account)["fence"] == 2)
        second_runner = wait_for("started again", lambda: job_runner(first))
        psutil.wait_procs(list(before.values()), timeout=PATIENCE_S)
        assert not any(worker.is_running() for worker in before.values())
        seen = crm.database["activity_logs"].count_documents({})
        wait_for("writing again", lambda: writing(crm, account, seen))
        with daemon(crm, **SLOW) as second:
            orphans = [second_runner, *workers_of(second_runner).values()]
            first.kill()
            wait_for("claimed by another", lambda: job_of(crm, account)["fence"] == 3)
            psutil.wait_procs(orphans, timeout=PATIENCE_S)
            assert not any(process.is_running() for process in orphans)
            wait_for("started on the other", lambda: job_runner(second))
            # Asked to stop, a daemon lets go of its job, and the next begins at once.
            second.send_signal(signal.SIGTERM)
            second.wait(PATIENCE_S)
            assert job_of(crm, account)["owner"] is None
            with daemon(crm) as third:
                completed(crm, account)
            assert "taking up job" in third.said  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_frozen_runner_is_replaced_and_ends_when_it_wakes(sample_crm: Crm) -> None:
    crm, account = sample_crm, SAMPLE_YAML
    asked_for(crm, account)
    with daemon(crm, **SLOW) as first:
        runner = wait_for("started", lambda: job_runner(first))
        wait_for("writing", lambda: writing(crm, account, 20))
        # Its snapshot is frozen too: on waking up it would read on from where the other has been long since.
        frozen = [runner, workers_of(runner)["producer"]]
        for process in frozen:
            process.suspend()
        # The lease has run out. That it does by itself is the store's test: here it would take a quarter of a minute.
        crm.database[JOBS].update_one({"company_sso_id": account}, {"$set": {"lease_until": NEVER}})
        with daemon(crm) as second:
            job = completed(crm, account)
            assert job["fence"] == 2
            logs = crm.logs(account)
            for process in frozen:
                process.resume()
            psutil.wait_procs(frozen, timeout=PATIENCE_S)
            assert not any(process.is_running() for process in frozen)
            assert second.poll() is None
    assert crm.logs(account) == logs
    assert job_of(crm, account)["updated_at"] == job["updated_at"]
    assert "this runner releases it" in first.said  # type: ignore[attr-defined]
