"""What every request passes: logins, their limits, foreign pages, sizes, types, envelopes and headers."""

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ops.control import routes
from ops.control.edge import CSP
from schemas.process.connections import Connections
from sink import database
from tests.integration.control.http_server import PASSWORD, USER, Served, account, bearer, refused, serving, token
from tests.support.waiting import wait_until

pytestmark = pytest.mark.services
STATUS = "/private/activity_logs/crm_migration/status?company_sso_id=a"
ROLLBACK = "/private/activity_logs/crm_migration/rollback"
SESSION_STATUS = "/v1/crm_migration/status"
NOWHERE = "mongodb://127.0.0.1:1/"


@pytest.fixture(scope="module")
def connections(mongodb_url: str) -> Connections:
    return Connections(mongodb_url=mongodb_url, mongodb_database="http_edge")


@pytest.fixture(scope="module")
def served(connections: Connections) -> Iterator[Served]:
    with serving(connections, cors_origins="https://app.example,https://b.example", body_bytes_max=10_000) as running:
        yield running


@pytest.fixture
def strict(connections: Connections) -> Iterator[Served]:
    """A server of the test's own, where three failures are too many."""
    credentials = f"{USER}:{PASSWORD} {USER}:the-password-before another:one-more-password"
    with serving(
        connections, basic_credentials=credentials, auth_failures_max=3, auth_failures_address_max=8
    ) as running:
        yield running


# ---- Basic -----------------------------------------------------------------------------------------------------------


def test_nothing_private_is_shown_without_a_login(served: Served) -> None:
    with served.bare() as stranger:
        for path in (STATUS, "/console", "/console/", "/console/api/accounts", "/private", "/private/no/such/path"):
            answer = stranger.get(path)
            refused(answer, 401, "UNAUTHENTICATED")
            assert answer.headers["www-authenticate"].startswith("Basic ")
        for path in ("/healthz", "/openapi.json", "/metrics"):
            assert stranger.get(path).status_code == 200


def test_every_endpoint_asks_who_is_asking_or_is_known_not_to(served: Served) -> None:
    open_to_all = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/assets"}
    with served.bare() as stranger:
        paths = {path for path, _ in stranger.get("/openapi.json").json()["paths"].items()}
        assert len(paths) > 20
        for path in paths - open_to_all:
            assert stranger.get(path).status_code == 401, path


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(f"{USER}:".encode()).decode(),
        "Basic " + base64.b64encode(f"{USER}:{PASSWORD}x".encode()).decode(),
        "Basic " + base64.b64encode(f"{USER}:".encode() + b"x" * 3000).decode(),
        "Digest abc",
    ],
)
def test_a_login_that_is_wrong_or_no_login_at_all_is_refused(served: Served, header: str) -> None:
    with served.bare() as stranger:
        answer = stranger.get(STATUS, headers={"authorization": header, "x-forwarded-for": account()})
        refused(answer, 401, "UNAUTHENTICATED")


def test_a_password_can_be_changed_without_a_gap(strict: Served) -> None:
    with strict.bare() as client:
        for auth in ((USER, PASSWORD), (USER, "the-password-before"), ("another", "one-more-password")):
            assert client.get(STATUS, auth=auth).status_code == 200
        refused(client.get(STATUS, auth=("another", PASSWORD)), 401, "UNAUTHENTICATED")


def test_guessing_is_slowed_down_for_whom_guesses_only(strict: Served) -> None:
    with strict.bare() as client:
        for _ in range(3):
            refused(client.get(STATUS, auth=(USER, "guess")), 401, "UNAUTHENTICATED")
        answer = client.get(STATUS, auth=(USER, PASSWORD))
        refused(answer, 429, "TOO_MANY_FAILURES")
        assert 1 <= int(answer.headers["retry-after"]) <= 61
        assert client.get(STATUS, auth=("another", "one-more-password")).status_code == 200
        elsewhere = {"x-forwarded-for": "203.0.113.7"}  # the test's address is a trusted proxy's
        assert client.get(STATUS, auth=(USER, PASSWORD), headers=elsewhere).status_code == 200
        for number in range(5):
            refused(client.get(STATUS, auth=(f"user{number}", "guess")), 401, "UNAUTHENTICATED")
        refused(client.get(STATUS, auth=("another", "one-more-password")), 429, "TOO_MANY_FAILURES")


