"""The daemon's decisions: what command a task is, and what is read of its output."""

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ops.jobs.tasks import Task, TaskKind, TaskStatus
from ops.runner import daemon
from ops.runner.daemon import command_of, last_line, progress_of, result_of, write_lines
from schemas.errors import BadInputError
from schemas.process.connections import Connections


def test_a_daemon_waits_for_mongodb_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon, "ANSWER_MAX_S", 0.05)
    monkeypatch.setattr(daemon, "POLL_EVERY_S", 0.01)
    monkeypatch.setattr(daemon, "OUTAGE_POLL_MAX_S", 0.02)
    asked = []

    def require_current(database: Any) -> None:
        asked.append(database)
        if len(asked) <= 3:
            database["jobs"].find_one()

    monkeypatch.setattr("ops.jobs.migrations.require_current", require_current)
    monkeypatch.setattr(daemon.Daemon, "step", lambda self: False)
    daemon.Daemon(Connections(mongodb_url="mongodb://127.0.0.1:1"), daemon.Limits()).run(until_idle=True)
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert len(asked) == 4
    assert said[0].startswith("MongoDB does not answer")
    assert said[1:] == ["ready for 4 jobs and 2 tasks at a time", "MongoDB answers again", "stopped"]


def test_a_job_s_process_has_the_servers_of_its_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be embedded ones, that no environment names: the process itself does not look for them."""
    monkeypatch.delenv("MONGODB_URL", raising=False)
    started: list[dict[str, str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda _command, env, **_options: started.append(env))
    daemon.Daemon(Connections(mongodb_url="mongodb://mongo.example"), daemon.Limits())._start_child()
    assert [env["MONGODB_URL"] for env in started] == ["mongodb://mongo.example"]


def task(kind: TaskKind, **arguments: Any) -> Task:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return Task("t", "-x y", kind, TaskStatus.RUNNING, arguments, "ann", now)


def test_a_task_is_a_command_of_the_command_line() -> None:
    from typer.main import get_command

    from ops.cli.main import application

    ids = Path("/ids")
    for each, path, words in (
        (task(TaskKind.VERIFY), "", ["verify", "--account=-x y", "--json"]),
        (task(TaskKind.PREFLIGHT, mapping_path="/m"), "", ["preflight", "--account=-x y", "--json", "--mapping=/m"]),
        (task(TaskKind.PREFLIGHT, mapping_path="/m"), "/n", ["preflight", "--account=-x y", "--json", "--mapping=/n"]),
        (
            task(TaskKind.ROLLBACK, reason="--why"),
            "",
            ["rollback", "--account=-x y", "--yes", "--json", "--by=ann", "--reason=--why"],
        ),
        (
            task(TaskKind.DLQ_RETRY, cause="write_refused", audit_ids=[1], force=True, reason="a b"),
            "",
            [
                "dlq", "retry", "--account=-x y", "--yes", "--json", "--reason=a b", "--cause=write_refused",
                "--audit-ids=@/ids", "--force",
            ],
        ),
    ):  # fmt: skip
        assert command_of(each, path, ids if each.arguments.get("audit_ids") else None) == words
        command: Any = get_command(application())
        left = list(words)
        while hasattr(command, "commands"):  # the command line knows them and takes these very options
            command = command.commands[left.pop(0)]
        assert command.make_context("x", left).params["account"] == "-x y"


def test_a_retry_always_has_a_reason_and_strange_arguments_are_refused() -> None:
    assert "--reason=asked for by ann" in command_of(task(TaskKind.DLQ_RETRY), "", None)
    with pytest.raises(BadInputError, match="verify takes no repair"):
        command_of(task(TaskKind.VERIFY, repair=True), "", None)


def test_thousands_of_ids_travel_in_a_file() -> None:
    path = write_lines([1, 22, 333])
    try:
        assert path.read_text() == "1\n22\n333\n"
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("said", "result"), [(b'{"a": 1}\n', {"a": 1}), (b"", None), (b"[1]", None), (b"no dead letters\n", None)]
)
def test_a_result_is_a_json_object(said: bytes, result: dict[str, Any] | None) -> None:
    with tempfile.TemporaryFile() as out:
        out.write(said)
        assert result_of(out) == result


def test_progress_is_read_from_the_last_line() -> None:
    with tempfile.TemporaryFile() as err:
        assert last_line(err) == ""
        err.write(b"x" * 50_000 + b"\nreferences published\n1,200 of 34,567 rows, 300/s, ETA 0:01:51\n\n")
        said = last_line(err)
    assert progress_of(said) == {"done": 1_200, "total": 34_567, "text": "1,200 of 34,567 rows, 300/s, ETA 0:01:51"}
    assert progress_of("waiting") == {"text": "waiting"}
    assert progress_of("") == {}
