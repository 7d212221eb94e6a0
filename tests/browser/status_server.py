"""A server that answers for the status of an import as its test says, and counts."""

import datetime as dt
import json
import threading
from typing import Any

from playwright.sync_api import Page

from tests.fixtures.browser import WEB, Asked, NewPage, PageServer, Reply, file_route
from tests.support.waiting import wait_until

STATUS = "/v1/crm_migration/status"
INTERVAL_MS = 15_000
NOON = dt.datetime(2026, 3, 2, 5, tzinfo=dt.UTC)  # where the pages of the tests are
LONG_MS = 40 * INTERVAL_MS  # ten minutes: long enough to see that nobody asks any more


def answer(status: object, **more: object) -> Reply:
    return Reply(200, json.dumps({"status": status, **more}).encode(), {"Content-Type": "application/json"})


def in_progress(percent: object = 43.7) -> Reply:
    return answer("in_progress", progress_pct=percent, records_total=1_000, records_migrated=437)


class StatusServer:
    """What the next question for the status is answered with is `reply`; `hold` lets questions wait."""

    def __init__(self, server: PageServer) -> None:
        self.url = server.url
        self.server = server
        self.reply = in_progress()
        self.hold: threading.Event | None = None
        server.routes[STATUS] = self._status
        for path in sorted((WEB / "embed").glob("*.js")):
            server.routes[f"/assets/{path.name}"] = file_route(path)

    def page(self, html: str, path: str = "/", **headers: str) -> str:
        """Serve a page; return its address."""
        text = f'<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">{html}'
        reply = Reply(200, text.encode(), {"Content-Type": "text/html; charset=utf-8", **headers})
        self.server.routes[path] = lambda _asked: reply
        return self.url + path

    def _status(self, _asked: Asked) -> Reply:
        reply, hold = self.reply, self.hold
        if hold is not None:
            hold.wait(60)
        return reply

    @property
    def asked(self) -> int:
        return self.server.count(STATUS)

    def wait_until_asked(self, times: int) -> None:
        """Return when so many questions have come in, all in all."""
        wait_until(lambda: self.asked >= times, f"asked {times} times")

    @property
    def questions(self) -> list[Asked]:
        return [asked for asked in self.server.asked if asked.path == STATUS]


def clocked(new_page: NewPage, **options: Any) -> Page:
    """Return a page whose clock stands still until the test moves it with `page.clock.run_for`."""
    page = new_page(**options)
    page.clock.install(
        time=NOON - dt.timedelta(hours=1)
    )  # it runs until the next line, which on a busy machine is late
    page.clock.pause_at(NOON + dt.timedelta(seconds=1))
    return page
