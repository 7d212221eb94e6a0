"""Replay and live feed at once: the CRM writes, contacts appear, workers are killed; every row ends up written once.

`CRM_REPLAY_SEAM_SEEDS` says how many seeds are played (default 1), `CRM_REPLAY_SEAM_SEED` which is the first.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from ops.checks.seam.check import SeamOptions, check_seam
from ops.jobs.jobs import LEASE_S
from ops.jobs.store import JobStore
from ops.local.generator import GENERATED_MAPPING, Plan, generate_crm
from ops.progress import PlainView
from producer.audits import AuditReader, Limits, connect, resolve
from producer.cursor import EARLIEST
from producer.references import find_contacts
from schemas.source.mapping import load
from schemas.source.person import person_candidates
from tests.e2e.conftest import Crm
from tests.e2e.failures import reading, workers_of
from tests.e2e.feed import Feed, feed_on
from tests.e2e.writing_crm import Journal, Writers
from tests.fixtures.faults import Faults
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

SEEDS = int(os.environ.get("CRM_REPLAY_SEAM_SEEDS", "1"))
FIRST_SEED = int(os.environ.get("CRM_REPLAY_SEAM_SEED", "1"))
AUDITS = 3_000  # there before anything starts, of two accounts
PERSONS = 40  # of those that the writers write about
CONTACTS_PER_S = 3.0
VISIBILITY_DELAY_S = 2.0  # what the feed is told; contacts are readable within `VISIBLE_WITHIN_S`
WRITING_S = 8.0
RUN_FROM_S, RUN_TO_S = 1.0, 4.0  # when the replay is triggered
LIVE_KILLS, REPLAY_KILLS = 3, 2
PATIENCE_S = 240.0  # with a machine that has other things to do


def account_of(crm: Crm) -> tuple[str, int, list[int]]:
    """Return the largest account of a generated CRM: its id, the value of its column, and some of its persons."""
    accounts = generate_crm(crm.dsn, Plan(AUDITS, 2, 7)).accounts
    account = max(accounts, key=lambda name: accounts[name])
    with closing(connect(crm.dsn)) as db:
        row = db.execute(
            "SELECT id FROM crm.accounts WHERE company_sso_id = %(account)s", {"account": account}
        ).fetchone()
        assert row is not None
        persons = db.execute(
            "SELECT id FROM crm.crm_people WHERE account_id = %(account)s ORDER BY id LIMIT %(persons)s",
            {"account": row[0], "persons": PERSONS},
        ).fetchall()
    return account, row[0], [person for (person,) in persons]


def owners(crm: Crm, account: str) -> dict[str, str]:
    """Return who has to write each row of the source that is anybody's, by external id: `replay` or `live`."""
    mapping = load(GENERATED_MAPPING)
    watermarks = {person: at for person, (at, _) in find_contacts(crm.database, account).by_person.items()}
    mapped = {*mapping.categories, *mapping.join_models}
    found = {}
    with closing(connect(crm.dsn)) as db:
        source = resolve(db, mapping, account)
        top = db.execute("SELECT max(id) FROM crm.audits").fetchone()
    assert top is not None
    with closing(AuditReader(crm.dsn, source, EARLIEST, Limits())) as reader:
        cursor = 0
        while cursor < top[0]:
            page = reader.page_after(cursor, top[0], 0, (), look_for_gaps=False)
            cursor = page.end
            for event in page.events:
                if event.auditable_type not in mapped or event.action not in ("create", "update", "destroy"):
                    continue
                person = next((p for p in person_candidates(event, mapping.person) if p in watermarks), None)
                if person is not None:
                    owner = "replay" if event.created_at < watermarks[person] else "live"
                    found[f"crm_audit:{event.audit_id}"] = owner
    return found


