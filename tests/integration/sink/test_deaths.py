"""Sinks that are killed, frozen or moved at any effect: the collection and the counts are those of a quiet run."""

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.records import Record
from schemas.vocabulary import ExitCode
from sink.effects import Effect
from sink.progress import RunTotals
from tests.fixtures.faults import Faults
from tests.integration.sink.conftest import Account
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services

ROWS = 300
WORKER = {"CRM_REPLAY_SINK_INSTANCE_ID": "w", "CRM_REPLAY_SINK_BATCH_RECORDS": "50", "CRM_REPLAY_SINK_LINGER_MS": "20"}


def outcomes(account: Account, first: int, last: int) -> list[Record | bytes]:
    """Of ten rows seven are logs, one of them a duplicate; two are skipped, one is a dead letter."""

    def outcome(i: int) -> Record:
        if i % 10 in (3, 4):
            return account.skip(i)
        return account.dead_letter(i) if i % 10 == 5 else account.log(i)

    return [outcome(i) for i in range(first, last + 1)]


def prepare(account: Account) -> None:
    """Some documents are there from an earlier run; one outcome per partition is poison.

    An older release has written the first outcomes, each as a record of its own.
    """
    account.logs.insert_many([account.document(i) for i in range(10, ROWS + 1, 10)])
    for partition in range(account.job.partitions):
        mine = [
            record for i in range(1 + partition, ROWS + 1, account.job.partitions) for record in outcomes(account, i, i)
        ]
        account.publish(mine[:20], partition)
        account.publish([*mine[20:31], b"poison", *mine[31:], account.end()], partition, together=7)


def check(account: Account) -> None:
    totals = account.totals
    tenth = ROWS // 10
    assert totals.migrated == 6 * tenth
    assert totals.skipped == {"contact_not_found": 2 * tenth, "duplicate_external_id": tenth}
    assert totals.failed == {"undecodable_changes": tenth}
    assert totals.foreign == {"undecodable_record": account.job.partitions}
    assert totals.partitions_ended == account.job.partitions
    expected = [f"crm_audit:{i}" for i in range(1, ROWS + 1) if i % 10 not in (3, 4, 5)]
    assert account.external_ids() == sorted(expected)
    letters = {(d.run, d.source_topic, d.source_partition, d.source_offset): d for d in account.dead_letters()}
    assert len(letters) == tenth + account.job.partitions


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_effect_loses_and_doubles_nothing(
    account: Account, when: str, effect: str, number: int, record_faults: Faults
) -> None:
    prepare(account)
    killed = account.start_process(f"{when}:{effect}:{number}", **WORKER)
    assert killed.wait(30) == -signal.SIGKILL
    account.run_sink(sink_instance_id="w", sink_batch_records=70)  # batches need not be cut the same way again
    check(account)
    record_faults(1, f"sink killed {when} {effect} {number}")


def test_one_death_after_another_loses_and_doubles_nothing(make_account: Callable[..., Account]) -> None:
    account = make_account(partitions=3)
    prepare(account)
    for effect, number in (("save_progress", 1), ("write_logs", 2), ("commit_offsets", 1), ("deliver_dead_letters", 2)):
        process = account.start_process(f"after:{effect}:{number}", **{**WORKER, "CRM_REPLAY_SINK_BATCH_RECORDS": "13"})
        assert process.wait(30) == -signal.SIGKILL
    assert account.start_process(**WORKER).wait(60) == 0
    check(account)


def test_two_sinks_share_the_partitions(make_account: Callable[..., Account]) -> None:
    account = make_account(partitions=4)
    sinks = [account.start_process(CRM_REPLAY_SINK_BATCH_RECORDS="20") for _ in range(2)]
    prepare(account)
    assert [sink.wait(60) for sink in sinks] == [0, 0]
    check(account)


@pytest.mark.parametrize("effect", [Effect.WRITE_LOGS, Effect.SAVE_PROGRESS, Effect.DELIVER_DEAD_LETTERS])
def test_a_zombie_that_wakes_after_its_partitions_moved_counts_nothing_twice(account: Account, effect: Effect) -> None:
    prepare(account)
    zombie = account.start_process(f"freeze:{effect}:1", **{**WORKER, "CRM_REPLAY_SINK_INSTANCE_ID": ""})
    wait_until(lambda: is_stopped(zombie), "the sink to freeze")
    # The group waits for the frozen member's session to end, then its partitions are another sink's.
    account.run_sink(sink_batch_records=30)
    check(account)
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(60) == 0
    check(account)


