"""What the benchmark says of many small accounts, from the times of their ends."""

from ops.bench.accounts import Measured


def test_a_rise_from_the_first_accounts_to_the_last_shows() -> None:
    ends = [2.0]
    for number in range(20):
        ends.append(ends[-1] + (1.0 if number < 10 else 3.0))
    found = Measured(1, [10, 20, 60] * 7, ends, seconds=43.0, cpu_s=21.0).as_dict()
    assert (found["accounts"], found["rows_each"]) == (21, [10, 20, 60])
    assert (found["first_finished_after_s"], found["seconds_per_account"]) == (2.0, 2.0)
    assert found["cpu_s_per_account"] == 1.0
    assert (found["first_tenth_s"], found["median_s"], found["last_tenth_s"], found["max_s"]) == (1.0, 2.0, 3.0, 3.0)


def test_accounts_at_once_have_no_order_to_compare() -> None:
    found = Measured(10, [5] * 10, [4.0 + number / 10 for number in range(10)], seconds=6.0, cpu_s=9.0).as_dict()
    assert (found["at_once"], found["seconds_per_account"], found["cpu_s_per_account"]) == (10, 0.49, 0.9)
    assert "first_tenth_s" not in found
