"""The console's API and its live events, on real servers: MongoDB, and Kafka for lag and dead letters."""

import datetime as dt
import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import bson
import httpx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from pymongo.errors import AutoReconnect

from ops.control.console_models import AccountDetail, LetterDetail, LetterPage
from ops.control.job_exposition import JobMetrics
from ops.jobs import audit_log, flags, migrations
from ops.jobs.jobs import Job
from ops.jobs.store import JobStore, NewJob
from ops.jobs.tasks import TaskKind, TaskStore
from ops.kafka import admin as kafka_admin
from producer.checkpoint import Checkpoint
from producer.cursor import IdRange
from schemas.codec import Codec
from schemas.process.connections import Connections
from schemas.records import ActivityLog, DeadLetter
from schemas.topics import AccountTopics
from schemas.vocabulary import JobStatus
from sink.progress import RunTotals
from tests.fixtures.services import mongo_scratch
from tests.integration.control.http_server import PASSWORD, USER, Served, account, refused, serving
from tests.support.programs import Program
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
API = "/console/api"


@pytest.fixture(scope="module")
def database(mongodb_url: str) -> Iterator[Any]:
    with mongo_scratch(mongodb_url) as database:
        migrations.up(database)
        yield database


@pytest.fixture(scope="module")
def connections(mongodb_url: str, kafka_bootstrap: str, database: Any) -> Connections:
    return Connections(mongodb_url=mongodb_url, mongodb_database=database.name, kafka_bootstrap_servers=kafka_bootstrap)


@pytest.fixture(scope="module")
def served(connections: Connections) -> Iterator[Served]:
    with serving(connections, sse_clients_max=4) as running:
        yield running


def make_job(database: Any, company: str, status: JobStatus = JobStatus.IN_PROGRESS, owner: str | None = None) -> Job:
    store = JobStore(database)
    cutoff = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    new = NewJob(company, 2, 9, 1, cutoff, records_total=200, triggered_by="a test")
    job = store.create(new, begin_offsets=(1, 1), owner=owner)
    if status is not JobStatus.IN_PROGRESS:
        job = store.transition(job.job_id, JobStatus.IN_PROGRESS, status)
    return job


def detail(served: Served, company: str) -> dict[str, Any]:
    answer = served.client.get(f"{API}/account", params={"account": company})
    assert answer.status_code == 200, answer.text
    AccountDetail.model_validate(answer.json())
    found: dict[str, Any] = answer.json()
    return found


def allowed(found: dict[str, Any]) -> set[str]:
    return {action["name"] for action in found["actions"] if action["allowed"]}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_who_is_signed_in(served: Served) -> None:
    found = served.client.get(f"{API}/session").json()
    assert found["user"] == USER
    assert found["now"].endswith("Z")


def test_an_account_that_nobody_has_heard_of_can_be_looked_at(served: Served) -> None:
    found = detail(served, account())
    assert (found["status"], found["job"], found["stages"], found["pace"]) == ("not_started", None, [], None)
    assert found["flag"] == {"enabled": False, "changed_at": None, "changed_by": None}
    assert allowed(found) == {"preflight"}
    assert {action["why_not"] is None for action in found["actions"] if not action["allowed"]} == {False}


def test_an_account_shows_its_job_its_flag_its_tasks_and_what_can_be_done(served: Served, database: Any) -> None:
    company = account()
    flags.write(database, company, enabled=True, by="somebody")
    store, tasks = JobStore(database), TaskStore(database)
    first = make_job(database, company, JobStatus.COMPLETED)
    done = tasks.request(company, TaskKind.VERIFY, by="x", arguments={})
    claimed = tasks.claim_next("a-runner", 60)
    assert claimed is not None
    assert claimed.task_id == done.task_id
    tasks.finish(claimed, {"equal": True, "rows": 7})
    tasks.request(company, TaskKind.PREFLIGHT, by="x", arguments={})
    found = detail(served, company)
    assert (found["status"], found["job"]["job_id"]) == ("completed", first.job_id)
    assert found["flag"]["changed_by"] == "somebody"
    assert found["verification"]["result"] == {"equal": True, "rows": 7}
    assert [(task["kind"], task["status"]) for task in found["tasks"]] == [("preflight", "queued")]
    assert allowed(found) == {"rerun", "rollback", "verify", "dlq-retry"}
    store.transition(first.job_id, JobStatus.COMPLETED, JobStatus.ROLLED_BACK)
    second = make_job(database, company)
    found = detail(served, company)
    assert [job["job_id"] for job in found["history"]] == [second.job_id, first.job_id]
    assert found["job"]["waiting"]
    assert allowed(found) == {"halt"}