@pytest.mark.parametrize("effect", [Effect.SAVE_PROGRESS, Effect.COMMIT_OFFSETS])
def test_a_sink_that_hangs_ends_by_itself_and_the_next_one_does_its_work(account: Account, effect: Effect) -> None:
    prepare(account)
    deaf = account.start_process(f"hang:{effect}:2", **{**WORKER, "CRM_REPLAY_STALLED_AFTER_S": "1"})
    assert deaf.wait(60) == ExitCode.STALLED
    assert account.start_process(**WORKER).wait(60) == 0
    check(account)


def test_a_zombie_that_wakes_in_the_middle_counts_nothing_twice(account: Account) -> None:
    """The other sink has taken some of the frozen sink's batch, in other portions, and goes on after the thaw."""
    account.logs.insert_many([account.document(i) for i in range(10, ROWS + 1, 10)])
    account.publish([*outcomes(account, 1, 20), b"poison", *outcomes(account, 21, 120)])
    zombie = account.start_process("freeze:write_logs:1", **{**WORKER, "CRM_REPLAY_SINK_INSTANCE_ID": ""})
    wait_until(lambda: is_stopped(zombie), "the sink to freeze")
    other = account.start_process(CRM_REPLAY_SINK_BATCH_RECORDS="7")
    wait_until(lambda: account.totals.accounted >= 14, "the other sink to begin")
    zombie.send_signal(signal.SIGCONT)
    account.publish([*outcomes(account, 121, ROWS), account.end()], together=9)
    assert [zombie.wait(60), other.wait(60)] == [0, 0]
    check(account)


def is_stopped(process: Any) -> bool:
    """Return whether the kernel holds the process (state T)."""
    assert process.poll() is None
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def moved_on(account: Account, before: RunTotals) -> bool:
    now = account.totals
    return (now.accounted, now.partitions_ended) != (before.accounted, before.partitions_ended)


@pytest.mark.slow
def test_random_deaths_of_three_sinks_under_redelivery_change_nothing(
    make_account: Callable[..., Account], record_faults: Faults
) -> None:
    """Sinks are killed, ended and frozen at random while processors repeat stretches of what they did."""
    chance = random.Random(4)
    account = make_account(partitions=4)
    rows = 6000

    def outcome(i: int) -> Record:
        if i % 10 in (3, 4):
            return account.skip(i)
        return account.dead_letter(i) if i % 100 == 5 else account.log(i)

    account.logs.insert_many([account.document(i) for i in range(10, rows + 1, 10)])
    for partition in range(4):
        mine = [outcome(i) for i in range(1 + partition, rows + 1, 4)]
        published: list[Record | bytes] = [b"poison"]
        at = 0
        while at < len(mine):
            end = min(len(mine), at + chance.randint(1, 300))
            account.publish([*published, *mine[at:end]], partition, together=chance.randint(1, 30))
            published = []
            at = end if chance.random() < 0.7 else chance.randint(at, end)
        account.publish([account.end()], partition)

    small = {"CRM_REPLAY_SINK_BATCH_RECORDS": "5", "CRM_REPLAY_SINK_LINGER_MS": "10"}
    sinks: list[Any] = []
    faults = 0
    while faults < 12 and account.totals.partitions_ended < account.job.partitions:
        sinks = [sink for sink in sinks if sink.poll() is None]
        sinks += [account.start_process(**small) for _ in range(3 - len(sinks))]
        before = account.totals
        wait_until(partial(moved_on, account, before), "one more batch to be counted")
        victim = chance.choice(sinks)
        fault = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP))
        victim.send_signal(fault)
        faults += 1
        if fault == signal.SIGSTOP:
            sinks.remove(victim)
        else:
            victim.wait(30)
    for process in account.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # the frozen ones are zombies by now
    account.start_process(**small)
    for process in account.processes:
        process.wait(120)
    assert faults >= 5

    totals = account.totals
    hundredth = rows // 100
    assert totals.migrated == 69 * hundredth
    assert totals.skipped == {"contact_not_found": 20 * hundredth, "duplicate_external_id": 10 * hundredth}
    assert totals.failed == {"undecodable_changes": hundredth}
    assert (totals.foreign, totals.partitions_ended) == ({"undecodable_record": 4}, 4)
    expected = [f"crm_audit:{i}" for i in range(1, rows + 1) if i % 10 not in (3, 4) and i % 100 != 5]
    assert account.external_ids() == sorted(expected)
    letters = {(d.source_topic, d.source_partition, d.source_offset) for d in account.dead_letters()}
    assert len(letters) == hundredth + 4
    record_faults(faults, "sinks killed, ended or frozen")
