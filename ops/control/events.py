"""The console's live events: one poll a second of each watched account, shared by all of its subscribers.

A client is sent the newest state and never a queue of old ones, so a slow one costs no memory. The id of an event is a
digest of what it describes: a client that reconnects and has missed nothing gets nothing, from any process.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import orjson
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ops.control.envelope import ApiError, RespCode
from ops.control.http_metrics import HttpMetrics

log = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 15.0  # below the idle time-out of common proxies
GONE_CHECK_EVERY_S = 2.0
RETRY_MS = 2_000  # after which a browser reconnects
BYE = b"event: bye\ndata: {}\n\n"
HEARTBEAT = b"event: beat\ndata: {}\n\n"  # no comment line: a page cannot see one, and so not miss it

# A state: its parts by name, each as what is compared and what is sent. An account has one part, named "".
State = Mapping[str, tuple[bytes, bytes]]


@dataclass(slots=True)
class Watch:
    """What is watched, and its state as it was found last."""

    look: Callable[[], Awaitable[State]]
    clients: int = 0
    state: State | None = None
    state_id: str = ""
    trouble: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def wake(self) -> None:
        """Wake all waiting subscribers."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(slots=True)
class Client:
    """One that watches."""

    name: str
    watch: Watch
    gone: bool = False


class Events:
    """All watches of this process."""

    def __init__(self, *, clients_max: int, every_s: float, metrics: HttpMetrics) -> None:
        """`every_s` is how often is looked."""
        self._clients_max = clients_max
        self._every_s = every_s
        self._metrics = metrics
        self._watches: dict[str, Watch] = {}
        self._clients = 0
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End every stream, with a good-bye."""
        self._stopped.set()
        for watch in self._watches.values():
            watch.wake()

    def join(self, name: str, look: Callable[[], Awaitable[State]]) -> Client:
        """Subscribe a client to the watch of that name, which is polled until `leave`.

        Raises ApiError over the limit of clients.
        """
        if self._stopped.is_set():
            raise ApiError(503, RespCode.SERVICE_UNAVAILABLE, "this server is stopping", headers={"retry-after": "5"})
        if self._clients >= self._clients_max:
            raise ApiError(
                503,
                RespCode.TOO_MANY_CLIENTS,
                f"{self._clients_max} pages are watching already; poll instead",
                headers={"retry-after": "30"},
            )
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = Watch(look)
            watch.task = asyncio.create_task(self._keep_looking(watch))
        watch.clients += 1
        self._clients += 1
        self._metrics.event_clients.set(self._clients)
        return Client(name, watch)

    def leave(self, client: Client) -> None:
        """Unsubscribe a client (idempotent). Polling stops with the last subscriber."""
        if client.gone:
            return
        client.gone = True
        name, watch = client.name, client.watch
        self._clients -= 1
        self._metrics.event_clients.set(self._clients)
        watch.clients -= 1
        if watch.clients == 0:
            if watch.task is not None:
                watch.task.cancel()
            if self._watches.get(name) is watch:
                del self._watches[name]

    async def _keep_looking(self, watch: Watch) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                found = await watch.look()
            except ApiError as error:
                self._note(watch, None, error.message)
            except Exception:
                log.exception("the state of what is watched cannot be read")
                self._note(watch, None, "the state cannot be read; it is logged")
            else:
                self._note(watch, found, "")
            await asyncio.sleep(max(self._every_s / 4, self._every_s - (time.monotonic() - began)))

    def _note(self, watch: Watch, found: State | None, trouble: str) -> None:
        changed = trouble != watch.trouble
        watch.trouble = trouble
        if found is not None:
            state_id = digest_of(found)
            if state_id != watch.state_id:
                watch.state, watch.state_id = found, state_id
                changed = True
        if changed:
            watch.wake()

    async def stream(
        self,
        client: Client,
        last_id: str,
        frame: Callable[[State, State | None], bytes],
        gone: Callable[[], Awaitable[bool]],
    ) -> AsyncIterator[bytes]:
        """Yield what is sent to one client that has joined, until it or this server goes.

        `frame` makes the data of an event out of the state and of the one that the client knows (None: none).
        """
        watch = client.watch
        known: State | None = None
        sent_trouble = ""
        spoke_at = time.monotonic()
        yield f"retry: {RETRY_MS}\n\n".encode()
        while True:
            changed = watch.changed  # before looking: what changes behind it wakes us at once
            if self._stopped.is_set():
                yield BYE
                return
            if watch.trouble != sent_trouble:
                sent_trouble = watch.trouble
                if sent_trouble:
                    yield b"event: trouble\ndata: " + orjson.dumps({"message": sent_trouble}) + b"\n\n"
                    spoke_at = time.monotonic()
                else:
                    last_id = ""  # the page has shown the trouble: send the state again
            if watch.state is not None and not watch.trouble and watch.state_id != last_id:
                state, last_id = watch.state, watch.state_id
                yield b"id: " + last_id.encode() + b"\n" + frame(state, known)
                known, spoke_at = state, time.monotonic()
            elif known is None and watch.state is not None and watch.state_id == last_id:
                known = watch.state  # reconnected, and has missed nothing
            try:
                await asyncio.wait_for(changed.wait(), GONE_CHECK_EVERY_S)
            except TimeoutError:
                if await gone():
                    return
            if time.monotonic() - spoke_at >= HEARTBEAT_EVERY_S:
                yield HEARTBEAT
                spoke_at = time.monotonic()


class EventStream(StreamingResponse):
    """The answer to one client, which is unsubscribed at its end: also if it ends before it begins."""

    def __init__(self, stream: AsyncIterator[bytes], left: Callable[[], None]) -> None:
        """`left` is called in any case."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # nginx would collect the events
        super().__init__(stream, media_type="text/event-stream", headers=headers)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def part_of(model: BaseModel, silent: set[str]) -> tuple[bytes, bytes]:
    """Return what is compared and what is sent of a model; fields named in `silent` change without being news."""
    content = model.model_dump(mode="json")
    return orjson.dumps(_without(content, silent), option=orjson.OPT_SORT_KEYS), orjson.dumps(content)


def _without(value: object, silent: set[str]) -> object:
    if isinstance(value, dict):
        return {name: _without(part, silent) for name, part in value.items() if name not in silent}
    if isinstance(value, list):
        return [_without(part, silent) for part in value]
    return value


def digest_of(state: State) -> str:
    """Return the id of a state."""
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(state):
        digest.update(name.encode() + b"\0" + state[name][0] + b"\0")
    return digest.hexdigest()
