"""The layer that every request passes, before and after the application. ASGI.

In this order: a request id; CORS; authentication (closed by default: a guarded prefix requires a login
whether there is such a route or not); whether a foreign page sent it; its size and type. Then the application, and on
the way out: security headers, one access log line without personal data, the counters. Every exception becomes the
error envelope; its traceback goes to the log, never to the client.

The console's pages have this policy: scripts, styles, images and connections of its own origin only, nothing
inline. Styles made in scripts are constructed style sheets (`adoptedStyleSheets`), which the policy allows.
"""

import logging
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ops.control.auth import (
    BasicCredentials,
    BrowserSession,
    InvalidTokenError,
    KeysUnavailableError,
    SessionTokens,
    basic_of,
)
from ops.control.envelope import ApiError, RespCode, error_response, request_id_of
from ops.control.http_metrics import NO_ROUTE, HttpMetrics
from ops.control.rate_limit import FailureLimit
from ops.control.settings import ControlSettings

log = logging.getLogger(__name__)
access_log = logging.getLogger("ops.control.access")

BASIC_PREFIXES = ("/private", "/console")
SESSION_PREFIXES = ("/iag", "/v1")
PUBLIC_ASSETS = "/assets/"
METRICS_PATH = "/metrics"
REALM = 'Basic realm="crm-replay", charset="UTF-8"'
UNSAFE = frozenset(("POST", "PUT", "PATCH", "DELETE"))
WITH_BODY = frozenset(("POST", "PUT", "PATCH"))
CORS_MAX_AGE_S = 600
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
HSTS = "max-age=31536000"


