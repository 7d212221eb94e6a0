"""The rules in their order, over whole rows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.encoding.transform import Transformed, Transformer
from processors.rules.decide import Answer, Refused, Rules, Skip
from schemas.records import AuditEvent
from schemas.source import mapping
from schemas.source.person import person_candidates
from schemas.vocabulary import DeadLetterCause, SkipReason
from tests.support.lookups import ROW, WATERMARK, Anyone, Lookups
from tests.unit.schemas.sample import SampleRow, as_stored, row_id, rows

MAPPING = mapping.load(None)
REDACTED = {"encrypted_password", "national_id", "portal_token", "ssn", "secret"}


def transformed(row: AuditEvent, live: bool = False, **fields: Any) -> dict[str, Any]:
    result = Transformer(MAPPING.model_copy(update=fields), "A", live=live).transform(row, Lookups())
    assert isinstance(result, Transformed), result
    return result.document


def test_the_whole_document() -> None:
    assert transformed(ROW) == {
        "company_sso_id": "A",
        "customer_id": "A-1",
        "category": "deal",
        "action": "won",
        "actor": {"type": "user", "id": "sso-u3@example.com", "name": "User 3"},
        "changes": [{"field": "crm_stage_id", "label": "Crm stage", "from": 31, "to": 39}],
        "timestamp": datetime(2023, 11, 14, 22, 13, 19, 999000, UTC),
        "external_id": "crm_audit:42",
        "source_tag": "crm_migration",
        "metadata": {
            "crm_person_id": 1,
            "linked_entity_type": "Crm::Deal",
            "linked_entity_id": 7,
            "linked_entity_name": "Renewal",
            "request_id": "r-1",
            "version": 5,
        },
    }


def test_the_account_comes_first_where_the_sink_looks_for_it() -> None:
    assert next(iter(transformed(ROW))) == "company_sso_id"


def test_live_writes_the_same_without_provenance() -> None:
    row = ROW._replace(created_at=WATERMARK)
    live = transformed(row, live=True)
    assert "source_tag" not in live
    replayed = transformed(ROW)
    del replayed["source_tag"]
    assert live | {"timestamp": None} == replayed | {"timestamp": None}


@pytest.mark.parametrize("row", rows(), ids=row_id)
def test_a_sample_row_becomes_the_values_the_gem_reads(row: SampleRow) -> None:
    result = Transformer(MAPPING, "A").transform(row.event, Anyone())
    action = row.event.action
    if isinstance(result, Skip):
        out_of_scope = row.event.auditable_type in ("User", "ApiClient", "Crm::Product") or action == "merge"
        assert out_of_scope or person_candidates(row.event, MAPPING.person) == ()
        expected_reason = SkipReason.UNMAPPED_ACTION_TYPE if out_of_scope else SkipReason.CONTACT_NOT_FOUND
        assert result.reason is expected_reason
        return
    assert isinstance(result, Transformed)
    found = [(change["field"], change["from"], change["to"]) for change in result.document["changes"]]
    expected: list[tuple[str, Any, Any]] = []
    for column, value in as_stored(row.changes).items():
        shown = "[REDACTED]" if column in REDACTED else value
        if action == "create":
            if shown is not None:
                expected.append((column, None, shown))
        elif action == "destroy":
            expected.append((column, shown, None))
        elif isinstance(value, list) and len(value) == 2 and (column != "metadata" or "account_id" not in row.changes):
            old, new = (shown, shown) if column in REDACTED else value
            expected.append((column, old, new))
        else:
            expected.append((column, None, shown))
    assert repr(found) == repr(expected)


def test_every_sample_row_is_in_one_bin() -> None:
    transformer = Transformer(MAPPING, "A")
    bins: dict[str, int] = {}
    for row in rows():
        result = transformer.transform(row.event, Anyone())
        name = str(result.reason) if isinstance(result, Skip) else type(result).__name__
        bins[name] = bins.get(name, 0) + 1
    assert bins == {"Transformed": 443, "contact_not_found": 73, "unmapped_action_type": 12}
    assert transformer.counts.refused_values == 23
    assert transformer.counts.status_id_set_missing == 0


def test_a_trail_changes_nothing_and_ends_with_the_rule_that_decides() -> None:
    rules, ends = Rules(MAPPING, "A"), set()
    for row in (*(sample.event for sample in rows()), ROW._replace(created_at=WATERMARK)):
        for lookups in (Anyone(), Lookups()):
            trail: list[Answer] = []
            decision = rules.decide(row, lookups, trail=trail)
            assert repr(decision) == repr(rules.decide(row, lookups))
            assert [answer.rule for answer in trail][:4] == ["scope", "contact", "watermark", "changes"][: len(trail)]
            ends.add((type(decision).__name__, trail[-1].rule))
    assert ends == {
        ("Skip", "scope"),
        ("Skip", "contact"),
        ("Skip", "watermark"),
        ("Decision", "changes"),
        ("Decision", "status"),
    }


# Order of the checks: each row here fails the check it is named after, and all later ones -----------------------------

BROKEN = "---\na: 'no end\n"


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        (
            ROW._replace(action="merge", comment="", audited_changes=BROKEN, created_at=WATERMARK),
            Skip(SkipReason.UNMAPPED_ACTION_TYPE),
        ),
        (ROW._replace(comment="", audited_changes=BROKEN, created_at=WATERMARK), Skip(SkipReason.CONTACT_NOT_FOUND)),
        (ROW._replace(audited_changes=BROKEN, created_at=WATERMARK), Skip(SkipReason.POST_SYNC_LIVE_FEED)),
    ],
)
def test_the_first_check_that_fails_decides(row: AuditEvent, outcome: Skip) -> None:
    assert Transformer(MAPPING, "A").transform(row, Lookups()) == outcome


def test_what_cannot_be_read_is_a_dead_letter_without_its_content() -> None:
    result = Transformer(MAPPING, "A").transform(ROW._replace(audited_changes="---\nname: 'Siti\n"), Lookups())
    assert isinstance(result, Refused)
    assert result.cause is DeadLetterCause.UNDECODABLE_CHANGES
    assert "Siti" not in result.detail
    result = Transformer(MAPPING, "A").transform(ROW._replace(audited_changes="x" * (16 * 1024 * 1024 + 1)), Lookups())
    assert isinstance(result, Refused)
    assert result.cause is DeadLetterCause.DOCUMENT_TOO_LARGE


@pytest.mark.parametrize("created_at", [-(2**62), -62_135_596_800_000_001])
def test_a_time_that_no_document_can_hold_is_a_dead_letter(created_at: int) -> None:
    result = Transformer(MAPPING, "A").transform(ROW._replace(created_at=created_at), Lookups())
    assert isinstance(result, Refused)


def test_times_are_cut_to_milliseconds_also_before_1970() -> None:
    assert transformed(ROW._replace(created_at=-1))["timestamp"] == datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)
    assert transformed(ROW._replace(created_at=1999))["timestamp"] == datetime(1970, 1, 1, 0, 0, 0, 1000, UTC)


# Persons --------------------------------------------------------------------------------------------------------------


ASSOCIATED = {"associated_type": "Crm::Person", "associated_id": 4}


@pytest.mark.parametrize(
    ("fields", "customer"),
    [
        ({"comment": '{"crm_person_id":99}', "audited_changes": "---\ncrm_person_id:\n- 2\n- 3\n"}, "A-3"),
        ({"comment": '{"crm_person_id":99}', "audited_changes": "---\ncrm_person_id:\n- 2\n- 99\n"}, "A-2"),
        (ASSOCIATED | {"comment": "text", "audited_changes": "---\ncrm_person_id:\n- 98\n- 99\n"}, "A-4"),
        ({"comment": '{"crm_person_id":[99,5]}'}, "A-5"),
        ({"comment": "", "auditable_type": "Crm::Person", "auditable_id": 6}, "A-6"),
        ({"comment": '{"crm_person_id":8}', "auditable_type": "Crm::Person", "auditable_id": 6}, "A-8"),
    ],
)  # fmt: skip
def test_persons_are_tried_in_their_order(fields: dict[str, Any], customer: str) -> None:
    document = transformed(ROW._replace(**fields))
    assert document["customer_id"] == customer
    assert document["metadata"]["crm_person_id"] == int(customer.removeprefix("A-"))


def test_two_accounts_that_share_person_ids_never_meet() -> None:
    for account, other in (("A", "B"), ("B", "A")):
        transformer = Transformer(MAPPING, account)
        own = transformer.transform(ROW, Lookups(account))
        assert isinstance(own, Transformed)
        assert own.document["customer_id"] == f"{account}-1"
        assert own.document["company_sso_id"] == account
        # A table that holds the other account's contacts, by whatever mistake, gives none.
        assert transformer.transform(ROW, Lookups(other)) == Skip(SkipReason.CONTACT_NOT_FOUND)


# Watermark: two sides of one topology ---------------------------------------------------------------------------------


@given(st.integers(-3, 3), st.sampled_from([0, WATERMARK, -WATERMARK]))
@settings(deadline=None)
def test_replay_and_live_are_complements(distance: int, watermark: int) -> None:
    row = ROW._replace(created_at=watermark + distance)
    lookups = Lookups(watermark=watermark)
    replay = Transformer(MAPPING, "A").transform(row, lookups)
    live = Transformer(MAPPING, "A", live=True).transform(row, lookups)
    assert isinstance(replay, Transformed) != isinstance(live, Transformed)
    assert isinstance(replay, Transformed) == (distance < 0)


# Counts ---------------------------------------------------------------------------------------------------------------


def test_what_is_counted() -> None:
    transformer = Transformer(MAPPING.model_copy(update={"id_sets": {}}), "A")
    for changes in (
        "---\ncrm_stage_id:\n- 31\n- 39\n",
        "---\nextra: !ruby/object:Set {}\nmore: !ruby/class X\n",
        "---\nname:\n- a\n- b\n",
    ):
        assert isinstance(
            transformer.transform(ROW._replace(audited_changes=changes, user_id=9), Lookups()), Transformed
        )
    transformer.transform(ROW._replace(action="merge"), Lookups())
    assert transformer.counts.as_dict() == {
        "refused_values": 2,
        "status_id_set_missing": 1,
        "actors_fell_back": 3,
        "read_by_nodes": 1,
        "actors.no_sso_id": 3,
    }


def test_no_changes_are_an_empty_list() -> None:
    for changes in ("", "--- {}\n"):
        document = transformed(ROW._replace(audited_changes=changes))
        assert (document["changes"], document["action"]) == ([], "update")


def test_times_of_day_of_every_writer_read_alike() -> None:
    rails_5 = (
        "---\nstart_time:\n-\n- !ruby/object:ActiveSupport::TimeWithZone\n  utc: 2000-01-01 02:30:00.000000000 Z\n"
        "  zone: !ruby/object:ActiveSupport::TimeZone\n    name: Asia/Jakarta\n"
        "  time: 2000-01-01 09:30:00.000000000 Z\n"
    )
    plain = "---\nstart_time:\n-\n- 2000-01-01 02:30:00.000000000 Z\n"
    json_text = '{"start_time": [null, "2000-01-01T09:30:00.000+07:00"]}'
    for changes in (rails_5, plain, json_text):
        row = ROW._replace(auditable_type="Crm::Task", audited_changes=changes)
        document = transformed(row, times_of_day={"Crm::Task": ("start_time",)}, time_zone="Asia/Jakarta")
        assert document["changes"][0]["to"] == "09:30:00"
