"""The fork server, with real processes: what it forks is the owner's child, and all that the command would be."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import alive
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is none")

WORKER = """
import atexit, json, os, signal, sys, threading, time
if __name__ == "__main__":
    about = {
        "argv": sys.argv[1:],
        "words": open("/proc/self/cmdline").read().rstrip(chr(0)).split(chr(0)),
        "env": dict(os.environ),
        "parent": os.getppid(),
        "session": os.getsid(0) == os.getpid(),
        "stdin": sys.stdin.read() if sys.argv[1] == "report" else "",
        "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "files": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }
    if sys.argv[1] == "report":
        print(json.dumps(about))
        atexit.register(print, "the end")
        threading.Thread(target=lambda: (time.sleep(0.1), print("a thread"))).start()
        sys.exit(7)
    if sys.argv[1] == "raise":
        raise LookupError("nothing there")
    if sys.argv[1] == "say":
        sys.exit("it is wrong")
    if sys.argv[1] == "echo":
        print(sys.stdin.readline().strip() + " to you")
    if sys.argv[1] == "sleep":
        print("sleeping", flush=True)
        time.sleep(60)
"""
OWNER = """
import atexit, json, os, signal, subprocess, sys, time
from pathlib import Path
from ops.runner import processes
from ops.runner.forkserver import forked
from ops.runner.processes import Supervised, Supervisor, python_module
atexit.register(print, "this is the owner's")
log = Path("log")
environment = {**os.environ, "MARK": "\\udc80 a mark"}
command = [*python_module("worker_here")]
"""


class Owner:
    """A process that has a fork server and does what a script says."""

    def __init__(self, place: Path, script: str) -> None:
        (place / "worker_here.py").write_text(WORKER)
        path = os.pathsep.join((str(place), str(Path(__file__).parents[2])))
        self.log = place / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER + script, "room for the arguments of what is forked " * 3],
            env={**os.environ, "PYTHONPATH": path},
            cwd=place,
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> Any:
        """Return the next line that it prints, which is JSON."""
        return json.loads(self.process.stdout.readline())


@contextmanager
def owner(place: Path, script: str) -> Iterator[Owner]:
    found = Owner(place, script)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


def test_what_is_forked_is_what_the_command_would_be(tmp_path: Path) -> None:
    script = """
with forked(("worker_here",)) as forks:
    with log.open("ab") as out:
        child = forks.spawn([*command, "report"], environment, out=out.fileno(), err=out.fileno())
        code = child.wait(20)
        executed = subprocess.run([*command, "report"], env=environment, stdin=subprocess.DEVNULL, stdout=out,
                                  start_new_session=True)
    print(json.dumps({"codes": [code, executed.returncode], "me": os.getpid()}), flush=True)
"""
    with owner(tmp_path, script) as here:
        told = here.said()
        assert here.process.wait(20) == 0
    assert told["codes"] == [7, 7]
    lines = here.log.read_text().splitlines()
    assert lines[1:3] == lines[4:6] == ["a thread", "the end"]
    by_fork, by_command = json.loads(lines[0]), json.loads(lines[3])
    assert by_fork["parent"] == told["me"]
    assert by_fork == by_command


def test_however_it_ends_its_owner_is_told(tmp_path: Path) -> None:
    script = """
with forked(("worker_here",)) as forks, log.open("ab") as out:
    def spawn(*words, **options):
        return forks.spawn([*command, *words], environment, out=out.fileno(), err=out.fileno(), **options)
    codes = [spawn("raise").wait(20), spawn("say").wait(20)]
    asked = spawn("echo", with_stdin=True)
    asked.stdin.write("hello\\n")
    asked.stdin.flush()
    codes.append(asked.wait(20))
    sleeper = spawn("sleep")
    try:
        sleeper.wait(0.01)
    except subprocess.TimeoutExpired:
        codes.append("still there")
    sleeper.send_signal(signal.SIGTERM)
    codes.append(sleeper.wait(20))
    stubborn = spawn("sleep")
    stubborn.kill()
    codes.append(stubborn.wait(20))
    stubborn.kill()
    print(json.dumps({"codes": codes, "polled": stubborn.poll()}), flush=True)
"""
    with owner(tmp_path, script) as here:
        assert here.said() == {"codes": [1, 1, 0, "still there", -15, -9], "polled": -9}
    said = here.log.read_text()
    assert "LookupError: nothing there" in said
    assert "it is wrong" in said
    assert "hello to you" in said


def test_the_server_and_its_workers_end_with_the_owner(tmp_path: Path) -> None:
    script = """
with forked(("worker_here",)) as forks, log.open("ab") as out:
    child = forks.spawn([*command, "sleep"], environment, out=out.fileno(), err=out.fileno())
    print(json.dumps({"worker": child.pid, "server": forks._pid}), flush=True)
    time.sleep(60)
"""
    with owner(tmp_path, script) as here:
        told = here.said()
        wait_until(lambda: here.log.read_text() == "sleeping\n", "it sleeps")
        assert alive(told["server"])
        here.process.kill()
        here.process.wait()
        wait_until(lambda: not alive(told["worker"]) and not alive(told["server"]), "both end")


def test_a_worker_outlives_the_server_and_is_started_again_without_it(tmp_path: Path) -> None:
    script = """
processes.RESTART_BACKOFF_S = 0.0
with forked(("worker_here",)) as forks, Supervisor() as supervisor:
    worker = Supervised("worker", [*command, "sleep"], environment, log, forks=forks)
    supervisor.add(worker)
    first = type(worker.process).__name__
    os.kill(forks._pid, signal.SIGKILL)
    os.waitpid(forks._pid, 0)
    alive = worker.running
    worker.signal(signal.SIGKILL)
    worker.process.wait(20)
    assert supervisor.check() == []
    print(json.dumps([first, alive, type(worker.process).__name__, worker.running, worker.restarts]), flush=True)
"""
    with owner(tmp_path, script) as here:
        assert here.said() == ["Forked", True, "Popen", True, 1]
        assert here.process.wait(20) == 0


def test_what_a_killed_child_leaves_behind_is_adopted_and_buried(tmp_path: Path) -> None:
    script = """
with forked(("worker_here",)) as forks, log.open("ab") as out:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    orphan = int(child.stdout.readline())
    child.kill()
    child.wait()
    mine = forks.spawn([*command, "sleep"], environment, out=out.fileno(), err=out.fileno())
    os.kill(orphan, signal.SIGKILL)
    while Path(f"/proc/{orphan}").exists():
        forks.reap_others({mine.pid})
    mine.kill()
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    forks.reap_others({mine.pid})
    print(json.dumps({"mine": mine.wait(20)}), flush=True)
"""
    with owner(tmp_path, script) as here:
        assert here.said() == {"mine": -9}


def test_a_process_with_threads_gets_no_server(tmp_path: Path) -> None:
    script = """
import threading
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with forked() as forks:
    print(json.dumps({"server": forks}), flush=True)
"""
    with owner(tmp_path, script) as here:
        assert here.said() == {"server": None}


def test_where_the_kernel_gives_no_orphans_there_is_no_server(tmp_path: Path) -> None:
    script = """
from ops.runner import forkserver
forkserver._prctl = lambda *_: -1
with forked() as forks:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    print(json.dumps({"server": forks, "children": children}), flush=True)
"""
    with owner(tmp_path, script) as here:
        assert here.said() == {"server": None, "children": ""}