def test_a_running_job_shows_where_its_rows_are_and_how_fast_they_go(
    served: Served, database: Any, connections: Connections
) -> None:
    company = account()
    topics = AccountTopics.of(company)
    kafka = connections.kafka()
    kafka_admin.ensure_topics(AdminClient(kafka), topics, 2)
    publish(kafka, topics.replay, [b"x"] * 7, partition=0)
    publish(kafka, topics.replay, [b"x"] * 3, partition=1)
    publish(kafka, topics.outcomes, [b"x"] * 5, partition=0)
    publish(kafka, topics.dead_letters, [b"x"] * 2)
    kafka_admin.commit_offsets(kafka, topics.processors_group, topics.replay, (2, 3))
    kafka_admin.commit_offsets(kafka, topics.sink_group, topics.outcomes, (1, 0))
    store = JobStore(database)
    job = make_job(database, company, owner="a-runner")
    Checkpoint(database, job.job_id, job.run).save(IdRange(0, 1, 90, 100, rows=90))
    Checkpoint(database, job.job_id, job.run).save(IdRange(1, 101, 200, 200, rows=100))
    job = store.save_totals(job, RunTotals(migrated=50))
    first = detail(served, company)
    assert not first["job"]["waiting"]
    assert [(stage["name"], stage["done"], stage["total"], stage["waiting"]) for stage in first["stages"]] == [
        ("producer", 190, 200, None),
        ("processors", None, None, 5),
        ("sink", 50, 200, 4),
        ("dead_letters", None, None, 2),
    ]
    time.sleep(0.6)  # two looks closer together count as one
    store.save_totals(job, RunTotals(migrated=120, skipped={"contact_not_found": 10}))
    pace = detail(served, company)["pace"]
    assert pace["rows_per_s"] > 0
    assert pace["rows_per_s_average"] > 0
    assert 0 < pace["eta_s"] < 3600


def publish(kafka: dict[str, Any], topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer(kafka)
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(60) == 0


def test_accounts_are_listed_searched_and_paged(served: Served, database: Any) -> None:
    mark = uuid.uuid4().hex[:8]
    for name in "abcd":
        flags.write(database, f"{mark}-{name}", enabled=name == "a", by="x")
    job = make_job(database, f"{mark}-b")

    def listed(**query: Any) -> dict[str, Any]:
        answer = served.client.get(f"{API}/accounts", params={"search": mark, **query})
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    wait_until(lambda: len(listed()["accounts"]) == 4, "all accounts are listed")
    wait_until(lambda: listed()["accounts"][1]["status"] == "in_progress", "the run is seen")
    rows = listed()["accounts"]
    assert [(row["company_sso_id"][-1], row["flag_enabled"], row["status"]) for row in rows] == [
        ("a", True, "not_started"),
        ("b", False, "in_progress"),
        ("c", False, "not_started"),
        ("d", False, "not_started"),
    ]
    first = listed(limit=3)
    assert first["next_cursor"] == f"{mark}-c"
    second = listed(limit=3, cursor=first["next_cursor"])
    assert ([row["company_sso_id"] for row in second["accounts"]], second["next_cursor"]) == ([f"{mark}-d"], None)
    JobStore(database).transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED, "too many")
    wait_until(lambda: listed()["accounts"][1]["job"]["error"] == "too many", "the error is seen")


# ---- what is done ----------------------------------------------------------------------------------------------------


