"""The records and their schemas say the same, and what older schemas wrote can still be read."""

from io import BytesIO
from typing import Any, get_type_hints

import fastavro
import pytest
from fastavro.schema import to_parsing_canonical_form
from hypothesis import given
from hypothesis import strategies as st

from schemas.avro import kinds_of
from schemas.codec import schema_name, schema_of
from schemas.records import RECORD_TYPES, Outcome, Record
from tests.unit.schemas.values import fields_of, golden_versions, unhurried

AVRO_TYPES = {int: {"int", "long"}, str: {"string"}, bytes: {"bytes"}, bool: {"boolean"}}
VERSIONS = golden_versions()
NEWEST = max(VERSIONS, key=lambda version: int(version.removeprefix("v")))


@pytest.mark.parametrize("record_type", RECORD_TYPES)
def test_a_records_fields_are_its_schemas_in_the_same_order(record_type: type[Record]) -> None:
    # The codec fills a record from the decoded fields by position.
    assert list(record_type._fields) == [field["name"] for field in schema_of(record_type)["fields"]]


@pytest.mark.parametrize("record_type", RECORD_TYPES)
def test_a_records_types_are_its_schemas(record_type: type[Record]) -> None:
    hints = get_type_hints(record_type)
    for field in schema_of(record_type)["fields"]:
        avro, hint = field["type"], hints[field["name"]]
        if isinstance(avro, dict):
            assert hint == tuple[tuple[bytes, bytes], ...]
            assert [part["type"] for part in avro["items"]["fields"]] == ["bytes", "bytes"]
        else:
            assert avro in AVRO_TYPES[hint], field["name"]


def test_every_schema_file_has_a_record_and_the_other_way_round() -> None:
    assert sorted(VERSIONS[NEWEST]) == sorted(map(schema_name, RECORD_TYPES))
    assert set(RECORD_TYPES) == set(Record.__args__)
    assert set(Outcome.__args__) < set(RECORD_TYPES)


@pytest.mark.parametrize("record_type", RECORD_TYPES)
def test_schemas_are_of_one_namespace_documented_and_without_unions_and_maps(record_type: type[Record]) -> None:
    schema = schema_of(record_type)
    assert schema["namespace"] == "crm.audit.replay"
    assert schema["name"] == record_type.__name__
    assert schema["doc"]
    assert len(kinds_of(schema)) == len(record_type._fields)


@pytest.mark.parametrize("record_type", RECORD_TYPES)
def test_a_changed_schema_is_kept_as_a_new_version(record_type: type[Record]) -> None:
    kept = VERSIONS[NEWEST][schema_name(record_type)]
    assert to_parsing_canonical_form(schema_of(record_type)) == to_parsing_canonical_form(kept), (
        f"schemas/*.avsc changed: copy them to tests/golden/schemas/v{int(NEWEST[1:]) + 1}"
    )


def read_with_the_present_schema(name: str, version: str, fields: dict[str, Any]) -> dict[str, Any]:
    (record_type,) = (record_type for record_type in RECORD_TYPES if schema_name(record_type) == name)
    writer = fastavro.parse_schema(VERSIONS[version][name])
    body = BytesIO()
    fastavro.schemaless_writer(body, writer, fields)
    body.seek(0)
    read = fastavro.schemaless_reader(body, writer, fastavro.parse_schema(schema_of(record_type)))
    assert isinstance(read, dict)
    return read


@pytest.mark.parametrize("version", VERSIONS)
@unhurried
@given(st.data())
def test_what_a_kept_version_wrote_can_be_read_with_the_present_schema(version: str, data: st.DataObject) -> None:
    for name, schema in VERSIONS[version].items():
        fields = data.draw(fields_of(schema))
        read = read_with_the_present_schema(name, version, fields)
        shared = [field for field in fields if field in read]
        assert {field: read[field] for field in shared} == {field: fields[field] for field in shared}
        assert list(read) == [field["name"] for field in schema_of_name(name)["fields"]]


def schema_of_name(name: str) -> dict[str, Any]:
    (schema,) = (schema_of(record_type) for record_type in RECORD_TYPES if schema_name(record_type) == name)
    return schema


def test_this_would_notice_an_incompatible_change(monkeypatch: pytest.MonkeyPatch) -> None:
    new_field = {"name": "new", "type": "long"}  # without a default: old records do not have it
    changed = {**VERSIONS["v1"]["referent"], "fields": [*VERSIONS["v1"]["referent"]["fields"], new_field]}
    monkeypatch.setattr("tests.unit.schemas.test_records.schema_of", lambda _: changed)
    with pytest.raises(fastavro.read.SchemaResolutionError):
        read_with_the_present_schema("referent", "v1", {"referent_type": "Crm::Deal", "referent_id": 1, "name": ""})
