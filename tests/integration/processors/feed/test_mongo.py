"""The live feed finds the contacts that the replay finds, one by one, and through indexes only."""

import random
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from pymongo.errors import DuplicateKeyError

from ops.jobs import coverage, migrations
from processors.feed.mongo import MongoContacts
from producer.references import find_contacts
from schemas.source.contact_rules import spellings

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


# What a contact can carry as its CRM person id, and the person that it is; None: nobody, for everyone who looks.
FORMS: list[tuple[Any, str | None]] = [
    (1, "1"),
    (Int64(2), "2"),
    (3.0, "3"),
    (Decimal128("4"), "4"),
    (Decimal128("5.00"), "5"),
    (Decimal128("0.6E1"), "6"),
    ("7", "7"),
    (2**63 - 1, str(2**63 - 1)),
    (str(2**63 - 2), str(2**63 - 2)),
    (Decimal128(str(2**63 - 3)), str(2**63 - 3)),
    (float(2**60), str(2**60)),
    (" 20 ", None),
    ("21\n", None),
    ("022", None),
    ("+23", None),
    ("-24", None),
    ("25.0", None),
    ("2.6e1", None),
    ("\uff12\uff17", None),
    ("\u0662\u0668", None),
    ("2_9", None),
    ("9" * 19, None),
    ("9" * 5_000, None),
    ("", None),
    (-30, None),
    (0, None),
    (31.5, None),
    (float("nan"), None),
    (float("inf"), None),
    (1e300, None),
    (float(2**63), None),
    (Decimal128("NaN"), None),
    (Decimal128("sNaN"), None),
    (Decimal128("Infinity"), None),
    (Decimal128("1E+6000"), None),
    (Decimal128("32.5"), None),
    (True, None),
    (None, None),
    ([33], None),
    ({"$oid": 34}, None),
    (b"35", None),
    (ObjectId("353535353535353535353535"), None),
    (SYNCED, None),
]
ASKED = [str(number) for number in (*range(60), *(2**63 - number for number in range(1, 5)), 2**60)]


def found_by_all(database: Any, account: str) -> dict[str, tuple[int, str]]:
    """Return what the run's table, the live feed and the guard find, which has to be the same."""
    whole = find_contacts(database, account).by_person
    found = MongoContacts(database).find([(account, person) for person in ASKED])
    assert {person: (contact.created_at, contact.customer_id) for (_, person), contact in found.items()} == whole
    return whole


@pytest.mark.parametrize("place", ["contacts", "crm_contact_id_map"])
def test_everyone_takes_the_same_forms_of_a_person_id(mongo_database: Any, place: str) -> None:
    migrations.up(mongo_database)
    for number, (form, _) in enumerate(FORMS):
        contact = {"_id": number, "company_sso_id": "acme", "created_at": SYNCED, "customer_id": f"cus-{number}"}
        if place == "contacts":
            contact["crm_data"] = {"id": form}
        else:
            entry = {"company_sso_id": "acme", "crm_person_id": form, "customer_id": f"cus-{number}"}
            with suppress(DuplicateKeyError):  # a NaN is a NaN, whatever its type
                mongo_database[place].insert_one(entry)
        mongo_database["contacts"].insert_one(contact)
    wanted = {person: f"cus-{number}" for number, (_, person) in enumerate(FORMS) if person is not None}
    assert {person: customer for person, (_, customer) in found_by_all(mongo_database, "acme").items()} == wanted
    assert coverage.known_persons(mongo_database, "acme", ASKED) == set(wanted)
    if place == "contacts":
        found = find_contacts(mongo_database, "acme")
        assert found.odd_ids == sum(person is None and form not in (None, "") for form, person in FORMS)
        assert len(found.odd_ids_named) == 5