def test_a_job_is_halted_and_resumed_by_whom_the_audit_log_names(served: Served, database: Any) -> None:
    company = account()
    job = make_job(database, company)

    def ask(action: str, **more: Any) -> httpx.Response:
        return served.client.post(f"{API}/{action}", json={"company_sso_id": company, **more})

    halted = ask("halt", reason="lunch")
    assert (halted.status_code, halted.json()["job"]["status"], halted.json()["job"]["error"]) == (
        200,
        "halted",
        "lunch",
    )
    refused(ask("halt"), 409, "ILLEGAL_TRANSITION")
    resumed = ask("resume")
    assert (resumed.status_code, resumed.json()["job"]["job_id"]) == (200, job.job_id)
    refused(ask("resume"), 409, "JOB_ALREADY_RUNNING")
    refused(ask("rerun"), 409, "JOB_ALREADY_RUNNING")
    refused(ask("verify"), 409, "JOB_ALREADY_RUNNING")
    log = served.client.get(f"{API}/audit-log", params={"account": company}).json()["entries"]
    assert [(entry["who"], entry["action"], entry["outcome"]) for entry in reversed(log)] == [
        (USER, "halt", "ok"),
        (USER, "halt", "ILLEGAL_TRANSITION"),
        (USER, "resume", "ok"),
        (USER, "resume", "JOB_ALREADY_RUNNING"),
        (USER, "rerun", "JOB_ALREADY_RUNNING"),
        (USER, "verify", "JOB_ALREADY_RUNNING"),
    ]
    assert log[-1]["detail"]["reason"] == "lunch"


@pytest.mark.parametrize("action", ["halt", "resume", "rerun", "verify", "dlq-retry", "rollback"])
def test_nothing_can_be_done_to_a_job_that_is_not_there(served: Served, action: str) -> None:
    company = account()
    body = {"company_sso_id": company, **({"confirm": company} if action == "rollback" else {})}
    refused(served.client.post(f"{API}/{action}", json=body), 404, "JOB_NOT_FOUND")


def test_a_roll_back_wants_the_account_typed(served: Served, database: Any) -> None:
    company = account()
    make_job(database, company, JobStatus.HALTED)
    database["activity_logs"].insert_one({"company_sso_id": company, "source_tag": "crm_migration"})
    wrong = {"company_sso_id": company, "confirm": company.upper()}
    refused(served.client.post(f"{API}/rollback", json=wrong), 409, "CONFIRMATION_MISMATCH")
    assert database["activity_logs"].count_documents({"company_sso_id": company}) == 1
    right = {"company_sso_id": company, "confirm": company}
    done = served.client.post(f"{API}/rollback", json=right)
    assert (done.status_code, done.json()) == (200, {"company_sso_id": company, "records_removed": 1})
    assert detail(served, company)["rollback"] is None


def test_a_roll_back_that_nobody_goes_on_with_is_shown(served: Served, database: Any) -> None:
    company = account()
    job = make_job(database, company, JobStatus.HALTED)
    JobStore(database).transition(job.job_id, JobStatus.HALTED, JobStatus.ROLLED_BACK)
    JobStore(database).note_rollback(job, removed=10, remaining=5, by="x")
    shown = detail(served, company)["rollback"]
    assert (shown["removed"], shown["remaining"], shown["by"], shown["stalled"]) == (10, 5, "x", False)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
    database["crm_activity_log_migration_jobs"].update_one(
        {"_id": job.job_id}, {"$set": {"rollback.updated_at": before}}
    )
    assert detail(served, company)["rollback"]["stalled"]


def test_work_for_a_runner_is_queued_once(served: Served, database: Any) -> None:
    company = account()
    make_job(database, company, JobStatus.COMPLETED)
    for action, kind in (("verify", "verify"), ("preflight", "preflight")):
        queued = served.client.post(f"{API}/{action}", json={"company_sso_id": company})
        assert (queued.status_code, queued.json()["task"]["kind"], queued.json()["task"]["status"]) == (
            202,
            kind,
            "queued",
        )
        again = served.client.post(f"{API}/{action}", json={"company_sso_id": company})
        refused(again, 409, "TASK_ALREADY_QUEUED")
    body = {"company_sso_id": company, "cause": "write_refused", "audit_ids": [5, 6], "force": True}
    queued = served.client.post(f"{API}/dlq-retry", json=body)
    assert queued.status_code == 202
    task = TaskStore(database).get(queued.json()["task"]["task_id"])
    assert (task.kind, task.requested_by) == (TaskKind.DLQ_RETRY, USER)
    assert task.arguments == {"cause": "write_refused", "audit_ids": [5, 6], "force": True}


