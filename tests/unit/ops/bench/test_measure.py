"""The benchmark's meter, on this very machine's processes."""

import os
import subprocess
import sys
import time

import pytest

from ops.bench.measure import Meter, children, cpu_seconds, peak_mib, resident_mib
from tests.support.waiting import wait_until

BURN = """
import time
block, end = bytearray(80_000_000), time.process_time() + 0.3
while time.process_time() < end:
    pass
input()
"""


def test_cpu_and_memory_of_a_child_are_seen_while_it_lives() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        meter = Meter(lambda: {"child": child.pid}).start()
        wait_until(lambda: cpu_seconds(child.pid) >= 0.3, "the child has worked")
        assert child.pid in children(os.getpid())
        meter.stop()
        child.stdin.close()
    cost = meter.costs()["child"]
    assert 0.1 <= cost.cpu_s < 5
    assert 76 <= cost.peak_mib < 200


def test_a_process_that_was_there_before_counts_from_the_start_of_the_measurement() -> None:
    sum(range(3_000_000))
    before = cpu_seconds(os.getpid())
    meter = Meter(lambda: {"self": os.getpid()}).start()
    meter.stop()
    assert before > 0
    assert meter.costs()["self"].cpu_s <= 0.5 * before + 0.2


def test_a_process_that_is_gone_costs_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    pid = int(done.stdout)
    assert (cpu_seconds(pid), peak_mib(pid), children(pid)) == (0.0, 0.0, [])


def test_the_steady_rate_leaves_out_start_and_end() -> None:
    meter = Meter(dict)
    meter.samples = [(0.0, 0), (5.0, 100), (6.0, 300), (7.0, 500), (8.0, 700), (9.0, 880), (20.0, 1000)]
    assert meter.steady_rate(1000) == pytest.approx((880 - 300) / 3.0)
    assert Meter(dict).steady_rate(1000) is None


def test_growth_is_told_of_processes_that_live_on_and_without_their_start() -> None:
    meter = Meter(dict)
    meter.resident = {
        "grows": [(0, 20.0), (200, 100.0), (500, 130.0), (880, 150.5), (1000, 190.0)],
        "has_ended": [(0, 20.0), (300, 50.0), (600, 90.0)],
        "late": [(950, 10.0), (1000, 30.0)],
    }
    assert meter.growth_mib(1000) == {"grows": 50.5}


def test_the_resident_set_is_sampled_beside_the_counter() -> None:
    rows = 0
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        meter = Meter(lambda: {"child": child.pid}, lambda: rows).start()
        deadline = time.monotonic() + 30
        while not (sizes := meter.resident.get("child")) or sizes[-1][0] < 70:
            assert time.monotonic() < deadline
            rows = 70 if resident_mib(child.pid) > 80 else 20
            time.sleep(0.05)
        meter.stop()
        child.stdin.close()
    assert [at for at, _ in sizes] == sorted(at for at, _ in sizes)
    assert sizes[-1][1] > 80
