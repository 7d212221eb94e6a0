"""Requests about jobs, as HTTP, command line and console make them, on a real PostgreSQL and MongoDB."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest

from ops.jobs import audit_log, coverage, flags, guards, migrations, operations, requests
from ops.jobs.requests import Control, RequestRefusedError
from ops.jobs.store import JobStore
from ops.jobs.tasks import TaskKind, TaskLostError, TaskStatus, TaskStore
from ops.local.sample.contacts import seed_contacts
from ops.local.sample_crm import SAMPLE_YAML, load_sample, mapping_path
from schemas.errors import BadInputError
from schemas.process.connections import Connections
from schemas.source.mapping import load
from schemas.vocabulary import JobStatus
from sink import rollback as documents
from sink.indexes import CONTACT_BY_CRM_ID, CONTACT_ID_MAP_UNIQUE
from tests.fixtures.services import postgres_database
from tests.support.waiting import at_once

pytestmark = pytest.mark.services
ACCOUNT = SAMPLE_YAML
MAPPING = str(mapping_path(ACCOUNT))


@pytest.fixture(scope="module")
def crm_dsn(postgres_dsn: str) -> Iterator[str]:
    """The sample CRM, for all tests here: none of them changes it."""
    with postgres_database(postgres_dsn) as dsn:
        load_sample(dsn)
        yield dsn


@pytest.fixture
def control(crm_dsn: str, mongo_database: Any) -> Control:
    migrations.up(mongo_database)
    seed_contacts(mongo_database)
    connections = Connections(crm_audit_database_url=crm_dsn, mongodb_database=mongo_database.name)
    return Control(mongo_database, connections, MAPPING)


def cover(control: Control) -> None:
    """Make contacts of the persons whom the sample leaves out on purpose."""
    dsn = control.connections.crm_audit_database_url
    persons = coverage.persons_in_scope(dsn, load(MAPPING), ACCOUNT).ids
    known = coverage.known_persons(control.database, ACCOUNT, persons)
    control.database["contacts"].insert_many(
        [{"company_sso_id": ACCOUNT, "crm_data": {"id": int(person)}} for person in persons if person not in known]
    )


def ready(control: Control) -> Control:
    cover(control)
    requests.set_flag(control, ACCOUNT, True, by="ann")
    return control


def refused(call: Any, *args: Any, **kwargs: Any) -> tuple[str, int]:
    with pytest.raises(RequestRefusedError) as caught:
        call(*args, **kwargs)
    assert caught.value.to_do
    return caught.value.resp_code.value, caught.value.http_status


def log(control: Control) -> list[tuple[str, str, str]]:
    return [(entry.who, entry.action, entry.outcome) for entry in audit_log.entries(control.database, ACCOUNT)]


def test_a_flag_is_off_until_somebody_turns_it_on_and_both_are_on_file(control: Control) -> None:
    assert flags.read(control.database, ACCOUNT) == flags.Flag(ACCOUNT)
    assert refused(requests.trigger, control, ACCOUNT, triggered_by="ann") == ("FLAG_DISABLED", 403)
    on = requests.set_flag(control, ACCOUNT, True, by="ann", request_id="r-1")
    assert flags.read(control.database, ACCOUNT) == on
    assert (on.enabled, on.changed_by) == (True, "ann")
    off = requests.set_flag(control, ACCOUNT, False, by="bob")
    assert flags.read_all(control.database) == [off]
    assert log(control) == [("bob", "flag", "ok"), ("ann", "flag", "ok"), ("ann", "trigger", "FLAG_DISABLED")]
    newest_on = audit_log.entries(control.database)[1]
    assert (newest_on.request_id, newest_on.detail) == ("r-1", {"enabled": True})
    with pytest.raises(BadInputError):
        requests.set_flag(control, "a\nb", True, by="ann")


def test_without_its_contacts_an_account_gets_no_job(control: Control) -> None:
    requests.set_flag(control, ACCOUNT, True, by="ann")
    with pytest.raises(RequestRefusedError, match=r"16 of 18 CRM persons of sample-yaml \(88.88 %, from all") as caught:
        requests.trigger(control, ACCOUNT, triggered_by="ann")
    assert (caught.value.resp_code, caught.value.http_status) == ("contacts_not_migrated", 422)
    assert (caught.value.meta["persons"], caught.value.meta["found"], caught.value.meta["sampled"]) == (18, 16, False)
    assert JobStore(control.database).jobs() == []
    cover(control)
    job = requests.trigger(control, ACCOUNT, triggered_by="ann")
    assert (job.status, job.prepared, job.owner) == (JobStatus.IN_PROGRESS, False, None)
    assert JobStore(control.database).get(job.job_id) == job
    flags.write(control.database, "other", True, "ann")  # contacts of another account are none of its own
    assert refused(requests.trigger, control, "other", triggered_by="ann") == ("contacts_not_migrated", 422)


def test_the_contact_guard_is_answered_by_the_indexes_alone(control: Control) -> None:
    database = control.database
    database["contacts"].insert_many([{"company_sso_id": ACCOUNT, "crm_data": {"id": 10**6 + n}} for n in range(2_000)])
    database["contacts"].insert_many([{"company_sso_id": "b", "crm_data": {"id": n}} for n in range(2_000)])
    database["crm_contact_id_map"].insert_many(
        [{"company_sso_id": ACCOUNT, "crm_person_id": str(2 * 10**6 + n), "customer_id": "c"} for n in range(2_000)]
    )
    ids = [str(n) for n in (*range(10**6, 10**6 + 10), *range(2 * 10**6, 2 * 10**6 + 5), 7)]
    assert coverage.known_persons(database, ACCOUNT, ids) == set(ids) - {"7"}
    for index, found in ((CONTACT_BY_CRM_ID, 10), (CONTACT_ID_MAP_UNIQUE, 5)):
        query, projection = coverage.look_up(index, ACCOUNT, ids)
        command = {"find": index.collection, "filter": query, "projection": projection, "hint": index.name}
        explained = database.command("explain", command, verbosity="executionStats")["executionStats"]
        assert explained["nReturned"] == found
        assert explained["totalDocsExamined"] == 0
        assert explained["totalKeysExamined"] <= 4 * len(ids)


def test_a_large_source_is_sampled_from_end_to_end_and_says_so(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, mapping = control.connections.crm_audit_database_url, load(MAPPING)
    whole = coverage.persons_in_scope(dsn, mapping, ACCOUNT)
    assert (whole.rows, whole.complete) == (326, True)
    monkeypatch.setattr(coverage, "ROWS_MAX", 100)
    part = coverage.persons_in_scope(dsn, mapping, ACCOUNT)
    assert not part.complete
    assert 100 <= part.rows < 326
    assert set(part.ids) < set(whole.ids)
    assert coverage.measure(control.database, dsn, mapping, ACCOUNT).as_dict()["sampled"] is True


def test_fifty_at_once_make_one_job(control: Control, mongodb_url: str) -> None:
    ready(control)
    clients: list[Any] = [pymongo.MongoClient(mongodb_url, tz_aware=True) for _ in range(10)]
    planes = [Control(client[control.database.name], control.connections, MAPPING) for client in clients]
    outcomes: list[str] = []
    start = threading.Barrier(50)

    def trigger(number: int) -> None:
        start.wait()
        try:
            requests.trigger(planes[number % 10], ACCOUNT, triggered_by=f"user {number}")
            outcomes.append("made")
        except RequestRefusedError as error:
            outcomes.append(error.resp_code.value)

    at_once(50, trigger)
    for client in clients:
        client.close()
    assert Counter(outcomes) == {"made": 1, "JOB_ALREADY_RUNNING": 49}
    assert control.database["crm_activity_log_migration_jobs"].count_documents({}) == 1
    assert Counter(outcome for _, _, outcome in log(control)) == {"ok": 2, "JOB_ALREADY_RUNNING": 49}


def test_a_request_that_has_waited_through_a_whole_job_makes_no_second_one(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(control)
    measure = coverage.measure

    def slow(*args: Any, **kwargs: Any) -> guards.Coverage:
        # Meanwhile another process's request is granted, and its job runs to its end.
        monkeypatch.setattr(coverage, "measure", measure)
        other = requests.trigger(Control(control.database, control.connections, MAPPING), ACCOUNT, triggered_by="bob")
        JobStore(control.database).transition(other.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
        return measure(*args, **kwargs)

    monkeypatch.setattr(coverage, "measure", slow)
    assert refused(requests.trigger, control, ACCOUNT, triggered_by="ann") == ("ALREADY_COMPLETED", 409)
    assert len(JobStore(control.database).jobs()) == 1


def test_a_job_is_halted_resumed_and_rolled_back_and_refuses_what_its_state_forbids(control: Control) -> None:
    ready(control)
    store = JobStore(control.database)
    for call in (requests.halt, requests.resume, requests.rerun, requests.rollback):
        assert refused(call, control, ACCOUNT, by="ann") == ("JOB_NOT_FOUND", 404)
    job = requests.trigger(control, ACCOUNT, triggered_by="ann")
    for call in (requests.resume, requests.rerun, requests.rollback):
        assert refused(call, control, ACCOUNT, by="ann") == ("JOB_ALREADY_RUNNING", 409)
    running = store.claim(job.job_id, "runner 1")
    assert running is not None
    halted = requests.halt(control, ACCOUNT, by="ann", reason="the CRM is slow")
    assert (halted.status, halted.error, halted.owner) == (JobStatus.HALTED, "the CRM is slow", "runner 1")
    assert refused(requests.halt, control, ACCOUNT, by="ann") == ("ILLEGAL_TRANSITION", 409)
    assert refused(requests.trigger, control, ACCOUNT, triggered_by="ann") == ("ILLEGAL_TRANSITION", 409)
    resumed = requests.resume(control, ACCOUNT, by="bob")
    assert (resumed.status, resumed.owner) == (JobStatus.IN_PROGRESS, "runner 1")  # it may have noticed nothing yet
    store.release(running)
    assert store.claim_next("runner 2") is not None
    requests.halt(control, ACCOUNT, by="ann")
    store.release(store.get(job.job_id) or job)
    logs = control.database["activity_logs"]
    ours = {"company_sso_id": ACCOUNT, "source_tag": "crm_migration"}
    logs.insert_many([{**ours, "external_id": f"crm_audit:{number}"} for number in range(7)])
    logs.insert_one({"company_sso_id": ACCOUNT, "external_id": "live:1"})
    seen: list[int] = []
    assert requests.rollback(control, ACCOUNT, by="ann", on_batch=seen.append, reason="a mistake") == 7
    assert seen == [7]
    assert logs.count_documents({}) == 1
    rolled_back = store.get(job.job_id)
    assert rolled_back.status is JobStatus.ROLLED_BACK
    assert (rolled_back.rollback["removed"], rolled_back.rollback["remaining"], rolled_back.rollback["by"]) == (
        7, 0, "ann",
    )  # fmt: skip
    assert rolled_back.rollback["finished_at"] is not None
    assert requests.rollback(control, ACCOUNT, by="ann") == 0
    for call in (requests.resume, requests.rerun):
        assert refused(call, control, ACCOUNT, by="ann") == ("ILLEGAL_TRANSITION", 409)
    following = requests.trigger(control, ACCOUNT, triggered_by="ann")
    assert following.job_id != job.job_id
    done = [entry for entry in log(control) if entry[2] in ("ok", "begun")]
    assert done[::-1] == [
        ("ann", "flag", "ok"), ("ann", "trigger", "ok"), ("ann", "halt", "ok"), ("bob", "resume", "ok"),
        ("ann", "halt", "ok"), ("ann", "rollback", "begun"), ("ann", "rollback", "ok"),
        ("ann", "rollback", "begun"), ("ann", "rollback", "ok"), ("ann", "trigger", "ok"),
    ]  # fmt: skip


def test_an_interrupted_roll_back_ends_with_the_number_of_the_whole(control: Control) -> None:
    ready(control)
    store = JobStore(control.database)
    job = requests.trigger(control, ACCOUNT, triggered_by="ann")
    requests.halt(control, ACCOUNT, by="ann")
    ours = {"company_sso_id": ACCOUNT, "source_tag": "crm_migration"}
    control.database["activity_logs"].insert_many([{**ours, "external_id": f"crm_audit:{n}"} for n in range(12)])
    real = documents.rollback

    class Killed(BaseException):
        pass

    def killed(removed: int) -> None:
        raise Killed(removed)

    def in_fives(*args: Any, **kwargs: Any) -> int:
        return real(*args, **kwargs, batch_documents=5)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(documents, "rollback", in_fives)
        with pytest.raises(Killed):
            requests.rollback(control, ACCOUNT, by="ann", on_batch=killed)
        seen: list[int] = []
        assert requests.rollback(control, ACCOUNT, by="bob", on_batch=seen.append) == 12
    assert seen == [10, 12]
    assert requests.rollback(control, ACCOUNT, by="bob") == 0
    # A number that a server could not send is shown by the command line, once.
    control.database["crm_activity_log_migration_jobs"].update_one({}, {"$set": {"rollback.unanswered": True}})
    assert [requests.rollback(control, ACCOUNT, by="bob") for _ in range(2)] == [12, 0]
    rolled_back = store.get(job.job_id)
    assert (rolled_back.rollback["removed"], rolled_back.rollback["remaining"], rolled_back.documents) == (12, 0, 0)


def test_a_raised_failure_bound_needs_a_reason_and_is_in_the_audit_log(control: Control) -> None:
    ready(control)
    requests.trigger(control, ACCOUNT, triggered_by="ann")
    requests.halt(control, ACCOUNT, by="ann")
    for bound, reason in ((0.5, " "), (0.1, "why"), (1.5, "why"), (float("nan"), "why")):
        with pytest.raises(BadInputError):
            requests.resume(control, ACCOUNT, by="ann", failure_bound=bound, reason=reason)
    assert requests.resume(control, ACCOUNT, by="ann", failure_bound=0.5, reason="known rows").failure_bound == 0.5
    entry = audit_log.entries(control.database, ACCOUNT, 1)[0]
    assert (entry.action, entry.detail["failure_bound"], entry.detail["reason"]) == ("resume", 0.5, "known rows")


def test_a_roll_back_waits_for_the_halted_runner_to_end_its_processes(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(control)
    store = JobStore(control.database)
    job = store.claim(requests.trigger(control, ACCOUNT, triggered_by="ann").job_id, "runner 1")
    assert job is not None
    requests.halt(control, ACCOUNT, by="ann")
    monkeypatch.setattr(operations, "STOPPING_MAX_S", 0.3)
    assert refused(requests.rollback, control, ACCOUNT, by="ann") == ("JOB_ALREADY_RUNNING", 409)
    assert (store.get(job.job_id) or job).status is JobStatus.HALTED
    monkeypatch.setattr(operations, "STOPPING_MAX_S", 30.0)
    removed: list[int] = []
    waiting = threading.Thread(target=lambda: removed.append(requests.rollback(control, ACCOUNT, by="ann")))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    store.release(job)
    waiting.join(30)
    assert removed == [0]


def test_of_a_kind_an_account_has_one_task_and_a_silent_runner_loses_it(control: Control) -> None:
    store = TaskStore(control.database)
    job = requests.trigger(ready(control), ACCOUNT, triggered_by="ann")
    assert refused(requests.request_task, control, ACCOUNT, TaskKind.VERIFY, by="ann") == ("JOB_ALREADY_RUNNING", 409)
    preflight = requests.request_task(control, ACCOUNT, TaskKind.PREFLIGHT, by="ann", request_id="r-2")
    again = refused(requests.request_task, control, ACCOUNT, TaskKind.PREFLIGHT, by="ann")
    assert again == ("TASK_ALREADY_QUEUED", 409)
    JobStore(control.database).transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED)
    verify = requests.request_task(control, ACCOUNT, TaskKind.VERIFY, by="bob", arguments={})
    first = store.claim_next("runner 1", 60)
    assert first is not None
    assert (first.task_id, first.status, first.attempts) == (preflight.task_id, TaskStatus.RUNNING, 1)
    second = store.claim_next("runner 1", -1)
    assert second is not None
    assert second.task_id == verify.task_id
    taken_over = store.claim_next("runner 2", 60)
    assert taken_over is not None
    assert (taken_over.task_id, taken_over.attempts) == (verify.task_id, 2)
    for call in (lambda: store.renew(second, 60), lambda: store.finish(second, {})):
        with pytest.raises(TaskLostError):
            call()
    store.renew(taken_over, 60, {"done": 1, "total": 2, "text": "$dollar"})
    assert (store.get(verify.task_id) or second).progress == {"done": 1, "total": 2, "text": "$dollar"}
    store.finish(taken_over, {"equal": True})
    done = store.get(verify.task_id)
    assert (done.status, done.result, done.error) == (TaskStatus.DONE, {"equal": True}, None)
    store.give_back(first)
    given_back = store.get(preflight.task_id)
    assert (given_back.status, given_back.attempts) == (TaskStatus.QUEUED, 0)
    for _ in range(3):
        assert store.claim_next("runner 3", -1) is not None
    assert store.claim_next("runner 3", -1) is None  # three runners have died of it
    failed = store.get(preflight.task_id)
    assert failed.status is TaskStatus.FAILED
    assert "3 runners" in (failed.error or "")
    assert [task.task_id for task in store.tasks(ACCOUNT)] == [verify.task_id, preflight.task_id]
    assert requests.request_task(control, ACCOUNT, TaskKind.PREFLIGHT, by="ann").status is TaskStatus.QUEUED