def test_the_flag_is_turned_and_the_trigger_obeys_it(served: Served, database: Any) -> None:
    company = account()
    on = served.client.put(f"{API}/flag", json={"company_sso_id": company, "enabled": True})
    assert (on.status_code, on.json()["enabled"], on.json()["changed_by"]) == (200, True, USER)
    assert "trigger" in allowed(detail(served, company))
    off = served.client.put(f"{API}/flag", json={"company_sso_id": company, "enabled": False})
    assert off.json()["enabled"] is False
    refused(served.client.post(f"{API}/trigger", json={"company_sso_id": company}), 403, "FLAG_DISABLED")
    for wrong in ({"company_sso_id": company, "enabled": "true"}, {"company_sso_id": company}, {"enabled": True}):
        refused(served.client.put(f"{API}/flag", json=wrong), 400, "VALIDATION_ERROR")
    assert [entry.action for entry in audit_log.entries(database, company)] == ["trigger", "flag", "flag"]


def test_a_trigger_whose_source_is_away_is_asked_for_again_later(mongodb_url: str, database: Any) -> None:
    company = account()
    flags.write(database, company, enabled=True, by="x")
    connections = Connections(
        mongodb_url=mongodb_url,
        mongodb_database=database.name,
        crm_audit_database_url="postgresql://nobody@127.0.0.1:1/crm",
    )
    with serving(connections) as served:
        answer = served.client.post(f"{API}/trigger", json={"company_sso_id": company})
        refused(answer, 503, "SERVICE_UNAVAILABLE")
    assert JobStore(database).latest(company) is None


# ---- dead letters ----------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_newest_first_with_what_became_of_their_rows(
    served: Served, database: Any, connections: Connections
) -> None:
    company = account()
    topics = AccountTopics.of(company)
    kafka_admin.ensure_topics(AdminClient(connections.kafka()), topics, 1)
    codec = Codec()
    payload = codec.encode(ActivityLog(5, 0, 0, 1, bson.encode({"name": "Siti"})))
    letter = DeadLetter(5, 0, topics.outcomes, 0, 77, 1, "write_refused", "code 121", b"50001", payload, 10**15)
    values = [
        codec.encode(letter),
        codec.encode(letter._replace(audit_id=6, source_offset=78)),
        codec.encode(letter._replace(audit_id=0, source_offset=79, cause="undecodable_record", payload=b"\x01")),
        b"garbage",
    ]
    publish(connections.kafka(), topics.dead_letters, values)
    database["activity_logs"].insert_one({"company_sso_id": company, "external_id": "crm_audit:6"})

    def page(**query: Any) -> dict[str, Any]:
        answer = served.client.get(f"{API}/dead-letters", params={"account": company, **query})
        assert answer.status_code == 200, answer.text
        LetterPage.model_validate(answer.json())
        found: dict[str, Any] = answer.json()
        return found

    everything = page()
    assert [(one["offset"], one["audit_id"], one["cause"], one["state"]) for one in everything["letters"]] == [
        (3, None, "unreadable", "no_row"),
        (2, None, "undecodable_record", "no_row"),
        (1, 6, "write_refused", "resolved"),
        (0, 5, "write_refused", "waiting"),
    ]
    assert everything["causes"] == {"write_refused": 2, "undecodable_record": 1, "unreadable": 1}
    assert (everything["total"], everything["truncated"], everything["next_cursor"]) == (4, False, None)
    assert "Siti" not in json.dumps(everything)
    first = page(limit=3)
    assert first["next_cursor"] == "1"
    assert [one["offset"] for one in page(limit=3, cursor=first["next_cursor"])["letters"]] == [0]
    assert page(cause="write_refused")["states"] == {"waiting": 1, "resolved": 1, "no_row": 0}

    one = served.client.get(f"{API}/dead-letter", params={"account": company, "offset": 0})
    LetterDetail.model_validate(one.json())
    assert one.json()["payload"]["fields"]["document"] == {"name": "Siti"}
    assert one.json()["key"] == "50001"
    seen = audit_log.entries(database, company)
    assert [(entry.action, entry.who, entry.detail) for entry in seen] == [("dlq-show", USER, {"offset": 0})]
    assert served.client.get(f"{API}/dead-letter", params={"account": company, "offset": 3}).json()["payload"]["hex"]
    refused(served.client.get(f"{API}/dead-letter", params={"account": company, "offset": 9}), 404, "NOT_FOUND")


