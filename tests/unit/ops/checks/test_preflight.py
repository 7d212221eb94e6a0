"""The pure half of the preflight: verdicts, plans, estimates; and lanes, whose servers may hang."""

import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AclOperation

from ops.checks.estimates import ASSUMED_ROWS_PER_S, Rate, estimate, rate_of
from ops.checks.model import Check, Verdict, bytes_text, duration_text, fail, join, ok, warn, worst
from ops.checks.preflight import kafka
from ops.checks.preflight.kafka import release_of, topic_findings
from ops.checks.preflight.lanes import Lane, Step, run_lanes
from ops.checks.preflight.model import Report
from ops.checks.preflight.mongodb import missing_actions
from ops.checks.preflight.plan import judge, page_plan
from ops.checks.preflight.run import check_estimate
from ops.checks.preflight.source import check_scope, clock_check
from ops.kafka import admin as kafka_admin
from producer.survey import InScope
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.topics import AccountTopics

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def scan(node_type: str, rows: int, removed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "Node Type": node_type,
        "Relation Name": "audits",
        "Actual Rows": rows,
        "Rows Removed by Filter": removed,
        "Actual Loops": 1,
        **more,
    }


def explained(*nodes: dict[str, Any], rows: int = 500, ms: float = 3.0) -> list[dict[str, Any]]:
    top = {"Node Type": "Limit", "Actual Rows": rows, "Actual Loops": 1, "Plans": list(nodes)}
    return [{"Plan": top, "Execution Time": ms}]


def judged(*nodes: dict[str, Any], account: str | None = None, **options: Any) -> tuple[Verdict, str, str]:
    plan = page_plan(explained(*nodes, **options))
    return judge(plan, table="public.audits", table_rows=15_000_000, account_column=account, page_rows=500)


def test_a_page_by_the_primary_key_is_good() -> None:
    verdict, found, to_do = judged(
        scan("Index Scan", 500, 100, **{"Index Name": "audits_pkey", "Index Cond": "(id > 1)"})
    )
    assert (verdict, to_do) == (Verdict.OK, "")
    assert found == "a page of 500 rows reads 600 in 3 ms by audits_pkey"


@pytest.mark.parametrize("kind", ["Seq Scan", "Parallel Seq Scan"])
def test_a_page_that_reads_a_large_table_whole_fails_with_the_index_to_add(kind: str) -> None:
    verdict, found, to_do = judged(scan(kind, 500, 1_000_000))
    assert verdict is Verdict.FAIL
    assert "1,000,500 of them without an index" in found
    assert to_do.startswith("CREATE UNIQUE INDEX CONCURRENTLY ON public.audits (id)")


def test_a_small_table_may_be_read_whole() -> None:
    plan = page_plan(explained(scan("Seq Scan", 300, 26), rows=300))
    verdict, found, _ = judge(plan, table="t", table_rows=326, account_column=None, page_rows=500)
    assert verdict is Verdict.OK
    assert "a small table is read whole" in found


def test_a_sparse_account_gets_the_index_by_account() -> None:
    node = scan("Index Scan", 3, 49_997, **{"Index Name": "audits_pkey"})
    verdict, found, to_do = judged(node, account="team_id", rows=3)
    assert (verdict, "few of them are the account's" in found) == (Verdict.WARN, True)
    assert to_do.startswith("CREATE INDEX CONCURRENTLY ON public.audits (team_id, id)")
    assert judged(node, account=None, rows=3)[0] is Verdict.OK  # then all of the table is the account's


def test_a_slow_page_and_a_sort_are_warned_of() -> None:
    assert judged(scan("Index Scan", 500), ms=2_500.0)[0] is Verdict.WARN
    sort = {"Node Type": "Sort", "Actual Rows": 500, "Actual Loops": 1, "Plans": [scan("Bitmap Heap Scan", 400_000)]}
    verdict, found, to_do = judged(sort)
    assert verdict is Verdict.WARN
    assert "sorts 400,000" in found
    assert "ANALYZE" in to_do


def test_rows_of_every_loop_and_those_thrown_away_count_as_read() -> None:
    node = {**scan("Index Scan", 10, 5), "Actual Loops": 3, "Rows Removed by Index Recheck": 1}
    assert page_plan(explained(node)).scanned == 48


def test_the_worst_finding_is_the_verdict_and_each_to_do_is_said_once() -> None:
    check = join("x", [(Verdict.WARN, "a", "do"), (Verdict.FAIL, "b", "do"), (Verdict.OK, "c", "")], "fine")
    assert check == Check("x", Verdict.FAIL, "b; a; c", "do", {})
    assert join("x", [], "fine", n=1) == ok("x", "fine", n=1)
    assert worst([]) is Verdict.OK


def test_a_report_is_ok_without_a_failure_and_says_all_as_json() -> None:
    report = Report("a", (ok("x", "fine"), warn("y", "hm", "look", n=1)), 1.0)
    assert report.ok
    assert report.as_dict()["checks"][1] == {
        "name": "y", "verdict": "warn", "found": "hm", "to_do": "look", "facts": {"n": 1}
    }  # fmt: skip
    assert not Report("a", (fail("x", "bad", "mend"),)).ok


