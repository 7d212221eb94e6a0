"""Pure parts of the check: documents compared, rows counted, topics read, ages told."""

import json
import os
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId

from ops.checks.verify import workers
from ops.checks.verify.compare import body_of, decode, differences, documents, expected_document, stored
from ops.checks.verify.expected import expected_of
from ops.checks.verify.model import REPAIR_MAX, Counted, Finding, Kind, Report, Tally, count_mismatches
from ops.checks.verify.segments import Chunk
from ops.checks.verify.topics import Seen, phrase
from ops.cli.verify import age_text
from ops.kafka.rows import zigzag
from ops.repair.run import DELETE_MAX_PCT, plan_of, proved
from processors.encoding.transform import Transformed
from processors.rules.decide import Refused, Skip
from schemas.codec import SINGLE_OBJECT_HEADER_BYTES, Codec
from schemas.errors import BadInputError, ReplayError
from schemas.identity import replay_id
from schemas.records import ActivityLog, DeadLetter, SkippedRecord
from schemas.vocabulary import DeadLetterCause, SkipReason
from sink.core import IdMaker
from tests.support.factories import event

DOCUMENT = {
    "company_sso_id": "acme",
    "customer_id": "c-1",
    "actor": {"type": "user", "id": "u", "name": "Siti"},
    "changes": [{"field": "email", "label": "Email", "from": None, "to": "a@example.test"}],
    "timestamp": datetime(2024, 1, 31, 17, 30, tzinfo=UTC),
    "external_id": "crm_audit:7",
    "source_tag": "crm_migration",
    "metadata": {"crm_person_id": 50001, "version": 3},
}


# ---- documents


def test_a_stored_document_has_the_body_that_was_expected() -> None:
    encoded = bson.encode(DOCUMENT)
    batch = b"".join(IdMaker(1_700_000_000)(audit_id, encoded) for audit_id in (7, 2**40))
    found = list(stored(batch))
    assert [audit_id for *_, audit_id in found] == [7, 2**40]
    for begin, end, _ in found:
        assert batch[begin:end].endswith(body_of(encoded))
        assert len(batch[begin:end]) == len(encoded) + 17
    assert [document["_id"] for document in documents(batch)] == [
        ObjectId(replay_id(1_700_000_000, audit_id)) for audit_id in (7, 2**40)
    ]
    assert expected_document(body_of(encoded)) == DOCUMENT


def test_equal_documents_do_not_differ_in_whatever_order_their_fields_stand() -> None:
    turned = {"_id": ObjectId(), **dict(reversed(DOCUMENT.items()))}
    assert differences(DOCUMENT, turned) == ((), False)
    turned["actor"] = dict(reversed(DOCUMENT["actor"].items()))  # type: ignore[attr-defined]
    assert differences(DOCUMENT, turned) == ((), False)


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({"customer_id": "c-2"}, ("customer_id",)),
        ({"actor": {**DOCUMENT["actor"], "name": "Budi"}}, ("actor.name",)),  # type: ignore[dict-item]
        ({"actor": "Siti"}, ("actor",)),
        ({"changes": []}, ("changes",)),
        ({"changes": [{**DOCUMENT["changes"][0], "to": "b@example.test"}]}, ("changes.0.to",)),
        ({"metadata": {"crm_person_id": 50002, "version": 3}}, ("metadata.crm_person_id",)),
        ({"metadata": {"version": 3}}, ("metadata.crm_person_id",)),
        ({"metadata": 3}, ("metadata",)),
        ({"added": 1}, ("added",)),
    ],
)
def test_a_difference_is_named_by_its_path_and_never_by_its_value(change: dict[str, Any], paths: Any) -> None:
    assert differences(DOCUMENT, {**DOCUMENT, **change}) == (paths, False)


def test_a_field_that_is_gone_differs() -> None:
    found = {name: value for name, value in DOCUMENT.items() if name != "source_tag"}
    assert differences(DOCUMENT, found) == (("source_tag",), False)


def test_values_that_python_takes_for_equal_are_told_apart_by_type() -> None:
    assert differences({"a": 1}, {"a": 1.0})[0] == ("a",)
    assert differences({"a": 1}, {"a": True})[0] == ("a",)
    assert differences({"a": 1}, decode(bson.encode({"a": Int64(1)})))[0] == ("a",)
    nan = float("nan")
    assert differences({"a": nan}, {"a": nan})[0] == ()


