"""The parts of the HTTP side that decide with values: limits, keys, settings, pace, frames of live events."""

import asyncio
import datetime as dt
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ops.control.activity_logs import ActivityLogRecord, Moment, document_of
from ops.control.auth import BasicCredentials, KeysUnavailableError, PublicKeys, basic_of, fits, keys_in
from ops.control.console_api import account_frame, accounts_frame
from ops.control.console_models import Session
from ops.control.envelope import ApiError, error_body, request_id_of
from ops.control.events import digest_of, part_of
from ops.control.pace import PaceKeeper
from ops.control.rate_limit import FailureLimit
from ops.control.settings import ControlSettings
from schemas.errors import BadInputError

CREDENTIALS = "a-user:a-long-password"
KEY = rsa.generate_private_key(65537, 2048)


# ---- failures --------------------------------------------------------------------------------------------------------


def test_so_many_failures_within_the_window_and_then_none_until_the_first_is_old() -> None:
    limit = FailureLimit(failures_max=3, window_s=10)
    for at in (0.0, 4.0, 5.0):
        assert limit.retry_after_s("x", at) == 0
        limit.failed("x", at)
    assert limit.retry_after_s("x", 6.0) == 4.0
    assert limit.retry_after_s("y", 6.0) == 0
    assert limit.retry_after_s("x", 10.0) == 0
    limit.failed("x", 10.0)
    assert limit.retry_after_s("x", 11.0) == 3.0
    limit.succeeded("x")
    assert limit.retry_after_s("x", 11.0) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 5)), max_size=200))
def test_what_is_remembered_of_failures_is_bounded(failures: list[tuple[int, float]]) -> None:
    limit = FailureLimit(failures_max=2, window_s=10, keys_max=7)
    now = 0.0
    for key, later in failures:
        now += later
        limit.failed(str(key), now)
        assert len(limit) <= 7
        assert 0 <= limit.retry_after_s(str(key), now) <= 10 + 1e-9


# ---- Basic -----------------------------------------------------------------------------------------------------------


def test_the_user_is_the_one_whose_password_it_is() -> None:
    known = BasicCredentials([("a", "new"), ("a", "old"), ("b", "new")])
    assert [known.user_of("a", "new"), known.user_of("a", "old"), known.user_of("b", "new")] == ["a", "a", "b"]
    assert [known.user_of("b", "old"), known.user_of("", ""), known.user_of("a\0", "new")] == [None] * 3


@given(st.binary(max_size=60))
def test_no_header_breaks_the_reading_of_credentials(header: bytes) -> None:
    for found in (basic_of(header), basic_of(b"Basic " + header)):
        assert found is None or all(isinstance(part, str) for part in found)


# ---- keys ------------------------------------------------------------------------------------------------------------


def key_set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def jwk(key: Any, key_id: str, algorithm: str = "RS256", **more: Any) -> dict[str, Any]:
    return {**jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True), "kid": key_id, **more}


