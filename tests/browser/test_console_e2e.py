"""The console against the real control plane, a real runner and real servers: one migration, all by hand."""

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from ops.jobs import coverage
from ops.local.generator import GENERATED_MAPPING
from schemas.collections import ACTIVITY_LOGS
from schemas.source.mapping import load
from tests.browser.pictures import picture
from tests.e2e.conftest import Crm, crm, generated  # noqa: F401 - a fixture
from tests.fixtures.browser import NewPage, violations
from tests.integration.control.http_server import PASSWORD, USER, Served, serving, token

AUDITS = 24_000
# The first runner would take minutes, so that there is time to look and to halt; the one after it is not held back.
SLOW = {"CRM_REPLAY_PAGE_ROWS": "50", "CRM_REPLAY_SOURCE_ROWS_PER_S": "100"}
LONG_MS = 180_000  # of a loaded machine


@pytest.fixture
def control(crm: Crm) -> Iterator[Served]:  # noqa: F811
    with serving(crm.connections, mapping_path=str(GENERATED_MAPPING), partitions=4) as served:
        yield served


@contextmanager
def runner(crm: Crm, **environment: str) -> Iterator[None]:  # noqa: F811
    """Keep a runner at work, as its command does it."""
    with crm.start("runner", "--jobs", "1", **environment) as process:
        try:
            yield
            assert process.poll() is None, process.communicate()
        finally:
            process.terminate()
            process.communicate(timeout=60)


def act(page: Page, name: str, confirm: str, **fields: str) -> None:
    button = page.get_by_role("group", name="Actions").get_by_role("button", name=name, exact=True)
    expect(button).to_have_attribute("aria-disabled", "false", timeout=LONG_MS)
    button.click()
    dialog = page.get_by_role("dialog")
    for label, text in fields.items():
        dialog.get_by_label(label).fill(text)
    dialog.get_by_role("button", name=confirm).click()
    # The question goes away, or its alert says why not.
    expect(page.locator("dialog[open] [role=alert]:empty")).to_have_count(0, timeout=LONG_MS)
    assert page.locator("dialog[open] [role=alert]").all_inner_texts() == []


def customer_page(new_page: NewPage, url: str, account: str) -> Locator:
    """Return the import banner on a page of the control plane's own origin, as a customer of the account has it."""
    page = new_page()
    page.goto(f"{url}/assets/crm-migration-status.js")
    page.evaluate(
        """async token => {
            await import('/assets/crm-migration-status.js');
            const banner = document.createElement('crm-migration-status');
            banner.setAttribute('interval-s', '1');
            banner.tokenProvider = () => token;
            document.body.append(banner);
        }""",
        token(company_sso_id=account),
    )
    return page.locator("crm-migration-status")


def complete_contacts(crm: Crm, account: str) -> None:  # noqa: F811
    """Give every person in the account's history a contact, as the guard wants it."""
    persons = coverage.persons_in_scope(crm.dsn, load(str(GENERATED_MAPPING)), account).ids
    missing = set(persons) - coverage.known_persons(crm.database, account, persons)
    born = dt.datetime(2031, 1, 1, tzinfo=dt.UTC)  # after all of the history: the replay owns it
    crm.database["contacts"].insert_many(
        {
            "company_sso_id": account,
            "customer_id": f"c{person}",
            "crm_data": {"id": int(person)},
            "created_at": born,
        }
        for person in sorted(missing)
    )


def test_a_migration_from_the_flag_to_the_roll_back(
    crm: Crm,  # noqa: F811
    control: Served,
    new_page: NewPage,
) -> None:
    account = generated(crm, AUDITS)
    complete_contacts(crm, account)
    logs: Any = crm.database[ACTIVITY_LOGS]
    page = new_page(http_credentials={"username": USER, "password": PASSWORD})
    page.goto(f"{control.url}/console/")
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#who")).to_contain_text(USER)
    page.get_by_role("searchbox").fill(account)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(account)
    status = page.locator(".hero-head .badge")
    expect(status).to_have_text("Not started")

    page.get_by_role("switch", name="Migration flag").click()
    with runner(crm, **SLOW):
        act(page, "Preflight", "Run the preflight")
        preflight = page.get_by_role("region", name="Preflight", exact=True)
        expect(preflight.get_by_role("listitem").first).to_be_visible(timeout=LONG_MS)

        act(page, "Start", "Start the migration")
        expect(status).to_have_text("In progress", timeout=LONG_MS)
        migration = page.get_by_role("region", name="Migration")
        percent = migration.get_by_role("progressbar")
        expect(percent).to_have_attribute("aria-valuenow", re.compile(r"[1-9]"), timeout=LONG_MS)
        picture(page, "run-in-progress")
        customer = customer_page(new_page, control.url, account)
        expect(customer.locator("[part=percent]")).to_contain_text("% imported")
        act(page, "Halt", "Halt the migration", Reason="the CRM is slow")
        expect(status).to_have_text("Halted", timeout=LONG_MS)
        expect(migration).to_contain_text("the CRM is slow")
        expect(customer.get_by_role("status")).to_have_text("")
        halted_at = int(percent.get_attribute("aria-valuenow") or 0)
        assert 1 <= halted_at < 100
        assert logs.count_documents({"company_sso_id": account}) > 0

    with runner(crm):
        act(page, "Resume", "Resume the migration")
        expect(status).to_have_text("Completed", timeout=LONG_MS)
        expect(migration).to_contain_text("100 %")
        expect(customer).to_have_js_property("state", {"status": "completed", "percent": None, "visible": False})
        written = logs.count_documents({"company_sso_id": account, "source_tag": "crm_migration"})
        assert written > 1_000
        expect(migration).to_contain_text(f"{written:,}")

        act(page, "Verify", "Verify the copy")
        verification = page.get_by_role("region", name="Verification", exact=True)
        expect(verification).to_contain_text("The copy is equal to its source", timeout=LONG_MS)
        assert violations(page) == []
        picture(page, "run-verified")

        act(page, "Roll back…", "Delete these documents", **{f"Type {account} to confirm": account})
        removed = page.get_by_text(f"Rolled back: {written:,} documents removed.")  # goes away after some seconds
        expect(removed).to_be_visible(timeout=LONG_MS)
        expect(status).to_have_text("Rolled back", timeout=LONG_MS)
        assert logs.count_documents({"company_sso_id": account}) == 0
    log = page.get_by_role("region", name="Audit log", exact=True)
    for done in ("Rollback", "Verify", "Resume", "Halt", "Trigger", "Preflight"):
        expect(log).to_contain_text(done)
    page.get_by_role("link", name="Accounts").click()
    expect(page.get_by_role("row", name=account)).to_contain_text("Rolled back")
