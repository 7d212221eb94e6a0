"""Processes that outlive their starter, known by id and start mark."""

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.local.services import detached
from ops.local.services.detached import Command, Process, last_lines, start, stop, with_arguments
from ops.local.services.launcher import start_mark
from ops.local.services.ports import Ports, is_free
from schemas.errors import BadInputError
from tests.support.waiting import wait_until


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes to be ended afterwards."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        stop(process, number=signal.SIGKILL, timeout_s=10)


def python(code: str, tmp_path: Path) -> Command:
    return Command([sys.executable, "-c", code], cwd=tmp_path, env=os.environ)


def test_a_process_is_on_file_before_it_runs_and_belongs_to_nobody(tmp_path: Path, started: list[Process]) -> None:
    file, log = tmp_path / "run" / "x.pid", tmp_path / "logs" / "x.log"
    code = f"print(open({str(file)!r}).read(), flush=True); import os; print(os.getsid(0)); input()"
    process = start(python(code, tmp_path), process_file=file, log=log)
    started.append(process)
    wait_until(lambda: not process.alive, "it has ended")  # its standard input is empty
    read, session = log.read_text().splitlines()[:2]
    assert json.loads(read) == {"pid": process.pid, "mark": process.mark}
    assert int(session) == process.pid


def test_stop_asks_first_and_kills_what_does_not_listen(tmp_path: Path, started: list[Process]) -> None:
    sleeping = python("import time; time.sleep(300)", tmp_path)
    polite = start(sleeping, process_file=tmp_path / "a", log=tmp_path / "a.log")
    ready = tmp_path / "ready"
    deaf_code = (
        "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(300)"
    )
    deaf = start(python(deaf_code, tmp_path), process_file=tmp_path / "b", log=tmp_path / "b.log")
    started += [polite, deaf]
    wait_until(ready.exists, "it is ready")
    assert stop(polite, timeout_s=10) is True
    assert stop(deaf, timeout_s=0.2) is False
    assert not polite.alive
    assert not deaf.alive
    assert stop(deaf, timeout_s=0.2) is True  # it is gone already


def test_a_process_with_the_same_id_and_another_start_is_another_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mark = start_mark(other.pid)
        assert mark is not None
        stale = Process(other.pid, f"{mark}0")
        assert not stale.alive
        assert stop(stale, number=signal.SIGKILL, timeout_s=0.1) is True
        assert other.poll() is None
        stale.write(tmp_path / "x.pid")
        assert Process.read(tmp_path / "x.pid") is None
        Process(other.pid, mark).write(tmp_path / "x.pid")
        assert Process.read(tmp_path / "x.pid") == Process(other.pid, mark)


def test_an_ended_process_that_nobody_has_waited_for_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, still in the process table
        assert start_mark(child.pid) is None
    assert start_mark(child.pid) is None


# Its first thread has ended, another one still listens, and ends a moment after it was seen.
DYING = """
import ctypes, pathlib, socket, sys, threading, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def linger():
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.01)
    time.sleep(0.3)
    ctypes.CDLL(None)._exit(0)
threading.Thread(target=linger).start()
ctypes.CDLL(None).syscall(int(sys.argv[3]), 0)  # ends this thread alone
"""
EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}


@pytest.mark.skipif(platform.machine() not in EXIT_OF_A_THREAD or sys.platform != "linux", reason="Linux only")
def test_a_process_lives_and_keeps_its_port_as_long_as_any_thread_of_it(tmp_path: Path, started: list[Process]) -> None:
    port, seen = Ports(tmp_path / "ports.json").choose("mongodb"), tmp_path / "seen"
    words = [sys.executable, "-c", DYING, str(port), str(seen), str(EXIT_OF_A_THREAD[platform.machine()])]
    process = start(Command(words, cwd=tmp_path, env=os.environ), process_file=tmp_path / "x", log=tmp_path / "l")
    started.append(process)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "it is a zombie")
    assert process.alive
    assert not is_free(port)
    seen.touch()
    assert Ports(tmp_path / "ports.json", patience_s=30).choose("mongodb") == port  # it waits, and does not move
    wait_until(lambda: not process.alive, "it has ended")


@pytest.mark.parametrize("text", ["", "{", "7", '{"pid": 1}', '{"pid": "x", "mark": ""}'])
def test_a_torn_process_file_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pid").write_text(text)
    assert Process.read(tmp_path / "x.pid") is None
    assert Process.read(tmp_path / "missing.pid") is None


def test_what_cannot_be_executed_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"cannot run .*/nothing: .*No such file"):
        start(
            Command([str(tmp_path / "nothing")], cwd=tmp_path, env={}), process_file=tmp_path / "x", log=tmp_path / "l"
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="command lines are looked for in /proc")
def test_a_lost_process_is_found_by_two_words_of_its_command_line(tmp_path: Path, started: list[Process]) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(300)", "--data", str(tmp_path)]
    process = start(Command(argv, cwd=tmp_path, env=os.environ), process_file=tmp_path / "x", log=tmp_path / "l")
    started.append(process)
    assert with_arguments("--data", str(tmp_path)) == [process]
    assert with_arguments("--data", str(tmp_path)[:-1]) == []
    assert with_arguments("data", str(tmp_path)) == []


def test_the_end_of_a_log_is_one_line_without_stack_frames(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("old trouble\n")
    since = log.stat().st_size
    assert last_lines(log, since_byte=since) == "(empty)"
    with log.open("a") as file:
        file.write("ERROR it broke\n\tat java.lang.Thread.run(Thread.java:1)\n\n  ... 3 more\nbye\n")
    assert last_lines(log, since_byte=since) == "ERROR it broke | bye"
    assert last_lines(tmp_path / "none") == "(no log)"


def test_a_long_log_is_put_aside_at_the_next_start(
    tmp_path: Path, started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "LOG_BYTES_MAX", 10)
    log = tmp_path / "x.log"
    log.write_text("more than ten bytes")
    process = start(python("print('new')", tmp_path), process_file=tmp_path / "x", log=log)
    started.append(process)
    wait_until(lambda: not process.alive, "it has ended")
    assert (tmp_path / "x.log.1").read_text() == "more than ten bytes"
    assert "more" not in log.read_text()
