"""The import banner in a real browser: its states, its silence, its polling, and what assistive technology gets."""

import re
import subprocess
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from ops.local.services.fetching import ToolCache
from ops.local.services.layout import ServiceSettings
from ops.local.services.tools import find_node
from tests.browser.pictures import picture
from tests.browser.status_server import INTERVAL_MS, LONG_MS, STATUS, StatusServer, answer, clocked, in_progress
from tests.fixtures.browser import DESKTOP, PHONE, WEB, NewPage, PageServer, Reply, violations

SCRIPT = '<script type="module" src="/assets/crm-migration-status.js"></script>'
PAGE = f"<title>Customer</title>{SCRIPT}<main><h1>Customer</h1><crm-migration-status></crm-migration-status></main>"
ERRORS = {
    "unauthorised": Reply(401, b'{"status": "error", "resp_code": "UNAUTHORIZED"}'),
    "forbidden": Reply(403, b'{"status": "error", "resp_code": "FORBIDDEN"}'),
    "server error": Reply(500, b"Internal Server Error"),
    "a status in an error": Reply(503, b'{"status": "in_progress", "progress_pct": 50}'),
    "bad JSON": Reply(200, b'{"status": "in_prog'),
    "nothing": Reply(200, b""),
    "null": Reply(200, b"null"),
    "a list": Reply(200, b"[]"),
    "a log-in page": Reply(302, b"", {"Location": "/"}),
    "unknown status": answer("importing", progress_pct=50),
    "status of a wrong type": answer(7),
    "no percentage": answer("in_progress"),
    "percentage as text": answer("in_progress", progress_pct="50"),
    "percentage over 100": answer("in_progress", progress_pct=101),
    "percentage below 0": answer("in_progress", progress_pct=-1),
}


@pytest.fixture
def status(page_server: PageServer) -> Iterator[StatusServer]:
    server = StatusServer(page_server)
    yield server
    if server.hold is not None:
        server.hold.set()


def banner(page: Page) -> Locator:
    return page.locator("crm-migration-status [part=banner]")


def spoken(page: Page) -> str | None:
    return page.locator("crm-migration-status .spoken").text_content()


def tick(page: Page, status: StatusServer) -> None:
    """Let one interval pass, and the answer of its question come."""
    before = status.asked
    with page.expect_response(f"**{STATUS}"):
        page.clock.run_for(INTERVAL_MS)
    assert status.asked == before + 1


