"""The CDP's side of the sample data: `contacts` and `crm_contact_id_map` for the persons of both sample CRMs.

Every contact is a function of its account and CRM person id, so seeding twice, or on another day, gives the same
documents. Deliberately among them: contacts synced in the middle of their history (live feed owns the rest), one synced
at the very instant of an audit row, persons without a contact, persons known only through the id map, and two accounts
that use the same person ids for different customers.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from bson import ObjectId
from psycopg import sql

from ops.local import generator
from ops.local.sample.database import connected
from ops.local.sample.rows import SAMPLE_JSONB, SAMPLE_YAML, json_lines
from schemas.collections import CONTACT_ID_MAP, CONTACTS
from schemas.process.mongodb import Database, Document

SEEDED_BY = "crm-replay"  # marks what may be replaced; a document without it is never touched
SEEDS = "crm_replay_seeds"  # _id: account, fingerprint: what was seeded; written last
BATCH = 5_000
_VERSION = 1  # raise when the documents change

_SAMPLE_SYNC = datetime(2025, 3, 1, 2, 0, tzinfo=UTC)  # after every sample row
_SAMPLE_EARLY = {
    # Synced half way through their history.
    (SAMPLE_YAML, 50002): datetime(2018, 5, 7, 12, 0, tzinfo=UTC),
    (SAMPLE_YAML, 50008): datetime(2023, 2, 5, 12, 0, tzinfo=UTC),
    (SAMPLE_JSONB, 50019): datetime(2023, 2, 1, 0, 0, tzinfo=UTC),
    # Synced at the instant of its only row, id 1200282, to the microsecond: equal belongs to the live feed.
    (SAMPLE_YAML, 50014): datetime(2023, 2, 22, 22, 20, 17, 652_000, tzinfo=UTC),
}
# Destroyed persons. 50010 has a contact in the other account only: a lookup across tenants would find it. The others
# were merged into a person who is still there.
_SAMPLE_ONLY_ELSEWHERE = {(SAMPLE_JSONB, 50010), (SAMPLE_YAML, 50021)}
_SAMPLE_MERGED = {(SAMPLE_YAML, 50012): 50013, (SAMPLE_JSONB, 50021): 50022}

# Of the generated persons of an account, by rank in id order. Fewer than 1 % have no contact, in an account of any
# size: the control plane refuses a job below 99 %.
_RANKS = 167
_RANK_WITHOUT_CONTACT = 166
_RANK_BY_MAP_ONLY = 40
_EARLY_EVERY, _EARLY_RANK = 25, 7
_EARLIEST, _LATEST = 0.35, 0.98  # of the account's history


@dataclass(frozen=True, slots=True)
class ContactCounts:
    """What the CDP holds for one account now."""

    company_sso_id: str
    contacts: int
    mapped_ids: int
    seeded: bool  # False: it was there before


def seed_contacts(
    database: Database, dsn: str = "", schema: str = "crm", accounts: Iterable[str] | None = None
) -> list[ContactCounts]:
    """Seed both sample accounts, and with a `dsn` those of the generated CRM in `schema`; `accounts`: only these.

    Safe to repeat, and after the CRM was generated anew; a seeding that died is done again from its start.
    """
    wanted = None if accounts is None else set(accounts)
    made = [
        seed_sample(database, account) for account in (SAMPLE_YAML, SAMPLE_JSONB) if wanted is None or account in wanted
    ]
    if dsn:
        made += seed_generated(database, dsn, schema, wanted)
    return made


def seed_sample(database: Database, company_sso_id: str) -> ContactCounts:
    """Seed the contacts of one sample account."""
    people = {row["id"]: row for row in json_lines("people")}
    contacts: list[Document] = []
    for person, row in sorted(people.items()):
        created_at = _SAMPLE_EARLY.get((company_sso_id, person), _SAMPLE_SYNC + timedelta(milliseconds=person % 1000))
        name = " ".join(filter(None, (row["first_name"], row["last_name"])))
        contacts.append(_contact(company_sso_id, person, name, created_at))
    for account, person in _SAMPLE_ONLY_ELSEWHERE:
        if account == company_sso_id:
            contacts.append(_contact(company_sso_id, person, "Orang lain", _SAMPLE_SYNC))
    mapped = [
        _mapped(company_sso_id, person, into)
        for (account, person), into in _SAMPLE_MERGED.items()
        if account == company_sso_id
    ]
    return _seed(database, company_sso_id, f"sample {_VERSION}", contacts, mapped)


def seed_generated(
    database: Database, dsn: str, schema: str = "crm", wanted: set[str] | None = None
) -> list[ContactCounts]:
    """Seed the contacts of the generated CRM's accounts, streaming its persons in id order."""
    made = []
    generator.accounts(dsn, schema)  # raises BadInputError if there is none
    with connected(dsn) as db:
        accounts = db.execute(
            sql.SQL(
                "SELECT id, company_sso_id, first_audit_at, last_audit_at,"
                " obj_description((SELECT to_regclass({}))) FROM {} ORDER BY id"
            ).format(sql.Literal(sql.Identifier(schema, "audits").as_string(db)), sql.Identifier(schema, "accounts"))
        ).fetchall()
        for number, company_sso_id, begin, end, mark in accounts:
            if wanted is not None and company_sso_id not in wanted:
                continue
            history = (begin.replace(tzinfo=UTC), end.replace(tzinfo=UTC))
            with db.cursor("people") as people, db.cursor("gone") as gone:
                people.itersize = gone.itersize = BATCH
                people.execute(
                    sql.SQL(
                        "SELECT id, concat_ws(' ', first_name, last_name) FROM {} WHERE account_id = %s ORDER BY id"
                    ).format(sql.Identifier(schema, "crm_people")),
                    (number,),
                )
                gone.execute(
                    sql.SQL("SELECT id, merged_into_id FROM {} WHERE account_id = %s ORDER BY id").format(
                        sql.Identifier(schema, "crm_deleted_people")
                    ),
                    (number,),
                )
                mapped: list[Document] = []
                contacts = generated_contacts(company_sso_id, people, gone, history, mapped)
                made.append(_seed(database, company_sso_id, f"{mark}, contacts {_VERSION}", contacts, mapped))
    return made