def test_times_and_sizes_are_said_as_people_say_them() -> None:
    assert [duration_text(s) for s in (0.4, 40, 125, 7_500, 360_000)] == [
        "0 s",
        "40 s",
        "2 min",
        "2 h 05 min",
        "100 h 00 min",
    ]
    assert [bytes_text(n) for n in (12, 1_500, 2.5e6, 3e9, 4e12)] == ["12 B", "1.5 kB", "2.5 MB", "3.0 GB", "4.0 TB"]


def test_the_rate_is_that_of_the_newest_run_that_was_long_enough() -> None:
    runs = [
        (5, NOON, NOON + timedelta(seconds=1)),
        (60_000, NOON, None),
        (40_000, NOON, NOON + timedelta(seconds=10)),
        (90_000, NOON, NOON + timedelta(seconds=1)),
    ]
    assert rate_of(runs) == Rate(4_000, "the run of 2024-05-01 over 40,000 rows")
    assert rate_of([]).rows_per_s == ASSUMED_ROWS_PER_S


def test_an_estimate_adds_up_and_says_on_what_it_rests() -> None:
    found = estimate(15_000_000, 500.0, Rate(5_000, "measured"))
    assert (found.seconds, found.seconds_at_floor) == (3_000, 30_000)
    assert found.topics_bytes == 15_000_000 * (500 + 150 + 800 + 420)
    assert "15,000,000 rows take about 50 min at 5,000 rows/s (measured), 8 h 20 min at the floor" in found.text()
    assert check_estimate(found).verdict is Verdict.OK
    assert check_estimate(estimate(10**9, 500.0, Rate(5_000, "measured"))).verdict is Verdict.WARN
    assert check_estimate(None).verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("theirs", "verdict", "said"),
    [
        (1_000.5, Verdict.OK, "agree"),
        (990.0, Verdict.WARN, "10 s behind"),
        (1_020.0, Verdict.WARN, "19 s ahead of"),
        (2_000.0, Verdict.FAIL, "16 min ahead of"),
        (600.0, Verdict.FAIL, "6 min behind"),
    ],
)
def test_a_clock_is_wrong_only_as_far_as_the_round_trip_lets_it_be_told(
    theirs: float, verdict: Verdict, said: str
) -> None:
    check = clock_check("c", "x", theirs, 1_000.0, 1_001.0)
    assert check.verdict is verdict
    assert said in check.found


def test_rows_without_created_at_and_no_rows_are_warned_of() -> None:
    from ops.checks.preflight.source import Scope

    assert check_scope(Scope(InScope(0, 0, 0, 0, None), 9, 9), None).verdict is Verdict.WARN
    check = check_scope(Scope(InScope(5, 2, 1, 9, NOON), 9, 9), None)
    assert (check.verdict, check.facts["rows_without_created_at"]) == (Verdict.WARN, 2)
    assert check_scope(Scope(InScope(5, 0, 1, 9, NOON), 9, 9), NOON).verdict is Verdict.OK
    check = check_scope(Scope(InScope(50, 6, 1, 9, NOON, rows_outside_calendar=6), 9, 9), None)
    assert (check.verdict, "enough to halt the job" in check.found) == (Verdict.FAIL, True)
    ranged = check_scope(Scope(InScope(50, 6, 1, 9, NOON, rows_outside_calendar=3), 9, 9), NOON)
    assert (ranged.verdict, "6 rows without created_at" in ranged.found) == (Verdict.WARN, True)
    assert "3 rows end as dead letters: " in ranged.found


def api(key: int, high: int) -> str:
    return f"[thrd:x]: x: ApiKey Unknown-{key}? ({key}) Versions 0..{high}"


def test_the_release_of_a_broker_is_told_from_what_it_answers() -> None:
    assert release_of([api(76, 1), api(75, 0), api(11, 9)]) == "4.1"
    assert release_of([api(76, 0), api(75, 0), api(11, 9)]) == "3.8"
    assert release_of(["ApiKey JoinGroup (11) Versions 0..5"]) == "2.3"
    assert release_of([api(11, 4)]) == "before 2.3"
    assert release_of(["nothing of the sort"]) == ""


def test_a_topic_that_would_lose_rows_or_references_is_named() -> None:
    backlog, table = {"cleanup.policy": "delete"}, {"cleanup.policy": "compact"}
    assert topic_findings("t", {"cleanup.policy": "delete", "max.message.bytes": "20971520"}, backlog) == []
    assert [f[0] for f in topic_findings("t", {"cleanup.policy": "compact,delete"}, backlog)] == [Verdict.FAIL]
    assert [f[0] for f in topic_findings("t", {}, table)] == [Verdict.FAIL]
    assert [f[0] for f in topic_findings("t", {"max.message.bytes": "1000000"}, backlog)] == [Verdict.WARN]