def test_an_import_in_progress_is_shown_with_its_percentage(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    region = page.get_by_role("status")
    expect(region).to_contain_text("We are importing your CRM history")
    expect(region).to_contain_text("43% imported")
    bar, track = (page.locator(f"crm-migration-status [part={part}]").bounding_box() for part in ("bar", "track"))
    assert bar is not None
    assert 0 < bar["width"] < track["width"]
    status.reply = in_progress(99.99)
    tick(page, status)
    expect(region).to_contain_text("99% imported")


@pytest.mark.parametrize("last", ["completed", "not_started"])
def test_the_end_hides_it_and_ends_the_polling(status: StatusServer, new_page: NewPage, last: str) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    status.reply = answer(last)
    tick(page, status)
    expect(banner(page)).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text("")
    asked = status.asked
    page.clock.run_for(LONG_MS)
    toggle_tab(page, hidden=True)
    toggle_tab(page, hidden=False)
    assert page.evaluate("document.querySelector('crm-migration-status').state.status") == last
    status.reply = in_progress()
    page.evaluate("document.querySelector('crm-migration-status').refresh()")  # the page can ask for more
    expect(banner(page)).to_be_visible()
    assert status.asked == asked + 1


def test_what_an_operator_can_bring_back_hides_it_for_the_time_being(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    for other in ("halted", "failed", "rolled_back"):
        expect(banner(page), other).to_be_visible()
        status.reply = answer(other, progress_pct=50)
        tick(page, status)
        expect(banner(page), other).to_be_hidden()
        status.reply = in_progress()
        tick(page, status)
    expect(banner(page)).to_be_visible()


def test_it_asks_every_fifteen_seconds(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    for asked in (1, 2, 3):
        page.clock.run_for(INTERVAL_MS - 1)
        assert status.asked == asked
        with page.expect_response(f"**{STATUS}"):
            page.clock.run_for(1)
        page.wait_for_timeout(0)  # the answer's own turn in the page
        assert status.asked == asked + 1


def test_any_error_hides_it_without_a_sound_and_the_next_good_answer_shows_it_again(
    status: StatusServer, new_page: NewPage
) -> None:
    page = clocked(new_page)  # fails the test if anything is written to the console or thrown
    page.goto(status.page(PAGE))
    for name, error in ERRORS.items():
        expect(banner(page), name).to_be_visible()
        status.reply = error
        tick(page, status)
        expect(banner(page), name).to_be_hidden()
        expect(page.get_by_role("status"), name).to_have_text("")
        status.reply = in_progress()
        tick(page, status)
    expect(banner(page)).to_be_visible()


def test_a_network_that_is_gone_hides_it(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    page.context.set_offline(True)
    page.clock.run_for(INTERVAL_MS)
    expect(banner(page)).to_be_hidden()
    page.context.set_offline(False)
    tick(page, status)
    expect(banner(page)).to_be_visible()


# Questions under way as the page has them: of one that was given up, the server may hear only beside the next.
COUNTED_QUESTIONS = """
    window.atOnce = window.atOnceMost = 0;
    const ask = window.fetch;
    window.fetch = (...what) => {
        atOnceMost = Math.max(atOnceMost, ++atOnce);
        const answer = ask(...what);
        const over = () => { atOnce -= 1; };
        answer.then(over, over);
        return answer;
    };
"""


def test_a_server_that_does_not_answer_is_given_up_and_never_asked_twice_at_once(
    status: StatusServer, new_page: NewPage
) -> None:
    page = clocked(new_page)
    page.add_init_script(COUNTED_QUESTIONS)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    status.hold = threading.Event()
    with page.expect_request(f"**{STATUS}"):
        page.clock.run_for(INTERVAL_MS)
    with page.expect_event("requestfailed") as failed:  # by us: aborted after one interval
        page.clock.run_for(INTERVAL_MS + 1)
    assert "ABORTED" in str(failed.value.failure)
    expect(banner(page)).to_be_hidden()
    status.hold.set()
    status.hold = None
    page.clock.run_for(INTERVAL_MS)
    expect(banner(page)).to_be_visible()
    assert page.evaluate("atOnceMost") == 1


def test_a_page_that_takes_it_away_ends_the_polling_and_the_question_under_way(
    status: StatusServer, new_page: NewPage
) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    status.hold = threading.Event()
    with page.expect_request(f"**{STATUS}"):
        page.clock.run_for(INTERVAL_MS)
    with page.expect_event("requestfailed") as failed:
        page.evaluate("window.taken = document.querySelector('crm-migration-status'); taken.remove()")
    assert "ABORTED" in str(failed.value.failure)
    status.wait_until_asked(2)  # the browser has given it up; the server may hear of it only now
    asked = status.asked
    page.clock.run_for(LONG_MS)
    assert page.evaluate("taken.state.visible")  # nothing has been heard since
    assert status.asked == asked
    status.hold.set()
    status.hold = None
    page.evaluate("document.querySelector('main').append(taken)")
    expect(banner(page)).to_be_visible()
    status.wait_until_asked(asked + 1)
    page.clock.run_for(INTERVAL_MS - 1)
    assert status.asked == asked + 1


def toggle_tab(page: Page, *, hidden: bool) -> None:
    """Do to the page what the browser does when its tab goes to the back or comes to the front."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        hidden,
    )


def test_a_tab_in_the_back_does_not_ask_and_asks_at_once_when_it_comes_to_the_front(
    status: StatusServer, new_page: NewPage
) -> None:
    page = clocked(new_page)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    toggle_tab(page, hidden=True)
    page.clock.run_for(LONG_MS)
    assert status.asked == 1
    status.reply = in_progress(88)
    toggle_tab(page, hidden=False)
    expect(banner(page)).to_contain_text("88%")
    toggle_tab(page, hidden=True)
    toggle_tab(page, hidden=False)  # within the interval: not a question more
    tick(page, status)
    assert status.asked == 3


def test_the_session_token_goes_along_even_when_its_provider_was_set_before_the_script_came(
    status: StatusServer, new_page: NewPage
) -> None:
    early = (
        "<title>Customer</title><crm-migration-status></crm-migration-status>"
        "<script>document.querySelector('crm-migration-status').tokenProvider = async () => 'token-1'</script>" + SCRIPT
    )
    page = clocked(new_page)
    page.goto(status.page(early))
    expect(banner(page)).to_be_visible()
    assert [asked.headers.get("Authorization") for asked in status.questions] == ["Bearer token-1"]
    with page.expect_response(f"**{STATUS}"):
        page.evaluate("void (document.querySelector('crm-migration-status').tokenProvider = () => 'token-2')")
    assert status.questions[-1].headers.get("Authorization") == "Bearer token-2"
    expect(banner(page)).to_be_visible()
    page.evaluate(
        "void (document.querySelector('crm-migration-status').tokenProvider = () => { throw new Error('no session') })"
    )
    expect(banner(page)).to_be_hidden()
    page.evaluate("document.querySelector('crm-migration-status').tokenProvider = null")
    expect(banner(page)).to_be_visible()
    assert "Authorization" not in status.questions[-1].headers


def test_a_screen_reader_hears_of_it_once_in_twenty_five_per_cent(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    status.reply = in_progress(3)
    page.goto(status.page(PAGE))
    expect(banner(page)).to_contain_text("3%")
    region = page.get_by_role("status")
    assert region.get_attribute("aria-live") == "polite"
    assert region.get_attribute("aria-atomic") == "false"  # else each announcement would read all of it
    assert page.locator("[part=percent]").get_attribute("aria-live") == "off"  # what changes every time is not read
    heard = [spoken(page)]
    for percent in (4, 24.9, 25, 26, 60, 74, 75):
        status.reply = in_progress(percent)
        tick(page, status)
        expect(banner(page)).to_contain_text(f"{int(percent)}%")
        heard.append(spoken(page))
    assert [text for text in heard if text] == [
        "CRM history import: 3% done",
        "CRM history import: 25% done",
        "CRM history import: 60% done",
        "CRM history import: 75% done",
    ]


def test_its_texts_are_the_pages_own_and_are_never_read_as_html(status: StatusServer, new_page: NewPage) -> None:
    html = (
        f"<title>Pelanggan</title>{SCRIPT}<main lang='id'><crm-migration-status"
        ' label="<b>Riwayat CRM</b> sedang diimpor" progress-label="{percent} selesai" announcement="{percent}"'
        ' announce-step="10"><span slot="detail">Anda dapat terus bekerja.</span></crm-migration-status></main>'
    )
    page = clocked(new_page)
    page.goto(status.page(html))
    expect(banner(page)).to_contain_text("<b>Riwayat CRM</b> sedang diimpor")
    expect(banner(page)).to_contain_text("43% selesai")
    expect(page.get_by_text("Anda dapat terus bekerja.")).to_be_visible()
    page.evaluate("document.querySelector('main').lang = 'fr'")
    page.evaluate("document.querySelector('crm-migration-status').setAttribute('label', 'Importation')")
    expect(banner(page)).to_contain_text("Importation")
    expect(banner(page)).to_contain_text(re.compile(r"43\s% selesai"))  # as French writes it
    page.evaluate("document.querySelector('main').lang = 'no language!'")
    page.evaluate("document.querySelector('crm-migration-status').setAttribute('label', 'Impor')")
    expect(banner(page)).to_contain_text("43% selesai")


def test_it_works_and_is_styled_under_a_strict_content_security_policy(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    policy = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'"
    page.goto(status.page(PAGE, **{"Content-Security-Policy": policy}))
    expect(banner(page)).to_be_visible()
    expect(banner(page)).to_have_css("display", "grid")
    assert page.locator("[part=bar]").evaluate("bar => bar.style.inlineSize") == "43.7%"


def test_a_page_can_give_it_its_own_look(status: StatusServer, new_page: NewPage) -> None:
    style = (
        "<style>crm-migration-status { --crm-migration-background: rgb(1, 2, 3); }"
        " crm-migration-status::part(label) { color: rgb(200, 210, 220); }"
        " crm-migration-status:not([active]) { display: none; }</style>"
    )
    page = clocked(new_page)
    page.goto(status.page(style + PAGE))
    expect(banner(page)).to_be_visible()
    expect(banner(page)).to_have_css("background-color", "rgb(1, 2, 3)")
    expect(page.locator("[part=label]")).to_have_css("color", "rgb(200, 210, 220)")
    status.reply = answer("completed")
    tick(page, status)
    expect(page.locator("crm-migration-status")).to_have_css("display", "none")


def test_it_follows_the_pages_colour_scheme_and_its_theme_attribute(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page, color_scheme="dark")
    page.goto(status.page(PAGE))
    light, dark = "rgb(238, 244, 255)", "rgb(20, 32, 58)"
    expect(banner(page)).to_have_css("background-color", light)  # a page that knows only light stays light
    page.evaluate("document.documentElement.style.colorScheme = 'light dark'")
    expect(banner(page)).to_have_css("background-color", dark)
    page.evaluate("document.querySelector('crm-migration-status').setAttribute('theme', 'light')")
    expect(banner(page)).to_have_css("background-color", light)
    page.evaluate("document.documentElement.style.colorScheme = ''")
    page.evaluate("document.querySelector('crm-migration-status').setAttribute('theme', 'auto')")
    expect(banner(page)).to_have_css("background-color", dark)


def test_it_keeps_still_for_who_wants_less_motion(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page, reduced_motion="reduce")
    page.goto(status.page(PAGE))
    expect(banner(page)).to_have_css("animation-name", "none")
    expect(page.locator(".turning")).to_have_css("animation-name", "none")
    expect(page.locator("[part=bar]")).to_have_css("transition-property", "none")
    page.emulate_media(reduced_motion="no-preference")
    expect(page.locator(".turning")).to_have_css("animation-name", "turn")


def test_it_tells_its_page_what_has_changed(status: StatusServer, new_page: NewPage) -> None:
    page = clocked(new_page)
    page.add_init_script(
        "window.told = []; addEventListener('DOMContentLoaded', () => document.querySelector('crm-migration-status')"
        ".addEventListener('crm-migration-change', event => told.push(event.detail)))"
    )
    page.goto(status.page(PAGE))
    expect(banner(page)).to_be_visible()
    tick(page, status)  # the same answer: nothing to tell
    for reply in (ERRORS["server error"], ERRORS["forbidden"], answer("completed")):
        status.reply = reply
        tick(page, status)
    page.wait_for_function("told.length >= 3")
    assert page.evaluate("told") == [
        {"status": "in_progress", "percent": 43.7, "visible": True},
        {"status": None, "percent": None, "visible": False},
        {"status": "completed", "percent": None, "visible": False},
    ]


@pytest.mark.parametrize("state", ["in_progress", "completed", "not_started", "error"])
def test_axe_finds_nothing(status: StatusServer, new_page: NewPage, state: str) -> None:
    replies = {"in_progress": in_progress(), "error": ERRORS["forbidden"]}
    status.reply = replies.get(state) or answer(state)
    page = new_page()  # its clock goes: axe waits with it
    with page.expect_response(f"**{STATUS}"):
        page.goto(status.page("<style>:root { color-scheme: light dark; }</style>" + PAGE))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for viewport in (DESKTOP, PHONE) if state == "in_progress" else (PHONE,):  # what is not there has no width
            page.set_viewport_size(viewport)
            expect(banner(page)).to_be_visible(visible=state == "in_progress")
            assert violations(page) == [], (scheme, viewport)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (scheme, viewport)
            if state == "in_progress":
                width = "phone" if viewport == PHONE else "desktop"
                picture(page, f"banner-{scheme}-{width}", banner(page))


def test_a_server_that_renders_pages_can_import_it(tmp_path: object) -> None:
    settings = ServiceSettings.load()
    cache = ToolCache(
        settings.cache_directory,
        logs=settings.cache_directory / "logs",
        say=lambda _text: None,
        cancel=threading.Event(),
    )
    script = (
        f"const banner = await import({(WEB / 'embed' / 'crm-migration-status.js').as_uri()!r});"
        "console.log(JSON.stringify(banner.stateOf({status: 'in_progress', progress_pct: 7})))"
    )
    node = find_node(cache).node
    said = subprocess.run(
        [node, "--no-warnings", "--input-type=module", "-e", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == '{"status":"in_progress","percent":7,"visible":true}'
