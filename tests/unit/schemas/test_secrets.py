"""Addresses and messages without their secrets."""

import time

import pytest

from schemas import secrets
from schemas.errors import BadInputError, ReplayError
from schemas.secrets import about, shown, without_secrets

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"the schema registry at https://user:{SECRET}@registry:8081 does not answer",
        f"https://{SECRET}@registry",
        f"https://user:a/{SECRET}@registry",
        f"https://user:a@{SECRET}@registry/path",
        f"https://user:%40{SECRET}%2F@registry",
        f"mongodb://u:{SECRET}@h1:1,h2:2/?authSource=admin",
        f"host=db password={SECRET} user=crm",
        f"host=db password='{SECRET} and \\' more' user=crm",
        f"host=db sslpassword={SECRET}",
        f"postgresql://h/db?sslpassword={SECRET}&sslmode=require",
        f"postgresql://h/db?password={SECRET}",
        f"mongodb://h/?tlsCertificateKeyFilePassword={SECRET}&x=y",
        f"mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:{SECRET}",
        f"{{'sasl.password': '{SECRET}', 'sasl.username': 'crm'}}",
        f'{{"password": "{SECRET}"}}',
        f"Authorization: Basic {SECRET}aaaaaaaa=",
        f"authorization: Bearer {SECRET}.aaa.bbb",
        f"http://proxy:{SECRET}@proxy:3128",
        f"ssl.key.password={SECRET}, more",
    ],
)
def test_no_secret_is_left_wherever_it_stands(text: str) -> None:
    assert SECRET not in without_secrets(text)
    assert SECRET not in shown(text)
    assert SECRET not in str(BadInputError(text, "check it"))
    assert SECRET not in BadInputError(text).what


@pytest.mark.parametrize(
    "special", ["@", "/", ":", "%", "#", " ", "'", '"', "<", ">", "?", "&", ";", "}", ",", "é", "?x="]
)
@pytest.mark.parametrize(
    "form",
    [
        "postgresql://bob:{}@host:5432/db?sslmode=require",
        "mongodb://bob:{}@h1:1,h2:2/db",
        "http://bob:{}@registry",
        "bob:{}@host:5432/db",
        "postgresql:/bob:{}@host/db",
        "postgresql://host/db?user=x&password={}",
        "host=h user=bob password={} dbname=x",
        "host=h user=bob password = {} dbname=x",
    ],
)
def test_a_shown_address_has_no_part_of_a_password_that_should_have_been_encoded(form: str, special: str) -> None:
    said = shown(form.format(f"hunter{special}2wo"))
    assert "hunter" not in said
    assert "2wo" not in said


@pytest.mark.parametrize("special", [" ", "'", '"', "<", ">", "@", "/", "é"])
def test_a_text_has_no_part_of_a_password_that_is_no_part_of_an_address(special: str) -> None:
    for address in (f"mongodb://bob:hunter{special}2wo@h1:1,h2:2/db", f"http://:hunter{special}2wo@registry:8081"):
        said = without_secrets(f"cannot reach {address}: timeout")
        assert "hunter" not in said
        assert "2wo" not in said
        assert said.endswith(": timeout")
    assert (
        without_secrets("user:hunter2@kafka:9092/bootstrap: no such host")
        == "[credentials]@kafka:9092/bootstrap: no such host"
    )


def test_an_address_with_a_port_is_none_of_a_user() -> None:
    for plain in (
        "http://registry:8081 said: ask bob@example.com",
        "http://registry:8081: ask bob@example.com",
        "mongodb://h1:27017,h2:27017/cdp is away; mail ops@example.com",
        "account:x@y is not an account",
    ):
        assert without_secrets(plain) == plain


def test_a_long_text_does_not_hold_up_who_says_it() -> None:
    for text in ("x" * 20_000, "a:" * 10_000, "://" + "a:" * 10_000, "@" * 20_000, "password" * 2_500):
        began = time.process_time()
        without_secrets(text)
        assert time.process_time() - began < 1


def test_a_text_that_no_rule_can_change_passes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a topic holds what is not ours, an error is made for each record; the rules would be most of its cost."""
    monkeypatch.setattr(secrets, "_RULES", ((None, ""),))  # which no text gets through
    text = "unknown schema header 7b226265666f72652274"
    assert without_secrets(text) == text


def test_what_an_operator_needs_stays() -> None:
    assert shown(f"https://user:{SECRET}@registry:8081/apis?x=y") == "https://registry:8081/apis"
    assert shown("127.0.0.1:9092,b:9092") == "127.0.0.1:9092,b:9092"
    assert shown(f"host=db user=crm password={SECRET} dbname=crm") == "host=db user=crm password=[secret] dbname=crm"
    for plain in (
        'connection to server at "10.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "x"',
        "CRM_REPLAY_TOKEN: field required",
        "KAFKA_SASL_PASSWORD_FILE: /run/secrets/kafka: No such file or directory",
    ):
        assert without_secrets(plain) == plain
    hint = "postgresql://user@host/db"
    assert str(BadInputError("it is no address", hint)) == f"it is no address: {hint}"
    check = "check the user and password in MONGODB_URL, or start: crm-replay services up"
    assert str(ReplayError("MongoDB refuses access (code 18)", check)) == f"MongoDB refuses access (code 18): {check}"


def test_a_parser_quotes_no_part_of_the_address() -> None:
    address = f"postgresql://user:{SECRET}/x@db/crm"
    error = ValueError(f'invalid integer value "{SECRET}" for connection option "port"\nmore')
    assert about(error, address) == 'invalid integer value "…" for connection option "port"'.replace('"…"', "…")
