"""Settings of the connections: what is refused before a client has tried, and what each client is told."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadInputError
from schemas.process.connections import Connections

SASL: dict[str, Any] = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_username": "replay",
    "kafka_sasl_password": "s3cret",
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Connections.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)


def test_a_plain_broker_gets_its_address_and_a_quick_first_connection_and_nothing_else() -> None:
    assert Connections(kafka_bootstrap_servers="k:9092").kafka(acks="all") == {
        "bootstrap.servers": "k:9092",
        "reconnect.backoff.ms": 20,
        "retry.backoff.ms": 20,
        "acks": "all",
    }


def test_sasl_over_tls_names_the_user_and_the_authority(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("any")
    found = Connections(**SASL, kafka_bootstrap_servers="k:9092", kafka_ssl_ca_file=str(authority)).kafka()
    assert found == {
        "bootstrap.servers": "k:9092",
        "reconnect.backoff.ms": 20,
        "retry.backoff.ms": 20,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "replay",
        "sasl.password": "s3cret",
        "ssl.ca.location": str(authority),
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kafka_security_protocol": "TLS"}, "KAFKA_SECURITY_PROTOCOL=TLS: one of PLAINTEXT, SSL"),
        ({**SASL, "kafka_sasl_mechanism": "GSSAPI"}, "KAFKA_SASL_MECHANISM=GSSAPI: one of PLAIN"),
        ({"kafka_security_protocol": "SASL_SSL"}, "needs a user and a password: set KAFKA_SASL_USERNAME"),
        ({"kafka_ssl_ca_file": "nowhere.pem"}, "KAFKA_SSL_CA_FILE: there is no file nowhere.pem"),
        ({"kafka_ssl_key_file": "key.pem"}, "set both KAFKA_SSL_CERTIFICATE_FILE and KAFKA_SSL_KEY_FILE"),
    ],
)
def test_settings_that_no_client_could_use_are_refused_in_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInputError) as refused:
        Connections(**settings)
    assert says in str(refused.value)


def test_a_setting_can_be_in_a_file_and_then_not_in_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "url"
    secret.write_text("mongodb://user:pw@m:1/\n")
    monkeypatch.setenv("MONGODB_URL_FILE", str(secret))
    assert Connections().mongodb_url == "mongodb://user:pw@m:1/"
    monkeypatch.setenv("MONGODB_URL", "mongodb://other/")
    with pytest.raises(BadInputError, match="MONGODB_URL and MONGODB_URL_FILE are both set"):
        Connections()
    monkeypatch.delenv("MONGODB_URL")
    secret.unlink()
    with pytest.raises(BadInputError, match=r"MONGODB_URL_FILE: .*No such file"):
        Connections()


def test_no_credential_is_in_what_a_log_would_print() -> None:
    shown = repr(Connections(**SASL, mongodb_url="mongodb://u:pw1@m/", crm_audit_database_url="postgresql://u:pw2@p/d"))
    assert not any(secret in shown for secret in ("pw1", "pw2", "s3cret"))


def test_a_child_process_is_given_the_same_settings_also_those_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", str(secret))
    ours = Connections(kafka_security_protocol="SASL_PLAINTEXT", kafka_sasl_username="replay", mongodb_url="m")
    secret.unlink()  # read once, here
    for name, value in ours.environment().items():
        monkeypatch.setenv(name, value)
    assert Connections() == ours
    assert Connections().kafka()["sasl.password"] == "s3cret"
