"""What the benchmark says of a live feed's latencies, and how it looks for the highest rate."""

from ops.bench.live import RATE_MAX, TOPIC, Latencies, search


def at(rate: int, *seconds: float, kept_rate: float | None = None) -> Latencies:
    return Latencies(TOPIC, rate, rate if kept_rate is None else kept_rate, seconds, {"sink": 0.5})


def test_quantiles_are_of_the_events_and_in_milliseconds() -> None:
    found = at(1000, *(number / 1000 for number in range(1, 1001))).as_dict()
    assert (found["p50_ms"], found["p99_ms"], found["p999_ms"], found["max_ms"]) == (501.0, 991.0, 1000.0, 1000.0)
    assert (found["events"], found["cpu_us_per_event"]) == (1000, {"sink": 500})


def test_a_rate_is_kept_if_documents_and_source_are_in_time() -> None:
    assert not at(1000, 0.1, 0.999).is_late
    assert at(1000, 0.1, 1.0).is_late
    assert at(1000, 0.1, kept_rate=940).is_late


def test_the_highest_rate_is_found_to_an_eighth() -> None:
    seen = [rate for rate, _ in search(lambda rate: at(rate, 2.0 if rate > 5_300 else 0.1), 2_000)]
    assert seen == [2_000, 4_000, 8_000, 6_000, 5_000, 5_500]


def test_a_search_ends_for_a_feed_that_keeps_nothing_and_one_that_keeps_all() -> None:
    assert [rate for rate, _ in search(lambda rate: at(rate, 2.0), 2_000)][-1] < 2_000
    assert [rate for rate, _ in search(lambda rate: at(rate, 0.1), 2_000)][-1] >= RATE_MAX
