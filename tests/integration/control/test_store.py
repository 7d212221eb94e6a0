"""Job documents on a real MongoDB."""

import contextlib
import datetime as dt
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from ops.control import migrations
from ops.control.jobs import NEVER, IllegalTransitionError, Job, Ledger
from ops.control.store import JobAlreadyRunningError, JobChangedError, JobStore, LeaseLostError, NewJob
from schemas.vocabulary import JobStatus
from sink.counting import PartitionProgress
from sink.progress import Progress, RunTotals

pytestmark = pytest.mark.services
CUTOFF = dt.datetime(2023, 4, 5, 6, 7, 8, 123456, tzinfo=dt.UTC)
NEW = NewJob(
    company_sso_id="a",
    partitions=3,
    top_audit_id=2**40,
    snapshot_xmax=2**35,
    cutoff=CUTOFF,
    mapping_path="m.yaml",
    mapping_sha256="ab",
    records_total=1000,
    triggered_by="a test",
)


@pytest.fixture
def store(mongo_database: Any) -> JobStore:
    migrations.up(mongo_database)
    return JobStore(mongo_database)


def test_a_job_comes_back_as_it_was_stored_to_the_microsecond(store: JobStore) -> None:
    job = store.create(NEW, begin_offsets=(0, 5, 9))
    assert store.get(job.job_id) == job
    assert store.latest("a") == job
    assert job.status is JobStatus.IN_PROGRESS
    told = job.replay_job()
    assert (told.cutoff, told.begin_offsets, told.top_audit_id, told.run) == (CUTOFF, (0, 5, 9), 2**40, job.run)
    assert told.topics.outcomes == "crm.outcomes.a"


def test_an_account_has_one_job_in_progress(store: JobStore) -> None:
    first = store.create(NEW)
    with pytest.raises(JobAlreadyRunningError, match=first.job_id):
        store.create(NEW)
    other = store.create(replace(NEW, company_sso_id="b"))
    assert other.run > first.run
    store.transition(first.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED, "x")
    second = store.create(NEW)
    with pytest.raises(JobAlreadyRunningError, match=second.job_id):
        store.transition(first.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS)
    assert store.latest("a") == second
    assert [job.job_id for job in store.jobs("a")] == [second.job_id, first.job_id]
    assert len(store.jobs()) == 3


def test_of_many_at_once_one_creates_the_job(store: JobStore) -> None:
    made: list[Job] = []
    start = threading.Barrier(8)

    def create() -> None:
        start.wait()
        with contextlib.suppress(JobAlreadyRunningError):
            made.append(store.create(NEW))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_runs_rise_and_are_unique_also_when_drawn_at_once(store: JobStore) -> None:
    runs: list[int] = []

    def draw() -> None:
        runs.extend(store.next_run() for _ in range(25))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(runs)) == 100
    assert store.next_run() > max(runs)
    assert 1_700_000_000 < min(runs) < max(runs) < 2**31


def test_a_status_changes_only_from_what_it_is_taken_for(store: JobStore) -> None:
    job = store.create(NEW)
    halted = store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED, "too many failures")
    assert (halted.status, halted.error) == (JobStatus.HALTED, "too many failures")
    with pytest.raises(JobChangedError, match="is halted, not in_progress"):
        store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    with pytest.raises(IllegalTransitionError, match="resume it"):
        store.transition(job.job_id, JobStatus.HALTED, JobStatus.COMPLETED)
    resumed = store.transition(job.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS)
    assert (resumed.error, resumed.finished_at, resumed.run) == (None, None, job.run)
    done = store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    assert done.finished_at is not None
    gone = store.transition(job.job_id, JobStatus.COMPLETED, JobStatus.ROLLED_BACK)
    assert store.get(job.job_id) == gone
    with pytest.raises(IllegalTransitionError, match="new job"):
        store.rerun(job.job_id, NEW)
    with pytest.raises(JobChangedError, match="no job"):
        store.transition("nobody", JobStatus.HALTED, JobStatus.IN_PROGRESS)


def test_a_resume_notes_what_had_failed_until_then(store: JobStore, mongo_database: Any) -> None:
    job = store.create(NEW)
    progress = Progress(mongo_database["crm_replay_progress"], job.job_id, job.run)
    empty = progress.load([0])[0]
    counted = replace(empty, version=1, migrated=40, failed={"x": 50}, foreign={"y": 10})
    assert progress.save({0: counted})
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED)
    store.transition(job.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS)
    document = mongo_database["crm_activity_log_migration_jobs"].find_one({"_id": job.job_id})
    assert document["failure_baseline"] == {"failed": 60, "seen": 100}