def documents(crm: Crm, account: str) -> dict[str, list[str]]:
    """Return who wrote the documents of each external id."""
    found: dict[str, list[str]] = {}
    for log in crm.database["activity_logs"].find({"company_sso_id": account}, {"external_id": 1, "source_tag": 1}):
        found.setdefault(log["external_id"], []).append("replay" if "source_tag" in log else "live")
    return found


class Killer:
    """Sends SIGKILL to workers of one supervisor at random moments, until it has sent enough or is told to stop."""

    def __init__(self, runner: subprocess.Popen[str], dice: random.Random, kills: int, within_s: float) -> None:
        self.killed: list[str] = []
        self._stop = threading.Event()
        moments = sorted(dice.uniform(0.5, within_s) for _ in range(kills))
        self._thread = threading.Thread(target=self._kill, args=(runner, dice, moments), daemon=True)
        self._thread.start()

    def _kill(self, runner: subprocess.Popen[str], dice: random.Random, moments: list[float]) -> None:
        began = time.monotonic()
        for moment in moments:
            if self._stop.wait(max(0.0, moment - (time.monotonic() - began))) or runner.poll() is not None:
                return
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if workers := workers_of(runner):
                    pid = dice.choice(sorted(workers))
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(workers[pid])

    def stop(self) -> list[str]:
        """Return what was killed."""
        self._stop.set()
        self._thread.join(10)
        return self.killed


def replay_until_done(crm: Crm, account: str, dice: random.Random) -> tuple[int, list[str]]:
    """Replay the account: its workers are killed, then its runner, and the same command is given until it is done.

    Returns the last audit id that it has read, and what was killed.
    """
    words = ("run", "--account", account, "--mapping", GENERATED_MAPPING, "--partitions", "2", "--json")
    logs = crm.database["activity_logs"]
    killed: list[str] = []
    slowly = {"CRM_REPLAY_PAGE_ROWS": "50", "CRM_REPLAY_SOURCE_ROWS_PER_S": "250"}
    with crm.start(*words, **slowly) as runner, reading(runner.stderr) as said:
        wait_until(
            lambda: runner.poll() is not None or logs.find_one({"source_tag": "crm_migration"}) is not None,
            f"the replay to write ({said})",
            PATIENCE_S,
        )
        killer = Killer(runner, dice, REPLAY_KILLS, 2.0)
        time.sleep(dice.uniform(0.5, 2.0))
        killed += killer.stop()
        # A runner that was interrupted lets go of the job; one that was killed has to be missed first, for LEASE_S.
        end = dice.choice((signal.SIGINT, signal.SIGKILL)) if SEEDS > 1 else signal.SIGINT
        runner.send_signal(end)
        runner.communicate(timeout=PATIENCE_S)
        assert runner.returncode in (0, 130, -signal.SIGKILL), said  # 0: it was done before the signal came
        if runner.returncode != 0:
            killed.append("runner" if end == signal.SIGKILL else "runner (SIGINT)")
    if end == signal.SIGKILL:
        time.sleep(LEASE_S)
    deadline = time.monotonic() + PATIENCE_S
    while (done := crm.call(*words)).returncode != 0:
        assert "is in progress" in done.stderr, done.stderr
        assert time.monotonic() < deadline
        time.sleep(2)
    job = JobStore(crm.database).latest(account)
    return job.top_audit_id, killed


