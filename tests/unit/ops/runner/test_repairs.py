"""Which rows that had failed a replay of chosen rows has repaired; topic and collection are lists."""

from types import SimpleNamespace
from typing import Any

import pytest
from bson import ObjectId

from ops.jobs import http_documents
from ops.jobs.letters import Letter
from ops.runner import repairs
from schemas.identity import replay_id
from sink.job_counts import Move

RUN, REPAIR, RETRY = 100, 101, 102


def letter(audit_id: int, run: int, cause: str = "undecodable_changes") -> Letter:
    return Letter(0, audit_id, cause, "", 0, run, "", -1, -1, 0)


def document(audit_id: int, run: int) -> dict[str, Any]:
    written = {"external_id": f"crm_audit:{audit_id}", "source_tag": "crm_migration"}
    return {**written, "_id": ObjectId(replay_id(run, audit_id))}


def topic(monkeypatch: pytest.MonkeyPatch, letters: list[Letter]) -> Any:
    monkeypatch.setattr(repairs, "records", lambda *_: [(0, 0, each) for each in letters])
    monkeypatch.setattr(repairs, "letter_of", lambda _offset, value, _codec: value)
    return SimpleNamespace(kafka={}, codec=None, find=lambda *_: [])


def stored(documents: list[dict[str, Any]]) -> Any:
    def find(query: Any, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [each for each in documents if each["external_id"] in query["external_id"]["$in"]]

    return {"activity_logs": SimpleNamespace(find=find)}


def moves(
    monkeypatch: pytest.MonkeyPatch, letters: list[Letter], documents: list[dict[str, Any]], proof: Any = None
) -> dict[int, Move]:
    whole: Any = SimpleNamespace(company_sso_id="acme", run=RUN, proof=proof)
    partial: Any = SimpleNamespace(company_sso_id="acme", run=RETRY, planned_outcomes=())
    view: Any = SimpleNamespace()
    return repairs.moves_of(partial, whole, None, topic(monkeypatch, letters), stored(documents), view)


def test_of_a_run_its_own_letters_say_what_had_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [letter(1, RUN), letter(2, REPAIR), letter(3, RUN), letter(3, RETRY)]
    found = moves(monkeypatch, letters, [document(1, RETRY), document(2, RETRY), document(3, RETRY)])
    assert found == {1: Move("undecodable_changes")}


def test_of_a_proof_the_letters_of_the_repairs_before_it_do_too(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = {"run": REPAIR, "failed": {"write_refused": 2}}
    letters = [letter(1, RUN), letter(1, REPAIR, "write_refused"), letter(2, REPAIR, "write_refused"), letter(3, RUN)]
    # Row 3 was repaired before the proof, which has it among the migrated.
    documents = [document(1, RETRY), document(2, RETRY), document(3, REPAIR)]
    assert moves(monkeypatch, letters, documents, proof) == {1: Move("write_refused"), 2: Move("write_refused")}


def test_a_document_that_came_by_http_makes_a_failed_row_a_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = document(1, RETRY) | {"_id": http_documents.new_id("acme")}
    assert moves(monkeypatch, [letter(1, RUN)], [sent]) == {1: Move("undecodable_changes", "duplicate_external_id")}


def test_a_rerun_meets_the_documents_of_rows_that_were_repaired_since_they_were_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rerun: Any = SimpleNamespace(company_sso_id="acme", run=RETRY + 1, proof=None)
    letters = [letter(audit_id, run) for run in (RUN, RETRY + 1) for audit_id in (1, 2, 3, 4)]
    planted = document(2, RETRY) | {"_id": ObjectId()}
    documents = [document(1, RETRY), planted, document(3, RUN)]
    topics = topic(monkeypatch, letters)
    assert repairs.met_by(rerun, {REPAIR, RETRY}, topics, stored(documents)) == {
        1: Move("undecodable_changes", "duplicate_external_id")
    }
