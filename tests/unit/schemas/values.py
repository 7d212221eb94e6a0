"""Hypothesis strategies for records, made from the Avro schemas themselves."""

import json
from importlib.resources import files
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from schemas.codec import schema_of
from schemas.records import RECORD_TYPES, OutcomeBatch, Record

# A busy machine must not fail a test that only took its time.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# By the schema's types: nullable unions cost too much, and the only arrays are of pairs of bytes.
PRIMITIVES: dict[str, SearchStrategy[Any]] = {
    "long": st.integers(-(2**63), 2**63 - 1),
    "int": st.integers(-(2**31), 2**31 - 1),
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "bytes": st.binary(),
    "boolean": st.booleans(),
}


def values_of(avro_type: Any) -> SearchStrategy[Any]:
    """Return a strategy for a field's values, as fastavro takes them."""
    if isinstance(avro_type, str):
        return PRIMITIVES[avro_type]
    return st.lists(fields_of(avro_type["items"]), max_size=4)


def fields_of(schema: dict[str, Any]) -> SearchStrategy[dict[str, Any]]:
    """Return a strategy for a record of any schema, as the dictionary fastavro takes."""
    return st.fixed_dictionaries({field["name"]: values_of(field["type"]) for field in schema["fields"]})


def record_from(record_type: type[Record], fields: dict[str, Any]) -> Record:
    """Return the record with fastavro's fields."""
    pairs = {name: tuple(tuple(pair.values()) for pair in of) for name, of in fields.items() if isinstance(of, list)}
    return record_type(**{**fields, **pairs})


def fields_from(record: Record) -> dict[str, Any]:
    """Return a record's fields as fastavro takes them."""
    fields = {**record._asdict()}
    if isinstance(record, OutcomeBatch):
        fields["outcomes"] = [{"key": key, "value": value} for key, value in record.outcomes]
    return fields


def records_of(record_type: type[Record]) -> SearchStrategy[Record]:
    """Return a strategy for one of our record types."""
    return fields_of(schema_of(record_type)).map(lambda fields: record_from(record_type, fields))


records: SearchStrategy[Record] = st.sampled_from(RECORD_TYPES).flatmap(records_of)


def golden_versions() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the schemas that are out there: version -> schema name -> schema."""
    folder = files("tests").joinpath("golden", "schemas")
    return {
        version.name: {
            entry.name.removesuffix(".avsc"): json.loads(entry.read_text("utf-8"))
            for entry in version.iterdir()
            if entry.name.endswith(".avsc")
        }
        for version in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if version.is_dir()
    }
