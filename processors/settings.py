"""What a processors' worker reads from its environment."""

import os
import socket
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from schemas.errors import BadInputError
from schemas.job import ReplayJob
from schemas.process.connections import Connections


def _unique_worker() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class ProcessorSettings(BaseSettings):
    """Bounds and times of one worker; every name has the prefix CRM_REPLAY_ in the environment."""

    model_config = SettingsConfigDict(env_prefix="CRM_REPLAY_", env_ignore_empty=True, extra="ignore")

    job: ReplayJob = Field(description="the job, as JSON")
    worker: str = Field(
        default_factory=_unique_worker,
        description="name of this worker in its group; the same name after a restart gets the same partitions at once",
        max_length=200,
    )
    exit_at_end: bool = Field(False, description="end once the end markers of all assigned partitions have passed")
    run_records_max: int = Field(4000, ge=1, le=100_000, description="records that are handled and committed together")
    run_bytes_max: int = Field(4 * 1024 * 1024, ge=1, description="of keys and values of a run")
    # Kafka's own lower bound, group.min.session.timeout.ms: a killed worker that is not started again loses its
    # partitions after this long; one that is started again has them back at once.
    session_timeout_s: float = Field(6.0, ge=1, le=80)  # Faust wants it below its request timeout, 90
    commit_interval_s: float = Field(1.0, gt=0, le=60, description="what a killed worker repeats at most, in seconds")
    delivery_timeout_s: float = Field(120.0, ge=1, description="Kafka unreachable for longer ends the worker")
    metrics_interval_s: float = Field(30.0, gt=0)
    load_timeout_s: float = Field(900.0, gt=0, description="of the reference tables; longer ends the worker")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    @classmethod
    def load(cls) -> Self:
        """Read the environment; raises BadInputError naming the variable that is missing or wrong."""
        try:
            return cls()
        except SettingsError as error:
            raise BadInputError("CRM_REPLAY_JOB is not JSON", "crm-replay run sets it; see ReplayJob") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = [str(part) for part in first["loc"]]
            name = f"CRM_REPLAY_{where[0].upper()}" if where else "CRM_REPLAY_*"
            key = f" ({'.'.join(where[1:])})" if where[1:] else ""
            raise BadInputError(f"{name}{key}: {first['msg']}", "crm-replay run sets it; see ReplayJob") from None


def connections() -> Connections:
    """Return where Kafka is; raises BadInputError if nothing says so."""
    found = Connections()
    found.require("kafka_bootstrap_servers")
    return found
