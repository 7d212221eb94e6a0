"""What becomes of generated rows: most turn into logs, a realistic few are skipped, and none is refused."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from ops.local.generator import GENERATED_MAPPING
from ops.local.generator.history import HISTORY_BEGIN, Account, History, Plan
from ops.local.generator.tables import crm_tables
from ops.local.sample.contacts import generated_contacts
from processors.encoding.transform import Transformed, Transformer
from processors.rules.decide import Refused, Skip
from schemas.records import Contact
from schemas.source.mapping import load
from schemas.vocabulary import SkipReason
from tests.support.generator import EPOCH, audits
from tests.support.lookups import Nothing

ROWS = 12_000


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


class Tables(Nothing):
    """What the processors' tables would hold of an account: its contacts, by id and by the map."""

    def __init__(self, history: History, account: Account) -> None:
        lines = {table: [line[:-1].split("\t") for line in rows] for table, _, rows in crm_tables(history)}
        number = str(account.number)
        people = [(int(f[0]), f[2]) for f in lines["crm_people"] if f[1] == number]
        gone = [
            (int(f[0]), None if f[2] == "\\N" else int(f[2])) for f in lines["crm_deleted_people"] if f[1] == number
        ]
        begin, end = (HISTORY_BEGIN + timedelta(microseconds=us) for us in (account.first_us, account.last_us))
        mapped: list[dict[str, Any]] = []
        contacts = list(generated_contacts(account.company_sso_id, people, gone, (begin, end), mapped))
        by_customer = {contact["customer_id"]: contact for contact in contacts}
        found = {c["crm_data"]["id"]: c for c in contacts if "crm_data" in c}
        found.update(
            {e["crm_person_id"]: by_customer[e["customer_id"]] for e in mapped if e["customer_id"] in by_customer}
        )
        self.people = {person for person, _ in people}
        self.contacts = {
            str(person): Contact(account.company_sso_id, str(person), c["customer_id"], microseconds(c["created_at"]))
            for person, c in found.items()
        }

    def contact(self, person_id: str) -> Contact | None:
        return self.contacts.get(person_id)


@pytest.fixture(scope="module")
def outcomes() -> list[Transformed | Skip | Refused]:
    history = History(Plan(ROWS))
    rows = list(audits(history))
    mapping = load(GENERATED_MAPPING)
    made: list[Transformed | Skip | Refused] = []
    for account in history.accounts:
        tables, transformer = Tables(history, account), Transformer(mapping, account.company_sso_id)
        made += [transformer.transform(row.event, tables) for row in rows if row.account_id == account.number]
        assert sum(str(person) in tables.contacts for person in tables.people) > 0.99 * len(tables.people)
    return made


def test_every_row_can_be_understood(outcomes: list[Transformed | Skip | Refused]) -> None:
    assert len(outcomes) == ROWS
    assert [outcome for outcome in outcomes if isinstance(outcome, Refused)] == []


def test_a_realistic_few_are_skipped(outcomes: list[Transformed | Skip | Refused]) -> None:
    skips = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Skip))
    assert 0.05 < skips.total() / ROWS < 0.10
    assert skips.keys() == {
        SkipReason.UNMAPPED_ACTION_TYPE,
        SkipReason.CONTACT_NOT_FOUND,
        SkipReason.POST_SYNC_LIVE_FEED,
    }
    assert min(skips.values()) / ROWS > 0.005


def test_every_category_and_action_occurs(outcomes: list[Transformed | Skip | Refused]) -> None:
    logs = [outcome.document for outcome in outcomes if isinstance(outcome, Transformed)]
    kinds = {(log["category"], log["action"]) for log in logs}
    everyday = {
        (category, action)
        for category in ("contact", "company", "deal", "task", "ticket", "note")
        for action in ("create", "update", "delete")
    } - {("company", "delete")}  # companies stay
    links = {(category, action) for category in ("deal", "company", "task", "ticket") for action in ("link", "unlink")}
    assert kinds >= everyday | links | {("deal", "won"), ("task", "completed"), ("ticket", "resolved")}
    assert {type(change) for log in logs for change in log["changes"]} == {dict}
