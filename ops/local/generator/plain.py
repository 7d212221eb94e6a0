"""Rows of one simple kind, for comparisons with pipelines that only copy: small flat updates and a few flat creates.

Three quarters updates of four columns or fewer, a quarter creates of a dozen, nearly every comment names the person. No
rare forms, no destroyed records, no links; about 600 bytes a row as JSON.
"""

from collections.abc import Callable
from random import Random

from ops.local.generator.history import Account, History, Plan, Row
from ops.local.generator.pieces import ERAS, Pieces

NO_ASSOCIATED = "\\N\t\\N"
FLAT = 512  # ready-made texts of a kind; nine random bits choose


class PlainHistory(History):
    """As `History`, with other events and comments, and the newest gem's writing all along."""

    def __init__(self, plan: Plan) -> None:
        """Prepare a plan's first row."""
        super().__init__(plan)
        random = Random(f"plain {plan.seed}")  # noqa: S311  # reproducible on purpose
        self._flat = _FlatTexts(self._eras[-1], random)
        self._comments = ['{"crm_person_id":%d}'] * 256

    def _event_table(self) -> list[Callable[[Account], Row]]:
        shares: tuple[tuple[Callable[[Account], Row], int], ...] = (
            (self._flat_person_update, 308),
            (self._flat_deal_update, 230),
            (self._flat_task_update, 154),
            (self._flat_ticket_update, 76),
            (self._flat_create, 154),
            (self._flat_note, 102),
        )
        return [event for event, times in shares for _ in range(times)]

    def _enter_era(self, number: int) -> None:  # noqa: ARG002
        super()._enter_era(len(ERAS) - 1)

    def _flat_person_update(self, account: Account) -> Row:
        index = self._person_at(account)
        account.versions[index] += 1
        person = self.people.ids[account.persons[index]]
        changes = self._flat.person_updates[self._bits(9)]
        return f"{person}\tCrm::Person\t{NO_ASSOCIATED}", "update", changes, account.versions[index], person

    def _flat_deal_update(self, account: Account) -> Row:
        deal = self._pick(account.deals)
        deal.version += 1
        return (
            f"{deal.id}\tCrm::Deal\t{self._linked(deal.person)}",
            "update",
            self._flat.deal_updates[self._bits(9)],
            deal.version,
            deal.person,
        )

    def _flat_task_update(self, account: Account) -> Row:
        task = self._pick(account.tasks)
        task.version += 1
        return (
            f"{task.id}\tCrm::Task\t{self._linked(task.person)}",
            "update",
            self._flat.task_updates[self._bits(9)],
            task.version,
            task.person,
        )

    def _flat_ticket_update(self, account: Account) -> Row:
        ticket = self._pick(account.tickets)
        ticket.version += 1
        return (
            f"{ticket.id}\tCrm::Ticket\t{self._linked(ticket.person)}",
            "update",
            self._flat.ticket_updates[self._bits(9)],
            ticket.version,
            ticket.person,
        )

    def _flat_create(self, account: Account) -> Row:
        deal = self._new(self.deals, account, self._some_person(account))
        self._work_on(account.deals, deal)
        before, after = self._flat.creates[self._bits(9)]
        changes = f"---\\naccount_id: {account.number}\\n{before}crm_person_id: {deal.person}\\n{after}"
        return f"{deal.id}\tCrm::Deal\t{self._linked(deal.person)}", "create", changes, 1, deal.person

    def _flat_note(self, account: Account) -> Row:
        person = self._some_person(account)
        number = self._next_note
        self._next_note += 1 + self._hole()
        before, after = self._flat.notes[self._bits(9)]
        changes = f"---\\naccount_id: {account.number}\\n{before}crm_person_id: {person}\\n{after}"
        return f"{number}\tCrm::Note\t{self._linked(person)}", "create", changes, 1, person

    def _linked(self, person: int) -> str:
        return f"{person}\tCrm::Person" if self._bits(1) else NO_ASSOCIATED


class _FlatTexts:
    """The texts, written once."""

    def __init__(self, pieces: Pieces, random: Random) -> None:
        texts = pieces.texts(random)
        one, below = texts.one, texts.below

        def update(columns: dict[str, Callable[[], object]]) -> list[str]:
            return [
                pieces.root + pieces.write({name: [value(), value()] for name, value in columns.items()})
                for _ in range(FLAT)
            ]

        self.person_updates = update(
            {
                "first_name": lambda: one(pieces.first_names),
                "email": lambda: one(pieces.emails),
                "telephone": texts.telephone,
                "address": lambda: f"Jl. Sudirman No. {below(99)}, Jakarta Pusat 103{below(9)}0",
            }
        )
        self.deal_updates = update(
            {
                "name": lambda: f"{one(pieces.first_names)} {one(pieces.last_names)} renewal {below(9)}",
                "crm_stage_id": lambda: 31 + below(9),
                "probability": lambda: below(20) / 20,
                "amount_idr": lambda: 250_000 * below(40),
            }
        )
        self.task_updates = update(
            {
                "title": lambda: f"{one(('Call back', 'Visit'))}: {one(pieces.first_names)} {one(pieces.last_names)}",
                "due_at": lambda: texts.plain_time(),
                "crm_task_status_id": lambda: 1 + below(9),
            }
        )
        self.ticket_updates = update(
            {
                "name": lambda: f"Ticket: {one(pieces.first_names)} {one(pieces.last_names)}",
                "crm_ticket_status_id": lambda: 1 + below(9),
                "priority": lambda: below(4),
                "resolved_at": lambda: texts.maybe(texts.plain_time(), 0.5),
            }
        )
        self.creates = [
            (
                pieces.write({"name": one(pieces.deal_names), "email": one(pieces.emails)}),
                pieces.write(
                    {
                        "crm_stage_id": 31 + below(9),
                        "amount_idr": 250_000 * below(90),
                        "source": "import",
                        "owner_id": 11 + below(50),
                        "description": None,
                        "lost_reason": None,
                        "closed_at": None,
                        "tags": ["vip", "wa"],
                    }
                ),
            )
            for _ in range(FLAT)
        ]
        self.notes = [
            (
                pieces.write({"body": f"{texts.sentence()} {texts.sentence()} {texts.sentence()} {texts.sentence()}"}),
                pieces.write({"notable_type": None, "notable_id": None, "pinned": False}),
            )
            for _ in range(FLAT)
        ]
