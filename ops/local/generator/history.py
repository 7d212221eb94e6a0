"""The history of a CRM as rows of `audits`, in id order: a stream that depends on nothing but its plan.

Accounts work side by side. A web request or job of one of them changes one record or a few; records are created, move
through their states, get linked and are destroyed, and each row is what the gem would have written at that time.
Memory: the records' ids and names (about 12 bytes each), and the state of the few thousand that are being worked on.
"""

from array import array
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random

from ops.local.generator.pieces import ERAS, NAMES, POOL, Pieces, pieces_of

HISTORY_BEGIN = datetime(2018, 1, 1, tzinfo=UTC)
HISTORY_END = datetime(2025, 7, 1, tzinfo=UTC)
SPAN_US = (HISTORY_END - HISTORY_BEGIN) // timedelta(microseconds=1)
ERA_ENDS = (0.15, 0.35, 1.0)  # of the rows: when the gem was upgraded
CHUNK_ROWS = 512
WORKED_ON_MAX = 1024  # records of a type that an account works on at a time; another takes the place of one of them
FIRST_PERSON_ID = 50_001  # as in the sample CRM: the same ids are other people there
UNKNOWN_PERSON_ID = 2_000_000_000
GONE = 0xFFFF  # in place of a name: destroyed
NO_ASSOCIATED = "\\N\t\\N"

