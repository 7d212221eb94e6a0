"""Every account gets names that Kafka takes, that no other account has, and that can be read back."""

import dataclasses
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from schemas.errors import BadInputError
from schemas.topics import ACCOUNT_LENGTH_MAX, LIVE_TOPIC, AccountTopics, encode_account
from tests.unit.schemas.values import unhurried

LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}")
TOPICS = ("replay", "outcomes", "dead_letters", "contacts", "users", "referents")
GROUPS = ("processors_group", "sink_group")

printable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=ACCOUNT_LENGTH_MAX).filter(
    str.isprintable
)
# Ids that look alike once they are encoded: escapes spelt out, separators, letters of either case.
lookalikes = st.text("aA_-.5fF2e/é ", min_size=1, max_size=12)
accounts = st.one_of(printable, lookalikes)


def decode_account(encoded: str) -> str:
    """Return the account id whose encoding this is; only for those that were not shortened."""
    return re.sub(rb"_([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), encoded.encode()).decode()


@unhurried
@given(accounts)
@example("a" * ACCOUNT_LENGTH_MAX)
@example("é" * ACCOUNT_LENGTH_MAX)
@example("\U0001f600" * ACCOUNT_LENGTH_MAX)
@example(".")
@example("..")
def test_every_name_is_legal(account: str) -> None:
    names = AccountTopics.of(account)
    for name in dataclasses.astuple(names):
        assert LEGAL.fullmatch(name)


@unhurried
@given(accounts, accounts)
@example("a", "A")
@example("a.b", "a_2eb")
@example("a_b", "a.b")
@example("a" * 200, "a" * 201)
@example("é" * 100, "é" * 101)
def test_two_accounts_share_no_name(one: str, other: str) -> None:
    assume(one != other)
    names = {name.replace(".", "_") for name in dataclasses.astuple(AccountTopics.of(one))}
    others = {name.replace(".", "_") for name in dataclasses.astuple(AccountTopics.of(other))}
    assert not names & others  # not even where metrics take . and _ for the same character


@unhurried
@given(accounts)
def test_the_encoding_can_be_read_back(account: str) -> None:
    encoded = encode_account(account)
    if "__" not in encoded:
        assert decode_account(encoded) == account
    else:
        assert len(encoded) == 100 + 2 + 64


@unhurried
@given(st.text("abcXYZ0189-", min_size=1, max_size=200))
def test_a_plain_id_stays_as_it_is(account: str) -> None:
    assert encode_account(account) == account


def test_an_encoded_account_has_no_dot_and_so_ends_where_the_name_ends() -> None:
    assert encode_account("a.b c_d/é") == "a_2eb_20c_5fd_2f_c3_a9"


def test_a_long_id_is_shortened_and_its_digest_tells_it_apart() -> None:
    one, other = "x" * 250 + "1", "x" * 250 + "2"
    assert encode_account(one)[:102] == encode_account(other)[:102] == "x" * 100 + "__"
    assert encode_account(one) != encode_account(other)
    assert encode_account("x" * 200) == "x" * 200
    assert len(encode_account("x" * 201)) == 166


def test_names_of_one_account_differ_and_are_never_the_live_topic() -> None:
    names = dataclasses.asdict(AccountTopics.of("acme"))
    assert len(set(names.values())) == len(names) == len(TOPICS) + len(GROUPS)
    assert names["replay"] == "crm.audits.replay.acme"
    assert LIVE_TOPIC not in names.values()
    assert AccountTopics.of("live").replay != LIVE_TOPIC


def test_the_references_are_the_three_compacted_topics() -> None:
    names = AccountTopics.of("acme")
    assert names.references == (names.contacts, names.users, names.referents)


@pytest.mark.parametrize(
    "account", ["", "a\nb", "a\tb", "\x00", "a\u2028b", "x" * (ACCOUNT_LENGTH_MAX + 1), "a\u200bb"]
)
def test_an_id_that_is_empty_too_long_or_unprintable_is_refused(account: str) -> None:
    for call in (encode_account, AccountTopics.of):
        with pytest.raises(BadInputError, match="is not a company_sso_id") as raised:
            call(account)
        assert "\n" not in str(raised.value)
        assert raised.value.exit_code == 2
