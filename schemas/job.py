"""The job as every process of one replay run gets it from the runner: JSON in `CRM_REPLAY_JOB`."""

from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.topics import LIVE_FEED, LIVE_TOPIC, AccountTopics


class ReplayJob(BaseModel):
    """One run of one account's job. A rerun has the same `job_id` and the next `run`."""

    model_config = ConfigDict(frozen=True)

    company_sso_id: str
    job_id: str
    run: int = Field(ge=1)  # unique over all jobs of the database; also the first four bytes of the run's ObjectIds
    partitions: int = Field(ge=1, le=1024)
    top_audit_id: int = Field(ge=0)  # max(id) when the job started
    snapshot_xmax: int = Field(ge=0)  # ids up to `top` may still be committed by transactions below this,
    writers: tuple[str, ...] = ()  # and by these virtual transactions, which had no transaction id when the job started
    cutoff: AwareDatetime  # rows created before it are not replayed; of the year 1: all are, dated or not
    mapping_path: str
    fence: int = Field(0, ge=0)  # rises with every claim of the job: only cursors of the highest count
    begin_offsets: tuple[int, ...] = ()  # of the begin markers on the replay topic, by partition

    @property
    def topics(self) -> AccountTopics:
        """The account's topic and group names."""
        return AccountTopics.of(self.company_sso_id)

    @property
    def audit_id_max(self) -> int:
        """The highest audit id that a record of the job can have; a higher one would pass for all below it."""
        return self.top_audit_id


class LiveFeed(ReplayJob):
    """What the processes of a live feed have to agree on: a job of many accounts without a beginning or an end.

    `run` changes when the topic is recreated, because offsets of the former topic mean nothing then.
    """

    company_sso_id: str = ""
    job_id: str = ""
    top_audit_id: int = 0
    snapshot_xmax: int = 0
    cutoff: AwareDatetime = datetime(1970, 1, 1, tzinfo=UTC)
    feed: str = LIVE_FEED
    topic: str = LIVE_TOPIC
    topic_id: str = ""  # Kafka's own: a recreated topic has another one. "": not known
    table_account: str = ""  # account of the audits, if neither the mapping nor a record names it
    visibility_delay_s: float = Field(10.0, ge=0, le=120)  # a contact can be read this long after its created_at

    @property
    def topics(self) -> AccountTopics:
        """The feed's topic and group names."""
        return AccountTopics.of_feed(self.feed, self.topic)

    @property
    def audit_id_max(self) -> int:
        """The highest id that PostgreSQL can have: a feed has no last row."""
        return 2**63 - 1
