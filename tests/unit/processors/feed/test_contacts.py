"""When a miss is final, what is remembered, how seldom MongoDB is asked; with a CDP whose contacts appear late."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pymongo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo.errors import AutoReconnect, NetworkTimeout, PyMongoError

from processors.feed import mongo
from processors.feed.contacts import Answer, LiveContacts, Person, Remembered, Row
from processors.feed.mongo import MongoContacts
from processors.rules.watermark import skip_reason
from schemas.records import Contact
from schemas.vocabulary import SkipReason

S = 1_000_000
DELAY_S = 10
ACCOUNT = "acme"


@dataclass
class Cdp:
    """A clock, and contacts that can be read from some moment on."""

    now: int = 1_000 * S
    contacts: dict[Person, tuple[int, int]] = field(default_factory=dict)  # created_at, readable from
    questions: list[set[Person]] = field(default_factory=list)
    slept: float = 0.0

    def add(self, person: str, created_at: int, lag: int = 0, account: str = ACCOUNT) -> None:
        self.contacts[account, person] = (created_at, created_at + lag)

    async def ask(self, persons: Collection[Person]) -> Mapping[Person, Contact]:
        self.questions.append(set(persons))
        known = {person: self.contacts[person] for person in persons if person in self.contacts}
        return {
            person: Contact(person[0], person[1], f"cus-{person[1]}", created_at)
            for person, (created_at, readable) in known.items()
            if readable <= self.now
        }

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += round(seconds * S)

    def live(self, remembered: Remembered | None = None) -> LiveContacts:
        return LiveContacts(self.ask, DELAY_S, remembered=remembered, now_us=lambda: self.now, sleep=self.sleep)


def row(created_at: int, *persons: str, account: str = ACCOUNT) -> Row:
    return Row(account, created_at, persons)


def prepare(contacts: LiveContacts, *rows: Row) -> None:
    asyncio.run(contacts.prepare(rows))


def test_all_unknown_persons_of_a_run_are_asked_about_in_one_go() -> None:
    cdp = Cdp()
    for person in ("1", "2"):
        cdp.add(person, 0)
    cdp.add("1", 5, account="other")
    contacts = cdp.live()
    prepare(contacts, row(900 * S, "1"), row(900 * S, "2", "3"), row(900 * S, "1", account="other"))
    assert cdp.questions == [{(ACCOUNT, "1"), (ACCOUNT, "2"), (ACCOUNT, "3"), ("other", "1")}]
    assert contacts.get((ACCOUNT, "1")) == Contact(ACCOUNT, "1", "cus-1", 0)
    assert contacts.get(("other", "1")) == Contact("other", "1", "cus-1", 5)
    assert contacts.get((ACCOUNT, "3")) is None


def test_what_was_found_or_is_missing_for_good_is_not_asked_again() -> None:
    cdp = Cdp()
    cdp.add("1", 0)
    contacts = cdp.live()
    prepare(contacts, row(900 * S, "1"), row(900 * S, "2"))
    prepare(contacts, row(901 * S, "1"), row(901 * S, "2"))
    assert len(cdp.questions) == 1
    assert cdp.slept == 0


def test_a_row_whose_contact_can_only_be_read_later_is_held_until_it_can() -> None:
    cdp = Cdp()
    created = cdp.now - 2 * S
    cdp.add("1", created, lag=7 * S)
    contacts = cdp.live()
    prepare(contacts, row(cdp.now - S, "1"))
    assert contacts.get((ACCOUNT, "1")) is not None
    assert cdp.slept == DELAY_S - 1
    assert contacts.counts.found_late == 1
    assert contacts.counts.waits == 1


def test_a_row_is_held_no_longer_than_the_delay_also_one_from_the_future() -> None:
    cdp = Cdp()
    contacts = cdp.live()
    prepare(contacts, row(cdp.now + 3600 * S, "1"))
    assert contacts.get((ACCOUNT, "1")) is None
    assert cdp.slept == DELAY_S


def test_a_find_is_not_waited_with_and_persons_behind_it_do_not_matter() -> None:
    cdp = Cdp()
    cdp.add("1", 0)
    contacts = cdp.live()
    prepare(contacts, row(cdp.now, "1", "2"))
    assert cdp.slept == 0
    prepare(contacts, row(cdp.now, "2", "1"))  # here the one that is not there would come first
    assert cdp.slept == DELAY_S


def test_a_miss_answers_for_rows_that_are_old_enough_and_is_asked_again_for_younger_ones() -> None:
    cdp = Cdp()
    contacts = cdp.live()
    prepare(contacts, row(cdp.now - 60 * S, "1"))
    cdp.add("1", cdp.now + S)
    cdp.now += 5 * S
    prepare(contacts, row(cdp.now - 50 * S, "1"))
    assert len(cdp.questions) == 1
    prepare(contacts, row(cdp.now, "1"))  # younger than the miss: the contact is there by now
    assert contacts.get((ACCOUNT, "1")) is not None
    assert (len(cdp.questions), cdp.slept) == (2, 0)


def test_a_miss_is_forgotten_in_time_so_that_a_contact_that_came_later_is_found() -> None:
    cdp = Cdp()
    contacts = cdp.live(Remembered(missed_s=30))
    prepare(contacts, row(0, "1"))
    cdp.add("1", cdp.now)
    cdp.now += 31 * S
    prepare(contacts, row(0, "1"))
    assert contacts.get((ACCOUNT, "1")) is not None


def test_memory_is_bounded_and_strangers_do_not_push_out_contacts() -> None:
    remembered = Remembered(known_max=10, missed_max=5)
    contact = Contact(ACCOUNT, "c", "cus", 0)
    for number in range(10):
        remembered.put((ACCOUNT, f"c{number}"), Answer(contact, 0))
    for number in range(1_000):
        remembered.put((ACCOUNT, f"m{number}"), Answer(None, 0))
    assert len(remembered) == 15
    assert all(remembered.get((ACCOUNT, f"c{number}"), 0) is not None for number in range(10))
    assert remembered.get((ACCOUNT, "m999"), 0) is not None
    assert remembered.get((ACCOUNT, "m1"), 0) is None


def test_a_run_with_more_persons_than_are_remembered_keeps_all_of_its_answers() -> None:
    cdp = Cdp()
    for number in range(50):
        cdp.add(str(number), 0)
    contacts = cdp.live(Remembered(known_max=3, missed_max=3))
    prepare(contacts, *(row(0, str(number)) for number in range(50)))
    assert all(contacts.get((ACCOUNT, str(number))) is not None for number in range(50))


def test_while_mongodb_does_not_answer_it_is_asked_again_and_nothing_is_taken_for_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[PyMongoError | dict[Person, Contact]] = [
        AutoReconnect("down"),
        NetworkTimeout("slow"),
        {(ACCOUNT, "1"): Contact(ACCOUNT, "1", "cus", 0)},
    ]

    def find(_self: MongoContacts, _persons: Collection[Person]) -> dict[Person, Contact]:
        answer = answers.pop(0)
        if isinstance(answer, PyMongoError):
            raise answer
        return answer

    monkeypatch.setattr(MongoContacts, "find", find)
    monkeypatch.setattr(mongo, "BACKOFF_FIRST_S", 0.001)
    contacts = MongoContacts(pymongo.MongoClient(connect=False)["cdp"])
    assert asyncio.run(contacts.ask([(ACCOUNT, "1"), (ACCOUNT, "2")])).keys() == {(ACCOUNT, "1")}
    assert answers == []


moments = st.integers(0, 40).map(lambda second: second * S)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(moments, st.integers(0, 15).map(lambda s: s * S)), min_size=1, max_size=8),
    created_at=moments,
    lag=st.integers(0, DELAY_S).map(lambda second: second * S),
)
def test_replay_and_live_feed_own_each_row_exactly_once_whenever_the_contact_appears(
    rows: list[tuple[int, int]], created_at: int, lag: int
) -> None:
    """The property behind it all, for any row, any contact that is visible within the delay, and any arrival.

    The replay here is one that is made when everything is over: it knows every contact.
    """
    cdp = Cdp(now=0)
    cdp.add("1", created_at, lag)
    contacts = cdp.live()
    for row_at, travelled in sorted(rows, key=lambda row: row[0] + row[1]):
        cdp.now = max(cdp.now, row_at + travelled)
        prepare(contacts, row(row_at, "1"))
        contact = contacts.get((ACCOUNT, "1"))
        live_writes = contact is not None and skip_reason(row_at, contact.created_at, live=True) is None
        replay_writes = skip_reason(row_at, created_at, live=False) is None
        assert live_writes != replay_writes
        if not live_writes and contact is not None:
            assert skip_reason(row_at, contact.created_at, live=True) is SkipReason.PRE_SYNC_REPLAY