def test_metadata_that_was_added_is_the_enrichers_and_no_difference() -> None:
    enriched = {**DOCUMENT, "metadata": {**DOCUMENT["metadata"], "linked_name": "PT Maju"}}  # type: ignore[dict-item]
    assert differences(DOCUMENT, enriched) == ((), True)
    bare = {name: value for name, value in DOCUMENT.items() if name != "metadata"}
    assert differences(bare, DOCUMENT) == ((), True)
    enriched["metadata"]["version"] = 4
    assert differences(DOCUMENT, enriched) == (("metadata.version",), True)


def test_paths_end_before_the_names_of_a_values_own_keys() -> None:
    ours = {"changes": [{"to": {"secret": 1}}]}
    assert differences(ours, {"changes": [{"to": {"secret": 2}}]})[0] == ("changes.0.to",)


def test_what_python_cannot_hold_is_decoded_all_the_same() -> None:
    strange = bson.encode({"at": bson.datetime_ms.DatetimeMS(2**60), "text": "a"})
    strange = strange.replace(b"a\x00\x00", b"\xff\x00\x00")
    found = decode(strange)
    assert differences({"at": datetime(2024, 1, 1, tzinfo=UTC), "text": "a"}, found)[0] == ("at", "text")


# ---- rows


class Rules:
    """Stands in for what encodes rows."""

    def __init__(self, result: object) -> None:
        self.result = result

    def document(self, _event: object) -> object:
        if isinstance(self.result, Exception):
            raise self.result
        return bson.encode(self.result.document) if isinstance(self.result, Transformed) else self.result


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Transformed({"a": 1}), bson.encode({"a": 1})),
        (Skip(SkipReason.CONTACT_NOT_FOUND), SkipReason.CONTACT_NOT_FOUND),
        (Refused(DeadLetterCause.UNDECODABLE_CHANGES, "why"), DeadLetterCause.UNDECODABLE_CHANGES),
        (ValueError("a defect of a rule"), DeadLetterCause.TRANSFORM_FAILED),
        (Transformed({"a": object()}), DeadLetterCause.TRANSFORM_FAILED),
        (Transformed({"a": "x" * 16_777_200}), DeadLetterCause.DOCUMENT_TOO_LARGE),
    ],
)
def test_a_row_is_expected_to_end_as_the_processors_end_it(result: Any, expected: Any) -> None:
    assert expected_of(None, Rules(result)) == expected  # type: ignore[arg-type]


# ---- what was found


def finding(kind: Kind, audit_id: int, **more: object) -> Finding:
    return Finding(kind, audit_id, 1_000_000, document_id=f"id-{audit_id}", **more)  # type: ignore[arg-type]


def test_all_is_counted_and_a_few_of_each_kind_are_named() -> None:
    tally = Tally()
    for audit_id in range(1, 6):
        tally.note(finding(Kind.MISSING, audit_id), 2)
        tally.fail(audit_id, "write_refused", 2)
    tally.note(finding(Kind.EXTRA, 9), 2)
    assert tally.found == {"missing": 5, "extra": 1}
    assert [(f.kind.value, f.audit_id) for f in tally.findings] == [("missing", 1), ("missing", 2), ("extra", 9)]
    assert tally.failed == {"write_refused": 5}
    assert [failed.audit_id for failed in tally.failures] == [1, 2]


def test_tallies_add_up_to_what_one_would_have_counted() -> None:
    parts = [Tally(rows=3, logs=2, matched=1, tagged=2), Tally(rows=4, logs=4, matched=4, tagged=4, enriched=1)]
    for part, audit_id in zip(parts, (1, 2), strict=True):
        part.skipped["contact_not_found"] += 1
        part.note(finding(Kind.DIFFERENT, audit_id, fields=("actor.name", "actor.id")), 1)
        part.fail(audit_id + 10, "row_too_large", 1)
    whole = Tally()
    for part in parts:
        whole.add(part, 1)
    assert (whole.rows, whole.logs, whole.matched, whole.tagged, whole.enriched) == (7, 6, 5, 6, 1)
    assert whole.skipped == {"contact_not_found": 2}
    assert whole.found == {"different": 2}
    assert whole.fields == {"actor": 2}
    assert [f.audit_id for f in whole.findings] == [1]
    assert [f.audit_id for f in whole.failures] == [11]
    assert list(whole.replay) == [1, 2]
    assert whole.delete == ["id-1", "id-2"]


