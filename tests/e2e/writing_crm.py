"""A CRM that goes on writing audits while everything else happens, and a change capture of the test's own."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import psycopg
from psycopg import sql
from pymongo.database import Database

from schemas.records import AuditEvent
from tests.support.factories import event

SCHEMA = "crm"
ROWS_A_TRANSACTION_MAX = 4
HELD_OPEN_MAX_S = 0.4  # a transaction; so ids become visible out of order, and behind rows with a later created_at
ROLLED_BACK = 0.08  # of all transactions; their ids stay holes
PUBLISHED_TWICE = 0.03  # rows that the capture sends once more, as one does that was started again
VISIBLE_WITHIN_S = 0.8  # of a contact's created_at; the feed is told a longer delay

UPDATE_PERSON = "---\nfirst_name:\n- Ayu\n- Dewi\n"
UPDATE_DEAL = "---\nname:\n- Sewa kantor\n- Sewa gudang\n"
LINK = "---\ncrm_person_id: {person}\ncrm_deal_id: {other}\n"


@dataclass(frozen=True, slots=True)
class Written:
    """A committed row, as the test knows it: who it is about, and when it was made."""

    audit_id: int
    person: int
    created_at: int  # microseconds


@dataclass
class Journal:
    """What has happened in the CRM and in the CDP."""

    rows: list[Written] = field(default_factory=list)
    watermarks: dict[int, int] = field(default_factory=dict)  # person -> created_at of the contact, in microseconds
    visible_at: dict[int, float] = field(default_factory=dict)  # person -> when the contact could be read
    rolled_back: int = 0
    published_twice: int = 0


class Writers:
    """Threads that write: rows in transactions of every length, contacts one after the other, and the capture.

    The capture publishes rows when they are committed, in the order of the commits: `commit` and the hand-over to it
    are one step under a lock, as they are in a write-ahead log.
    """

    def __init__(
        self,
        dsn: str,
        database: Database[dict[str, Any]],
        account: str,
        account_id: int,
        persons: Sequence[int],
        publish: Callable[[Sequence[AuditEvent]], None],
        seed: int,
    ) -> None:
        """`persons` are the CRM's; contacts are made for some of them while the threads run."""
        self.journal = Journal()
        self._dsn = dsn
        self._contacts = database["contacts"]
        self._account, self._account_id = account, account_id
        self._persons = list(persons)
        self._publish = publish
        self._seed = seed
        self._stop = threading.Event()
        self._writers_done = threading.Event()
        self._commits = threading.Lock()
        self._committed: SimpleQueue[AuditEvent] = SimpleQueue()
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        with psycopg.connect(dsn, autocommit=True) as db:
            top = db.execute(f"SELECT max(id) FROM {SCHEMA}.audits").fetchone()
            db.execute(sql.SQL("CREATE SEQUENCE crm.audits_live START {}").format(sql.Literal(top[0] + 1)))

    def start(self, writers: int, contacts_per_s: float) -> None:
        """Write from now on."""
        tasks: list[Callable[[], None]] = [
            partial(self._write, random.Random(f"{self._seed}/{n}")) for n in range(writers)
        ]
        self._writing = [self._thread(task) for task in tasks]
        self._threads = [*self._writing]
        self._threads.append(self._thread(lambda: self._sync(random.Random(f"{self._seed}/contacts"), contacts_per_s)))
        self._capture_thread = self._thread(lambda: self._capture(random.Random(f"{self._seed}/capture")))

    def _thread(self, task: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                task()
            except BaseException as error:
                self._failures.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def stop(self) -> Journal:
        """End the writing; return once every committed row is published."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._writers_done.set()
        self._capture_thread.join(60)
        if self._failures:
            raise self._failures[0]
        return self.journal

    def add_contact(self, person: int, created_at: datetime) -> None:
        """Make a person a contact at once."""
        created_at = created_at.replace(microsecond=created_at.microsecond // 1000 * 1000)
        self._contacts.insert_one(
            {
                "company_sso_id": self._account,
                "customer_id": f"cus-{person}",
                "crm_data": {"id": person},
                "created_at": created_at,
            }
        )
        self.journal.watermarks[person] = int(created_at.timestamp()) * 1_000_000 + created_at.microsecond
        self.journal.visible_at[person] = time.time()

    def _write(self, dice: random.Random) -> None:
        with psycopg.connect(self._dsn) as db:
            while not self._stop.is_set():
                events = [self._insert(db, dice) for _ in range(dice.randint(1, ROWS_A_TRANSACTION_MAX))]
                time.sleep(dice.choice((0.0, 0.01, dice.uniform(0, HELD_OPEN_MAX_S))))
                if dice.random() < ROLLED_BACK:
                    db.rollback()
                    self.journal.rolled_back += 1
                    continue
                with self._commits:
                    db.commit()
                    for event, _ in events:
                        self._committed.put(event)
                    self.journal.rows += [Written(e.audit_id, person, e.created_at) for e, person in events]

    def _insert(self, db: psycopg.Connection[Any], dice: random.Random) -> tuple[AuditEvent, int]:
        """Insert one row in the open transaction; return it, and the person it is about."""
        person, deal = dice.choice(self._persons), dice.randint(1, 10_000)
        # The three ways in which a row names its person: it is one, its comment says so, its columns do.
        kind, record, action, changes, comment = dice.choice(
            (
                ("Crm::Person", person, "update", UPDATE_PERSON, ""),
                ("Crm::Deal", deal, "update", UPDATE_DEAL, f'{{"crm_person_id":{person}}}'),
                ("Crm::DealPerson", deal, "create", LINK.format(person=person, other=deal), ""),
            )
        )
        now = datetime.now(UTC)
        found = db.execute(
            "INSERT INTO crm.audits (id, auditable_id, auditable_type, action, audited_changes, version, comment,"
            " created_at, account_id) VALUES (nextval('crm.audits_live'), %s, %s, %s, %s, 1, %s, %s, %s) RETURNING id",
            (record, kind, action, changes, comment, now.replace(tzinfo=None), self._account_id),
        ).fetchone()
        assert found is not None
        created_at = int(now.timestamp()) * 1_000_000 + now.microsecond
        written = event(
            audit_id=found[0], created_at=created_at, auditable_type=kind, auditable_id=record, action=action,
            audited_changes=changes, comment=comment, company_sso_id=self._account,
        )  # fmt: skip
        return written, person

    def _sync(self, dice: random.Random, per_s: float) -> None:
        """Make persons contacts at random moments; each can be read some time after its created_at."""
        waiting = [person for person in self._persons if person not in self.journal.watermarks]
        dice.shuffle(waiting)
        while waiting and not self._stop.wait(dice.expovariate(per_s)):
            created_at = datetime.now(UTC)
            time.sleep(dice.choice((0.0, dice.uniform(0, VISIBLE_WITHIN_S))))
            self.add_contact(waiting.pop(), created_at)

    def _capture(self, dice: random.Random) -> None:
        lately: list[AuditEvent] = []
        while not (self._writers_done.is_set() and self._committed.empty()):
            batch = []
            try:
                batch.append(self._committed.get(timeout=0.05))
                while len(batch) < 200:
                    batch.append(self._committed.get_nowait())
            except Empty:
                pass
            if dice.random() < PUBLISHED_TWICE and lately:
                self.journal.published_twice += len(lately)
                self._publish(lately)
            if batch:
                self._publish(batch)
                lately = batch
