"""Change events of the CRM's `audits` table, as Debezium's PostgreSQL connector writes them -> audit events. Pure.

Values may be JSON with or without schemas, or Avro, in Confluent's wire format or with the schema's id in a header as
Apicurio's converter sends it; each of them the whole envelope or flattened by `ExtractNewRecordState`. An insert (`op`
c) and a snapshot's row (r) become an `AuditEvent`. History is append-only, so an update, a delete or a truncation of it
is refused, and counted by the caller. Tombstones, heartbeats, transaction markers and logical decoding messages are not
about a row and are ignored.

A flattened record may lack information: without `add.fields=op` an update looks like an insert, and ends as a duplicate
of the row it changes.

Debezium keys a record by the row's primary key, and neither the key nor the order of these records matters here: each
row becomes a document of its own, by its own id and time. DECISIONS.md, decision 19.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

from schemas.codec import CONFLUENT_HEADER_BYTES, read_avro
from schemas.records import AuditEvent
from schemas.source.mapping import SourceMapping
from schemas.vocabulary import ChangeRefusal

ACCOUNT_HEADER = "company_sso_id"  # set by the connector where a whole table is one account's
SCHEMA_HEADER = "apicurio.value.contentId"  # with it the value is Avro without a frame; an id of Confluent's API
SCHEMA_HEADER_BYTES_MAX = 8
FOREIGN_SCHEMA_HEADER = "apicurio.value.globalId"  # not an id of Confluent's API
INT64_MAX = 2**63 - 1
YEAR_1_US, YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000
CONFLUENT_MAGIC = b"\x00"
INFINITE_FROM = 9 * 10**18  # Debezium's number for infinity, in any unit, and nanoseconds of the year 2255
DECIMAL_SCALE_MAX = 20
DECIMAL_BYTES_MAX = 10  # more than Decimal's 28 digits would be rounded

INTEGERS = ("id", "auditable_id", "associated_id", "user_id", "version")
TEXTS = ("auditable_type", "associated_type", "user_type", "username", "action", "comment", "request_uuid")
COLUMNS = (*INTEGERS, *TEXTS, "audited_changes", "created_at")

Headers = Iterable[tuple[str, bytes | None]] | None
SchemaOf = Callable[[int], str | None]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NAME = re.compile(r"[\w$]{1,63}")
_DIGITS = re.compile(r"-?[0-9]{1,19}(\.0*)?")
# Microseconds in a unit, by the name that Debezium and Connect give a time.
_TIME_UNITS_US = {
    "io.debezium.time.Timestamp": 1000.0,
    "org.apache.kafka.connect.data.Timestamp": 1000.0,
    "io.debezium.time.MicroTimestamp": 1.0,
    "io.debezium.time.NanoTimestamp": 0.001,
}
_OBJECT = b"{"
_SCHEMA_HEADERS = frozenset((SCHEMA_HEADER, FOREIGN_SCHEMA_HEADER))
_JSON = "io.debezium.data.Json"
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_REFUSED_OPERATIONS = {
    "u": ChangeRefusal.AUDIT_UPDATED,
    "d": ChangeRefusal.AUDIT_DELETED,
    "t": ChangeRefusal.AUDITS_TRUNCATED,
}
_ROW_OPERATIONS = frozenset(("c", "r"))
_MESSAGE_OPERATION = "m"
_HEARTBEAT = frozenset(("ts_ms", "ts_us", "ts_ns"))


class Refused(NamedTuple):
    """A change event that becomes no audit event; `detail` is one line without any of the row's content."""

    reason: ChangeRefusal
    detail: str
    audit_id: int = 0  # if it is known
    account: str = ""  # with UNKNOWN_ACCOUNT: the value of the account column that is not known yet


class Meaning(NamedTuple):
    """What a schema declares of a column beyond its plain type."""

    name: str
    scale: int = 0


class _UnreadableError(Exception):
    """Why a record cannot be read, in one line."""


class _Change(NamedTuple):
    """A record's payload, and the meanings of a row's columns by the field of the payload that holds the row."""

    payload: Mapping[str, Any]
    meanings: Mapping[str, Mapping[str, Meaning]]  # "" is the payload itself


