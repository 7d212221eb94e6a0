"""The user directory for many accounts: one `UserDirectory` each, bounded in number and age, behind one circuit.

An answer is valid for `ANSWERS_S` here, and not indefinitely as in a replay: people join and leave while the feed runs.
An outage of the directory is noticed once for all accounts: while the circuit is open, no request is sent.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from processors.lookups.directory import OPEN_S, UserDirectory

ACCOUNTS_MAX = 1_000
ANSWERS_S = 3600.0
ACCOUNTS_AT_ONCE_MAX = 4

MakeDirectory = Callable[[str], UserDirectory]


class _Account(NamedTuple):
    directory: UserDirectory
    made_at: float


class LiveDirectory:
    """SSO ids by account and email."""

    def __init__(
        self,
        make: MakeDirectory | None,
        *,
        accounts_max: int = ACCOUNTS_MAX,
        answers_s: float = ANSWERS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make` returns the directory of an account; None: without a directory, no user is known."""
        self._make = make
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._accounts_max = accounts_max
        self._answers_s = answers_s
        self._clock = clock
        self._open_until = 0.0
        self._counts: Counter[str] = Counter()  # of evicted directories

    def sso_id(self, account: str, email: str) -> str | None:
        """Return the directory's answer for an account's user; None: no answer, or no such user."""
        known = self._accounts.get(account)
        return known.directory.sso_id(email) if known is not None else None

    async def prefetch(self, emails: Mapping[str, set[str]]) -> None:
        """Query the directory for those emails, by account, that it has not answered yet.

        Returns within a few time-outs in any case; raises nothing.
        """
        if self._make is None or self._clock() < self._open_until:
            return
        gate = asyncio.Semaphore(ACCOUNTS_AT_ONCE_MAX)

        async def ask(account: str, of_account: set[str]) -> None:
            async with gate:
                if self._clock() < self._open_until:
                    return
                directory = await self._directory(account)
                await directory.prefetch(sorted(of_account))
                if directory.is_open:
                    self._open_until = self._clock() + OPEN_S

        await asyncio.gather(*(ask(account, of_account) for account, of_account in emails.items()))

    async def aclose(self) -> None:
        """Close every connection."""
        while self._accounts:
            await self._forget(next(iter(self._accounts)))

    def counts(self) -> dict[str, int]:
        """Return the counts of the requests, over all accounts."""
        total = Counter(self._counts)
        for known in self._accounts.values():
            total.update(known.directory.counts.as_dict())
        return dict(total)

    async def _directory(self, account: str) -> UserDirectory:
        known = self._accounts.get(account)
        if known is not None and self._clock() - known.made_at > self._answers_s:
            await self._forget(account)
            known = None
        if known is None:
            assert self._make is not None
            known = self._accounts[account] = _Account(self._make(account), self._clock())
            while len(self._accounts) > self._accounts_max:
                await self._forget(next(iter(self._accounts)))
        self._accounts.move_to_end(account)
        return known.directory

    async def _forget(self, account: str) -> None:
        known = self._accounts.pop(account, None)
        if known is not None:
            self._counts.update(known.directory.counts.as_dict())
            await known.directory.aclose()