def generated_contacts(
    company_sso_id: str,
    people: Iterable[tuple[int, str]],
    gone: Iterable[tuple[int, int | None]],
    history: tuple[datetime, datetime],
    mapped: list[Document],
) -> Iterator[Document]:
    """Yield the contacts of an account's persons, (id, name) by id, and of destroyed ones, (id, merged into or None).

    Fills `mapped` with the id map's entries on the way; `history` is the account's first and last audit.
    """
    begin, end = history
    span = end - begin
    for rank, (person, name) in enumerate(people):
        if rank % _RANKS == _RANK_WITHOUT_CONTACT:
            continue
        noise = _mix(person)
        if rank % _EARLY_EVERY == _EARLY_RANK:
            created_at = begin + span * (_EARLIEST + (_LATEST - _EARLIEST) * (noise % 1000) / 1000)
        else:
            created_at = end + timedelta(hours=6, milliseconds=noise % 86_400_000)
        contact = _contact(company_sso_id, person, name, created_at)
        if rank % _RANKS == _RANK_BY_MAP_ONLY:
            del contact["crm_data"]  # came from another channel; only the map knows who it is in the CRM
            mapped.append(_mapped(company_sso_id, person, person))
        yield contact
    for person, merged_into in gone:
        if merged_into is not None:
            mapped.append(_mapped(company_sso_id, person, merged_into))
        elif _mix(person) % 4:  # came over before it was destroyed
            yield _contact(company_sso_id, person, "", end + timedelta(hours=6))


def _seed(
    database: Database,
    company_sso_id: str,
    fingerprint: str,
    contacts: Iterable[Document],
    mapped: list[Document],
) -> ContactCounts:
    """Insert the account's documents unless these very ones are there."""
    seeds = database[SEEDS]
    ours = {"company_sso_id": company_sso_id, "seeded_by": SEEDED_BY}
    there = seeds.find_one({"_id": company_sso_id})
    if there is not None and there["fingerprint"] == fingerprint:
        return ContactCounts(company_sso_id, there["contacts"], there["mapped_ids"], seeded=False)
    seeds.delete_one({"_id": company_sso_id})  # dying from here on means that all of it is done again
    database[CONTACTS].delete_many(ours)
    database[CONTACT_ID_MAP].delete_many(ours)
    inserted = _insert(database, CONTACTS, contacts)
    inserted_ids = _insert(database, CONTACT_ID_MAP, mapped)  # complete only now: the line above fills it
    seeds.insert_one(
        {"_id": company_sso_id, "fingerprint": fingerprint, "contacts": inserted, "mapped_ids": inserted_ids}
    )
    return ContactCounts(company_sso_id, inserted, inserted_ids, seeded=True)


def _insert(database: Database, collection: str, documents: Iterable[Document]) -> int:
    inserted = 0
    left = iter(documents)
    while batch := list(islice(left, BATCH)):
        database[collection].insert_many(batch, ordered=False)
        inserted += len(batch)
    return inserted


def _contact(company_sso_id: str, person: int, name: str, created_at: datetime) -> Document:
    return {
        "_id": _contact_id(company_sso_id, person),
        "company_sso_id": company_sso_id,
        "customer_id": _customer_id(company_sso_id, person),
        "crm_data": {"id": person},
        "name": name,
        "created_at": created_at.replace(microsecond=created_at.microsecond // 1000 * 1000),  # BSON has milliseconds
        "seeded_by": SEEDED_BY,
    }


def _mapped(company_sso_id: str, person: int, contact_of: int) -> Document:
    """Return the map's entry: this CRM person is the contact that was made for person `contact_of`."""
    return {
        "_id": ObjectId(_prefix(company_sso_id) + (person | 1 << 63).to_bytes(8, "big")),
        "company_sso_id": company_sso_id,
        "crm_person_id": person,
        "contact_id": _contact_id(company_sso_id, contact_of),
        "customer_id": _customer_id(company_sso_id, contact_of),
        "seeded_by": SEEDED_BY,
    }


def _contact_id(company_sso_id: str, person: int) -> ObjectId:
    return ObjectId(_prefix(company_sso_id) + person.to_bytes(8, "big"))


def _customer_id(company_sso_id: str, person: int) -> str:
    return f"cus-{zlib.crc32(company_sso_id.encode()):08x}{_mix(person):016x}"


def _prefix(company_sso_id: str) -> bytes:
    return zlib.crc32(company_sso_id.encode()).to_bytes(4, "big")


def _mix(number: int) -> int:
    """Return 64 well-mixed bits of a number: splitmix64's last steps."""
    number = (number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ number >> 31


def totals(counts: Iterable[ContactCounts]) -> Mapping[str, int]:
    """Return the sums over accounts: contacts, mapped_ids."""
    made = list(counts)
    return {"contacts": sum(c.contacts for c in made), "mapped_ids": sum(c.mapped_ids for c in made)}
