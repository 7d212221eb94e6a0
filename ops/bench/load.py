"""`python -m ops.bench.load URL`: requests a status at a steady rate and prints the latencies.

The rate does not depend on the server, and latency is measured from the moment at which a request was due (no
coordinated omission).
"""

import argparse
import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Sequence
from urllib.parse import urlsplit

from schemas.errors import BadInputError

ANSWER_TIMEOUT_S = 10.0


class _Connection:
    """One keep-alive connection; a request at a time."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._host = host
        self._port = port
        self._request = request
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self) -> int:
        """Return the status of one answer, whose body has been read."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        await self._reader.readexactly(length)
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def load(
    url: str, authorization: str, *, rate: float, seconds: float, connections: int
) -> tuple[list[float], dict[str, int]]:
    """Return the seconds that each answer took, sorted, and how many there were of each status or failure."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise BadInputError(f"{url} is no plain http:// address", "load it behind the gateway")
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: {authorization}\r\n\r\n".encode()
    idle: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
    for _ in range(connections):
        idle.put_nowait(_Connection(parts.hostname, parts.port or 80, request))
    took: list[float] = []
    counts: dict[str, int] = {}

    async def one(due: float) -> None:
        connection = await idle.get()
        try:
            outcome = str(await asyncio.wait_for(connection.request(), ANSWER_TIMEOUT_S))
        except (OSError, EOFError, TimeoutError) as error:
            connection.close()
            outcome = type(error).__name__
        idle.put_nowait(connection)
        took.append(time.perf_counter() - due)
        counts[outcome] = counts.get(outcome, 0) + 1

    began = time.perf_counter()
    pending = set()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(one(due))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    while not idle.empty():
        idle.get_nowait().close()
    return sorted(took), counts


def main(words: Sequence[str] | None = None) -> None:
    """Request URL at a steady rate; one JSON line: rate reached, p50, p90, p99 and longest answer in milliseconds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("url")
    parser.add_argument("--user", default="", help="user:password, for Basic")
    parser.add_argument("--token", default="", help="a session token, for Bearer")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--connections", type=int, default=20, help="at once; a request that finds none waits, and counts it"
    )
    given = parser.parse_args(words)
    if given.rate < 1 or given.seconds < 1 or given.connections < 1:
        parser.error("--rate, --seconds and --connections are at least 1")
    authorization = f"Bearer {given.token}" if given.token else f"Basic {b64encode(given.user.encode()).decode()}"
    began = time.perf_counter()
    took, counts = asyncio.run(
        load(given.url, authorization, rate=given.rate, seconds=given.seconds, connections=given.connections)
    )
    spent = time.perf_counter() - began
    shown = {
        "requests": len(took),
        "per_s": round(len(took) / spent, 1),
        **{f"p{part}_ms": round(took[len(took) * part // 100] * 1000, 1) for part in (50, 90, 99)},
        "max_ms": round(took[-1] * 1000, 1),
        "answers": counts,
    }
    print(json.dumps(shown))  # noqa: T201


if __name__ == "__main__":
    main()
