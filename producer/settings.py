"""The snapshot's environment, besides `schemas.process.connections.Connections`."""

from pydantic import Field

from producer.audits import Limits
from producer.throttle import Bounds
from schemas.process.environment import Settings, WorkerSettings


class ProducerSettings(Settings):
    """How the snapshot reads and publishes; every value has a default that was measured."""

    page_rows: int = Field(500, ge=1, le=100_000, description="rows a page")
    checkpoint_rows: int = Field(
        2_000,
        ge=1,
        le=100_000,
        description="rows, in whole pages, after which the cursor is saved: a crash repeats them",
    )
    id_window: int = Field(50_000, ge=1_000, description="ids a page may scan, of any account")
    id_ranges: int = Field(1, ge=1, le=64, description="how many id ranges are read in parallel, a process each")
    statement_timeout_s: float = Field(60.0, gt=0, description="PostgreSQL's time limit for one query")
    horizon_wait_s: float = Field(
        3600.0, ge=0, description="how long to wait at the end for transactions older than the job; then it is an error"
    )
    source_rows_per_s: float = Field(
        0.0, ge=0, description="rows a second read from the CRM at most, per job; 0: no limit"
    )
    source_query_max_s: float = Field(
        5.0, ge=0, description="a page that takes longer throttles the reading; 0: never. 500 rows take 0.02 s"
    )
    source_replica_lag_max_s: float = Field(
        60.0, ge=0, description="replica lag above which the reading is throttled; 0: never"
    )

    def throttle(self, readers: int = 1) -> Bounds:
        """Return the limits of one of a job's `readers`."""
        return Bounds(self.source_rows_per_s / readers, self.source_query_max_s, self.source_replica_lag_max_s)

    def limits(self, row_bytes_max: int) -> Limits:
        """Return the limits of a reader's queries; `row_bytes_max` comes from the topic."""
        return Limits(self.page_rows, self.id_window, self.statement_timeout_s, row_bytes_max)


class RunSettings(ProducerSettings, WorkerSettings):
    """The settings of a run's producer: those of the snapshot, and of a worker."""
