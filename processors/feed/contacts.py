"""Contacts of many accounts that appear while the live feed runs: which are cached, which are queried, and when a miss
is final. Decides with values; the query, the clock and the sleep are injected.

The rule, with D the visibility delay (how long after its `created_at` a contact can be read, clock skew included): a
contact that owns a row for the live feed has `created_at <= row.created_at`, so a query at or after
`row.created_at + D` sees it. A hit is final at once, since a contact's `created_at` never changes. A miss is final only
if it was queried at or after that time: a contact that appears later has its watermark after the row, which then
belongs to the replay. Rows with earlier misses are held until that time, and the persons are queried again.

So one look-up decides any number of rows: a cached miss is valid for every row that is older than it by D.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from schemas.records import Contact

log = logging.getLogger(__name__)

KNOWN_MAX = 200_000  # contacts cached, about 400 bytes each
MISSED_MAX = 200_000
KNOWN_S = 900.0  # a contact that was deleted, or whose customer has changed, is noticed after this long
MISSED_S = 30.0  # a miss that is final for a row is queried again for later ones, at most this often

Person = tuple[str, str]  # account, CRM person id
Ask = Callable[[Collection[Person]], Awaitable[Mapping[Person, Contact]]]


class Row(NamedTuple):
    """What a row looks up: its persons in the order in which they are tried."""

    company_sso_id: str
    created_at: int  # microseconds since 1970
    persons: tuple[str, ...]


@dataclass(slots=True)
class ContactCounts:
    """Counts of the look-ups."""

    asked: int = 0  # persons queried in MongoDB
    questions: int = 0  # queries for these
    remembered: int = 0  # persons answered from the cache
    waits: int = 0  # batches that were held for contacts to become visible
    found_late: int = 0  # contacts found only after the wait: without it their rows would be lost
    unforeseen: int = 0  # persons queried one by one, because their rows name them in a way that is not prefetched

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


class Answer(NamedTuple):
    """The contact of a person, or that there was none at `asked_at`."""

    contact: Contact | None
    asked_at: int  # microseconds since 1970, taken before the query was sent


class Remembered:
    """A cache of answers, bounded in number and age; evicts the least recently used."""

    def __init__(
        self,
        known_max: int = KNOWN_MAX,
        missed_max: int = MISSED_MAX,
        known_s: float = KNOWN_S,
        missed_s: float = MISSED_S,
    ) -> None:
        """Contacts and misses are bounded apart, so that a flood of unknown persons does not evict the contacts."""
        self._known: OrderedDict[Person, Answer] = OrderedDict()
        self._missed: OrderedDict[Person, Answer] = OrderedDict()
        self._known_max, self._missed_max = known_max, missed_max
        self._known_us, self._missed_us = int(known_s * 1_000_000), int(missed_s * 1_000_000)

    def __len__(self) -> int:
        """Return how many persons are cached."""
        return len(self._known) + len(self._missed)

    def put(self, person: Person, answer: Answer) -> None:
        """Cache an answer; it replaces an earlier one."""
        found = answer.contact is not None
        into, other = (self._known, self._missed) if found else (self._missed, self._known)
        other.pop(person, None)
        into[person] = answer
        into.move_to_end(person)
        if len(into) > (self._known_max if found else self._missed_max):
            into.popitem(last=False)

    def get(self, person: Person, now: int) -> Answer | None:
        """Return the cached answer of a person that has not expired at `now`."""
        for answers, age_max in ((self._known, self._known_us), (self._missed, self._missed_us)):
            answer = answers.get(person)
            if answer is None:
                continue
            if now - answer.asked_at > age_max:
                del answers[person]
                return None
            answers.move_to_end(person)
            return answer
        return None


class LiveContacts:
    """Finds the contacts of batches of rows; one batch at a time."""

    def __init__(
        self,
        ask: Ask,
        visibility_delay_s: float,
        *,
        remembered: Remembered | None = None,
        now_us: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`ask` returns the contacts that exist; it waits during an outage."""
        self.counts = ContactCounts()
        self._ask_for = ask
        self._delay_us = int(visibility_delay_s * 1_000_000)
        self._remembered = remembered if remembered is not None else Remembered()
        self._now_us = now_us
        self._sleep = sleep
        self._answers: dict[Person, Answer] = {}  # of the present batch: eviction must not remove them meanwhile

    def get(self, person: Person) -> Contact | None:
        """Return the contact of a person of the present batch. Raises KeyError for one that was not prepared."""
        return self._answers[person].contact

    async def prepare(self, rows: Sequence[Row]) -> None:
        """Return once every row's persons are known, or finally missing for that row."""
        now = self._now_us()
        self._answers = {}
        final_from = {}  # by row: the time from which a miss is final; a row from the future counts as created now
        for number, row in enumerate(rows):
            final_from[number] = min(row.created_at, now) + self._delay_us
            for person_id in row.persons:
                self._recall((row.company_sso_id, person_id), now)
        unknown = {
            person for row in rows for p in row.persons if (person := (row.company_sso_id, p)) not in self._answers
        }
        self.counts.remembered += len(self._answers)
        for number, row in enumerate(rows):
            if unknown.isdisjoint((row.company_sso_id, p) for p in row.persons):
                unknown |= self._missed_too_early(row, final_from[number])  # it may exist by now
        await self._ask(unknown)
        waited = False
        while True:
            open_persons: set[Person] = set()
            ready_at = 0
            for number, row in enumerate(rows):
                if early := self._missed_too_early(row, final_from[number]):
                    open_persons |= early
                    ready_at = max(ready_at, final_from[number])
            if not open_persons:
                return
            if not waited and ready_at > self._now_us():
                self.counts.waits += 1
                waited = True
            while (left_us := ready_at - self._now_us()) > 0:
                await self._sleep(left_us / 1_000_000)
            await self._ask(open_persons)
            self.counts.found_late += sum(self._answers[person].contact is not None for person in open_persons)

    def _recall(self, person: Person, now: int) -> None:
        if person not in self._answers and (answer := self._remembered.get(person, now)) is not None:
            self._answers[person] = answer

    def _missed_too_early(self, row: Row, final_from: int) -> set[Person]:
        """Return the persons that decide a row and whose miss is not final for it."""
        early = set()
        for person_id in row.persons:
            person = (row.company_sso_id, person_id)
            answer = self._answers[person]
            if answer.contact is not None:
                break  # those after it are not tried
            if answer.asked_at < final_from:
                early.add(person)
        return early

    async def _ask(self, persons: Collection[Person]) -> None:
        if not persons:
            return
        asked_at = self._now_us()
        found = await self._ask_for(persons)
        self.counts.asked += len(persons)
        self.counts.questions += 1
        for person in persons:
            answer = Answer(found.get(person), asked_at)
            self._answers[person] = answer
            self._remembered.put(person, answer)
