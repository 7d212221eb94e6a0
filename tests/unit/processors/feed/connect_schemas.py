"""What Kafka Connect's converters make of its schemas: the JSON one's text into the Avro schema and values of another.

The Avro side follows the rules that converters share: an optional type is a union with null, a schema's name is
`connect.name`, a struct is a record of that name, and the second use of a record is its name alone.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import fastavro

from schemas.source.mapping import SourceMapping, parse

PRIMITIVES = {"int8": "int", "int16": "int", "int32": "int", "int64": "long", "float32": "float", "float64": "double",
              "boolean": "boolean", "string": "string", "bytes": "bytes"}  # fmt: skip


def avro_schema(connect: dict[str, Any]) -> Any:
    """Return the Avro schema of a Connect schema as the JSON converter prints it."""
    return _type(connect, set(), "")


def _type(connect: dict[str, Any], known: set[str], space: str) -> Any:
    kind: Any
    if connect["type"] == "struct":
        namespace, _, name = connect["name"].rpartition(".")
        if connect["name"] in known:
            kind = name if namespace == space else connect["name"]
        else:
            known.add(connect["name"])
            fields = [{"name": field["field"], "type": _type(field, known, namespace)} for field in connect["fields"]]
            for field in fields:
                if isinstance(field["type"], list) and field["type"][0] == "null":
                    field["default"] = None
            kind = {"type": "record", "name": name, "fields": fields, "connect.name": connect["name"]}
            if namespace != space:
                kind["namespace"] = namespace
    else:
        kind = {"type": PRIMITIVES[connect["type"]]}
        if "name" in connect:
            kind |= {"connect.name": connect["name"], "connect.version": connect.get("version", 1)}
        if "parameters" in connect:
            kind["connect.parameters"] = connect["parameters"]
        if kind.keys() == {"type"}:
            kind = kind["type"]
    return ["null", kind] if connect.get("optional") else kind


def as_avro(value: bytes, schema_id: int) -> tuple[str, bytes]:
    """Return the Avro schema's text, and the framed value, of a value that the JSON converter wrote with its schema."""
    both = json.loads(value)
    schema = avro_schema(both["schema"])
    stream = BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), _value(both["payload"], both["schema"]))
    return json.dumps(schema), b"\x00" + schema_id.to_bytes(4, "big") + stream.getvalue()


def _value(value: Any, schema: dict[str, Any]) -> Any:
    if value is not None and schema["type"] == "struct":
        return {field["field"]: _value(value[field["field"]], field) for field in schema["fields"]}
    return b64decode(value) if value is not None and schema["type"] == "bytes" else value


MULTI_TENANT = """
source: {account: {column: account_id, query: "SELECT id FROM a WHERE company_sso_id = %(company_sso_id)s", ...}}
scope: [Crm::Deal]
categories: {Crm::Deal: {category: deal}}
"""
ROW: Mapping[str, Any] = {
    "id": 17,
    "auditable_type": "Crm::Deal",
    "auditable_id": 7,
    "associated_type": None,
    "associated_id": None,
    "user_type": "User",
    "user_id": 3,
    "username": None,
    "action": "update",
    "audited_changes": "---\nname:\n- a\n- b\n",
    "version": 2,
    "comment": None,
    "remote_address": "192.0.2.1",
    "request_uuid": "8f14e45f-ceea-467f-a8f5-5f1a3f0c7a10",
    "created_at": 1_700_000_000_123_456,
}


def multi_tenant(setting: str) -> SourceMapping:
    """Return the mapping of a table of several accounts, with one more setting of its account column."""
    return parse(MULTI_TENANT.replace("...", setting), "m.yaml")
