"""Addresses and messages without their secrets."""

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
    assert str(ReplayError("MongoDB refuses us (code 18)", check)) == f"MongoDB refuses us (code 18): {check}"


def test_a_parser_quotes_no_part_of_the_address() -> None:
    address = f"postgresql://user:{SECRET}/x@db/crm"
    error = ValueError(f'invalid integer value "{SECRET}" for connection option "port"\nmore')
    assert about(error, address) == 'invalid integer value "…" for connection option "port"'.replace('"…"', "…")
