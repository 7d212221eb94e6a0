"""The supervisor, with real child processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.runner import processes
from ops.runner.processes import ProcessGaveUpError, Supervised, Supervisor, child_environment
from schemas.vocabulary import ExitCode
from tests.support.programs import alive
from tests.support.waiting import wait_until


def python(name: str, code: str, tmp_path: Path, **options: Any) -> Supervised:
    return Supervised(name, [sys.executable, "-c", code], child_environment(), tmp_path / f"{name}.log", **options)


def test_a_process_that_finishes_is_reported_once_and_not_started_again(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        done = python("done", "print('bye')", tmp_path, finishes=True)
        supervisor.add(done)
        wait_until(lambda: not done.running, "the process ends")
        assert supervisor.check() == [done]
        assert supervisor.check() == []
        assert (done.returncode, done.restarts, done.last_lines()) == (0, 0, "bye")


def test_a_crashed_process_is_started_again_and_keeps_its_log(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
mark = pathlib.Path({str(tmp_path / "mark")!r})
if mark.exists():
    print("second life"); time.sleep(60)
mark.touch(); print("first life"); sys.exit(7)
"""
    with Supervisor() as supervisor:
        worker = python("worker", code, tmp_path)
        supervisor.add(worker)
        wait_until(lambda: supervisor.check() == [] and "second life" in worker.last_lines(), "it is started again")
        assert worker.restarts == 1
        assert worker.last_lines() == "first life | second life"
    assert not worker.running


def test_a_process_that_keeps_crashing_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "RESTART_BACKOFF_S", 0.0)
    with Supervisor() as supervisor:
        supervisor.add(python("broken", "raise SystemExit('no such table')", tmp_path))
        with pytest.raises(ProcessGaveUpError, match=r"broken ended 6 times in a row.*no such table"):
            wait_until(lambda: supervisor.check() != [], "the supervisor gives it up")


def test_a_worker_that_stalls_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall takes minutes to be found, so that none of its ends comes in the window of a crash."""
    monkeypatch.setattr(processes, "RESTART_WINDOW_S", 0.0)
    monkeypatch.setattr(processes, "RESTART_BACKOFF_S", 0.0)
    with Supervisor() as supervisor:
        supervisor.add(python("deaf", f"print('no turn'); raise SystemExit({ExitCode.STALLED.value})", tmp_path))
        with pytest.raises(ProcessGaveUpError, match=r"deaf ended 6 times in a row \(last exit code 7\): .*no turn"):
            wait_until(lambda: supervisor.check() != [], "the supervisor gives it up")


def test_an_exit_code_that_is_an_answer_is_not_a_crash(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        halted = python("sink", "raise SystemExit(3)", tmp_path, final_codes=frozenset({3}))
        supervisor.add(halted)
        wait_until(lambda: not halted.running, "it ends")
        assert [p.returncode for p in supervisor.check()] == [3]


def test_what_ends_as_by_bad_input_is_given_up_at_its_first_start_and_started_again_after_a_crash(
    tmp_path: Path,
) -> None:
    hopeless = frozenset({2})
    with Supervisor() as supervisor:
        supervisor.add(
            python("wrong", "print('no such topic'); raise SystemExit(2)", tmp_path, hopeless_codes=hopeless)
        )
        with pytest.raises(ProcessGaveUpError, match="wrong ended: no such topic"):
            wait_until(lambda: supervisor.check() != [], "the supervisor gives it up")

    code = f"""
import pathlib, sys, time
lives = pathlib.Path({str(tmp_path / "lives")!r})
lived = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (lived + 1))
if lived == 2:
    print("third life"); time.sleep(60)
sys.exit([1, 2][lived])
"""
    with Supervisor() as supervisor:
        worker = python("worker", code, tmp_path, hopeless_codes=hopeless)
        supervisor.add(worker)
        wait_until(lambda: supervisor.check() == [] and "third life" in worker.last_lines(), "it is started again")
        assert worker.restarts == 2


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
    supervisor = Supervisor()
    stubborn = python("stubborn", code, tmp_path)
    supervisor.add(stubborn)
    wait_until(lambda: "up" in stubborn.last_lines(), "it has started")
    supervisor.stop(timeout_s=0.2)
    assert stubborn.returncode == -signal.SIGKILL


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from ops.runner.processes import *
import sys
s = Supervisor()
log = Path({str(tmp_path)!r}) / "c.log"
p = Supervised("child", [sys.executable, "-c", "import time; time.sleep(60)"], child_environment(), log)
s.add(p)
print(p.process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(child), "the child ends with its parent")
