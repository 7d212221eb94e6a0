"""The user directory over HTTP: the SSO ids of CRM users. I/O, but it never blocks or fails a replay.

`prefetch` is awaited before a batch is transformed, `sso_id` then answers from memory. A user for whom the directory
gave no answer, an error, or a late answer falls back (the contract's "deleted user"); nothing is raised.

Answers are cached for the job, also that an email is unknown. Failed requests are retried by a later `prefetch`, but
not while the circuit is open: after `FAILURES_TO_OPEN` failures in a row no request is sent for `OPEN_S`, then one
request tries; so an outage costs a job three time-outs a minute at most, and at most one time-out a batch.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import httpx

TIMEOUT_S = 3.0  # the contract: a later answer does not count
BATCH_SIZE_MAX = 50  # emails a request: some proxies refuse URLs beyond 8 kB
BATCH_CHARACTERS_MAX = 4_000  # of emails, before they are escaped
REQUESTS_AT_ONCE_MAX = 4
FAILURES_TO_OPEN = 3
OPEN_S = 60.0
ACTIVE = "active"
PATH = "/private/users"


@dataclass(slots=True)
class DirectoryCounts:
    """Counts of the results, by email unless named requests."""

    requests: int = 0
    request_failures: int = 0
    known: int = 0
    unknown: int = 0  # the directory does not have them, or not as active users
    failed: int = 0  # no answer: an error, a time-out
    not_asked: int = 0  # the circuit was open
    circuit_opened: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


class UserDirectory:
    """SSO ids by email, of one account, for one job."""

    def __init__(
        self,
        url: str,
        company_sso_id: str,
        *,
        timeout_s: float = TIMEOUT_S,
        auth: tuple[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is USER_DIRECTORY_URL; if empty, no user is known. `auth` is user and password, if required."""
        self.counts = DirectoryCounts()
        self._url = url.rstrip("/")
        self._company_sso_id = company_sso_id
        self._timeout_s = timeout_s
        self._auth = auth
        self._transport = transport
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._answers: dict[str, str | None] = {}
        self._failures_in_a_row = 0
        self._open_until: float | None = None

    async def __aenter__(self) -> Self:
        """Return itself; leaving the block closes the connections."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    def sso_id(self, email: str) -> str | None:
        """Return the SSO id of the active user with this email; None if there is none, or no answer."""
        key = normalized(email)
        return self._answers.get(key) if key is not None else None

    async def prefetch(self, emails: Iterable[str]) -> None:
        """Query the directory for those emails that it has not answered yet.

        Returns within one time-out (all requests of a call share it) in any case; raises nothing.
        """
        if not self._url:
            return
        wanted = list(
            dict.fromkeys(
                key for email in emails if (key := normalized(email)) is not None and key not in self._answers
            )
        )
        if not wanted:
            return
        batches = _batches(wanted)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        if self._open_until is not None and not self.is_open:  # one request decides whether the others are made
            await self._ask(batches[0], deadline)
            batches = batches[1:]
        gate = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)
        await asyncio.gather(*(self._ask_through(gate, batch, deadline) for batch in batches))

    def forget_failures(self) -> None:
        """Close the circuit: the next `prefetch` sends requests again."""
        self._failures_in_a_row = 0
        self._open_until = None

    async def aclose(self) -> None:
        """Close the connections; the cached answers remain."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    @property
    def is_open(self) -> bool:
        """Whether no requests are sent now, because the directory has failed too often."""
        return self._open_until is not None and self._clock() < self._open_until

    async def _ask_through(self, gate: asyncio.Semaphore, batch: list[str], deadline: float) -> None:
        async with gate:
            await self._ask(batch, deadline)

    async def _ask(self, batch: list[str], deadline: float) -> None:
        """Query one batch, and cache the answers."""
        counts = self.counts
        if self.is_open:
            counts.not_asked += len(batch)
            return
        counts.requests += 1
        try:
            async with asyncio.timeout_at(deadline):
                found = _active(await self._get(batch))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, OSError):
            counts.request_failures += 1
            counts.failed += len(batch)
            self._failed()
            return
        self.forget_failures()
        for email in batch:
            sso_id = found.get(email)
            self._answers[email] = sso_id
            if sso_id is None:
                counts.unknown += 1
            else:
                counts.known += 1

    async def _get(self, batch: list[str]) -> Any:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self._timeout_s), auth=self._auth, transport=self._transport
            )
        response = await self._client.get(
            f"{self._url}{PATH}", params={"company_sso_id": self._company_sso_id, "emails": ",".join(batch)}
        )
        response.raise_for_status()
        return response.json()

    def _failed(self) -> None:
        self._failures_in_a_row += 1
        was_trying = self._open_until is not None
        if was_trying or self._failures_in_a_row >= FAILURES_TO_OPEN:
            if not self.is_open:
                self.counts.circuit_opened += 1
            self._open_until = self._clock() + OPEN_S


def normalized(email: str) -> str | None:
    """Return the email as it is queried and compared: trimmed, lower case; None if it cannot be valid."""
    key = email.strip().lower()
    return key if key and "," not in key else None


def _batches(emails: list[str]) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    length = 0
    for email in emails:
        if batches[-1] and (len(batches[-1]) >= BATCH_SIZE_MAX or length + len(email) > BATCH_CHARACTERS_MAX):
            batches.append([])
            length = 0
        batches[-1].append(email)
        length += len(email) + 1
    return batches


def _active(answer: Any) -> dict[str, str]:
    """Return the SSO ids of the active users in an answer, by email. Raises ValueError for any other response."""
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise ValueError("not an answer of the user directory")
    found: dict[str, str] = {}
    for user in answer["data"]:
        if not isinstance(user, dict):
            raise ValueError("not an answer of the user directory")
        email, sso_id = user.get("email"), user.get("sso_id")
        is_active = str(user.get("status", ACTIVE)).lower() == ACTIVE
        if isinstance(email, str) and isinstance(sso_id, str) and sso_id and is_active:
            found[email.strip().lower()] = sso_id
    return found
