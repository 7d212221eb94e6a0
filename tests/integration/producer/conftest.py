"""Fixtures of the producer's tests: a job in fresh surroundings."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from schemas.job import ReplayJob
from schemas.topics import AccountTopics
from tests.integration.producer import crm

MakeJob = Callable[..., crm.Surroundings]


@pytest.fixture
def make_job(
    kafka_bootstrap: str, mongodb_url: str, mongo_database: Any, database_dsn: str, topic_prefix: str
) -> Iterator[MakeJob]:
    """Make the topics of a job of an account of its own."""
    made: list[AccountTopics] = []

    def make(
        *, partitions: int = 3, topic_config: dict[str, str] | None = None, account: str = "", **job: Any
    ) -> crm.Surroundings:
        company_sso_id = account or topic_prefix.replace(".", "-")
        topics = AccountTopics.of(company_sso_id)
        crm.make_topics(kafka_bootstrap, topics, partitions, **(topic_config or {}))
        made.append(topics)
        defaults = {
            "company_sso_id": company_sso_id,
            "job_id": "job1",
            "run": 7,
            "partitions": partitions,
            "top_audit_id": 0,
            "snapshot_xmax": 0,
            "cutoff": crm.CUTOFF,
            "mapping_path": "",
        }
        return crm.Surroundings(
            database_dsn, kafka_bootstrap, mongodb_url, mongo_database.name, ReplayJob(**{**defaults, **job})
        )

    yield make
    for topics in made:
        crm.drop_topics(kafka_bootstrap, topics)
