"""What `crm-replay bench` shows of its measurements."""

import io

from rich.console import Console

from ops.bench.measure import Cost
from ops.bench.stages import Measured
from ops.cli.bench import print_comparison, print_rates


def test_each_stage_has_a_line_over_its_repeats() -> None:
    out = io.StringIO()
    costs, growth = {"sink": Cost(1.0, 50.0), "kafka": Cost(1.0, 900.0)}, {"sink": 3.0, "kafka": 80.0}
    measured = [Measured("sink", 1_000, seconds, None, costs, growth) for seconds in (1.0, 2.0, 4.0)]
    print_rates(Console(file=out, width=120), measured)
    shown = out.getvalue()
    assert "250 / 500 / 1,000" in shown
    assert "2000" in shown  # microseconds of CPU a row, servers included
    assert "+3" in shown  # of the process, not of a server
    assert "+80" not in shown


def test_without_a_rate_there_is_no_table() -> None:
    out = io.StringIO()
    print_rates(Console(file=out), [])
    assert out.getvalue() == ""


def test_the_peer_is_compared_by_each_of_its_ways() -> None:
    out = io.StringIO()
    line = {"peer": "copy", "peer_rows_per_s": [1, 2, 3], "our_rows_per_s": [1_000, 2_000, 3_000], "ratio": 1000.0}
    print_comparison(Console(file=out, width=120), [line])
    assert "1,000 / 2,000 / 3,000" in out.getvalue()