SIZES = (1,) * 46 + (2,) * 11 + (3,) * 4 + (4, 5, 12)  # rows of a request; sixty-four of them
# Record and associated record, action, changes, version, and the person the comment names: 0 for none, negative where
# older audits were folded into this one, whose comment then is no longer JSON.
Row = tuple[str, str, str, int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is generated: the same plan gives the same bytes, always and everywhere."""

    audits: int
    accounts: int = 5
    seed: int = 1
    shape: str = "crm"

    def shares(self) -> list[float]:
        """Return each account's share of the rows: half for the first, the rest falling as 1/n."""
        if self.accounts <= 2:
            return [[1.0], [2 / 3, 1 / 3]][self.accounts - 1]
        rest = [1 / n for n in range(1, self.accounts)]
        return [0.5, *(0.5 * share / sum(rest) for share in rest)]


@dataclass(slots=True)
class Records:
    """All records of a type, over all accounts, in id order."""

    next_id: int
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    accounts: "array[int]" = field(default_factory=lambda: array("H"))
    names: "array[int]" = field(default_factory=lambda: array("H"))

    def add(self, account: int, name: int, hole: int) -> int:
        """Add a record and return its place; `hole` ids before it were never committed."""
        self.next_id += hole
        self.ids.append(self.next_id)
        self.accounts.append(account)
        self.names.append(name)
        self.next_id += 1
        return len(self.ids) - 1


@dataclass(slots=True)
class Open:
    """A record that is being worked on."""

    place: int
    id: int
    person: int  # CRM person id, 0 for none
    status: int
    version: int


@dataclass(slots=True)
class Account:
    """One tenant, as far as the next rows need it."""

    number: int
    company_sso_id: str
    zone: str
    wall_offset_us: int
    actors: list[str]
    persons: "array[int]" = field(default_factory=lambda: array("L"))  # places in the records of people
    versions: "array[int]" = field(default_factory=lambda: array("L"))
    companies: list[Open] = field(default_factory=list)
    deals: list[Open] = field(default_factory=list)
    tasks: list[Open] = field(default_factory=list)
    tickets: list[Open] = field(default_factory=list)
    notes: list[Open] = field(default_factory=list)
    links: list[tuple[str, int, str]] = field(default_factory=list)
    audits: int = 0
    first_us: int = SPAN_US
    last_us: int = 0


@dataclass(frozen=True, slots=True)
class CrmUser:
    """A user of the CRM."""

    id: int
    account: int
    email: str
    full_name: str
    deleted: bool


ColumnSet = tuple[list[str], ...]  # pools of pieces, of columns that change together


@dataclass(frozen=True, slots=True)
class _ColumnSets:
    """What updates of each type change; the lists' lengths are powers of two."""

    person: list[ColumnSet]
    deal: list[ColumnSet]
    task: list[ColumnSet]
    ticket: list[ColumnSet]
    company: list[ColumnSet]
    note: list[ColumnSet]


class Clock:
    """Microseconds since the history's begin -> `YYYY-MM-DD HH:MM:SS.ffffff`."""

    def __init__(self) -> None:
        """Days are written when first met."""
        self._days: dict[int, str] = {}
        self._minutes = [f" {minute // 60:02}:{minute % 60:02}:" for minute in range(1440)]
        self._seconds = [f"{second:02}." for second in range(60)]

    def text(self, us: int) -> str:
        """Return an instant as text."""
        day, rest = divmod(us, 86_400_000_000)
        date = self._days.get(day)
        if date is None:
            date = self._days[day] = (HISTORY_BEGIN + timedelta(days=day)).strftime("%Y-%m-%d")
        minute, rest = divmod(rest, 60_000_000)
        second, rest = divmod(rest, 1_000_000)
        return f"{date}{self._minutes[minute]}{self._seconds[second]}{rest:06}"


ZONES = (("Asia/Jakarta", 7), ("Asia/Makassar", 8), ("Etc/UTC", 0))
NUMBERS = 256  # entries of the tables from which eight random bits choose

# Comments as the application writes them, by frequency (of 256). %d is the person.
COMMENTS = (
    ('{"crm_person_id":%d}', 226),
    ("\\N", 21),
    ('{"crm_person_id":"%d","source":"import"}', 3),
    ('{"crm_person_id":%d,"crm_deal_id":null,"note":"ganti: \\\\"harga\\\\""}', 1),
    ("{crm_person_id: %d}", 1),
    ("ditutup oleh supervisor", 1),
    ("", 1),
    ('{"crm_person_id":null}', 1),
    (f'{{"crm_person_id":{UNKNOWN_PERSON_ID}}}', 1),
)


COMBINED = "\\nThis audit is the result of multiple audits being combined."


class History:
    """Generates the rows; afterwards `people` and its neighbours hold what the CRM's other tables contain."""

    def __init__(self, plan: Plan) -> None:
        """Prepare a plan's first row; takes about a second."""
        self.plan = plan
        self.people = Records(FIRST_PERSON_ID)
        self.companies = Records(3_001)
        self.deals = Records(7_001)
        self.tasks = Records(12_001)
        self.tickets = Records(22_001)
        self.merged: dict[int, int] = {}  # destroyed person's place -> place of who it was merged into
        self.users: list[CrmUser] = []
        self._random = Random(f"history {plan.seed} {plan.audits} {plan.accounts}")  # noqa: S311  # reproducible
        self._bits = self._random.getrandbits
        self._clock = Clock()
        self._eras = [pieces_of(era, plan.seed) for era in ERAS]
        self._pieces = self._eras[0]
        self._now_us = 0
        self._next_note = self._next_link = self._next_product = 1
        self._sets = [self._column_sets_of(pieces) for pieces in self._eras]
        self._set = self._sets[0]
        self.accounts = [self._account(number) for number in range(1, plan.accounts + 1)]
        self._comments = [text for text, times in COMMENTS for _ in range(times)]
        self._addresses = [
            *(f"203.0.113.{n}" for n in range(1, 120)),
            *(f"198.51.100.{n}" for n in range(1, 120)),
            *(f"2001:db8::{n:x}" for n in range(1, 19)),
        ]
        assert len(self._comments) == len(self._addresses) == NUMBERS
        self._events = self._event_table()
        self._enter_era(0)

    def chunks(self) -> Iterator[tuple[bytes, int]]:
        """Yield COPY text and the number of its rows, until all rows of the plan are out."""
        bits, clock = self._bits, self._clock
        total = self.plan.audits
        mean_size = sum(SIZES) / len(SIZES)
        end_us = SPAN_US - 86_400_000_000  # a day before the end, so that no row of a long request passes it
        late_us = max(30_000_000, int(3 * end_us * mean_size / total))
        turn = self._account_table()
        era_ends = [int(total * share) for share in ERA_ENDS]
        era = 0
        comments, addresses, events = self._comments, self._addresses, self._events
        audit_id = made = 0
        clock_us: float = 0
        lines: list[str] = []
        while made < total:
            if made >= era_ends[era]:
                era += 1
                self._enter_era(era)
            noise = bits(60)
            step_us = (end_us - clock_us) * mean_size / (total - made)  # in even steps to the end, give or take
            clock_us = min(clock_us + step_us * ((noise & 1023) + 1) / 512, end_us)
            at_us = int(clock_us)
            noise >>= 10
            if not noise & 31:  # a long transaction: its ids are younger than its times
                at_us = max(at_us - late_us * (noise >> 5 & 255) // 256, 0)
            noise >>= 13
            account = turn[noise & 0xFFFF]
            noise >>= 16
            actor = account.actors[noise & 255]
            address = addresses[noise >> 2 & 255] if actor[0] != "\\" else "\\N"
            noise >>= 10
            size = min(SIZES[noise & 63], total - made)
            text = f"{bits(122):031x}"
            request = f"{text[:8]}-{text[8:12]}-4{text[12:15]}-{'89ab'[noise >> 6 & 3]}{text[15:18]}-{text[18:30]}"
            for _ in range(size):
                choice = bits(36)
                self._now_us = at_us
                record, action, changes, version, person = events[choice & 1023](account)
                choice >>= 10
                if not choice & 127:  # ids of a transaction that was rolled back
                    audit_id += 1 + (choice >> 7 & 15)
                audit_id += 1
                if person > 0:
                    comment = comments[choice >> 11 & 255]
                    if "%" in comment:
                        comment = comment % person
                else:
                    comment = f'{{"crm_person_id":{-person}}}{COMBINED}' if person else "\\N"
                lines.append(
                    f"{audit_id}\t{record}\t{actor}\t{action}\t{changes}\t{version}\t{comment}\t{address}\t{request}"
                    f"\t{clock.text(at_us)}\t{account.number}\n"
                )
                account.audits += 1
                if at_us < account.first_us:
                    account.first_us = at_us
                if at_us > account.last_us:
                    account.last_us = at_us
                at_us += 1_000 + (choice & 0x3FFF)
            made += size
            if len(lines) >= CHUNK_ROWS:
                yield "".join(lines).encode(), len(lines)
                lines.clear()
        if lines:
            yield "".join(lines).encode(), len(lines)

    @property
    def names(self) -> Pieces:
        """Return where the records' names are, by number."""
        return self._eras[0]

    def survivor(self, place: int) -> int | None:
        """Return the place of the existing person into whom a destroyed one was merged; else None."""
        into = self.merged.get(place)
        while into is not None and self.people.names[into] == GONE:
            into = self.merged.get(into)
        return into

    # -- the plan's tables -------------------------------------------------------------------------------------------

    def _account_table(self) -> list[Account]:
        """Return 65,536 accounts to choose from by sixteen random bits; every account occurs at least once."""
        ends = list(accumulate(self.plan.shares()))
        size = 1 << 16
        table = [self.accounts[min(bisect(ends, (n + 0.5) / size), len(ends) - 1)] for n in range(size)]
        for account in self.accounts:
            table[account.number] = account
        return table

    def _event_table(self) -> list[Callable[[Account], Row]]:
        """Return 1,024 kinds of events to choose from by ten random bits."""
        shares: tuple[tuple[Callable[[Account], Row], int], ...] = (
            (self._person_update, 264),
            (self._deal_update, 110),
            (self._deal_stage, 92),
            (self._task_update, 70),
            (self._task_status, 82),
            (self._ticket_update, 42),
            (self._ticket_status, 50),
            (self._company_update, 24),
            (self._note_update, 10),
            (self._person_create, 28),
            (self._company_create, 5),
            (self._deal_create, 30),
            (self._task_create, 42),
            (self._ticket_create, 24),
            (self._note_create, 50),
            (self._link, 36),
            (self._unlink, 14),
            (self._person_destroy, 3),
            (self._deal_destroy, 3),
            (self._task_destroy, 8),
            (self._ticket_destroy, 2),
            (self._note_destroy, 3),
            (self._deal_merge, 1),
            (self._user_update, 14),
            (self._product, 5),
            (self._api_client_update, 1),
            (self._nothing_changed, 2),
            (self._sample_form, 3),
            (self._json_text, 4),
            (self._combined, 2),
        )
        table = [event for event, times in shares for _ in range(times)]
        assert len(table) == 1024, len(table)
        return table

    def _enter_era(self, number: int) -> None:
        self._pieces = self._eras[number]
        self._set = self._sets[number]

    def _column_sets_of(self, pieces: Pieces) -> "_ColumnSets":
        return _ColumnSets(
            person=self._column_sets(pieces.person_columns, 256),
            deal=self._column_sets(pieces.deal_columns, 256),
            task=self._column_sets(pieces.task_columns, 64),
            ticket=self._column_sets(pieces.ticket_columns, 64),
            company=self._column_sets(pieces.company_columns, 64),
            note=self._column_sets(pieces.note_columns, 64),
        )

    def _column_sets(self, columns: Sequence[tuple[list[str], int]], size: int) -> list[ColumnSet]:
        """Return combinations of columns that change together, in the order of the table; mostly one or two."""
        ends = list(accumulate(weight for _, weight in columns))
        made = []
        for _ in range(size):
            chosen: set[int] = set()
            for _ in range((1, 1, 1, 2, 2, 2, 3, 4)[self._bits(3)]):
                chosen.add(bisect(ends, self._random.random() * ends[-1]))
            made.append(tuple(columns[index][0] for index in sorted(i for i in chosen if i < len(columns))))
        return made

    def _account(self, number: int) -> Account:
        """Return an account with the records it had before the first audit, which nothing in the history creates."""
        expected = max(int(self.plan.audits * self.plan.shares()[number - 1]), 1)
        zone, hours = ZONES[0] if number != 3 else ZONES[1]
        if number == 4:
            zone, hours = ZONES[2]
        users = [self._user(number) for _ in range(min(12 + expected // 20_000, 120))]
        account = Account(number, f"crm-{number}", zone, hours * 3_600_000_000, self._actors(users))
        for _ in range(max(20, expected // 60)):
            self._new_person(account)
        for _ in range(max(5, min(expected // 2_000, 500))):
            account.companies.append(self._new(self.companies, account, 0))
        for kind, records in (
            (account.deals, self.deals),
            (account.tasks, self.tasks),
            (account.tickets, self.tickets),
        ):
            for _ in range(max(10, min(expected // 100, WORKED_ON_MAX // 2))):
                kind.append(self._new(records, account, self._some_person(account)))
        return account

    def _user(self, account: int) -> CrmUser:
        pieces = self._eras[0]
        number = 11 + len(self.users)
        first, last = pieces.first_names[self._bits(9)], pieces.last_names[self._bits(9)]
        deleted = len(self.users) % 12 == 7
        user = CrmUser(number, account, f"user{number}@{'contoh.co.id'}", f"{first} {last}", deleted)
        self.users.append(user)
        return user

    def _actors(self, users: Sequence[CrmUser]) -> list[str]:
        """Return 256 actors to choose from: users by skew, a removed user, the API, a job's name, the system."""
        active = [user for user in users if not user.deleted]
        gone = [user for user in users if user.deleted]
        actors = [f"{active[int(len(active) * self._random.random() ** 2)].id}\tUser\t\\N" for _ in range(182)]
        actors += [f"{(gone or active)[n % len(gone or active)].id}\tUser\t\\N" for n in range(14)]
        actors += [f"{900_000 + users[0].account}\tUser\t\\N"] * 4
        actors += ["1\tApiClient\t\\N"] * 14
        actors += ["\\N\t\\N\tsidekiq-import"] * 12 + ["\\N\t\\N\tops@contoh.co.id"] * 2
        actors += ["\\N\t\\N\t\\N"] * 28
        assert len(actors) == NUMBERS
        return actors

    # -- records -----------------------------------------------------------------------------------------------------

    def _hole(self) -> int:
        noise = self._bits(8)
        return 0 if noise >= 5 else 1 + noise

    def _new(self, records: Records, account: Account, person: int) -> Open:
        place = records.add(account.number, self._bits(9), self._hole())
        return Open(place, records.ids[place], person, 0, 1)

    def _new_person(self, account: Account) -> int:
        """Add a person and return the place."""
        place = self.people.add(account.number, self._bits(9), self._hole())
        account.persons.append(place)
        account.versions.append(1)
        return place

    def _person_at(self, account: Account) -> int:
        """Return an index into the account's persons: the older, the busier; some are very busy."""
        noise = self._random.random()
        index = int(len(account.persons) * noise * noise)
        while self.people.names[account.persons[index]] == GONE:
            index -= 1  # never far, and never to the start: the first person of an account is never destroyed
        return index

    def _some_person(self, account: Account) -> int:
        """Return a CRM person id."""
        return self.people.ids[account.persons[self._person_at(account)]]

    def _work_on(self, worked_on: list[Open], record: Open) -> None:
        if len(worked_on) < WORKED_ON_MAX:
            worked_on.append(record)
        else:
            worked_on[self._bits(10)] = record

    def _pick(self, worked_on: list[Open]) -> Open:
        return worked_on[int(self._random.random() * len(worked_on))]

    def _times(self, account: Account) -> tuple[str, str]:
        """Return the row's own time as its values have it, in UTC and on the account's wall."""
        return self._clock.text(self._now_us), self._clock.text(self._now_us + account.wall_offset_us)

    def _changes(self, sets: list[ColumnSet], size_bits: int) -> str:
        noise = self._bits(size_bits + 30)
        chosen = sets[noise & (1 << size_bits) - 1]
        text = self._pieces.root
        for pool in chosen:
            noise >>= 6
            text += pool[noise & 63]
        return text

    # -- events ------------------------------------------------------------------------------------------------------

    def _person_update(self, account: Account) -> Row:
        index = self._person_at(account)
        place = account.persons[index]
        person = self.people.ids[place]
        account.versions[index] += 1
        noise = self._bits(6)
        pieces = self._pieces
        if noise == 0:  # a new surname
            names = self.people.names
            old, names[place] = names[place], self._bits(9)
            changes = (
                f"{pieces.root}last_name:\\n{pieces.last_name_items[old]}{pieces.last_name_items[names[place]]}"
                if pieces.last_names[old] != pieces.last_names[names[place]]
                else pieces.nothing_changed
            )
        elif noise == 1 and pieces.person_secrets:
            changes = pieces.root + pieces.person_secrets[self._bits(6)]
        else:
            changes = self._changes(self._set.person, 8)
        return (
            f"{person}\tCrm::Person\t{NO_ASSOCIATED}",
            "update",
            changes + pieces.person_redacted,
            account.versions[index],
            person,
        )

    def _person_create(self, account: Account) -> Row:
        place = self._new_person(account)
        person = self.people.ids[place]
        return (
            f"{person}\tCrm::Person\t{NO_ASSOCIATED}",
            "create",
            self._person_attributes(account, self.people.names[place]),
            1,
            person,
        )

    def _person_attributes(self, account: Account, name: int) -> str:
        pieces = self._pieces
        return (
            f"---\\naccount_id: {account.number}\\n{self._company_of(account)}owner_id: {11 + self._bits(5)}\\n"
            f"{pieces.person_names[name]}{pieces.person_tails[self._bits(6)]}"
        )

    def _person_destroy(self, account: Account) -> Row:
        """Destroy a person, as a rule after merging it into another one."""
        index = self._person_at(account)
        if index == 0:
            return self._person_update(account)
        place = account.persons[index]
        person = self.people.ids[place]
        name = self.people.names[place]
        self.people.names[place] = GONE
        if self._bits(1):
            self.merged[place] = account.persons[self._person_at(account)]
        version = account.versions[index] + 1
        return (
            f"{person}\tCrm::Person\t{NO_ASSOCIATED}",
            "destroy",
            self._person_attributes(account, name),
            version,
            person,
        )

    def _company_of(self, account: Account) -> str:
        noise = self._random.random()
        if noise < 0.4:
            return self._pieces.nil["crm_company_id"]
        return f"crm_company_id: {account.companies[int((noise - 0.4) / 0.6 * len(account.companies))].id}\\n"

    def _company_create(self, account: Account) -> Row:
        pieces = self._pieces
        company = self._new(self.companies, account, 0)
        self._work_on(account.companies, company)
        name = self.companies.names[company.place]
        changes = (
            f"---\\naccount_id: {account.number}\\n{pieces.company_heads[name]}{pieces.company_tails[self._bits(6)]}"
        )
        return f"{company.id}\tCrm::Company\t{NO_ASSOCIATED}", "create", changes, 1, self._some_person(account)

    def _company_update(self, account: Account) -> Row:
        company = self._pick(account.companies)
        company.version += 1
        changes = self._changes(self._set.company, 6)
        return (
            f"{company.id}\tCrm::Company\t{NO_ASSOCIATED}",
            "update",
            changes,
            company.version,
            self._some_person(account),
        )

    def _deal_create(self, account: Account) -> Row:
        deal = self._new(self.deals, account, self._some_person(account))
        self._work_on(account.deals, deal)
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "create", self._deal_attributes(account, deal), 1, deal.person

    def _deal_attributes(self, account: Account, deal: Open) -> str:
        pieces = self._pieces
        noise = self._bits(9)
        person = f"crm_person_id: {deal.person}\\n" if noise & 7 else pieces.nil["crm_person_id"]
        stage = (31, 32, 39, 31)[deal.status & 3]
        name = self.deals.names[deal.place]
        return (
            f"---\\naccount_id: {account.number}\\n{pieces.deal_heads[name]}crm_pipeline_id: 4\\n"
            f"crm_stage_id: {stage}\\n{self._company_of(account)}{person}owner_id: {11 + self._bits(5)}\\n"
            f"{pieces.deal_tails[noise >> 3]}"
        )

    def _deal_update(self, account: Account) -> Row:
        deal = self._pick(account.deals)
        deal.version += 1
        noise = self._bits(6)
        pieces = self._pieces
        if noise == 0:
            names = self.deals.names
            old, names[deal.place] = names[deal.place], self._bits(9)
            same = pieces.deal_names[old] == pieces.deal_names[names[deal.place]]
            changes = (
                pieces.nothing_changed
                if same
                else f"{pieces.root}name:\\n{pieces.deal_name_items[old]}{pieces.deal_name_items[names[deal.place]]}"
            )
        elif noise == 1:  # moves to another person: the new one is whose history it is
            old_person, deal.person = deal.person, self._some_person(account)
            changes = f"{pieces.root}crm_person_id:\\n- {old_person}\\n- {deal.person}\\n"
            if old_person == deal.person:
                changes = pieces.nothing_changed
        else:
            changes = self._changes(self._set.deal, 8)
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "update", changes, deal.version, deal.person

    def _deal_stage(self, account: Account) -> Row:
        """Move a deal on: talks, then won or lost; a closed one is opened again."""
        deal = self._pick(account.deals)
        deal.version += 1
        pieces = self._pieces
        noise = self._bits(8)
        root = pieces.root
        if deal.status == 0:
            deal.status = 1
            changes = f"{root}crm_stage_id:\\n- 31\\n- 32\\nprobability:\\n- 0.35\\n- 0.6\\n"
        elif deal.status == 1 and noise & 1:
            deal.status = 2
            utc, wall = self._times(account)
            closed = pieces.closed_at[account.zone].at(utc, wall)
            changes = f"{root}crm_stage_id:\\n- 32\\n- 39\\nprobability:\\n- 0.6\\n- 1.0\\n{closed}{pieces.deal_won}"
        elif deal.status == 1:
            deal.status = 3
            changes = (
                f"{root}crm_stage_id:\\n- 32\\n{pieces.nil_item}{pieces.deal_lost}{pieces.lost_reasons[noise >> 2]}"
            )
        elif deal.status == 2:
            deal.status = 0
            changes = f"{root}crm_stage_id:\\n- 39\\n- 31\\nprobability:\\n- 1.0\\n- 0.35\\n"
        else:
            deal.status = 0
            changes = f"{root}crm_stage_id:\\n{pieces.nil_item}- 31\\n"
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "update", changes, deal.version, deal.person

    def _deal_destroy(self, account: Account) -> Row:
        deal = self._take(account.deals)
        if deal is None:
            return self._deal_update(account)
        changes = self._deal_attributes(account, deal)
        self.deals.names[deal.place] = GONE
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "destroy", changes, deal.version + 1, deal.person

    def _deal_merge(self, account: Account) -> Row:
        """An action of the application's own, without changes."""
        deal = self._pick(account.deals)
        deal.version += 1
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "merge", "\\N", deal.version, deal.person

    def _take(self, worked_on: list[Open]) -> Open | None:
        """Remove a record from those being worked on; None if there would be too few left."""
        if len(worked_on) <= 5:
            return None
        index = int(self._random.random() * len(worked_on))
        worked_on[index], worked_on[-1] = worked_on[-1], worked_on[index]
        return worked_on.pop()

    def _task_create(self, account: Account) -> Row:
        task = self._new(self.tasks, account, self._some_person(account))
        self._work_on(account.tasks, task)
        return (
            f"{task.id}\tCrm::Task\t{task.person}\tCrm::Person",
            "create",
            self._task_attributes(account, task),
            1,
            task.person,
        )

    def _task_attributes(self, account: Account, task: Open) -> str:
        pieces = self._pieces
        noise = self._bits(12)
        return (
            f"---\\naccount_id: {account.number}\\n{pieces.task_heads[self.tasks.names[task.place]]}"
            f"{pieces.task_middles[noise & 63]}crm_person_id: {task.person}\\n{pieces.nil['crm_deal_id']}"
            f"{pieces.task_tails[noise >> 6]}"
        )

    def _task_update(self, account: Account) -> Row:
        task = self._pick(account.tasks)
        task.version += 1
        if not self._bits(5):
            old_person, task.person = task.person, self._some_person(account)
            changes = f"{self._pieces.root}crm_person_id:\\n- {old_person}\\n- {task.person}\\n"
            if old_person == task.person:
                changes = self._pieces.nothing_changed
        else:
            changes = self._changes(self._set.task, 6)
        return f"{task.id}\tCrm::Task\t{task.person}\tCrm::Person", "update", changes, task.version, task.person

    def _task_status(self, account: Account) -> Row:
        task = self._pick(account.tasks)
        task.version += 1
        pieces = self._pieces
        root = pieces.root
        if task.status == 0:
            task.status = 1
            changes = f"{root}crm_task_status_id:\\n- 1\\n- 2\\n"
        elif task.status == 1:
            task.status = 2
            done = pieces.completed_at[account.zone].at(*self._times(account))
            changes = f"{root}crm_task_status_id:\\n- 2\\n- 5\\n{done}"
        else:
            task.status = 0
            reopened = pieces.reopened_at[account.zone].at(*self._times(account))
            changes = f"{root}crm_task_status_id:\\n- 5\\n- 1\\n{reopened}"
        return f"{task.id}\tCrm::Task\t{task.person}\tCrm::Person", "update", changes, task.version, task.person

    def _task_destroy(self, account: Account) -> Row:
        task = self._take(account.tasks)
        if task is None:
            return self._task_update(account)
        changes = self._task_attributes(account, task)
        self.tasks.names[task.place] = GONE
        return f"{task.id}\tCrm::Task\t{task.person}\tCrm::Person", "destroy", changes, task.version + 1, task.person

    def _ticket_create(self, account: Account) -> Row:
        ticket = self._new(self.tickets, account, self._some_person(account))
        self._work_on(account.tickets, ticket)
        return (
            f"{ticket.id}\tCrm::Ticket\t{NO_ASSOCIATED}",
            "create",
            self._ticket_attributes(account, ticket),
            1,
            ticket.person,
        )

    def _ticket_attributes(self, account: Account, ticket: Open) -> str:
        pieces = self._pieces
        noise = self._bits(12)
        return (
            f"---\\naccount_id: {account.number}\\n{pieces.ticket_heads[self.tickets.names[ticket.place]]}"
            f"{pieces.ticket_middles[noise & 63]}crm_person_id: {ticket.person}\\n{self._company_of(account)}"
            f"{pieces.ticket_tails[noise >> 6]}"
        )

    def _ticket_update(self, account: Account) -> Row:
        ticket = self._pick(account.tickets)
        ticket.version += 1
        changes = self._changes(self._set.ticket, 6)
        return f"{ticket.id}\tCrm::Ticket\t{NO_ASSOCIATED}", "update", changes, ticket.version, ticket.person

    def _ticket_status(self, account: Account) -> Row:
        ticket = self._pick(account.tickets)
        ticket.version += 1
        pieces = self._pieces
        root = pieces.root
        if ticket.status == 0:
            ticket.status = 1
            first = pieces.first_response_at[account.zone].at(*self._times(account))
            changes = f"{root}crm_ticket_status_id:\\n- 1\\n- 2\\n{first}"
        elif ticket.status == 1 and self._bits(1):
            ticket.status = 2
            changes = f"{root}crm_ticket_status_id:\\n- 2\\n- 3\\n"
        elif ticket.status in (1, 2):
            solved = pieces.resolved_at[account.zone].at(*self._times(account))
            changes = f"{root}crm_ticket_status_id:\\n- {ticket.status + 1}\\n- 4\\n{solved}"
            ticket.status = 3
        else:
            ticket.status = 1
            changes = f"{root}crm_ticket_status_id:\\n- 4\\n- 2\\n"
        return f"{ticket.id}\tCrm::Ticket\t{NO_ASSOCIATED}", "update", changes, ticket.version, ticket.person

    def _ticket_destroy(self, account: Account) -> Row:
        ticket = self._take(account.tickets)
        if ticket is None:
            return self._ticket_update(account)
        changes = self._ticket_attributes(account, ticket)
        self.tickets.names[ticket.place] = GONE
        return f"{ticket.id}\tCrm::Ticket\t{NO_ASSOCIATED}", "destroy", changes, ticket.version + 1, ticket.person

    def _note_create(self, account: Account) -> Row:
        note = Open(0, self._next_note, self._some_person(account), 0, 1)
        self._next_note += 1 + self._hole()
        self._work_on(account.notes, note)
        changes = self._note_attributes(account, note)
        return f"{note.id}\tCrm::Note\t{note.person}\tCrm::Person", "create", changes, 1, note.person

    def _note_attributes(self, account: Account, note: Open) -> str:
        pieces = self._pieces
        noise = self._bits(12)
        return (
            f"---\\naccount_id: {account.number}\\n{pieces.note_bodies[noise & 63]}crm_person_id: {note.person}\\n"
            f"{pieces.nil['notable_type']}{pieces.nil['notable_id']}{pieces.note_pins[noise >> 6]}"
        )

    def _note_update(self, account: Account) -> Row:
        if not account.notes:
            return self._note_create(account)
        note = self._pick(account.notes)
        note.version += 1
        changes = self._changes(self._set.note, 6)
        return f"{note.id}\tCrm::Note\t{note.person}\tCrm::Person", "update", changes, note.version, note.person

    def _note_destroy(self, account: Account) -> Row:
        note = self._take(account.notes)
        if note is None:
            return self._note_create(account)
        changes = self._note_attributes(account, note)
        return f"{note.id}\tCrm::Note\t{note.person}\tCrm::Person", "destroy", changes, note.version + 1, note.person

    def _link(self, account: Account) -> Row:
        """Create a join row of one of the eight models."""
        noise = self._bits(9)
        model, noise = noise & 7, noise >> 3
        deal, person = self._pick(account.deals), 0
        associated = NO_ASSOCIATED
        if model in (0, 1):
            person = self._some_person(account)
            record, associated = "Crm::DealPerson", f"{person}\tCrm::Person"
            keys = f"crm_deal_id: {deal.id}\\ncrm_person_id: {person}\\n{self._pieces.roles[noise]}"
        elif model == 2:
            record, associated, person = "Crm::DealCompany", f"{deal.id}\tCrm::Deal", deal.person
            keys = f"crm_deal_id: {deal.id}\\ncrm_company_id: {self._pick(account.companies).id}\\n"
        elif model == 3:
            person = self._some_person(account)
            record, associated = "Crm::CompanyPerson", f"{person}\tCrm::Person"
            keys = f"crm_company_id: {self._pick(account.companies).id}\\ncrm_person_id: {person}\\n"
        elif model == 4:
            task, person = self._pick(account.tasks), self._some_person(account)
            record = "Crm::TaskPerson"
            keys = f"crm_task_id: {task.id}\\ncrm_person_id: {person}\\n"
        elif model == 5:
            task = self._pick(account.tasks)
            record, person = "Crm::TaskDeal", task.person
            keys = f"crm_task_id: {task.id}\\ncrm_deal_id: {deal.id}\\n"
        elif model == 6:
            ticket, person = self._pick(account.tickets), self._some_person(account)
            record, associated = "Crm::TicketPerson", f"{person}\tCrm::Person"
            keys = f"crm_ticket_id: {ticket.id}\\ncrm_person_id: {person}\\n"
        else:
            ticket = self._pick(account.tickets)
            person = ticket.person
            if noise & 1:
                record = "Crm::TicketCompany"
                keys = f"crm_ticket_id: {ticket.id}\\ncrm_company_id: {self._pick(account.companies).id}\\n"
            else:
                record = "Crm::TicketDeal"
                keys = f"crm_ticket_id: {ticket.id}\\ncrm_deal_id: {deal.id}\\n"
        row = f"{self._next_link}\t{record}\t{associated}"
        self._next_link += 1 + self._hole()
        changes = f"---\\n{keys}"
        if len(account.links) < WORKED_ON_MAX:
            account.links.append((row, person, changes))
        else:
            account.links[self._bits(10)] = (row, person, changes)
        return row, "create", changes, 1, person

    def _unlink(self, account: Account) -> Row:
        if not account.links:
            return self._link(account)
        index = int(self._random.random() * len(account.links))
        account.links[index], account.links[-1] = account.links[-1], account.links[index]
        row, person, changes = account.links.pop()
        return row, "destroy", changes, 2, person

    def _user_update(self, account: Account) -> Row:
        """A type that becomes no activity log."""
        pieces = self._pieces
        user = account.actors[self._bits(7)].partition("\t")[0]
        noise = self._bits(8)
        if noise & 3:
            changes = pieces.root + pieces.last_sign_in_at[account.zone].at(*self._times(account))
        else:
            changes = pieces.root + pieces.user_columns[noise >> 2 & 1][0][noise >> 2]
        return f"{user}\tUser\t{NO_ASSOCIATED}", "update", changes, 2 + noise, 0

    def _product(self, account: Account) -> Row:
        noise = self._bits(7)
        if noise & 1:
            number = self._next_product
            self._next_product += 1
            changes = f"---\\naccount_id: {account.number}\\n{self._pieces.product_creates[noise >> 1]}"
            return f"{number}\tCrm::Product\t{NO_ASSOCIATED}", "create", changes, 1, 0
        changes = self._pieces.root + self._pieces.product_columns[0][0][noise >> 1]
        return f"{self._next_product}\tCrm::Product\t{NO_ASSOCIATED}", "update", changes, 2, 0

    def _api_client_update(self, account: Account) -> Row:
        changes = f"{self._pieces.root}name:\\n- Webhook relay\\n- Webhook relay {account.number}\\n"
        return f"1\tApiClient\t{NO_ASSOCIATED}", "update", changes, 2, 0

    def _nothing_changed(self, account: Account) -> Row:
        deal = self._pick(account.deals)
        deal.version += 1
        changes = self._pieces.nothing_changed
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "update", changes, deal.version, deal.person

    def _json_text(self, account: Account) -> Row:
        """An update from before the column became text: its changes are JSON, and stayed so."""
        if self._pieces is not self._eras[0]:
            return self._deal_update(account)
        deal = self._pick(account.deals)
        deal.version += 1
        noise = self._bits(16)
        changes = f'{{"amount_idr":[{250_000 * (noise & 255)},{250_000 * (noise >> 8)}],"lost_reason":[null,"harga"]}}'
        return f"{deal.id}\tCrm::Deal\t{NO_ASSOCIATED}", "update", changes, deal.version, deal.person

    def _combined(self, account: Account) -> Row:
        """An update into which the create before it was folded (`max_audits`): bare values beside pairs."""
        ticket = self._pick(account.tickets)
        ticket.version += 1
        pieces = self._pieces
        changes = (
            f"---\\naccount_id: {account.number}\\n{pieces.ticket_heads[self.tickets.names[ticket.place]]}"
            f"crm_ticket_status_id:\\n- 1\\n- 2\\npriority:\\n{pieces.priority_raised}crm_person_id: {ticket.person}\\n"
            f"{pieces.nil['crm_company_id']}{pieces.ticket_tails[self._bits(6)]}"
        )
        return f"{ticket.id}\tCrm::Ticket\t{NO_ASSOCIATED}", "update", changes, ticket.version, -ticket.person

    def _sample_form(self, account: Account) -> Row:
        """A row with the very text the real gem wrote for a sample row: all its rare forms."""
        kind = ("Crm::Person", "Crm::Person", "Crm::Deal", "Crm::Task")[self._bits(2)]
        texts = self._pieces.samples[kind]
        if not texts:
            return self._person_update(account)
        changes = texts[int(self._random.random() * len(texts))]
        if kind == "Crm::Person":
            index = self._person_at(account)
            account.versions[index] += 1
            person = self.people.ids[account.persons[index]]
            return f"{person}\tCrm::Person\t{NO_ASSOCIATED}", "update", changes, account.versions[index], person
        record = self._pick(account.deals if kind == "Crm::Deal" else account.tasks)
        record.version += 1
        return f"{record.id}\t{kind}\t{NO_ASSOCIATED}", "update", changes, record.version, record.person


assert NAMES == 1 << 9
assert POOL == 1 << 6
