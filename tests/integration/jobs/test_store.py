"""Job documents on a real MongoDB."""

import contextlib
import datetime as dt
import threading
from dataclasses import replace
from typing import Any

import pytest

from ops.jobs import migrations, operations
from ops.jobs.jobs import NEVER, IllegalTransitionError, Job, Ledger
from ops.jobs.store import JobAlreadyRunningError, JobChangedError, JobStore, LeaseLostError, NewJob
from producer.checkpoint import Checkpoint
from producer.cursor import EARLIEST, IdRange
from schemas.process.connections import Connections
from schemas.vocabulary import JobStatus
from sink.counting import PartitionProgress
from sink.job_counts import Move
from sink.progress import Progress, RunTotals
from tests.support.waiting import at_once, wait_until

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
    told = store.create(replace(NEW, company_sso_id="b", date_range_start=CUTOFF), begin_offsets=(0, 5, 9)).replay_job()
    assert (told.cutoff, told.begin_offsets, told.top_audit_id, told.run) == (CUTOFF, (0, 5, 9), 2**40, job.run + 1)
    assert told.topics.outcomes == "crm.outcomes.b"
    assert job.replay_job().cutoff == EARLIEST  # without a date range, rows created before the oldest one that was seen


@pytest.mark.parametrize("begin", ["created", "waiting", "rerun"])
def test_rows_of_types_that_are_not_read_are_in_the_job_whatever_the_types_are_called(
    store: JobStore, begin: str
) -> None:
    by_type = {"Crm::Widget": 3, "$a.b": 2, "": 1, "a.$b": 4}
    new = replace(NEW, out_of_scope_by_type=by_type)
    if begin == "created":
        job = store.create(new)
    elif begin == "waiting":
        job = store.prepare(store.create(replace(NEW, prepared=False), owner="x"), new)
    else:
        first = store.create(NEW)
        store.transition(first.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
        job = store.rerun(first.job_id, new)
    assert job.out_of_scope_by_type == by_type
    assert store.get(job.job_id) == job
    assert store.note_out_of_scope(job, {"$x": 1}).out_of_scope_by_type == {"$x": 1}


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

    at_once(8, lambda _: create())
    assert len(made) == 1


def test_runs_rise_and_are_unique_also_when_drawn_at_once(store: JobStore) -> None:
    runs: list[int] = []

    def draw() -> None:
        runs.extend(store.next_run() for _ in range(25))

    at_once(4, lambda _: draw())
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


def count(database: Any, job: Job, **counts: Any) -> None:
    """Have the sinks' counts of a job's run be these."""
    progress = Progress(database["crm_replay_progress"], job.job_id, job.run)
    present = progress.load([0])[0]
    assert progress.save({0: replace(present, version=present.version + 1, **counts)})


def test_a_raised_failure_bound_is_that_of_one_resume(store: JobStore) -> None:
    job = store.create(NEW)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED)
    assert store.transition(job.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS, failure_bound=0.5).failure_bound == 0.5
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED)
    assert store.transition(job.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS).failure_bound is None
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED)
    store.transition(job.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS, failure_bound=0.5)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    assert store.rerun(job.job_id, NEW).failure_bound is None


