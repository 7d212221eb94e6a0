"""Image, compose file, manifests and settings page say what the code says."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from ops.cli.main import ALL, application
from ops.cli.reference import pages, settings
from ops.control.settings import ControlSettings
from schemas.topics import LIVE_FEED, LIVE_TOPIC, AccountTopics

ROOT = Path(__file__).parents[3]
MANIFESTS = sorted((ROOT / "ops/kubernetes").glob("*/*.yaml"))
RESOURCES = [file for file in MANIFESTS if file.name not in ("kustomization.yaml", "mapping.yaml")]
COMMANDS = set(get_command(application()).commands)  # type: ignore[attr-defined]
KNOWN = set(re.findall(r"(?m)^\| `(\w+)`", settings.page())) | {"CRM_REPLAY_HOME"}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in RESOURCES:
        for document in yaml.safe_load_all(file.read_text()):
            yield f"{file.parent.name}/{file.name}", document


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for where, document in documents():
        spec = document.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec
        for container in spec.get("template", {}).get("spec", {}).get("containers", ()):
            yield where, container


def test_the_pages_of_the_reference_are_those_of_the_code() -> None:
    for name, page in pages(get_command(application())).items():
        assert (ROOT / "docs/reference" / name).read_text() == page, f"{name} is old: crm-replay reference"


def test_what_the_image_copies_is_there_and_it_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines(), f"{name} is not sent to the builder"
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= set(copied)
    assert "USER 10001" in lines
    assert lines.index("USER 10001") > max(number for number, line in enumerate(lines) if line.startswith("RUN "))


def test_the_workbench_is_not_in_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for package in sorted({package for place in ALL.values() for package in place.needs}):
        path = package.replace(".", "/")
        assert (ROOT / path).is_dir()
        assert path in ignored[ignored.index("!ops") :], f"{path} is sent to the builder"


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([\w.-]+)==([^ ;\\]+)", (ROOT / name).read_text()))


def test_the_image_has_the_versions_that_are_tested_and_no_test_tools() -> None:
    image, tested = pins("requirements.runtime.lock"), pins("requirements.lock")
    assert image.items() <= tested.items()
    assert not {"pytest", "mypy", "ruff", "playwright", "schemathesis"} & image.keys()


@pytest.mark.parametrize("file", RESOURCES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_manifests_are_what_kubernetes_takes(file: Path) -> None:
    tool = Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run(
        [str(tool), "--strict", "--quiet", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "keda.sh" not in line]
    assert (done.returncode, complaints) == (0, [])


def test_every_file_of_a_folder_is_in_its_kustomization() -> None:
    for kustomization in (file for file in MANIFESTS if file.name == "kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text())
        listed = set(content["resources"]) | {
            name for maker in content.get("configMapGenerator", ()) for name in maker["files"]
        }
        assert listed == {file.name for file in kustomization.parent.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize(("where", "container"), list(containers()), ids=lambda value: str(value)[:40])
def test_containers_run_commands_and_settings_that_exist_without_rights(where: str, container: dict[str, Any]) -> None:
    assert container["args"][0] in COMMANDS
    options = {option for word in container["args"][1:] if (option := str(word).split("=")[0]).startswith("--")}
    command = get_command(application()).commands[container["args"][0]]  # type: ignore[attr-defined]
    assert options <= {option for parameter in command.params for option in parameter.opts}
    assert {entry["name"] for entry in container.get("env", ())} <= KNOWN
    security = container["securityContext"]
    assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]})
    assert "limits" in container["resources"]


def test_settings_in_the_config_map_and_in_compose_exist() -> None:
    given = {name for _, document in documents() if document["kind"] == "ConfigMap" for name in document["data"]}
    assert given
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for service in ("migrate", "control", "runner"):
        given |= set(compose[service]["environment"])
        assert compose[service]["command"][0] in COMMANDS
        assert compose[service]["profiles"] == ["app"]
    assert given <= KNOWN
    port = str(ControlSettings.model_fields["port"].default)
    assert f":{port}" in str(compose["control"]["ports"])
    assert f"control:{port}" in (ROOT / "ops/prometheus/prometheus.yml").read_text()
    for service, content in compose.items():
        if service not in ("migrate", "runner"):  # one ends, the other has no door
            assert "healthcheck" in content, service
    (ports,) = [c["ports"] for w, c in containers() if w == "base/control.yaml"]
    assert ports == [{"name": "http", "containerPort": int(port)}]


def test_pods_serve_their_metrics_at_the_port_that_prometheus_is_told() -> None:
    annotated = 0
    for where, document in documents():
        template = document.get("spec", {}).get("template", {})
        told = template.get("metadata", {}).get("annotations", {})
        if document["kind"] != "Deployment":
            continue
        annotated += 1
        assert told["prometheus.io/scrape"] == "true", where
        (container,) = template["spec"]["containers"]
        assert [str(port["containerPort"]) for port in container["ports"]] == [told["prometheus.io/port"]], where
        given = {entry["name"]: entry.get("value") for entry in container["env"]} if "env" in container else {}
        if "CRM_REPLAY_METRICS_PORT" in given:
            assert given["CRM_REPLAY_METRICS_PORT"] == told["prometheus.io/port"], where
            assert given["CRM_REPLAY_METRICS_ADDRESS"] == "0.0.0.0", where
        else:
            assert container["args"][0] == "control", where
    assert annotated >= 7


def test_workers_are_scaled_by_the_lag_of_the_groups_that_they_join() -> None:
    acme, live = AccountTopics.of("ACME"), AccountTopics.of_feed(LIVE_FEED, LIVE_TOPIC)
    expected = {
        "account-workers/processors.yaml": (acme.processors_group, acme.replay),
        "account-workers/sinks.yaml": (acme.sink_group, acme.outcomes),
        "live/processors.yaml": (live.processors_group, live.replay),
        "live/sinks.yaml": (live.sink_group, live.outcomes),
    }
    found = {}
    for where, document in documents():
        if document["kind"] == "ScaledObject":
            (trigger,) = document["spec"]["triggers"]
            found[where] = (trigger["metadata"]["consumerGroup"], trigger["metadata"]["topic"])
            names = {each["metadata"]["name"] for file, each in documents() if file == where}
            assert document["spec"]["scaleTargetRef"]["name"] in names
    assert found == expected