class ChangeDecoder:
    """Decodes change events; one per process, it caches schemas."""

    def __init__(
        self,
        mapping: SourceMapping,
        *,
        company_sso_id: str = "",
        account_of: Callable[[str], str | None] = lambda _value: None,
        schema_of: SchemaOf | None = None,
    ) -> None:
        """`company_sso_id` owns the table, if the mapping has no account column (a record's header overrides it).

        `account_of` returns the account for a value of that column, as text; None: not known yet. `schema_of` returns
        the Avro schema for an id (`schemas.process.registry.SchemaLookup`); it may raise ServiceUnreachableError, an
        outage and not an error of the record, which `decode` propagates.
        """
        self._source = mapping.source
        self._company_sso_id = company_sso_id
        self._account_of = account_of
        self._schema_of = schema_of
        self._avro: dict[int, tuple[str, Mapping[str, Mapping[str, Meaning]]]] = {}

    def decode(self, key: bytes | None, value: bytes | None, headers: Headers = None) -> AuditEvent | Refused | None:  # noqa: ARG002
        """Return the audit row that was inserted, why there is none, or None for a record that is about no row.

        The key is not needed: the row has its id. Never raises for a record's content.
        """
        if value is None:
            return None  # a tombstone
        try:
            change = _json_change(value) if value[:1] == _OBJECT else self._other_change(value, headers)
            return None if change is None else self._of(change, headers)
        except _UnreadableError as error:
            return Refused(ChangeRefusal.UNREADABLE_CHANGE, str(error))

    def _of(self, change: _Change, headers: Headers) -> AuditEvent | Refused | None:
        payload = change.payload
        if _is_about_no_row(payload):
            return None
        source = payload.get("source")
        if isinstance(source, Mapping) and "op" in payload:
            operation, schema, table = str(payload["op"]), source.get("schema"), source.get("table")
            if operation == _MESSAGE_OPERATION:
                return None
            # An update may come without `before`, a deletion without `after`; an insert's row is never in `before`.
            field = "after" if operation in _ROW_OPERATIONS or payload.get("after") is not None else "before"
            row = payload.get(field)
        else:
            operation = str(payload.get("__op") or _header(headers, "__op") or "c")
            if payload.get("__deleted") in ("true", True):
                operation = "d"
            schema = payload.get("__schema", payload.get("__source_schema"))
            table = payload.get("__table", payload.get("__source_table"))
            field, row = "", payload
        return self._of_row(operation, schema, table, row, change.meanings.get(field, {}), headers)

    def _of_row(
        self,
        operation: str,
        schema: Any,
        table: Any,
        row: Any,
        meanings: Mapping[str, Meaning],
        headers: Headers,
    ) -> AuditEvent | Refused:
        if schema not in (None, self._source.schema_name) or table not in (None, self._source.table):
            ours = f"{self._source.schema_name}.{self._source.table}"
            theirs = f"{_identifier(schema)}.{_identifier(table)}"
            return Refused(ChangeRefusal.OTHER_TABLE, f"a row of {theirs}, audits are in {ours}")
        audit_id = row.get("id") if isinstance(row, Mapping) else None
        known_id = audit_id if type(audit_id) is int and 0 < audit_id <= INT64_MAX else 0  # a dead letter has 64 bits
        if operation in _REFUSED_OPERATIONS:
            return Refused(_REFUSED_OPERATIONS[operation], "audit history is append-only", known_id)
        if operation not in _ROW_OPERATIONS:
            raise _UnreadableError(f"an operation {operation[:20]!r}")
        if not isinstance(row, Mapping):
            raise _UnreadableError("an insert without a row")
        try:
            event = _event(row, meanings)
        except _UnreadableError as error:
            return Refused(ChangeRefusal.UNREADABLE_CHANGE, str(error), known_id)
        return self._of_account(event, row, meanings, headers)

    def _of_account(
        self, event: AuditEvent, row: Mapping[str, Any], meanings: Mapping[str, Meaning], headers: Headers
    ) -> AuditEvent | Refused:
        """Return the event with its account, or Refused if that is unknown."""
        column = self._source.account
        if column is None:
            account = _header(headers, ACCOUNT_HEADER) or self._company_sso_id
            if account:
                return event._replace(company_sso_id=account)
            detail = f"the table has no account column, and the record no header {ACCOUNT_HEADER}"
            return Refused(ChangeRefusal.UNKNOWN_ACCOUNT, detail, event.audit_id)
        if column.column not in row:
            raise _UnreadableError(f"the row has no column {column.column}")
        value = _account_text(row[column.column], meanings.get(column.column))
        found = value if column.is_company_sso_id else self._account_of(value) if value else None
        if found:
            return event._replace(company_sso_id=found)
        detail = f"{column.column} is {'NULL' if not value else 'of no account that is known'}"
        return Refused(ChangeRefusal.UNKNOWN_ACCOUNT, detail, event.audit_id, value)

    def _other_change(self, value: bytes, headers: Headers) -> _Change | None:
        """Return what does not begin as a JSON object does; unframed Avro can begin with any byte but that one."""
        found = {name: data for name, data in headers or () if name in _SCHEMA_HEADERS}
        if schema_id := found.get(SCHEMA_HEADER):
            if len(schema_id) > SCHEMA_HEADER_BYTES_MAX:
                raise _UnreadableError(f"{len(schema_id)} bytes are no id of a schema")
            return self._avro_change(int.from_bytes(schema_id, "big"), value)
        if FOREIGN_SCHEMA_HEADER in found:
            raise _UnreadableError("Avro with a globalId in a header (set apicurio.registry.use-id=contentId)")
        if value[:1] != CONFLUENT_MAGIC:
            return _json_change(value)
        if len(value) < CONFLUENT_HEADER_BYTES:
            raise _UnreadableError("neither JSON nor framed Avro")
        return self._avro_change(int.from_bytes(value[1:CONFLUENT_HEADER_BYTES], "big"), value[CONFLUENT_HEADER_BYTES:])

    def _avro_change(self, schema_id: int, data: bytes) -> _Change | None:
        if self._schema_of is None:
            raise _UnreadableError("Avro, but no schema registry is configured (SCHEMA_REGISTRY_URL)")
        known = self._avro.get(schema_id)
        if known is None:
            text = self._schema_of(schema_id)
            if text is None:
                raise _UnreadableError(f"the schema registry has no Avro schema {schema_id}")
            try:
                schema = orjson.loads(text)
            except orjson.JSONDecodeError:
                raise _UnreadableError(f"schema {schema_id} is no JSON") from None
            known = self._avro[schema_id] = text, _avro_meanings(schema)
        text, meanings = known
        try:
            payload = read_avro(text, data)
        except ValueError as error:
            raise _UnreadableError(f"no Avro of schema {schema_id} ({error})") from None
        if not isinstance(payload, Mapping):
            raise _UnreadableError(f"schema {schema_id} is no record")
        return _Change(payload, meanings)