def test_repaired_rows_move_to_their_new_bins_once_however_often_they_are_retried(
    store: JobStore, mongo_database: Any
) -> None:
    job = store.create(NEW)
    count(mongo_database, job, migrated=980, skipped={"x": 10}, failed={"a": 6, "b": 4})
    job = store.save_totals(job, store.aggregate_progress(job), accuracy_pct=98.98, documents=980)
    whole = store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    assert whole.documents == 980

    def retried(moves: dict[int, Move], documents: int) -> Job:
        partial = store.create(replace(NEW, partial=True))
        store.note_repairs(partial, whole, moves)
        store.transition(partial.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
        store.fold_repairs("a", documents)
        store.fold_repairs("a", documents)  # again changes nothing
        found = store.latest("a")
        assert found is not None
        assert found.records_migrated + found.records_skipped + found.records_failed == found.records_total == 1000
        assert (found.documents, found.progress_pct, found.status) == (documents, 100.0, JobStatus.COMPLETED)
        return found

    once = retried({1: Move("a"), 2: Move("a", "contact_not_found"), 3: Move("b")}, 982)
    assert (once.records_migrated, once.records_repaired, once.failures_by_cause) == (982, 3, {"a": 4, "b": 3})
    assert once.skips_by_reason == {"x": 10, "contact_not_found": 1}
    assert once.accuracy_pct == 99.29  # 982 of 989
    # The same row again; one that was skipped has its contact by now; and another.
    twice = retried({1: Move("a"), 2: Move("a"), 4: Move("b")}, 984)
    assert (twice.records_migrated, twice.records_repaired, twice.failures_by_cause) == (984, 4, {"a": 4, "b": 2})
    assert twice.skips_by_reason == {"x": 10}
    # A later run has counts of its own, which those repairs are no part of.
    again = store.rerun(whole.job_id, NEW)
    assert (again.records_repaired, again.records_failed, again.documents) == (0, 0, 984)


def test_an_unfinished_run_whose_place_a_replay_of_chosen_rows_has_moved_begins_again(
    store: JobStore, mongo_database: Any
) -> None:
    job = store.create(NEW, begin_offsets=(0, 0, 0))
    count(mongo_database, job, failed={"a": 600})
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED)
    assert not store.has_lost_its_place(job)
    partial = store.create(replace(NEW, partial=True))
    assert not store.has_lost_its_place(job)  # it has moved nothing yet
    store.plan_offsets(partial, (5, 5, 5), (6, 6, 6), 3)
    store.transition(partial.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED)
    assert store.has_lost_its_place(job)
    resumed = store.transition(job.job_id, JobStatus.HALTED, JobStatus.IN_PROGRESS, owner="r", failure_bound=0.5)
    again = store.begin_again(resumed, replace(NEW, prepared=False))
    assert (again.job_id, again.owner, again.fence, again.status) == (job.job_id, "r", resumed.fence, resumed.status)
    assert again.run > partial.run > job.run
    assert (again.begin_offsets, again.prepared, again.records_failed, again.failure_bound) == ((), False, 0, 0.5)
    assert not store.has_lost_its_place(again)
    with pytest.raises(JobChangedError):
        store.begin_again(resumed, NEW)


def test_a_run_that_has_ended_needs_its_place_no_more(store: JobStore, mongo_database: Any) -> None:
    job = store.create(replace(NEW, partitions=1), begin_offsets=(0,))
    count(mongo_database, job, migrated=999, ended=True)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED)
    partial = store.create(replace(NEW, partial=True))
    store.plan_offsets(partial, (5, 5, 5), (6, 6, 6), 3)
    assert not store.has_lost_its_place(job)


def test_a_roll_back_leaves_no_count_of_rows_that_are_in_no_bin(store: JobStore, mongo_database: Any) -> None:
    job = store.create(NEW)
    count(mongo_database, job, migrated=900, skipped={"x": 100})
    job = store.save_totals(job, store.aggregate_progress(job), accuracy_pct=100.0, documents=900)
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.COMPLETED)
    gone = store.transition(job.job_id, JobStatus.COMPLETED, JobStatus.ROLLED_BACK)
    assert (gone.records_migrated, gone.records_skipped, gone.skips_by_reason) == (0, 0, {})
    assert (gone.progress_pct, gone.accuracy_pct, gone.records_total) == (0.0, None, 1000)
    store.note_rollback(gone, removed=0, remaining=900, by="x")
    store.note_rollback(gone, removed=900, remaining=0, by="x", finished=True)
    present = store.get(job.job_id)
    assert (present.documents, present.records_migrated) == (0, 0)


