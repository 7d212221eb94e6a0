"""The endpoints for services and for the browser: every code of the contract's table, over HTTP, on real servers."""

import datetime as dt
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from bson import ObjectId
from pymongo.errors import AutoReconnect

from ops.control import activity_logs
from ops.jobs import audit_log, flags, http_documents, migrations, operations
from ops.jobs.jobs import Job
from ops.jobs.operations import RollbackRefusedError
from ops.jobs.store import JobStore, NewJob
from processors.encoding.documents import encode
from schemas.identity import replay_id
from schemas.process.connections import Connections
from schemas.vocabulary import JobStatus
from sink import rollback as documents
from sink.progress import RunTotals
from tests.fixtures.services import mongo_scratch, postgres_database
from tests.integration.control.http_server import Served, account, refused, serving
from tests.integration.producer.crm import add_audits, make_audits
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
ROUTE = "/private/activity_logs/crm_migration"
AFTER_ALL_ROWS = "2200-01-01T00:00:00Z"  # a beginning with no rows behind it: nobody has to be a contact


@pytest.fixture(scope="module")
def database(mongodb_url: str) -> Iterator[Any]:
    with mongo_scratch(mongodb_url) as database:
        migrations.up(database)
        yield database


@pytest.fixture(scope="module")
def source(postgres_dsn: str) -> Iterator[str]:
    """A CRM with three rows of a person who is nobody's contact."""
    with postgres_database(postgres_dsn) as dsn:
        make_audits(dsn)
        add_audits(dsn, (1, 2, 3), auditable_type="Crm::Person", auditable_id=77)
        yield dsn


@pytest.fixture(scope="module")
def served(mongodb_url: str, source: str, database: Any) -> Iterator[Served]:
    connections = Connections(mongodb_url=mongodb_url, mongodb_database=database.name, crm_audit_database_url=source)
    with serving(connections) as running:
        yield running


def make_job(database: Any, company_sso_id: str, status: JobStatus = JobStatus.IN_PROGRESS) -> Job:
    store = JobStore(database)
    job = store.create(NewJob(company_sso_id, 1, 9, 1, dt.datetime(2020, 1, 1, tzinfo=dt.UTC), records_total=200))
    if status is not JobStatus.IN_PROGRESS:
        job = store.transition(job.job_id, JobStatus.IN_PROGRESS, status)
    return job


def switch_on(database: Any, company_sso_id: str) -> str:
    flags.write(database, company_sso_id, enabled=True, by="a test")
    return company_sso_id


# ---- trigger ---------------------------------------------------------------------------------------------------------


def test_an_account_whose_flag_is_off_is_not_migrated(served: Served) -> None:
    refused(served.client.post(ROUTE, json={"company_sso_id": account()}), 403, "FLAG_DISABLED")


def test_a_migration_is_started_and_its_job_says_who_asked(served: Served, database: Any) -> None:
    company = switch_on(database, account())
    answer = served.client.post(
        ROUTE,
        json={"company_sso_id": company, "date_range_start": AFTER_ALL_ROWS},
        headers={"x-request-id": "ticket-4711"},
    )
    assert answer.status_code == 201
    job = JobStore(database).latest(company)
    assert answer.json() == {"job_id": job.job_id, "status": "in_progress"}
    assert job.triggered_by == "a-service"
    assert job.date_range_start == dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
    (entry,) = audit_log.entries(database, company)
    assert (entry.action, entry.who, entry.outcome, entry.request_id) == ("trigger", "a-service", "ok", "ticket-4711")
    assert answer.headers["x-request-id"] == "ticket-4711"


def test_without_the_contacts_no_job_is_made(served: Served, database: Any) -> None:
    company = switch_on(database, account())
    meta = refused(served.client.post(ROUTE, json={"company_sso_id": company}), 422, "contacts_not_migrated")
    assert (meta["coverage_pct"], meta["persons"], meta["missing"]) == (0.0, 1, ["77"])
    assert JobStore(database).latest(company) is None


def test_what_has_been_migrated_is_not_migrated_again(served: Served, database: Any) -> None:
    company = switch_on(database, account())
    make_job(database, company, JobStatus.COMPLETED)
    refused(served.client.post(ROUTE, json={"company_sso_id": company}), 409, "ALREADY_COMPLETED")