class Edge:
    """The layer around the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ControlSettings,
        basic: BasicCredentials,
        tokens: SessionTokens | None,
        metrics: HttpMetrics,
    ) -> None:
        """`tokens` None: no session token is believed."""
        self._app = app
        self._settings = settings
        self._basic = basic
        self._tokens = tokens
        self._metrics = metrics
        self._origins = frozenset(settings.origins)
        window_s = settings.auth_failures_window_s
        self._user_failures = FailureLimit(settings.auth_failures_max, window_s)
        self._address_failures = FailureLimit(settings.auth_failures_address_max, window_s)
        self._token_failures = FailureLimit(settings.auth_failures_max, window_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; other protocols pass unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    # ---- authentication ----------------------------------------------------------------------------------------------

    async def admit(self, scope: Scope, headers: Headers) -> None:
        """Store the authenticated user in `scope["state"]`. Raises ApiError if there is none."""
        path: str = scope["path"]
        if under(path, BASIC_PREFIXES) or (path == METRICS_PATH and self._settings.metrics_need_auth):
            scope["state"]["user"] = self._user(scope, headers)
            self._refuse_foreign_pages(scope, headers)
        elif under(path, SESSION_PREFIXES):
            scope["state"]["session"] = await self._session(scope, headers)

    def _user(self, scope: Scope, headers: Headers) -> str:
        challenge = {"www-authenticate": REALM}
        header = headers.get("authorization")
        if header is None:
            raise ApiError(401, RespCode.UNAUTHENTICATED, "a user and a password are needed", headers=challenge)
        now, address = time.monotonic(), _address(scope)
        given = basic_of(header.encode("latin-1"))
        name = given[0][:200] if given else ""
        by_user = f"{address}\n{name}"
        wait_s = max(
            self._user_failures.retry_after_s(by_user, now), self._address_failures.retry_after_s(address, now)
        )
        if wait_s > 0:
            raise _too_many(wait_s)
        user = self._basic.user_of(*given) if given else None
        if user is None:
            self._user_failures.failed(by_user, now)
            self._address_failures.failed(address, now)
            self._metrics.auth_failures.labels("basic").inc()
            raise ApiError(401, RespCode.UNAUTHENTICATED, "the user or the password is wrong", headers=challenge)
        self._user_failures.succeeded(by_user)
        return user

    async def _session(self, scope: Scope, headers: Headers) -> BrowserSession:
        token = self._token(headers)
        if token is None:
            raise _unknown_session("a session is needed")
        if self._tokens is None:
            raise _unknown_session("session tokens are not accepted here: no key to verify them has been set")
        try:
            return await self._tokens.session_of(token)
        except KeysUnavailableError:
            raise ApiError(
                503, RespCode.SERVICE_UNAVAILABLE, "sessions cannot be verified just now", headers={"retry-after": "15"}
            ) from None
        except InvalidTokenError as error:
            # A signature cannot be guessed, so a valid token is never kept waiting: many customers share a gateway's
            # address. The limit only makes failures cheap to answer and easy to see.
            now, address = time.monotonic(), _address(scope)
            self._metrics.auth_failures.labels("session").inc()
            wait_s = self._token_failures.retry_after_s(address, now)
            if wait_s > 0:
                raise _too_many(wait_s) from None
            self._token_failures.failed(address, now)
            raise _unknown_session(str(error)) from None

    def _token(self, headers: Headers) -> str | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
        if self._settings.jwt_cookie and "cookie" in headers:
            try:
                found = SimpleCookie(headers["cookie"]).get(self._settings.jwt_cookie)
            except CookieError:
                return None
            return found.value if found is not None else None
        return None

    def _refuse_foreign_pages(self, scope: Scope, headers: Headers) -> None:
        """Raise ApiError for a change that another site's page requests: the browser adds the password by itself."""
        if scope["method"] not in UNSAFE:
            return
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:  # the browser's own word, which holds behind a gateway that rewrites Host, too
            foreign = site not in ("same-origin", "none")
        else:
            foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        if foreign:
            raise ApiError(403, RespCode.CROSS_SITE_REQUEST, "changes can only be made from the console's own pages")

    # ---- what is sent ------------------------------------------------------------------------------------------------

    def check_body(self, scope: Scope, headers: Headers) -> None:
        """Raise ApiError for a body that is too long by its own account, or no JSON."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.body_bytes_max:
            raise self.too_large()
        if scope["method"] in WITH_BODY and (length not in ("", "0") or "transfer-encoding" in headers):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, RespCode.UNSUPPORTED_MEDIA_TYPE, "send JSON, as content-type: application/json")

    def too_large(self) -> ApiError:
        """Return the answer to a body over the limit."""
        limit = self._settings.body_bytes_max
        return ApiError(
            413, RespCode.BODY_TOO_LARGE, f"the body is over {limit:,} bytes", headers={"connection": "close"}
        )

    def limited(self, receive: Receive) -> Receive:
        """Return a `receive` that counts bytes; over the limit it raises the error of a 413."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._settings.body_bytes_max:
                # A Starlette exception: FastAPI treats any other one that is raised here as a broken body.
                raise HTTPException(413, self.too_large().message, {"connection": "close"})
            return message

        return counted

    # ---- pages of other origins --------------------------------------------------------------------------------------

    def cors(self, scope: Scope, headers: Headers) -> dict[str, str]:
        """Return the headers that let a page of an origin we know read the answer."""
        path: str = scope["path"]
        if path.startswith(PUBLIC_ASSETS):  # public, the same for every client, and without credentials
            return {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}
        if not self._origins or not under(path, SESSION_PREFIXES):
            return {}
        allowed = {"vary": "Origin"}
        origin = headers.get("origin")
        if origin in self._origins:
            allowed |= {
                "access-control-allow-origin": origin or "",
                "access-control-expose-headers": "x-request-id",
                "cross-origin-resource-policy": "cross-origin",
            }
            if self._settings.jwt_cookie:
                allowed["access-control-allow-credentials"] = "true"
        return allowed

    def preflight(self, scope: Scope, headers: Headers) -> dict[str, str] | None:
        """Return the headers of the answer to a CORS pre-flight request, or None if it is none of a page we know."""
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        allowed = self.cors(scope, headers)
        if "access-control-allow-origin" not in allowed or not under(scope["path"], SESSION_PREFIXES):
            return None
        return {
            **allowed,
            "access-control-allow-methods": "GET",
            "access-control-allow-headers": "authorization, x-request-id",
            "access-control-max-age": str(CORS_MAX_AGE_S),
        }

    # ---- afterwards --------------------------------------------------------------------------------------------------

    def finish(self, scope: Scope, status: int, seconds: float, sent_bytes: int, *, stream: bool) -> None:
        """Count the request and write its line."""
        route = getattr(scope.get("route"), "path", None) or NO_ROUTE
        self._metrics.answered(scope["method"], route, status, seconds, stream=stream)
        access_log.info(
            "request",
            extra={
                "request_id": scope["state"]["request_id"],
                "method": scope["method"] if len(scope["method"]) < 10 else "OTHER",
                "route": route,  # the template: paths and queries may hold account ids
                "status": status,
                "resp_code": scope["state"].get("resp_code", ""),
                "duration_ms": round(seconds * 1000, 1),
                "bytes": sent_bytes,
            },
        )