def test_an_account_without_dead_letters_has_an_empty_list(served: Served) -> None:
    found = served.client.get(f"{API}/dead-letters", params={"account": account()}).json()
    assert (found["total"], found["letters"]) == (0, [])


# ---- live events -----------------------------------------------------------------------------------------------------


class Stream:
    """A client of the live events."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def event(self, name: str) -> tuple[str, Any]:
        """Return id and data of the next event of that name; beats and `retry` are passed over."""
        found: dict[str, str] = {}
        for line in self._lines:
            if line.startswith((":", "retry:")):
                continue
            if line:
                field, _, value = line.partition(": ")
                found[field] = value
            elif found.get("event") == "beat":
                found = {}
            elif found:
                assert found["event"] == name, found
                return found.get("id", ""), json.loads(found["data"])
        raise AssertionError("the stream has ended")


@contextmanager
def watching(served: Served, last_id: str = "", **query: str) -> Iterator[Stream]:
    headers = {"last-event-id": last_id} if last_id else {}
    with served.client.stream("GET", f"{API}/events", params=query, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        yield Stream(answer.iter_lines())


def test_what_changes_in_an_account_is_pushed_and_a_reconnect_misses_nothing(served: Served, database: Any) -> None:
    company = account()
    flags.write(database, company, enabled=True, by="x")
    with watching(served, account=company) as stream:
        first_id, first = stream.event("account")
        assert (first["status"], first["company_sso_id"]) == ("not_started", company)
        make_job(database, company, owner="a-runner")
        second_id, second = stream.event("account")
        assert second["status"] == "in_progress"
        assert first_id != second_id
    JobStore(database).save_totals(JobStore(database).jobs(company)[0], RunTotals(migrated=100))
    with watching(served, last_id=second_id, account=company) as stream:
        _, third = stream.event("account")  # it has missed something
        assert third["job"]["records_migrated"] == 100


def test_a_reconnect_that_has_missed_nothing_is_sent_nothing_until_something_changes(
    served: Served, database: Any
) -> None:
    company = account()
    make_job(database, company, JobStatus.HALTED)
    with watching(served, account=company) as stream:
        last_id, _ = stream.event("account")
    with watching(served, last_id=last_id, account=company) as stream:
        asked = threading.Timer(0.5, flags.write, (database, company, True, "x"))
        asked.start()
        _, found = stream.event("account")
        assert found["flag"]["enabled"] is True
        asked.join()


def test_all_accounts_are_sent_once_and_then_those_that_change(served: Served, database: Any) -> None:
    mark = uuid.uuid4().hex[:8]
    for name in "ab":
        flags.write(database, f"{mark}-{name}", enabled=False, by="x")
    with watching(served) as stream:
        _, first = stream.event("accounts")
        assert first["complete"] is True
        flags.write(database, f"{mark}-c", enabled=True, by="x")
        make_job(database, f"{mark}-b")
        changed: dict[str, Any] = {}
        while not {f"{mark}-b", f"{mark}-c"} <= changed.keys():
            _, news = stream.event("accounts")
            assert news["complete"] is False
            changed |= {row["company_sso_id"]: row for row in news["accounts"]}
        assert f"{mark}-a" not in changed
        assert changed[f"{mark}-b"]["status"] == "in_progress"


def test_clients_are_counted_and_their_places_given_back(served: Served, database: Any) -> None:
    company = account()

    def connected() -> float:
        text = served.client.get("/metrics").text
        return float(text.split("\ncrm_control_event_clients ")[1].split("\n")[0])

    wait_until(lambda: connected() == 0, "no client is left")
    with ExitStack() as clients:
        streams = [clients.enter_context(watching(served, account=company)) for _ in range(4)]
        for stream in streams:  # kept: httpx hangs up when nobody holds on to a stream's lines
            stream.event("account")
        refused(served.client.get(f"{API}/events"), 503, "TOO_MANY_CLIENTS")
        assert connected() == 4
    wait_until(lambda: connected() == 0, "no client is left")
    with watching(served, account=company) as stream:
        stream.event("account")


def test_prometheus_is_told_of_jobs_and_of_enrichments_that_nobody_could_scrape(served: Served, database: Any) -> None:
    company = account()
    make_job(database, company)
    now = dt.datetime.now(dt.UTC)
    counts = {"rows": 9, "rows_total": 9, "outcomes": {"patched": 7, "conflict": 1}, "deleted_references": 2}
    document = {"_id": company, **counts, "updated_at": now, "finished_at": now, "audit_ids": {"conflict": [1]}}
    database["crm_replay_enrichments"].insert_one(document)

    def told() -> set[str]:
        return {line for line in served.client.get("/metrics").text.splitlines() if company in line}

    wait_until(
        lambda: f'crm_replay_enrichment_rows{{account="{company}",outcome="patched"}} 7.0' in told(),
        "the enrichment is measured",
    )
    assert told() >= {
        f'crm_replay_enrichment_rows{{account="{company}",outcome="conflict"}} 1.0',
        f'crm_replay_enrichment_unfinished{{account="{company}"}} 0.0',
        f'crm_replay_enrichment_deleted_references{{account="{company}"}} 2.0',
        f'crm_replay_job_state{{account="{company}",status="in_progress"}} 1.0',
        f'crm_replay_job_rows{{account="{company}",bin="total"}} 200.0',
    }


def test_an_outage_of_mongodb_leaves_the_last_values_so_that_no_alert_resolves_by_it(
    served: Served, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = account()
    make_job(database, company, JobStatus.HALTED)
    halted = f'crm_replay_job_state{{account="{company}",status="halted"}} 1.0'
    wait_until(lambda: halted in served.client.get("/metrics").text, "the job is exposed")

    def away(*_: object) -> None:
        raise AutoReconnect("gone")

    monkeypatch.setattr(JobMetrics, "read", away)
    assert halted in served.client.get("/metrics").text


def test_trouble_is_said_once_and_its_end_shows_how_things_are(served: Served, database: Any) -> None:
    """The account's documents become unreadable for a while."""
    company = account()
    job = make_job(database, company, JobStatus.HALTED)
    jobs = database["crm_activity_log_migration_jobs"]
    with watching(served, account=company) as stream:
        stream.event("account")
        jobs.update_one({"_id": job.job_id}, {"$rename": {"partitions": "hidden"}})
        _, trouble = stream.event("trouble")
        assert "cannot be read" in trouble["message"]
        jobs.update_one({"_id": job.job_id}, {"$rename": {"hidden": "partitions"}})
        _, found = stream.event("account")
        assert found["job"]["job_id"] == job.job_id