def _json_change(value: bytes) -> _Change | None:
    try:
        root = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise _UnreadableError("neither JSON nor framed Avro") from None
    meanings: Mapping[str, Mapping[str, Meaning]] = {}
    if isinstance(root, dict) and root.keys() == {"schema", "payload"}:
        meanings = _connect_meanings(root["schema"])
        root = root["payload"]
    if root is None:
        return None  # a tombstone framed by a converter
    if not isinstance(root, dict):
        raise _UnreadableError("JSON, but no object")
    return _Change(root, meanings)


def _is_about_no_row(payload: Mapping[str, Any]) -> bool:
    """Whether this is a heartbeat, a transaction's marker, or a change of a schema."""
    if payload and payload.keys() <= _HEARTBEAT:
        return True
    if "op" not in payload and payload.get("status") in ("BEGIN", "END") and "event_count" in payload:
        return True
    return "ddl" in payload and "tableChanges" in payload


def _connect_meanings(schema: Any) -> Mapping[str, Mapping[str, Meaning]]:
    """Return the meanings in a schema as Connect's JSON converter prints it; of the payload, and of its fields."""
    found: dict[str, Mapping[str, Meaning]] = {"": _connect_fields(schema)}
    for field in _fields(schema):
        if field.get("type") == "struct":
            found[str(field.get("field"))] = _connect_fields(field)
    return found


