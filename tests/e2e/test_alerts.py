"""A real Prometheus scrapes a real run, by the files that its processes write; the rules fire on real trouble."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from ops.local.generator import GENERATED_MAPPING
from schemas.process.metrics import ENRICHMENTS, JOBS, PROCESSORS, PRODUCER, SINK
from tests.e2e.conftest import Crm
from tests.fixtures.services import _free_port
from tests.support.programs import Program

ROOT = Path(__file__).parents[2]
CREDENTIALS = "ops:a-password-of-the-test"
PATIENCE_S = 120
ACCOUNT = "crm-1"


def faster(text: str) -> str:
    """Return rules whose minutes are two seconds: what takes an hour in production is over in two minutes here."""
    return re.sub(
        r"(?<=\[)(\d+)m(?=\])|(?<=for: )(\d+)m", lambda found: f"{2 * int(found[1] or found[2])}s", text
    ).replace("15s", "5s")


class Prometheus:
    """A server of this test's own, with the product's configuration and rules."""

    def __init__(self, programs: Path, home: Path, control: str, targets: Path) -> None:
        configuration = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in configuration["scrape_configs"]:
            if "static_configs" in job:
                job["static_configs"] = [{"targets": [control]}]
                job["scrape_interval"] = "3s"  # it asks Kafka and MongoDB first, and takes two seconds if it must
            else:
                job["file_sd_configs"] = [{"files": [f"{targets}/*.json"], "refresh_interval": "1s"}]
        (home / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        (home / "rules.yml").write_text(faster((ROOT / "ops/prometheus/rules.yml").read_text()))
        self.port = _free_port()
        with (home / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(programs / "prometheus"),
                    f"--config.file={home}/prometheus.yml",
                    f"--storage.tsdb.path={home}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def trouble(self) -> list[str]:
        """Return what the targets that cannot be scraped say."""
        targets = self.ask("targets", state="active")["activeTargets"]
        return [f"{target['scrapeUrl']}: {target['lastError']}" for target in targets if target["health"] != "up"]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}


def until(met: Callable[[], object], what: str, why_not: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if met():
                return
        except OSError:  # it is still starting
            pass
        assert time.monotonic() < deadline, f"{what}: {why_not()}"
        time.sleep(0.3)


@pytest.fixture
def watched(crm: Crm, prometheus_programs: Path, tmp_path: Path) -> Iterator[tuple[Crm, Prometheus]]:
    """Give a CRM that a control plane and a Prometheus look at."""
    port = _free_port()
    crm.environment |= {
        "CRM_REPLAY_METRICS_PORT": "0",
        "CRM_REPLAY_METRICS_DIR": str(tmp_path / "targets"),
        "CRM_REPLAY_SESSION_TIMEOUT_S": "6",
    }
    environment = {
        **os.environ, **crm.environment, "CRM_REPLAY_HOME": str(crm.home), "CRM_CONTROL_BASIC_CREDENTIALS": CREDENTIALS,
    }  # fmt: skip
    control = Program("ops", "control", "--port", str(port), env=environment, stderr=subprocess.DEVNULL)
    home = tmp_path / "prometheus"
    home.mkdir()
    prometheus = Prometheus(prometheus_programs, home, f"127.0.0.1:{port}", tmp_path / "targets")
    try:
        until(lambda: prometheus.series('up{job="crm-replay-control"} == 1') != [], "the control plane is not scraped")
        yield crm, prometheus
    finally:
        for process in (prometheus.process, control):
            process.terminate()
        for process in (prometheus.process, control):
            process.wait(60)


@pytest.mark.timeout(600)
def test_rules_fire_on_a_dead_letter_a_stall_and_a_halt_and_every_metric_is_there(
    watched: tuple[Crm, Prometheus],
) -> None:
    crm, prometheus = watched
    assert crm.call("generate", "--audits", "4000", "--contacts").returncode == 0
    with psycopg.connect(crm.dsn, autocommit=True) as db:
        db.execute(
            "UPDATE crm.audits SET audited_changes = '--- [never closed' WHERE id ="
            " (SELECT min(id) FROM crm.audits WHERE auditable_type = 'Crm::Person')"
        )
    # Slow enough to be looked at while it runs: over two minutes, if nobody halts it.
    slow = {"CRM_REPLAY_SOURCE_ROWS_PER_S": "15", "CRM_REPLAY_PAGE_ROWS": "50"}
    with crm.start("run", "--account", ACCOUNT, "--mapping", GENERATED_MAPPING, "--json", **slow) as runner:
        try:
            every = {metric.full_name for metric in (*PRODUCER, *PROCESSORS, *SINK)}
            until(
                lambda: (
                    every <= {found["metric"]["__name__"] for found in prometheus.series('{__name__=~"crm_replay_.+"}')}
                ),
                "a process does not say all it should",
            )
            until(
                lambda: prometheus.series(f'crm_replay_job_rows{{account="{ACCOUNT}",bin="migrated"}} > 0') != [],
                "no rows",
                lambda: (prometheus.trouble(), prometheus.series("crm_replay_job_rows"), runner.poll()),
            )
            sinks = [
                int(line.split()[0])
                for line in subprocess.run(
                    ["ps", "-o", "pid=,args=", "--ppid", str(runner.pid)], capture_output=True, text=True, check=True
                ).stdout.splitlines()
                if "-m sink" in line
            ]
            assert len(sinks) == 1
            os.kill(sinks[0], 19)  # SIGSTOP: it lives, and does nothing
            until(lambda: "CrmReplayNoProgress" in prometheus.firing(), "a stall is not noticed")
            os.kill(sinks[0], 18)
            until(lambda: "CrmReplayNoProgress" not in prometheus.firing(), "the stall is over")
            assert crm.call("halt", "--account", ACCOUNT).returncode == 0
        finally:
            _, said = runner.communicate(timeout=120)
            sys.stderr.write(said)
    assert runner.returncode == 1, said
    until(lambda: "CrmReplayHalted" in prometheus.firing(), "a halt is not noticed")
    assert crm.call("resume", "--account", ACCOUNT, "--mapping", GENERATED_MAPPING).returncode == 0
    until(lambda: "CrmReplayHalted" not in prometheus.firing(), "the halt is over")
    until(lambda: "CrmReplayDeadLettersWaiting" in prometheus.firing(), "a dead letter waits, and nobody says so")
    assert crm.call("enrich", "--account", ACCOUNT, "--mapping", GENERATED_MAPPING).returncode == 0
    every = {metric.full_name for metric in (*JOBS, *ENRICHMENTS)} | {"crm_replay_actors_fell_back_total"}
    until(lambda: all(prometheus.series(f"last_over_time({name}[10m])") for name in every), "a job does not say it all")
    until(lambda: prometheus.series("crm_replay_enrichment_unfinished == 0"), "an enrichment that is over is not")
    # Every query of the dashboards is one that this Prometheus can answer.
    for dashboard in sorted((ROOT / "ops/grafana").glob("*.json")):
        for panel in json.loads(dashboard.read_text())["panels"]:
            for target in panel["targets"]:
                prometheus.series(target["expr"].replace("$account", ACCOUNT))
