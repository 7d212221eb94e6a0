"""What a real broker says of topics."""

import pytest

from producer.topics import check_topic, message_bytes_max
from schemas.errors import BadInputError, ServiceUnreachableError
from tests.integration.producer.conftest import MakeJob

pytestmark = pytest.mark.services


def test_a_topic_is_checked_before_anything_is_published(make_job: MakeJob) -> None:
    here = make_job(partitions=3, topic_config={"max.message.bytes": "70000"})
    kafka = {"bootstrap.servers": here.kafka}
    assert check_topic(kafka, here.job.topics.replay, 3) == 3
    assert 60_000 < message_bytes_max(kafka, here.job.topics.replay) < 70_000
    with pytest.raises(BadInputError, match="no topic"):
        check_topic(kafka, here.job.topics.replay + ".not")
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        check_topic({"bootstrap.servers": "127.0.0.1:1"}, "any")