def _fields(schema: Any) -> list[Mapping[str, Any]]:
    fields = schema.get("fields") if isinstance(schema, Mapping) else None
    return [field for field in fields if isinstance(field, Mapping)] if isinstance(fields, list) else []


def _connect_fields(schema: Any) -> dict[str, Meaning]:
    return {
        str(field.get("field")): Meaning(str(field["name"]), _scale(field.get("parameters")))
        for field in _fields(schema)
        if field.get("name")
    }


def _avro_meanings(schema: Any) -> Mapping[str, Mapping[str, Meaning]]:
    """Return the meanings in an Avro schema that was made from Connect's; of the record, and of its fields."""
    found: dict[str, Mapping[str, Meaning]] = {"": _avro_fields(schema)}
    records: dict[str, Any] = {}  # by name: `before` defines the row's, `after` only names it
    for field in _fields(schema):
        record = _avro_type(field.get("type"))
        if isinstance(record, str):
            record = records.get(record.rpartition(".")[2])
        if isinstance(record, Mapping) and record.get("type") == "record":
            records[str(record.get("name")).rpartition(".")[2]] = record
            found[str(field.get("name"))] = _avro_fields(record)
    return found


def _avro_fields(schema: Any) -> dict[str, Meaning]:
    found = {}
    for field in _fields(schema):
        kind = _avro_type(field.get("type"))
        if isinstance(kind, Mapping) and kind.get("connect.name"):
            found[str(field.get("name"))] = Meaning(str(kind["connect.name"]), _scale(kind.get("connect.parameters")))
    return found


def _avro_type(kind: Any) -> Any:
    """Return the type in a nullable union, else the type itself."""
    if isinstance(kind, list):
        return next((part for part in kind if part != "null"), None)
    return kind


def _scale(parameters: Any) -> int:
    try:
        return int(parameters["scale"])
    except (KeyError, TypeError, ValueError):
        return 0


def _event(row: Mapping[str, Any], meanings: Mapping[str, Meaning]) -> AuditEvent:
    """Return a row as an audit event without an account."""
    missing = next((column for column in COLUMNS if column not in row), None)
    if missing is not None:
        raise _UnreadableError(f"the row has no column {missing}")
    integers = {column: _integer(row[column], column, meanings.get(column)) for column in INTEGERS}
    if integers["id"] <= 0:
        raise _UnreadableError("id is not a positive number")
    texts = {column: _text(row[column], column) for column in TEXTS}
    changes = row["audited_changes"]
    expanded = isinstance(changes, Mapping)  # by a transform on the way, of a json column
    return AuditEvent(
        audit_id=integers["id"],
        id_range=0,
        created_at=_microseconds(row["created_at"], meanings.get("created_at")),
        auditable_type=texts["auditable_type"],
        auditable_id=integers["auditable_id"],
        associated_type=texts["associated_type"],
        associated_id=integers["associated_id"],
        user_type=texts["user_type"],
        user_id=integers["user_id"],
        username=texts["username"],
        action=texts["action"],
        audited_changes=orjson.dumps(changes).decode() if expanded else _text(changes, "audited_changes"),
        # Without a schema this is unknown; it makes no difference, since JSON text is read as JSON anyway.
        changes_are_json=expanded or meanings.get("audited_changes", Meaning("")).name == _JSON,
        version=integers["version"],
        comment=texts["comment"],
        request_uuid=texts["request_uuid"],
    )


