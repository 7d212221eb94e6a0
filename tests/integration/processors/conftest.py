from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.processors.harness import JobOnKafka


@pytest.fixture
def new_job(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Iterator[Callable[[int], JobOnKafka]]:
    """Return a function that makes a job's topics, with a given number of partitions."""
    jobs: list[JobOnKafka] = []

    def make(partitions: int) -> JobOnKafka:
        job = JobOnKafka(kafka_bootstrap, tmp_path, f"{topic_prefix}-{len(jobs)}", partitions)
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.close()