def test_a_valid_session_is_never_kept_waiting_for_the_failures_of_others(strict: Served) -> None:
    with strict.bare() as client:
        for _ in range(3):
            refused(client.get(SESSION_STATUS, headers=bearer("x.y.z")), 401, "UNAUTHENTICATED")
        refused(client.get(SESSION_STATUS, headers=bearer("x.y.z")), 429, "TOO_MANY_FAILURES")
        assert client.get(SESSION_STATUS, headers=strict.session()).status_code == 200


# ---- session tokens --------------------------------------------------------------------------------------------------

RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, key_id: str, algorithm: str = "RS256", **more: str) -> dict[str, Any]:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": key_id, "use": "sig", **more}


@pytest.fixture
def key_set() -> Iterator[Callable[..., str]]:
    """Publish keys over HTTP: `publish(key, ...)` returns the URL; with none, the server fails."""
    published: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": published}).encode()
            self.send_response(200 if published else 500)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def publish(*keys: dict[str, Any]) -> str:
        published[:] = keys
        return f"http://127.0.0.1:{server.server_address[1]}/jwks.json"

    yield publish
    server.shutdown()
    server.server_close()
    thread.join()


def test_keys_are_rotated_without_a_restart(connections: Connections, key_set: Callable[..., str]) -> None:
    url = key_set(jwk(RSA_KEYS[0], "old"))
    old = bearer(token(RSA_KEYS[0], "RS256", {"kid": "old"}))
    new = bearer(token(RSA_KEYS[1], "RS256", {"kid": "new"}))
    with serving(connections, jwt_jwks_url=url, jwks_refetch_min_s=0) as served, served.bare() as browser:
        assert browser.get(SESSION_STATUS, headers=old).status_code == 200
        refused(browser.get(SESSION_STATUS, headers=new), 401, "UNAUTHENTICATED")
        key_set(jwk(RSA_KEYS[0], "old"), jwk(RSA_KEYS[1], "new"))
        assert browser.get(SESSION_STATUS, headers=new).status_code == 200  # an unknown name: looked up at once
        assert browser.get(SESSION_STATUS, headers=old).status_code == 200
        key_set()  # the publisher fails: the keys on hand will do
        assert browser.get(SESSION_STATUS, headers=new).status_code == 200
        unnamed = bearer(token(RSA_KEYS[1], "RS256"))
        assert browser.get(SESSION_STATUS, headers=unnamed).status_code == 200


def test_without_any_key_nothing_is_known_of_a_token(connections: Connections, key_set: Callable[..., str]) -> None:
    with serving(connections, jwt_jwks_url=key_set()) as served, served.bare() as browser:
        answer = browser.get(SESSION_STATUS, headers=bearer(token(RSA_KEYS[0], "RS256", {"kid": "old"})))
        refused(answer, 503, "SERVICE_UNAVAILABLE")
        assert answer.headers["retry-after"]


def test_keys_in_a_file_are_read_again_and_a_removed_one_is_worth_nothing(
    connections: Connections, tmp_path: Path
) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(RSA_KEYS[0], "one"), jwk(EC_KEY, "two", "ES256")]}))
    with serving(connections, jwt_jwks_path=str(path)) as served, served.bare() as browser:
        one = bearer(token(RSA_KEYS[0], "RS256", {"kid": "one"}))
        two = bearer(token(EC_KEY, "ES256", {"kid": "two"}))
        assert [browser.get(SESSION_STATUS, headers=each).status_code for each in (one, two)] == [200, 200]
        path.write_text(json.dumps({"keys": [jwk(EC_KEY, "two", "ES256")]}))
        wait_until(lambda: browser.get(SESSION_STATUS, headers=one).status_code != 200, "the key is known no more")
        assert browser.get(SESSION_STATUS, headers=two).status_code == 200


