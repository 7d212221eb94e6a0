"""The benchmark's meter, on this very machine's processes."""

import os
import subprocess
import sys
import time

import pytest

from ops.local.measure import Meter, children, cpu_seconds, peak_mib

BURN = """
import time
block, end = bytearray(80_000_000), time.process_time() + 0.3
while time.process_time() < end:
    pass
input()
"""


def test_cpu_and_memory_of_a_child_are_seen_while_it_lives():
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        meter = Meter(lambda: {"child": child.pid}).start()
        deadline = time.monotonic() + 30
        while cpu_seconds(child.pid) < 0.3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert child.pid in children(os.getpid())
        meter.stop()
        child.stdin.close()
    cost = meter.costs()["child"]
    assert 0.1 <= cost.cpu_s < 5
    assert 76 <= cost.peak_mib < 200


def test_a_process_that_was_there_before_counts_from_the_start_of_the_measurement():
    sum(range(3_000_000))
    before = cpu_seconds(os.getpid())
    meter = Meter(lambda: {"self": os.getpid()}).start()
    meter.stop()
    assert before > 0
    assert meter.costs()["self"].cpu_s <= 0.5 * before + 0.2


def test_a_process_that_is_gone_costs_nothing():
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    pid = int(done.stdout)
    assert (cpu_seconds(pid), peak_mib(pid), children(pid)) == (0.0, 0.0, [])


def test_the_steady_rate_leaves_out_start_and_end():
    meter = Meter(dict)
    meter.samples = [(0.0, 0), (5.0, 100), (6.0, 300), (7.0, 500), (8.0, 700), (9.0, 880), (20.0, 1000)]
    assert meter.steady_rate(1000) == pytest.approx((880 - 300) / 3.0)
    assert Meter(dict).steady_rate(1000) is None
