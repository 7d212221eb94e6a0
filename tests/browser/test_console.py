"""The operator's console in a real browser, against answers built from the models of its API."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from ops.control.console_models import Pace
from tests.browser.console_server import (
    DONE,
    ENTRIES,
    FRESH,
    HALTED,
    LETTERS,
    NOT_EQUAL,
    NOW,
    RUNNING,
    ConsoleServer,
    as_json,
    completed_detail,
    detail,
    envelope,
    job_view,
    letter,
    rolling_back_detail,
    running_detail,
    stages_of,
    task,
)
from tests.browser.pictures import picture
from tests.fixtures.browser import DESKTOP, PHONE, NewPage, PageServer, Reply, violations

Open = Callable[..., Page]


@pytest.fixture
def control(page_server: PageServer) -> Iterator[ConsoleServer]:
    server = ConsoleServer(page_server)
    yield server
    server.close()


@pytest.fixture
def open_console(control: ConsoleServer, new_page: NewPage) -> Open:
    """Return `open(account=None, **options) -> Page`: the console's list, or an account's page, with its first data."""

    def make(account: str | None = None, *, waits: bool = True, **options: Any) -> Page:
        page = new_page(**options)
        page.clock.install(time=NOW)
        address = control.url + (f"#/account/{account}" if account else "")
        page.goto(address)
        if waits:
            expect(page.locator("#connection-text")).to_have_text("Live")
        return page

    return make


def row(page: Page, account: str) -> Locator:
    return page.locator("tbody tr").filter(has=page.get_by_role("link", name=account, exact=True))


def act(page: Page, name: str) -> Locator:
    """Press the button of an action; return its dialog."""
    page.get_by_role("group", name="Actions").get_by_role("button", name=name, exact=True).click()
    return page.get_by_role("dialog")


def show(page: Page, account: str | None) -> None:
    """Go to another view as a link does it; wait for its first data."""
    page.evaluate("account => { location.hash = account ? `#/account/${account}` : '#/' }", account)
    expect(page.get_by_role("heading", level=1)).to_have_text(account or "Accounts")
    expect(page.get_by_text("Loading the account")).to_be_hidden()


# ---- the list --------------------------------------------------------------------------------------------------------


def test_the_list_shows_what_needs_somebody_first_and_every_jobs_progress(open_console: Open) -> None:
    page = open_console()
    expect(page.locator("tbody a")).to_have_text([HALTED, RUNNING, FRESH, DONE])
    running = row(page, RUNNING)
    for text in ("In progress", "61.4 %", "15,204,118", "rows/s", "16 min 58 s", "186"):
        expect(running).to_contain_text(text)
    bar = running.get_by_role("progressbar", name=f"Progress of {RUNNING}")
    assert bar.get_attribute("aria-valuenow") == "61"
    expect(row(page, FRESH)).to_contain_text("flag off")
    expect(page.get_by_text("4 accounts, 1 running")).to_be_visible()


def test_the_list_changes_by_itself_and_can_be_narrowed(open_console: Open, control: ConsoleServer) -> None:
    page = open_console()
    later = {"updated_at": NOW + dt.timedelta(seconds=10), "records_migrated": 7_112_557}
    control.show(running_detail(**later))  # 100,000 rows more in ten seconds
    expect(row(page, RUNNING)).to_contain_text("10,000 rows/s")
    expect(row(page, RUNNING)).to_contain_text("9 min 37 s")
    page.get_by_role("button", name="Needs attention").click()
    expect(page.locator("tbody a")).to_have_text([HALTED])
    control.show(running_detail(waiting=True))
    expect(page.locator("tbody a")).to_have_text([RUNNING, HALTED])
    expect(row(page, RUNNING)).to_contain_text("Waiting for a runner")
    page.get_by_role("button", name="All").click()
    page.get_by_role("searchbox").fill("LABS")
    expect(page.locator("tbody a")).to_have_text([FRESH])
    page.get_by_role("searchbox").fill("nobody's")
    expect(page.get_by_text("No account matches")).to_be_visible()


def test_any_account_can_be_opened_whatever_characters_its_id_has(open_console: Open, control: ConsoleServer) -> None:
    odd = "Ünïcode <img src=x onerror=alert(1)> #1/2?a=b&c%20"
    control.details[odd] = detail(odd, None)
    page = open_console()
    page.get_by_role("searchbox").fill(odd)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(odd)
    expect(page.get_by_text("Nothing has been migrated for this account.")).to_be_visible()
    page.get_by_role("link", name="Accounts").click()
    page.get_by_role("link", name=odd).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(odd)


def test_an_empty_list_says_how_to_begin(open_console: Open, control: ConsoleServer) -> None:
    control.details.clear()
    page = open_console()
    expect(page.get_by_text("No account has a job or a flag yet")).to_be_visible()
    expect(page.get_by_text("Type an account's id above and open it")).to_be_visible()


# ---- an account ------------------------------------------------------------------------------------------------------


def test_an_accounts_page_shows_progress_flow_outcomes_and_history(open_console: Open) -> None:
    page = open_console(RUNNING)
    picture(page, "console-account")
    migration = page.get_by_role("region", name="Migration")
    for text in ("In progress", "61.4 %", "9,335,333 of 15,204,118 rows", "7,012,557", "6,120 rows/s", "15 min 58 s"):
        expect(migration).to_contain_text(text)
    drawing = page.get_by_role("region", name="Flow").get_by_role("img")
    said = drawing.get_attribute("aria-label") or ""
    assert "Before the processors: 41,220 waiting, ≈ 7 s." in said
    assert "Processors: 9.3M transformed." in said  # what was read, less what waits
    assert "Dead letters: 186." in said
    page.get_by_text("The same in a table").click()
    expect(page.get_by_role("row", name="Sink crm.outcomes.acme-industries")).to_contain_text("3,180")
    outcomes = page.get_by_role("region", name="Rows by outcome")
    expect(outcomes.get_by_role("row", name="No contact")).to_contain_text("1,201,004")
    expect(outcomes.get_by_role("row", name="Changes unreadable")).to_contain_text("undecodable_changes")
    expect(outcomes.get_by_role("row", name="Not yet")).to_contain_text("5,868,785")
    picture(page, "console-outcomes", outcomes)
    picture(page, "console-preflight", page.get_by_role("region", name="Preflight"))
    jobs = page.get_by_role("region", name="Jobs", exact=True)
    expect(jobs.get_by_role("row")).to_have_count(3)
    expect(jobs).to_contain_text("Rolled back")
    expect(page.get_by_role("region", name="Audit log", exact=True)).to_contain_text("FLAG_DISABLED")


def test_an_accounts_page_moves_with_its_job_and_leaves_the_reader_in_peace(
    open_console: Open, control: ConsoleServer
) -> None:
    page = open_console(RUNNING)
    page.get_by_text("The same in a table").click()
    page.locator("summary", has_text="Row 9331204").click()
    halt = page.get_by_role("button", name="Halt", exact=True)
    halt.focus()
    job = job_view(progress_pct=80.25, records_migrated=9_000_000, records_total=15_204_118)
    control.show(
        running_detail().model_copy(
            update={
                "job": job,
                "pace": Pace(rows_per_s=4.25, rows_per_s_average=5_000, eta_s=7_500),
                "stages": stages_of(job, replay=None, outcomes=900_000, letters=190),
            }
        )
    )
    migration = page.get_by_role("region", name="Migration")
    for text in ("80.2 %", "9,000,000", "4.3 rows/s", "2 h 05 min"):
        expect(migration).to_contain_text(text)
    flow = page.get_by_role("region", name="Flow", exact=True)
    expect(flow.locator("svg")).to_contain_text("lag not known")
    expect(flow.get_by_role("row", name="Sink")).to_be_visible()  # the table is still open
    expect(halt).to_be_focused()
    expect(page.get_by_text("line 3: mapping values")).to_be_visible()  # so is the letter
    expect(page.get_by_role("button", name="Refresh (4 new)")).to_be_visible()


def test_times_are_the_readers_own_with_utc_beside(open_console: Open) -> None:
    page = open_console(RUNNING)
    started = page.locator(".page-head time")
    expect(started).to_have_text("27 min ago")
    assert started.get_attribute("title") == "2 Mar 2026, 09:47:07 · 2026-03-02 02:47:07 UTC"
    page.clock.run_for(60_000)
    expect(started).to_have_text("28 min ago")


def test_a_halted_job_says_why_and_what_to_do(open_console: Open) -> None:
    page = open_console(HALTED)
    expect(page.get_by_text("Halted: failure rate 0.124 is above 0.10")).to_be_visible()
    expect(page.get_by_text("Fix the cause, then resume.")).to_be_visible()
    assert "primary" in (page.get_by_role("button", name="Resume").get_attribute("class") or "")


def test_the_preflight_shows_its_worst_checks_first_with_what_to_do(open_console: Open) -> None:
    page = open_console(FRESH)
    preflight = page.get_by_role("region", name="Preflight")
    expect(preflight).to_contain_text("Not ready: 1 check failed")
    first, second, _ = preflight.get_by_role("listitem").all()
    expect(first).to_contain_text("Contact coverage: Failed")
    expect(first).to_contain_text("To do: finish the contact migration of delta-labs")
    expect(second).to_contain_text("User directory: Warning")


def test_the_verification_shows_its_verdict_and_names_what_is_wrong(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(DONE)
    verification = page.get_by_role("region", name="Verification")
    expect(verification).to_contain_text("The copy is equal to its source")
    expect(verification).to_contain_text("1,204,770")
    control.show(completed_detail(verification=task("verify", DONE, NOT_EQUAL)))
    expect(verification).to_contain_text("The copy is not equal to its source")
    expect(verification).to_contain_text("Missing: a row without its document: 2")
    expect(verification).to_contain_text("The job has 1,104,651, its rows 1,104,653.")
    expect(verification).to_contain_text("crm-replay verify --account 'borealis-foods' --repair")
    verification.get_by_text("The first 3 findings").click()
    expect(verification.get_by_role("row", name="91004")).to_contain_text("edited since (changes.0.to)")
    control.show(completed_detail(verification=task("verify", DONE, None, status="failed", error="no PostgreSQL")))
    expect(verification).to_contain_text("no PostgreSQL")


def test_what_runs_in_the_background_is_shown_with_its_progress(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(DONE)
    running = task("verify", DONE, None, status="running", progress={"done": 300, "total": 1_200, "text": "comparing"})
    control.show(completed_detail(tasks=[running]))
    expect(page.get_by_text("comparing, 300 of 1,200")).to_be_visible()
    bar = page.get_by_role("progressbar", name="Verification")
    assert bar.get_attribute("aria-valuenow") == "25"
    control.show(rolling_back_detail(NOT_EQUAL))
    expect(page.get_by_text("has removed 402,000 of 1,100,210 documents")).to_be_visible()
    control.show(completed_detail())
    expect(page.get_by_role("region", name="Running in the background")).to_have_count(0)


# ---- actions ---------------------------------------------------------------------------------------------------------


QUESTIONS = [
    (RUNNING, "Halt", "Halt the migration", "halt"),
    (HALTED, "Resume", "Resume the migration", "resume"),
    (DONE, "Rerun", "Rerun the migration", "rerun"),
    (DONE, "Verify", "Verify the copy", "verify"),
    (FRESH, "Preflight", "Run the preflight", "preflight"),
]


def test_an_action_is_done_when_its_question_is_answered_and_not_before(
    open_console: Open, control: ConsoleServer
) -> None:
    page = open_console()
    for account, name, confirm, action in QUESTIONS:
        show(page, account)
        dialog = act(page, name)
        expect(dialog.get_by_role("heading")).to_contain_text(account)
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
        dialog = act(page, name)
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_have_count(0)
        assert control.posted == []
        dialog = act(page, name)
        reason = dialog.get_by_label("Reason")
        body = {"company_sso_id": account}
        if reason.count():
            reason.fill("too hot")
            body["reason"] = "too hot"
        dialog.get_by_role("button", name=confirm).click()
        expect(dialog).to_have_count(0)
        assert control.posted == [(action, body)]
        control.posted.clear()
    expect(page.locator(".toast")).to_contain_text(["preflight is queued"])


def test_a_migration_is_started_from_the_flag_to_the_date(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(FRESH)
    why_not = page.get_by_role("region", name="Migration").get_by_role("status")
    page.get_by_role("button", name="Start", exact=True).press("Enter")  # it cannot be used, but it can be asked why
    expect(why_not).to_have_text("Start: the migration flag is off: turn it on first")
    assert control.posted == []
    flag = page.get_by_role("switch", name="Migration flag")
    flag.click()
    expect(flag).to_be_checked()
    expect(page.get_by_role("button", name="Start", exact=True)).to_have_attribute("aria-disabled", "false")
    dialog = act(page, "Start")
    dialog.get_by_label("Only rows created from").fill("2024-01-31T07:30:00")
    dialog.get_by_role("button", name="Start the migration").click()
    expect(page.get_by_text("The migration has been started.")).to_be_visible()
    assert control.posted == [
        ("flag", {"company_sso_id": FRESH, "enabled": True}),
        ("trigger", {"company_sso_id": FRESH, "date_range_start": "2024-01-31T00:30:00.000Z"}),  # typed in UTC+7
    ]


def test_a_flag_that_cannot_be_changed_stays_as_it_is(open_console: Open, control: ConsoleServer) -> None:
    control.replies["flag"] = envelope(503, "SERVICE_UNAVAILABLE", "MongoDB does not answer")
    page = open_console(DONE)
    flag = page.get_by_role("switch", name="Migration flag")
    flag.press("Space")
    expect(page.get_by_text("The flag was not changed. MongoDB does not answer.")).to_be_visible()
    expect(flag).to_be_checked()


def test_a_roll_back_asks_for_the_account_to_be_typed(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(DONE)
    dialog = act(page, "Roll back…")
    expect(dialog).to_contain_text("1,100,210 documents")
    picture(page, "console-roll-back")
    typed, yes = dialog.get_by_label(f"Type {DONE} to confirm"), dialog.get_by_role("button", name="Delete these")
    expect(typed).to_be_focused()
    expect(yes).to_be_disabled()
    typed.fill(DONE.upper())
    expect(yes).to_be_disabled()
    typed.press("Enter")
    assert control.posted == []
    typed.fill(DONE)
    typed.press("Enter")
    expect(page.get_by_text("Rolled back: 1,100,210 documents removed.")).to_be_visible()
    assert control.posted == [("rollback", {"company_sso_id": DONE, "confirm": DONE})]


def test_a_long_roll_back_goes_on_without_its_dialog(open_console: Open, control: ConsoleServer) -> None:
    hold = threading.Event()
    answer = control.server.routes["/console/api/rollback"]

    def patiently(asked: Any) -> Reply:
        hold.wait(60)
        return answer(asked)

    control.server.routes["/console/api/rollback"] = patiently
    page = open_console(DONE)
    dialog = act(page, "Roll back…")
    dialog.get_by_label("Type").fill(DONE)
    dialog.get_by_role("button", name="Delete these").click()
    expect(dialog.get_by_role("button", name="Working…")).to_be_visible()
    page.clock.run_for(2_000)
    expect(dialog).to_have_count(0)
    expect(page.get_by_text("The roll back is under way")).to_be_visible()
    hold.set()
    expect(page.get_by_text("Rolled back: 1,100,210 documents removed.")).to_be_visible()


def test_a_refusal_is_shown_where_it_was_asked_with_what_to_do(open_console: Open, control: ConsoleServer) -> None:
    control.replies["rerun"] = envelope(409, "JOB_ALREADY_RUNNING", "a job of this account is in progress")
    page = open_console(DONE)
    dialog = act(page, "Rerun")
    dialog.get_by_role("button", name="Rerun the migration").click()
    alert = dialog.get_by_role("alert")
    expect(alert).to_contain_text("A job of this account is in progress.")
    expect(alert).to_contain_text("this page shows the running job")
    expect(alert).to_contain_text("request req-7f31")
    control.replies["rerun"] = envelope(
        400, "VALIDATION_ERROR", "it is not valid", errors=[{"field": "reason", "message": "too long"}]
    )
    dialog.get_by_role("button", name="Rerun the migration").click()
    expect(alert).to_contain_text("reason: too long")
    control.replies["rerun"] = Reply(502, b"<html>Bad gateway</html>")
    dialog.get_by_role("button", name="Rerun the migration").click()
    expect(alert).to_contain_text("The server answered 502")
    del control.replies["rerun"]
    dialog.get_by_role("button", name="Rerun the migration").click()
    expect(dialog).to_have_count(0)
    assert [name for name, _ in control.posted] == ["rerun"] * 4


# ---- dead letters ----------------------------------------------------------------------------------------------------


def test_a_dead_letter_shows_its_payload_when_asked_as_text(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(RUNNING)
    letters = page.get_by_role("region", name="Dead letters")
    expect(letters).to_contain_text("3 waiting · 1 resolved · 1 without a row")
    letters.locator("summary", has_text="Row 9331204").click()
    expect(letters).to_contain_text("line 3: mapping values are not allowed here")
    expect(letters).to_contain_text("crm.audits.replay.acme-industries / 3 @ 1204551")
    assert control.server.count("/console/api/dead-letter") == 0  # reading a payload is written down: only when asked
    letters.get_by_role("button", name="Show the payload").click()
    expect(letters).to_contain_text("<script>window.stolen = true</script>")
    expect(letters.locator("pre", has_text='"crm_person_id": 88012')).to_be_visible()
    assert page.evaluate("window.stolen") is None
    picture(page, "console-dead-letters", letters)
    letters.locator("summary", has_text="No row id").click()
    letters.get_by_role("button", name="Show the payload").click()
    expect(letters.get_by_label("Payload in hex")).to_contain_text("0000  00 01 67 61")
    letters.locator("summary", has_text="Row 9330118").click()
    letters.get_by_role("button", name="Show the payload").click()
    expect(letters).to_contain_text("There is no dead letter at offset 184, or not any more.")


def test_dead_letters_are_retried_one_by_one_or_all_of_a_cause(open_console: Open, control: ConsoleServer) -> None:
    control.show(completed_detail(stages=stages_of(job_view(DONE), letters=5)))
    page = open_console(DONE)
    letters = page.get_by_role("region", name="Dead letters")
    letters.locator("summary", has_text="Row 9330118").click()
    letters.get_by_role("button", name="Retry this row").click()
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_text("The retry is queued")).to_be_visible()
    letters.get_by_label("Cause").select_option("undecodable_changes")
    expect(letters.get_by_role("listitem")).to_have_count(3)
    letters.get_by_role("button", name="Retry all 2 that wait").click()
    expect(page.get_by_role("dialog")).to_contain_text("Retry 2 dead letters?")
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    letters.locator("summary", has_text="Row 8811007").click()
    letters.get_by_role("button", name="Retry this row").click()
    expect(page.get_by_role("dialog")).to_contain_text("Rows that have failed three times are sent as well.")
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert control.posted == [
        ("dlq-retry", {"company_sso_id": DONE, "audit_ids": [9_330_118]}),
        ("dlq-retry", {"company_sso_id": DONE, "cause": "undecodable_changes"}),
        ("dlq-retry", {"company_sso_id": DONE, "audit_ids": [8_811_007], "force": True}),
    ]


def test_many_dead_letters_come_page_by_page_and_new_ones_by_themselves(
    open_console: Open, control: ConsoleServer
) -> None:
    control.letters = [letter(offset, offset, "write_refused", "no") for offset in range(1_060, 1_000, -1)]
    page = open_console(RUNNING)
    letters = page.get_by_role("region", name="Dead letters")
    expect(letters.get_by_role("listitem")).to_have_count(25)
    letters.get_by_role("button", name="Show more").click()
    letters.get_by_role("button", name="Show more").click()
    expect(letters.get_by_role("listitem")).to_have_count(60)
    expect(letters.get_by_role("button", name="Show more")).to_have_count(0)
    control.letters = list(LETTERS)
    page.get_by_role("heading", level=1).focus()
    job = job_view()
    control.show(running_detail().model_copy(update={"stages": stages_of(job, letters=187)}))
    expect(letters.get_by_role("listitem")).to_have_count(5)
    control.letters = []
    control.show(running_detail().model_copy(update={"stages": stages_of(job, letters=0)}))
    expect(letters).to_contain_text("No dead letters")


# ---- how fresh it is -------------------------------------------------------------------------------------------------


def test_what_is_shown_is_called_stale_when_the_server_is_gone_and_live_when_it_is_back(
    open_console: Open, control: ConsoleServer
) -> None:
    page = open_console(RUNNING)
    state, bar = page.locator("#connection-text"), page.locator("#stale-bar")
    control.down = True
    control.send(None)
    expect(state).to_have_text("Reconnecting…")
    expect(bar).to_be_hidden()
    page.clock.run_for(12_000)
    expect(state).to_contain_text("Stale since 10:1")
    expect(bar).to_contain_text("The data shown are from 10:1")
    expect(page.get_by_role("region", name="Migration")).to_contain_text("61.4 %")  # still there to be read
    control.down = False
    page.clock.run_for(31_000)
    expect(state).to_have_text("Live")
    expect(bar).to_be_hidden()


def test_a_server_that_goes_says_so_and_one_that_is_blind_too(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(RUNNING)
    state = page.locator("#connection-text")
    control.send(b"event: bye\ndata: {}\n\n")
    expect(state).to_have_text("Reconnecting…")
    control.send(None)
    expect(state).to_have_text("Live")  # the browser has connected again
    control.send(b'event: trouble\ndata: {"message": "MongoDB does not answer"}\n\n')
    expect(page.locator("#stale-bar")).to_contain_text("MongoDB does not answer. The data shown are from 10:1")
    control.show(running_detail())
    expect(state).to_have_text("Live")


def test_a_connection_that_died_without_a_word_is_made_anew(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(RUNNING)
    control.send(b"event: beat\ndata: {}\n\n")
    control.show(running_detail(progress_pct=70))
    expect(page.get_by_role("region", name="Migration")).to_contain_text("70.0 %")
    asked = control.server.count("/console/api/events")
    page.clock.run_for(35_000)
    assert control.server.count("/console/api/events") == asked
    with page.expect_request("**/console/api/events**"):
        page.clock.run_for(10_000)
    expect(page.locator("#connection-text")).to_have_text("Live")


def test_where_there_is_no_place_for_another_listener_the_page_polls(
    open_console: Open, control: ConsoleServer
) -> None:
    control.events_reply = envelope(503, "TOO_MANY_CLIENTS", "fifty listen already")
    page = open_console(RUNNING, waits=False)
    expect(page.locator("#connection-text")).to_have_text("Every 5 s")
    expect(page.get_by_role("region", name="Migration")).to_contain_text("61.4 %")
    control.details[RUNNING] = running_detail(progress_pct=70)
    page.clock.run_for(5_000)
    expect(page.get_by_role("region", name="Migration")).to_contain_text("70.0 %")
    control.events_reply = None
    page.clock.run_for(31_000)
    expect(page.locator("#connection-text")).to_have_text("Live")


def test_a_poll_that_is_answered_once_the_connection_is_back_takes_nothing_back(
    open_console: Open, control: ConsoleServer
) -> None:
    control.events_reply = envelope(503, "TOO_MANY_CLIENTS", "fifty listen already")
    page = open_console(RUNNING, waits=False)
    state = page.locator("#connection-text")
    expect(state).to_have_text("Every 5 s")
    answer, asked, hold = control.server.routes["/console/api/account"], threading.Event(), threading.Event()

    def late(question: Any) -> Reply:
        asked.set()
        hold.wait(60)
        return answer(question)

    control.server.routes["/console/api/account"] = late
    page.clock.run_for(5_000)
    assert asked.wait(30)
    control.events_reply = None
    page.evaluate("() => dispatchEvent(new Event('online'))")
    expect(state).to_have_text("Live")
    with page.expect_response("**/console/api/account?*"):
        hold.set()
    page.evaluate("async () => { await (await fetch('/console/api/session')).json() }")  # by now it has been dealt with
    assert state.inner_text() == "Live"


def test_who_is_signed_out_is_told(open_console: Open, control: ConsoleServer) -> None:
    refused = envelope(401, "UNAUTHENTICATED", "a user and a password are needed")
    control.events_reply = refused
    control.server.routes["/console/api/account"] = lambda _asked: refused
    page = open_console(RUNNING, waits=False)
    expect(page.locator("#connection-text")).to_have_text("Signed out")
    expect(page.get_by_text("You are signed out. Reload the page to sign in again.")).to_be_visible()


def test_a_tab_in_the_back_gives_its_place_to_others(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(RUNNING)
    assert control.listeners == 1
    for hidden in (True, False):
        page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            hidden,
        )
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    control.show(running_detail(progress_pct=99.9))
    expect(page.get_by_role("region", name="Migration")).to_contain_text("99.9 %")
    assert sum("account=" in asked.query for asked in control.server.asked if "events" in asked.path) == 2


# ---- for everybody ---------------------------------------------------------------------------------------------------


WIDTHS = {"desktop": DESKTOP, "phone": PHONE}
# Each view in both schemes and at both widths would take axe minutes; every look is there, and each view in one or two.
VIEWS: list[tuple[str | None, Literal["light", "dark"], str, str]] = [
    (None, "light", "desktop", "console-accounts"),
    (None, "dark", "phone", "console-accounts-phone-dark"),
    (RUNNING, "dark", "desktop", "console-account-dark"),
    (RUNNING, "light", "phone", "console-account-phone"),
    (DONE, "light", "desktop", "console-rolling-back"),
    (HALTED, "dark", "phone", "console-halted-phone-dark"),
    (FRESH, "light", "desktop", "console-not-started"),
]


def test_axe_finds_nothing_and_nothing_is_wider_than_the_page(open_console: Open, control: ConsoleServer) -> None:
    control.details[DONE] = rolling_back_detail(NOT_EQUAL)
    page = open_console()
    for account, scheme, width, name in VIEWS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(WIDTHS[width])
        show(page, account)
        picture(page, name)
        if account in (RUNNING, DONE, HALTED):
            expect(page.locator(".letter").first).to_be_visible()
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for button in page.get_by_role("button", name="Show the payload").all()[:1]:
            button.click()
            expect(page.locator(".payload-fields")).to_be_visible()
        assert violations(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"], name


def test_axe_finds_nothing_in_a_question_its_refusal_and_the_messages(
    open_console: Open, control: ConsoleServer
) -> None:
    control.replies["rollback"] = envelope(500, "ROLLBACK_FAILED", "MongoDB did not answer")
    control.replies["flag"] = envelope(500, "INTERNAL_ERROR", "something went wrong here")
    page = open_console(DONE, reduced_motion="reduce")
    page.get_by_role("switch").click()
    dialog = act(page, "Roll back…")
    dialog.get_by_label("Type").fill(DONE)
    dialog.get_by_role("button", name="Delete these").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Roll back again: it continues.")
    control.send(b'event: trouble\ndata: {"message": "MongoDB does not answer"}\n\n')
    expect(page.locator("#stale-bar")).to_be_visible()
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(PHONE)
    assert violations(page) == []
    page.emulate_media(color_scheme="light")
    assert violations(page) == []


def test_everything_is_reached_by_keyboard_in_the_order_it_is_read(open_console: Open) -> None:
    page = open_console(DONE)
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.innerText).trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached
    assert reached[:4] == ["Skip to the content", "CRM audit replay", "Accounts", ""]  # the last: the flag's switch
    assert reached[4:11] == ["Start", "Halt", "Resume", "Preflight", "Verify", "Rerun", "Roll back…"]
    page.keyboard.press("Shift+Tab")
    page.locator(".skip-link").focus()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_a_change_of_status_is_told_to_who_does_not_see_it(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(RUNNING)
    job = job_view(status="completed", progress_pct=100, finished_at=NOW)
    control.show(detail(RUNNING, job))
    # Among others: what is told at the same moment does not take its place.
    expect(page.locator("#announcer p").filter(has_text=f"{RUNNING}: Completed")).to_have_count(1)


def test_who_asks_for_an_account_that_cannot_be_read_is_told_what_to_do(
    open_console: Open, control: ConsoleServer
) -> None:
    control.server.routes["/console/api/audit-log"] = lambda _asked: envelope(503, "SERVICE_UNAVAILABLE", "no MongoDB")
    control.server.routes["/console/api/dead-letters"] = lambda _asked: Reply(200, b"not JSON")
    page = open_console(RUNNING)
    log = page.get_by_role("region", name="Audit log")
    expect(log).to_contain_text("No MongoDB.")
    expect(log).to_contain_text("/readyz names what is down")
    expect(page.get_by_role("region", name="Dead letters")).to_contain_text("The server cannot be reached.")
    control.server.routes["/console/api/dead-letters"] = lambda _asked: as_json(ENTRIES[0])


def test_a_resume_takes_a_higher_bound_with_a_reason(open_console: Open, control: ConsoleServer) -> None:
    page = open_console(HALTED)
    dialog = act(page, "Resume")
    dialog.get_by_label("Halt only above this percentage").fill("50")
    dialog.get_by_label("Reason").fill("known rows")
    dialog.get_by_role("button", name="Resume the migration").click()
    expect(dialog).not_to_be_visible()
    assert control.posted == [
        ("resume", {"company_sso_id": HALTED, "failure_bound": 0.5, "reason": "known rows"}),
    ]
