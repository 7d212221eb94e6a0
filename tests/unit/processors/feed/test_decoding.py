"""What the live feed makes of a record before any rule looks at it."""

from typing import Any, NamedTuple

import orjson
import pytest

from processors.feed.change_events import ChangeDecoder
from processors.feed.worker import ACCOUNT_AGAIN_S, ACCOUNT_WAIT_S, LiveTransformer, Patience
from processors.metrics import ProcessorMetrics
from schemas.codec import Codec
from schemas.records import AuditEvent
from schemas.source import mapping
from schemas.source.mapping import SourceMapping
from tests.support.factories import JOB
from tests.unit.processors.feed.connect_schemas import ROW

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
    transformer = LiveTransformer(
        JOB, Codec(), None, None, ProcessorMetrics(),
        changes=ChangeDecoder(RENAMED, company_sso_id="acme"), named_now=RENAMED.named_now,
    )  # fmt: skip
    (event,) = transformer.decode([Record(b"k", value())])  # type: ignore[list-item]
    assert isinstance(event, AuditEvent)
    assert (event.auditable_type, event.associated_type) == ("Crm::Deal", "Crm::Person")


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
