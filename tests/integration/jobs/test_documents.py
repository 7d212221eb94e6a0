"""Which rows have a document, on a real MongoDB."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ops.jobs import documents
from ops.jobs.documents import identities_of, identities_since, of_rows, rows_with_document
from sink.identity import with_ids
from tests.integration.jobs.conftest import document, live

pytestmark = pytest.mark.services


def test_rows_are_found_whoever_wrote_their_document(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LOOK_UP_MAX", 2)
    odd = {**document(5), "external_id": "crm_audit:005"}
    database["activity_logs"].insert_many([document(1, _id=11), live(3), document(4, "b"), document(6), odd])
    assert rows_with_document(database, "a", [6, 1, 2, 3, 4, 5, 1]) == {1, 3, 6}
    assert rows_with_document(database, "a", [1, 3], tagged=True) == {1}
    assert rows_with_document(database, ["a", "b"], [1, 4, 9]) == {1, 4}
    assert rows_with_document(database, [], [1]) == rows_with_document(database, "a", []) == set()
    assert dict(of_rows(database, "a", [1], ("_id", "source_tag"))) == {
        1: {"_id": 11, "external_id": "crm_audit:1", "source_tag": "crm_migration"}
    }


def test_only_documents_of_ours_are_counted(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SEGMENT_IDS", 2)
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    database["activity_logs"].insert_many([document(n, timestamp=begin + timedelta(days=n)) for n in range(1, 8)])
    database["activity_logs"].insert_many([live(8), document(9, "b")])
    assert documents.count_of(database, "a", [1, 2, 3, 4, 5, 8, 9, 10]) == 5
    assert documents.count_since(database, "a", begin + timedelta(days=5, microseconds=999)) == 3


def test_the_ids_of_documents_are_read_as_the_sink_adds_them_up(database: Any) -> None:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    ours = [document(i, timestamp=begin + timedelta(days=i)) for i in range(1, 300)]
    odd = [
        {**document(1), "external_id": text}
        for text in ("crm_audit:007", "crm_audit:5\x00", "xcrm_audit:5", "crm_audit:5x", "external_id\x00crm_audit:5")
    ]
    foreign = [document(1000, "b"), live(1001), {"company_sso_id": "a", "source_tag": "crm_migration"}]
    database["activity_logs"].insert_many([*ours, document(2**62, timestamp=begin), *odd, *foreign])
    wanted = [*range(1, 300), 2**62]
    assert identities_since(database, "a", None, 4) == with_ids({}, wanted, 4)
    assert identities_since(database, "a", begin + timedelta(days=100), 4) == with_ids({}, range(100, 300), 4)
    assert identities_of(database, "a", [7, 8, 1000, 1001, 9999], 4) == with_ids({}, [7, 8], 4)