def test_a_halted_job_is_resumed_or_rolled_back_before_another_is_made(served: Served, database: Any) -> None:
    company = switch_on(database, account())
    make_job(database, company, JobStatus.HALTED)
    refused(served.client.post(ROUTE, json={"company_sso_id": company}), 409, "ILLEGAL_TRANSITION")


def test_of_fifty_at_once_one_starts_the_migration(served: Served, database: Any) -> None:
    company = switch_on(database, account())
    start = threading.Barrier(50)

    def trigger(_number: int) -> tuple[int, str]:
        with served.bare(auth=served.client.auth) as client:
            client.get("/healthz")  # connected, so that all of them ask at the same moment
            start.wait(60)
            answer = client.post(ROUTE, json={"company_sso_id": company, "date_range_start": AFTER_ALL_ROWS})
        return answer.status_code, answer.json().get("resp_code", "")

    with ThreadPoolExecutor(50) as threads:
        outcomes = Counter(threads.map(trigger, range(50)))
    assert outcomes == {(201, ""): 1, (409, "JOB_ALREADY_RUNNING"): 49}
    assert len(JobStore(database).jobs(company)) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "company_sso_id"),
        ({"company_sso_id": ""}, "company_sso_id"),
        ({"company_sso_id": 5}, "company_sso_id"),
        ({"company_sso_id": "a\nb"}, "company_sso_id"),
        ({"company_sso_id": "x" * 256}, "company_sso_id"),
        ({"company_sso_id": "a", "date_range_start": "yesterday"}, "date_range_start"),
        ({"company_sso_id": "a", "date_range_start": 1700000000}, "date_range_start"),
        ({"company_sso_id": "a", "date_range_start": "1700000000"}, "date_range_start"),
        ({"company_sso_id": "a", "date_range_start": "2024-01-01T00:00:00"}, "date_range_start"),
        ({"company_sso_id": "a", "typo": 1}, "typo"),
    ],
)
def test_a_body_that_is_wrong_is_told_by_its_field(served: Served, body: dict[str, Any], field: str) -> None:
    meta = refused(served.client.post(ROUTE, json=body), 400, "VALIDATION_ERROR")
    assert [error["field"] for error in meta["errors"]] == [field]
    assert meta["errors"][0]["message"]


def test_an_account_that_no_topic_could_be_named_after_is_refused(served: Served, database: Any) -> None:
    for company in ("a\u2028b", "a\u00a0b"):
        refused(served.client.post(ROUTE, json={"company_sso_id": company}), 400, "VALIDATION_ERROR")


# ---- status ----------------------------------------------------------------------------------------------------------


def test_an_account_that_has_no_job_has_not_started(served: Served) -> None:
    answer = served.client.get(f"{ROUTE}/status", params={"company_sso_id": account()})
    assert (answer.status_code, answer.json()) == (200, {"status": "not_started"})


def test_the_status_has_progress_counts_and_once_validated_the_accuracy(served: Served, database: Any) -> None:
    company = account("Ünïcode/ö?&")
    job = make_job(database, company)
    store = JobStore(database)
    totals = RunTotals(migrated=90, skipped={"x": 7, "duplicate_external_id": 1}, failed={"y": 2}, actors_fell_back=3)
    job = store.save_totals(job, totals)
    counts = {
        "records_total": 200,
        "records_attempted": 100,
        "records_migrated": 90,
        "records_skipped": 8,
        "records_duplicate": 1,
        "records_failed": 2,
        "records_repaired": 0,
        "records_late": 0,
        "records_foreign": 0,
        "skips_by_reason": {"x": 7, "duplicate_external_id": 1},
        "failures_by_cause": {"y": 2},
        "actors_fell_back": 3,
        "out_of_scope_by_type": {},
    }

    def status() -> Any:
        answer = served.client.get(f"{ROUTE}/status", params={"company_sso_id": company})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        return answer.json()

    assert status() == {"status": "in_progress", "progress_pct": 50.0, **counts}
    job = store.save_totals(job, totals, accuracy_pct=98.88, documents=91)
    counted = {"documents": 91, "documents_at": job.documents_at.isoformat().replace("+00:00", "Z")}
    assert status() == {"status": "in_progress", "progress_pct": 50.0, **counts, **counted, "accuracy_pct": 98.88}


def test_a_status_of_nobody_is_refused(served: Served) -> None:
    meta = refused(served.client.get(f"{ROUTE}/status"), 400, "VALIDATION_ERROR")
    assert meta["errors"] == [{"field": "company_sso_id", "message": "Field required"}]


# ---- roll back -------------------------------------------------------------------------------------------------------


