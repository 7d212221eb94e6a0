"""The command line as a whole: a wrong call is said shortly, and a command does not wait for code of others."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pymongo.errors
import pytest
from confluent_kafka import KafkaError, KafkaException

from ops.cli import main as cli
from ops.cli.main import ALL, COMMANDS, application, main
from schemas.compiled import hot_paths

ROOT = Path(__file__).parents[4]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    return int(str(ended.value.code)), said.out, said.err


def test_the_version_is_that_of_the_newest_release_in_the_changelog(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "--version")
    released = re.findall(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert (code, out, err) == (0, f"crm-replay {released[0]}\nhot paths: {hot_paths()}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nope",), "No such command 'nope'"),
        (("status",), "Missing option '--account'"),
        (("status", "--account", "a", "--loud"), "No such option: --loud"),
        (("run", "--account", "a", "--partitions", "0"), "greater than or equal to 1"),
        (("dlq", "nope"), "No such command 'nope'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: Any, says: str
) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KafkaException(KafkaError(KafkaError.NOT_COORDINATOR)), "Kafka failed during the command ("),
        (KafkaException(), "Kafka failed during the command (KafkaException)"),
        (pymongo.errors.BulkWriteError({"writeErrors": [{"op": "Budi"}]}), "MongoDB failed during the command"),
        (psycopg.errors.AdminShutdown("terminating: Budi"), "PostgreSQL failed during the command ("),
    ],
)
def test_a_server_that_fails_in_the_middle_is_one_line_without_what_it_quotes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, says: str
) -> None:
    def fail(_called: object) -> None:
        raise error

    monkeypatch.setattr(cli, "application", fail)
    code, out, err = call(capsys, "status", "--account", "a")
    assert (code, out) == (1, "")
    assert err.startswith(f"crm-replay: {says}")
    assert err.endswith("run the same command again\n")
    assert err.count("\n") == 1
    assert "Budi" not in err


def test_a_defect_of_ours_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_called: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(cli, "application", fail)
    with pytest.raises(ValueError, match="a defect"):
        main(["status", "--account", "a"])


@pytest.mark.parametrize("words", [("--account", "a"), ("--help",)])
def test_an_interrupt_while_the_command_line_is_being_imported_is_one_line(words: Any) -> None:
    script = f"""
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "rich" or name.startswith("rich."):
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
sys.argv = ["crm-replay", "status", *{words!r}]
from ops.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "crm-replay: interrupted\n")


