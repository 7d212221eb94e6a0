"""The codec that fits the surroundings: single-object framing, or a Confluent schema registry's ids.

The one module of the contract that talks to a server: at a process's start, and where a value on a topic names a schema
that the process has not met before.
"""

import json
from contextlib import closing
from functools import cache, partial

import httpx

from schemas.codec import Codec, schema_name, schema_of
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.records import RECORD_TYPES, Record
from schemas.secrets import about, shown

REGISTRY_TIMEOUT_S = 10.0


@cache
def _codec() -> Codec:
    """Return the codec without a registry: a process, and what is forked from it, has the schemas compiled once."""
    return Codec()


def codec_for(schema_registry_url: str) -> Codec:
    """Return a codec that frames for the registry at this address, or single objects if it is empty.

    It reads both. Registers every schema under the subject `<namespace>.<name>` (the record name strategy), which is
    idempotent.
    Raises ServiceUnreachableError, or BadInputError if the registry refuses a schema as incompatible.
    """
    if not schema_registry_url:
        return _codec()
    ids: dict[type[Record], int] = {}
    with http_client("SCHEMA_REGISTRY_URL", schema_registry_url, REGISTRY_TIMEOUT_S) as client:
        for record_type in RECORD_TYPES:
            schema = schema_of(record_type)
            subject = f"{schema['namespace']}.{schema['name']}"
            try:
                answer = client.post(
                    f"/subjects/{subject}/versions",
                    headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
                    content=json.dumps({"schemaType": "AVRO", "schema": json.dumps(schema)}),
                )
            except httpx.HTTPError as error:
                raise ServiceUnreachableError(
                    f"the schema registry at {shown(schema_registry_url)} does not answer ({type(error).__name__})",
                    "check SCHEMA_REGISTRY_URL, or leave it empty for Avro single-object encoding",
                ) from error
            if answer.status_code != httpx.codes.OK:
                answered = f"{answer.status_code}: {answer.text[:99]}"
                raise BadInputError(
                    f"the schema registry refused {schema_name(record_type)} ({answered})",
                    "its compatibility rule must allow the subject's present versions",
                )
            ids[record_type] = int(answer.json()["id"])
    return Codec(ids, partial(_schema_in, schema_registry_url))


def _schema_in(schema_registry_url: str, schema_id: int) -> str | None:
    """Return a registry's schema; by a connection of its own, for a codec lives on in the forks of its process."""
    with closing(SchemaLookup(schema_registry_url)) as look_up:
        return look_up(schema_id)


def http_client(variable: str, url: str, timeout_s: float) -> httpx.Client:
    """Return a client of the server at this address; raises BadInputError, naming the variable, if it is none."""
    try:
        return httpx.Client(base_url=url, timeout=timeout_s)
    except httpx.InvalidURL as error:
        raise BadInputError(
            f"{variable} is not an address of HTTP ({about(error, url)})",
            "like http://host:port; percent-encode what a password has of / @ : ? #",
        ) from None


class SchemaLookup:
    """The Avro schemas of others, by the id in front of their values; each is asked for once."""

    def __init__(self, schema_registry_url: str) -> None:
        """Nothing is asked yet."""
        self._url = shown(schema_registry_url)
        self._client = http_client("SCHEMA_REGISTRY_URL", schema_registry_url, REGISTRY_TIMEOUT_S)
        self._schemas: dict[int, str] = {}

    def __call__(self, schema_id: int) -> str | None:
        """Return the schema as JSON text; None if the registry has none of this id, or no Avro one.

        Raises ServiceUnreachableError if it does not say: then nothing is known of the value, which has to wait.
        """
        known = self._schemas.get(schema_id)
        if known is not None:
            return known
        try:
            answer = self._client.get(f"/schemas/ids/{schema_id}")
        except httpx.HTTPError as error:
            raise ServiceUnreachableError(
                f"the schema registry at {self._url} does not answer ({type(error).__name__})",
                "check SCHEMA_REGISTRY_URL",
            ) from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None  # asked again the next time: it may be registered by then
        if answer.status_code != httpx.codes.OK:
            raise ServiceUnreachableError(
                f"the schema registry at {self._url} answers {answer.status_code}", "see why it does not serve schemas"
            )
        found = answer.json()
        if found.get("schemaType", "AVRO") != "AVRO" or not isinstance(found.get("schema"), str):
            return None
        schema: str = found["schema"]
        self._schemas[schema_id] = schema
        return schema

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
