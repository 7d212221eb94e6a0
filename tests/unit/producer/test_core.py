"""What a page becomes is what the plain way makes of each row: `AuditEvent`, `record_key`, fastavro."""

import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import fastavro
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ops.local.generator.history import History, Plan
from ops.local.generator.plain import PlainHistory
from producer.core import EPOCH_2000_US, YEAR_1_US, YEAR_10000_US, EventMaker, RecordKeys, Row, records_of
from schemas.codec import Codec, schema_of, single_object_header
from schemas.records import AuditEvent
from schemas.source.mapping import PersonRule
from schemas.source.person import record_key
from tests.support.factories import event
from tests.support.generator import audits
from tests.unit.schemas.values import records_of as events_of_type
from tests.unit.schemas.values import unhurried

pytestmark = pytest.mark.hot_paths

CODEC = Codec()
SCHEMA = fastavro.parse_schema(schema_of(AuditEvent))
TAG = 2**29 + 1
RULE = PersonRule()


def by_library(event: AuditEvent) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, SCHEMA, event._asdict())
    return single_object_header(AuditEvent) + out.getvalue()


def row_of(event: AuditEvent) -> Row:
    """Return a row as PostgreSQL sends it."""
    at = event.created_at - EPOCH_2000_US
    return (event.audit_id, at, *event[3:12], event.version, event.comment, event.request_uuid, TAG)


def refused(row: Row, size: int) -> Row | None:
    raise AssertionError(f"row {row} is like the others")


def require_equal(events: Sequence[AuditEvent]) -> None:
    first = events[0]
    maker = EventMaker(first.company_sso_id, TAG, first.changes_are_json, refused)
    made, size, are_all = maker.events(map(row_of, events), first.id_range)
    assert made == list(events)
    assert {type(event) for event in made} == {AuditEvent}
    assert (size, are_all) == (sum(len(event.audited_changes) + len(event.comment) for event in events), True)
    keys = RecordKeys(RULE)
    records, too_large, total = records_of(made, keys.key, CODEC.encoder(AuditEvent), 10**9)
    assert records == [(record_key(event, RULE).encode(), by_library(event)) for event in events]
    assert (too_large, total) == ([], sum(len(key) + len(value) for key, value in records))


@pytest.mark.parametrize("history", [PlainHistory, History])
def test_generated_rows(history: Any) -> None:
    require_equal([row.event._replace(company_sso_id="A") for row in audits(history(Plan(2_000, 1, 1, "crm")))])


@pytest.mark.parametrize("name", ["audits_yaml", "audits_jsonb"])
def test_rows_of_the_sample(name: str) -> None:
    text = files("ops.local").joinpath("sample", f"{name}.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    texts = ("auditable_type", "associated_type", "user_type", "username", "action", "comment", "request_uuid")
    numbers = ("auditable_id", "associated_id", "user_id", "version")
    changes = [row["audited_changes"] or "" for row in rows]
    require_equal(
        [
            event(
                audit_id=row["id"],
                id_range=1,
                created_at=1_700_000_000_000_000 + row["id"],
                audited_changes=of_row if isinstance(of_row, str) else json.dumps(of_row),
                changes_are_json=not isinstance(of_row, str),
                company_sso_id="A",
                **{name: row.get(name) or "" for name in texts},
                **{name: row.get(name) or 0 for name in numbers},
            )
            for row, of_row in zip(rows, changes, strict=True)
        ]
    )


MOMENTS = st.integers(YEAR_1_US, YEAR_10000_US - 1)


@unhurried
@given(events_of_type(AuditEvent), MOMENTS)
def test_any_row(event: Any, moment: int) -> None:
    require_equal([event._replace(created_at=moment)])


COMMENTS = st.one_of(
    st.text(max_size=20),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(
            ['{"crm_person_id":', '{"crm_person_id": ', '{"other":', '{"crm_person_id":"', "{'crm_person_id':"]
        ),
        st.one_of(st.integers(-5, 2**64).map(str), st.text("0123456789٣²-+_. ", max_size=20)),
        st.sampled_from(["}", '"}', "", "} ", "}\n"]),
    ),
)


@unhurried
@given(COMMENTS, st.sampled_from(["crm_person_id", "other", "a-b", "é", 'x"y', ""]))
@example('{"crm_person_id":0}', "crm_person_id")
@example('{"crm_person_id":007}', "crm_person_id")
@example('{"crm_person_id":999999999999999999}', "crm_person_id")
@example('{"crm_person_id":9999999999999999999}', "crm_person_id")
@example('{"a-b":7}', "a-b")
@example('{"x"y":7}', 'x"y')
@example('{"":7}', "")
def test_the_key_of_any_comment(comment: str, name: str) -> None:
    rule = PersonRule.model_construct(**{**RULE.model_dump(), "comment_key": name})
    event = AuditEvent(1, 0, 0, "Crm::Deal", 5, "", 0, "User", 3, "", "update", "", False, 1, comment, "r")
    assert RecordKeys(rule).key(event) == record_key(event, rule)


ROW = row_of(AuditEvent(1, 0, 0, "Crm::Deal", 5, "", 0, "User", 3, "", "update", "ab", False, 1, "c", "r"))


@pytest.mark.parametrize(
    "replaced",
    [
        {14: TAG + 1},
        {14: None},
        {10: None, 12: None},
        {1: -(2**63)},
        {1: 2**63 - 1},
        {1: YEAR_1_US - EPOCH_2000_US - 1},
        {1: YEAR_10000_US - EPOCH_2000_US},
    ],
)
def test_what_is_unusual_is_left_to_the_caller(replaced: dict[int, Any]) -> None:
    odd = tuple(replaced.get(place, value) for place, value in enumerate(ROW))
    met: list[tuple[Row, int]] = []

    def unusual(row: Row, size: int) -> Row | None:
        met.append((row, size))
        return ROW if len(met) == 1 else None

    made, size, are_all = EventMaker("", TAG, False, unusual).events([ROW, odd, ROW, odd, ROW], 0)
    assert met == [(odd, 3), (odd, 9)]
    assert (len(made), size, are_all) == (3, 9, False)


def test_what_is_too_large_is_named() -> None:
    made, _, _ = EventMaker("", TAG, False, refused).events([ROW, ROW], 0)
    size = len(by_library(made[0])) + 1
    for size_max, places in ((size, []), (size - 1, [0, 1])):
        assert records_of(made, lambda _: "k", CODEC.encoder(AuditEvent), size_max)[1:] == (places, 2 * size)