@contextlib.contextmanager
def writing(crm: Crm, feed: Feed, account: str, account_id: int, persons: list[int], seed: int) -> Iterator[Writers]:
    """Give writers that write; they are stopped in the end, whatever happens."""
    writers = Writers(crm.dsn, crm.database, account, account_id, persons, feed.publish, seed)
    # Contacts from before the feed began: of these, the whole history is the replay's and what comes now the feed's.
    synced = datetime.now(UTC) - timedelta(days=1)
    for person in persons[: PERSONS // 4]:
        writers.add_contact(person, synced)
    writers.start(3, CONTACTS_PER_S)
    try:
        yield writers
    finally:
        with contextlib.suppress(Exception):
            writers.stop()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_what_replay_and_live_feed_write_together_is_everything_and_nothing_twice(
    crm: Crm, seed: int, record_faults: Faults
) -> None:
    dice = random.Random(seed)
    account, account_id, persons = account_of(crm)
    with feed_on(crm, GENERATED_MAPPING, visibility_delay_s=VISIBILITY_DELAY_S) as feed:
        with feed.running() as live, writing(crm, feed, account, account_id, persons, seed) as writers:
            killer = Killer(live, dice, LIVE_KILLS, WRITING_S)
            began = time.monotonic()
            time.sleep(dice.uniform(RUN_FROM_S, RUN_TO_S))
            triggered_at = time.time()
            top, killed = replay_until_done(crm, account, dice)
            time.sleep(max(0.0, WRITING_S - (time.monotonic() - began)))
            journal = writers.stop()
            killed += killer.stop()
            feed.wait_drained()
            # Whoever was killed, and however often a record came: each is counted once.
            counts = feed.counts(account)
            assert counts["migrated"] + sum(counts["skipped"].values()) == feed.published
            assert (counts["failed"], counts["foreign"]) == ({}, {})

        expected, written = owners(crm, account), documents(crm, account)
        require_what_is_owed_only(journal, expected, written, top, triggered_at, feed)
        owed = len(expected) - len(written)

        # Contacts that came while or after the replay read leave rows to a replay that nobody has made yet.
        words = ("seam", "--account", account, "--mapping", GENERATED_MAPPING, "--window", "0", "--settle", "0")
        looked = crm.call(*words, "--repair", "--json")
        report = json.loads(looked.stdout)
        assert (report["gaps"], report["overlaps"]) == (owed, 0), looked.stderr
        assert looked.returncode == (1 if owed else 0), looked.stderr
        assert report["repaired"].get("replay", 0) == owed
        options = SeamOptions(GENERATED_MAPPING, window_s=0, settle_s=0)
        again = check_seam(account, options, crm.connections, PlainView())
        assert again.clean
        assert again.checked == len(expected)

    written = documents(crm, account)
    assert written == {external_id: [owner] for external_id, owner in expected.items()}
    by = Counter(owner for (owner,) in written.values())
    assert counts["migrated"] == by["live"]
    record_faults(
        len(killed),
        f"seed {seed}: {len(journal.rows)} rows written while {len(journal.watermarks)} contacts appeared,"
        f" {by['replay']} by the replay ({owed} after its end), {by['live']} by the live feed,"
        f" {journal.published_twice} published twice, {journal.rolled_back} transactions rolled back,"
        f" killed {dict(Counter(killed))}, lost 0, doubled 0",
    )


def require_what_is_owed_only(
    journal: Journal,
    expected: dict[str, str],
    written: dict[str, list[str]],
    top: int,
    triggered_at: float,
    feed: Feed,
) -> None:
    """Nothing is there twice, by the wrong side or for nobody; what is missing is what no replay has been made for."""
    assert len(journal.rows) > 100
    assert len(journal.watermarks) > PERSONS // 4 + 5
    unexpected = {external_id: by for external_id, by in written.items() if by != [expected.get(external_id)]}
    assert not unexpected
    missing = {int(external_id.partition(":")[2]): owner for external_id, owner in expected.items()
               if external_id not in written}  # fmt: skip
    lost = {audit_id for audit_id, owner in missing.items() if owner == "live"}
    assert not lost, feed.logs()
    # The replay owes a row only if it came after the replay had fixed its end, or its contact after it had read those.
    rows = {row.audit_id: row for row in journal.rows}
    seen_by_replay = {person for person, at in journal.visible_at.items() if at < triggered_at}
    for audit_id in missing:
        row = rows.get(audit_id)
        if row is not None and row.person in seen_by_replay:
            assert audit_id > top, f"row {audit_id} was the replay's to write"
