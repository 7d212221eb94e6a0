"""The choice of the test fixtures between URLs, Docker and embedded servers, with a stand-in for the docker client."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ops.local import services
from ops.local.services import Service
from tests.fixtures.services import SessionServers, urls_of_environment

ROOT = Path(__file__).parents[4]
DOCKER = """#!/bin/sh
echo "$*" >> {calls}
for word; do case $previous in --env-file) cat $word >> {calls};; esac; previous=$word; done
case "$*" in
  "compose version") exit {compose};;
  version*) exit {daemon};;
  *" up "*) echo "no such image" >&2; exit {up};;
esac
"""


@pytest.fixture(autouse=True)
def no_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in Service:
        monkeypatch.delenv(service.variable, raising=False)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "calls"


def docker(calls: Path, *, compose: int = 0, daemon: int = 0, up: int = 0) -> None:
    client = calls.parent / "docker"
    client.write_text(DOCKER.format(calls=calls, compose=compose, daemon=daemon, up=up))
    client.chmod(0o755)


def test_docker_starts_what_is_needed_on_ports_of_its_own_and_removes_it(calls: Path) -> None:
    docker(calls)
    servers = SessionServers(frozenset({Service.KAFKA, Service.MONGODB}), {}, lambda _text: None)
    url = servers.url(Service.KAFKA)
    mongodb_url = servers.url(Service.MONGODB)
    servers.close()
    lines = calls.read_text().splitlines()
    assert f"CRM_REPLAY_KAFKA_PORT={url.removeprefix('127.0.0.1:')}" in lines
    assert mongodb_url.startswith("mongodb://127.0.0.1:")
    assert any(line.startswith("COMPOSE_PROJECT_NAME=crm-replay-test-") for line in lines)
    compose = [line for line in lines if "--env-file" in line]
    assert [line.rsplit(".env ", 1)[1] for line in compose] == [
        "up --wait kafka mongodb",
        "down --volumes kafka mongodb",
    ]


@pytest.mark.parametrize("trouble", [{"compose": 1}, {"daemon": 1}, {"up": 18}])
def test_without_a_daemon_compose_or_images_the_servers_are_embedded(
    calls: Path, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, int]
) -> None:
    docker(calls, **trouble)
    found = services.Endpoints(mongodb_url="mongodb://embedded")
    monkeypatch.setattr(services, "up", lambda *_args, **_options: found)
    said: list[str] = []
    servers = SessionServers(frozenset(), {}, said.append)
    assert servers.url(Service.MONGODB) == "mongodb://embedded"
    servers.close()
    assert said == (
        ["Docker could not start them (no such image); embedded servers instead"] if "up" in trouble else []
    )


def test_an_address_in_the_environment_is_taken_before_anything_is_looked_for(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker(calls)
    monkeypatch.setenv("MONGODB_URL", "mongodb://mine")
    servers = SessionServers(frozenset({Service.MONGODB}), urls_of_environment(), lambda _text: None)
    assert servers.url(Service.MONGODB) == "mongodb://mine"
    servers.close()
    assert not calls.exists()


def _compose() -> list[str]:
    """Return the command of compose, as Docker's plugin or on its own; checking a file needs no daemon."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if not asked.returncode and not asked.stdout.lstrip("v").startswith("1."):  # 1 knows an older format only
                return command
    return []


@pytest.mark.skipif(not _compose(), reason="there is no docker compose, 2 or later, on the PATH")
@pytest.mark.parametrize("profile", ["", "app"])
def test_compose_accepts_the_file_with_every_profile(profile: str, tmp_path: Path) -> None:
    words = [*_compose(), "-f", str(ROOT / "compose.yaml"), *(["--profile", profile] if profile else [])]
    checked = subprocess.run(
        [*words, "config", "--format", "json", "--output", str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    found = json.loads((tmp_path / "found.json").read_text())["services"]
    declared = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    wanted = {name for name, content in declared.items() if set(content.get("profiles", [profile])) == {profile}}
    assert set(found) >= wanted
    assert len(found) == (len(declared) if profile else len(wanted))
