"""The sink's environment."""

from pydantic import Field

from schemas.process.environment import WorkerSettings


class SinkSettings(WorkerSettings):
    """The settings of one sink process, besides the servers' addresses (schemas.process.connections)."""

    exit_at_end: bool = Field(False, description="exit 0 once every partition of the run has ended")
    sink_instance_id: str = Field(
        "",
        description="static group membership: faster restarts, but a graceful end does not release the partitions",
    )
    sink_batch_records: int = Field(2000, ge=1, le=100_000, description="records of one bulk write, at most")
    sink_batch_bytes: int = Field(
        8 * 1024 * 1024, ge=1, description="bytes of one bulk write, about; one record may exceed it"
    )
    sink_writers: int = Field(
        2, ge=1, le=16, description="concurrent bulk writes; memory holds this many batches and one"
    )
    sink_linger_ms: int = Field(100, ge=0, le=10_000, description="how long to wait for a batch to fill")
    sink_patience_s: float = Field(
        60.0, ge=0, description="how long to wait for the servers at the start; later, the sink waits indefinitely"
    )
    sink_session_timeout_ms: int = Field(
        6_000,  # the least that brokers allow by default; taking partitions from a live sink costs no data
        ge=1_000,
        description="time without a heartbeat after which other sinks take over a dead sink's partitions",
    )