@pytest.mark.parametrize(
    "words",
    [("status",), ("flag",), ("flag", "on"), ("check",), ("enrich",), ("produce",), ("run",), ("seam",)],
)
@pytest.mark.parametrize("account", ["", "a\nb"])
def test_what_is_no_account_is_refused_before_a_server_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: Any, account: str
) -> None:
    monkeypatch.setenv("CRM_REPLAY_HOME", str(tmp_path))
    monkeypatch.setenv("MONGODB_URL", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100")
    code, out, err = call(capsys, *words, "--account", account)
    assert (code, out) == (2, "")
    assert "is not a company_sso_id" in err


def test_help_names_every_command_and_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out
        assert call(capsys, name, "--help")[0] == 0


def test_a_setting_that_is_missing_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CRM_REPLAY_HOME", str(tmp_path))
    for name in ("MONGODB_URL", "KAFKA_BOOTSTRAP_SERVERS", "CRM_AUDIT_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = call(capsys, "status", "--account", "a")
    assert code == 2
    assert err.strip().splitlines() == [
        "crm-replay: MONGODB_URL is not set: export it, or start the embedded servers: crm-replay services up"
    ]


@pytest.mark.parametrize(
    ("command", "strangers"),
    [
        ("status", ("fastapi", "faust", "httpx", "psycopg", "structlog", "ops.runner.replay", "ops.local")),
        ("services", ("fastapi", "faust", "ops.control.app")),
        ("run", ("fastapi", "ops.local.generator", "ops.checks.preflight")),
    ],
)
def test_a_command_is_not_kept_waiting_by_what_others_import(command: str, strangers: Any) -> None:
    script = f"import sys; from ops.cli.main import application; application({command!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(strangers) & set(done.stdout.split())


def test_one_command_alone_is_called_as_among_all_others() -> None:
    one, everything = application("status"), application()
    assert len(one.registered_commands) == 1
    assert len(everything.registered_commands) + len(everything.registered_groups) == len(COMMANDS) + 1  # reference


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
SHOWN = "caf\u00e9 \u2026 \u65e5\u672c \U0001f600"
# What the commands print with: rich in a table and alone, click, a view, the last line of an error.
PRINTS_ALL = f"""
import sys, typer
from rich.console import Console
from ops.cli import main as cli
from ops.cli.preflight import print_report
from ops.checks.model import warn
from ops.checks.preflight.model import Report
from ops.progress import PlainView, TerminalView
from schemas.errors import BadInputError

def show():
    print_report(Console(), Report({SHOWN!a}, (warn("x", {SHOWN!a}, {SHOWN!a}),)))
    typer.echo({SHOWN!a})
    PlainView().note({SHOWN!a})
    view = TerminalView(Console(stderr=True, force_terminal=True))
    view.note({SHOWN!a})
    view.progress(1, 2, {{}}, 0)
    view.close()
    raise BadInputError({SHOWN!a}, {SHOWN!a})

app = typer.Typer()
app.command("show")(show)
app.callback()(lambda: None)
cli.application = lambda called: app
cli.main(["show"])
"""


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_no_terminal_is_too_plain_for_what_a_command_prints(environment: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS_ALL],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"caf" in done.stdout
    assert rb"\u2026" in done.stdout
    assert b"crm-replay: caf" in done.stderr


def test_json_stays_json_on_a_plain_terminal() -> None:
    prints = (
        "import logging, sys; from schemas.process import logs; from ops.cli.subject import json_line;"
        f" print(json_line({{'name': {SHOWN!a}}}, sys.stdout)); logs.configure('x'); logging.warning({SHOWN!a})"
    )
    for environment in (ASCII, {"PYTHONIOENCODING": "utf-8"}):
        command = [sys.executable, "-c", prints]
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, timeout=60, check=True, encoding="utf-8"
        )
        assert json.loads(done.stdout) == {"name": SHOWN}
        assert json.loads(done.stderr)["event"] == SHOWN
        assert done.stdout.isascii() == (environment is ASCII)


def test_every_command_is_in_this_directory() -> None:
    assert {name for name, place in COMMANDS.items() if not place.module.startswith("ops.cli.")} == set()


WORKBENCH = {"services", "generate", "demo", "bench"}
# An editable installation finds what a tree lacks in the checkout.
OF_THE_TREE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_EditableFinder"]
"""
# All commands in one process: importing is most of what each of them does.
HELP_OF_ALL = f"""{OF_THE_TREE}
from pathlib import Path
import ops
from schemas.compiled import hot_paths
from ops.cli.main import ALL, COMMANDS, main

assert Path(ops.__file__).is_relative_to(Path.cwd()), ops.__file__
for words in [["--help"], *([name, "--help"] for name in COMMANDS)]:
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == 0, words
for missing in ALL.keys() - COMMANDS.keys():
    try:
        main([missing])
    except SystemExit as ended:
        assert ended.code == 2, missing
assert not [name for name in sys.modules if name.startswith(("ops.local", "ops.bench"))]
print("left:", *sorted(COMMANDS))
"""
CALL = f"{OF_THE_TREE}\nfrom ops.cli.main import main; main()"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as the image has them."""
    tree = tmp_path_factory.mktemp("image")
    for package in ("schemas", "producer", "processors", "sink", "ops"):
        left_out = shutil.ignore_patterns("__pycache__", "local", "bench")
        shutil.copytree(ROOT / package, tree / package, ignore=left_out)
    return tree


def test_the_image_has_every_command_but_those_of_the_workbench(image: Path) -> None:
    command = [sys.executable, "-c", HELP_OF_ALL]
    done = subprocess.run(command, cwd=image, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert done.stdout.splitlines()[-1].split()[1:] == sorted(ALL.keys() - WORKBENCH)


def test_a_command_works_in_the_image(image: Path) -> None:
    row = {"id": 5, "created_at": "2024-01-31T17:30:00Z", "auditable_type": "Crm::Person", "auditable_id": 7}
    command = [sys.executable, "-c", CALL, "transform", "--rows", "-"]
    done = subprocess.run(command, cwd=image, input=json.dumps(row), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["id"] == 5


def test_nothing_in_the_image_names_the_addresses_of_servers_that_are_not_set(image: Path, tmp_path: Path) -> None:
    unset = dict.fromkeys(("MONGODB_URL", "KAFKA_BOOTSTRAP_SERVERS", "CRM_AUDIT_DATABASE_URL"), "")
    command = [sys.executable, "-c", CALL, "status", "--account", "a"]
    environment = {**os.environ, **unset, "CRM_REPLAY_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=image, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("crm-replay: MONGODB_URL is not set")