class Publisher:
    """Counts how often the set is asked for; raises what it holds instead of a set."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_keys_are_fetched_when_old_and_for_an_unknown_name_but_not_for_everybody() -> None:
    async def story() -> None:
        now = [1000.0]
        publisher = Publisher(key_set(jwk(KEY, "one")))
        keys = PublicKeys(publisher, cache_s=300, refetch_min_s=10, clock=lambda: now[0])
        together = await asyncio.gather(*(keys.candidates("one", "RS256") for _ in range(20)))
        assert (publisher.asked, [len(found) for found in together]) == (1, [1] * 20)
        for _ in range(50):  # forged names just after a fetch cost nothing
            assert await keys.candidates("forged", "RS256") == []
        assert publisher.asked == 1
        now[0] += 11
        await asyncio.gather(*(keys.candidates("forged", "RS256") for _ in range(50)))
        assert publisher.asked == 2
        now[0] += 301
        publisher.answer = OSError("away")
        assert len(await keys.candidates("one", "RS256")) == 1  # the keys on hand
        assert publisher.asked == 3
        now[0] += 24 * 3600
        with pytest.raises(KeysUnavailableError):
            await keys.candidates("one", "RS256")
        publisher.answer = key_set(jwk(KEY, "two"))
        now[0] += 11
        assert await keys.candidates("one", "RS256") == []
        assert len(await keys.candidates("two", "RS256")) == 1
        assert len(await keys.candidates(None, "RS256")) == 1

    asyncio.run(story())


def test_only_public_keys_for_signatures_are_taken_from_a_set() -> None:
    small = rsa.generate_private_key(65537, 1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    symmetric = {"kty": "oct", "k": "AAAA", "kid": "shared", "alg": "HS256"}
    entries = [
        jwk(KEY, "good"),
        jwk(KEY, "encrypts", use="enc"),
        jwk(small, "small"),
        symmetric,
        {"kty": "RSA", "kid": "broken"},
        "nonsense",
        jwk(curve, "curve", "ES256"),
    ]
    found = {key.key_id: key for key in keys_in(key_set(*entries))}  # type: ignore[arg-type]
    assert set(found) == {"good", "curve"}
    assert [name for name in ("RS256", "PS256", "ES256", "ES384", "HS256", "EdDSA") if fits(found["good"], name)] == [
        "RS256",
        "PS256",
    ]
    assert [name for name in ("RS256", "ES256", "ES384", "EdDSA") if fits(found["curve"], name)] == ["ES256"]
    (named,) = keys_in(key_set(jwk(KEY, "named", alg="RS512")))
    assert [name for name in ("RS256", "RS512", "PS512") if fits(named, name)] == ["RS512"]
    for no_set in (b"{}", b"[]", b'{"keys": []}', b"nonsense", key_set(symmetric)):
        with pytest.raises(ValueError, match=r"."):
            keys_in(no_set)


# ---- settings --------------------------------------------------------------------------------------------------------

TOKENS = {"jwt_issuer": "i", "jwt_audience": "a"}


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"basic_credentials": ""}, "BASIC_CREDENTIALS is not set"),
        ({"basic_credentials": "nobody"}, "entry 1"),
        ({"basic_credentials": f"{CREDENTIALS} b:short"}, "entry 2 \\(b\\)"),
        ({"jwt_shared_key": "short", **TOKENS}, "too short"),
        ({"jwt_shared_key": "x" * 32}, "JWT_ISSUER is not set"),
        ({"jwt_shared_key": "x" * 32, "jwt_issuer": "i"}, "JWT_AUDIENCE is not set"),
        ({"jwt_shared_key": "x" * 32, "jwt_jwks_url": "https://x", **TOKENS}, "more than one source"),
        ({"jwt_shared_key": "x" * 32, "jwt_algorithms": "RS256", **TOKENS}, "RS256 does not go"),
        ({"jwt_jwks_url": "https://x", "jwt_algorithms": "RS256,HS256", **TOKENS}, "HS256 does not go"),
        ({"jwt_jwks_url": "https://x", "jwt_algorithms": "none", **TOKENS}, "none does not go"),
        ({"jwt_jwks_url": "ftp://x", **TOKENS}, "no URL"),
        ({"jwt_jwks_path": "/no/such/file", **TOKENS}, "there is no file"),
        ({"tls_certificate_path": __file__}, "TLS needs both"),
        ({"cors_origins": "*"}, "is no origin"),
        ({"cors_origins": "https://a.example/"}, "is no origin"),
        ({"port": 70_000}, "PORT"),
    ],
)
def test_settings_that_would_let_nobody_in_or_anybody_are_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        ControlSettings.load(**{"basic_credentials": CREDENTIALS, **given_})


def test_secrets_come_from_files_too_and_are_not_shown(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "credentials"
    path.write_text("a-user:a-long-password\na-user:the-password-before\n")
    monkeypatch.delenv("CRM_CONTROL_BASIC_CREDENTIALS", raising=False)
    monkeypatch.setenv("CRM_CONTROL_BASIC_CREDENTIALS_FILE", str(path))
    settings = ControlSettings.load()
    assert settings.credentials() == (("a-user", "a-long-password"), ("a-user", "the-password-before"))
    assert "password" not in repr(settings.basic_credentials)
    assert not settings.tokens_configured


# ---- envelope --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_a_request_id_is_always_safe_to_log_and_to_send(header: bytes) -> None:
    made = request_id_of(header)
    assert 1 <= len(made) <= 128
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made


def test_the_envelope_has_the_errors_and_what_a_refusal_adds() -> None:
    error = ApiError(422, "contacts_not_migrated", "m", errors=[("a.b", "bad")], meta={"coverage_pct": 5.0})
    assert error_body(error, "r") == {
        "status": "error",
        "resp_code": "contacts_not_migrated",
        "message": "m",
        "meta": {"coverage_pct": 5.0, "request_id": "r", "errors": [{"field": "a.b", "message": "bad"}]},
    }


# ---- times and records -----------------------------------------------------------------------------------------------

MOMENT: TypeAdapter[dt.datetime] = TypeAdapter(Moment)


@given(st.datetimes(), st.integers(-23 * 60, 23 * 60))
def test_every_time_with_a_zone_becomes_one_that_can_be_stored(moment: dt.datetime, offset_min: int) -> None:
    zoned = moment.replace(tzinfo=dt.timezone(dt.timedelta(minutes=offset_min)))
    stored = MOMENT.validate_python(zoned.isoformat())
    assert stored.utcoffset() == dt.timedelta(0)
    if 1 < zoned.year < 9999:
        assert stored == zoned


@pytest.mark.parametrize(
    "wrong", [0, 1.5, "1700000000", "2024-05-08", "2024-05-08T10:00:00", "2024-13-08T10:00:00Z", None]
)
def test_what_is_no_time_with_a_zone_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        MOMENT.validate_python(wrong)


def test_a_documents_fields_stand_in_the_processors_order() -> None:
    record = ActivityLogRecord.model_validate(
        {
            "company_sso_id": "a",
            "customer_id": "c",
            "category": "deal",
            "action": "won",
            "actor": {"type": "system", "id": None, "name": "Qontak System"},
            "changes": [{"field": "f", "label": "F", "from": 1, "to": None}],
            "timestamp": "2024-05-08T18:46:14.0599Z",
            "external_id": "crm_audit:7",
        }
    )
    document = document_of(record)
    assert list(document) == [
        *("_id", "company_sso_id", "customer_id", "category", "action"),
        *("actor", "changes", "timestamp", "external_id", "source_tag"),
    ]
    assert document["changes"] == [{"field": "f", "label": "F", "from": 1, "to": None}]
    assert document["timestamp"].microsecond == 59_000


# ---- pace ------------------------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    pace = PaceKeeper(window_s=30)
    assert pace.rate("j", 1, 1000).rows_per_s is None
    for second in range(100):
        pace.note("j", 1, second * 10 if second < 60 else 600 + (second - 60) * 2, float(second))
    rate = pace.rate("j", 1, 1000)
    assert rate.rows_per_s == 2
    assert rate.eta_s == (1000 - 678) / 2
    for second in range(100, 140):
        pace.note("j", 1, 678, float(second))
    assert (pace.rate("j", 1, 1000).rows_per_s, pace.rate("j", 1, 1000).eta_s) == (0.0, None)
    assert pace.rate("j", 1, 678).eta_s == 0.0
    pace.note("j", 2, 0, 140.0)
    assert pace.rate("j", 1, 1000).rows_per_s is None  # another run begins anew


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1000)), max_size=50))
def test_no_count_makes_a_rate_negative(steps: list[tuple[float, int]]) -> None:
    pace, now = PaceKeeper(window_s=30), 0.0
    for later, accounted in steps:
        now += later
        pace.note("j", 1, accounted, now)
    rate = pace.rate("j", 1, 1000)
    assert rate.rows_per_s is None or rate.rows_per_s >= 0
    assert rate.eta_s is None or rate.eta_s >= 0


# ---- live events -----------------------------------------------------------------------------------------------------


def parse(frame: bytes) -> tuple[str, Any]:
    event, data, *rest = frame.decode().split("\n")
    assert rest == ["", ""]
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_client_is_told_of_what_it_does_not_know() -> None:
    one = {"a": (b"1", b'"a1"'), "b": (b"1", b'"b1"')}
    two = {"a": (b"1", b'"a2"'), "b": (b"2", b'"b2"'), "c": (b"1", b'"c1"')}
    assert parse(accounts_frame(one, None)) == ("accounts", {"complete": True, "accounts": ["a1", "b1"]})
    assert parse(accounts_frame(two, one)) == ("accounts", {"complete": False, "accounts": ["b2", "c1"]})
    assert parse(accounts_frame(one, two)) == ("accounts", {"complete": True, "accounts": ["a1", "b1"]})
    assert parse(account_frame({"": (b"1", b'{"x":"\\n"}')}, None)) == ("account", {"x": "\n"})


def test_an_id_stands_for_what_is_compared_and_nothing_else() -> None:
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    first = part_of(Session(user="u", version="1", now=at), {"now"})
    later = part_of(Session(user="u", version="1", now=at + dt.timedelta(seconds=1)), {"now"})
    other = part_of(Session(user="v", version="1", now=at), {"now"})
    assert first[0] == later[0] != other[0]
    assert first[1] != later[1]
    assert digest_of({"a": first}) == digest_of({"a": later}) != digest_of({"a": other})
    assert digest_of({"a": first, "b": other}) != digest_of({"a": other, "b": first})
