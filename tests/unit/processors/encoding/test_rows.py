"""What `RowEncoder` makes is what `Transformer.transform` and `documents.encode` make, to the byte and to the count.

Rows share their encoders: what one row has left in a cache must mean the same to every row after it.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from librt.strings import BytesWriter

from ops.local.generator.history import History, Plan
from ops.local.generator.plain import PlainHistory
from processors.encoding import bson_writing, changes_writer, documents
from processors.encoding.rows import RowEncoder
from processors.encoding.transform import Transformed, Transformer
from schemas.codec import Codec
from schemas.records import AuditEvent
from schemas.source import mapping
from tests.fuzz.audited_changes import texts
from tests.support.factories import event
from tests.support.generator import audits
from tests.support.lookups import ROW, Anyone, Lookups
from tests.unit.schemas.sample import rows
from tests.unit.schemas.values import unhurried

CODEC = Codec()
pytestmark = pytest.mark.hot_paths
DEFAULT = mapping.load(None)
# Everything that a column can be besides simple.
RICH = DEFAULT.model_copy(
    update={
        "list_columns": {"*": ["product_ids", "labels"], "Crm::Deal": ["tags"]},
        "enums": {"*": {"priority": {"0": "low", "1": "high"}}, "Crm::Person": {"lead_score": {"5": "five"}}},
        "labels": {"*": {"name": "Nom"}, "Crm::Deal": {"crm_stage_id": "Étape"}},
        "times_of_day": {"Crm::Task": ["due_at", "starts_at"]},
    }
)
TYPES = ("Crm::Person", "Crm::Deal", "Crm::Task", "Crm::DealPerson", "User")
ACTIONS = ("create", "update", "destroy")


class Both:
    """The same rules in both ways. `fast` counts the rows that did not need the plain one."""

    def __init__(self, rules: mapping.SourceMapping, lookups: Lookups | None = None) -> None:
        lookups = lookups or Anyone()
        self.lookups = lookups
        self.plain, self.counted = (Transformer(rules, "A") for _ in range(2))
        self.rows = RowEncoder(self.counted, lookups, CODEC, fast=True)
        self.fast = 0

    def assert_equal(self, row: AuditEvent) -> bool:
        """Return whether the row became a document."""
        wanted = self.plain.transform(row, self.lookups)
        found = self.rows.document(row)
        if isinstance(wanted, Transformed):
            assert found == documents.encode(wanted.document), row
        else:
            assert found == wanted, row
        assert self.plain.counts == self.counted.counts, row
        return isinstance(wanted, Transformed)

    def is_fast(self, row: AuditEvent) -> bool:
        """Return whether the row needs no plain way."""
        taken_apart = self.rows.row(CODEC.encode(row))
        return taken_apart is not None and self.rows.outcome(taken_apart, 0) is not None


@pytest.mark.parametrize("rules", [DEFAULT, RICH], ids=["default", "rich"])
def test_every_sample_row_under_every_action(rules: mapping.SourceMapping) -> None:
    both = Both(rules)
    for _ in range(2):  # once with empty caches, once with full ones
        for row in rows():
            for action in ACTIONS:
                both.assert_equal(row.event._replace(action=action))
                both.assert_equal(row.event._replace(action=action, comment='{"crm_person_id":50001}'))


def test_a_column_that_comes_twice_is_found_also_where_more_columns_come_than_are_remembered() -> None:
    both = Both(DEFAULT)
    per_row = 1_500
    for row in range(changes_writer._KNOWN_MAX // per_row + 2):
        columns = "".join(f"c{row * per_row + n}: 1\n" for n in range(per_row))
        both.assert_equal(_row("create", f"---\ntwice: 1\n{columns}twice: 2\n"))


@pytest.mark.parametrize("known_max", [3, changes_writer._KNOWN_MAX], ids=["forgetful", "as it is"])
@pytest.mark.parametrize("rules", [DEFAULT, RICH], ids=["default", "rich"])
def test_mutated_texts(monkeypatch: pytest.MonkeyPatch, rules: mapping.SourceMapping, known_max: int) -> None:
    monkeypatch.setattr(changes_writer, "_KNOWN_MAX", known_max)
    monkeypatch.setattr(changes_writer, "_ZONES_MAX", known_max)
    both = Both(rules)
    documents_made = 0
    for number, (text, is_json) in enumerate(texts(900, seed=7)):
        row = ROW._replace(
            audited_changes=text,
            changes_are_json=is_json,
            auditable_type=TYPES[number % len(TYPES)],
            action=ACTIONS[number // 2 % 3],
        )
        documents_made += both.assert_equal(row)
        both.assert_equal(row)
    assert documents_made > 180


@pytest.mark.parametrize("history", [History, PlainHistory])
def test_generated_rows(history: type[History]) -> None:
    both = Both(DEFAULT)
    events = [row.event for row in audits(history(Plan(3_000, 1, 5)))]
    assert sum(map(both.assert_equal, events)) > 2_400
    assert sum(map(both.is_fast, events)) > 0.97 * len(events)
    for lookups in (Lookups(watermark=2**60), Lookups(watermark=events[1_500].created_at)):
        few = Both(DEFAULT, lookups)
        assert sum(map(few.assert_equal, events)) < 2_400


def _time(first: str, second: str) -> str:
    """Return a pair of times with a zone; either zone is one's own (with an anchor) or another's."""
    own = "!ruby/object:ActiveSupport::TimeZone\n    name: Asia/Jakarta"
    return "".join(
        "- !ruby/object:ActiveSupport::TimeWithZone\n  utc: 2021-08-22 15:00:00.000000000 Z\n"
        f"  zone: {zone}{own if zone != '*1' else ''}\n  time: 2021-08-22 22:00:00.000000000 Z\n"
        for zone in (first, second)
    )


@pytest.mark.parametrize(
    "text",
    [
        "---\na:\n- 1\n- 2\na:\n- 3\n- 4\n",  # the same column twice: the last value, in the first place
        "---\na: 1\na: 2\n",
        "---\na:\n- 1\n- 2\n- 3\n",  # a list that is no pair
        "---\na:\n- 1\n",
        "---\na:\n- 1\n  2\n- 3\n",  # a line that is known, and goes on below
        "---\na:\n- x\n- y\n  z\n",
        "---\na: x\n  y\n",
        "---\na: 'x'\n\nb: y\n",
        "---\na:\n- 'x'\n- 'y'\n\n",
        "---\na:\n  b: 1\n",  # a column that had nothing below it before
        "---\na:\n- b\nc: d\n",
        "---\na: &1 x\nb: *1\n",
        "---\na:\n" + _time("&1 ", "*1") + "b:\n" + _time("*1", "*1"),
        "---\na:\n" + _time("&1 ", "*1") + "b:\n" + _time("&1 ", "*1"),
        "---\nb:\n" + _time("*1", "*1"),
        "---\na: |-\n  x\n\n  y\nb: 1\n",
        "---\na: |-\n  x\n\n\nb: 1\n",
        "---\na:\nb:\n- 1\n- 2\n",
        "---\n- 1\n- 2\n",
        "---\na\n- 1\n- 2\n",
        "--- !ruby/hash:ActiveSupport::HashWithIndifferentAccess\n",
        "--- !ruby/hash:ActiveSupport::HashWithIndifferentAccess\na:\n- 1\n- 2\n",
        "--- {}\n",
        "---\n",
        "---",
        "",
        "--- x\na:\n- 1\n- 2\n",
        "---\na:\n- 1\n- 2\nx",
        "---\na:\n- 1\n- 2\r\n",
        "---\na:\n- 1\n- 2\n\n",
        "---\na: \nb:\n- \n-\n",
        "---\na:\n- 99999999999999999999\n- 4294967296\nb:\n- .nan\n- 1.5\nc:\n- true\n- ~\nd:\n- 2024-02-29\n- :sym\n",
        "---\na:\n- \"\\0\"\n- '%'\nb:\n- {}\n- []\n",
        '{"a":[1,"\\ud800"],"b":[{"x\\u0000y":[1.5,null]},123456789012345678901234567890]}',
        "---\n" + "".join(f"c{n}:\n- 1\n- 2\n" for n in range(1_100)),
        "---\n" + "".join(f"c{n}: 1\n" for n in range(1_100)),
        "---\na:\n- " + "x" * 5_000 + "\n- 2\n",
        # libyaml ends a key without quotes at 1,024 characters
        *(f"---\n{'k' * length}:{value}" for length in (128, 129, 1_024, 1_025) for value in (" 1\n", "\n- 1\n- 2\n")),
    ],
)
def test_forms_at_the_edge(text: str) -> None:
    both = Both(DEFAULT)
    for action in ACTIONS:
        # What is on these lines has been seen, each by itself.
        both.assert_equal(_row(action, "---\na:\n- 1\n- 2\nb:\n- 'x'\n- 'y'\nc:\n- x\n- y\n"))
        both.assert_equal(_row(action, "---\na: 1\nb: 'x'\nc:\nd: 'y'\n"))
        both.assert_equal(_row(action, "---\na: x\nb:\nc: y\n"))
        both.assert_equal(_row(action, "---\na: 'x'\nb: \nc:\n"))
        for _ in range(2):
            both.assert_equal(_row(action, text))


# Pieces of a time with a zone: mostly as Psych writes them, now and then not quite.
_UTC = ("2021-08-22 15:00:00.000000000 Z", "2021-12-31 23:59:59.123456789 Z", "2021-01-30 00:00:00.000000999 Z")
_ODD_UTC = (
    "2020-02-29 00:00:00.000000000 Z",
    "2021-02-29 00:00:00.000000000 Z",
    "2021-04-31 00:00:00.000000000 Z",
    "2021-08-22 24:00:00.000000000 Z",
    "2021-08-22 15:00:00.000000000 +07:00",
    "2021-08-22 15:00:00 Z",
    "0000-01-31 00:00:00.000000000 Z",
    "&1 2021-08-22 15:00:00.000000000 Z",
    "&3 2021-08-22 15:00:00.000000000 Z",
    "*1",
    "*3",
    "soon",
    "",
)
_NAMED = "!ruby/object:ActiveSupport::TimeZone\n    name: "
_ZONES = (f"{_NAMED}Asia/Jakarta", f"&1 {_NAMED}Asia/Jakarta", f"&2 {_NAMED}Pacific Time (US & Canada)", "*1", "*2")
_ODD_ZONES = (
    *(f"{_NAMED}{name}" for name in ("'x'", "x", "", "GMT+7", "A: b", "A #b", "\xa0A")),
    *(f"{anchor} {_NAMED}Etc/UTC" for anchor in ("&1234567", "&x", "&")),
    "!ruby/object:ActiveSupport::TimeZone\n      name: UTC",
    "!ruby/object:ActiveSupport::TimeZone\n\n    name: UTC",
    "*x",
    "*",
)


def _mostly(usual: tuple[str, ...], odd: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from(usual * (4 * len(odd) // len(usual) + 1) + odd)


_zoned_time = st.builds(
    "!ruby/object:ActiveSupport::TimeWithZone\n  utc: {}\n  zone: {}\n  time: {}{}".format,
    _mostly(_UTC, _ODD_UTC),
    _mostly(_ZONES, _ODD_ZONES),
    _mostly(_UTC, _ODD_UTC),
    _mostly(("",), ("\n", " ", "\n  more: 1", "\n- x")),
)
_any_time = st.one_of(*[_zoned_time] * 4, st.sampled_from(("", "", "x", "&1 x", "*1", "- *1", "2021-08-22 15:00:00 Z")))
_column = st.one_of(
    st.builds(
        "{}:{}\n- {}\n- {}\n".format,
        st.sampled_from(("a", "b", "due_at", "crm_stage_id")),
        st.sampled_from(("", " ")),
        _any_time,
        _any_time,
    ),
    st.builds("{}: {}\n".format, st.sampled_from(("a", "b", "due_at", "yes", "crm_stage_id")), _any_time),
)


@given(columns=st.lists(_column, min_size=1, max_size=3), action=st.sampled_from(ACTIONS), rich=st.booleans())
@unhurried
def test_times_with_zones_and_whatever_their_zones_refer_to(columns: list[str], action: str, rich: bool) -> None:
    both = Both(RICH if rich else DEFAULT)
    row = _row(action, "---\n" + "".join(columns))
    for _ in range(2):
        both.assert_equal(row._replace(auditable_type="Crm::Task" if rich else row.auditable_type))


def _row(action: str, text: str) -> AuditEvent:
    return ROW._replace(action=action, audited_changes=text)


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "audit_id": st.integers(1, 2**63 - 1),
            "created_at": st.integers(-(2**63), 2**63 - 1),
            "auditable_type": st.sampled_from((*TYPES, "Crm::Note", "Unknown")),
            "auditable_id": st.sampled_from((0, 1, 7, 2**31, 2**63 - 1)),
            "action": st.sampled_from((*ACTIONS, "merge")),
            "user_id": st.sampled_from((0, 1, 9, 10)),
            "user_type": st.sampled_from(("", "User", "ApiClient")),
            "username": st.text(max_size=3),
            "version": st.sampled_from((0, 1, 2**31, 2**63 - 1)),
            "request_uuid": st.text(max_size=50),
            "comment": st.sampled_from(("", '{"crm_person_id":1}', '{"crm_person_id":[12,2]}', "x")),
            "audited_changes": st.sampled_from(
                (
                    "",
                    "--- {}\n",
                    "---\ncrm_stage_id:\n- 31\n- 39\ncrm_person_id:\n- 1\n- 3\n",
                    "---\ncrm_stage_id:\n- 39\n- '39'\n",
                    "---\ncrm_deal_id: 7\ncrm_person_id: 2\ncrm_company_id: '7'\n",
                    "---\ncrm_deal_id:\n- 3\n- 7\ncrm_company_id:\n- 7\n-\n",
                    "--- &1\na: *1\n",
                )
            ),
        },
    ),
    watermark=st.sampled_from((2**60, ROW.created_at, -(2**60))),
)
@unhurried
def test_any_row(fields: dict[str, Any], watermark: int) -> None:
    both = Both(DEFAULT, Lookups(watermark=watermark))
    for _ in range(2):
        both.assert_equal(event(**{**ROW._asdict(), **fields}))


def test_another_account_has_its_own_documents() -> None:
    mine = Transformer(DEFAULT, "A")
    theirs = mine.for_account("B")
    for transformer, account in ((mine, "A"), (theirs, "B"), (mine, "A")):
        wanted = transformer.transform(ROW, Lookups(account))
        assert isinstance(wanted, Transformed)
        assert RowEncoder(transformer, Lookups(account), CODEC, fast=True).document(ROW) == documents.encode(
            wanted.document
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _elements(write: Callable[[BytesWriter], None]) -> bytes:
    w = BytesWriter()
    write(w)
    return w.getvalue()


@given(value=json_values)
@unhurried
def test_an_element_is_what_bson_makes_of_it(value: Any) -> None:
    try:
        found = _elements(lambda w: bson_writing.write_value(w, b"a\0", value))
    except ValueError:
        assert documents.storable(value) != value or max(repr(value)) >= "\ud800"
    else:
        assert found == documents.encode({"a": value})[4:-1]


@given(value=st.integers(-(2**63), 2**63 - 1), text=st.text() | st.text("ab").map(lambda part: part * 2_000))
@unhurried
def test_typed_elements_are_what_bson_makes_of_them(value: int, text: str) -> None:
    assert _elements(lambda w: bson_writing.write_integer(w, b"n\0", value)) == documents.encode({"n": value})[4:-1]
    assert _elements(lambda w: bson_writing.write_text(w, b"t\0", text.encode())) == documents.encode({"t": text})[4:-1]
