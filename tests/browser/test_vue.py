"""The Vue composable in a real browser with the real Vue 3: it behaves as the banner does."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.status_server import INTERVAL_MS, LONG_MS, STATUS, StatusServer, answer, clocked, in_progress
from tests.fixtures.browser import NewPage, PageServer, Reply, file_reply

IMPORTS = json.dumps({"imports": {"vue": "/vue.js"}})
APP = f"""<title>Customer</title><script type="importmap">{IMPORTS}</script><div id="app"></div><script type="module">
import {{ createApp, effectScope, ref }} from "vue";
import {{ useCrmMigrationStatus }} from "/assets/useCrmMigrationStatus.js";
window.url = ref("{STATUS}");
const Status = {{
  setup: () => useCrmMigrationStatus({{ url, tokenProvider: () => "token-1" }}),
  template: `<p v-if="visible" id="shown">{{{{ percent }}}} %</p><i>{{{{ status }}}}</i>
    <button @click="refresh">again</button>`,
}};
window.app = createApp(Status);
app.mount("#app");
window.inScope = () => {{
  window.scope = effectScope();
  window.bare = scope.run(() => useCrmMigrationStatus());
}};
</script>"""


@pytest.fixture
def status(page_server: PageServer, vue_module: Path) -> Iterator[StatusServer]:
    server = StatusServer(page_server)
    page_server.routes["/vue.js"] = lambda _asked: file_reply(vue_module)
    page_server.routes["/another"] = lambda _asked: in_progress(77)
    yield server
    if server.hold is not None:
        server.hold.set()


@pytest.fixture
def page(status: StatusServer, new_page: NewPage) -> Page:
    page = clocked(new_page)
    page.goto(status.page(APP))
    expect(page.locator("#shown")).to_have_text("43.7 %")
    return page


def tick(page: Page) -> None:
    with page.expect_response(f"**{STATUS}"):
        page.clock.run_for(INTERVAL_MS)


def test_it_shows_the_percentage_and_sends_the_token(status: StatusServer, page: Page) -> None:
    assert status.questions[0].headers.get("Authorization") == "Bearer token-1"
    status.reply = in_progress(50)
    tick(page)
    expect(page.locator("#shown")).to_have_text("50 %")


@pytest.mark.parametrize("last", ["completed", "not_started"])
def test_the_end_hides_it_and_ends_the_polling(status: StatusServer, page: Page, last: str) -> None:
    status.reply = answer(last)
    tick(page)
    expect(page.locator("#shown")).to_have_count(0)
    expect(page.locator("i")).to_have_text(last)
    asked = status.asked
    page.clock.run_for(LONG_MS)
    status.reply = in_progress(1)
    page.get_by_role("button").click()
    expect(page.locator("#shown")).to_have_text("1 %")
    assert status.asked == asked + 1


def test_errors_hide_it_without_a_sound(status: StatusServer, page: Page) -> None:
    for error in (Reply(401), Reply(403), Reply(500, b"down"), Reply(200, b"{"), answer("unheard of")):
        status.reply = error
        tick(page)
        expect(page.locator("#shown")).to_have_count(0)
        status.reply = in_progress()
        tick(page)
        expect(page.locator("#shown")).to_have_text("43.7 %")


def test_unmounting_ends_the_polling_and_the_question_under_way(status: StatusServer, page: Page) -> None:
    status.hold = threading.Event()
    with page.expect_request(f"**{STATUS}"):
        page.clock.run_for(INTERVAL_MS)
    with page.expect_event("requestfailed") as failed:
        page.evaluate("app.unmount()")
    assert "ABORTED" in str(failed.value.failure)
    asked = status.asked
    page.clock.run_for(LONG_MS)
    page.evaluate("url.value = '/another'")
    assert status.asked == asked
    assert status.server.count("/another") == 0


def test_another_address_is_asked_at_once(status: StatusServer, page: Page) -> None:
    page.evaluate("url.value = '/another'")
    expect(page.locator("#shown")).to_have_text("77 %")


def test_without_a_component_it_lives_as_long_as_its_scope(status: StatusServer, page: Page) -> None:
    page.evaluate("app.unmount()")
    with page.expect_response(f"**{STATUS}"):
        page.evaluate("inScope()")
    page.wait_for_function("bare.percent.value === 43.7")
    assert "Authorization" not in status.questions[-1].headers
    page.evaluate("scope.stop()")
    asked = status.asked
    page.clock.run_for(LONG_MS)
    assert page.evaluate("bare.visible.value") is True
    assert status.asked == asked
