"""The one line of a worker's counts."""

from processors.metrics import ProcessorMetrics


def test_the_line_names_every_count_and_the_rate_between_first_run_and_last_ack() -> None:
    metrics = ProcessorMetrics(records_in=3000, logs=2000, first_batch_at=10.0, last_ack_at=12.0)
    metrics.skips["contact_not_found"] += 990
    metrics.dead_letters["undecodable_changes"] += 10
    metrics.table_entries = {"contacts": 5}
    metrics.transformation = {"refused_values": 7}
    said = dict(pair.split("=") for pair in metrics.line().split())
    assert said["records_in"] == "3000"
    assert (said["logs"], said["skips"], said["dead_letters"]) == ("2000", "990", "10")
    assert said["skip.contact_not_found"] == "990"
    assert said["dead_letter.undecodable_changes"] == "10"
    assert (said["running_s"], said["records_per_s"]) == ("2.00", "1500")
    assert (said["table.contacts"], said["refused_values"]) == ("5", "7")


def test_a_worker_that_has_done_nothing_has_no_rate() -> None:
    assert "records_per_s=0" in ProcessorMetrics().line()
