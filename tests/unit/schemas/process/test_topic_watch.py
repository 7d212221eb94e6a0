"""When a consumer is ended: its topic is another one, or records wait and nothing moves."""

from collections.abc import Sequence

import pytest

from schemas.process.liveness import StalledError
from schemas.process.topic_watch import (
    GONE_AFTER_CHECKS,
    STALLED_AFTER_CHECKS,
    TopicReplacedError,
    TopicWatch,
)


class Kafka:
    """Answers as a cluster would."""

    def __init__(self) -> None:
        self.ids: dict[str, str | None] = {"t": "one", "users": "u"}
        self.bounds = (0, 10)
        self.asked = 0
        self.group_members = 1
        self.is_away = False

    def topic_id(self, topic: str) -> str | None:
        if self.is_away:
            raise TimeoutError
        return self.ids[topic]

    def members(self, _group: str) -> int:
        return self.group_members

    def offsets(self, _topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        self.asked += 1
        return dict.fromkeys(partitions, self.bounds)


def test_a_topic_made_again_is_noticed_at_the_next_check() -> None:
    kafka = Kafka()
    watch = TopicWatch(kafka, "t", ["users"], group="g", to_do="start again")
    watch.check()
    kafka.ids["users"] = "v"
    with pytest.raises(TopicReplacedError, match="topic users was deleted and created again: start again") as raised:
        watch.check()
    assert raised.value.exit_code == 4


def test_one_that_was_made_again_before_the_first_check_is_noticed_by_its_known_id() -> None:
    with pytest.raises(TopicReplacedError):
        TopicWatch(Kafka(), "t", group="g", topic_id="another").check()


def test_a_topic_is_gone_only_after_several_answers_and_a_cluster_without_ids_says_nothing() -> None:
    kafka = Kafka()
    watch = TopicWatch(kafka, "t", group="g")
    watch.check()
    kafka.ids["t"] = None
    for _ in range(GONE_AFTER_CHECKS - 1):
        watch.check()
    kafka.ids["t"] = ""
    watch.check()
    kafka.ids["t"] = None
    for _ in range(GONE_AFTER_CHECKS - 1):
        watch.check()
    with pytest.raises(TopicReplacedError, match="topic t was deleted"):
        watch.check()


def test_records_that_wait_while_nothing_moves_end_the_process() -> None:
    watch = TopicWatch(Kafka(), "t", group="g", positions=lambda: {0: 10, 1: 7})
    for _ in range(STALLED_AFTER_CHECKS):
        watch.check()
    with pytest.raises(StalledError, match=r"3 records wait on t\[1\], and for 60 s none was received \(position 7\)"):
        watch.check()


def test_a_group_without_members_ends_a_process_that_has_no_partitions() -> None:
    kafka = Kafka()
    kafka.group_members = 0
    deaf = TopicWatch(kafka, "t", group="g", positions=dict)
    for _ in range(STALLED_AFTER_CHECKS - 1):
        deaf.check()
    with pytest.raises(StalledError, match=r"group g has had no members for 60 s"):
        deaf.check()


def test_a_member_in_reserve_a_process_that_has_not_joined_and_an_outage_are_no_stall() -> None:
    kafka = Kafka()
    reserve, starting = (TopicWatch(kafka, "t", group="g", positions=at) for at in (dict, lambda: None))
    for _ in range(2 * STALLED_AFTER_CHECKS):
        reserve.check()  # another member has all partitions
    kafka.group_members = 0
    for _ in range(2 * STALLED_AFTER_CHECKS):
        starting.check()
    rejoining = TopicWatch(kafka, "t", group="g", positions=dict)
    for _ in range(3):
        for _ in range(STALLED_AFTER_CHECKS - 1):
            rejoining.check_now()
        kafka.is_away = True  # what it said before is no evidence of what happens now
        rejoining.check_now()
        kafka.is_away = False


def test_neither_work_in_hand_nor_progress_nor_an_empty_topic_is_a_stall() -> None:
    kafka, at = Kafka(), [0]
    moving = TopicWatch(kafka, "t", group="g", positions=lambda: {0: at[0]})
    working = TopicWatch(kafka, "t", group="g", positions=lambda: None)
    for _ in range(5 * STALLED_AFTER_CHECKS):
        at[0] += 1
        moving.check()
        working.check()
    assert kafka.asked == 0
    kafka.bounds = (50, 50)  # retention has deleted all there was
    idle = TopicWatch(kafka, "t", group="g", positions=lambda: {0: -1001})
    for _ in range(5 * STALLED_AFTER_CHECKS):
        idle.check()
    kafka.bounds = (50, 51)  # the first record for a long time: it waits since now
    idle.check()
