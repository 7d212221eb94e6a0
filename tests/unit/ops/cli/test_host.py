"""What a command finds on this host: the environment first, embedded servers where it says nothing."""

from pathlib import Path

import pytest

from ops.cli import host
from ops.local.services import Endpoints
from ops.local.services.layout import Home

URLS = {
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
    "CRM_AUDIT_DATABASE_URL": "postgresql://db.example/crm",
    "MONGODB_URL": "mongodb://mongo.example",
}
EMBEDDED = Endpoints(mongodb_url="mongodb://127.0.0.1:1", kafka_connect_url="http://127.0.0.1:2")


@pytest.mark.parametrize("given", ["", "here", "~/there"])
def test_commands_and_embedded_servers_have_one_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRM_REPLAY_HOME", given)
    assert host.home() == Home.at(None).path
    assert host.home().is_absolute()
    assert list(tmp_path.iterdir()) == []


def test_addresses_that_the_environment_lacks_are_those_of_embedded_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, url in URLS.items():
        monkeypatch.setenv(name, url)
    monkeypatch.delenv("MONGODB_URL")
    monkeypatch.setattr("ops.local.services.endpoints", lambda: EMBEDDED)
    found = host.connections()
    assert (found.mongodb_url, found.kafka_bootstrap_servers) == (EMBEDDED.mongodb_url, "kafka.example:9092")
    assert host.embedded_addresses() == {"MONGODB_URL": EMBEDDED.mongodb_url, "KAFKA_CONNECT_URL": "http://127.0.0.1:2"}


def test_where_the_environment_says_it_all_no_embedded_server_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, url in URLS.items():
        monkeypatch.setenv(name, url)
    monkeypatch.setattr("ops.local.services.endpoints", lambda: pytest.fail("looked for"))
    assert host.connections().environment().items() >= URLS.items()


def test_without_the_embedded_servers_there_is_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CRM_REPLAY_HOME", str(tmp_path))
    monkeypatch.delenv("MONGODB_URL", raising=False)
    monkeypatch.setattr(host, "_has_embedded_servers", lambda: False)
    assert host.connections().mongodb_url == ""
    assert host.embedded_addresses() == {}