def log_of(company: str, audit_id: int, **changed: Any) -> dict[str, Any]:
    return {
        "company_sso_id": company,
        "customer_id": "customer-1",
        "category": "deal",
        "action": "won",
        "actor": {"type": "user", "id": "sso-1", "name": "Siti"},
        "changes": [{"field": "status", "label": "Status", "from": "open", "to": {"deep": [1, None, "ä"]}}],
        "timestamp": "2024-05-08T18:46:14.0599+07:00",
        "external_id": f"crm_audit:{audit_id}",
        "metadata": {"crm_person_id": 50001},
        **changed,
    }


def test_a_roll_back_removes_the_accounts_documents_and_then_none(served: Served, database: Any) -> None:
    company, other = account(), account()
    make_job(database, company, JobStatus.COMPLETED)
    for owner in (company, other):
        records = [log_of(owner, number) for number in range(1, 6)]
        assert served.client.post("/private/activity_logs/migrate", json={"records": records}).json()["inserted"] == 5
    database["activity_logs"].insert_one({"company_sso_id": company, "native": True})
    before = list(database["activity_logs"].find({"company_sso_id": other}).sort("_id"))

    first = served.client.post(f"{ROUTE}/rollback", json={"company_sso_id": company})
    assert (first.status_code, first.json()) == (200, {"records_removed": 5})
    again = served.client.post(f"{ROUTE}/rollback", json={"company_sso_id": company})
    assert (again.status_code, again.json()) == (200, {"records_removed": 0})
    assert [left.get("native") for left in database["activity_logs"].find({"company_sso_id": company})] == [True]
    assert list(database["activity_logs"].find({"company_sso_id": other}).sort("_id")) == before
    job = JobStore(database).latest(company)
    assert job.status is JobStatus.ROLLED_BACK


def test_an_account_without_a_job_cannot_be_rolled_back(served: Served) -> None:
    refused(served.client.post(f"{ROUTE}/rollback", json={"company_sso_id": account()}), 404, "JOB_NOT_FOUND")


def test_documents_that_came_by_http_can_be_rolled_back_without_a_job(served: Served, database: Any) -> None:
    company, other = account(), account()
    for owner in (company, other):
        assert served.client.post(MIGRATE, json={"records": [log_of(owner, n) for n in (1, 2)]}).json()["inserted"] == 2
    database["activity_logs"].insert_one({"company_sso_id": company, "native": True})
    for removed in (2, 0):
        answer = served.client.post(f"{ROUTE}/rollback", json={"company_sso_id": company})
        assert (answer.status_code, answer.json()) == (200, {"records_removed": removed})
    assert [left.get("native") for left in database["activity_logs"].find({"company_sso_id": company})] == [True]
    assert http_documents.count(database, other) == 2
    assert JobStore(database).latest(company) is None
    entries = [(e.action, e.outcome, e.detail) for e in reversed(audit_log.entries(database, company))]
    assert sorted((action, outcome) for action, outcome, _ in entries) == [
        ("migrate", "ok"),
        *[("rollback", "begun")] * 2,
        *[("rollback", "ok")] * 2,
    ]
    removed_by = [detail["records_removed"] for _, outcome, detail in entries if "records_removed" in detail]
    assert sorted(removed_by) == [0, 2]


def test_a_run_that_begins_ends_the_roll_back_of_an_account_without_a_job(served: Served, database: Any) -> None:
    company = account()
    served.client.post(MIGRATE, json={"records": [log_of(company, n) for n in (1, 2)]})

    def begin(_removed: int) -> None:
        make_job(database, company)

    with pytest.raises(RollbackRefusedError, match=r"a run of .* has begun after 2 documents"):
        operations.rollback(database, company, begin)


def test_a_running_job_cannot_be_rolled_back(served: Served, database: Any) -> None:
    company = account()
    make_job(database, company)
    refused(served.client.post(f"{ROUTE}/rollback", json={"company_sso_id": company}), 409, "JOB_ALREADY_RUNNING")


