"""The cache of tools: each is installed once, whole or not at all."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.local.services.fetching import CancelledError, ToolCache, locked
from ops.local.services.launcher import start_mark
from schemas.errors import BadInputError
from tests.support.waiting import at_once, wait_until


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> ToolCache:
    return ToolCache(tmp_path / "cache", logs=tmp_path / "logs", say=said.append, cancel=threading.Event())


def filling(text: str = "whole") -> Callable[[Path], None]:
    def fill(directory: Path) -> None:
        (directory / "tool").write_text(text)

    return fill


def test_a_tool_is_filled_once(cache: ToolCache, said: list[str]) -> None:
    first = cache.path("tool-1", "the tool", filling("first"))
    assert cache.path("tool-1", "the tool", filling("second")) == first
    assert (first / "tool").read_text() == "first"
    assert cache.path("tool-2", "the tool", filling("other")) != first
    assert said == ["fetching the tool", "fetching the tool"]


def test_a_failed_or_killed_fill_leaves_nothing_that_counts(cache: ToolCache) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise BadInputError("the network is down")

    with pytest.raises(BadInputError):
        cache.path("tool", "the tool", fail)
    assert [path.name for path in cache.directory.iterdir()] == [".tool.lock"]
    (cache.directory / ".tool.partial-killed").mkdir()  # as a killed process would leave it
    assert (cache.path("tool", "the tool", filling()) / "tool").read_text() == "whole"
    assert sorted(path.name for path in cache.directory.iterdir()) == [".tool.lock", "tool"]


def test_two_at_once_fill_once_and_the_second_says_that_it_waits(cache: ToolCache, said: list[str]) -> None:
    filled = 0
    waits = threading.Event()

    def slow(directory: Path) -> None:
        nonlocal filled
        filled += 1
        assert waits.wait(20)
        (directory / "tool").touch()

    def say(text: str) -> None:
        if text.startswith("waiting for another process"):
            waits.set()

    cache.say = say
    at_once(2, lambda _: cache.path("tool", "the tool", slow))
    assert filled == 1
    assert (cache.directory / "tool" / "tool").exists()


def test_waiting_for_a_lock_ends_when_told(cache: ToolCache, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", cancel=threading.Event()),
        pytest.raises(CancelledError),
        locked(tmp_path / "lock", cancel=cache.cancel, waiting=cache.cancel.set),
    ):
        pytest.fail("the lock was given twice")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInputError, match="cannot write in"), locked(tmp_path / "x", cancel=threading.Event()):
        pass


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("[ERROR] No network -> [Help 1]\n[ERROR] To see the full stack trace of the errors, re-run\n", "No network"),
        ("npm error code E404\nnpm error 404 Not Found\nnpm error\nA complete log\n", "npm error 404 Not Found"),
        ("Hit:1\nE: Unable to locate package\n", r"\): E: Unable to locate package: "),
        ("\x1b[31msomething else\x1b[0m\n", "something else"),
    ],
)
def test_a_failing_installer_is_told_by_its_first_errors(
    cache: ToolCache, tmp_path: Path, output: str, told: str
) -> None:
    (tmp_path / "output").write_text(output)
    with pytest.raises(BadInputError, match=told) as caught:
        cache.run("thing", ["/bin/sh", "-c", "cat output; exit 3"], cwd=tmp_path)
    assert str(caught.value).startswith("sh could not fetch thing (exit code 3)")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "logs" / "install-thing.log") in str(caught.value)


def test_an_installer_is_ended_with_its_children_when_told(cache: ToolCache, tmp_path: Path) -> None:
    running = tmp_path / "running"
    script = f"sleep 300 & echo $! > {running}.partial; mv {running}.partial {running}; wait"

    def tell() -> None:
        wait_until(running.exists, "the installer runs")
        cache.cancel.set()

    teller = threading.Thread(target=tell)
    teller.start()
    with pytest.raises(CancelledError):
        cache.run("thing", ["/bin/sh", "-c", script], cwd=tmp_path)
    teller.join()
    child = int(running.read_text())
    wait_until(lambda: start_mark(child) is None, "SIGKILL takes effect")