def test_crm_data_that_is_no_object_is_nobodys(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    for number, crm_data in enumerate(([{"id": 1}], 2, "3", {"id": {"id": 4}}, {"id": [5, "6"]})):
        mongo_database["contacts"].insert_one(
            {"_id": number, "company_sso_id": "acme", "created_at": SYNCED, "crm_data": crm_data}
        )
    assert found_by_all(mongo_database, "acme") == {}
    assert coverage.known_persons(mongo_database, "acme", ASKED) == set()


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_forms_of_one_person_the_same_one_counts_whatever_the_order(
    mongo_database: Any, backwards: bool
) -> None:
    migrations.up(mongo_database)
    later = SYNCED + timedelta(days=1)
    contacts = [
        {"_id": "a", "company_sso_id": "acme", "created_at": later, "crm_data": {"id": 1}},
        {"_id": "b", "company_sso_id": "acme", "created_at": SYNCED, "crm_data": {"id": "1"}},
        {"_id": "c", "company_sso_id": "acme", "created_at": SYNCED, "crm_data": {"id": Decimal128("1")}},
        {"_id": "d", "company_sso_id": "acme", "created_at": later},
        {"_id": "e", "company_sso_id": "acme", "created_at": SYNCED},
    ]
    mapped = [
        {"company_sso_id": "acme", "crm_person_id": 2, "customer_id": "d"},
        {"company_sso_id": "acme", "crm_person_id": "2", "customer_id": "e"},
        {"company_sso_id": "acme", "crm_person_id": 3, "customer_id": "gone"},
        {"company_sso_id": "acme", "crm_person_id": "3", "customer_id": "d"},
    ]
    mongo_database["contacts"].insert_many(contacts[::-1] if backwards else contacts)
    mongo_database["crm_contact_id_map"].insert_many(mapped[::-1] if backwards else mapped)
    customers = {person: customer for person, (_, customer) in found_by_all(mongo_database, "acme").items()}
    assert customers == {"1": "b", "2": "e", "3": "d"}


def test_an_id_map_names_customers_in_any_form(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    ids = [1, "2", 3.0, Decimal128("4"), Decimal128("5.0"), ObjectId("353535353535353535353535"), "c d", 8.5]
    for number, customer in enumerate(ids, start=1):
        mongo_database["contacts"].insert_one(
            {"_id": f"c{number}", "company_sso_id": "acme", "created_at": SYNCED, "customer_id": customer}
        )
        mongo_database["crm_contact_id_map"].insert_many(
            [
                {"company_sso_id": "acme", "crm_person_id": number, "customer_id": customer},
                {"company_sso_id": "acme", "crm_person_id": number + 10, "customer_id": str(customer)},
            ]
        )
    for number, odd in enumerate(([1], {"a": 1}, None), start=30):
        mongo_database["crm_contact_id_map"].insert_one(
            {"company_sso_id": "acme", "crm_person_id": number, "customer_id": odd}
        )
    found = found_by_all(mongo_database, "acme")
    assert set(found) == {str(number + more) for number in range(1, len(ids) + 1) for more in (0, 10)}


def test_a_contact_of_several_accounts_is_no_contact_of_any(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    mongo_database["contacts"].insert_one(
        {"company_sso_id": ["acme", "other"], "created_at": SYNCED, "crm_data": {"id": 1}}
    )
    assert found_by_all(mongo_database, "acme") == {}


class Damaged:
    """A database whose answers hold bytes that are no UTF-8, where a document says `#ff#`.

    MongoDB keeps such texts; the embedded server refuses to be given them.
    """

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getitem__(self, name: str) -> "Damaged":
        return Damaged(self._real[name])

    def with_options(self, **options: Any) -> "Damaged":
        return Damaged(self._real.with_options(**options))

    def find_raw_batches(self, *args: Any, **options: Any) -> Iterator[bytes]:
        for batch in self._real.find_raw_batches(*args, **options):
            yield batch.replace(b"#ff#", b"\xffa\xc3\x28")


def odd_documents(database: Any) -> None:
    """Insert what MongoDB keeps and Python cannot hold, beside what it can."""
    contact = {"company_sso_id": "acme", "created_at": SYNCED}
    year_10316, year_minus_32 = DatetimeMS(263_384_265_600_000), DatetimeMS(-63_152_438_400_000)
    database["contacts"].insert_many(
        [
            {**contact, "_id": "fine", "crm_data": {"id": 1}},
            {**contact, "_id": "late", "crm_data": {"id": 2}, "created_at": year_10316},
            {**contact, "_id": "early", "crm_data": {"id": 3}, "created_at": year_minus_32},
            {**contact, "_id": "last", "crm_data": {"id": 4}, "created_at": DatetimeMS(2**63 - 1)},
            {**contact, "_id": "first", "crm_data": {"id": 5}, "created_at": DatetimeMS(-(2**63))},
            {**contact, "_id": "mapped", "created_at": year_10316},
            {**contact, "_id": "bad-1", "crm_data": {"id": 10}, "customer_id": "c #ff#"},
            {**contact, "_id": "bad-#ff#", "crm_data": {"id": 11}},
            {**contact, "_id": "bad-3", "crm_data": {"id": "12#ff#"}},
            {**contact, "_id": "bad-4", "crm_data": {"id": 13}, "created_at": "#ff#"},
            {**contact, "_id": "else", "crm_data": {"id": 14}, "note": "#ff#"},
        ]
    )
    entry = {"company_sso_id": "acme"}
    database["crm_contact_id_map"].insert_many(
        [
            {**entry, "crm_person_id": 20, "customer_id": "mapped"},
            {**entry, "_id": "bad-5", "crm_person_id": 21, "customer_id": "c #ff#"},
        ]
    )


def test_a_document_that_cannot_be_decoded_costs_that_contact_only(
    mongo_database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    migrations.up(mongo_database)
    odd_documents(mongo_database)
    damaged: Any = Damaged(mongo_database)
    synced = 1_704_067_200_000_000
    assert found_by_all(damaged, "acme") == {
        "1": (synced, "fine"),
        "2": (263_384_265_600_000_000, "late"),
        "3": (-63_152_438_400_000_000, "early"),
        "4": (2**63 - 1, "last"),
        "5": (-(2**63) + 1, "first"),
        "14": (synced, "else"),
        "20": (263_384_265_600_000_000, "mapped"),
    }
    found = find_contacts(damaged, "acme")
    assert found.undecodable == 5
    assert set(found.undecodable_named) == {"bad-1", "bad-\ufffda\ufffd(", "bad-3", "bad-4", "bad-5"}
    assert coverage.known_persons(damaged, "acme", ASKED) == {
        *map(str, range(1, 6)),
        "10",
        "11",
        "13",
        "14",
        "20",
        "21",
    }
    live = MongoContacts(damaged)
    caplog.clear()
    for _ in range(2):
        assert ("acme", "1") in live.find([("acme", person) for person in ASKED])
    assert live.undecodable == 4  # the one whose CRM person id is not text is not found by it
    assert sum("bad-1" in record.getMessage() for record in caplog.records) == 1


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
