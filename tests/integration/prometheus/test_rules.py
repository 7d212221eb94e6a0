"""Alert rules and dashboards: they parse, fire as they should on made-up series, and ask for metrics that exist."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from ops.control.http_metrics import HttpMetrics
from schemas.process.metrics import METRICS

ROOT = Path(__file__).parents[3]
RULES, TESTS = ROOT / "ops/prometheus/rules.yml", ROOT / "ops/prometheus/rules.test.yml"
DASHBOARDS = sorted((ROOT / "ops/grafana").glob("*.json"))
SUFFIXES = ("_total", "_bucket", "_count", "_sum")
OF_PROMETHEUS = {"up"}


def alerts() -> dict[str, dict[str, object]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def names_in(expression: str) -> set[str]:
    """Return what a PromQL expression takes for metrics of ours or of the client library."""
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    return set(re.findall(r"\b(?:crm_(?:replay|control)_\w+|process_\w+|up)\b", outside))


def existing() -> set[str]:
    """Return the names of every series that a process of ours can have."""
    found = {metric.full_name for metric in METRICS.values()} | OF_PROMETHEUS
    for registry in (HttpMetrics().registry, REGISTRY):
        for family in registry.collect():
            found |= {family.name, *(family.name + suffix for suffix in SUFFIXES)}
    return found


def promtool(programs: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(programs / "promtool"), *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )


def test_prometheus_takes_the_configuration_and_the_rules(prometheus_programs: Path) -> None:
    for words in (("check", "config", ROOT / "ops/prometheus/prometheus.yml"), ("check", "rules", RULES)):
        done = promtool(prometheus_programs, *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_for_kubernetes(prometheus_programs: Path, tmp_path: Path) -> None:
    configuration = yaml.safe_load((ROOT / "ops/prometheus/kubernetes.yml").read_text())
    (job,) = configuration["scrape_configs"]
    # Debian's Prometheus is built without the discovery of pods; all else is checked.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [{"targets": ["10.0.0.1"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (tmp_path / RULES.name).write_text(RULES.read_text())
    done = promtool(prometheus_programs, "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"crm-replay-", job["job_name"])  # by which the alert on targets knows ours


def test_each_rule_fires_on_its_case_and_is_silent_beside_it(prometheus_programs: Path) -> None:
    done = promtool(prometheus_programs, "test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fired == alerts().keys()


def test_a_rule_that_is_changed_is_noticed(prometheus_programs: Path, tmp_path: Path) -> None:
    text = RULES.read_text()
    for found, instead in (("> 0.05", "> 0.5"), ('status="halted"}) == 1', 'status="halted"}) == 2')):
        assert found in text
        (tmp_path / RULES.name).write_text(text.replace(found, instead))
        (tmp_path / TESTS.name).write_text(TESTS.read_text())
        assert promtool(prometheus_programs, "test", "rules", tmp_path / TESTS.name).returncode != 0


def queries() -> Iterator[tuple[str, str]]:
    for name, rule in alerts().items():
        yield name, str(rule["expr"])
    for dashboard in DASHBOARDS:
        content = json.loads(dashboard.read_text())
        for panel in content["panels"]:
            for target in panel["targets"]:
                yield f"{dashboard.name}: {panel['title']}", target["expr"]


@pytest.mark.parametrize(("where", "expression"), list(queries()), ids=lambda value: " ".join(value.split())[:60])
def test_every_query_asks_for_metrics_that_exist(where: str, expression: str) -> None:
    asked = names_in(expression)
    assert asked, f"{where} asks for nothing of ours"
    assert asked <= existing(), f"{where} asks for what nobody measures"


def test_each_alert_says_what_to_do_in_a_section_that_the_runbook_has() -> None:
    headings = re.findall(r"(?m)^#+ .*?(?:\{#([\w-]+)\})?$", (ROOT / "ops/runbook.md").read_text())
    anchors = set(re.findall(r'<a id="([\w-]+)"></a>', (ROOT / "ops/runbook.md").read_text())) | set(headings)
    for name, rule in alerts().items():
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        page, _, section = str(annotations["runbook_url"]).partition("#")
        assert (ROOT / page).is_file(), name
        assert section in anchors, f"{name}: the runbook has no section {section}"
        assert rule["labels"] in ({"severity": "page"}, {"severity": "warn"})
