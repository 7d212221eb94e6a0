"""What every process of one replay run has to agree on; the runner hands it over as JSON (`CRM_REPLAY_JOB`)."""

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.topics import AccountTopics


class ReplayJob(BaseModel):
    """One run of one account's job. A rerun has the same `job_id` and the next `run`."""

    model_config = ConfigDict(frozen=True)

    company_sso_id: str
    job_id: str
    run: int = Field(ge=1)  # unique over all jobs of the database; also the first four bytes of the run's ObjectIds
    partitions: int = Field(ge=1, le=1024)
    top_audit_id: int = Field(ge=0)  # max(id) when the job started
    snapshot_xmax: int = Field(ge=0)  # ids up to `top` may still be committed by transactions below this
    cutoff: AwareDatetime  # rows created before it are not replayed
    mapping_path: str
    begin_offsets: tuple[int, ...] = ()  # of the begin markers on the replay topic, by partition

    @property
    def topics(self) -> AccountTopics:
        """The account's topic and group names."""
        return AccountTopics.of(self.company_sso_id)