def test_a_repair_deletes_what_is_wrong_and_replays_what_has_a_row() -> None:
    tally = Tally()
    for number, kind in enumerate(Kind, start=1):
        tally.note(finding(kind, number), 100)
    replayed = {kind for number, kind in enumerate(Kind, start=1) if number in tally.replay}
    assert replayed == {Kind.MISSING, Kind.DIFFERENT, Kind.DEAD_LETTER_LOST}
    deleted = {kind for number, kind in enumerate(Kind, start=1) if f"id-{number}" in tally.delete}
    assert deleted == {Kind.EXTRA, Kind.DIFFERENT}


def test_what_a_repair_would_do_is_kept_in_bounds() -> None:
    tally = Tally()
    many = Tally()
    many.replay.extend(range(REPAIR_MAX + 5))
    tally.add(many, 0)
    tally.add(many, 0)
    assert len(tally.replay) == REPAIR_MAX + 1  # enough to see that it is too much


def test_a_report_is_equal_only_if_nothing_at_all_was_found() -> None:
    assert Report("acme", "job", 1, 9, Tally(rows=1), 0).equal
    found = Tally()
    found.note(finding(Kind.EXTRA, 1), 0)
    assert not Report("acme", "job", 1, 9, found, 1).equal
    counted = Report("acme", "job", 1, 9, Tally(), 0)
    counted.counts = count_mismatches(Tally(), Counted(1), Counted())
    assert not counted.equal


def test_a_report_shows_ids_paths_and_ages() -> None:
    tally = Tally(rows=10, logs=9, matched=8)
    shown_of = finding(Kind.DIFFERENT, 7, fields=("customer_id",), external_id="crm_audit:7", why="it differs")
    shown_of.customer_id = "c-secret"
    tally.note(shown_of, 100)
    shown = Report("acme", "job", 1, 9, tally, 9, seconds=2.0).as_dict(61_000_000)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["findings"] == [
        {
            "kind": "different",
            "audit_id": 7,
            "external_id": "crm_audit:7",
            "document_id": "id-7",
            "fields": ["customer_id"],
            "age_s": 60,
            "why": "it differs",
        }
    ]
    assert (shown["equal"], shown["different"], shown["missing"], shown["rows_per_s"]) == (False, 1, 0, 5)
    assert "repair" not in shown
    assert "secret" not in json.dumps(shown)


# ---- counts


def counts(run: Counted, since: Counted | None = None, **tally: Any) -> list[tuple[str, int, int]]:
    found = Tally(**tally)
    found.skipped["contact_not_found"] = 2
    found.failed["write_refused"] = 1
    return [(c.name, c.job, c.truth) for c in count_mismatches(found, run, since or Counted())]


def test_counts_that_are_those_of_the_rows_are_right() -> None:
    assert counts(Counted(5, {"contact_not_found": 2}, 1), logs=5) == []


def test_each_count_that_is_not_its_rows_is_named() -> None:
    assert counts(Counted(4, {"contact_not_found": 3, "unmapped_action_type": 1}, 2), logs=5) == [
        ("migrated", 4, 5),
        ("skipped: contact_not_found", 3, 2),
        ("skipped: unmapped_action_type", 1, 0),
        ("failed", 2, 1),
    ]


def test_rows_replayed_since_may_or_may_not_have_been_counted_before() -> None:
    since = Counted(2, {"contact_not_found": 1}, 1)
    assert counts(Counted(3, {"contact_not_found": 1}, 0), since, logs=5) == []
    assert counts(Counted(5, {"contact_not_found": 2}, 1), since, logs=5) == []
    assert counts(Counted(2, {"contact_not_found": 2}, 1), since, logs=5) == [("migrated", 2, 5)]
    assert counts(Counted(6, {"contact_not_found": 2}, 1), since, logs=5) == [("migrated", 6, 5)]


def test_a_retried_dead_letter_was_counted_as_failed() -> None:
    assert counts(Counted(4, {"contact_not_found": 2}, 2), logs=5, retried=1) == []


# ---- repairs


def to_repair(documents: int, **found: int) -> Report:
    tally = Tally()
    tally.found.update(found)
    return Report("acme", "job", 1, 9, tally, documents)


