"""Addresses and credentials of the servers: read from the environment, the same way in every process."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, model_validator

from schemas.errors import BadInputError
from schemas.process.environment import FILE_SUFFIX, EnvironmentSettings

SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
# librdkafka's defaults are 100 ms. A new client waits half of the first for its first connection, and a run opens some
# thirty; the second delays a query about a topic that was just created. Both double with failures.
BACKOFF_MS = {"reconnect.backoff.ms": 20, "retry.backoff.ms": 20}
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")  # those that both of our Kafka clients support


class Connections(EnvironmentSettings):
    """Addresses of the user's servers. An empty one is not configured; the embedded servers set it.

    TLS of PostgreSQL and MongoDB is part of their URLs (`sslmode`, `sslrootcert`; `tls`, `tlsCAFile`), Kafka's is here.
    """

    crm_audit_database_url: str = Field(
        "", description="PostgreSQL of the CRM, read-only: postgresql://user:password@host/db", repr=False
    )
    kafka_bootstrap_servers: str = Field("", description="host:port[,host:port...]")
    kafka_security_protocol: str = Field("PLAINTEXT", description=", ".join(SECURITY_PROTOCOLS))
    kafka_sasl_mechanism: str = Field("SCRAM-SHA-512", description=f"with SASL: {', '.join(SASL_MECHANISMS)}")
    kafka_sasl_username: str = Field("", description="with SASL")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="with SASL")
    kafka_ssl_ca_file: str = Field("", description="CA certificates (PEM) of the brokers; empty: the system's")
    kafka_ssl_certificate_file: str = Field(
        "", description="this client's certificate (PEM), if the brokers require one"
    )
    kafka_ssl_key_file: str = Field("", description="its private key (PEM)")
    kafka_ssl_key_password: SecretStr = Field(SecretStr(""), description="of the private key, if it has one")
    kafka_replication_factor: int = Field(
        -1, ge=-1, le=32_767, description="copies of each new topic; -1: as many as the cluster's default"
    )
    mongodb_url: str = Field("", description="MongoDB of the customer data platform: mongodb://host:port", repr=False)
    mongodb_database: str = Field("cdp", description="its database")
    schema_registry_url: str = Field(
        "", description="Confluent schema registry; empty: Avro single-object encoding", repr=False
    )
    user_directory_url: str = Field("", description="user directory; empty: no actor has an SSO id", repr=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Raise BadInputError for settings that no Kafka client can use."""
        if self.kafka_security_protocol not in SECURITY_PROTOCOLS:
            raise BadInputError(
                f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol}", f"one of {', '.join(SECURITY_PROTOCOLS)}"
            )
        if self.kafka_sasl:
            if self.kafka_sasl_mechanism not in SASL_MECHANISMS:
                raise BadInputError(
                    f"KAFKA_SASL_MECHANISM={self.kafka_sasl_mechanism}", f"one of {', '.join(SASL_MECHANISMS)}"
                )
            if not (self.kafka_sasl_username and self.kafka_sasl_password.get_secret_value()):
                raise BadInputError(
                    f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} needs a user and a password",
                    "set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD (or KAFKA_SASL_PASSWORD_FILE)",
                )
        if bool(self.kafka_ssl_certificate_file) != bool(self.kafka_ssl_key_file):
            raise BadInputError(
                "a client certificate comes with its key", "set both KAFKA_SSL_CERTIFICATE_FILE and KAFKA_SSL_KEY_FILE"
            )
        for name in ("kafka_ssl_ca_file", "kafka_ssl_certificate_file", "kafka_ssl_key_file"):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise BadInputError(f"{name.upper()}: there is no file {path}", "name a PEM file")
        return self

    @property
    def kafka_sasl(self) -> bool:
        """Whether Kafka requires a user."""
        return self.kafka_security_protocol.startswith("SASL")

    @property
    def kafka_tls(self) -> bool:
        """Whether Kafka is connected over TLS."""
        return self.kafka_security_protocol.endswith("SSL")

    def require(self, *names: str) -> None:
        """Raise BadInputError naming the first of these settings that is empty."""
        for name in names:
            if not getattr(self, name):
                raise BadInputError(
                    f"{name.upper()} is not set", "export it, or start the embedded servers: crm-replay services up"
                )

    def environment(self) -> dict[str, str]:
        """Return the variables that pass these settings to a child process, from any source."""
        found: dict[str, str] = {}
        for name, value in self:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            if plain:
                found |= {name.upper(): plain, name.upper() + FILE_SUFFIX: ""}
        return found

    def kafka(self, **overrides: Any) -> dict[str, Any]:
        """Return a confluent-kafka configuration: the connection, then `overrides`."""
        found: dict[str, Any] = {"bootstrap.servers": self.kafka_bootstrap_servers, **BACKOFF_MS}
        if self.kafka_security_protocol != "PLAINTEXT":
            found["security.protocol"] = self.kafka_security_protocol
        if self.kafka_sasl:
            found |= {
                "sasl.mechanism": self.kafka_sasl_mechanism,
                "sasl.username": self.kafka_sasl_username,
                "sasl.password": self.kafka_sasl_password.get_secret_value(),
            }
        if self.kafka_tls:
            files = {
                "ssl.ca.location": self.kafka_ssl_ca_file,
                "ssl.certificate.location": self.kafka_ssl_certificate_file,
                "ssl.key.location": self.kafka_ssl_key_file,
                "ssl.key.password": self.kafka_ssl_key_password.get_secret_value(),
            }
            found |= {name: value for name, value in files.items() if value}
        return {**found, **overrides}