def test_a_rerun_has_the_same_job_the_next_run_and_counts_of_its_own(store: JobStore) -> None:
    job = store.create(NEW)
    job = store.save_totals(job, RunTotals(migrated=900, skipped={"x": 100}), accuracy_pct=100.0)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    again = store.rerun(job.job_id, replace(NEW, records_total=1200), begin_offsets=(7, 7, 7))
    assert (again.job_id, again.status) == (job.job_id, JobStatus.IN_PROGRESS)
    assert again.run > job.run
    assert (again.records_migrated, again.accuracy_pct, again.records_total) == (0, None, 1200)
    with pytest.raises(JobChangedError, match="no longer at run"):
        store.save_totals(job, RunTotals(migrated=1))
    with pytest.raises(IllegalTransitionError, match="already"):
        store.rerun(job.job_id, NEW)


def test_progress_is_summed_over_partitions_of_the_present_run_only(store: JobStore, mongo_database: Any) -> None:
    job = store.create(NEW)
    collection = mongo_database["crm_replay_progress"]
    for run, partition, state in (
        (job.run, 0, PartitionProgress(1, 9, 9, {0: 50, 1: 7}, 10, {"a": 1}, {"c": 1}, {}, True)),
        (job.run, 1, PartitionProgress(1, 9, 9, {0: 60}, 5, {"a": 2, "b": 3}, {}, {"d": 4}, False)),
        (job.run - 1, 0, PartitionProgress(1, 9, 9, {0: 999}, 1000, {}, {}, {}, True)),
    ):
        progress = Progress(collection, job.job_id, run)
        progress.load([partition])
        assert progress.save({partition: state})
    totals = store.aggregate_progress(job)
    assert (totals.migrated, totals.skipped, totals.failed, totals.foreign) == (
        15,
        {"a": 3, "b": 3},
        {"c": 1},
        {"d": 4},
    )
    assert (totals.partitions_ended, totals.last_audit_id, totals.accounted) == (1, 60, 22)
    saved = store.save_totals(job, totals)
    assert (saved.records_migrated, saved.records_skipped, saved.records_failed, saved.records_foreign) == (15, 6, 1, 4)
    assert (saved.skips_by_reason, saved.progress_pct, saved.last_audit_id) == ({"a": 3, "b": 3}, 2.2, 60)


def test_a_run_that_nobody_has_counted_for_is_all_zero(store: JobStore) -> None:
    assert store.aggregate_progress(store.create(NEW)) == RunTotals()


