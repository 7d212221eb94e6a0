"""One person's data on real servers: exported, purged with a certificate, and everybody else's as it was."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from ops.checks.nightly import CheckOptions, check_accounts
from ops.checks.preflight import Verdict
from ops.jobs.audit_log import entries
from ops.local.sample_crm import SAMPLE_YAML
from ops.progress import PlainView
from ops.subject.model import Person
from ops.subject.purge import Confirm, purge_person
from schemas.codec import Codec
from schemas.errors import BadInputError
from schemas.source.mapping import load
from schemas.topics import AccountTopics
from tests.e2e.conftest import Crm, mapping_of

PERSON = 50001


def others(crm: Crm) -> list[bytes]:
    """Return the documents of everybody else, and those of other origins, as the server keeps them."""
    raw: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
    query = {"$nor": [{"metadata.crm_person_id": PERSON, "external_id": {"$regex": "^crm_audit:"}}]}
    logs = crm.database.get_collection("activity_logs", codec_options=raw)
    return [document.raw for document in logs.find(query).sort("_id", 1)]


def refuse(found: dict[str, Any]) -> None:
    raise BadInputError("that is not the person", "nothing was removed")


def purge(crm: Crm, account: str, *, truncate: bool = False, confirm: Confirm = lambda found: None) -> dict[str, Any]:
    mapping = load(mapping_of(SAMPLE_YAML))
    person = Person.of(account, str(PERSON), mapping.person)
    return purge_person(
        person, mapping, crm.connections, crm.database, Codec(), PlainView(), confirm=confirm, truncate_backlog=truncate
    ).as_dict()


@pytest.mark.timeout(600)  # a run, two calls and a second run, on a machine that may be busy
def test_a_person_is_exported_and_purged_and_does_not_come_back(sample_crm: Crm, tmp_path: Path) -> None:
    account = f"{SAMPLE_YAML}-{uuid.uuid4().hex[:8]}"
    database = sample_crm.database
    for collection in ("contacts", "crm_contact_id_map"):
        database[collection].update_many({"company_sso_id": SAMPLE_YAML}, {"$set": {"company_sso_id": account}})
    mapping = ("--mapping", mapping_of(SAMPLE_YAML))
    job = sample_crm.run(account, *mapping)
    logs = database["activity_logs"]
    theirs = logs.count_documents({"metadata.crm_person_id": PERSON})
    one = logs.find_one({"metadata.crm_person_id": PERSON})
    assert one is not None
    live = {**one, "_id": "live", "external_id": "crm_audit:77"}
    del live["source_tag"]
    native = {"company_sso_id": account, "customer_id": one["customer_id"], "category": "note", "text": "native"}
    logs.insert_many([live, native])
    before = others(sample_crm)

    file = tmp_path / "export.jsonl"
    words = ("--account", account, "--person", str(PERSON))
    exported = sample_crm.call("subject", "export", *words, "--output", str(file))
    assert exported.returncode == 0, exported.stderr
    items = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    documents = [item["document"] for item in items if item["kind"] == "document"]
    assert len(documents) == theirs + 1
    assert {document["metadata"]["crm_person_id"] for document in documents} == {PERSON}
    topics = AccountTopics.of(account)
    seen = {item["topic"] for item in items if item["kind"] == "topic_record"}
    assert seen == {topics.replay, topics.outcomes, topics.contacts, topics.referents}
    assert file.stat().st_mode & 0o077 == 0

    with pytest.raises(BadInputError, match="not the person"):
        purge(sample_crm, account, confirm=refuse)
    assert others(sample_crm) == before
    assert logs.count_documents({"metadata.crm_person_id": PERSON}) == theirs + 1

    called = sample_crm.call("subject", "purge", *words, "--yes")
    assert called.returncode == 0, called.stderr
    certificate = json.loads(called.stdout)
    assert certificate["found"]["documents"] == certificate["removed"]["documents"] == theirs + 1
    assert certificate["removed"]["tombstones"] == {topics.contacts: 1, topics.referents: 1}
    assert {kept["where"] for kept in certificate["left"]} == seen
    assert all(kept["gone_by"] for kept in certificate["left"] if kept["where"] in (topics.replay, topics.outcomes))
    assert certificate["still_in"]["contacts"] == 1
    assert any("1 activity logs of other origins" in note for note in certificate["notes"])
    assert one["customer_id"] not in json.dumps(certificate)
    assert others(sample_crm) == before
    assert logs.count_documents({"metadata.crm_person_id": PERSON}) == 0
    noted = [(entry.action, entry.outcome) for entry in entries(database, account)]
    assert noted[:2] == [("subject-purge", "ok"), ("subject-purge", "begun")]

    night = check_accounts(CheckOptions(accounts=(account,)), sample_crm.connections, PlainView())
    left = {check.name: check for check in night.results[-1].checks}
    assert (left["job"].verdict, left["job"].facts["purged"]) == (Verdict.OK, theirs)
    assert left["sample"].verdict is Verdict.OK

    again = purge(sample_crm, account, truncate=True)
    assert again["found"]["documents"] == again["removed"]["documents"] == 0
    assert set(again["removed"]["tombstones"].values()) == {0}
    assert set(again["removed"]["truncated"]) == {topics.replay, topics.outcomes}
    assert all(count > 0 for count in again["removed"]["truncated"].values())
    cleared = purge(sample_crm, account)
    assert {kept["where"] for kept in cleared["left"]} == {topics.contacts, topics.referents}
    assert not cleared["complete"]

    # Once the platform has erased the contact as well, no later run brings the history back.
    database["contacts"].delete_many({"company_sso_id": account, "crm_data.id": PERSON})
    assert purge(sample_crm, account)["still_in"] == {"contacts": 0, "crm_contact_id_map": 0}
    back = sample_crm.run(account, *mapping)
    assert back["skips_by_reason"]["contact_not_found"] > job["skips_by_reason"]["contact_not_found"]
    assert logs.count_documents({"metadata.crm_person_id": PERSON}) == 0
    assert others(sample_crm) == before
