"""The configured codec: single-object framing, or a Confluent schema registry's ids.

The only module that queries a registry: at a process's start, and for a schema id on a topic that is not cached.
"""

import json
from contextlib import closing
from functools import cache, partial
from typing import Any

import httpx

from schemas.codec import Codec, schema_name, schema_of
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.process.waiting import Deadline
from schemas.records import RECORD_TYPES, Record
from schemas.secrets import about, shown

REGISTRY_TIMEOUT_S = 10.0  # of each answer as a whole, also a slow stream
ANSWER_BYTES_MAX = 8 * 1024 * 1024
SCHEMA_IDS = range(2**32)  # a frame has four bytes for one


@cache
def _codec() -> Codec:
    """Return the codec without a registry: a process and its forks compile the schemas once."""
    return Codec()


def codec_for(schema_registry_url: str) -> Codec:
    """Return a codec that frames for the registry at this address, or single objects if it is empty.

    It decodes both. Registers every schema under the subject `<namespace>.<name>` (the record name strategy), which is
    idempotent. Raises ServiceUnreachableError, or BadInputError if the registry refuses a schema as incompatible.
    """
    if not schema_registry_url:
        return _codec()
    ids: dict[type[Record], int] = {}
    with http_client("SCHEMA_REGISTRY_URL", schema_registry_url, REGISTRY_TIMEOUT_S) as client:
        for record_type in RECORD_TYPES:
            schema = schema_of(record_type)
            subject = f"{schema['namespace']}.{schema['name']}"
            status, text = _request(
                client,
                schema_registry_url,
                "POST",
                f"/subjects/{subject}/versions",
                headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
                content=json.dumps({"schemaType": "AVRO", "schema": json.dumps(schema)}),
            )
            if status != httpx.codes.OK:
                raise BadInputError(
                    f"the schema registry refused {schema_name(record_type)} ({status}: {text[:99]})",
                    "its compatibility rule must allow the subject's present versions",
                )
            schema_id = _object(text, schema_registry_url).get("id")
            if type(schema_id) is not int or schema_id not in SCHEMA_IDS:
                raise _no_registry(schema_registry_url)
            ids[record_type] = schema_id
    return Codec(ids, partial(_schema_in, schema_registry_url))


def _schema_in(schema_registry_url: str, schema_id: int) -> str | None:
    """Return a registry's schema; by a connection of its own, as forked processes inherit the codec."""
    with closing(SchemaLookup(schema_registry_url)) as look_up:
        return look_up(schema_id)


def http_client(variable: str, url: str, timeout_s: float) -> httpx.Client:
    """Return a client of the server at this URL; raises BadInputError, naming the variable, for an invalid one."""
    try:
        return httpx.Client(base_url=url, timeout=timeout_s)
    except httpx.InvalidURL as error:
        raise BadInputError(
            f"{variable} is not an HTTP URL ({about(error, url)})",
            "like http://host:port; percent-encode / @ : ? # in a password",
        ) from None


def _request(client: httpx.Client, url: str, method: str, path: str, **request: Any) -> tuple[int, str]:
    """Return the status and the text of a registry's answer.

    Raises ServiceUnreachableError if there is none, if it takes too long, or if it is too large for a registry's.
    """
    deadline, body = Deadline(REGISTRY_TIMEOUT_S), bytearray()
    try:
        with client.stream(method, path, **request) as answer:
            for part in answer.iter_bytes():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise _no_registry(url)
                if deadline.passed:
                    raise httpx.ReadTimeout("the answer does not end")
    except httpx.HTTPError as error:
        raise ServiceUnreachableError(
            f"the schema registry at {shown(url)} does not answer ({type(error).__name__})",
            "check SCHEMA_REGISTRY_URL, or leave it empty for Avro single-object encoding",
        ) from error
    return answer.status_code, body.decode("utf-8", "replace")


def _object(text: str, url: str) -> dict[str, Any]:
    """Return the JSON object of an answer; raises ServiceUnreachableError for another, as of a proxy or log-in page."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_registry(url) from None
    if not isinstance(found, dict):
        raise _no_registry(url)
    return found


def _no_registry(url: str) -> ServiceUnreachableError:
    return ServiceUnreachableError(
        f"what answers at {shown(url)} is no schema registry", "check SCHEMA_REGISTRY_URL, and what is in front of it"
    )


class SchemaLookup:
    """The Avro schemas of other writers, by the id in front of their values; each is cached."""

    def __init__(self, schema_registry_url: str) -> None:
        """Open the client; no request yet."""
        self._url = schema_registry_url
        self._client = http_client("SCHEMA_REGISTRY_URL", schema_registry_url, REGISTRY_TIMEOUT_S)
        self._schemas: dict[int, str] = {}

    def __call__(self, schema_id: int) -> str | None:
        """Return the schema as JSON text; None if the registry has none of this id, or no Avro one.

        Raises ServiceUnreachableError if the registry does not answer: then the value cannot be classified yet.
        """
        known = self._schemas.get(schema_id)
        if known is not None:
            return known
        status, text = _request(self._client, self._url, "GET", f"/schemas/ids/{schema_id}")
        if status == httpx.codes.NOT_FOUND:
            return None  # not cached: it may be registered later
        if status != httpx.codes.OK:
            raise ServiceUnreachableError(
                f"the schema registry at {shown(self._url)} answers {status}", "find out why it does not serve schemas"
            )
        found = _object(text, self._url)
        if found.get("schemaType", "AVRO") != "AVRO" or not isinstance(found.get("schema"), str):
            return None
        schema: str = found["schema"]
        self._schemas[schema_id] = schema
        return schema

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