def test_a_roll_back_that_cannot_remove_everything_says_so(
    served: Served, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = account()
    make_job(database, company, JobStatus.COMPLETED)

    def stuck(*_args: Any, **_kwargs: Any) -> int:
        raise RollbackFailedError("5 documents are still there", "roll back again")

    from sink.rollback import RollbackFailedError

    monkeypatch.setattr(documents, "rollback", stuck)
    refused(served.client.post(f"{ROUTE}/rollback", json={"company_sso_id": company}), 500, "ROLLBACK_FAILED")


def test_asking_again_joins_the_roll_back_that_runs(
    served: Served, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the client that began it has gone: the work goes on, and the next one is told what it removed."""
    company = account()
    make_job(database, company, JobStatus.COMPLETED)
    served.client.post("/private/activity_logs/migrate", json={"records": [log_of(company, n) for n in range(1, 8)]})

    removing, let_go, calls = threading.Event(), threading.Event(), list[Any]()
    real = documents.rollback

    def slow(*args: Any, **kwargs: Any) -> int:
        calls.append(args)
        removing.set()
        assert let_go.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(documents, "rollback", slow)

    def ask(timeout: float) -> Any:
        with served.bare(auth=served.client.auth) as client:
            return client.post(f"{ROUTE}/rollback", json={"company_sso_id": company}, timeout=timeout)

    with ThreadPoolExecutor(3) as threads:
        impatient = threads.submit(ask, 0.5)
        assert removing.wait(60)
        assert "Timeout" in type(impatient.exception(60)).__name__
        patient = [threads.submit(ask, 60.0) for _ in range(2)]
        shown = served.client.get("/console/api/account", params={"account": company}).json()
        assert shown["status"] == "rolled_back"
        in_progress(served, 3)  # the one that hung up is still being worked for
        let_go.set()
        assert [asked.result(60).json() for asked in patient] == [{"records_removed": 7}] * 2
    assert len(calls) == 1
    assert database["activity_logs"].count_documents({"company_sso_id": company}) == 0


def test_a_roll_back_whose_answer_no_client_received_answers_with_the_whole_number_once(
    served: Served, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = account()
    make_job(database, company, JobStatus.COMPLETED)
    served.client.post("/private/activity_logs/migrate", json={"records": [log_of(company, n) for n in range(1, 8)]})

    removing, let_go, real = threading.Event(), threading.Event(), documents.rollback

    def slow(*args: Any, **kwargs: Any) -> int:
        removing.set()
        assert let_go.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(documents, "rollback", slow)
    body = {"company_sso_id": company}
    with served.bare(auth=served.client.auth) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{ROUTE}/rollback", json=body, timeout=httpx.Timeout(60.0, read=0.5))
    assert removing.wait(60)
    let_go.set()
    in_progress(served, 0)
    job = JobStore(database).latest(company)
    assert job.rollback["finished_at"] is not None
    answers = [served.client.post(f"{ROUTE}/rollback", json=body).json() for _ in range(2)]
    assert answers == [{"records_removed": 7}, {"records_removed": 0}]
    job = JobStore(database).latest(company)
    assert job.rollback["removed"] == 7  # what was removed stays on file


def in_progress(served: Served, requests: int) -> None:
    """Wait until the server is at work on so many requests, besides the one that asks."""
    wanted = f"crm_control_requests_in_progress {requests + 1}.0"
    wait_until(lambda: wanted in served.client.get("/metrics").text, f"{requests} requests are at work")


# ---- activity logs ---------------------------------------------------------------------------------------------------

MIGRATE = "/private/activity_logs/migrate"


def test_activity_logs_are_written_as_the_sink_writes_them(served: Served, database: Any) -> None:
    company = account()
    answer = served.client.post(MIGRATE, json={"records": [log_of(company, 4711, source_tag="crm_migration")]})
    assert answer.status_code == 200
    assert answer.json() == {
        "inserted": 1,
        "skipped": 0,
        "failed": 0,
        "results": [{"external_id": "crm_audit:4711", "status": "inserted", "reason": None}],
    }
    stored = database["activity_logs"].find_one({"company_sso_id": company}, {"_id": 0})
    assert stored == {
        **log_of(company, 4711),
        "timestamp": dt.datetime(2024, 5, 8, 11, 46, 14, 59000, tzinfo=dt.UTC),
        "source_tag": "crm_migration",
    }
    assert list(stored)[-2:] == ["source_tag", "metadata"]


def test_sending_them_again_inserts_nothing(served: Served, database: Any) -> None:
    company = account()
    batch = {"records": [log_of(company, 1), log_of(company, 2, metadata={}), log_of(company, 1)]}
    first = served.client.post(MIGRATE, json=batch).json()
    assert (first["inserted"], first["skipped"], first["failed"]) == (2, 1, 0)
    second = served.client.post(MIGRATE, json=batch).json()
    assert (second["inserted"], second["skipped"], second["failed"]) == (0, 3, 0)
    assert {(result["status"], result["reason"]) for result in second["results"]} == {
        ("skipped", "duplicate_external_id")
    }
    assert [result["external_id"] for result in second["results"]] == ["crm_audit:1", "crm_audit:2", "crm_audit:1"]
    assert database["activity_logs"].count_documents({"company_sso_id": company}) == 2
    assert "metadata" not in database["activity_logs"].find_one(
        {"company_sso_id": company, "external_id": "crm_audit:2"}
    )


def test_each_call_is_in_the_audit_log_by_account_and_without_personal_data(served: Served, database: Any) -> None:
    one, two = account(), account()
    records = [log_of(one, 1), log_of(two, 1), log_of(one, 1), log_of(one, 2)]
    served.client.post(MIGRATE, json={"records": records}, headers={"x-request-id": "call-1"})
    (entry,) = audit_log.entries(database, one)
    assert (entry.action, entry.who, entry.outcome, entry.request_id) == ("migrate", "a-service", "ok", "call-1")
    assert entry.detail == {"inserted": 2, "skipped": 1, "failed": 0}
    (entry,) = audit_log.entries(database, two)
    assert entry.detail == {"inserted": 1, "skipped": 0, "failed": 0}


def test_a_call_whose_answer_is_unknown_is_in_the_audit_log_too(
    served: Served, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = account()

    def broken(*_: Any) -> Any:
        raise AutoReconnect("connection closed")

    with monkeypatch.context() as patched:
        patched.setattr(activity_logs, "write_batch", broken)
        answer = served.client.post(MIGRATE, json={"records": [log_of(company, 1)]})
    refused(answer, 503, "SERVICE_UNAVAILABLE")
    (entry,) = audit_log.entries(database, company)
    assert (entry.outcome, entry.detail) == ("AutoReconnect", {"records": 1})


def test_documents_that_came_by_http_are_known_by_their_id_and_no_others_are(served: Served, database: Any) -> None:
    company, other = account(), account()
    served.client.post(MIGRATE, json={"records": [log_of(company, 1), log_of(other, 1), log_of(company, 2)]})
    run = ObjectId(replay_id(2**31 - 1, 2**63 - 1))  # the last that a run can have
    tagged = {"company_sso_id": company, "source_tag": "crm_migration"}
    database["activity_logs"].insert_many([{"_id": run, **tagged, "external_id": "x"}, {**tagged, "external_id": "y"}])
    ids = [document["_id"] for document in database["activity_logs"].find({"company_sso_id": company})]
    assert sorted(http_documents.is_id(each) for each in ids) == [False, False, True, True]
    assert not any(map(http_documents.is_id, ("a", 7, None, {"a": 1})))
    assert (http_documents.count(database, company), http_documents.count(database, other)) == (2, 1)


def test_an_account_that_no_command_takes_is_refused(served: Served) -> None:
    batch = {"records": [log_of("a\u200b", 1)]}  # it could never be rolled back
    meta = refused(served.client.post(MIGRATE, json=batch), 400, "VALIDATION_ERROR")
    assert [error["field"] for error in meta["errors"]] == ["records.0.company_sso_id"]


def test_twenty_at_once_and_no_more(served: Served, database: Any) -> None:
    company = account()
    records = [log_of(company, number) for number in range(1, 22)]
    refused(served.client.post(MIGRATE, json={"records": records}), 400, "BATCH_TOO_LARGE")
    assert database["activity_logs"].count_documents({"company_sso_id": company}) == 0
    assert served.client.post(MIGRATE, json={"records": records[:20]}).json()["inserted"] == 20
    assert served.client.post(MIGRATE, json={"records": []}).json()["results"] == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"external_id": "crm_audit:0"}, "external_id"),
        ({"external_id": "native:5"}, "external_id"),
        ({"external_id": "crm_audit:99999999999999999999"}, "external_id"),
        ({"category": "Deal!"}, "category"),
        ({"timestamp": 1715000000}, "timestamp"),
        ({"actor": {"type": "user", "id": None, "name": "x"}}, "actor.user.id"),
        ({"actor": {"type": "system", "id": "x", "name": "x"}}, "actor.system.id"),
        ({"actor": {"type": "robot", "id": None, "name": "x"}}, "actor"),
        ({"changes": [{"field": "a", "label": "A", "from": None}]}, "changes.0.to"),
        ({"changes": None}, "changes"),
        ({"source_tag": "live"}, "source_tag"),
        ({"_id": 1}, "_id"),
    ],
)
def test_a_record_that_is_wrong_is_told_by_its_field(served: Served, changed: dict[str, Any], field: str) -> None:
    batch = {"records": [log_of("a", 1), log_of("a", 2, **changed)]}
    meta = refused(served.client.post(MIGRATE, json=batch), 400, "VALIDATION_ERROR")
    assert [error["field"] for error in meta["errors"]] == [f"records.1.{field}"]


def test_what_cannot_be_stored_is_refused_before_anything_is_written(served: Served) -> None:
    deep: Any = "bottom"
    for _ in range(150):
        deep = [deep]
    record = log_of("a", 3, metadata={"deep": deep})
    refused(served.client.post(MIGRATE, json={"records": [record]}), 400, "VALIDATION_ERROR")
    body = '{"records": [' + "[" * 50_000 + "]" * 50_000 + "]}"
    headers = {"content-type": "application/json"}
    refused(served.client.post(MIGRATE, content=body, headers=headers), 400, "VALIDATION_ERROR")


def test_a_record_that_the_server_refuses_fails_alone(
    served: Served, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys with NUL and numbers beyond 64 bits are stored as the processors store them; bad BSON fails by itself."""
    company = account()
    odd = log_of(company, 5, metadata={"nul\0key": 2**70})

    def broken_second(document: dict[str, Any]) -> bytes:
        encoded = encode(document)
        return encoded[:-8] + b"\xff\xff\xff\xff\xff\xff\xff\0" if document["external_id"] == "crm_audit:6" else encoded

    monkeypatch.setattr(activity_logs, "encode", broken_second)
    answer = served.client.post(MIGRATE, json={"records": [odd, log_of(company, 6), log_of(company, 7)]}).json()
    assert [result["status"] for result in answer["results"]] == ["inserted", "failed", "inserted"]
    stored = database["activity_logs"].find_one({"company_sso_id": company, "external_id": "crm_audit:5"})
    assert stored["metadata"] == {"nul\u2400key": str(2**70)}


# ---- the customer's browser ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/crm_migration/status", "/iag/v1/crm_migration/status"])
def test_a_session_sees_its_own_accounts_import_without_the_accuracy(served: Served, database: Any, path: str) -> None:
    company = account()
    job = make_job(database, company)
    JobStore(database).save_totals(job, RunTotals(migrated=20), accuracy_pct=100.0)
    JobStore(database).note_enrichment(
        job, {"state": "pending", "outcomes": {"patched": 2}, "error": "PostgreSQL is away"}
    )
    enriched = served.client.get(f"{ROUTE}/status", params={"company_sso_id": company}).json()["enrichment"]
    assert {name: enriched[name] for name in ("state", "patched", "ambiguous", "error")} == {
        "state": "pending",
        "patched": 2,
        "ambiguous": 0,
        "error": "PostgreSQL is away",
    }
    with served.bare() as browser:
        headers = served.session(company_sso_id=company)
        answer = browser.get(path, headers=headers)
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "in_progress",
            "progress_pct": 10.0,
            "records_total": 200,
            "records_migrated": 20,
            "records_skipped": 0,
            "records_duplicate": 0,
            "records_failed": 0,
        }
        assert browser.get(path, headers=headers, params={"company_sso_id": company}).status_code == 200
        for foreign in ({"company_sso_id": "another"}, {"company_sso_id": [company, "another"]}):
            refused(browser.get(path, headers=headers, params=foreign), 403, "FOREIGN_ACCOUNT")
        refused(browser.get(path), 401, "UNAUTHENTICATED")
        refused(browser.get(path, auth=served.client.auth), 401, "UNAUTHENTICATED")
        for permissions in ([], ["something_else"], None, {"customers_customers_view": True}):
            headers = served.session(company_sso_id=company, permissions=permissions)
            refused(browser.get(path, headers=headers), 403, "PERMISSION_DENIED")
        nothing = browser.get(path, headers=served.session(permissions="other customers_customers_view"))
        assert nothing.json() == {"status": "not_started"}


def test_a_session_opens_no_door_but_its_own(served: Served) -> None:
    with served.bare(headers=served.session()) as browser:
        for path in (f"{ROUTE}/status?company_sso_id=a", "/console/", "/console/api/accounts"):
            refused(browser.get(path), 401, "UNAUTHENTICATED")
