"""Lookups answer from the tables' rows: of this account only, and as they are now."""

import asyncio
from collections.abc import Iterable

import pytest

from processors.lookups import answers
from processors.lookups.answers import DecodedRows, TableLookups, decoded, of_account
from schemas.errors import UnreadableTopicError
from schemas.records import Contact, Referent, User
from tests.support.reference_rows import ACCOUNT, CODEC, contact, reference_rows


class FakeDirectory:
    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def prefetch(self, emails: Iterable[str]) -> None:
        self.asked.append(list(emails))

    def sso_id(self, email: str) -> str | None:
        return f"sso-{email}" if any(email in asked for asked in self.asked) else None


def test_records_are_found_by_their_keys() -> None:
    found = TableLookups(decoded(reference_rows(), CODEC, ACCOUNT))
    assert found.contact("2") == contact(2)
    assert found.user(2) == User(2, "b@example.com", "Bob", True)
    assert found.referent("Crm::Deal", 7) == Referent("Crm::Deal", 7, "Renewal")
    assert (found.contact("9"), found.user(9), found.referent("Crm::Deal", 9)) == (None, None, None)
    assert found.contact("\udcff") is None  # not even UTF-8


def test_a_contact_of_another_account_is_never_found() -> None:
    rows = reference_rows()
    rows["contacts"][b"1"] = CODEC.encode(contact(1, company_sso_id="account-2"))
    contacts = decoded(rows, CODEC, ACCOUNT)["contacts"]
    assert contacts.get(b"1") is None
    assert contacts.get(b"1") is None
    assert contacts.rejects == 1
    assert b"1" not in contacts
    assert dict(contacts) == {b"2": contact(2), b"3": contact(3)}


def test_an_undecodable_row_is_no_row_that_is_absent() -> None:
    rows = reference_rows()
    rows["users"][b"1"] = b"garbage"
    rows["contacts"][b"1"] = rows["referents"][b"Crm::Deal:7"]
    found = TableLookups(decoded(rows, CODEC, ACCOUNT))
    with pytest.raises(UnreadableTopicError, match=r"User with the key 1 .*publishes the references again"):
        found.user(1)
    with pytest.raises(UnreadableTopicError, match="found a Referent instead of a Contact"):
        found.contact("1")


def test_an_update_is_seen_at_once_and_so_is_a_removal() -> None:
    rows = reference_rows()
    found = TableLookups(decoded(rows, CODEC, ACCOUNT))
    assert found.contact("1") == contact(1)
    rows["contacts"][b"1"] = CODEC.encode(contact(1, customer_id="merged"))
    assert found.contact("1") == contact(1, customer_id="merged")
    del rows["contacts"][b"1"]
    assert found.contact("1") is None


def test_what_is_kept_decoded_is_bounded() -> None:
    count = answers.DECODED_MAX + 10
    rows = reference_rows()
    rows["contacts"] = {str(n).encode(): CODEC.encode(contact(n)) for n in range(count)}
    contacts = DecodedRows(rows["contacts"], CODEC, Contact, of_account(ACCOUNT))
    assert all(contacts.get(b"%d" % n) == contact(n) for n in range(count))
    assert len(contacts._decoded) <= answers.DECODED_MAX


def test_the_directory_is_asked_about_active_users_with_an_email() -> None:
    directory = FakeDirectory()
    found = TableLookups(decoded(reference_rows(), CODEC, ACCOUNT), directory)
    asyncio.run(found.prefetch_users({1, 2, 3, 99}))
    assert directory.asked == [["a@example.com"]]
    assert found.sso_id("a@example.com") == "sso-a@example.com"
    assert found.sso_id("b@example.com") is None


def test_without_a_directory_nobody_has_an_sso_id() -> None:
    found = TableLookups(decoded(reference_rows(), CODEC, ACCOUNT))
    asyncio.run(found.prefetch_users({1}))
    assert found.sso_id("a@example.com") is None
