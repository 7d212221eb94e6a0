"""The snapshot's environment, besides `schemas.process.connections.Connections`."""

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from producer.audits import Limits
from producer.throttle import Bounds
from schemas.errors import BadInputError
from schemas.job import ReplayJob


class ProducerSettings(BaseSettings):
    """How the snapshot reads and publishes; every value has a default that was measured."""

    model_config = SettingsConfigDict(env_prefix="CRM_REPLAY_", env_ignore_empty=True, extra="ignore")

    page_rows: int = Field(500, ge=1, le=100_000, description="rows a page")
    lot_rows: int = Field(
        2_000,
        ge=1,
        le=100_000,
        description="rows, in whole pages, after which the cursor is saved: a death repeats them",
    )
    id_window: int = Field(50_000, ge=1_000, description="ids a page may scan, whoever they belong to")
    id_ranges: int = Field(1, ge=1, le=64, description="how many id ranges are read in parallel, a process each")
    statement_timeout_s: float = Field(60.0, gt=0, description="PostgreSQL's time limit for one query")
    horizon_wait_s: float = Field(
        3600.0, ge=0, description="how long to wait at the end for transactions older than the job; then it is an error"
    )
    source_rows_per_s: float = Field(0.0, ge=0, description="rows a second read from the CRM at most, per job; 0: all")
    source_query_max_s: float = Field(
        5.0, ge=0, description="a page that takes longer slows the reading down; 0: never. 500 rows take 0.02 s"
    )
    source_replica_lag_max_s: float = Field(
        60.0, ge=0, description="on a replica that is further behind than this the reading slows down; 0: never"
    )

    def throttle(self, readers: int = 1) -> Bounds:
        """Return what one of so many readers of a job may ask of the source."""
        return Bounds(self.source_rows_per_s / readers, self.source_query_max_s, self.source_replica_lag_max_s)

    def limits(self, row_bytes_max: int) -> Limits:
        """Return the reader's part of it; `row_bytes_max` comes from the topic."""
        return Limits(self.page_rows, self.id_window, self.statement_timeout_s, row_bytes_max)


def job_from(text: str | None) -> ReplayJob:
    """Return the job in CRM_REPLAY_JOB. Raises BadInputError."""
    if not text:
        raise BadInputError("CRM_REPLAY_JOB is not set", "start a replay with: crm-replay run --account ACCOUNT")
    try:
        return ReplayJob.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(the whole of it)"
        raise BadInputError(
            f"CRM_REPLAY_JOB, key {key}: {first['msg']}", "it is the JSON of schemas.job.ReplayJob"
        ) from error


def settings_from_environment() -> ProducerSettings:
    """Return the settings. Raises BadInputError naming the first variable that is wrong."""
    try:
        return ProducerSettings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"CRM_REPLAY_{str(first['loc'][0]).upper()}"
        raise BadInputError(f"{name}: {first['msg']}", "correct it, or unset it for the default") from error
