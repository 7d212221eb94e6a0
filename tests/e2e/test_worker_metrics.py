"""A runner's one port for metrics, as a cluster's Prometheus asks it: its workers' are there while they work."""

import urllib.request
from collections import defaultdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.local.sample_crm import SAMPLE_YAML
from tests.e2e.test_runner import SLOW, Crm, asked_for, completed, daemon, wait_for
from tests.fixtures.services import _free_port


@pytest.mark.slow
def test_a_runners_port_tells_the_metrics_of_all_its_workers_and_forgets_those_that_have_ended(sample_crm: Crm):
    port = _free_port()
    asked_for(sample_crm, SAMPLE_YAML)

    def told(metric: str) -> dict[str, float]:
        """Return what the runner says of a metric, by the process that it is of; {} before it answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"crm_replay_{metric}":
                    assert sample.labels["account"] == ("" if sample.labels["role"] == "runner" else SAMPLE_YAML)
                    found[sample.labels["role"]] += sample.value
        return found

    everybody = {"runner", "producer", "processors", "sink"}
    with daemon(sample_crm, **SLOW, CRM_REPLAY_METRICS_PORT=str(port)):
        wait_for("all workers", lambda: everybody <= told("process_info").keys())
        wait_for("documents written", lambda: told("documents_total").get("sink", 0) > 0)
        assert told("rows_published_total").keys() == {"producer"}
        assert set(told("worker_up").values()) == {1.0}
        assert told("worker_up").keys() == everybody - {"runner"}
        completed(sample_crm, SAMPLE_YAML)
        wait_for("those that have ended are gone", lambda: told("process_info") == {"runner": 1.0})
    assert not [path for path in sample_crm.home.rglob("*.json") if "metrics" in path.parts]
