"""The application: every endpoint, the pages, and the layer that all requests pass (edge.py)."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from ops.control.activity_logs import RECORDS_MAX
from ops.control.auth import BasicCredentials, tokens_of
from ops.control.backend import Backend
from ops.control.console_api import API_PREFIX, console_routes
from ops.control.edge import BASIC_PREFIXES, PUBLIC_ASSETS, SESSION_PREFIXES, Edge, under
from ops.control.envelope import OF_STATUS, ApiError, RespCode, error_response
from ops.control.events import Events
from ops.control.http_metrics import HttpMetrics
from ops.control.rollbacks import Rollbacks
from ops.control.routes import browser_routes, own_routes, private_routes
from ops.control.settings import ControlSettings

WEB = Path(__file__).parent / "web"
CONSOLE_FILES = WEB / "console"
EMBEDDED_FILES = WEB / "embed"  # what customer pages load
EMBEDDED_MAX_AGE_S = 300
VERSION = installed_version("crm-audit-replay")
DESCRIPTION = """Moves a CRM's audit history into the customer data platform's activity logs, account by account.

Errors are one envelope everywhere: `resp_code` is for programs, `message` for people, `meta.request_id` for both. A
request's id is taken from `X-Request-Id` if it is at most 128 letters, digits and `._:/+=@-`, else made."""


class ControlApp:
    """The ASGI application, with the parts to stop before the server."""

    def __init__(self, settings: ControlSettings, backend: Backend) -> None:
        """`backend` is closed with the application."""
        self.backend = backend
        self.metrics = HttpMetrics()
        self.events = Events(clients_max=settings.sse_clients_max, every_s=settings.watch_every_s, metrics=self.metrics)
        self.api = _api(settings, backend, self.metrics, self.events)
        self._edge = Edge(
            self.api,
            settings=settings,
            basic=BasicCredentials(settings.credentials()),
            tokens=tokens_of(settings),
            metrics=self.metrics,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        await self._edge(scope, receive, send)

    def stop(self) -> None:
        """Begin to stop: live events end, roll backs stop after their present batch, /readyz reports it."""
        self.backend.stopping.set()
        self.events.stop()


def _api(settings: ControlSettings, backend: Backend, metrics: HttpMetrics, events: Events) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        backend.close()

    api = FastAPI(
        title="CRM audit replay: control plane",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # served below, as it is checked by the tests
    )
    rollbacks = Rollbacks(backend)
    api.include_router(private_routes(backend, rollbacks))
    api.include_router(browser_routes(backend, settings))
    api.include_router(console_routes(backend, rollbacks, events, VERSION))
    api.include_router(own_routes(backend, metrics))
    _serve_openapi(api)
    api.router.routes.append(_Pages("/console", _Files(CONSOLE_FILES, "no-cache"), name="console"))
    api.mount(PUBLIC_ASSETS.rstrip("/"), _Files(EMBEDDED_FILES, f"public, max-age={EMBEDDED_MAX_AGE_S}"), name="assets")
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _defect)
    return api


class _Pages(Mount):
    """The console's files: all below its path but the API, whose addresses know their own methods."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if under(scope["path"], (API_PREFIX,)):
            return Match.NONE, {}
        return super().matches(scope)


class _Files(StaticFiles):
    """Files of a directory, with ETag; a directory is its index.html."""

    def __init__(self, directory: Path, cache_control: str) -> None:
        super().__init__(directory=directory, html=True, check_dir=False)
        self._cache_control = cache_control

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = self._cache_control
        if isinstance(response, FileResponse) and response.media_type == "application/javascript":
            response.headers["content-type"] = "text/javascript; charset=utf-8"
        return response


# ---- errors ----------------------------------------------------------------------------------------------------------


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _envelope(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "too_long" and tuple(one["loc"]) == ("body", "records") for one in found):
        return _envelope(
            request,
            ApiError(
                400,
                RespCode.BATCH_TOO_LARGE,
                f"at most {RECORDS_MAX} records a request",
                errors=[("records", f"at most {RECORDS_MAX}")],
            ),
        )
    fields = [(_place(one), _problem(one)) for one in found]
    first = ": ".join(part for part in fields[0] if part) if fields else "the request is not valid"
    return _envelope(request, ApiError(400, RespCode.VALIDATION_ERROR, first, errors=fields))


def _place(error: Mapping[str, Any]) -> str:
    """Return the dotted name of the field that an error is about, "" for the body as a whole.

    The first part of a place is body, query or header. The second, of a body that is no JSON, is a position in it.
    """
    if error["type"] == "json_invalid":
        return ""
    return ".".join(str(part) for part in error["loc"][1:])


def _problem(error: Mapping[str, Any]) -> str:
    """Return pydantic's message, which names the rule and does not repeat the value."""
    if error["type"] == "json_invalid":
        return "this is not JSON"
    return str(error["msg"]).removeprefix("Value error, ")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    resp_code = OF_STATUS.get(error.status_code, RespCode.INTERNAL_ERROR)
    message = {404: "there is no such endpoint", 405: "the endpoint does not support this method"}.get(
        error.status_code, str(error.detail)
    )
    return _envelope(request, ApiError(error.status_code, resp_code, message, headers=error.headers))


async def _defect(request: Request, _error: Exception) -> Response:
    # Starlette raises it again behind this answer; edge.py writes it to the log.
    return _envelope(request, ApiError(500, RespCode.INTERNAL_ERROR, "something went wrong here; it is logged"))


def _envelope(request: Request, error: ApiError) -> Response:
    request.scope["state"]["resp_code"] = error.resp_code
    return error_response(error, request.state.request_id)


# ---- OpenAPI ---------------------------------------------------------------------------------------------------------


def _serve_openapi(api: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _openapi(api)
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]

    @api.get("/openapi.json", include_in_schema=False)
    async def served() -> dict[str, Any]:
        return api.openapi()


def _openapi(api: FastAPI) -> dict[str, Any]:
    """Return FastAPI's description, with each path's authentication and without answers that this API never gives."""
    found = get_openapi(
        title=api.title, version=api.version, description=api.description, routes=api.routes, summary=None
    )
    found["components"]["securitySchemes"] = {
        "basic": {"type": "http", "scheme": "basic", "description": "services and operators"},
        "session": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "the customer's session: names the tenant and the permissions",
        },
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            if under(path, BASIC_PREFIXES):
                operation["security"] = [{"basic": []}]
            elif under(path, SESSION_PREFIXES):
                operation["security"] = [{"session": []}]
            _drop_framework_errors(operation["responses"])
    for name in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(name, None)
    return found


def _drop_framework_errors(responses: dict[str, Any]) -> None:
    """Take out the 422 that FastAPI describes and this API answers with 400."""
    schema = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
