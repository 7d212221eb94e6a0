"""What a processors' worker reads from its environment."""

import os
import socket

from pydantic import Field

from schemas.process.connections import Connections
from schemas.process.environment import WorkerSettings


def _unique_worker() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class ProcessorSettings(WorkerSettings):
    """Bounds and times of one worker; every name has the prefix CRM_REPLAY_ in the environment."""

    worker: str = Field(
        default_factory=_unique_worker,
        description="name of this worker in its group; the same name after a restart gets the same partitions at once",
        max_length=200,
    )
    exit_at_end: bool = Field(False, description="end once the end markers of all assigned partitions have passed")
    run_records_max: int = Field(4000, ge=1, le=100_000, description="records that are handled and committed together")
    run_bytes_max: int = Field(4 * 1024 * 1024, ge=1, description="of keys and values of a batch")
    # Kafka's own lower bound, group.min.session.timeout.ms: a killed worker that is not restarted loses its
    # partitions after this long; one that is restarted gets them back at once.
    session_timeout_s: float = Field(6.0, ge=1, le=80)  # Faust wants it below its request timeout, 90
    commit_interval_s: float = Field(1.0, gt=0, le=60, description="what a killed worker repeats at most, in seconds")
    delivery_timeout_s: float = Field(120.0, ge=1, description="Kafka unreachable for longer ends the worker")
    metrics_interval_s: float = Field(30.0, gt=0)
    load_timeout_s: float = Field(900.0, gt=0, description="of the reference tables; longer ends the worker")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")


def connections() -> Connections:
    """Return the connections, with Kafka's address; raises BadInputError without it."""
    found = Connections()
    found.require("kafka_bootstrap_servers")
    return found
