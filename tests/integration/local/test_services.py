"""The embedded servers: up, status, down, and what crashes leave behind."""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymongo
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from typer.testing import CliRunner

from ops.cli.services import app
from ops.kafka import admin as kafka_admin
from ops.local import services
from ops.local.services import Service, ServiceSettings, postgres
from ops.local.services.detached import Process, stop
from ops.local.services.launcher import start_mark
from ops.local.services.layout import Home
from schemas.errors import BadInputError
from schemas.process.connections import Connections
from tests.integration.local.conftest import Stack
from tests.support.waiting import at_once

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("without_urls")]

PYTHON_CLI = [sys.executable, "-c", "from ops.cli.services import app; app()"]


def processes_of(home: Path) -> list[str]:
    """Return the command lines that name this home."""
    found = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in found if str(home) in line]


def kill(process: Process | None) -> None:
    assert process is not None
    stop(process, number=signal.SIGKILL, timeout_s=10)


@contextlib.contextmanager
def bystander(*, user: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the servers, and must not be touched."""
    program = [sys.executable if user is None else "/bin/sleep"]
    argv = [*program, "-c", "input()"] if user is None else [*program, "300"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, user=user, cwd="/") as process:
        try:
            yield process
        finally:
            process.kill()


def put_data(endpoints: services.Endpoints) -> str:
    """Write one record, row and document, acknowledged; return the name they go by."""
    name = f"kept_{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": endpoints.kafka_bootstrap_servers})
    admin.create_topics([NewTopic(name, 1, 1)], operation_timeout=30)[name].result(30)
    producer = Producer({"bootstrap.servers": endpoints.kafka_bootstrap_servers, "acks": "all"})
    producer.produce(name, b"kept")
    assert producer.flush(30) == 0
    kafka_admin.commit_offsets({"bootstrap.servers": endpoints.kafka_bootstrap_servers}, name, name, [1])
    with psycopg.connect(endpoints.crm_audit_database_url) as db:
        db.execute(f"CREATE TABLE {name} AS SELECT 'kept' AS word")
    with pymongo.MongoClient[dict[str, Any]](endpoints.mongodb_url) as client:
        client[name].words.insert_one({"word": "kept"})
    return name


def data_of(endpoints: services.Endpoints, name: str) -> tuple[object, ...]:
    """Return (record, committed offset, row, document) of that name."""
    settings = {"bootstrap.servers": endpoints.kafka_bootstrap_servers, "group.id": name}
    consumer = Consumer(settings)
    try:
        consumer.assign([TopicPartition(name, 0, 0)])
        record = consumer.poll(30)
        committed = consumer.committed([TopicPartition(name, 0)], timeout=30)[0].offset
    finally:
        consumer.close()
    with psycopg.connect(endpoints.crm_audit_database_url) as db:
        row = db.execute(f"SELECT word FROM {name}").fetchone()
    with pymongo.MongoClient[dict[str, Any]](endpoints.mongodb_url) as client:
        document = client[name].words.find_one({}, {"_id": 0})
    return record.value() if record else None, committed, row, document


KEPT = (b"kept", 1, ("kept",), {"word": "kept"})


def test_every_server_answers_and_is_what_it_should_be(stack: Stack) -> None:
    assert [(found.service, found.state) for found in services.status(stack.home)] == [
        (service, "running") for service in Service
    ]
    with psycopg.connect(stack.endpoints.crm_audit_database_url) as db:
        assert db.execute("SELECT current_database(), current_setting('wal_level')").fetchone() == ("crm", "logical")
    with pymongo.MongoClient[dict[str, Any]](stack.endpoints.mongodb_url) as client:
        assert client.write_concern.document == {"j": True}
        cache = client.admin.command("serverStatus")["wiredTiger"]["cache"]["maximum bytes configured"]
        assert cache == ServiceSettings.load().mongodb_cache_mib << 20
    cluster = AdminClient({"bootstrap.servers": stack.endpoints.kafka_bootstrap_servers}).list_topics(timeout=10)
    assert len(cluster.brokers) == 1


def test_a_second_up_changes_nothing_and_says_the_same(stack: Stack) -> None:
    before = [stack.process(service) for service in Service]
    said: list[str] = []
    assert services.up(stack.home, say=said.append) == stack.endpoints
    assert services.endpoints(stack.home) == stack.endpoints
    assert [stack.process(service) for service in Service] == before
    assert said == []
    answer = CliRunner().invoke(app, ["up", "--home", str(stack.home), "--json"])
    assert json.loads(answer.stdout) == {name.lower(): url for name, url in stack.endpoints.environment().items()}
    assert [stack.process(service) for service in Service] == before


def test_killed_servers_come_back_on_the_same_ports_with_their_data(stack: Stack) -> None:
    name = put_data(stack.endpoints)
    for service in Service:
        kill(stack.process(service))
    assert {found.state for found in services.status(stack.home)} == {"stopped"}
    assert services.endpoints(stack.home) is None
    assert services.up(stack.home) == stack.endpoints
    assert data_of(stack.endpoints, name) == KEPT


def test_down_ends_every_process_and_keeps_the_data(stack: Stack) -> None:
    name = put_data(stack.endpoints)
    runner = CliRunner()
    answer = runner.invoke(app, ["down", "--home", str(stack.home), "--json"])
    assert json.loads(answer.stdout) == {"stopped": ["kafka", "postgres", "mongodb"], "data_deleted": False}
    assert processes_of(stack.home) == []
    again = runner.invoke(app, ["down", "--home", str(stack.home)])
    assert (again.exit_code, again.stdout) == (0, "none was running\n")
    assert runner.invoke(app, ["status", "--home", str(stack.home)]).exit_code == 1
    answer = runner.invoke(app, ["up", "--home", str(stack.home)])
    assert answer.exit_code == 0
    assert answer.stdout.splitlines() == [f"{name}={url}" for name, url in stack.endpoints.environment().items()]
    assert data_of(stack.endpoints, name) == KEPT


def test_a_server_left_by_an_up_that_died_is_replaced(stack: Stack) -> None:
    left = stack.process(Service.POSTGRES)
    Home.at(stack.home).ready_file(Service.POSTGRES).unlink()  # the last thing that `up` writes
    assert services.endpoints(stack.home) == services.Endpoints(
        kafka_bootstrap_servers=stack.endpoints.kafka_bootstrap_servers, mongodb_url=stack.endpoints.mongodb_url
    )
    assert services.up(stack.home) == stack.endpoints
    assert not left.alive


def test_a_stale_process_file_never_hits_another_process(empty_home: Path) -> None:
    only, home = [Service.MONGODB], Home.at(empty_home)
    before = services.up(empty_home, only=only)
    kill(Process.read(home.process_file(Service.MONGODB)))
    with bystander() as other:
        mark = start_mark(other.pid)
        stale = Process(other.pid, mark[:-1] + ("0" if mark[-1] != "0" else "1"))  # the id was given to another process
        stale.write(home.process_file(Service.MONGODB))
        stale.write(home.ready_file(Service.MONGODB))
        assert services.down(empty_home) == []
        assert services.up(empty_home, only=only) == before
        assert other.poll() is None


def test_a_lock_of_postgres_that_names_another_process_does_not_block(stack: Stack) -> None:
    kill(stack.process(Service.POSTGRES))
    [lock] = list(postgres_data(stack).glob("postmaster.pid"))
    user = next((name for name in postgres.USERS_FOR_ROOT if exists(name)), None) if os.geteuid() == 0 else None
    with bystander(user=user) as other:  # of the same user: PostgreSQL itself would believe it to be the owner
        lines = lock.read_text().splitlines()
        lock.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        assert services.up(stack.home) == stack.endpoints
        assert other.poll() is None


def exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def postgres_data(stack: Stack) -> Path:
    return Path(json.loads((Home.at(stack.home).directory(Service.POSTGRES) / "data.json").read_text())["path"])


def test_servers_whose_process_files_were_lost_are_found_and_ended(empty_home: Path) -> None:
    only = [Service.POSTGRES, Service.MONGODB]
    before = services.up(empty_home, only=only)
    lost = [Process.read(Home.at(empty_home).process_file(service)) for service in only]
    shutil.rmtree(empty_home / "run")
    assert services.endpoints(empty_home) is None
    assert services.up(empty_home, only=only) == before
    assert all(process is not None and not process.alive for process in lost)
    shutil.rmtree(empty_home / "run")
    assert services.down(empty_home) == only
    assert processes_of(empty_home) == []


def test_servers_of_a_home_that_was_deleted_are_ended_by_down(tmp_path: Path) -> None:
    home = tmp_path / "home"
    services.up(home, only=[Service.MONGODB])
    shutil.rmtree(home)
    assert services.down(home) in ([Service.MONGODB], [])  # [] if it has seen the deletion itself
    assert processes_of(home) == []
    assert not home.exists()


def test_half_made_data_is_made_again(empty_home: Path) -> None:
    home = Home.at(empty_home)
    first = services.up(empty_home, only=[Service.POSTGRES])
    services.down(empty_home)
    marker = home.directory(Service.POSTGRES) / "data.json"
    data = Path(json.loads(marker.read_text())["path"])
    marker.unlink()  # as if initdb had been killed: what is there is not to be trusted
    (data / "PG_VERSION").unlink()
    assert services.up(empty_home, only=[Service.POSTGRES]) == first
    with psycopg.connect(first.crm_audit_database_url) as db:
        assert db.execute("SELECT current_database()").fetchone() == ("crm",)


def test_an_address_in_the_environment_wins_and_nothing_is_started_for_it(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    monkeypatch.setenv("MONGODB_URL", "mongodb://mongo.example")
    found = services.up(empty_home)
    assert set(found.environment()) == {"CRM_AUDIT_DATABASE_URL"}
    filled = services.connections(empty_home)
    assert filled == Connections(
        kafka_bootstrap_servers="kafka.example:9092",
        mongodb_url="mongodb://mongo.example",
        crm_audit_database_url=found.crm_audit_database_url,
    )
    assert [one.state for one in services.status(empty_home)] == ["environment", "running", "environment"]
    monkeypatch.setenv("CRM_AUDIT_DATABASE_URL", "postgresql://db.example/crm")
    assert services.connections(empty_home).crm_audit_database_url == "postgresql://db.example/crm"
    assert services.down(empty_home) == [Service.POSTGRES]


def test_a_busy_port_is_one_clear_line_and_nothing_is_left_running(empty_home: Path, stack: Stack) -> None:
    busy = urllib.parse.urlsplit(stack.endpoints.mongodb_url).port
    answer = CliRunner().invoke(
        app, ["up", "--home", str(empty_home), "--only", "postgres", "--only", "mongodb", "--mongodb-port", str(busy)]
    )
    assert answer.exit_code == 2
    assert answer.stderr.splitlines()[-1].startswith(f"crm-replay: port {busy} (CRM_REPLAY_MONGODB_PORT) is in use")
    assert processes_of(empty_home) == []


def test_another_port_for_a_running_server_is_refused(stack: Stack) -> None:
    with pytest.raises(BadInputError, match=r"kafka runs on port \d+, not on 1234: stop it first"):
        services.up(stack.home, settings=ServiceSettings.load(kafka_port=1234))
    assert services.endpoints(stack.home) == stack.endpoints


def test_a_broken_installer_is_one_clear_line_and_nothing_is_left_running(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "mvn"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho '[ERROR] the mirror is down'\necho '[ERROR] see the manual'\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CRM_REPLAY_CACHE", str(tmp_path / "cache"))
    answer = CliRunner().invoke(app, ["up", "--home", str(empty_home), "--only", "kafka", "--only", "postgres"])
    assert answer.exit_code == 2
    problems = [line for line in answer.stderr.splitlines() if line.startswith("crm-replay: ")]
    assert len(problems) == 1
    assert "mvn could not fetch kafka (exit code 7): [ERROR] the mirror is down" in problems[0]
    assert processes_of(empty_home) == []
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []


def test_a_server_that_ends_at_once_is_told_with_the_end_of_its_log(empty_home: Path) -> None:
    with pytest.raises(BadInputError, match=r"kafka ended while it was starting: .*(heap|memory).*kafka\.log"):
        services.up(empty_home, only=[Service.KAFKA], settings=ServiceSettings.load(kafka_heap_mib=1 << 40))
    assert services.endpoints(empty_home) is None


def test_an_interrupted_up_stops_what_it_has_started(empty_home: Path) -> None:
    with subprocess.Popen(
        [*PYTHON_CLI, "up", "--home", str(empty_home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        assert up.stderr is not None
        for line in up.stderr:
            if "ready after" in line:
                break
        up.send_signal(signal.SIGTERM)
        rest = up.stderr.read()
    if up.returncode == 0:  # all three were ready within the time it took to ask
        pytest.fail("the servers were too quick to be interrupted")
    assert (up.returncode, rest.splitlines()[-1]) == (
        2,
        "crm-replay: interrupted: the servers that had been started until then were stopped again",
    )
    assert processes_of(empty_home) == []


def test_two_ups_at_once_start_one_set_of_servers(empty_home: Path) -> None:
    only = [Service.POSTGRES, Service.MONGODB]
    found: list[services.Endpoints] = []
    at_once(2, lambda _: found.append(services.up(empty_home, only=only)))
    assert len(found) == 2
    assert found[0] == found[1]
    servers = [line for line in processes_of(empty_home) if "--data" in line or re.search(r"postgres -D", line)]
    assert len(servers) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another user")
def test_a_home_that_is_closed_to_postgres_gets_its_data_elsewhere(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    said: list[str] = []
    try:
        found = services.up(tmp_path / "home", only=[Service.POSTGRES], say=said.append)
        place = postgres.PLACE_FOR_ROOT / Home.at(tmp_path / "home").short_id
        assert any(f"its data is in {place}" in line for line in said)
        with psycopg.connect(found.crm_audit_database_url) as db:
            assert db.execute("SELECT current_setting('data_directory')").fetchone() == (f"{place}/data",)
        assert [one.state for one in services.status(tmp_path / "home")] == ["stopped", "running", "stopped"]
    finally:
        services.down(tmp_path / "home", delete_data=True)
    assert not place.exists()
