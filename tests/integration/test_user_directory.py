"""The user directory's client against the development server, over real sockets."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ops.local.directory_server import DirectoryServer, read_emails, sso_id_of
from processors.lookups import directory as client
from processors.lookups.directory import UserDirectory
from schemas.errors import BadInputError

COMPANY = "company-1"
EMAILS = [f"user{n}@example.com" for n in range(120)]


@pytest.fixture
def server() -> Iterator[DirectoryServer]:
    with DirectoryServer(EMAILS) as running:
        yield running


def ask(directory: UserDirectory, *rounds: list[str]) -> None:
    async def prefetch() -> None:
        async with directory:
            for emails in rounds:
                await directory.prefetch(emails)

    asyncio.run(prefetch())


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_active_users_have_their_sso_id(server: DirectoryServer) -> None:
    directory = UserDirectory(server.url, COMPANY)
    ask(directory, EMAILS[:2])
    assert directory.sso_id(EMAILS[0]) == sso_id_of(COMPANY, EMAILS[0])
    assert directory.sso_id(f" {EMAILS[1].upper()} ") == sso_id_of(COMPANY, EMAILS[1])
    assert directory.sso_id("never.asked@example.com") is None


def test_emails_are_batched_and_asked_about_once(server: DirectoryServer) -> None:
    directory = UserDirectory(server.url, COMPANY)
    ask(directory, EMAILS, EMAILS, [*EMAILS[:3], EMAILS[0]])
    assert sorted(len(emails) for emails in server.requests) == [20, 50, 50]
    assert sorted(email for emails in server.requests for email in emails) == sorted(EMAILS)
    assert directory.counts.known == len(EMAILS)


def test_special_characters_in_emails_survive_the_url(server: DirectoryServer) -> None:
    odd = "tag+1&x=y%2C@exämple.com"
    with DirectoryServer([odd]) as other:
        directory = UserDirectory(other.url, COMPANY)
        ask(directory, [odd])
    assert directory.sso_id(odd) == sso_id_of(COMPANY, odd)


def test_that_nobody_is_known_by_an_email_is_an_answer_too(server: DirectoryServer) -> None:
    server.behave(left_out=[EMAILS[0]], deactivated=[EMAILS[1]])
    directory = UserDirectory(server.url, COMPANY)
    ask(directory, EMAILS[:3], EMAILS[:3])
    assert [directory.sso_id(email) for email in EMAILS[:3]] == [None, None, sso_id_of(COMPANY, EMAILS[2])]
    assert len(server.requests) == 1
    assert directory.counts.unknown == 2


@pytest.mark.parametrize("behaviour", [{"status": 500}, {"status": 404}, {"nonsense": True}])
def test_a_failed_answer_is_none_and_is_asked_for_again(server: DirectoryServer, behaviour: dict[str, object]) -> None:
    server.behave(**behaviour)
    directory = UserDirectory(server.url, COMPANY)
    ask(directory, EMAILS[:1])
    assert directory.sso_id(EMAILS[0]) is None
    assert directory.counts.failed == 1
    server.behave(status=200, nonsense=False)
    ask(directory, EMAILS[:1])
    assert directory.sso_id(EMAILS[0]) == sso_id_of(COMPANY, EMAILS[0])


def test_a_slow_directory_costs_one_time_out_for_all_its_batches(server: DirectoryServer) -> None:
    server.behave(delay_s=30.0)
    directory = UserDirectory(server.url, COMPANY, timeout_s=0.3)
    began = time.monotonic()
    ask(directory, EMAILS)
    assert time.monotonic() - began < 3.0
    assert directory.counts.failed + directory.counts.not_asked == len(EMAILS)
    assert all(directory.sso_id(email) is None for email in EMAILS)


def test_a_directory_that_is_down_is_left_alone_until_the_circuit_closes() -> None:
    with DirectoryServer(EMAILS) as server:
        url = server.url
    clock = Clock()
    directory = UserDirectory(url, COMPANY, clock=clock)
    for email in EMAILS[: client.FAILURES_TO_OPEN]:
        assert not directory.is_open
        ask(directory, [email])
    assert directory.is_open
    requests = directory.counts.requests
    ask(directory, EMAILS)
    assert directory.counts.requests == requests
    assert directory.counts.not_asked == len(EMAILS)

    clock.now += client.OPEN_S
    ask(directory, EMAILS)  # one request tries, and opens the circuit again
    assert directory.counts.requests == requests + 1
    assert directory.is_open
    assert directory.counts.circuit_opened == 2


def test_the_circuit_closes_with_the_first_answer(server: DirectoryServer) -> None:
    clock = Clock()
    directory = UserDirectory(server.url, COMPANY, clock=clock)
    server.behave(status=503)
    ask(directory, *([email] for email in EMAILS[: client.FAILURES_TO_OPEN]))
    assert directory.is_open
    server.behave(status=200)
    clock.now += client.OPEN_S
    ask(directory, EMAILS)
    assert not directory.is_open
    assert directory.counts.known == len(EMAILS)


@pytest.mark.parametrize("url", ["", "http://", "http://127.0.0.1:1", "nonsense"])
def test_a_directory_that_is_not_there_raises_nothing(url: str) -> None:
    directory = UserDirectory(url, COMPANY)
    ask(directory, ["a@example.com", "", "two,emails@example.com"])
    assert directory.sso_id("a@example.com") is None
    assert directory.sso_id("") is None


def test_the_behaviour_can_be_changed_over_http(server: DirectoryServer) -> None:
    answer = httpx.put(f"{server.url}/behaviour", json={"delay_s": 0, "deactivated": [EMAILS[0]]})
    assert answer.json()["deactivated"] == [EMAILS[0]]
    assert httpx.get(f"{server.url}/behaviour").json() == answer.json()
    assert httpx.put(f"{server.url}/behaviour", json={"mood": "bad"}).status_code == 400
    assert httpx.get(f"{server.url}/private/users").status_code == 400
    assert httpx.get(f"{server.url}/elsewhere").status_code == 404


def test_users_come_from_a_file_and_a_broken_line_is_named(tmp_path: Path) -> None:
    users = tmp_path / "users.jsonl"
    users.write_text('{"id":1,"email":"a@example.com"}\n\n{"id":2,"email":null}\n')
    assert read_emails(str(users)) == ["a@example.com"]
    for broken in ("{", '{"id":1}', "[]"):
        users.write_text(f'{{"email":"a@example.com"}}\n{broken}\n')
        with pytest.raises(BadInputError, match=r"users\.jsonl, line 2"):
            read_emails(str(users))
    with pytest.raises(BadInputError, match="--users"):
        read_emails(str(tmp_path / "missing.jsonl"))


def test_a_port_that_is_taken_is_one_clear_error(server: DirectoryServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(BadInputError, match=f"port {port}"):
        DirectoryServer(EMAILS, port=port)
