"""Reference topics and markers on real servers."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from bson.datetime_ms import DatetimeMS

from producer import markers, references
from producer.audits import connect
from producer.references import ReferenceCounts
from schemas.codec import Codec
from schemas.errors import BadInputError, ReplayError
from schemas.records import Contact, Record, Referent, User
from schemas.source.mapping import SourceMapping, load
from tests.fixtures.services import postgres_database
from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob

pytestmark = pytest.mark.services

OLD, NEW = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 6, 1, 12, 30, 15, 250_000, tzinfo=UTC)
OLD_US, NEW_US = 1_704_067_200_000_000, 1_717_245_015_250_000


def publish(here: crm.Surroundings, mongo: Any, mapping: SourceMapping | None = None) -> ReferenceCounts:
    return references.publish(
        here.dsn,
        mapping or load(None),
        here.job.company_sso_id,
        kafka={"bootstrap.servers": here.kafka},
        mongo=mongo,
        topics=here.job.topics,
        codec=Codec(),
    )


def table(here: crm.Surroundings, topic: str) -> dict[str, Record]:
    """Return what a table loaded from the topic holds."""
    rows: dict[str, Record] = {}
    for _, key, value in crm.everything_on(here.kafka, topic):
        assert key is not None
        if value is None:
            del rows[key.decode()]
        else:
            rows[key.decode()] = Codec().decode(value)
    return rows


def test_contacts_come_by_crm_id_then_by_the_id_map_and_never_from_another_account(
    make_job: MakeJob, mongo_database: Any
) -> None:
    here = make_job()
    crm.load_sample(here.dsn)
    account = here.job.company_sso_id
    mongo_database["contacts"].insert_many(
        [
            {"_id": "c1", "company_sso_id": account, "crm_data": {"id": 50001}, "created_at": NEW},
            {"_id": "c2", "company_sso_id": account, "crm_data": {"id": "50002"}, "created_at": NEW, "customer_id": 77},
            {"_id": "c3", "company_sso_id": account, "crm_data": {"id": "50002"}, "created_at": OLD, "customer_id": 78},
            {"_id": "c4", "company_sso_id": account, "created_at": OLD, "customer_id": "mapped"},
            {"_id": "c5", "company_sso_id": account, "crm_data": {"id": 50005}},
            {"_id": "c6", "company_sso_id": "other", "crm_data": {"id": 50006}, "created_at": OLD},
            {"_id": "c7", "company_sso_id": "other", "created_at": OLD, "customer_id": "theirs"},
        ]
    )
    mongo_database["crm_contact_id_map"].insert_many(
        [
            {"company_sso_id": account, "crm_person_id": 50004, "customer_id": "mapped"},
            {"company_sso_id": account, "crm_person_id": "50001", "customer_id": "mapped"},
            {"company_sso_id": account, "crm_person_id": 50008, "customer_id": "theirs"},
            {"company_sso_id": "other", "crm_person_id": 50009, "customer_id": "mapped"},
        ]
    )
    counts = publish(here, mongo_database)
    assert table(here, here.job.topics.contacts) == {
        "50001": Contact(account, "50001", "c1", NEW_US),
        "50002": Contact(account, "50002", "78", OLD_US),
        "50004": Contact(account, "50004", "mapped", OLD_US),
    }
    assert (counts.contacts, counts.contacts_doubled, counts.contacts_mapped) == (3, 1, 1)
    assert (counts.contacts_unusable, counts.mapped_missing) == (1, 1)


def test_users_and_referents_are_those_of_the_tables(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job()
    crm.load_sample(here.dsn)
    counts = publish(here, mongo_database)
    users = table(here, here.job.topics.users)
    assert users == {
        str(row["id"]): User(row["id"], row["email"] or "", row["full_name"] or "", row["deleted_at"] is not None)
        for row in crm.sample_rows("users")
    }
    assert any(isinstance(user, User) and user.deleted for user in users.values())
    referents = table(here, here.job.topics.referents)
    for row in crm.sample_rows("deals"):
        assert referents[f"Crm::Deal:{row['id']}"] == Referent("Crm::Deal", row["id"], row["name"] or "")
    assert (counts.users, counts.referents) == (len(users), len(referents))
    assert {key.rsplit(":", 1)[0] for key in referents} == {
        "Crm::Person", "Crm::Company", "Crm::Deal", "Crm::Task", "Crm::Ticket",
    }  # fmt: skip


def test_what_is_gone_gets_a_tombstone(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job()
    crm.load_sample(here.dsn)
    contact = {"company_sso_id": here.job.company_sso_id, "created_at": OLD}
    mongo_database["contacts"].insert_many(
        [{**contact, "crm_data": {"id": 1}, "customer_id": "a"}, {**contact, "crm_data": {"id": 2}, "customer_id": "b"}]
    )
    assert publish(here, mongo_database).tombstones == 0
    mongo_database["contacts"].delete_one({"customer_id": "a"})
    with psycopg.connect(here.dsn) as db:
        gone = db.execute("DELETE FROM crm_deals WHERE id = (SELECT min(id) FROM crm_deals) RETURNING id").fetchall()[
            0
        ][0]
    assert publish(here, mongo_database).tombstones == 2
    assert set(table(here, here.job.topics.contacts)) == {"2"}
    assert f"Crm::Deal:{gone}" not in table(here, here.job.topics.referents)
    assert publish(here, mongo_database).tombstones == 0, "a tombstone is not a key that is left behind"


def test_referents_are_the_accounts_own_where_the_table_can_tell(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job()
    crm.make_audits(here.dsn, extra=", account_id int")
    with psycopg.connect(here.dsn) as db:
        db.execute("CREATE TABLE accounts (id int, sso text)")
        db.execute("INSERT INTO accounts VALUES (1, %s), (2, 'other')", [here.job.company_sso_id])
        db.execute("CREATE TABLE crm_deals (id int, account_id int, name text)")
        db.execute("INSERT INTO crm_deals VALUES (10, 1, 'ours'), (20, 2, 'theirs'), (30, NULL, 'nobody''s')")
        db.execute("CREATE TABLE crm_stages (id int, name text)")
        db.execute("INSERT INTO crm_stages VALUES (5, '100 % won'), (6, NULL)")
    mapping = load(None).model_dump(by_alias=True)
    mapping["source"]["account"] = {
        "column": "account_id",
        "query": "SELECT id FROM accounts WHERE sso = %(company_sso_id)s",
    }
    mapping["referents"] = {
        "Crm::Deal": {"table": "crm_deals", "name": "name"},
        "Crm::Stage": {"table": "crm_stages", "name": "replace(name, '%', 'percent')"},
    }
    publish(here, mongo_database, SourceMapping.model_validate(mapping))
    assert table(here, here.job.topics.referents) == {
        "Crm::Deal:10": Referent("Crm::Deal", 10, "ours"),
        "Crm::Stage:5": Referent("Crm::Stage", 5, "100 percent won"),
        "Crm::Stage:6": Referent("Crm::Stage", 6, ""),
    }


def test_a_begin_marker_is_the_first_record_of_every_partition(make_job: MakeJob) -> None:
    here = make_job(partitions=4)
    kafka, topic = {"bootstrap.servers": here.kafka}, here.job.topics.replay
    mark: dict[str, Any] = {"job_id": "job1", "run": 7, "codec": Codec()}
    assert markers.begin(kafka, topic, 4, **mark) == (0, 0, 0, 0)
    assert markers.begin(kafka, topic, 4, **mark) == (1, 1, 1, 1)
    assert markers.end(kafka, topic, 4, **mark) == (2, 2, 2, 2)
    edges = [(marker.edge, marker.job_id, marker.run) for marker in here.markers()]
    assert sorted(edges) == [("begin", "job1", 7)] * 8 + [("end", "job1", 7)] * 4


def test_markers_refuse_a_topic_that_is_missing_or_of_another_size(make_job: MakeJob) -> None:
    here = make_job(partitions=2)
    kafka = {"bootstrap.servers": here.kafka}
    with pytest.raises(BadInputError, match="has 2 partitions and the job has 3"):
        markers.begin(kafka, here.job.topics.replay, 3, job_id="j", run=1, codec=Codec())
    with pytest.raises(BadInputError, match=r"has no topic crm\.nowhere"):
        markers.begin(kafka, "crm.nowhere", 3, job_id="j", run=1, codec=Codec())


def test_a_server_that_is_not_there_is_one_line(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job()
    crm.load_sample(here.dsn)
    with pytest.raises(ReplayError, match=r"^Kafka at 127\.0\.0\.1:1 does not answer .*check KAFKA_BOOTSTRAP_SERVERS$"):
        references.publish(
            here.dsn,
            load(None),
            here.job.company_sso_id,
            kafka={"bootstrap.servers": "127.0.0.1:1"},
            mongo=mongo_database,
            topics=here.job.topics,
            codec=Codec(),
        )


@pytest.fixture
def sql_ascii_dsn(postgres_dsn: str) -> Iterator[str]:
    """A database that does not know what its bytes mean."""
    options = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with postgres_database(postgres_dsn, options) as dsn:
        yield dsn


def test_users_and_referents_with_odd_values_cost_themselves_only(
    make_job: MakeJob, mongo_database: Any, sql_ascii_dsn: str
) -> None:
    here = replace(make_job(), dsn=sql_ascii_dsn)
    crm.make_audits(here.dsn)
    with psycopg.connect(here.dsn) as db:
        db.execute("CREATE TABLE crm_deals (id int, name text)")
        for user_id, email, name, deleted_at in (
            (1, b"a@example.com", "Zoë".encode(), None),
            (2, b"b@example.com", b"Zo\xeb", None),
            (3, b"\xff@example.com", b"C", None),
            (4, b"d@example.com", b"D", "infinity"),
            (5, b"e@example.com", b"E", "0044-03-15 BC"),
            (6, b"f@example.com", "F \ufffd".encode(), "-infinity"),
        ):
            db.execute(
                "INSERT INTO users VALUES (%s, convert_from(%s, 'SQL_ASCII'), convert_from(%s, 'SQL_ASCII'), %s)",
                [user_id, email, name, deleted_at],
            )
        for deal_id, name in ((7, b"ours"), (8, b"\xc3\x28"), (9, b"100 % \xe2\x82\xac")):
            db.execute("INSERT INTO crm_deals VALUES (%s, convert_from(%s, 'SQL_ASCII'))", [deal_id, name])
    mapping = load(None).model_dump(by_alias=True)
    mapping["referents"] = {"Crm::Deal": {"table": "crm_deals", "name": "replace(name, '%', '%')"}}
    odd = SourceMapping.model_validate(mapping)
    counts = publish(here, mongo_database, odd)
    assert table(here, here.job.topics.users) == {
        "1": User(1, "a@example.com", "Zoë", False),
        "2": User(2, "b@example.com", "Zo\ufffd", False),
        "3": User(3, "", "C", False),
        "4": User(4, "d@example.com", "D", True),
        "5": User(5, "e@example.com", "E", True),
        "6": User(6, "f@example.com", "F \ufffd", True),
    }
    names = {7: "ours", 8: "\ufffd(", 9: "100 % €"}
    assert table(here, here.job.topics.referents) == {
        f"Crm::Deal:{deal_id}": Referent("Crm::Deal", deal_id, name) for deal_id, name in names.items()
    }
    assert (counts.texts_repaired, counts.repaired_named) == (3, ("user 2", "user 3", "Crm::Deal:8"))
    assert ["user 2" in line for line in counts.warnings()] == [True]
    with connect(here.dsn) as reader:
        assert references.NameReader(reader, odd, None).names_of("Crm::Deal", [7, 8, 9, 10]) == names


def test_a_contact_that_was_made_outside_of_pythons_years_is_compared_like_any_other(
    make_job: MakeJob, mongo_database: Any
) -> None:
    here = make_job()
    crm.make_audits(here.dsn)
    account = here.job.company_sso_id
    with psycopg.connect(here.dsn) as db:
        for name in ("people", "companies", "deals", "tasks", "tickets"):
            db.execute(f"CREATE TABLE crm_{name} (id int, name text, title text, first_name text, last_name text)")
    mongo_database["contacts"].insert_many(
        [
            {"_id": "late", "company_sso_id": account, "crm_data": {"id": 1}, "created_at": DatetimeMS(2**48)},
            {"_id": "early", "company_sso_id": account, "crm_data": {"id": 2}, "created_at": DatetimeMS(-(2**47))},
            {"_id": "odd", "company_sso_id": account, "crm_data": {"id": " 3 "}, "created_at": OLD},
        ]
    )
    counts = publish(here, mongo_database)
    assert table(here, here.job.topics.contacts) == {
        "1": Contact(account, "1", "late", 2**48 * 1000),
        "2": Contact(account, "2", "early", -(2**47) * 1000),
    }
    assert counts.warnings() == [
        "1 contacts (odd) have a crm_data.id that is no plain number: their history is skipped as contact_not_found"
    ]
