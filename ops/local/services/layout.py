"""Names and paths of the three servers and their companions: data, logs and process ids."""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from pydantic import Field

from schemas.process.environment import Settings


class Service(StrEnum):
    """The servers a replay needs. The value names its files and its options."""

    KAFKA = "kafka"
    POSTGRES = "postgres"
    MONGODB = "mongodb"

    @property
    def variable(self) -> str:
        """Return the environment variable that holds a server of the user's instead."""
        return _VARIABLES[self]

    @property
    def setting(self) -> str:
        """Return the field of `schemas.process.connections.Connections` with its address."""
        return self.variable.lower()

    @property
    def port_variable(self) -> str:
        """Return the environment variable that fixes its port."""
        return f"CRM_REPLAY_{self.name}_PORT"


class Extra(StrEnum):
    """Servers beside them, started only when requested by name."""

    DEBEZIUM = "debezium"  # Kafka Connect with the PostgreSQL connector; it needs Kafka
    REGISTRY = "registry"  # a schema registry, for a Kafka Connect that writes Avro

    @property
    def variable(self) -> str:
        """Return the environment variable that holds a server of the user's instead."""
        return _EXTRA_VARIABLES[self]

    @property
    def port_variable(self) -> str:
        """Return the environment variable that fixes its port."""
        return f"CRM_REPLAY_{self.name}_PORT"


AnyService = Service | Extra

_VARIABLES = {
    Service.KAFKA: "KAFKA_BOOTSTRAP_SERVERS",
    Service.POSTGRES: "CRM_AUDIT_DATABASE_URL",
    Service.MONGODB: "MONGODB_URL",
}
_EXTRA_VARIABLES = {Extra.DEBEZIUM: "KAFKA_CONNECT_URL", Extra.REGISTRY: "SCHEMA_REGISTRY_URL"}


class ServiceSettings(Settings):
    """The environment's settings of the embedded servers; build it with `load`."""

    home: Path = Field(Path(".crm-replay"), description="data, logs and process ids of the servers of this checkout")
    cache: Path | None = Field(None, description="downloaded tools, shared by all checkouts of this user")
    kafka_port: int | None = Field(None, ge=1, le=65535)
    postgres_port: int | None = Field(None, ge=1, le=65535)
    mongodb_port: int | None = Field(None, ge=1, le=65535)
    debezium_port: int | None = Field(None, ge=1, le=65535)
    registry_port: int | None = Field(None, ge=1, le=65535)
    kafka_heap_mib: int = Field(768, ge=256, description="the most memory the broker's heap may take")
    debezium_heap_mib: int = Field(512, ge=256, description="the most memory the heap of Kafka Connect may take")
    mongodb_cache_mib: int = Field(1024, ge=256, description="memory of MongoDB's storage engine")
    start_timeout_s: float = Field(120.0, gt=0, description="from a server's start until it answers; fetching apart")
    xdg_cache_home: Path | None = Field(None, validation_alias="XDG_CACHE_HOME")

    def port(self, service: AnyService) -> int | None:
        """Return the port the user wants for this server, None if any will do."""
        port: int | None = getattr(self, f"{service.value}_port")
        return port

    @property
    def cache_directory(self) -> Path:
        """Return where downloaded tools are kept."""
        if self.cache is not None:
            return self.cache.expanduser().absolute()
        return ((self.xdg_cache_home or Path("~/.cache")).expanduser() / "crm-replay").absolute()


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one set of servers. Its paths are computed without creating anything."""

    path: Path

    @classmethod
    def at(cls, path: Path | None = None) -> "Home":
        """Return the home at `path`, by default `CRM_REPLAY_HOME`, else `.crm-replay` in the current directory."""
        chosen = path if path is not None else ServiceSettings.load().home
        return cls(chosen.expanduser().absolute())

    @property
    def lock(self) -> Path:
        """Return the file that `up` and `down` lock."""
        return self.path / "services.lock"

    @property
    def ports(self) -> Path:
        """Return the file with the ports of the last start."""
        return self.path / "ports.json"

    @property
    def logs(self) -> Path:
        """Return the directory of the logs."""
        return self.path / "logs"

    def directory(self, service: AnyService) -> Path:
        """Return the directory with a server's data and its rendered configuration."""
        return self.path / service.value

    def log(self, service: AnyService) -> Path:
        """Return a server's log."""
        return self.logs / f"{service.value}.log"

    def process_file(self, service: AnyService) -> Path:
        """Return the file with the server's process id and start; it is written before the server runs."""
        return self.path / "run" / f"{service.value}.pid"

    def ready_file(self, service: AnyService) -> Path:
        """Return the file that names the process that has answered its health check."""
        return self.path / "run" / f"{service.value}.ready"

    @property
    def short_id(self) -> str:
        """Return a few characters that identify this home."""
        return sha256(str(self.path).encode()).hexdigest()[:12]
