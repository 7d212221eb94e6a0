"""The daemon's decisions: on what terms a job is let go of, and what command a task is."""

import datetime as dt
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.jobs.jobs import NEVER, IllegalTransitionError, Job
from ops.jobs.store import JobChangedError, LeaseLostError
from ops.jobs.tasks import Task, TaskKind, TaskStatus
from ops.runner import daemon
from ops.runner.daemon import command_of, last_line, progress_of, result_of, write_lines
from ops.runner.replay import (
    ATTEMPTS_MAX,
    PAUSE_MAX_S,
    HaltedError,
    InterruptedRunError,
    OutageError,
    Terms,
    terms_after,
)
from producer.survey import UnreplayableIdsError
from schemas.errors import BadInputError, ReplayError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.vocabulary import JobStatus

JOB = Job(
    "j", "a", JobStatus.IN_PROGRESS, 1, 4, 9, 9, NEVER, "", "", "", False, None, (), 10, 0, 0, 0, 0, {}, {}, 0, 0.0,
    None, NEVER, NEVER, NEVER, None, NEVER, None, owner="o", fence=1,
)  # fmt: skip
OUTAGES = (ServiceUnreachableError("Kafka is away"), OutageError("MongoDB is away"))
DEFECTS = (BadInputError("there is no table"), ReplayError("a process gave up"), ValueError("a defect"))


@pytest.mark.parametrize(
    "error",
    [HaltedError("x"), LeaseLostError("x"), JobChangedError("x"), IllegalTransitionError("x")],
)
def test_what_the_jobs_document_says_already_is_left_as_it_is(error: BaseException) -> None:
    assert terms_after(error, JOB, JOB) is None
    assert terms_after(error, replace(JOB, partial=True), JOB) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InterruptedRunError("interrupted", "again"), "interrupted: again"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
        (SystemExit(1), "ended by SystemExit"),
    ],
)
def test_what_was_asked_for_is_no_attempt_that_failed_and_yet_is_said(error: BaseException, said: str) -> None:
    assert terms_after(error, JOB, replace(JOB, attempts=2)) == Terms(attempts=2, error=said)


@pytest.mark.parametrize("error", [InterruptedRunError("x"), OutageError("x"), ReplayError("x"), KeyError("x")])
def test_a_replay_of_chosen_rows_fails_at_once_for_no_other_runner_knows_them(error: Exception) -> None:
    terms = terms_after(error, replace(JOB, partial=True), JOB)
    assert terms is not None
    assert terms.fail
    assert terms.error


@pytest.mark.parametrize("error", OUTAGES)
def test_an_outage_is_waited_for_however_long_with_growing_pauses(error: Exception) -> None:
    job, pauses = JOB, []
    for _ in range(100):
        terms = terms_after(error, job, job)
        assert terms is not None
        assert not terms.fail
        assert terms.error == str(error)
        pauses.append(terms.pause_s)
        job = replace(job, attempts=terms.attempts)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == PAUSE_MAX_S


@pytest.mark.parametrize("error", DEFECTS)
def test_anything_else_is_tried_again_a_few_times_and_then_the_job_has_failed(error: Exception) -> None:
    job = JOB
    for attempt in range(1, ATTEMPTS_MAX + 1):
        terms = terms_after(error, job, job)
        assert terms is not None
        assert (terms.attempts, terms.fail) == (attempt, attempt == ATTEMPTS_MAX)
        assert terms.error == (str(error) if isinstance(error, ReplayError) else "ended by ValueError")
        job = replace(job, attempts=attempt)


def test_ids_that_no_replay_can_hold_fail_the_job_at_once() -> None:
    error = UnreplayableIdsError("1 audit row in scope has an id below 1 (-5)", "leave it out")
    terms = terms_after(error, JOB, JOB)
    assert terms == Terms(attempts=1, error=str(error), fail=True)


def test_a_runner_that_got_on_with_the_job_begins_a_new_row_of_attempts() -> None:
    before = replace(JOB, attempts=ATTEMPTS_MAX - 1, records_migrated=5)
    for now in (replace(before, records_skipped=1), replace(before, run=2)):
        terms = terms_after(ReplayError("x"), before, now)
        assert terms is not None
        assert (terms.attempts, terms.fail) == (1, False)


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

    monkeypatch.setattr(daemon.migrations, "require_current", require_current)
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
    monkeypatch.setattr(daemon.subprocess, "Popen", lambda _command, env, **_options: started.append(env))
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