def test_what_a_user_of_mongodb_may_not_do_is_named() -> None:
    everything = [{"resource": {"db": "cdp", "collection": ""}, "actions": ["find", "insert", "update", "remove"]}]
    assert missing_actions(everything, "cdp") == []
    assert missing_actions([{"resource": {"anyResource": True}, "actions": ["anyAction"]}], "cdp") == []
    reader = [{"resource": {"db": "", "collection": ""}, "actions": ["find"]}]
    assert "remove on activity_logs" in missing_actions(reader, "cdp")
    assert "find on contacts" not in missing_actions(reader, "cdp")
    assert len(missing_actions(everything, "other")) == 14


# ---- lanes ----------------------------------------------------------------------------------------------------------


def step(name: str, ask: Any, timeout_s: float = 60.0, *, essential: bool = False) -> Step:
    return Step(name, ask, timeout_s, essential)


def raising(error: Exception) -> Any:
    def ask() -> Check:
        raise error

    return ask


def test_a_server_that_hangs_costs_its_own_checks_and_no_others() -> None:
    let_go = threading.Event()

    def hang() -> Check:
        let_go.wait(60)
        return ok("late", "too late")

    try:
        checks = run_lanes(
            [
                Lane("A", [step("first", lambda: ok("first", "fine")), step("late", hang, 0.2), step("never", hang)]),
                Lane("B", [step("other", lambda: ok("other", "fine"))]),
            ]
        )
    finally:
        let_go.set()
    assert [(check.name, check.verdict) for check in checks] == [
        ("first", Verdict.OK),
        ("late", Verdict.FAIL),
        ("never", Verdict.FAIL),
        ("other", Verdict.OK),
    ]
    assert "has not answered within 0 s" in checks[1].found
    assert checks[2].found.startswith("not checked: A has not answered")


def test_what_raises_is_a_failed_check_and_only_an_outage_ends_its_lane() -> None:
    checks = run_lanes(
        [
            Lane(
                "A",
                [
                    step("bad", raising(BadInputError("no table", "make it"))),
                    step("defect", raising(ZeroDivisionError("x\ny"))),
                    step("gone", raising(ServiceUnreachableError("A is away", "start it"))),
                    step("never", lambda: ok("never", "fine")),
                ],
            )
        ]
    )
    assert [check.verdict for check in checks] == [Verdict.FAIL] * 4
    assert (checks[0].found, checks[0].to_do) == ("no table", "make it")
    assert checks[1].found == "ZeroDivisionError: x"
    assert checks[3].found == "not checked: A is away"


def test_without_an_essential_check_the_rest_of_its_lane_is_not_asked() -> None:
    asked = []

    def note() -> Check:
        asked.append(1)
        return ok("later", "fine")

    lane = Lane("A", [step("first", lambda: fail("first", "wrong", ""), essential=True), step("later", note)])
    assert [check.verdict for check in run_lanes([lane])] == [Verdict.FAIL, Verdict.FAIL]
    assert asked == []


class Groups:
    """Kafka's answers about groups while a new cluster finds their coordinators; every topic is there already."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def list_topics(self, timeout: float) -> Any:
        names = kafka_admin.topic_settings(AccountTopics.of("a"), 4)
        return SimpleNamespace(brokers={1: None}, topics=dict.fromkeys(names))

    def describe_topics(self, topics: Any, **_: Any) -> dict[str, "Future[Any]"]:
        return {}

    def describe_consumer_groups(self, groups: list[str], **_: Any) -> dict[str, "Future[Any]"]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        futures: dict[str, Future[Any]] = {group: Future() for group in groups}
        for future in futures.values():
            if answer is not None:
                future.set_exception(answer)
            else:
                future.set_result(SimpleNamespace(authorized_operations=[AclOperation.READ]))
        return futures


TIMED_OUT = KafkaException(KafkaError(KafkaError._TIMED_OUT))
NO_COORDINATOR = KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE))
FORBIDDEN = KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))


@pytest.mark.parametrize(
    ("answers", "verdict", "asked"),
    [
        ((TimeoutError(), TIMED_OUT, NO_COORDINATOR, None), Verdict.OK, 4),
        ((NO_COORDINATOR, FORBIDDEN), Verdict.FAIL, 2),
        ((None,), Verdict.OK, 1),
    ],
)
def test_a_group_coordinator_that_is_not_ready_yet_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, answers: Any, verdict: Verdict, asked: int
) -> None:
    cluster = Groups(*answers)
    monkeypatch.setattr(kafka, "_admin", lambda _: cluster)
    monkeypatch.setattr(kafka_admin, "COORDINATOR_POLL_S", 0.0)
    check = kafka.check_permissions({}, "a", 4)
    assert (check.verdict, cluster.asked) == (verdict, asked), check


def test_a_group_coordinator_that_never_comes_is_a_warning_within_the_time_of_a_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka, "_admin", lambda _: Groups(NO_COORDINATOR))
    monkeypatch.setattr(kafka, "COORDINATOR_MAX_S", 0.0)
    check = kafka.check_permissions({}, "a", 4)
    assert (check.verdict, len(check.facts["unknown"])) == (Verdict.WARN, 2)
    assert "__consumer_offsets" in check.to_do