def unsigned(**claims: Any) -> str:
    body = jwt.decode(token(**claims), options={"verify_signature": False})
    return jwt.encode(body, None, "none")  # type: ignore[arg-type]


def hmac_with(secret: bytes) -> str:
    """Sign with a public key's text as if it were a shared key; PyJWT itself would refuse to."""
    import hashlib
    import hmac

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    body = json.dumps(jwt.decode(token(), options={"verify_signature": False})).encode()
    signed = part(b'{"alg":"HS256","typ":"JWT","kid":"one"}') + b"." + part(body)
    return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


def test_a_token_cannot_choose_how_it_is_verified(connections: Connections, key_set: Callable[..., str]) -> None:
    public = RSA_KEYS[0].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    published = jwk(RSA_KEYS[0], "one", alg="RS256")
    with serving(connections, jwt_jwks_url=key_set(published)) as served, served.bare() as browser:
        good = token(RSA_KEYS[0], "RS256", {"kid": "one"})
        assert browser.get(SESSION_STATUS, headers=bearer(good)).status_code == 200
        head, body, signature = good.split(".")
        forged = [
            unsigned(),
            hmac_with(pem),
            hmac_with(json.dumps(published).encode()),
            token(),  # HS256 under some shared key
            token(RSA_KEYS[0], "PS256", {"kid": "one"}),  # the right key, in a way that is not allowed
            token(RSA_KEYS[0], "RS512", {"kid": "one"}),
            token(RSA_KEYS[1], "RS256", {"kid": "one"}),  # another key under the right name
            token(EC_KEY, "ES256", {"kid": "one"}),
            token(RSA_KEYS[0], "RS256", {"kid": "one", "crit": ["b64"], "b64": True}),
            f"{head}.{body}.",
            f"{head}.{body[:-2]}.{signature}",
            "x" * 10_000,
        ]
        for number, bad in enumerate(forged):
            answer = browser.get(SESSION_STATUS, headers={**bearer(bad), "x-forwarded-for": f"198.51.100.{number}"})
            refused(answer, 401, "UNAUTHENTICATED")


def now(offset_s: int) -> int:
    return int(time.time()) + offset_s


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": now(-3600)},
        {"exp": None},
        {"nbf": now(3600)},
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": None},
        {"company_sso_id": None},
        {"company_sso_id": ""},
        {"company_sso_id": 7},
        {"company_sso_id": "x" * 256},
        {"company_sso_id": ["a"]},
    ],
)
def test_a_token_is_for_this_service_for_now_and_for_one_tenant(served: Served, claims: dict[str, Any]) -> None:
    with served.bare() as browser:
        headers = {**served.session(**claims), "x-forwarded-for": account()}
        refused(browser.get(SESSION_STATUS, headers=headers), 401, "UNAUTHENTICATED")


def test_a_token_within_the_leeway_and_for_several_services_will_do(served: Served) -> None:
    with served.bare() as browser:
        headers = served.session(exp=now(-5), nbf=now(5), aud=["another-service", "crm-import"], sub=17)
        assert browser.get(SESSION_STATUS, headers=headers).status_code == 200


def test_a_cookie_can_carry_the_token_where_that_is_set(connections: Connections, served: Served) -> None:
    cookie = {"cookie": f"theme=dark; sso={token()}"}
    with served.bare() as browser:
        refused(browser.get(SESSION_STATUS, headers=cookie), 401, "UNAUTHENTICATED")
    with serving(connections, jwt_cookie="sso") as other, other.bare() as browser:
        assert browser.get(SESSION_STATUS, headers=cookie).status_code == 200
        refused(browser.get(SESSION_STATUS, headers={"cookie": "sso=nonsense"}), 401, "UNAUTHENTICATED")


