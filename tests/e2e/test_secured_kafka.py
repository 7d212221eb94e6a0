"""A broker that asks for TLS and a password: every process of a run logs in, and says in one line if it cannot."""

import datetime as dt
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ops.local import services
from ops.local.sample_crm import SAMPLE_YAML
from ops.local.services import Service, kafka
from ops.local.services.ports import is_free
from tests.e2e.conftest import Crm, mapping_of
from tests.fixtures.services import _free_port, private_home

USER, PASSWORD = "replay", "of-the-test-only"


@dataclass
class Authority:
    """A certificate authority of this test, and a broker's key and certificate from it."""

    certificate: str
    broker_key: str
    broker_certificate: str


def _signed(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey) -> str:
    now = dt.datetime.now(dt.UTC)
    is_authority = name == issuer
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _authority() -> Authority:
    ours, brokers = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key = brokers.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return Authority(
        _signed("test authority", ours, "test authority", ours), key, _signed("broker", brokers, "test authority", ours)
    )


def _listener(port: int, plain: str, authority: Authority) -> str:
    """Return what a broker's configuration needs for one more listener."""
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    users = f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
    settings = {
        "listeners": f"{plain},SASL_SSL://127.0.0.1:{port}",
        "advertised.listeners": f"{plain.split(',')[0]},SASL_SSL://127.0.0.1:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{login} {users}",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.key": authority.broker_key.replace("\n", " "),
        "ssl.keystore.certificate.chain": authority.broker_certificate.replace("\n", " "),
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Start a broker with such a listener; give the settings by which it is reached."""
    authority, port, original = _authority(), _free_port(), kafka.render
    assert is_free(port)

    def render(plain_port: int, controller_port: int, data: Path) -> str:
        listeners = f"PLAINTEXT://127.0.0.1:{plain_port},CONTROLLER://127.0.0.1:{controller_port}"
        return original(plain_port, controller_port, data) + _listener(port, listeners, authority)

    monkeypatch.setattr(kafka, "render", render)
    monkeypatch.delenv(Service.KAFKA.variable, raising=False)
    certificate = tmp_path / "ca.pem"
    certificate.write_text(authority.certificate)
    with private_home() as home:
        services.up(home, only={Service.KAFKA})
        yield {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "PLAIN",
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": PASSWORD,
            "KAFKA_SSL_CA_FILE": str(certificate),
        }


def test_a_run_logs_in_to_kafka_with_every_process_and_a_wrong_password_is_one_line(
    secured: dict[str, str], sample_crm: Crm
) -> None:
    sample_crm.environment |= secured
    job = sample_crm.run(SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    assert (job["status"], job["records_failed"]) == ("completed", 0)
    assert len(sample_crm.logs(SAMPLE_YAML)) == job["records_migrated"] > 0

    words = ("verify", "--account", SAMPLE_YAML, "--mapping", mapping_of(SAMPLE_YAML))
    refused = sample_crm.call(*words, KAFKA_SASL_PASSWORD="a-wrong-one")
    assert refused.returncode == 2
    assert "refuses the login" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "a-wrong-one" not in refused.stderr