def test_the_late_rows_are_those_of_the_second_look_whoever_has_read_them(store: JobStore, mongo_database: Any) -> None:
    job = store.create(replace(NEW, records_total=31))
    checkpoint = Checkpoint(mongo_database, job.job_id, job.run, 1)
    checkpoint.save(IdRange(0, 0, 40, 40, rows=31, gaps=((7, 9),), gaps_to=40))
    assert store.save_totals(job, RunTotals(migrated=31)).records_late == 0
    checkpoint.save(IdRange(1, 6, 8, 9, rows=1, late=True))
    Checkpoint(mongo_database, job.job_id, job.run, 2).take_over()  # leaves void ranges
    job = store.save_totals(job, RunTotals(migrated=32))
    assert (job.records_late, job.records_total, job.records_migrated, job.progress_pct) == (1, 32, 32, 100.0)


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
    assert store.get(job.job_id) == job
    assert (job.begin_offsets, job.partitions) == ((1, 2, 3, 4), 4)


def test_a_job_has_one_owner_until_it_is_released(store: JobStore) -> None:
    job = store.create(NEW, owner="first")
    assert (job.owner, job.fence) == ("first", 1)
    assert store.claim(job.job_id, "second") is None
    assert store.claim_next("second") is None
    store.renew(job)
    store.release(job)
    claimed = store.claim_next("second")
    assert (claimed.job_id, claimed.owner, claimed.fence) == (job.job_id, "second", 2)
    assert claimed.lease_until > claimed.heartbeat_at >= job.heartbeat_at
    with pytest.raises(LeaseLostError, match="owned by second"):
        store.renew(job)


def test_a_halted_job_keeps_its_reason_whatever_ends_its_runner(store: JobStore) -> None:
    job = store.create(NEW, owner="first")
    store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.HALTED, "the CRM is being migrated")
    store.release(job, attempts=1, error="the run was interrupted")
    released = store.get(job.job_id)
    assert (released.status, released.owner, released.error) == (JobStatus.HALTED, None, "the CRM is being migrated")


def test_a_lease_that_is_not_renewed_runs_out_by_the_servers_clock(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.create(NEW, owner="first")
    monkeypatch.setattr("ops.jobs.store.LEASE_S", 0.5)
    store.renew(job)
    claimed = wait_until(lambda: store.claim_next("second"), "the lease has run out")
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
        lambda: store.plan_offsets(former, (1,), (2,), 1),
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
    assert (waiting.owner, waiting.attempts, waiting.error) == (None, 2, "Kafka does not answer")
    assert waiting.waiting(dt.datetime.now(dt.UTC))
    claimed = store.claim(job.job_id, "second")
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

    at_once(4, lambda number: claim(f"runner {number}"))
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
    assert (done.status, done.error, done.progress_pct) == (JobStatus.COMPLETED, None, 100.0)
    assert (done.records_total, done.records_migrated, done.records_skipped, done.records_failed) == (900, 800, 90, 10)
    assert (done.skips_by_reason, done.failures_by_cause) == (ledger.skipped, {"write_refused": 10})
    assert (done.proof["at"], done.proof["run"]) == (done.finished_at, job.run)
    with pytest.raises(JobChangedError):
        store.complete_proved(halted, ledger, {})
    assert store.rerun(job.job_id, NEW).proof is None  # its counts are its own again


def test_a_run_without_its_end_markers_cannot_be_read_again(store: JobStore, mongo_database: Any) -> None:
    """Rows are not on its stretch, and nothing tells those of later replays behind it from its own."""
    connections = Connections()
    job = store.create(NEW, begin_offsets=(0, 0, 0))
    count(mongo_database, job, migrated=900)
    failed = store.transition(job.job_id, JobStatus.IN_PROGRESS, JobStatus.FAILED)
    what, to_do = operations.why_no_rerun(failed, store, connections) or ("", "")
    assert ("before it had published every row" in what, "resume" in to_do) == (True, True)
    proved = store.complete_proved(failed, Ledger(1000, 1000, documents=1000), {})
    what, to_do = operations.why_no_rerun(proved, store, connections) or ("", "")
    assert ("completed by verify" in what, to_do) == (True, "crm-replay run --account a")


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
