"""The live feed finds the contacts that the replay finds, one by one, and through indexes only."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from ops.control import migrations
from processors.live_mongo import MongoContacts, spellings
from producer.references import find_contacts

ACCOUNTS = ("acme", "other")
PERSONS = 60
SYNCED = datetime(2024, 1, 1, tzinfo=UTC)


def odd_contacts(dice: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return contacts and map entries in every form they may have, doubled, without a date, with and without ids."""
    contacts: list[dict[str, Any]] = []
    mapped: list[dict[str, Any]] = []
    for account in ACCOUNTS:
        for number in range(PERSONS):
            own_id: Any = dice.choice((number, str(number), float(number), None))
            contact: dict[str, Any] = {
                "_id": dice.choice((ObjectId(dice.randbytes(12)), f"{account}-{number}")),
                "company_sso_id": account,
                "created_at": dice.choice((SYNCED + timedelta(milliseconds=dice.randrange(10**9)), "no date", None)),
            }
            if own_id is not None:
                contact["crm_data"] = {"id": own_id}
            if (customer := dice.choice((f"cus-{number % 20}", f"cus-{number}", number, "", None))) is not None:
                contact["customer_id"] = customer
            if dice.random() < 0.1:
                del contact["created_at"]
            contacts.append(contact)
        for number in range(0, PERSONS + 20, 2):
            to = dice.choice(contacts)
            customer = dice.choice((to.get("customer_id"), to["_id"], str(to["_id"]), "nobody"))
            mapped.append(
                {
                    "company_sso_id": account,
                    "crm_person_id": dice.choice((number, str(number))),
                    "customer_id": customer,
                }
            )
    return contacts, mapped


@pytest.mark.parametrize("seed", range(3))
def test_one_by_one_and_as_a_whole_the_same_contacts_are_found(mongo_database: Any, seed: int) -> None:
    migrations.up(mongo_database)
    contacts, mapped = odd_contacts(random.Random(seed))
    mongo_database["contacts"].insert_many(contacts)
    mongo_database["crm_contact_id_map"].insert_many(mapped)
    persons = [(account, str(number)) for account in (*ACCOUNTS, "nobody") for number in range(PERSONS + 20)]
    found = MongoContacts(mongo_database).find(persons)
    whole = {
        (account, person): watermarked
        for account in ACCOUNTS
        for person, watermarked in find_contacts(mongo_database, account).by_person.items()
    }
    assert {key: (contact.created_at, contact.customer_id) for key, contact in found.items()} == whole
    assert len(whole) > PERSONS / 2
    assert all((contact.company_sso_id, contact.crm_person_id) == key for key, contact in found.items())


def stages(plan: Any) -> set[str]:
    """Return the names of every stage in a query's plan."""
    if isinstance(plan, dict):
        inner: set[str] = set().union(*(stages(part) for part in plan.values()))
        return inner | ({plan["stage"]} if isinstance(plan.get("stage"), str) else set())
    if isinstance(plan, list):
        return set().union(*(stages(part) for part in plan))
    return set()


@pytest.mark.parametrize(
    ("collection", "query"),
    [
        ("contacts", {"company_sso_id": "acme", "crm_data.id": {"$in": spellings("7")}}),
        ("crm_contact_id_map", {"company_sso_id": "acme", "crm_person_id": {"$in": spellings("7")}}),
        (
            "contacts",
            {
                "$or": [
                    {"company_sso_id": "acme", "customer_id": {"$in": ["c"]}},
                    {"company_sso_id": "acme", "_id": {"$in": ["c"]}},
                ]
            },
        ),
        (
            "activity_logs",
            {
                "$or": [
                    {
                        "company_sso_id": "acme",
                        "customer_id": customer,
                        "external_id": None,
                        "timestamp": {"$gte": SYNCED, "$lte": SYNCED + timedelta(seconds=4)},
                    }
                    for customer in ("a", "b")
                ]
            },
        ),
    ],
    ids=["by person", "by map", "by customer", "legacy logs"],
)
def test_every_look_up_goes_through_an_index(mongo_database: Any, collection: str, query: dict[str, Any]) -> None:
    migrations.up(mongo_database)
    plan = mongo_database[collection].find(query).explain()["queryPlanner"]["winningPlan"]
    assert "COLLSCAN" not in stages(plan)
    assert stages(plan) & {"IXSCAN", "IDHACK"}
