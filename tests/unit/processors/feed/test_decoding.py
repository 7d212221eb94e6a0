"""What the live feed makes of a record before any rule looks at it."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import orjson
import pytest

from processors.batches import SourceRecord
from processors.feed.accounts import ACCOUNT_AGAIN_S, ACCOUNT_WAIT_S, Patience, UnknownAccounts
from processors.feed.change_events import ChangeDecoder, Refused
from processors.feed.decoding import FeedDecoder
from schemas.codec import Codec
from schemas.records import AuditEvent
from schemas.source import mapping
from schemas.source.mapping import SourceMapping
from tests.unit.processors.feed.connect_schemas import ROW, multi_tenant

DEFAULT = mapping.load(None).model_dump(by_alias=True)
RENAMED = SourceMapping.model_validate(DEFAULT | {"aliases": {"Person": "Crm::Person", "Deal": "Crm::Deal"}})
EVENT = AuditEvent(5, 0, 1000, "Deal", 1, "Person", 7, "", 0, "", "update", "--- {}\n", False, 1, "", "", "acme")


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None


def of_our_schema() -> bytes:
    return Codec().encode(EVENT)


def of_the_crm() -> bytes:
    return orjson.dumps({**ROW, "auditable_type": "Deal", "associated_type": "Person"})


@pytest.mark.parametrize("value", [of_our_schema, of_the_crm])
def test_a_row_under_a_former_name_is_called_by_the_name_now(value: Any) -> None:
    decoder = FeedDecoder(Codec(), ChangeDecoder(RENAMED, company_sso_id="acme"), RENAMED.named_now)
    event = decoder.decode(cast("SourceRecord", Record(b"k", value())))
    assert isinstance(event, AuditEvent)
    assert (event.auditable_type, event.associated_type) == ("Crm::Deal", "Crm::Person")


def test_rows_of_a_new_account_are_decoded_again_once_it_is_published() -> None:
    published: dict[str, str] = {}
    changes = ChangeDecoder(multi_tenant("inverse: SELECT id FROM a"), account_of=published.get)
    decoder = FeedDecoder(Codec(), changes, lambda event: event)
    values = (orjson.dumps({**ROW, "account_id": 42}), of_our_schema(), None)
    records = [cast("SourceRecord", Record(b"k", value)) for value in values]
    decoded = [decoder.decode(record) for record in records]
    assert isinstance(decoded[0], Refused)

    async def scenario() -> Sequence[Any]:
        waiting = asyncio.create_task(UnknownAccounts(decoder, published.get).awaited(records, decoded))
        await asyncio.sleep(0)
        published["42"] = "acme"
        return await waiting

    first, *others = asyncio.run(scenario())
    assert isinstance(first, AuditEvent)
    assert first.company_sso_id == "acme"
    assert others == decoded[1:]


def test_unknown_accounts_together_delay_a_feed_by_a_bounded_time() -> None:
    patience, now, waited = Patience(), 1000.0, 0.0
    for number in range(500):  # each batch brings an account that nobody knows
        assert patience.worth_waiting_for({str(number)}, now) == {str(number)}
        waited += patience.wait_s
        patience.give_up({str(number)}, now)
        assert patience.worth_waiting_for({str(number)}, now) == set()
    assert waited <= 2 * ACCOUNT_WAIT_S
    assert patience.worth_waiting_for({"0"}, now + ACCOUNT_AGAIN_S) == {"0"}
    assert patience.wait_s == ACCOUNT_WAIT_S
    patience.give_up(set(), now + ACCOUNT_AGAIN_S)
    assert patience.wait_s == ACCOUNT_WAIT_S
