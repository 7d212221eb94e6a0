"""Write errors that are the server's state, by document as a mongos reports them: an outage, no dead letters."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pymongo
import pytest

from ops.control.activity_logs import ActivityLogRecord, write
from ops.control.backend import answer_to
from ops.jobs import migrations
from producer.checkpoint import Checkpoint
from producer.cursor import IdRange
from schemas.collections import CHECKPOINTS
from schemas.errors import BadInputError, ServiceUnreachableError
from schemas.process.connections import Connections
from schemas.process.mongodb import connect
from sink.enricher import Enricher
from sink.match_key import Association, Outcome
from sink.rollback import rollback
from sink.writer import ServerStateError
from tests.fixtures.mongo_proxy import MongoProxy, proxy_of
from tests.integration.sink.conftest import Account

pytestmark = pytest.mark.services

HOST_UNREACHABLE, SHUTDOWN, STEPPED_DOWN, INTERRUPTED, TOO_MANY_REQUESTS = 6, 91, 189, 11600, 16500
VALIDATION = 121


@pytest.fixture
def proxy(mongodb_url: str) -> Iterator[tuple[MongoProxy, str]]:
    with proxy_of(mongodb_url) as found:
        yield found


@pytest.fixture
def behind(mongo_database: Any, proxy: tuple[MongoProxy, str]) -> Iterator[Any]:
    """Give the same migrated database through the proxy."""
    migrations.up(mongo_database)
    client: Any = pymongo.MongoClient(proxy[1], tz_aware=True)
    yield client[mongo_database.name]
    client.close()


@pytest.mark.parametrize("code", [HOST_UNREACHABLE, SHUTDOWN, STEPPED_DOWN, INTERRUPTED, TOO_MANY_REQUESTS])
@pytest.mark.parametrize("reaches_the_server", [False, True])
def test_documents_of_a_shard_that_is_away_are_written_when_it_is_back(
    make_account: Callable[..., Account],
    proxy: tuple[MongoProxy, str],
    behind: Any,
    code: int,
    reaches_the_server: bool,
) -> None:
    account = make_account()
    account.publish([*(account.log(number) for number in range(1, 21)), account.skip(21), account.end()])
    proxy[0].refuse_writes(code, 3, reaches_the_server=reaches_the_server, every=2)
    sink = replace(account, database=behind).run_sink()
    assert proxy[0].replaced == 3
    assert sink.metrics.retries >= 3
    assert account.totals.failed == {}
    assert (account.totals.migrated, account.totals.skipped) == (20, {"contact_not_found": 1})
    assert account.external_ids() == sorted(f"crm_audit:{number}" for number in range(1, 21))
    assert account.dead_letters() == []
    assert account.committed() == {0: 22}


@pytest.mark.parametrize("code", [VALIDATION, 777_777])  # of the document, and one that no list has
def test_what_is_the_documents_own_is_tried_once_more_and_then_a_dead_letter(
    make_account: Callable[..., Account], proxy: tuple[MongoProxy, str], behind: Any, code: int
) -> None:
    account = make_account()
    account.publish([*(account.log(number) for number in range(1, 21)), account.end()])
    proxy[0].refuse_writes(code, 2, every=20)
    replace(account, database=behind).run_sink()
    assert proxy[0].replaced == 2
    assert account.totals.failed == {"write_refused": 1}
    assert [letter.audit_id for letter in account.dead_letters()] == [1]


def test_the_counts_too_wait_for_a_server_that_is_away(
    make_account: Callable[..., Account], proxy: tuple[MongoProxy, str], behind: Any
) -> None:
    account = make_account()
    account.publish([account.log(1), account.end()])
    proxy[0].refuse_writes(STEPPED_DOWN, 2, to="crm_replay_progress", reaches_the_server=True)
    replace(account, database=behind).run_sink()
    assert proxy[0].replaced == 2
    assert account.totals.migrated == 1


def test_an_enrichment_does_not_take_an_outage_for_a_refusal(proxy: tuple[MongoProxy, str], behind: Any) -> None:
    row = Association(
        audit_id=1, external_id="crm_audit:1", customer_id="c", category="deal", action="link", timestamp_ms=0,
        ids={"crm_person_id": 5, "linked_entity_id": 1}, texts={"linked_entity_type": "Crm::Deal"},
    )  # fmt: skip
    log = {"company_sso_id": "a", "external_id": row.external_id, "category": "deal", "action": "link", "metadata": {}}
    behind["activity_logs"].insert_one(log)
    enricher = Enricher(behind["activity_logs"], "a")
    proxy[0].refuse_writes(HOST_UNREACHABLE, 1)
    with pytest.raises(ServerStateError, match="code 6"):
        enricher.patch([row])
    assert enricher.patch([row]) == [Outcome.PATCHED]


def test_over_http_an_outage_is_503_and_no_failed_record(proxy: tuple[MongoProxy, str], behind: Any) -> None:
    record = ActivityLogRecord.model_validate(
        {
            "company_sso_id": "a", "customer_id": "c", "category": "contact", "action": "update", "changes": [],
            "actor": {"type": "system", "name": "Qontak System"}, "timestamp": "2024-05-31T17:30:00Z",
            "external_id": "crm_audit:1",
        }
    )  # fmt: skip
    for refused in (lambda: write(behind, [record]), lambda: rollback(behind, "a")):
        proxy[0].refuse_writes(STEPPED_DOWN, 1)
        with pytest.raises(Exception, match=r"shard rs1|code 189") as raised:
            refused()
        answer = answer_to(raised.value)
        assert answer.status == 503
        proxy[0].refuse_writes(STEPPED_DOWN, 0)
        assert write(behind, [record]).failed == 0


@pytest.mark.parametrize(("code", "error"), [(133, ServiceUnreachableError), (13, BadInputError)])
def test_a_process_that_starts_meanwhile_waits_too(
    proxy: tuple[MongoProxy, str], code: int, error: type[Exception]
) -> None:
    refusal = {"ok": 0.0, "code": code, "errmsg": "no primary for shard rs1"}
    proxy[0].answer = lambda command, _statements: refusal if "find" in command else None
    with pytest.raises(error) as raised:
        connect(Connections(mongodb_url=proxy[1]))
    assert type(raised.value) is error


def test_the_cursor_is_saved_once_the_server_is_back(
    proxy: tuple[MongoProxy, str], behind: Any, mongo_database: Any
) -> None:
    proxy[0].refuse_writes(STEPPED_DOWN, 2, to=CHECKPOINTS)
    Checkpoint(behind, "job", 1).save(IdRange(0, 0, 1, 2))
    assert proxy[0].replaced == 2
    assert mongo_database[CHECKPOINTS].count_documents({}) == 1
