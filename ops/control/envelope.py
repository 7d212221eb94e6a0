"""The error envelope, the same from every endpoint, and the codes in it. Pure but for Starlette's response classes."""

import re
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RespCode(StrEnum):
    """What went wrong, for programs. Clients branch on these: add values, never rename one."""

    VALIDATION_ERROR = "VALIDATION_ERROR"  # 400, meta.errors names the fields
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"  # 400
    UNAUTHENTICATED = "UNAUTHENTICATED"  # 401
    PERMISSION_DENIED = "PERMISSION_DENIED"  # 403
    FOREIGN_ACCOUNT = "FOREIGN_ACCOUNT"  # 403
    CROSS_SITE_REQUEST = "CROSS_SITE_REQUEST"  # 403
    NOT_FOUND = "NOT_FOUND"  # 404
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"  # 405
    CONFIRMATION_MISMATCH = "CONFIRMATION_MISMATCH"  # 409, the account was not typed as it is
    BODY_TOO_LARGE = "BODY_TOO_LARGE"  # 413
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"  # 415
    TOO_MANY_FAILURES = "TOO_MANY_FAILURES"  # 429
    INTERNAL_ERROR = "INTERNAL_ERROR"  # 500
    ROLLBACK_FAILED = "ROLLBACK_FAILED"  # 500
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"  # 503
    TOO_MANY_CLIENTS = "TOO_MANY_CLIENTS"  # 503
    NOT_READY = "NOT_READY"  # 503


OF_STATUS: Mapping[int, RespCode] = {
    400: RespCode.VALIDATION_ERROR,
    401: RespCode.UNAUTHENTICATED,
    403: RespCode.PERMISSION_DENIED,
    404: RespCode.NOT_FOUND,
    405: RespCode.METHOD_NOT_ALLOWED,
    413: RespCode.BODY_TOO_LARGE,
    415: RespCode.UNSUPPORTED_MEDIA_TYPE,
    429: RespCode.TOO_MANY_FAILURES,
    503: RespCode.SERVICE_UNAVAILABLE,
}


class FieldError(BaseModel):
    """What is wrong with a field of the request."""

    field: str = Field(description="where it is: `records.3.category`; `` for the body as a whole")
    message: str


class Meta(BaseModel):
    """What support needs first; some refusals add data for programs, such as `coverage_pct`."""

    model_config = ConfigDict(extra="allow")

    request_id: str
    errors: list[FieldError] | None = Field(None, description="only with VALIDATION_ERROR")


class ErrorEnvelope(BaseModel):
    """Every answer that is not a success."""

    status: Literal["error"] = "error"
    resp_code: str = Field(description="for programs: FLAG_DISABLED, JOB_ALREADY_RUNNING, …")
    message: str = Field(description="for people")
    meta: Meta


class ApiError(Exception):
    """An answer that is not a success; its text is shown to the client."""

    def __init__(
        self,
        status: int,
        resp_code: str,
        message: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`errors` are fields and what is wrong with each, `meta` what a program may want to know besides."""
        super().__init__(message)
        self.status = status
        self.resp_code = str(resp_code)
        self.message = message
        self.errors = tuple(errors)
        self.meta = dict(meta or {})
        self.headers = dict(headers or {})


def request_id_of(header: bytes | None) -> str:
    """Return the client's request id if it can safely be logged and sent back, else a new one."""
    if header is not None and _SANE_REQUEST_ID.fullmatch(header):
        return header.decode("ascii")
    return uuid.uuid4().hex


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """Return the envelope as JSON takes it."""
    meta: dict[str, Any] = {**error.meta, "request_id": request_id}
    if error.errors:
        meta["errors"] = [{"field": field, "message": message} for field, message in error.errors]
    return {"status": "error", "resp_code": error.resp_code, "message": error.message, "meta": meta}


def error_response(error: ApiError, request_id: str) -> Response:
    """Return the envelope as a response."""
    return json_response(error_body(error, request_id), error.status, error.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON; times are RFC 3339 with `Z`."""
    body = orjson.dumps(content, option=orjson.OPT_UTC_Z)
    return Response(body, status, dict(headers or {}), media_type="application/json")