def test_progress_is_saved_only_over_the_version_it_was_made_from(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    first, second = (Progress(mongo_database["crm_replay_progress"], "j", 1) for _ in range(2))
    mine, theirs = first.load([0, 1]), second.load([0, 1])
    assert mine == theirs == {0: PartitionProgress(), 1: PartitionProgress()}
    assert second.save({0: replace(theirs[0], version=1, migrated=5)})
    assert not first.save({p: replace(state, version=1, migrated=7) for p, state in mine.items()})
    stored = first.load([0, 1])
    assert (stored[0].migrated, stored[1].migrated) == (5, 7)


def test_the_beginning_of_a_run_is_noted_later(store: JobStore) -> None:
    job = store.create(NEW)
    job = store.set_begin_offsets(job, (1, 2, 3, 4), partitions=4)
    job = store.set_records_total(job, 5)
    assert store.get(job.job_id) == job
    assert (job.begin_offsets, job.partitions, job.records_total) == ((1, 2, 3, 4), 4, 5)


def test_a_job_has_one_owner_until_it_is_released(store: JobStore) -> None:
    job = store.create(NEW, owner="first")
    assert (job.owner, job.fence) == ("first", 1)
    assert store.claim(job.job_id, "second") is None
    assert store.claim_next("second") is None
    store.renew(job)
    store.release(job)
    claimed = store.claim_next("second")
    assert claimed is not None
    assert (claimed.job_id, claimed.owner, claimed.fence) == (job.job_id, "second", 2)
    assert claimed.lease_until > claimed.heartbeat_at >= job.heartbeat_at
    with pytest.raises(LeaseLostError, match="in the hands of second"):
        store.renew(job)


def test_a_lease_that_is_not_renewed_runs_out_by_the_servers_clock(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.create(NEW, owner="first")
    monkeypatch.setattr("ops.control.store.LEASE_S", 0.5)
    store.renew(job)
    deadline = time.monotonic() + 60
    while (claimed := store.claim_next("second")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert claimed.fence == 2
    with pytest.raises(LeaseLostError):
        store.renew(job)


def test_what_a_former_owner_says_counts_no_more(store: JobStore, mongo_database: Any) -> None:
    former = store.create(NEW, owner="first")
    mongo_database["crm_activity_log_migration_jobs"].update_one({}, {"$set": {"lease_until": NEVER}})
    present = store.claim(former.job_id, "second")
    assert present is not None
    before = store.get(former.job_id)
    for change in (
        lambda: store.save_totals(former, RunTotals(migrated=1)),
        lambda: store.prepare(former, replace(NEW, top_audit_id=1)),
        lambda: store.plan_stretch(former, (1,), (2,), 1),
        lambda: store.set_begin_offsets(former, (1,)),
        lambda: store.renew(former),
        lambda: store.transition(former.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED, fence=former.fence),
    ):
        with pytest.raises(LeaseLostError):
            change()
    store.release(former)
    assert store.get(former.job_id) == before
    assert store.save_totals(present, RunTotals(migrated=1)).records_migrated == 1


def test_a_job_given_back_with_a_pause_is_not_claimed_by_chance_but_by_name(store: JobStore) -> None:
    job = store.create(NEW, owner="first")
    store.release(job, pause_s=600, attempts=2, error="Kafka does not answer")
    assert store.claim_next("second") is None
    waiting = store.get(job.job_id)
    assert waiting is not None
    assert (waiting.owner, waiting.attempts, waiting.error) == (None, 2, "Kafka does not answer")
    assert waiting.waiting(dt.datetime.now(dt.UTC))
    claimed = store.claim(job.job_id, "second")
    assert claimed is not None
    assert not claimed.waiting(dt.datetime.now(dt.UTC))


def test_the_job_that_has_waited_longest_is_claimed_first_and_each_by_one(store: JobStore) -> None:
    jobs = [store.create(replace(NEW, company_sso_id=f"account {number}")) for number in range(8)]
    assert store.claim_next("x", leave_out=[job.job_id for job in jobs[:3]]) is not None
    claimed: list[str] = []
    start = threading.Barrier(4)

    def claim(owner: str) -> None:
        start.wait()
        while (job := store.claim_next(owner)) is not None:
            claimed.append(job.job_id)

    threads = [threading.Thread(target=claim, args=(f"runner {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(job.job_id for job in jobs if job is not jobs[3])


def test_of_requests_that_have_seen_the_same_job_one_follows_it_even_when_that_is_over(store: JobStore) -> None:
    first = store.create(replace(NEW, follows=""))
    store.transition(first.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    with pytest.raises(JobChangedError, match="another request"):
        store.create(replace(NEW, follows=""))
    assert store.create(replace(NEW, follows=first.job_id)).status is JobStatus.IN_PROGRESS


@pytest.mark.parametrize("ended", [JobStatus.FAILED, JobStatus.HALTED])
def test_a_job_whose_copy_was_proved_is_completed_with_the_proofs_counts(store: JobStore, ended: JobStatus) -> None:
    job = store.create(NEW, owner="runner")
    ledger = Ledger(900, 800, {"contact_not_found": 60, "duplicate_external_id": 30}, 10, documents=830)
    with pytest.raises(JobChangedError):
        store.complete_proved(replace(job, status=ended), ledger, {})  # in progress, and a runner's
    halted = store.transition(job.job_id, JobStatus.IN_PROGRESS, ended, "3 of 1000 rows are missing")
    with pytest.raises(LeaseLostError):
        store.complete_proved(halted, ledger, {})  # its runner is ending its processes
    store.release(job)
    store.complete_proved(halted, ledger, {"write_refused": 10})
    done = store.get(job.job_id)
    assert done is not None
    assert (done.status, done.error, done.progress_pct) == (JobStatus.COMPLETED, None, 100.0)
    assert (done.records_total, done.records_migrated, done.records_skipped, done.records_failed) == (900, 800, 90, 10)
    assert (done.skips_by_reason, done.failures_by_cause) == (ledger.skipped, {"write_refused": 10})
    assert done.proved_at == done.finished_at is not None
    with pytest.raises(JobChangedError):
        store.complete_proved(halted, ledger, {})
    assert store.rerun(job.job_id, NEW).proved_at is None  # its counts are its own again


def test_which_rows_have_a_document_is_known_unless_an_older_release_has_counted(
    store: JobStore, mongo_database: Any
) -> None:
    job = store.create(NEW)
    assert store.identities(job) == {}
    progress = Progress(mongo_database["crm_replay_progress"], job.job_id, job.run)
    progress.load([0, 1])
    progress.save({0: PartitionProgress(1, migrated=3, with_document={0: (2, 2**62), 3: (1, 5)})})
    progress.save({1: PartitionProgress(1, skipped={"duplicate_external_id": 1}, with_document={0: (1, 2**62)})})
    assert store.identities(job) == {0: (3, 0), 3: (1, 5)}
    # A sink of an older release, beside ours, counts and leaves the figures as they are.
    mongo_database["crm_replay_progress"].update_one({"partition": 1}, {"$inc": {"version": 1, "migrated": 1}})
    assert store.identities(job) is None
    (after,) = progress.load([1]).values()
    assert after.with_document is None
    assert progress.save({1: replace(after, version=after.version + 1)})
    assert store.identities(job) is None