# ---- the process -----------------------------------------------------------------------------------------------------


def test_sigterm_ends_streams_with_a_good_bye_and_the_process_with_0(connections: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CRM_")},
        "MONGODB_URL": connections.mongodb_url,
        "MONGODB_DATABASE": connections.mongodb_database,
        "CRM_CONTROL_BASIC_CREDENTIALS": f"{USER}:{PASSWORD}",
        "CRM_CONTROL_PORT": str(port),
    }
    process = Program("ops.control", env=env, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, auth=(USER, PASSWORD), timeout=60) as client:
            wait_until(lambda: process.poll() is not None or answers(client), "it answers or ends")
            with client.stream("GET", f"{API}/events", params={"account": "a"}) as answer:
                stream = Stream(answer.iter_lines())
                stream.event("account")
                process.send_signal(signal.SIGTERM)
                assert stream.event("bye")[1] == {}
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert f"control plane at {url}/console/" in said
    (seen,) = [line for line in lines if line.get("route") == f"{API}/events"]
    assert (seen["status"], seen["level"], seen["logger"]) == (200, "info", "ops.control.access")
    assert PASSWORD not in said


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_process_without_credentials_does_not_start() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CRM_CONTROL")}
    env["MONGODB_URL"] = "mongodb://127.0.0.1:1/"
    done = Program.call("ops.control", env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("crm-replay control: CRM_CONTROL_BASIC_CREDENTIALS is not set")
    assert len(done.stderr.splitlines()) == 1
