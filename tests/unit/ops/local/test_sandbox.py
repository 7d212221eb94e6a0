"""Demo and benchmark make nothing on the servers that the environment names."""

import os
from typing import Any

import pytest

from ops.local import sandbox, services
from ops.local.services.stack import from_environment

EMBEDDED = services.Endpoints("127.0.0.1:1", "postgresql://postgres@127.0.0.1:2/crm", "mongodb://127.0.0.1:3/")
OF_OTHERS = {
    "CRM_AUDIT_DATABASE_URL": "postgresql://reader@crm.example/production",
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_USERNAME": "crm",
    "KAFKA_SASL_PASSWORD": "hunter2",
    "MONGODB_URL_FILE": "/nowhere/mongodb-url",
    "SCHEMA_REGISTRY_URL": "https://registry.example",
    "USER_DIRECTORY_URL": "https://directory.example",
    "KAFKA_CONNECT_URL": "https://connect.example",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give what was left to the user when the servers were started."""
    left: list[Any] = []
    monkeypatch.setattr(services, "endpoints", lambda: EMBEDDED)
    monkeypatch.setattr("ops.local.services.stack.endpoints", lambda _home=None: EMBEDDED)
    monkeypatch.setattr(services, "up", lambda **_: left.append(from_environment()))
    for name in (*OF_OTHERS, *EMBEDDED.environment()):
        monkeypatch.delenv(name, raising=False)
    return left


def test_no_server_of_the_environment_is_used_and_the_command_says_so(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OF_OTHERS.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with sandbox.servers(said.append) as found:
        assert found.crm_audit_database_url == EMBEDDED.crm_audit_database_url
        assert (found.mongodb_url, found.kafka_bootstrap_servers) == ("mongodb://127.0.0.1:3/", "127.0.0.1:1")
        assert (found.schema_registry_url, found.user_directory_url, found.kafka_sasl) == ("", "", False)
        assert not OF_OTHERS.keys() & os.environ.keys()  # what its workers would inherit
    assert started == [frozenset()]
    assert OF_OTHERS.items() <= os.environ.items()
    [line] = said
    assert all(name in line for name in OF_OTHERS)
    assert "hunter2" not in line


def test_addresses_of_the_embedded_servers_are_no_others(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EMBEDDED.environment().items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with sandbox.servers(said.append):
        assert started == [frozenset()]
    assert said == []


def test_a_benchmark_may_be_told_to_use_them(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_AUDIT_DATABASE_URL", OF_OTHERS["CRM_AUDIT_DATABASE_URL"])
    with sandbox.servers(lambda _: None, of_environment=True) as found:
        assert found.crm_audit_database_url == OF_OTHERS["CRM_AUDIT_DATABASE_URL"]
    assert started == [frozenset({services.Service.POSTGRES})]
