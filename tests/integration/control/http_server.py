"""A control plane on a real uvicorn, in a thread, for the tests that ask it over HTTP."""

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from ops.control.server import ControlServer, server_of
from ops.control.settings import ControlSettings
from schemas.process.connections import Connections

USER, PASSWORD = "a-service", "correct-horse-battery"
SHARED_KEY = "an-hmac-key-of-forty-characters-or-more!"
ISSUER, AUDIENCE = "https://sso.example", "crm-import"
PERMISSION = "customers_customers_view"
START_TIMEOUT_S = 30.0


@dataclass
class Served:
    """A server that runs, and a client of it with the right password."""

    url: str
    server: ControlServer
    client: httpx.Client

    def bare(self, **options: Any) -> httpx.Client:
        """Return a client without a password."""
        # Plain HTTP: without `verify=False` every client would read all certificates of the system first.
        return httpx.Client(base_url=self.url, timeout=60, verify=False, trust_env=False, **options)

    def session(self, **claims: Any) -> dict[str, str]:
        """Return the header with a session token."""
        return bearer(token(**claims))


def token(key: Any = SHARED_KEY, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a session token that is good unless a claim given here makes it bad; None takes a claim away."""
    known: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 600,
        "company_sso_id": "nobody",
        "permissions": [PERMISSION],
    }
    wanted = {name: value for name, value in {**known, **claims}.items() if value is not None}
    return jwt.encode(wanted, key, algorithm, headers)


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@contextmanager
def serving(connections: Connections, **settings: Any) -> Iterator[Served]:
    """Give a control plane that runs."""
    given: dict[str, Any] = {
        "port": 0,
        "basic_credentials": f"{USER}:{PASSWORD}",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "shutdown_grace_s": 10,
        "watch_every_s": 0.1,
    }
    if not settings.keys() & {"jwt_jwks_url", "jwt_jwks_path"}:
        given["jwt_shared_key"] = SHARED_KEY
    server = server_of(ControlSettings.load(**{**given, **settings}), connections)
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="control", daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server is not up in time"
            time.sleep(0.01)
        with httpx.Client(base_url=url, auth=(USER, PASSWORD), timeout=60) as client:
            yield Served(url, server, client)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def account(name: str = "account") -> str:
    """Return an account id that no other test has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def refused(answer: httpx.Response, status: int, resp_code: str) -> dict[str, Any]:
    """Return the envelope's `meta` of a refusal, which is as it should be."""
    body = answer.json()
    assert (answer.status_code, body["resp_code"]) == (status, resp_code), answer.text
    assert body.keys() == {"status", "resp_code", "message", "meta"}
    assert body["status"] == "error"
    assert body["message"]
    assert body["meta"]["request_id"] == answer.headers["x-request-id"]
    meta: dict[str, Any] = body["meta"]
    return meta
