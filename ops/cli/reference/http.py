"""Every endpoint of the control plane, from the OpenAPI document that it serves."""

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from ops.cli.reference.text import MADE, table
from ops.control.app import ControlApp
from ops.control.backend import Backend
from ops.control.settings import ControlSettings
from schemas.process.connections import Connections

HEAD = f"""# HTTP

{MADE} The running control plane serves the same as OpenAPI, with every model: `/openapi.json`.

Errors have one form everywhere: `{{"status": "error", "resp_code": …, "message": …, "meta": {{"request_id": …}}}}`.
"""
METHODS = ("get", "post", "put", "patch", "delete")


def page() -> str:
    """Return the page as Markdown."""
    document = _document()
    parts = [HEAD]
    for path, methods in document["paths"].items():
        parts += [_endpoint(method, path, methods[method], document) for method in METHODS if method in methods]
    return "".join(parts)


def _document() -> dict[str, Any]:
    """Return the control plane's OpenAPI document, without a server: it connects to nothing before a request."""
    settings = ControlSettings(basic_credentials=SecretStr("user:unused-password"))
    backend = Backend(settings, Connections(mongodb_url="mongodb://127.0.0.1:9/"))
    try:
        return ControlApp(settings, backend).api.openapi()
    finally:
        backend.close()


def _endpoint(method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    text = str(operation.get("description") or operation.get("summary") or "").strip()
    parameters = [
        (f"`{each['name']}`", each["in"], "yes" if each.get("required") else "", str(each.get("description", "")))
        for each in operation.get("parameters", ())
    ]
    parameters += [
        (f"`{name}`", "body", "yes" if name in model.get("required", ()) else "", str(field.get("description", "")))
        for model in [_body(operation, document)]
        for name, field in model.get("properties", {}).items()
    ]
    answers = [(code, str(answer.get("description", ""))) for code, answer in operation["responses"].items()]
    login = " or ".join(name for each in operation.get("security", ()) for name in each) or "none"
    given = "\n" + table(("parameter", "in", "required", "what"), parameters) if parameters else ""
    return (
        f"\n## `{method.upper()} {path}`\n\n{text}\n\nLogin: {login}.\n{given}\n{table(('answer', 'meaning'), answers)}"
    )


def _body(operation: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if name := str(schema.get("$ref", "")).rpartition("/")[2]:
        return dict(document["components"]["schemas"][name])
    return dict(schema)
