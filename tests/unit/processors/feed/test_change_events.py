"""Change events as Debezium writes them: recorded ones (tests/golden/change_events), and their forms made from them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from processors.feed.change_events import SCHEMA_HEADER, ChangeDecoder, Headers, Refused
from schemas.codec import Codec
from schemas.errors import MappingError, ServiceUnreachableError
from schemas.records import AuditEvent, DeadLetter
from schemas.source.mapping import SourceMapping, load
from schemas.vocabulary import ChangeRefusal
from tests.unit.processors.feed.connect_schemas import ROW, as_avro, multi_tenant

RECORDED = Path(__file__).parents[3] / "golden" / "change_events" / "debezium-3.7.jsonl"
MAPPING = load(None)
ACCOUNT = "acme"
EVENT = AuditEvent(
    17, 0, 1_700_000_000_123_456, "Crm::Deal", 7, "", 0, "User", 3, "", "update", "---\nname:\n- a\n- b\n", False, 2,
    "", "8f14e45f-ceea-467f-a8f5-5f1a3f0c7a10", ACCOUNT,
)  # fmt: skip


def decoder(mapping: SourceMapping = MAPPING, **more: Any) -> ChangeDecoder:
    return ChangeDecoder(mapping, **{**({"company_sso_id": ACCOUNT} if mapping is MAPPING else {}), **more})


def decode(value: Any, headers: Headers = None) -> AuditEvent | Refused | None:
    return decoder().decode(b"{}", json.dumps(value).encode(), headers)


def envelope(op: str = "c", row: Mapping[str, Any] | None = ROW, **source: Any) -> dict[str, Any]:
    where = {"schema": "public", "table": "audits", "db": "crm", **source}
    before, after = (None, row) if op in ("c", "r") else (row, None)
    return {"before": before, "after": after, "source": where, "transaction": None, "op": op, "ts_ms": 1}


def with_schema(row: Mapping[str, Any], **names: str | tuple[str, int]) -> dict[str, Any]:
    """Return the row as an envelope with a schema that gives these columns a name, or a name and a scale."""
    fields = []
    for column in row:
        field: dict[str, Any] = {"field": column, "type": "int64", "optional": True}
        if column in names:
            named = names[column]
            field["name"], scale = named if isinstance(named, tuple) else (named, 0)
            field["parameters"] = {"scale": str(scale)}
        fields.append(field)
    after = {"field": "after", "type": "struct", "name": "x.Value", "fields": fields}
    return {"schema": {"type": "struct", "fields": [after]}, "payload": envelope(row=row)}


def _us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDED.read_text("utf-8").splitlines()]


def refusal(found: AuditEvent | Refused | None) -> ChangeRefusal:
    assert isinstance(found, Refused), found
    return found.reason


# -- what the connector wrote


@pytest.mark.parametrize("form", ["envelope", "flattened"])
def test_what_debezium_wrote_is_read(form: str) -> None:
    found = [
        decoder().decode(
            r["key"].encode(), r["value"] and r["value"].encode(), [(n, v.encode()) for n, v in r["headers"]]
        )
        for r in recorded()
        if r["form"] == form
    ]
    snapshot, insert, update, delete, tombstone = found
    assert isinstance(snapshot, AuditEvent)
    assert (snapshot.audit_id, snapshot.action, snapshot.version) == (2147483691, "destroy", 6)
    assert snapshot.created_at == _us(datetime(2025, 2, 16, 17, 47, 49, 741140, UTC))
    assert snapshot.request_uuid == "718807e0-1275-4b3f-a742-e74cef57aea5"
    assert isinstance(insert, AuditEvent)
    assert insert.audit_id == 900001
    assert insert.audited_changes == snapshot.audited_changes
    assert {snapshot.company_sso_id, insert.company_sso_id} == {ACCOUNT}
    assert [refusal(update), refusal(delete)] == [ChangeRefusal.AUDIT_UPDATED, ChangeRefusal.AUDIT_DELETED]
    assert isinstance(update, Refused)
    assert isinstance(delete, Refused)
    assert {update.audit_id, delete.audit_id} == {900001}
    assert tombstone is None


def test_all_forms_of_one_record_are_the_same_event() -> None:
    forms = {
        r["form"]: json.loads(r["value"]) for r in recorded() if '"op":"c"' in (r["value"] or "").replace("__", "")
    }
    of_envelope = decode(forms["envelope"])
    schema, framed = as_avro(json.dumps(forms["envelope"]).encode(), 7)
    assert isinstance(of_envelope, AuditEvent)
    assert decode(forms["envelope"]["payload"]) == of_envelope  # without its schema
    assert decode(forms["flattened"]) == of_envelope
    assert decoder(schema_of={7: schema}.get).decode(b"", framed) == of_envelope


def test_the_schemas_id_may_be_in_a_header() -> None:
    both = recorded_envelope()
    schema, framed = as_avro(json.dumps(both).encode(), 7)
    avro, bare = decoder(schema_of={7: schema}.get), framed[5:]
    assert bare[:1] == b"\x00"  # no row before an insert: it begins as a frame does, and is none
    content_id, global_id = (f"apicurio.value.{name}" for name in ("contentId", "globalId"))
    assert avro.decode(None, bare, [(content_id, (7).to_bytes(8, "big"))]) == decode(both)
    assert avro.decode(None, framed, [("apicurio.key.contentId", b"x")]) == decode(both)
    for name, number, why in ((content_id, 8, "no Avro schema 8"), (global_id, 7, "use-id=contentId")):
        refused = avro.decode(None, bare, [(name, number.to_bytes(8, "big"))])
        assert isinstance(refused, Refused)
        assert refused.reason is ChangeRefusal.UNREADABLE_CHANGE
        assert why in refused.detail
    assert refusal(avro.decode(None, bare, [(content_id, b"\xff" * 99)])) is ChangeRefusal.UNREADABLE_CHANGE


def test_the_avro_form_refuses_what_the_json_form_refuses() -> None:
    for record in recorded():
        if record["form"] == "envelope" and record["value"]:
            schema, framed = as_avro(record["value"].encode(), 7)
            assert decoder(schema_of={7: schema}.get).decode(None, framed) == decode(json.loads(record["value"]))


# -- operations


@pytest.mark.parametrize("op", ["c", "r"])
def test_inserts_and_snapshot_reads_are_events(op: str) -> None:
    assert decode(envelope(op)) == EVENT
    assert decode({**ROW, "__op": op, "__deleted": "false"}) == EVENT


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        ("u", ChangeRefusal.AUDIT_UPDATED),
        ("d", ChangeRefusal.AUDIT_DELETED),
        ("t", ChangeRefusal.AUDITS_TRUNCATED),
    ],
)
def test_history_is_append_only(op: str, reason: ChangeRefusal) -> None:
    for value in (envelope(op), envelope(op, None), {**ROW, "__op": op}):
        assert refusal(decode(value)) is reason
    assert refusal(decode(dict(ROW), [("__op", op.encode())])) is reason
    assert not reason.loses_a_row


def test_a_flattened_delete_says_so_without_an_operation() -> None:
    assert refusal(decode({**ROW, "__deleted": "true"})) is ChangeRefusal.AUDIT_DELETED


@pytest.mark.parametrize(
    "value",
    [
        {"ts_ms": 1700000000000},
        {"ts_ms": 1, "ts_us": 1, "ts_ns": 1},
        {"status": "BEGIN", "id": "571:53195829", "event_count": None, "data_collections": None, "ts_ms": 1},
        {"status": "END", "id": "571:53195832", "event_count": 2, "data_collections": [], "ts_ms": 1},
        {"op": "m", "ts_ms": 1, "source": {"schema": "", "table": ""}, "message": {"prefix": "x", "content": "aGk="}},
        {"source": {}, "databaseName": "crm", "ddl": "ALTER TABLE", "tableChanges": []},
        {"schema": {"type": "struct", "fields": []}, "payload": None},
        None,
    ],
)
def test_what_is_about_no_row_is_passed_over(value: Any) -> None:
    assert decode(value) is None
    assert decoder().decode(b"{}", None) is None


def test_rows_of_another_table_are_refused() -> None:
    for value in (envelope(table="versions"), envelope(schema="archive"), {**ROW, "__op": "c", "__table": "versions"}):
        assert refusal(decode(value)) is ChangeRefusal.OTHER_TABLE
    assert ChangeRefusal.OTHER_TABLE.loses_a_row


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"\x00",
        b"\x00\x00\x00\x00\x01abc",
        b"{}",
        b"{}}",
        b"17",
        b'"text"',
        json.dumps(envelope("x")).encode(),
        json.dumps({"op": "c", "after": None, "source": {}}).encode(),
        json.dumps({"op": "c", "after": 5, "source": {}}).encode(),
        json.dumps({**ROW, "id": None}).encode(),
        json.dumps({**ROW, "id": -4}).encode(),
        json.dumps({**ROW, "id": 2**63}).encode(),
        json.dumps({**ROW, "id": 1.5}).encode(),
        json.dumps({**ROW, "version": "two"}).encode(),
        json.dumps({**ROW, "comment": {"a": 1}}).encode(),
        json.dumps({**ROW, "created_at": None}).encode(),
        json.dumps({**ROW, "created_at": "soon"}).encode(),
        json.dumps({**ROW, "created_at": 9223372036825200000}).encode(),  # PostgreSQL's infinity
        json.dumps({**ROW, "created_at": 1700}).encode(),
        json.dumps({**ROW, "created_at": True}).encode(),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_cause(value: bytes) -> None:
    found = decoder().decode(b"", value)
    assert refusal(found) is ChangeRefusal.UNREADABLE_CHANGE
    assert isinstance(found, Refused)
    assert found.detail
    assert "\n" not in found.detail
    assert found.reason.loses_a_row


@pytest.mark.parametrize("column", [column for column in ROW if column != "remote_address"])
def test_a_missing_column_is_named(column: str) -> None:
    found = decode(envelope(row={name: value for name, value in ROW.items() if name != column}))
    assert isinstance(found, Refused)
    assert found.detail == f"the row has no column {column}"


def test_a_column_that_nothing_needs_may_be_missing() -> None:
    assert decode({name: value for name, value in ROW.items() if name != "remote_address"}) == EVENT


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["schema", "payload", "op", "after", "before", "source", "fields", "field", "name", *ROW]),
        inner, max_size=8,
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@example(b'{"source": {}, "op": []}')
def test_nothing_that_a_record_holds_raises(value: bytes) -> None:
    found = decoder(schema_of=lambda _id: '{"type": "record"}').decode(value, value, [("__op", value)])
    assert found is None or isinstance(found, Refused | AuditEvent)


SCALARS = st.none() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
STRUCTS = st.dictionaries(st.sampled_from(["scale", "value"]), st.integers() | st.text(), max_size=2)


@given(st.dictionaries(st.sampled_from(sorted(ROW)), SCALARS | STRUCTS, max_size=4))
def test_nothing_that_a_row_holds_raises(changed: dict[str, Any]) -> None:
    for meaning in ("", "org.apache.kafka.connect.data.Decimal", "io.debezium.time.NanoTimestamp"):
        found = decode(with_schema({**ROW, **changed}, **dict.fromkeys(changed, meaning)))
        assert isinstance(found, Refused | AuditEvent)


# -- columns


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1_700_000_000_123_456, "io.debezium.time.MicroTimestamp"),
        (1_700_000_000_123_456_000, "io.debezium.time.NanoTimestamp"),
        ("2023-11-14T22:13:20.123456Z", "io.debezium.time.IsoTimestamp"),
        ("2023-11-14T22:13:20.123456Z", "io.debezium.time.ZonedTimestamp"),
        ("2023-11-15T05:13:20.123456+07:00", "io.debezium.time.ZonedTimestamp"),
        ("2023-11-14T22:13:20.123456789", ""),
        (1_700_000_000_123_456, ""),
        (1_700_000_000_123_456_789, ""),
    ],
)
def test_times_of_every_mode_are_microseconds(value: Any, name: str) -> None:
    assert decode(with_schema({**ROW, "created_at": value}, created_at=name)) == EVENT


@pytest.mark.parametrize("name", ["io.debezium.time.Timestamp", "org.apache.kafka.connect.data.Timestamp", ""])
def test_times_in_milliseconds_are_as_exact_as_that(name: str) -> None:
    found = decode(with_schema({**ROW, "created_at": 1_700_000_000_123}, created_at=name))
    assert found == EVENT._replace(created_at=1_700_000_000_123_000)


def test_a_schema_decides_where_the_size_would_mislead() -> None:
    early = decode(with_schema({**ROW, "created_at": 1_700_000}, created_at="io.debezium.time.MicroTimestamp"))
    assert early == EVENT._replace(created_at=1_700_000)
    wrong = decode(with_schema({**ROW, "created_at": 19_000}, created_at="io.debezium.time.Date"))
    assert refusal(wrong) is ChangeRefusal.UNREADABLE_CHANGE


@given(st.integers(_us(datetime(1973, 4, 1, tzinfo=UTC)), _us(datetime(2200, 1, 1, tzinfo=UTC))))
def test_without_a_schema_the_unit_shows_in_the_size(us: int) -> None:
    assert decode({**ROW, "created_at": us}) == EVENT._replace(created_at=us)
    assert decode({**ROW, "created_at": us // 1000}) == EVENT._replace(created_at=us // 1000 * 1000)
    assert decode({**ROW, "created_at": us * 1000}) == EVENT._replace(created_at=us)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (7, ""),
        ("7", ""),
        ("7.00", ""),
        (7.0, ""),
        ("Bw==", ("org.apache.kafka.connect.data.Decimal", 0)),
        ("Arw=", ("org.apache.kafka.connect.data.Decimal", 2)),  # 700, two of its digits behind the point
        ({"scale": 0, "value": "Bw=="}, "io.debezium.data.VariableScaleDecimal"),
    ],
)
def test_whole_numbers_of_every_decimal_mode_are_read(value: Any, name: str | tuple[str, int]) -> None:
    assert decode(with_schema({**ROW, "auditable_id": value}, auditable_id=name)) == EVENT


def test_json_columns_say_so_in_the_schema() -> None:
    changes = '{"name": ["a", "b"]}'
    found = decode(with_schema({**ROW, "audited_changes": changes}, audited_changes="io.debezium.data.Json"))
    assert found == EVENT._replace(audited_changes=changes, changes_are_json=True)
    assert decode({**ROW, "audited_changes": changes}) == EVENT._replace(audited_changes=changes)
    expanded = decode({**ROW, "audited_changes": {"name": ["a", "b"]}})
    assert expanded == EVENT._replace(audited_changes='{"name":["a","b"]}', changes_are_json=True)


# -- whose the row is


def test_the_header_names_the_account_of_a_table_without_an_account_column() -> None:
    assert decode(dict(ROW), [("company_sso_id", b"other")]) == EVENT._replace(company_sso_id="other")
    assert decode(dict(ROW), [("company_sso_id", b'"007"')]) == EVENT._replace(company_sso_id="007")
    nobody = ChangeDecoder(MAPPING).decode(None, json.dumps(dict(ROW)).encode())
    assert nobody == Refused(
        ChangeRefusal.UNKNOWN_ACCOUNT,
        "the table has no account column, and the record no header company_sso_id",
        17,
    )


@pytest.mark.parametrize("value", [42, "42", 42.0, "Kg=="])
def test_the_account_column_names_the_account(value: Any) -> None:
    name = "org.apache.kafka.connect.data.Decimal" if value == "Kg==" else ""
    asked = decoder(multi_tenant("inverse: SELECT id FROM a"), account_of={"42": ACCOUNT}.get)
    row = {**ROW, "account_id": value}
    headers = [("company_sso_id", b"not this one")]
    assert asked.decode(None, json.dumps(with_schema(row, account_id=name)).encode(), headers) == EVENT


def test_an_account_that_nobody_knows_yet_is_told() -> None:
    known: dict[str, str] = {}
    asked = decoder(multi_tenant("inverse: SELECT id FROM a"), account_of=known.get)
    value = json.dumps({**ROW, "account_id": 42}).encode()
    first = asked.decode(None, value)
    assert isinstance(first, Refused)
    assert (first.reason, first.account, first.audit_id) == (ChangeRefusal.UNKNOWN_ACCOUNT, "42", 17)
    known["42"] = ACCOUNT
    assert asked.decode(None, value) == EVENT
    assert (
        refusal(asked.decode(None, json.dumps({**ROW, "account_id": None}).encode())) is ChangeRefusal.UNKNOWN_ACCOUNT
    )
    assert refusal(asked.decode(None, json.dumps(dict(ROW)).encode())) is ChangeRefusal.UNREADABLE_CHANGE


def test_an_account_column_can_hold_the_company_sso_id_itself() -> None:
    asked = decoder(multi_tenant("is_company_sso_id: true"))
    assert asked.decode(None, json.dumps({**ROW, "account_id": ACCOUNT}).encode()) == EVENT


@pytest.mark.parametrize(
    "setting", ["inverse: SELECT 1, is_company_sso_id: true", 'inverse: "SELECT id FROM a WHERE id = %(value)s"']
)
def test_a_mapping_whose_way_back_makes_no_sense_is_refused(setting: str) -> None:
    with pytest.raises(MappingError, match=r"inverse"):
        multi_tenant(setting)


# -- Avro


def test_an_unknown_schema_is_asked_for_again() -> None:
    schema, framed = as_avro(json.dumps(recorded_envelope()).encode(), 9)
    schemas: dict[int, str] = {}
    avro = decoder(schema_of=schemas.get)
    assert refusal(avro.decode(None, framed)) is ChangeRefusal.UNREADABLE_CHANGE
    schemas[9] = schema
    assert isinstance(avro.decode(None, framed), AuditEvent)
    assert refusal(avro.decode(None, framed[:-3])) is ChangeRefusal.UNREADABLE_CHANGE
    assert refusal(avro.decode(None, framed + b"x")) is ChangeRefusal.UNREADABLE_CHANGE


def test_a_registry_that_is_down_is_no_fault_of_the_record() -> None:
    def down(_id: int) -> str | None:
        raise ServiceUnreachableError("the schema registry does not answer")

    with pytest.raises(ServiceUnreachableError):
        decoder(schema_of=down).decode(None, b"\x00\x00\x00\x00\x01abc")


def test_logical_types_of_avro_are_read() -> None:
    both = recorded_envelope()
    schema_text, framed = as_avro(json.dumps(both).encode(), 3)
    schema = json.loads(schema_text)
    row = schema["fields"][0]["type"][1]
    created_at = next(field for field in row["fields"] if field["name"] == "created_at")
    created_at["type"][1] = {"type": "long", "logicalType": "timestamp-micros"}
    assert decoder(schema_of={3: json.dumps(schema)}.get).decode(None, framed) == decode(both)


def recorded_envelope() -> dict[str, Any]:
    return next(
        json.loads(r["value"]) for r in recorded() if r["form"] == "envelope" and '"op":"c"' in (r["value"] or "")
    )


@pytest.mark.parametrize("row_id", [2**63, 2**64 - 1, -(2**63), -1, True, 1.0, "7"])
@pytest.mark.parametrize("op", ["c", "u", "d"])
def test_an_id_that_no_dead_letter_holds_is_not_known(op: str, row_id: Any) -> None:
    found = decode(envelope(op, {**ROW, "id": row_id}))
    assert not isinstance(found, Refused) or found.audit_id == 0
    letter = DeadLetter(found.audit_id if found else 0, 0, "t", 0, 1, 1, "c", "d", b"", b"", 1)
    Codec().encode(letter)


def test_a_header_that_is_no_id_of_a_schema_is_refused_before_anybody_is_asked() -> None:
    asked: list[int] = []
    reader = decoder(schema_of=asked.append)
    found = reader.decode(None, b"avro", [(SCHEMA_HEADER, b"\xff" * 20_000)])
    assert refusal(found) is ChangeRefusal.UNREADABLE_CHANGE
    assert not asked


@pytest.mark.parametrize("name", ["somebody@example.com " * 1000, {"a": 1}, "a b", 5, []])
def test_what_is_no_name_of_a_table_is_not_repeated(name: Any) -> None:
    found = decode(envelope("c", dict(ROW), table=name))
    assert isinstance(found, Refused)
    assert "?" in found.detail
    assert len(found.detail) < 200
