"""The user directory for many accounts: answers by account, bounded, refreshed, and one circuit for all of them."""

import asyncio

import httpx

from processors.feed.directory import LiveDirectory
from processors.lookups.directory import FAILURES_TO_OPEN, OPEN_S, UserDirectory


class Server:
    """Knows every user as `<account>:<email>`, unless it is down; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.down = False
        self.now = 1000.0

    def answer(self, request: httpx.Request) -> httpx.Response:
        account, emails = request.url.params["company_sso_id"], request.url.params["emails"]
        self.asked.append((account, emails))
        if self.down:
            return httpx.Response(503)
        users = [{"email": e, "sso_id": f"{account}:{e}", "status": "active"} for e in emails.split(",")]
        return httpx.Response(200, json={"data": users})

    def directory(self, **bounds: float) -> LiveDirectory:
        def make(account: str) -> UserDirectory:
            return UserDirectory(
                "http://directory", account, transport=httpx.MockTransport(self.answer), clock=lambda: self.now
            )

        return LiveDirectory(make, clock=lambda: self.now, **bounds)  # type: ignore[arg-type]


def test_one_email_in_two_accounts_is_two_users_and_each_is_asked_about_once() -> None:
    server = Server()

    async def play() -> None:
        directory = server.directory()
        for _ in range(2):
            await directory.prefetch({"acme": {"a@x"}, "other": {"a@x", "b@x"}})
        assert directory.sso_id("acme", "a@x") == "acme:a@x"
        assert directory.sso_id("other", "a@x") == "other:a@x"
        assert directory.sso_id("nobody", "a@x") is None
        assert directory.counts()["known"] == 3
        await directory.aclose()

    asyncio.run(play())
    assert sorted(server.asked) == [("acme", "a@x"), ("other", "a@x,b@x")]


def test_answers_grow_old_and_accounts_are_bounded() -> None:
    server = Server()

    async def play() -> None:
        directory = server.directory(accounts_max=2, answers_s=100)
        await directory.prefetch({"a": {"e"}})
        server.now += 101
        await directory.prefetch({"a": {"e"}})  # asked again
        await directory.prefetch({"b": {"e"}})
        await directory.prefetch({"c": {"e"}})  # a is forgotten
        assert directory.sso_id("a", "e") is None
        assert directory.sso_id("c", "e") == "c:e"
        assert directory.counts()["known"] == 4
        await directory.aclose()

    asyncio.run(play())
    assert [account for account, _ in server.asked] == ["a", "a", "b", "c"]


def test_a_directory_that_is_down_is_noticed_once_for_all_accounts() -> None:
    server = Server()
    server.down = True

    async def play() -> None:
        directory = server.directory()
        for _ in range(FAILURES_TO_OPEN):
            await directory.prefetch({"a": {"e"}})
        asked = len(server.asked)
        for number in range(50):
            await directory.prefetch({f"account-{number}": {"e"}})
        assert len(server.asked) == asked
        server.down = False
        server.now += OPEN_S + 1
        await directory.prefetch({"b": {"e"}})
        assert directory.sso_id("b", "e") == "b:e"
        await directory.aclose()

    asyncio.run(play())


def test_without_a_directory_nobody_is_known() -> None:
    directory = LiveDirectory(None)
    asyncio.run(directory.prefetch({"a": {"e"}}))
    assert directory.sso_id("a", "e") is None
