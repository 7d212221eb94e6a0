"""Deadlines, retries and stops: what all processes wait with."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from schemas.process.waiting import INDEFINITELY_S, Deadline, StoppedError, retrying, stop_on_signals


class AwayError(Exception):
    pass


class Server:
    """Answers at the nth question."""

    def __init__(self, answers_at: int) -> None:
        self.answers_at, self.asked = answers_at, 0

    def ask(self) -> int:
        self.asked += 1
        if self.asked < self.answers_at:
            raise AwayError(self.asked)
        return self.asked


class Waits(Deadline):
    """Notes how long it is waited, and does not wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.pauses: list[float] = []

    def wait(self, pause_s: float) -> bool:
        self.pauses.append(pause_s)
        return len(self.pauses) < 9


def test_a_wait_ends_with_the_deadline_and_there_is_none_behind_it() -> None:
    began = time.monotonic()
    deadline = Deadline(0.05)
    assert deadline.wait(60.0)
    while deadline.wait(60.0):
        pass
    assert 0.05 <= time.monotonic() - began < 30.0
    assert (deadline.passed, deadline.left_s, deadline.wait(60.0)) == (True, 0.0, False)


def test_a_deadline_that_never_comes_waits_as_long_as_it_is_told() -> None:
    deadline = Deadline(INDEFINITELY_S)
    assert deadline.wait(0.001)
    assert not deadline.passed


def test_a_stop_ends_a_wait() -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError):
        Deadline(INDEFINITELY_S, stop).wait(60.0)


def test_an_effect_is_tried_until_it_succeeds_with_growing_pauses() -> None:
    server, waits = Server(answers_at=6), Waits(INDEFINITELY_S)
    assert retrying(server.ask, AwayError, waits, 0.1, 1.0) == 6
    assert waits.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])


def test_pauses_stay_the_same_unless_told_otherwise() -> None:
    waits = Waits(INDEFINITELY_S)
    retrying(Server(answers_at=4).ask, AwayError, waits, 0.3)
    assert waits.pauses == [0.3, 0.3, 0.3]


def test_the_last_error_is_raised_when_the_time_is_over() -> None:
    server = Server(answers_at=10**9)
    with pytest.raises(AwayError, match=r"^[1-9]"):
        retrying(server.ask, AwayError, Deadline(0.02), 0.005)
    assert server.asked > 1
    once = Server(answers_at=2)
    with pytest.raises(AwayError):
        retrying(once.ask, AwayError, Deadline(0.0), 60.0)
    assert once.asked == 1


def test_what_does_not_pass_is_raised_at_once() -> None:
    server = Server(answers_at=5)
    with pytest.raises(AwayError, match=r"^3$"):
        retrying(server.ask, AwayError, Waits(INDEFINITELY_S), 60.0, passes=lambda error: error.args[0] < 3)
    with pytest.raises(AwayError, match=r"^4$"):
        retrying(server.ask, (KeyError, ValueError), Waits(INDEFINITELY_S), 60.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_event_and_handlers_are_put_back(number: int) -> None:
    before, given = signal.getsignal(number), threading.Event()
    with stop_on_signals(given) as stop:
        for _ in range(2):  # a second one changes nothing
            os.kill(os.getpid(), number)
            assert stop.is_set()
    assert given.is_set()
    assert signal.getsignal(number) is before


def program(body: str) -> "subprocess.CompletedProcess[bytes]":
    imports = "import os, signal\nfrom schemas.process.waiting import *\n"
    return subprocess.run([sys.executable, "-c", imports + body], timeout=30, check=False)


def test_a_second_signal_ends_the_process_if_it_is_to() -> None:
    done = program(
        "with stop_on_signals(second_ends=True):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    assert done.returncode == 128 + signal.SIGTERM


def test_a_signal_in_the_midst_of_a_wait_does_not_block_the_process() -> None:
    """A handler that sets the event by itself waits for a lock which the wait that it interrupts may hold."""
    done = program(
        "with stop_on_signals() as stop:\n"
        "    with stop._cond:\n"  # as `stop.wait` does
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.wait(10)\n"
    )
    assert done.returncode == 0
