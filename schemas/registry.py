"""The codec that fits the surroundings: single-object framing, or a Confluent schema registry's ids.

The one module of the contract that talks to a server, and only at a process's start.
"""

import json

import httpx

from schemas.codec import Codec, schema_name, schema_of
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.records import RECORD_TYPES, Record

REGISTRY_TIMEOUT_S = 10.0


def codec_for(schema_registry_url: str) -> Codec:
    """Return a codec that frames for the registry at this address, or single objects if it is empty.

    Registers every schema under the subject `<namespace>.<name>` (the record name strategy), which is idempotent.
    Raises ServiceUnreachableError, or BadInputError if the registry refuses a schema as incompatible.
    """
    if not schema_registry_url:
        return Codec()
    ids: dict[type[Record], int] = {}
    with httpx.Client(base_url=schema_registry_url, timeout=REGISTRY_TIMEOUT_S) as client:
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
                    f"the schema registry at {schema_registry_url} does not answer ({type(error).__name__})",
                    "check SCHEMA_REGISTRY_URL, or leave it empty for Avro single-object encoding",
                ) from error
            if answer.status_code != httpx.codes.OK:
                answered = f"{answer.status_code}: {answer.text[:99]}"
                raise BadInputError(
                    f"the schema registry refused {schema_name(record_type)} ({answered})",
                    "its compatibility rule must allow the subject's present versions",
                )
            ids[record_type] = int(answer.json()["id"])
    return Codec(ids)
