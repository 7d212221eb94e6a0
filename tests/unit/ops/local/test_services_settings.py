"""Names, places, ports and configuration of the embedded servers."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
import yaml

from ops.local.services import Endpoints, Service, ServiceSettings, kafka, postgres
from ops.local.services.layout import Home
from ops.local.services.ports import Ports, is_free
from ops.local.services.server import DataDirectory, environment
from schemas.errors import BadInputError
from schemas.process.connections import Connections

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CRM_REPLAY_") or name in {service.variable for service in Service}:
            monkeypatch.delenv(name)


def test_home_and_cache_come_from_the_environment_else_have_a_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Home.at().path == tmp_path / ".crm-replay"
    assert ServiceSettings.load().cache_directory == Path("/home/somebody/.cache/crm-replay")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/somebody")
    assert ServiceSettings.load().cache_directory == Path("/var/cache/somebody/crm-replay")
    monkeypatch.setenv("CRM_REPLAY_HOME", "~/servers")
    monkeypatch.setenv("CRM_REPLAY_CACHE", "tools")
    assert Home.at().path == Path("/home/somebody/servers")
    assert ServiceSettings.load().cache_directory == tmp_path / "tools"
    assert Home.at(Path("/given")).path == Path("/given")


def test_options_win_over_the_environment_and_nonsense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_REPLAY_KAFKA_PORT", "9092")
    assert ServiceSettings.load().port(Service.KAFKA) == 9092
    assert ServiceSettings.load(kafka_port=9192).port(Service.KAFKA) == 9192
    assert ServiceSettings.load(kafka_port=None).port(Service.KAFKA) == 9092
    monkeypatch.setenv("CRM_REPLAY_KAFKA_PORT", "99999")
    with pytest.raises(BadInputError, match=r"^CRM_REPLAY_KAFKA_PORT: .* 65535: correct it"):
        ServiceSettings.load()


def test_endpoints_fill_what_the_environment_lacks_and_no_more() -> None:
    running = Endpoints(kafka_bootstrap_servers="127.0.0.1:1", mongodb_url="mongodb://127.0.0.1:2")
    given = Connections(mongodb_url="mongodb://mine", mongodb_database="other")
    filled = running.fill(given)
    assert filled.kafka_bootstrap_servers == "127.0.0.1:1"
    assert filled.mongodb_url == "mongodb://mine"
    assert filled.crm_audit_database_url == ""
    assert filled.mongodb_database == "other"
    assert running.environment() == {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "MONGODB_URL": "mongodb://127.0.0.1:2"}


def test_every_service_names_a_setting_of_connections() -> None:
    assert {service.setting for service in Service} <= Connections.model_fields.keys()


def test_ports_are_kept_while_they_are_free(tmp_path: Path) -> None:
    first = Ports(tmp_path / "ports.json").choose("kafka")
    again = Ports(tmp_path / "ports.json", patience_s=0)
    assert again.choose("kafka") == first
    assert again.choose("other") != first
    with socket.create_server(("127.0.0.1", first)):
        assert not is_free(first)
        moved = again.choose("kafka")
        assert moved != first
        with pytest.raises(BadInputError, match=rf"port {first} \(CRM_REPLAY_KAFKA_PORT\) is in use"):
            again.choose("kafka", wanted=first, variable="CRM_REPLAY_KAFKA_PORT")
    assert Ports(tmp_path / "ports.json").get("kafka") == moved
    assert again.choose("kafka", wanted=first) == first


@pytest.mark.parametrize("text", ["", "[]", '{"kafka": "x"}', '{"kafka"'])
def test_a_torn_file_of_ports_has_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text)
    assert Ports(tmp_path / "ports.json").get("kafka") is None


def test_a_data_directory_counts_once_it_is_complete_and_where_it_was_made(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data", tmp_path / "data.json")
    (tmp_path / "data").mkdir()
    assert data.made_by() is None
    data.complete("4.1.1")
    assert data.made_by() == "4.1.1"
    assert DataDirectory(tmp_path / "moved", tmp_path / "data.json").made_by() is None
    data.wipe()
    assert data.made_by() is None
    assert not (tmp_path / "data").exists()
    (tmp_path / "data.json").write_text("{")
    assert data.made_by() is None


def test_servers_do_not_see_settings_meant_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGPORT", "CLASSPATH", "_JAVA_OPTIONS", "NODE_OPTIONS"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    found = environment(LC_ALL="C")
    assert not {"PGDATA", "PGPORT", "CLASSPATH", "_JAVA_OPTIONS", "NODE_OPTIONS"} & found.keys()
    assert (found["LANG"], found["LC_ALL"]) == ("de_DE.UTF-8", "C")


def properties(text: str) -> dict[str, str]:
    """Read a properties file as Java does: Latin-1, `\\uXXXX` for UTF-16 units."""
    units = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text.encode("ascii").decode())
    whole = units.encode("utf-16", "surrogatepass").decode("utf-16")
    return dict(line.split("=", 1) for line in whole.splitlines())


def test_the_brokers_configuration_has_its_ports_and_any_directory() -> None:
    home = Path("/home/zoë 日本 🙂/a\\b/data")
    found = properties(kafka.render(1234, 1235, home))
    assert found["log.dirs"] == str(home)
    assert found["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1234"
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:1234,CONTROLLER://127.0.0.1:1235"
    assert found["controller.quorum.voters"] == "1@127.0.0.1:1235"
    assert found["auto.create.topics.enable"] == "false"
    assert int(found["message.max.bytes"]) == 24 * 1024 * 1024


def compose() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def test_docker_runs_the_same_kafka_with_the_same_settings() -> None:
    service = compose()["kafka"]
    version = re.search(r"kafka_2\.13</artifactId>\s*<version>(.*)</version>", (pom()).read_text())
    assert service["image"] == f"apache/kafka:{version[1]}"
    given = service["environment"]
    assert isinstance(given, dict)
    others = {"process.roles", "node.id", "controller.listener.names", "inter.broker.listener.name"}
    machine = {"num.network.threads", "num.io.threads", "num.partitions"}
    for name, value in kafka.SETTINGS.items():
        if name not in others | machine:
            assert str(given["KAFKA_" + name.upper().replace(".", "_")]) == value, name


def pom() -> Path:
    return Path(kafka.__file__).parent / "kafka.pom.xml"


def test_docker_runs_postgres_with_the_same_settings() -> None:
    command = compose()["postgres"]["command"]
    assert isinstance(command, list)
    here_only = {"listen_addresses", "unix_socket_directories", "log_line_prefix"}
    expected = {f"-c{name}={value}" for name, value in postgres.SETTINGS.items() if name not in here_only}
    assert set(command[1:]) == expected


@pytest.mark.parametrize("service", list(Service))
def test_docker_publishes_on_the_loopback_address_only_and_checks_health(service: Service) -> None:
    found = compose()[service.value]
    assert "healthcheck" in found
    assert isinstance(found["ports"], list)
    assert all(port.startswith(f"127.0.0.1:${{{service.port_variable}:-") for port in found["ports"])


def test_downloads_are_pinned_and_name_no_address() -> None:
    here = pom().parent
    lock = json.loads((here / "mongodb.package-lock.json").read_text())
    for name, package in lock["packages"].items():
        assert "resolved" not in package
        assert not name or ("integrity" in package and "version" in package)
    for wheel in json.loads((here / "wheels.json").read_text()).values():
        assert re.fullmatch(r"[\d.]+", wheel["version"])
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in wheel["sha256"])
