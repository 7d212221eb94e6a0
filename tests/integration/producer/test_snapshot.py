"""The whole producer as it is run, on real servers."""

import signal
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg
import pytest
import yaml

from ops.checks.file_rows import event_of
from producer.audits import AuditReader, Limits, connect, resolve
from schemas.collections import CHECKPOINTS
from schemas.process.logs import last_event
from schemas.records import AuditEvent, SnapshotMarker
from schemas.source.mapping import SourceMapping, load
from schemas.source.person import record_key
from schemas.vocabulary import ExitCode
from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services

MakeMapping = Callable[..., str]


@pytest.fixture
def make_mapping(tmp_path: Any) -> MakeMapping:
    """Write a mapping file: the default one with another source and no referents."""

    def make(**source: Any) -> str:
        mapping = load(None).model_dump(by_alias=True, mode="json") | {"referents": {}}
        mapping["source"] |= source
        path = tmp_path / "mapping.yaml"
        path.write_text(yaml.safe_dump(mapping))
        return str(path)

    return make


def micros(text: str) -> int:
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def saved_rows(mongo: Any) -> int:
    return sum(document["rows"] for document in mongo[CHECKPOINTS].find())


def wait_saved(mongo: Any, rows: int) -> None:
    wait_until(lambda: saved_rows(mongo) >= rows, "rows are saved")


@pytest.mark.parametrize(
    ("name", "schema", "rows"),
    [("audits_yaml", "public", crm.YAML_ROWS), ("audits_jsonb", "jsonb_variant", crm.JSONB_ROWS)],
)
def test_every_row_of_the_sample_arrives_once_and_byte_for_byte(
    make_job: MakeJob, make_mapping: MakeMapping, mongo_database: Any, name: str, schema: str, rows: int
) -> None:
    stored = {row["id"]: row for row in crm.sample_rows(name)}
    here = make_job(top_audit_id=max(stored), mapping_path=make_mapping(schema=schema))
    crm.load_sample(here.dsn)
    code, said = here.run(CRM_REPLAY_PAGE_ROWS="50")
    assert code == 0, said
    events = here.events()
    assert len(events) == rows
    assert {event.audit_id: event for event in events} == {
        id_: event_of(row, name)._replace(
            changes_are_json=name == "audits_jsonb", company_sso_id=here.job.company_sso_id
        )
        for id_, row in stored.items()
    }
    assert saved_rows(mongo_database) == rows


def test_a_key_has_one_partition_the_java_clients_and_its_ids_rise(make_job: MakeJob) -> None:
    here = make_job(top_audit_id=2**62, partitions=5)
    crm.load_sample(here.dsn)
    assert here.run()[0] == 0
    person = load(None).person
    last_id: dict[int, int] = {}
    for partition, key, record in here.records():
        if isinstance(record, AuditEvent):
            assert key == record_key(record, person).encode()
            assert partition == (murmur2(key) & 0x7FFFFFFF) % 5
            assert record.audit_id > last_id.get(partition, 0)
            last_id[partition] = record.audit_id
    assert len(last_id) == 5


