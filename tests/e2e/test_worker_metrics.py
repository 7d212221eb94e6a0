"""A runner's one port for metrics, as a cluster's Prometheus asks it: its workers' are there while they work."""

import urllib.request
from collections import defaultdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.local.sample_crm import SAMPLE_YAML
from tests.e2e.conftest import Crm
from tests.e2e.daemon import SLOW, asked_for, completed, daemon, over, wait_for
from tests.fixtures.services import _free_port


@pytest.mark.slow
def test_a_runners_port_tells_the_metrics_of_all_its_workers_and_forgets_those_that_have_ended(sample_crm: Crm) -> None:
    port = _free_port()
    asked_for(sample_crm, SAMPLE_YAML)
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # metric -> role -> workers
    running: set[str] = set()

    def scrape() -> bool:
        """Note who says what; return whether anybody has answered."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            return False
        running.clear()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.startswith("crm_replay_") or not sample.value:
                    continue
                role = sample.labels["role"]
                assert sample.labels.get("account", "") == ("" if role == "runner" else SAMPLE_YAML)
                seen[sample.name.removeprefix("crm_replay_")][role].add(sample.labels["worker"])
                if sample.name == "crm_replay_process_info":
                    running.add(role)
        return True

    with daemon(sample_crm, **SLOW, CRM_REPLAY_ID_RANGES="2", CRM_REPLAY_METRICS_PORT=str(port)):
        wait_for("the runner", scrape)
        wait_for("the end", lambda: scrape() and over(sample_crm, SAMPLE_YAML))
        completed(sample_crm, SAMPLE_YAML)
        wait_for("those that have ended are gone", lambda: scrape() and running == {"runner"})
    # The snapshot's process, and one for each of the two ranges of ids that it has given to others.
    assert {role: len(workers) for role, workers in seen["worker_up"].items()} == {
        "producer": 3,
        "processors": 1,
        "sink": 1,
    }
    assert {role: len(workers) for role, workers in seen["process_info"].items()} == {
        "runner": 1,
        "producer": 3,
        "processors": 1,
        "sink": 1,
    }
    assert {metric: set(seen[metric]) for metric in ("rows_published_total", "runs_total", "documents_total")} == {
        "rows_published_total": {"producer"},
        "runs_total": {"processors"},
        "documents_total": {"sink"},
    }
    assert not [path for path in sample_crm.home.rglob("*.json") if "metrics" in path.parts]