# ---- pages of other origins ------------------------------------------------------------------------------------------


def test_a_page_of_another_site_cannot_use_the_browsers_password(served: Served) -> None:
    body = {"company_sso_id": account()}
    for foreign in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": served.url},
    ):
        refused(served.client.post(ROLLBACK, json=body, headers=foreign), 403, "CROSS_SITE_REQUEST")
        refused(served.client.put("/console/api/flag", json={}, headers=foreign), 403, "CROSS_SITE_REQUEST")
    for own in ({}, {"origin": served.url, "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        refused(served.client.post(ROLLBACK, json=body, headers=own), 404, "JOB_NOT_FOUND")


def test_pages_that_are_named_may_show_the_import(served: Served) -> None:
    with served.bare(headers=served.session()) as browser:
        for origin in ("https://app.example", "https://b.example"):
            answer = browser.get(SESSION_STATUS, headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert "Origin" in answer.headers["vary"]
        stranger = browser.get(SESSION_STATUS, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
    with served.bare() as browser:
        asks = {"origin": "https://app.example", "access-control-request-method": "GET"}
        allowed = browser.options(SESSION_STATUS, headers=asks)
        assert (allowed.status_code, allowed.content) == (204, b"")
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        assert browser.options(SESSION_STATUS, headers={**asks, "origin": "https://evil.example"}).status_code == 401
        assert browser.options(STATUS, headers=asks).status_code == 401
        refused(browser.get(SESSION_STATUS, headers={"origin": "https://app.example"}), 401, "UNAUTHENTICATED")


# ---- envelopes, sizes, headers ---------------------------------------------------------------------------------------


def test_whatever_goes_wrong_has_the_envelope(served: Served) -> None:
    client = served.client
    refused(client.get("/no/such/path"), 404, "NOT_FOUND")
    refused(client.get("/private/no/such/path"), 404, "NOT_FOUND")
    refused(client.get("/console/no-such-file.js"), 404, "NOT_FOUND")
    refused(client.get("/console/../../settings.py"), 404, "NOT_FOUND")
    refused(client.get("/assets/%2e%2e/%2e%2e/settings.py"), 404, "NOT_FOUND")
    answer = client.delete(ROLLBACK)
    refused(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"
    refused(client.get(ROLLBACK), 405, "METHOD_NOT_ALLOWED")
    meta = refused(
        client.post(ROLLBACK, content=b"{no", headers={"content-type": "application/json"}), 400, "VALIDATION_ERROR"
    )
    assert meta["errors"] == [{"field": "", "message": "this is not JSON"}]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        refused(client.post(ROLLBACK, content=b"{}", headers={"content-type": kind}), 415, "UNSUPPORTED_MEDIA_TYPE")
    refused(client.post(ROLLBACK, content=b"{}"), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_body_over_the_limit_is_not_read(served: Served) -> None:
    headers = {"content-type": "application/json"}
    refused(served.client.post(ROLLBACK, content=b" " * 10_001, headers=headers), 413, "BODY_TOO_LARGE")
    parts = (b" " * 1000 for _ in range(11))  # sent in chunks: its length is known only when it is all there
    refused(served.client.post(ROLLBACK, content=parts, headers=headers), 413, "BODY_TOO_LARGE")
    with served.bare() as stranger:  # nobody's body is looked at before its sender is known
        refused(stranger.post(ROLLBACK, content=b" " * 10_001, headers=headers), 401, "UNAUTHENTICATED")
    assert served.client.get("/healthz").status_code == 200


def logged(caplog: pytest.LogCaptureFixture, name: str, request_id: str) -> logging.LogRecord:
    """Return the line about a request; it is written once the answer is on its way."""

    def found() -> list[logging.LogRecord]:
        return [each for each in caplog.records if (each.name, each.__dict__.get("request_id")) == (name, request_id)]

    return wait_until(found, "the line is written")[0]


def test_a_defect_is_logged_with_its_trace_and_answered_without(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(routes, "status_of", broken)
    with caplog.at_level(logging.ERROR, "ops.control.edge"):
        answer = served.client.get(STATUS, headers={"x-request-id": "find-me"})
        record = logged(caplog, "ops.control.edge", "find-me")
    meta = refused(answer, 500, "INTERNAL_ERROR")
    assert meta == {"request_id": "find-me"}
    assert "secret" not in answer.text
    assert str(record.exc_info[1]) == "secret detail"


def test_an_access_log_line_says_what_was_asked_and_nothing_of_whom(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ops.control.access"):
        served.client.get(f"{STATUS}-somebody", headers={"x-request-id": "r-1"})
        record = logged(caplog, "ops.control.access", "r-1")
    said = {name: record.__dict__[name] for name in ("method", "route", "status", "bytes")}
    assert said == {
        "method": "GET",
        "route": "/private/activity_logs/crm_migration/status",
        "status": 200,
        "bytes": len('{"status":"not_started"}'),
    }
    everything = " ".join(str(value) for value in record.__dict__.values())
    for secret in ("somebody", USER, PASSWORD, "127.0.0.1:"):
        assert secret not in everything


@pytest.mark.parametrize("given", ["sane-1.2:3/4_5+6=7@8", "x" * 128])
def test_a_sane_request_id_is_kept(served: Served, given: str) -> None:
    assert served.client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b'a"b', b"<script>", "ü".encode()])
def test_a_request_id_that_is_not_is_replaced(served: Served, given: bytes) -> None:
    made = served.client.get("/healthz", headers={b"x-request-id": given}).headers["x-request-id"]
    assert len(made) == 32


def test_every_answer_has_the_security_headers(served: Served) -> None:
    for path in ("/healthz", "/nothing", "/private/x", "/assets/crm-migration-status.js"):
        headers = served.client.get(path).headers
        assert headers["content-security-policy"] == CSP
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert "unsafe" not in CSP


def test_the_banner_is_a_file_that_may_be_kept_for_a_while(served: Served) -> None:
    with served.bare() as page:
        first = page.get("/assets/crm-migration-status.js")
        assert first.status_code == 200
        assert first.headers["content-type"].startswith("text/javascript")
        assert first.headers["cache-control"] == "public, max-age=300"
        assert first.headers["access-control-allow-origin"] == "*"
        assert first.headers["cross-origin-resource-policy"] == "cross-origin"
        again = page.get("/assets/crm-migration-status.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_the_bare_address_leads_to_the_console(served: Served) -> None:
    answer = served.client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/console/")


# ---- health ----------------------------------------------------------------------------------------------------------


def test_a_database_that_is_away_is_said_and_the_process_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SERVER_SELECTION_TIMEOUT_MS", 200)
    connections = Connections(mongodb_url=NOWHERE, mongodb_database="nowhere")
    with serving(connections) as served:
        assert served.client.get("/healthz").json() == {"status": "ok"}
        answer = served.client.get("/readyz")
        refused(answer, 503, "NOT_READY")
        assert "MongoDB" in answer.json()["message"]
        for ask in (
            lambda: served.client.get(STATUS),
            lambda: served.client.post(ROLLBACK, json={"company_sso_id": "a"}),
            lambda: served.client.get("/console/api/account?account=a"),
        ):
            found: httpx.Response = ask()
            refused(found, 503, "SERVICE_UNAVAILABLE")
            assert found.headers["retry-after"]
        metrics = served.client.get("/metrics")
        assert metrics.status_code == 200
        assert "crm_control_jobs_known 0.0" in metrics.text


def test_a_schema_that_is_not_this_releases_is_not_ready(served: Served) -> None:
    answer = served.client.get("/readyz")
    refused(answer, 503, "NOT_READY")
    assert "crm-replay migrate up" in answer.json()["message"]