def murmur2(data: bytes) -> int:
    """Kafka's own hash, written from its definition."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) - len(data) % 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def test_end_markers_follow_the_last_row_and_a_repetition_adds_only_markers(make_job: MakeJob) -> None:
    here = make_job(top_audit_id=30, partitions=2)
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 31))
    assert here.run()[0] == 0
    for partition in range(2):
        records = [record for at, _, record in here.records() if at == partition]
        assert records[-1] == SnapshotMarker("end", "job1", -1, 7)
        assert all(isinstance(record, AuditEvent) for record in records[:-1])
    code, said = here.run()
    assert code == 0, said
    assert len(here.events()) == 30
    assert len(here.markers()) == 4


def test_only_rows_in_scope_since_the_cutoff_and_up_to_the_top_are_published(make_job: MakeJob) -> None:
    here = make_job(top_audit_id=9, cutoff=datetime(2024, 1, 1, tzinfo=UTC))
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, [1], created_at="2023-12-31 23:59:59.999999")
    crm.add_audits(here.dsn, [2, 8, 9, 10], created_at="2024-01-01 00:00:00")
    crm.add_audits(here.dsn, [3], created_at=None)
    crm.add_audits(here.dsn, [4], auditable_type="Unlisted", created_at="2024-01-01 00:00:00")
    assert here.run()[0] == 0
    assert sorted(event.audit_id for event in here.events()) == [2, 8, 9]


def test_a_sparse_account_is_read_window_by_window_and_gets_only_its_own_rows(
    make_job: MakeJob, make_mapping: MakeMapping
) -> None:
    account = {"column": "account_id", "query": "SELECT id FROM accounts WHERE sso = %(company_sso_id)s"}
    here = make_job(top_audit_id=5_000_000_000, mapping_path=make_mapping(account=account))
    crm.make_audits(here.dsn, extra=", account_id bigint", json_type="jsonb", time_type="timestamptz")
    theirs = [*range(1, 4_000), *range(70_000, 73_000)]
    ours = [7_000, 7_001, 71_000_000, 4_999_999_999]
    json_changes = {"audited_changes": {"crm_person_id": [1, 2]}, "created_at": "2024-01-01 07:00:00+07"}
    crm.add_audits(here.dsn, theirs, account_id=2, **json_changes)
    crm.add_audits(here.dsn, ours, account_id=1, **json_changes)
    with psycopg.connect(here.dsn) as db:
        db.execute("CREATE TABLE accounts (id int, sso text)")
        db.execute("INSERT INTO accounts VALUES (1, %s), (2, 'other')", [here.job.company_sso_id])
    code, said = here.run(CRM_REPLAY_ID_WINDOW="1000", CRM_REPLAY_PAGE_ROWS="100")
    assert code == 0, said
    events = here.events()
    assert [event.audit_id for event in sorted(events)] == ours
    assert {(event.created_at, event.audited_changes, event.changes_are_json) for event in events} == {
        (1_704_067_200_000_000, '{"crm_person_id": [1, 2]}', True)
    }


def test_after_a_sigkill_nothing_is_missing_and_repetitions_are_recognised(
    make_job: MakeJob, mongo_database: Any
) -> None:
    here = make_job(top_audit_id=20_000)
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 20_001))
    small = {"CRM_REPLAY_PAGE_ROWS": "100", "CRM_REPLAY_CHECKPOINT_ROWS": "400"}
    for milestone in (2_000, 9_000):
        process = here.start(**small)
        wait_saved(mongo_database, milestone)
        process.kill()
        process.communicate()
        assert saved_rows(mongo_database) < 20_000, "killed too late to show anything"
    code, said = here.run(**small)
    assert code == 0, said
    assert [event.audit_id for event in sorted(here.events_counted_once())] == list(range(1, 20_001))
    assert {event.id_range for event in here.events()} == {0}
    assert saved_rows(mongo_database) == 20_000
    repeated = len(here.events()) - 20_000
    assert repeated <= 2 * 400, "at most a chunk for each death"


def test_sigterm_stops_after_the_chunk_and_the_next_start_repeats_nothing(
    make_job: MakeJob, mongo_database: Any
) -> None:
    here = make_job(top_audit_id=20_000)
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 20_001))
    process = here.start(CRM_REPLAY_PAGE_ROWS="50")
    wait_saved(mongo_database, 1_000)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == ExitCode.STOPPED, said
    assert last_event(said.strip().splitlines()[-1]).endswith("a restart continues from the saved cursor")
    assert 0 < len(here.events()) == saved_rows(mongo_database) < 20_000
    assert here.markers() == []
    assert here.run()[0] == 0
    assert sorted(event.audit_id for event in here.events()) == list(range(1, 20_001))


def test_the_number_of_ranges_may_change_with_every_start(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job(top_audit_id=2**40 + 12_000)
    crm.make_audits(here.dsn)
    ids = [*range(1, 12_001), *range(2**40, 2**40 + 12_000)]
    crm.add_audits(here.dsn, ids)
    with psycopg.connect(here.dsn) as db:
        db.execute("ANALYZE audits")
    small = {"CRM_REPLAY_PAGE_ROWS": "50", "CRM_REPLAY_CHECKPOINT_ROWS": "200", "CRM_REPLAY_ID_WINDOW": "1000"}
    for readers, milestone, how in (
        ("1", 500, signal.SIGKILL),
        ("3", 6_000, signal.SIGKILL),
        ("2", 9_000, signal.SIGTERM),
    ):
        process = here.start(CRM_REPLAY_ID_RANGES=readers, **small)
        children = psutil.Process(process.pid)
        wait_saved(mongo_database, milestone)
        readers_started = children.children()
        process.send_signal(how)
        _, said = process.communicate(timeout=30)
        # A reader that lived on would publish beside the next start's.
        assert psutil.wait_procs(readers_started, timeout=10)[1] == []
        assert process.returncode == (ExitCode.STOPPED if how == signal.SIGTERM else -signal.SIGKILL), said
    code, said = here.run(CRM_REPLAY_ID_RANGES="4", **small)
    assert code == 0, said
    assert [event.audit_id for event in sorted(here.events_counted_once())] == ids
    assert saved_rows(mongo_database) == len(ids)
    numbers = sorted(document["id_range"] for document in mongo_database[CHECKPOINTS].find())
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 4
    assert [marker.edge for marker in here.markers()] == ["end"] * 3


def test_rows_of_a_transaction_open_across_the_run_are_waited_for_and_come_late(
    make_job: MakeJob, mongo_database: Any
) -> None:
    here = make_job()
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 1_001))
    late_ids = [1_001, 1_004, 1_005, 1_100]
    with psycopg.connect(here.dsn) as slow:
        slow_pid = slow.info.backend_pid
        crm.insert(slow, "public", "audits", [crm.audit(id_) for id_ in late_ids])
        crm.add_audits(here.dsn, [1_002, 1_003, *range(1_006, 1_100), *range(1_101, 1_501)])
        with connect(here.dsn) as db:
            top, xmax = db.execute(resolve(db, load_without_referents(), "x").query("horizon")).fetchall()[0][1:]
        here = here.with_job(top_audit_id=top, snapshot_xmax=xmax)
        process = here.start(CRM_REPLAY_PAGE_ROWS="100")
        wait_until(lambda: saved_rows(mongo_database) == 1_496, "all other rows are published meanwhile")
        waiting = process.stderr.readline()
        assert process.poll() is None, "it waits"
        slow.commit()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert f"waiting for transactions older than the job: pid {slow_pid} of" in waiting
    assert "late_rows=4" in said
    assert sorted(event.audit_id for event in here.events()) == list(range(1, 1_501))
    assert sorted(event.audit_id for event in here.events() if event.id_range == 1) == late_ids
    late = mongo_database[CHECKPOINTS].find_one({"late": True})
    assert (late["rows"], late["done"]) == (4, True)
    assert all(isinstance(record, SnapshotMarker) for record in last_records(here))


def last_records(here: crm.Surroundings) -> list[Any]:
    return list({partition: record for partition, _, record in here.records()}.values())


def load_without_referents() -> SourceMapping:
    return SourceMapping.model_validate(load(None).model_dump(by_alias=True) | {"referents": {}})


def test_a_row_that_commits_after_a_sigkill_is_not_taken_for_a_repetition(
    make_job: MakeJob, mongo_database: Any
) -> None:
    here = make_job()
    crm.make_audits(here.dsn)
    with psycopg.connect(here.dsn) as slow:
        crm.insert(slow, "public", "audits", [crm.audit(id_) for id_ in range(5, 6_000, 10)])
        crm.add_audits(here.dsn, [id_ for id_ in range(1, 6_001) if id_ % 10 != 5])
        with connect(here.dsn) as db:
            top, xmax = db.execute(resolve(db, load_without_referents(), "x").query("horizon")).fetchall()[0][1:]
        here = here.with_job(top_audit_id=top, snapshot_xmax=xmax)
        process = here.start(CRM_REPLAY_PAGE_ROWS="50")
        wait_saved(mongo_database, 1_000)
        process.kill()
        process.communicate()
        slow.commit()
    code, said = here.run(CRM_REPLAY_PAGE_ROWS="50")
    assert code == 0, said
    assert [event.audit_id for event in sorted(here.events_counted_once())] == list(range(1, 6_001))
    assert saved_rows(mongo_database) == 6_000


def test_a_transaction_that_does_not_end_is_an_error_that_a_later_start_cures(make_job: MakeJob) -> None:
    here = make_job()
    crm.make_audits(here.dsn)
    with psycopg.connect(here.dsn) as slow:
        crm.insert(slow, "public", "audits", [crm.audit(3)])
        crm.add_audits(here.dsn, [1, 2, 4])
        with connect(here.dsn) as db:
            top, xmax = db.execute(resolve(db, load_without_referents(), "x").query("horizon")).fetchall()[0][1:]
        here = here.with_job(top_audit_id=top, snapshot_xmax=xmax)
        code, said = here.run(CRM_REPLAY_HORIZON_WAIT_S="0.2")
        assert code == 1
        last = said.strip().splitlines()[-1]
        assert "still open: pid" in last
        assert "raise CRM_REPLAY_HORIZON_WAIT_S" in last
        assert here.markers() == []
        slow.rollback()
    assert here.run()[0] == 0
    assert sorted(event.audit_id for event in here.events()) == [1, 2, 4]


def test_rows_no_event_can_hold_travel_as_dead_letters_in_their_place(make_job: MakeJob) -> None:
    here = make_job(top_audit_id=9, partitions=1, topic_config={"max.message.bytes": "50000"})
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, [1, 2, 9])
    crm.add_audits(here.dsn, [3], audited_changes="---\nbody: " + "ä" * 40_000)
    crm.add_audits(here.dsn, [4], audited_changes="---\nbody: " + "x" * 30_000, comment="y" * 19_500)
    crm.add_audits(here.dsn, [5], username="z" * 60_000)
    crm.add_audits(here.dsn, [6], created_at="infinity")
    crm.add_audits(here.dsn, [7], created_at="19999-01-01 00:00:00")
    crm.add_audits(here.dsn, [8], audited_changes="---\nbody: " + "x" * 40_000)
    code, said = here.run()
    assert code == 0, said
    assert "dead_letters=5" in said
    assert [event.audit_id for event in here.events()] == [1, 2, 8, 9]
    letters = {letter.audit_id: letter for letter in here.dead_letters()}
    assert [getattr(record, "audit_id", None) for _, _, record in here.records()][:-1] == list(range(1, 10))
    assert {id_: letter.cause for id_, letter in letters.items()} == {
        3: "row_too_large", 4: "row_too_large", 5: "row_too_large", 6: "undecodable_record", 7: "undecodable_record",
    }  # fmt: skip
    assert "audited_changes has 80010 bytes and comment 0" in letters[3].detail
    assert {letter.run for letter in letters.values()} == {7}


def test_pages_of_large_rows_end_early_and_lose_nothing(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job(top_audit_id=60)
    crm.make_audits(here.dsn)
    sizes = {id_: 900_000 if 10 <= id_ < 50 else 10 for id_ in range(1, 61)}
    for id_, size in sizes.items():
        crm.add_audits(here.dsn, [id_], audited_changes="x" * size)
    code, said = here.run()
    assert code == 0, said
    assert {event.audit_id: len(event.audited_changes) for event in here.events()} == sizes
    assert "rows=60, pages=3, dead_letters=0" in said


def test_a_connection_that_is_cut_is_opened_again(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job(top_audit_id=20_000)
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 20_001))
    process = here.start(CRM_REPLAY_PAGE_ROWS="100")
    cuts = 0
    with psycopg.connect(here.dsn, autocommit=True) as db:
        for milestone in (1_000, 5_000, 9_000):
            wait_saved(mongo_database, milestone)
            ended = db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'crm-replay'"
            ).fetchall()
            cuts += len(ended)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert cuts >= 3
    assert "the connection to PostgreSQL is lost" in said
    assert sorted(event.audit_id for event in here.events()) == list(range(1, 20_001))


def test_a_page_that_takes_too_long_is_read_in_smaller_windows(database_dsn: str) -> None:
    crm.make_audits(database_dsn)
    crm.add_audits(database_dsn, range(1, 16_001))
    with psycopg.connect(database_dsn) as db:
        db.execute(
            "CREATE VIEW slow_audits AS SELECT * FROM audits"
            " WHERE CASE WHEN id % 10 = 0 THEN pg_sleep(0.001) IS NOT NULL ELSE true END"
        )
    mapping = load_without_referents().model_dump(by_alias=True)
    mapping["source"] |= {"table": "slow_audits"}
    with connect(database_dsn) as db:
        source = resolve(db, SourceMapping.model_validate(mapping), "x")
    limits = Limits(page_rows=20_000, id_window=16_000, statement_timeout_s=1.0)
    with closing(AuditReader(database_dsn, source, crm.CUTOFF, limits)) as reader:
        page = reader.page_after(0, 16_000, 0, (), look_for_gaps=False)
    assert [event.audit_id for event in page.events] == list(range(1, page.end + 1))
    assert page.end in (4_000, 1_000)


def run_for_error(here: crm.Surroundings, **settings: str) -> tuple[int, str]:
    started = time.monotonic()
    code, said = here.run(**settings)
    assert time.monotonic() - started < 20
    lines = [line for line in said.strip().splitlines() if not line.startswith("%")]
    assert len(lines) == 1, said
    return code, last_event(lines[0])


def test_bad_input_is_one_line_and_code_2(make_job: MakeJob) -> None:
    here = make_job(top_audit_id=9)
    assert run_for_error(here) == (
        2,
        "there is no table public.audits in PostgreSQL database "
        + here.dsn.rsplit("dbname=", 1)[-1].split()[0].rsplit("/", 1)[-1]
        + f" at {psycopg.conninfo.conninfo_to_dict(here.dsn)['host']}"
        + f":{psycopg.conninfo.conninfo_to_dict(here.dsn)['port']}: name it in the source mapping (--mapping)",
    )
    code, line = run_for_error(here, CRM_REPLAY_PAGE_ROWS="many")
    assert (code, line.startswith("CRM_REPLAY_PAGE_ROWS: ")) == (2, True)
    code, line = run_for_error(here, CRM_REPLAY_JOB='{"run": 0}')
    assert (code, line.startswith("CRM_REPLAY_JOB, key company_sso_id: ")) == (2, True)
    code, line = run_for_error(here, CRM_AUDIT_DATABASE_URL="")
    assert (code, "CRM_AUDIT_DATABASE_URL is not set" in line) == (2, True)
    code, line = run_for_error(here.with_job(partitions=4))
    assert (code, "has 3 partitions and the job has 4" in line) == (2, True)


@pytest.mark.parametrize(
    ("setting", "address", "named"),
    [
        ("CRM_AUDIT_DATABASE_URL", "postgresql://127.0.0.1:1/x", "PostgreSQL database x at 127.0.0.1:1"),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1", "Kafka at 127.0.0.1:1 does not answer"),
        ("MONGODB_URL", "mongodb://127.0.0.1:1/", "MongoDB does not answer"),
    ],
)
def test_an_unreachable_server_is_one_line_and_worth_another_start(
    make_job: MakeJob, setting: str, address: str, named: str
) -> None:
    here = make_job(top_audit_id=9)
    crm.make_audits(here.dsn)
    code, line = run_for_error(here, **{setting: address})
    assert code == 1
    assert named in line
    assert setting in line


def test_a_failed_reader_ends_the_others_and_the_whole(make_job: MakeJob, mongo_database: Any) -> None:
    here = make_job(top_audit_id=20_000)
    crm.make_audits(here.dsn)
    crm.add_audits(here.dsn, range(1, 20_001))
    process = here.start(CRM_REPLAY_ID_RANGES="2", CRM_REPLAY_PAGE_ROWS="50", CRM_REPLAY_ID_WINDOW="1000")
    wait_saved(mongo_database, 500)
    children: list[psutil.Process] = psutil.Process(process.pid).children()
    assert len(children) == 2
    children[0].kill()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1, said
    assert "a reader of an id range ended with code -9" in said
    assert not any(child.is_running() for child in children)
    assert here.markers() == []
    assert here.run()[0] == 0
    assert [event.audit_id for event in sorted(here.events_counted_once())] == list(range(1, 20_001))
