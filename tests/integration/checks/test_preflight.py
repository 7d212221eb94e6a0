"""The preflight on real servers: each check with what it warns of, nothing written, and servers that hang."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from bson.datetime_ms import DatetimeMS
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pymongo.database import Database

from ops.checks.estimates import Rate, estimate
from ops.checks.preflight import Check, Verdict, changes, kafka, mongodb, preflight_account, source
from ops.checks.preflight.run import PreflightOptions
from ops.jobs import migrations
from ops.local import sandbox
from ops.local.directory_server import DirectoryServer
from ops.local.sample.contacts import seed_contacts
from ops.local.sample.rows import json_lines
from ops.local.sample_crm import SAMPLE_YAML, load_sample, mapping_path
from producer.audits import Limits
from producer.survey import count_in_scope
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from schemas.source.mapping import SourceMapping, load
from schemas.topics import AccountTopics
from tests.integration.producer import crm
from tests.support.programs import Program

pytestmark = pytest.mark.services
MAPPING = str(mapping_path(SAMPLE_YAML))
SINCE_ALWAYS = datetime(1900, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEFT_OUT = (50010, 999999)
LATE_CHECKS = ["contacts_coverage", "estimate", "kafka_retention", "mongodb_space"]


@pytest.fixture(scope="module")
def place(kafka_bootstrap: str, postgres_dsn: str, mongodb_url: str) -> Iterator[Connections]:
    """Give the sample CRM and its migrated platform, in databases of their own; the tests leave them as they are."""
    addresses = Connections(
        crm_audit_database_url=postgres_dsn, kafka_bootstrap_servers=kafka_bootstrap, mongodb_url=mongodb_url
    )
    name = f"preflight_{uuid.uuid4().hex[:10]}"
    own = sandbox.own_databases(addresses, name)
    load_sample(own.crm_audit_database_url)
    database = connect(own)
    migrations.up(database)
    seed_contacts(database)
    # The sample leaves two persons of its rows without a contact, which the guard would rightly refuse.
    database["contacts"].insert_many(
        [
            {"company_sso_id": SAMPLE_YAML, "crm_data": {"id": person}, "customer_id": f"c{person}", "created_at": NOW}
            for person in LEFT_OUT
        ]
    )
    yield own
    database.client.drop_database(name)
    database.client.close()
    with psycopg.connect(postgres_dsn, autocommit=True) as db:
        db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(place: Connections) -> Iterator[Database[dict[str, Any]]]:
    found = connect(place)
    yield found
    found.client.close()


@contextlib.contextmanager
def role(place: Connections, *statements: str) -> Iterator[str]:
    """Give the DSN of a new role; in the statements, {} stands for its name."""
    name = f"pf_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(place.crm_audit_database_url, autocommit=True) as db:
        for statement in ("CREATE ROLE {} LOGIN PASSWORD 'x'", *statements):
            db.execute(sql.SQL(statement).format(sql.Identifier(name)))
        try:
            yield make_conninfo(place.crm_audit_database_url, user=name, password="x")
        finally:
            db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def everything(place: Connections, database: Any) -> dict[str, Any]:
    """Return what anybody could have written to: rows, documents, topics with their ends."""
    with psycopg.connect(place.crm_audit_database_url) as db:
        names = db.execute(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables"
            " WHERE table_schema IN ('public', 'jsonb_variant') AND table_type = 'BASE TABLE'"
        ).fetchall()
        rows = {
            name: db.execute(
                sql.SQL("SELECT md5(COALESCE(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {} t").format(
                    sql.Identifier(*name.split("."))
                )
            ).fetchone()
            for (name,) in names
        }
    documents = {
        name: hashlib.sha256(repr(list(database[name].find().sort("_id", 1))).encode()).hexdigest()
        for name in sorted(database.list_collection_names())
    }
    topics = AdminClient(place.kafka()).list_topics(timeout=10).topics
    ours = {name: len(topic.partitions) for name, topic in topics.items() if SAMPLE_YAML in name}
    return {"rows": rows, "documents": documents, "topics": ours}


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_sample_account_is_looked_at_from_every_side_and_nothing_is_written(
    place: Connections, database: Any
) -> None:
    before = everything(place, database)
    with role(place, "GRANT USAGE ON SCHEMA public TO {}", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}") as dsn:
        reader = place.model_copy(update={"crm_audit_database_url": dsn})
        report = preflight_account(SAMPLE_YAML, PreflightOptions(MAPPING), reader)
    assert everything(place, database) == before
    checks = by_name(report.checks)
    assert {name: check.found for name, check in checks.items() if check.verdict is Verdict.FAIL} == {}
    assert report.ok
    assert [check.name for check in report.checks][-4:] == LATE_CHECKS
    assert len(checks) == len(report.checks) >= 25
    counted = count_in_scope(
        place.crm_audit_database_url, load(MAPPING), SAMPLE_YAML, top_audit_id=2**62, cutoff=SINCE_ALWAYS
    )
    facts = checks["source_scope"].facts
    assert (facts["rows"], facts["min_id"], facts["max_id"]) == (counted.rows, counted.min_id, counted.max_id)
    assert (checks["estimate"].facts["rows"], facts["rows"]) == (326, 326)
    assert checks["source_read_only"].verdict is Verdict.OK
    assert "permission denied" in checks["source_read_only"].found
    assert checks["kafka_reachable"].facts["brokers"] == 1
    assert checks["kafka_reachable"].facts["release"] >= "3.8"
    assert len(checks["kafka_permissions"].facts["would_make"]) == 6
    assert checks["contacts"].facts["persons"] == 27
    assert checks["job"].facts["status"] == "not_started"
    emails = [user["email"] for user in json_lines("users") if user["email"]]
    assert not [email for email in emails if email in json.dumps(report.as_dict())]


@pytest.mark.parametrize(
    ("grants", "verdict", "said"),
    [
        (["GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}"], Verdict.OK, "has no right to any"),
        (["GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {}"], Verdict.FAIL, "was let through"),
        (
            [
                "GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}",
                "ALTER ROLE {} SET default_transaction_read_only = on",
            ],
            Verdict.WARN,
            "writes are refused (cannot execute UPDATE in a read-only transaction), but role",
        ),
        (["GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}", "GRANT INSERT ON audits TO {}"], Verdict.WARN, "INSERT"),
        (["ALTER ROLE {} SUPERUSER"], Verdict.FAIL, "was let through"),
        (
            ["ALTER ROLE {} SUPERUSER", "ALTER ROLE {} SET default_transaction_read_only = on"],
            Verdict.WARN,
            "is a superuser",
        ),
    ],
)
def test_a_write_is_really_tried_and_rights_are_asked_for(
    place: Connections, grants: list[str], verdict: Verdict, said: str
) -> None:
    with role(place, "GRANT USAGE ON SCHEMA public TO {}", *grants) as dsn:
        check = source.check_read_only(dsn, load(MAPPING))
    assert check.verdict is verdict, check
    assert said in check.found
    assert ("GRANT SELECT ON public.audits" in check.to_do) == (verdict is not Verdict.OK)


def test_the_embedded_servers_only_user_is_a_warning_and_no_failure(place: Connections) -> None:
    check = source.check_read_only(place.crm_audit_database_url, load(MAPPING), is_ours=True)
    assert check.verdict is Verdict.WARN
    assert "embedded" in check.found


def mapping_with(**source_changes: Any) -> SourceMapping:
    data = load(MAPPING).model_dump(by_alias=True)
    return SourceMapping.model_validate({**data, "source": {**data["source"], **source_changes}})


def test_a_large_table_without_an_index_on_id_fails_with_the_index_to_add(place: Connections) -> None:
    dsn = place.crm_audit_database_url
    mapping = mapping_with(table="heap")
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("CREATE TABLE heap (LIKE audits)")
        try:
            db.execute(
                "INSERT INTO heap (id, auditable_type, auditable_id, action, audited_changes, created_at)"
                " SELECT n, 'Crm::Person', 1, 'update', '---', now() FROM generate_series(1, 60000) n"
            )
            db.execute("ANALYZE heap")
            scope = source.read_scope(dsn, mapping, SAMPLE_YAML, None, lambda done, top: None)
            without = source.check_page_query(dsn, mapping, SAMPLE_YAML, scope, Limits(), None)
            db.execute("CREATE UNIQUE INDEX ON heap (id)")
            db.execute("ANALYZE heap")
            with_it = source.check_page_query(dsn, mapping, SAMPLE_YAML, scope, Limits(), None)
        finally:
            db.execute("DROP TABLE heap")
    assert scope.rows.rows == 60_000
    assert without.verdict is Verdict.FAIL
    assert without.to_do.startswith("CREATE UNIQUE INDEX CONCURRENTLY ON public.heap (id)")
    assert with_it.verdict is Verdict.OK
    assert "heap_id_idx" in with_it.found


def test_a_mapping_that_does_not_fit_the_table_is_one_line(place: Connections) -> None:
    with pytest.raises(Exception, match=r"there is no table public\.nowhere"):
        source.check_mapping(place.crm_audit_database_url, mapping_with(table="nowhere"), SAMPLE_YAML)
    data = load(MAPPING).model_dump(by_alias=True)
    narrow = SourceMapping.model_validate({**data, "scope": ["Crm::Deal"], "id_sets": {}})
    check = source.check_mapping(place.crm_audit_database_url, narrow, SAMPLE_YAML)
    assert check.verdict is Verdict.WARN
    assert "no ids for done, resolved, won" in check.found
    assert "Crm::Person" in check.facts["types_not_in_scope"]


def test_a_transaction_that_stays_open_is_named(place: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "TRANSACTION_WARN_S", -1.0)
    with psycopg.connect(place.crm_audit_database_url) as open_one:
        open_one.execute("SELECT pg_current_xact_id()")
        check = source.check_transactions(place.crm_audit_database_url)
        named = [one["who"] for one in check.facts["oldest"]]
        assert f"pid {open_one.info.backend_pid} of postgres, idle in transaction" in named
        open_one.rollback()
    assert check.verdict is Verdict.WARN
    assert "CRM_REPLAY_HORIZON_WAIT_S" in check.to_do


def test_a_dropped_and_a_changed_index_are_named_with_what_makes_them(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    assert mongodb.check_indexes(mongo_database).verdict is Verdict.OK
    logs = mongo_database["activity_logs"]
    logs.drop_index("uniq_company_external_id")
    logs.drop_index("idx_company_source_tag")
    logs.create_index([("company_sso_id", 1)], name="idx_company_source_tag")
    check = mongodb.check_indexes(mongo_database)
    assert check.verdict is Verdict.FAIL
    assert check.facts["wrong"] == [
        "activity_logs lacks uniq_company_external_id",
        "idx_company_source_tag of activity_logs is another index",
    ]
    assert 'db.activity_logs.createIndex({"company_sso_id": 1, "external_id": 1}' in check.to_do
    migrations.down(mongo_database)
    assert mongodb.check_schema(mongo_database).verdict is Verdict.FAIL
    many = mongodb.check_indexes(mongo_database)
    assert (many.verdict, many.to_do) == (Verdict.FAIL, "crm-replay migrate up")


def test_indexes_that_delete_or_refuse_history_are_named(mongo_database: Any) -> None:
    migrations.up(mongo_database)
    logs = mongo_database["activity_logs"]
    logs.create_index("expires_at", expireAfterSeconds=0)  # a field that no document of a replay has
    assert mongodb.check_indexes(mongo_database).verdict is Verdict.OK
    logs.create_index([("customer_id", 1), ("timestamp", 1)], unique=True, name="one_log_a_moment")
    check = mongodb.check_indexes(mongo_database)
    assert (check.verdict, check.found) == (
        Verdict.WARN,
        "one_log_a_moment of activity_logs is unique, too: rows that it refuses become dead letters",
    )
    logs.create_index("timestamp", expireAfterSeconds=30 * 86_400)
    check = mongodb.check_indexes(mongo_database)
    assert check.verdict is Verdict.FAIL
    assert "timestamp_1 of activity_logs lets documents expire 30.0 days after their timestamp" in check.found
    logs.drop_index("timestamp_1")
    filtered = {"category": "live"}
    logs.create_index("timestamp", expireAfterSeconds=30 * 86_400, partialFilterExpression=filtered)
    check = mongodb.check_indexes(mongo_database)
    assert check.verdict is Verdict.WARN
    assert "lets documents that its filter takes expire" in check.found


def test_contacts_that_will_lose_their_history_are_counted(mongo_database: Any) -> None:
    assert mongodb.check_contacts(mongo_database, "a").verdict is Verdict.FAIL
    mongo_database["contacts"].insert_many(
        [
            {"company_sso_id": "a", "crm_data": {"id": 1}, "created_at": SINCE_ALWAYS},
            {"company_sso_id": "a", "crm_data": {"id": 1}, "created_at": SINCE_ALWAYS},
            {"company_sso_id": "a", "crm_data": {"id": 2}, "created_at": None},
            {"company_sso_id": "a", "crm_data": {"id": 4}, "created_at": DatetimeMS(263_384_265_600_000)},
            {"_id": "text", "company_sso_id": "a", "crm_data": {"id": " 5 "}, "created_at": SINCE_ALWAYS},
            {"company_sso_id": "b", "crm_data": {"id": 3}, "created_at": None},
        ]
    )
    mongo_database["crm_contact_id_map"].insert_one({"company_sso_id": "a", "crm_person_id": 9, "customer_id": "x"})
    check = mongodb.check_contacts(mongo_database, "a")
    assert check.verdict is Verdict.WARN
    facts = dict(check.facts)
    assert facts == {
        "persons": 2, "by_id_map": 0, "doubled": 1, "without_created_at": 1, "mapped_to_nobody": 1,
        "undecodable": 0, "odd_ids": 1,
    }  # fmt: skip
    assert "1 contacts (text) have a crm_data.id that is no plain number" in check.found


CIPHERTEXT = '{"p":"Zm9v","h":{"iv":"aXY=","at":"YXQ="}}'


@pytest.mark.parametrize("json_type", ["text", "jsonb"])
@pytest.mark.parametrize(
    ("encrypted", "verdict"), [(0, Verdict.OK), (2, Verdict.WARN), (10, Verdict.WARN), (11, Verdict.FAIL)]
)
def test_encrypted_changes_are_found_wherever_they_are(
    database_dsn: str, json_type: str, encrypted: int, verdict: Verdict
) -> None:
    crm.make_audits(database_dsn, json_type=json_type)
    plain = '{"name":["a","b"]}'
    crm.add_audits(database_dsn, range(1, 100_000, 1_000), audited_changes=plain)
    with psycopg.connect(database_dsn) as db:
        db.execute("UPDATE audits SET audited_changes = %s WHERE id <= %s", [CIPHERTEXT, encrypted * 1_000])
    check = changes.check_changes(database_dsn, load(None), "a", Limits())
    assert check.verdict is verdict
    assert dict(check.facts) == {"rows_looked_at": 100, "encrypted": encrypted, "unreadable": 0}
    if encrypted:
        assert f"audited_changes of {encrypted} of 100 rows is encrypted by ActiveRecord (audit 1: " in check.found
        assert "dead letters" in check.to_do


def test_changes_that_cannot_be_read_are_found(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    assert changes.check_changes(database_dsn, load(None), "a", Limits()).verdict is Verdict.OK
    crm.add_audits(database_dsn, range(1, 5))
    crm.add_audits(database_dsn, [5], audited_changes="--- [1]\n")
    check = changes.check_changes(database_dsn, load(None), "a", Limits())
    assert (check.verdict, check.facts["unreadable"]) == (Verdict.FAIL, 1)
    assert "audit 5" in check.found


def test_too_few_contacts_fail_by_the_guard_that_a_trigger_has_to_pass(place: Connections, database: Any) -> None:
    def check() -> Check:
        return mongodb.check_coverage(database, place.crm_audit_database_url, load(MAPPING), SAMPLE_YAML, None)

    covered = check()
    assert (covered.verdict, covered.facts["coverage_pct"]) == (Verdict.OK, 100.0)
    gone = {"company_sso_id": SAMPLE_YAML, "crm_data.id": LEFT_OUT[0]}
    contact = database["contacts"].find_one_and_delete(gone)
    try:
        few = check()
    finally:
        database["contacts"].insert_one(contact)
    assert few.verdict is Verdict.FAIL
    assert few.facts["missing"] == [str(LEFT_OUT[0])]
    assert "99 % are needed" in few.found


def test_topics_that_would_lose_the_backlog_are_named_before_the_run(place: Connections) -> None:
    account = f"pf-{uuid.uuid4().hex[:8]}"
    topics, admin = AccountTopics.of(account), AdminClient(place.kafka())
    settings = {
        topics.replay: {"retention.ms": "60000"},
        topics.contacts: {"cleanup.policy": "delete"},
        topics.outcomes: {"max.message.bytes": "1000000"},
    }
    admin_answers = admin.create_topics(
        [NewTopic(name, num_partitions=2, replication_factor=1, config=config) for name, config in settings.items()]
    )
    try:
        for future in admin_answers.values():
            future.result(30)
        check = kafka.check_topics(place.kafka(), account, 2)
        assert check.verdict is Verdict.FAIL
        assert f"{topics.contacts} has cleanup.policy=delete" in check.found
        assert f"{topics.outcomes} takes records up to 1.0 MB" in check.found
        kept = kafka.check_retention(place.kafka(), account, estimate(10_000_000, 400.0, Rate(1_000, "said")))
        assert kept.verdict is Verdict.FAIL
        assert "retention.ms=60000" in kept.found
        allowed = kafka.check_permissions(place.kafka(), account, 2)
        assert (allowed.verdict, len(allowed.facts["would_make"])) == (Verdict.OK, 3)
        assert len(kafka.check_names(place.kafka(), account).facts["there_already"]) == 3
    finally:
        for future in admin.delete_topics(list(settings)).values():
            future.result(30)


def test_what_the_directory_says_of_active_and_deactivated_users_is_told(place: Connections) -> None:
    users = [user for user in json_lines("users") if user["email"]]
    gone = [user["email"] for user in users if user["deleted_at"]]
    with DirectoryServer([user["email"] for user in users]) as directory:
        options = PreflightOptions(MAPPING)
        asking = place.model_copy(update={"user_directory_url": directory.url})
        lane = by_name(preflight_account(SAMPLE_YAML, options, asking).checks)["user_directory"]
        assert gone
        assert (lane.verdict, lane.facts["deactivated_said"]) == (Verdict.WARN, {"active": len(gone)})
        assert lane.facts["known"] == lane.facts["asked"] > 0
        directory.behave(deactivated=gone)
        told = by_name(preflight_account(SAMPLE_YAML, options, asking).checks)["user_directory"]
        assert (told.verdict, told.facts["deactivated_said"]) == (Verdict.OK, {"deactivated": len(gone)})
        directory.behave(status=503)
        down = by_name(preflight_account(SAMPLE_YAML, options, asking).checks)["user_directory"]
        assert (down.verdict, "HTTP 503" in down.found) == (Verdict.FAIL, True)


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Give the port of a server that takes every connection and never says a word."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in taken:
        connection.close()


@pytest.mark.parametrize("which", ["crm_audit_database_url", "kafka_bootstrap_servers", "mongodb_url"])
def test_a_server_that_never_answers_costs_its_own_checks_and_no_others(place: Connections, which: str) -> None:
    with silent() as port:
        address = {
            "crm_audit_database_url": f"postgresql://x@127.0.0.1:{port}/crm",
            "kafka_bootstrap_servers": f"127.0.0.1:{port}",
            "mongodb_url": f"mongodb://127.0.0.1:{port}/?directConnection=true",
        }[which]
        options = PreflightOptions(MAPPING, timeout_s=3.0)
        report = preflight_account(SAMPLE_YAML, options, place.model_copy(update={which: address}))
    lanes = {"crm_audit_database_url": "source_", "kafka_bootstrap_servers": "kafka_", "mongodb_url": "mongodb_"}
    for other, prefix in lanes.items():
        reachable = by_name(report.checks)[f"{prefix}reachable"]
        assert (reachable.verdict is Verdict.FAIL) == (other == which), reachable
        if other == which:
            rest = [check for check in report.checks if check.name.startswith(prefix)]
            assert {check.verdict for check in rest} == {Verdict.FAIL}
    assert not report.ok


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return Program.call("ops", *words, env={**os.environ, **environment})


def test_the_command_prints_a_table_or_json_and_its_exit_code_gates(place: Connections) -> None:
    environment = {
        "CRM_AUDIT_DATABASE_URL": place.crm_audit_database_url,
        "KAFKA_BOOTSTRAP_SERVERS": place.kafka_bootstrap_servers,
        "MONGODB_URL": place.mongodb_url,
        "MONGODB_DATABASE": place.mongodb_database,
    }
    words = ("preflight", "--account", SAMPLE_YAML, "--mapping", MAPPING)
    may_write = call(*words, "--json", **environment)
    assert may_write.returncode == 1, may_write.stderr
    answer = json.loads(may_write.stdout)
    assert [check["name"] for check in answer["checks"] if check["verdict"] == "fail"] == ["source_read_only"]
    assert answer["ok"] is False
    with role(place, "GRANT USAGE ON SCHEMA public TO {}", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}") as dsn:
        done = call(*words, **{**environment, "CRM_AUDIT_DATABASE_URL": dsn})
    assert done.returncode == 0, done.stderr
    assert "ready: no check has failed" in done.stdout
    assert "source_page_query" in done.stdout


# ---- what the role sees of the source --------------------------------------------------------------------------------

READS_ALL = ("GRANT USAGE ON SCHEMA public TO {}", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}")


@contextlib.contextmanager
def hidden_rows(place: Connections, name: str, *statements: str) -> Iterator[SourceMapping]:
    """Give the mapping of a table or view of this name, made by the statements; it is dropped with its schema."""
    with psycopg.connect(place.crm_audit_database_url, autocommit=True) as db:
        db.execute("CREATE SCHEMA hidden")
        try:
            db.execute("CREATE TABLE hidden.audits (LIKE public.audits INCLUDING ALL)")
            db.execute(
                "INSERT INTO hidden.audits (id, auditable_type, action, created_at)"
                " SELECT id, 'Crm::Person', 'update', now() FROM generate_series(1, 50) AS id"
            )
            for statement in statements:
                db.execute(statement)
            db.execute("ANALYZE hidden.audits")
            db.execute("GRANT USAGE ON SCHEMA hidden TO PUBLIC")
            db.execute("GRANT SELECT ON ALL TABLES IN SCHEMA hidden TO PUBLIC")
            yield mapping_with(schema="hidden", table=name)
        finally:
            db.execute("DROP SCHEMA hidden CASCADE")


POLICY = (
    "ALTER TABLE hidden.audits ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY two_of_five ON hidden.audits USING (id % 5 < 2)",
)


def test_row_level_security_fails_unless_it_is_stated_that_it_hides_nothing_and_nothing_says_otherwise(
    place: Connections,
) -> None:
    with hidden_rows(place, "audits", *POLICY) as mapping, role(place, *READS_ALL) as dsn:
        check = source.check_visibility(dsn, mapping)
        assert (check.verdict, "row-level security hides rows of hidden.audits" in check.found) == (Verdict.FAIL, True)
        stated = make_conninfo(dsn, options="-c row_security=on")
        check = source.check_visibility(stated, mapping)
        assert (check.verdict, check.facts["hidden.audits"]["rows_seen"]) == (Verdict.FAIL, 20)
        assert "it shows 20 rows, the statistics of the tables behind it have about 50" in check.found
        with psycopg.connect(place.crm_audit_database_url, autocommit=True) as db:
            db.execute("ALTER POLICY two_of_five ON hidden.audits USING (true)")
        check = source.check_visibility(stated, mapping)
        assert (check.verdict, check.facts["hidden.audits"]["rows_seen"]) == (Verdict.WARN, 50)
    assert source.check_visibility(place.crm_audit_database_url, load(MAPPING)).verdict is Verdict.OK
    missing = source.check_visibility(place.crm_audit_database_url, mapping_with(table="nowhere"))
    assert (missing.verdict, "public.nowhere does not exist" in missing.found) == (Verdict.WARN, True)


def test_row_level_security_that_this_role_bypasses_is_no_matter(place: Connections) -> None:
    with hidden_rows(place, "audits", *POLICY) as mapping, role(place, *READS_ALL, "ALTER ROLE {} BYPASSRLS") as dsn:
        assert source.check_visibility(dsn, mapping).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("statement", "seen", "known"),
    [
        ("CREATE VIEW hidden.shown AS SELECT * FROM hidden.audits WHERE id % 5 < 2", 20, 50),
        ("CREATE VIEW hidden.shown WITH (security_barrier) AS SELECT * FROM hidden.audits", 50, 50),
        ("CREATE MATERIALIZED VIEW hidden.shown AS SELECT * FROM hidden.audits WHERE id < 11", 10, 50),
        (
            (
                "CREATE TABLE hidden.parts (LIKE hidden.audits) PARTITION BY RANGE (id);"
                " CREATE TABLE hidden.low PARTITION OF hidden.parts FOR VALUES FROM (1) TO (31);"
                " CREATE TABLE hidden.high PARTITION OF hidden.parts FOR VALUES FROM (31) TO (99);"
                " INSERT INTO hidden.parts SELECT * FROM hidden.audits; ANALYZE hidden.low; ANALYZE hidden.high;"
                " CREATE VIEW hidden.within AS SELECT * FROM hidden.parts WHERE id < 41;"
                " CREATE VIEW hidden.shown AS SELECT * FROM hidden.within WHERE id % 2 = 0"
            ),
            20,
            50,
        ),
    ],
)
def test_of_a_view_it_is_said_that_its_rows_cannot_be_judged_and_what_is_behind_it(
    place: Connections, statement: str, seen: int, known: int
) -> None:
    with hidden_rows(place, "shown", *statement.split("; ")) as mapping, role(place, *READS_ALL) as dsn:
        check = source.check_visibility(dsn, mapping)
    facts = check.facts["hidden.shown"]
    assert (check.verdict, facts["rows_seen"], facts["rows_known"]) == (Verdict.WARN, seen, known)
    assert "hidden.shown is a" in check.found


def test_partitions_and_columns_are_judged_by_the_table_that_is_read(place: Connections) -> None:
    few = "GRANT SELECT (id, email, full_name) ON public.users TO {}"
    partitioned = (
        "CREATE TABLE hidden.parts (LIKE hidden.audits) PARTITION BY RANGE (id)",
        "CREATE TABLE hidden.low PARTITION OF hidden.parts FOR VALUES FROM (1) TO (99)",
        "ALTER TABLE hidden.low ENABLE ROW LEVEL SECURITY",  # in force for who names the partition, not its parent
    )
    with hidden_rows(place, "parts", *partitioned) as mapping:
        with role(place, *READS_ALL) as dsn:
            assert source.check_visibility(dsn, mapping).verdict is Verdict.OK
        with role(place, "GRANT USAGE ON SCHEMA public TO {}", few) as dsn:
            check = source.check_visibility(dsn, mapping)
    assert check.verdict is Verdict.FAIL
    assert "may not read deleted_at of public.users" in check.found


def test_ids_below_one_fail_and_dates_and_types_beside_the_scope_are_told(place: Connections) -> None:
    odd = (
        "UPDATE hidden.audits SET id = id - 100 WHERE id < 3",
        "UPDATE hidden.audits SET created_at = NULL WHERE id IN (10, 11)",
        "UPDATE hidden.audits SET created_at = '-infinity' WHERE id = 12",
        "UPDATE hidden.audits SET auditable_type = 'Crm::Widget' WHERE id > 45",
    )

    def scope(start: datetime | None) -> Check:
        found = source.read_scope(place.crm_audit_database_url, mapping, SAMPLE_YAML, start, lambda done, top: None)
        return source.check_scope(found, start)

    with hidden_rows(place, "audits", *odd) as mapping:
        check = scope(None)
        assert (check.verdict, check.facts["rows"]) == (Verdict.FAIL, 45)
        assert "2 audit rows in scope have ids below 1 (-99, -98)" in check.found
        assert "3 rows end as dead letters" in check.found
        assert "5 rows are of types that are not in scope, so not read: Crm::Widget (5)" in check.found
        with psycopg.connect(place.crm_audit_database_url, autocommit=True) as db:
            db.execute("DELETE FROM hidden.audits WHERE id < 1")
        check = scope(datetime(2000, 1, 1, tzinfo=UTC))
        assert (check.verdict, check.facts["rows"]) == (Verdict.WARN, 40)
        assert "2 rows without created_at are in no date range" in check.found
