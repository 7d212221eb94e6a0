"""Which legacy document is which row: nearest first, missing rows before those that have a document, one row each."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ops.checks.seam.matching import Expected, Legacy, Matcher, ranges

TOLERANCE_MS = 2_000


def row(audit_id: int, at_ms: int, *, has_document: bool = False, customer: str = "c", entity: object = 5) -> Expected:
    return Expected(audit_id, customer, "deal", "update", entity, at_ms, has_document)


def legacy(document_id: str, at_ms: int, *, customer: str = "c", entity: object = 5, action: str = "update") -> Legacy:
    return Legacy(document_id, customer, "deal", action, entity, at_ms)


def match(rows: list[Expected], documents: list[Legacy]) -> dict[int, object]:
    return Matcher(TOLERANCE_MS).match(rows, documents).by_row


def test_a_document_stands_for_the_row_with_its_key_within_the_tolerance() -> None:
    assert match([row(1, 10_000)], [legacy("a", 12_000)]) == {1: "a"}
    assert match([row(1, 10_000)], [legacy("a", 12_001)]) == {}
    assert match([row(1, 10_000)], [legacy("a", 10_000, customer="d")]) == {}
    assert match([row(1, 10_000)], [legacy("a", 10_000, action="create")]) == {}
    assert match([row(1, 10_000)], [legacy("a", 10_000, entity=6)]) == {}
    assert match([row(1, 10_000)], [legacy("a", 10_000, entity="5")]) == {1: "a"}
    assert match([row(1, 10_000)], [legacy("a", 10_000, entity=None)]) == {1: "a"}


def test_a_row_that_nothing_else_accounts_for_chooses_first() -> None:
    rows = [row(1, 10_000, has_document=True), row(2, 11_000)]
    assert match(rows, [legacy("a", 10_000)]) == {2: "a"}
    assert match(rows, [legacy("a", 10_000), legacy("b", 11_000)]) == {1: "a", 2: "b"}


def test_two_rows_and_one_document_leave_one_row_without() -> None:
    assert match([row(1, 10_000), row(2, 10_500)], [legacy("a", 10_400)]) == {2: "a"}


def test_a_document_that_names_the_entity_is_taken_before_one_that_does_not() -> None:
    assert match([row(1, 10_000)], [legacy("vague", 10_000, entity=None), legacy("sure", 11_000)]) == {1: "sure"}


def test_a_document_taken_on_one_page_is_not_taken_on_the_next() -> None:
    matcher = Matcher(TOLERANCE_MS)
    assert matcher.match([row(1, 10_000)], [legacy("a", 10_000)]).by_row == {1: "a"}
    assert matcher.match([row(2, 10_100)], [legacy("a", 10_000)]).by_row == {}


rows_of = st.lists(st.tuples(st.integers(0, 30_000), st.sampled_from("cd"), st.booleans()), max_size=12).map(
    lambda found: [row(at, ms, customer=who, has_document=has) for at, (ms, who, has) in enumerate(found)]
)
documents_of = st.lists(st.tuples(st.integers(0, 30_000), st.sampled_from("cd")), max_size=12).map(
    lambda found: [legacy(f"d{at}", ms, customer=who) for at, (ms, who) in enumerate(found)]
)


@given(rows_of, documents_of)
def test_every_match_is_allowed_and_one_to_one_and_no_allowed_pair_is_left_over(
    rows: list[Expected], documents: list[Legacy]
) -> None:
    by_row = match(rows, documents)
    by_id = {document.document_id: document for document in documents}
    assert len(set(by_row.values())) == len(by_row)

    def fits(one: Expected, other: Legacy) -> bool:
        return one.customer_id == other.customer_id and abs(one.timestamp_ms - other.timestamp_ms) <= TOLERANCE_MS

    assert all(fits(one, by_id[by_row[one.audit_id]]) for one in rows if one.audit_id in by_row)
    left_rows = [one for one in rows if one.audit_id not in by_row]
    left_documents = [other for other in documents if other.document_id not in by_row.values()]
    assert not any(fits(one, other) for one in left_rows for other in left_documents)


@given(rows_of)
def test_the_ranges_cover_every_row_with_its_tolerance_and_do_not_overlap(rows: list[Expected]) -> None:
    found = ranges(rows, TOLERANCE_MS)
    for one in rows:
        assert any(
            who == one.customer_id and first + TOLERANCE_MS <= one.timestamp_ms <= last - TOLERANCE_MS
            for who, first, last in found
        )
    for customer in "cd":
        mine = sorted((first, last) for who, first, last in found if who == customer)
        assert all(last < following for (_, last), (following, _) in pairwise(mine))
