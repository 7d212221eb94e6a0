"""The whole producer as it is run, on real servers."""

from typing import Any

import pytest

from tests.integration.producer import crm
from tests.integration.producer.conftest import MakeJob

pytestmark = pytest.mark.services


def test_every_yaml_row_of_the_sample_arrives_once_and_byte_for_byte(make_job: MakeJob) -> None:
    here = make_job(top_audit_id=2**62)
    crm.load_sample(here.dsn)
    code, said = here.run(CRM_REPLAY_PAGE_ROWS="50")
    assert code == 0, said
    stored = {row["id"]: row for row in crm.sample_rows("audits_yaml")}
    events = here.events()
    assert len(events) == len({event.audit_id for event in events}) == crm.YAML_ROWS
    for event in events:
        row: dict[str, Any] = stored[event.audit_id]
        assert event.audited_changes == (row["audited_changes"] or "")
