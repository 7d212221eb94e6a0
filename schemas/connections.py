"""Where the servers are: read from the environment, the same way in every process."""

from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.errors import BadInputError


class Connections(BaseSettings):
    """Addresses of the user's servers. An empty one is not configured; the embedded servers fill it in."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    crm_audit_database_url: str = Field(
        "", description="PostgreSQL of the CRM, read-only: postgresql://user:password@host/db"
    )
    kafka_bootstrap_servers: str = Field("", description="host:port[,host:port...]")
    mongodb_url: str = Field("", description="MongoDB of the customer data platform: mongodb://host:port")
    mongodb_database: str = Field("cdp", description="its database")
    schema_registry_url: str = Field("", description="Confluent schema registry; empty: Avro single-object encoding")
    user_directory_url: str = Field("", description="user directory; empty: no actor has an SSO id")

    def require(self, *names: str) -> None:
        """Raise BadInputError naming the first of these settings that is empty."""
        for name in names:
            if not getattr(self, name):
                raise BadInputError(
                    f"{name.upper()} is not set", "export it, or start the embedded servers: crm-replay services up"
                )

    def kafka(self, **overrides: Any) -> dict[str, Any]:
        """Return a confluent-kafka configuration: the connection, then `overrides`."""
        return {"bootstrap.servers": self.kafka_bootstrap_servers, **overrides}