def test_a_repair_deletes_a_handful_or_a_small_share_and_no_more() -> None:
    plan = plan_of(to_repair(100, extra=4, different=6, missing=50), DELETE_MAX_PCT)
    assert (plan.documents_to_delete, plan.rows_to_replay, plan.refused) == (10, 56, None)
    refused = plan_of(to_repair(100, extra=11), DELETE_MAX_PCT).refused
    assert "11 of the 100 documents of acme" in refused[0]
    assert "--delete-max-pct" in refused[1]
    assert plan_of(to_repair(100, extra=11), 11.0).refused is None
    assert plan_of(to_repair(1_000_000, different=10_000), DELETE_MAX_PCT).refused is None
    assert plan_of(to_repair(1_000_000, different=10_001), DELETE_MAX_PCT).refused is not None
    assert plan_of(to_repair(0, extra=11), 100.0).refused is not None


def test_rows_that_are_too_many_to_replay_one_by_one_are_refused() -> None:
    refused = plan_of(to_repair(10, missing=REPAIR_MAX + 1), 100.0).refused
    assert "crm-replay rerun" in refused[1]


def test_what_was_proved_becomes_the_counts_of_the_job() -> None:
    tally = Tally(rows=10, logs=7, skipped=Counter({"contact_not_found": 2, "unmapped_action_type": 0}))
    tally.fail(5, "write_refused", 0)
    job = SimpleNamespace(skips_by_reason={"duplicate_external_id": 3, "contact_not_found": 9}, records_foreign=2)
    ledger = proved(Report("acme", "job", 1, 9, tally, 7), job)  # type: ignore[arg-type]
    assert ledger.foreign == 2
    assert (ledger.migrated, ledger.skipped) == (4, {"contact_not_found": 2, "duplicate_external_id": 3})
    assert (ledger.balanced, ledger.documents_agree, ledger.failed) == (True, True, 1)


# ---- topics


@pytest.mark.parametrize("audit_id", [1, 63, 64, 1_200_001, 2**31 + 5, 2**63 - 1])
def test_the_audit_id_is_what_avro_writes_first(audit_id: int) -> None:
    letter = DeadLetter(audit_id, 0, "t", 0, 1, 9, "write_refused", "", b"", b"", 0)
    for record in (
        event(audit_id=audit_id),
        ActivityLog(audit_id, 0, 3, 9, b"x"),
        SkippedRecord(audit_id, 0, 3, 9, "why"),
        letter,
    ):
        encoded = zigzag(audit_id)
        assert Codec().encode(record)[SINGLE_OBJECT_HEADER_BYTES:].startswith(encoded)


def test_how_far_a_row_came_is_told_in_one_phrase() -> None:
    event, log = Seen(1, 20, "event"), Seen(1, 19, "log")
    assert phrase(None, None, topic_cut=False) == "never published: the cursor passed it"
    assert "the place of the loss is unknown" in phrase(None, None, topic_cut=True)
    assert phrase(event, None, topic_cut=False).startswith("published at partition 1, offset 20, no outcome")
    assert "outcome at partition 1, offset 19, no document" in phrase(event, log, topic_cut=False)
    assert phrase(event, Seen(1, 19, "skipped as x"), topic_cut=False).endswith("offset 19: skipped as x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86_400 * 1500, "1,500 d")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: int, text: str) -> None:
    assert age_text(seconds) == text


# ---- processes


class Checker:
    """Stands in for the checker of a worker; a forked process inherits it."""

    def __init__(self, work: str) -> None:
        if work == "refused":
            raise BadInputError("there is no such table", "mend the mapping")

    def check(self, chunk: Chunk) -> Tally:
        if chunk.low == 13:
            raise ReplayError("the server is away", "verify again")
        if chunk.low == 66:
            os._exit(9)
        return Tally(rows=chunk.high - chunk.low)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SegmentChecker", Checker)


def test_every_chunk_is_checked_once_by_some_process(faked: None) -> None:
    chunks = [Chunk(low, low + 10) for low in range(100, 300, 10)]
    done = list(workers.check_all("work", iter(chunks), 2))  # type: ignore[arg-type]
    assert sorted(chunk.low for chunk, _ in done) == [chunk.low for chunk in chunks]
    assert sum(tally.rows for _, tally in done) == 200


@pytest.mark.parametrize(
    ("work", "low", "error", "says"),
    [
        ("work", 13, ReplayError, "the server is away: verify again"),
        ("refused", 1, BadInputError, "there is no such table: mend the mapping"),
        ("work", 66, ReplayError, "a process of the check has died"),
    ],
)
def test_what_goes_wrong_in_a_process_is_raised_here(faked: None, work: Any, low: int, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        list(workers.check_all(work, [Chunk(1, 2), Chunk(low, low + 1), Chunk(3, 4)], 2))