class _Exchange:
    """One request and its answer."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge = edge
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = Headers(scope=scope)
        self._extra: dict[str, str] = {}
        self._status = 0
        self._sent_bytes = 0
        self._stream = False

    async def run(self) -> None:
        """Answer the request."""
        edge, scope = self._edge, self._scope
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        request_id = request_id_of(given)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        began = time.perf_counter()
        metrics = edge._metrics  # noqa: SLF001 - two halves of one layer
        metrics.in_progress.inc()
        try:
            try:
                self._extra = edge.cors(scope, self._headers)
                allowed = edge.preflight(scope, self._headers)
                if allowed is not None:
                    self._extra = allowed
                    await self._answer_empty(204)
                    return
                await edge.admit(scope, self._headers)
                edge.check_body(scope, self._headers)
                await edge._app(scope, edge.limited(self._receive), self.send)  # noqa: SLF001
            except ApiError as error:
                await self._answer(error)
            except Exception:
                log.exception("a request failed", extra={"request_id": request_id})
                await self._answer(ApiError(500, RespCode.INTERNAL_ERROR, "something went wrong here; it is logged"))
        finally:
            metrics.in_progress.dec()
            edge.finish(
                scope, self._status or 499, time.perf_counter() - began, self._sent_bytes, stream=self._stream
            )  # 499, as nginx has it: the client went away before there was an answer

    async def _answer(self, error: ApiError) -> None:
        if self._status:
            return  # the answer had begun: all that can be done is to end it, and the server does
        self._scope["state"]["resp_code"] = error.resp_code
        response = error_response(error, self._scope["state"]["request_id"])
        await response(self._scope, self._receive, self.send)

    async def _answer_empty(self, status: int) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": []})
        await self.send({"type": "http.response.body", "body": b""})

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on; the first one gets its headers."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._add_headers(MutableHeaders(raw=message["headers"]))
        elif message["type"] == "http.response.body":
            self._sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        self._stream = headers.get("content-type", "").startswith("text/event-stream")
        wanted: dict[str, Any] = {**SECURITY_HEADERS, "cache-control": "no-store"}
        if self._scope.get("scheme") == "https":
            wanted["strict-transport-security"] = HSTS
        for name, value in wanted.items():
            headers.setdefault(name, value)
        for name, value in self._extra.items():
            headers[name] = value
        headers["x-request-id"] = self._scope["state"]["request_id"]


def under(path: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a path is one of these, or below."""
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _unknown_session(message: str) -> ApiError:
    return ApiError(401, RespCode.UNAUTHENTICATED, message, headers={"www-authenticate": 'Bearer realm="crm-replay"'})


def _too_many(wait_s: float) -> ApiError:
    return ApiError(
        429,
        RespCode.TOO_MANY_FAILURES,
        "too many failed logins; wait a while",
        headers={"retry-after": str(int(wait_s) + 1)},
    )
