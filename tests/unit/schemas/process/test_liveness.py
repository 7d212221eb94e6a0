"""A worker that does not move is found, reported, and ended where it does not end by itself."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from schemas.errors import ReplayError
from schemas.process.exposition import PORT_VARIABLE, serving
from schemas.process.liveness import Liveness, StalledError, Watchdog
from schemas.vocabulary import ExitCode
from tests.support.waiting import wait_until


def stuck() -> Liveness:
    """Return that of a loop that has not turned in the time allowed."""
    liveness = Liveness(0.0)
    time.sleep(0.001)
    return liveness


def test_a_loop_that_turns_is_live_and_one_that_does_not_is_stalled() -> None:
    moving = Liveness(60.0)
    moving.check()
    assert moving.is_live
    with pytest.raises(StalledError, match=r"the loop has not turned for 0 s \(allowed: 0 s\)") as raised:
        stuck().check()
    assert raised.value.exit_code == ExitCode.STALLED


def test_progress_is_a_turn_and_a_turn_is_no_progress() -> None:
    liveness = Liveness(60.0)
    started = {value.metric: value.value for value in liveness.values()}
    time.sleep(0.01)
    liveness.turned()
    turned = {value.metric: value.value for value in liveness.values()}
    assert turned["last_turn_timestamp_seconds"] > started["last_turn_timestamp_seconds"]
    assert turned["last_progress_timestamp_seconds"] == started["last_progress_timestamp_seconds"]
    liveness.progressed()
    progressed = {value.metric: value.value for value in liveness.values()}
    assert progressed["last_progress_timestamp_seconds"] == progressed["last_turn_timestamp_seconds"]


def watchdog(check: Callable[[], None], report: Callable[[ReplayError], None], ends: list[int]) -> Watchdog:
    return Watchdog([check], report, every_s=0.01, end_within_s=0.2, end=ends.append)


def test_what_a_check_finds_is_reported_once_and_a_process_that_then_ends_is_left_alone() -> None:
    reported, ends = list[ReplayError](), list[int]()
    dog = watchdog(stuck().check, reported.append, ends).start()
    wait_until(lambda: reported, "the report")
    dog.close()
    time.sleep(0.3)
    assert len(reported) == 1
    assert ends == []


def test_a_process_that_does_not_end_by_itself_is_ended_with_the_exit_code_of_the_finding() -> None:
    ends = list[int]()
    dog = watchdog(stuck().check, lambda _: None, ends).start()
    wait_until(lambda: ends, "the end")
    dog.close()
    assert ends == [ExitCode.STALLED]


def test_one_that_is_being_closed_reports_nothing() -> None:
    """The loop that would receive the report may have ended while the check was under way."""
    checking, closing, reported = threading.Event(), threading.Event(), list[ReplayError]()

    def slow() -> None:
        checking.set()
        closing.wait(10)
        raise StalledError("too late")

    dog = watchdog(slow, reported.append, []).start()
    assert checking.wait(10)
    dog._closing.set()
    closing.set()
    dog.close()
    assert reported == []


def test_one_that_was_never_started_can_be_closed() -> None:
    watchdog(lambda: None, lambda _: None, []).close()


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_probes_are_answered_beside_the_metrics() -> None:
    liveness = Liveness(60.0)
    with serving("sink", list, liveness=liveness, environ={PORT_VARIABLE: "0"}) as port:
        assert port is not None
        assert answer(port, "/livez")[0] == 200
        status, said = answer(port, "/readyz")
        assert (status, said.partition(",")[0]) == (503, "failed: starting")
        liveness.ready = True
        assert answer(port, "/readyz")[0] == 200
        liveness.stuck_after_s = 0.0
        assert [answer(port, path)[0] for path in ("/livez", "/readyz")] == [503, 503]
        metrics = answer(port, "/metrics")[1]
        assert "crm_replay_last_turn_timestamp_seconds" in metrics
        assert "crm_replay_last_progress_timestamp_seconds" in metrics