def _identifier(value: Any) -> str:
    """Return a valid PostgreSQL name; "?" for anything else, which may have any length and content."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else "?"


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _UnreadableError(f"{column} is a {type(value).__name__}, not text")
    return value


def _integer(value: Any, column: str, meaning: Meaning | None = None) -> int:
    """Return a whole number from any encoding of a PostgreSQL number; NULL is 0."""
    if value is None:
        return 0
    number = value if type(value) is int else _whole(value, meaning)
    if number is None or not -INT64_MAX <= number <= INT64_MAX:
        raise _UnreadableError(f"{column} is no whole number of 64 bits")
    return number


def _whole(value: Any, meaning: Meaning | None) -> int | None:
    """Return the whole number in a `numeric`: decimal.handling.mode string, double, or precise (bytes and a scale)."""
    scale = meaning.scale if meaning is not None else 0
    if isinstance(value, Mapping) and value.keys() == {"scale", "value"}:  # VariableScaleDecimal
        value, scale, meaning = value["value"], value["scale"], Meaning(_DECIMAL)
    if isinstance(value, str) and meaning is not None and meaning.name == _DECIMAL:
        try:
            value = b64decode(value, validate=True)
        except ValueError:
            return None
    if isinstance(value, bytes):
        value = _decimal(value, scale)
    if isinstance(value, str):
        return int(value.partition(".")[0]) if _DIGITS.fullmatch(value) else None
    if isinstance(value, float | Decimal):
        number = Decimal(value)
        return int(number) if number.is_finite() and number == number.to_integral_value() else None
    return None


def _decimal(unscaled: bytes, scale: object) -> Decimal | None:
    """Return the number in Connect's `Decimal`; None for one that is far beyond 64 bits, either way."""
    if type(scale) is not int or abs(scale) > DECIMAL_SCALE_MAX or len(unscaled) > DECIMAL_BYTES_MAX:
        return None
    return Decimal(int.from_bytes(unscaled, "big", signed=True)) / Decimal(10) ** scale


def _account_text(value: Any, meaning: Meaning | None) -> str:
    """Return the account column's value as the inverse query's is printed; NULL is ""."""
    if (value is None or isinstance(value, str)) and (meaning is None or meaning.name != _DECIMAL):
        return value or ""
    return str(_integer(value, "the account column", meaning))


def _microseconds(value: Any, meaning: Meaning | None) -> int:
    """Return a time in microseconds since 1970 UTC; a time without a zone is UTC, as Rails writes it."""
    if isinstance(value, datetime):  # from Avro's logical types
        moment = (_aware(value) - _EPOCH) // _MICROSECOND
    elif isinstance(value, str):
        try:
            moment = (_aware(datetime.fromisoformat(value)) - _EPOCH) // _MICROSECOND
        except (ValueError, OverflowError):
            raise _UnreadableError("created_at is no time between the years 1 and 9999") from None
    elif type(value) is int:
        moment = _from_number(value, meaning)
    else:
        raise _UnreadableError("created_at is NULL" if value is None else "created_at is no time")
    if not YEAR_1_US <= moment < YEAR_10000_US:
        raise _UnreadableError("created_at is infinite or outside of the years 1 to 9999")
    return moment


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _from_number(value: int, meaning: Meaning | None) -> int:
    """Return microseconds. Without a schema the unit shows in the size: no audit was written before March 1973.

    Milliseconds from there to the year 5138 have 12 to 14 digits, microseconds 15 to 17, nanoseconds 18 and more.
    """
    unit_us = _TIME_UNITS_US.get(meaning.name) if meaning is not None else None
    if meaning is not None and meaning.name and unit_us is None:
        raise _UnreadableError(f"created_at is a {meaning.name}, which is no time")
    if unit_us is None:
        digits = len(str(abs(value)))
        if digits < 12 or value < 0:
            raise _UnreadableError("created_at has no schema and is too small for its unit to show")
        if value >= INFINITE_FROM:
            raise _UnreadableError("created_at is infinite")
        unit_us = 1000.0 if digits <= 14 else 1.0 if digits <= 17 else 0.001
    return value * 1000 if unit_us == 1000.0 else value if unit_us == 1.0 else value // 1000


def _header(headers: Headers, name: str) -> str:
    """Return a header's text; "" if it is not there."""
    for header, value in headers or ():
        if header == name and value:
            text = value.decode("utf-8", "replace")
            quoted = len(text) > 1 and text[0] == text[-1] == '"'  # by Connect's JSON converter
            return str(orjson.loads(text)) if quoted and _is_json(text) else text
    return ""


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
